"""Front: what both front ends of a pool share, those for tasks and for threads.

It is the way from a caller to the state: through the fast path where that suffices, else
through a decision that the keeper commits.
"""

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Generic, Protocol
from weakref import ref

from . import _report as report
from ._hooks import Hooks
from ._keeper import Keeper
from ._owner import acquiring_stack, current_task, current_thread
from ._policy import Policy
from ._slot import Slot
from ._state import State
from ._waiters import Waiter
from .errors import WrongEventLoop
from .lease import Default
from .listener import PoolListener
from .manager import T
from .stats import Holder, PoolStats


class Request(Protocol):
    """On whose behalf code runs."""

    def is_holding(self) -> bool:
        """Whether it holds a lease, of whichever pool."""
        ...


# The request that code belongs to, with all that it starts.
REQUEST: ContextVar[Request | None] = ContextVar("connectionpools_fastapi.request", default=None)


def holding_request() -> Request | None:
    """Return the request that the running code belongs to, if it holds a lease: who does not cannot wait for itself."""
    request = REQUEST.get()
    return request if request is not None and request.is_holding() else None


class Front(Generic[T]):
    """Looking in, ending leases, and the steps of an acquire and a release that never wait."""

    def __init__(self, policy: Policy, hooks: Hooks[T], clock: Callable[[], float]) -> None:
        self._policy = policy
        self._clock = clock
        self._hooks = hooks
        self._state: State[T] = State(policy, has_check=hooks.has_check, has_change=hooks.has_change)
        self._keeper = Keeper(self._state, hooks, clock)
        self._commit = self._keeper.commit
        self._lose = self._keeper.lose
        self._keeps_stacks = policy.debug
        self._has_doubts = hooks.has_doubts
        self._asks_before_return = hooks.has_doubts and not hooks.has_change  # which is followed by the question

    @property
    def name(self) -> str:
        """What errors, logs, health and metrics call the pool."""
        return self._policy.name

    @property
    def status(self) -> str:
        """Where the pool is: "new", "open", "suspended", "closing", "closed", or "forked" in a child process."""
        return self._state.status.value

    @property
    def limit(self) -> int:
        """The most resources that may exist at once."""
        return self._state.limit

    @property
    def free(self) -> int:
        """How many resources are ready for use."""
        return len(self._state.free)

    @property
    def taken(self) -> int:
        """How many resources are leased out, being checked or being changed."""
        return max(0, len(self._state.slots) - len(self._state.free))

    @property
    def creating(self) -> int:
        """How many resources are being made."""
        return len(self._state.creating)

    @property
    def waiting(self) -> int:
        """How many callers are in the queue."""
        return len(self._state.queue)

    def stats(self) -> PoolStats:
        """Return a frozen snapshot of the state and all totals.

        Returns:
            Counts that add up: all of them are of one moment.
        """
        return self._commit(report.stats, self._state, self._clock())

    def holders(self) -> list[Holder]:
        """Return who holds a lease and for how long, the longest first.

        Returns:
            One entry a lease. Those taken through `Leased` are named after their route,
            others after the task or thread in which they began.
        """
        return [hold.named() for hold in self._commit(report.holders, self._state, self._clock())]

    def try_acquire(self) -> T | None:
        """Lease a free resource without waiting. From tasks and threads.

        Returns:
            A resource, or None if none is ready; then one is made ready in the background
            if there is room for it.

        Raises:
            PoolClosed: If the pool is not open.
            WrongEventLoop: If the resources belong to another loop.
        """
        self._check_here()
        slot = self._commit(self._state.try_acquire, self._clock())
        while slot is not None and self._mistrusts(slot):
            slot = self._commit(self._state.try_acquire, self._clock())
        if slot is None:
            return None
        self._note_acquired(slot, current_task() or current_thread())
        return slot.resource

    def discard(self, resource: T) -> None:
        """End the lease of a resource that is broken: it is cleaned, not used again.

        Raises:
            NotLeased: If it is not leased from this pool.
        """
        self._discard(self._leased(resource))

    def detach(self, resource: T) -> T:
        """End the lease and keep the resource for good; to clean it is the caller's task.

        Returns:
            The resource.

        Raises:
            NotLeased: If it is not leased from this pool.
        """
        return self._detach(self._leased(resource))

    def expire(self) -> None:
        """Retire all resources that exist: the free ones at once, each other one when it comes back.

        Nobody waits, and callers that come from now on get new ones: for credentials that
        were changed, or a server that was moved. `drain` does the same and waits for it.
        """
        self._commit(self._state.expire, self._clock())

    def retain(self, keep: Callable[[T], object]) -> int:
        """Retire the free resources for which a function says no.

        Those that are leased out, or come later, are not asked about. From the pool's own
        event loop, or from any thread or loop where no hook is async.

        Args:
            keep: Gets one resource after the other, each out of use meanwhile; falsy retires it.
                It must not block or wait.

        Returns:
            How many were retired.

        Raises:
            WrongEventLoop: If the resources belong to another loop.
            Exception: What `keep` raises; the resource that it was asked about is kept.
        """
        self._check_here()
        retired = 0
        for slot in self._state.free.copy():
            if self._commit(self._state.borrow, slot):
                kept = True
                try:
                    kept = bool(keep(slot.resource))
                finally:
                    self._commit(partial(self._state.bring_back, keep=kept), slot, self._clock())
                retired += not kept
        return retired

    def resize(self, limit: int) -> None:
        """Change the most resources that may exist at once.

        A higher limit serves waiters at once. With a lower one free resources go at once,
        and each other one that is too many when it comes back; none is created meanwhile.
        It stays when the pool is closed and opened again. `min_free` is kept as far as the
        limit allows.

        Args:
            limit: The new limit.

        Raises:
            PoolConfigError: If it is no positive whole number.
        """
        self._policy.check_limit(limit)
        self._commit(self._state.resize, limit, self._clock())

    def suspend(self) -> None:
        """Let all callers wait, say while a back-end is switched over; leases go on and end as usual.

        Nothing is created meanwhile. Callers wait up to their own timeouts, and are served in
        order after `resume`. To suspend a suspended pool does nothing.

        Raises:
            PoolClosed: If the pool is not open.
        """
        self._commit(self._state.suspend)

    def resume(self) -> None:
        """Serve callers again after `suspend`; what failed before is tried anew.

        To resume a pool that is not suspended does nothing.

        Raises:
            PoolClosed: If the pool is not open.
        """
        self._commit(self._state.resume, self._clock())

    def add_listener(self, listener: PoolListener) -> None:
        """Tell a listener what happens from now on.

        Args:
            listener: Its methods are called after the fact, from any thread or task.
        """
        self._keeper.listeners.add(listener)
        self._commit(self._state.listen, self._keeper.listeners.heard(), self._clock())

    def remove_listener(self, listener: PoolListener) -> None:
        """Tell a listener no more.

        Args:
            listener: One that was added.

        Raises:
            ValueError: If it was not.
        """
        self._keeper.listeners.remove(listener)
        self._commit(self._state.listen, self._keeper.listeners.heard(), self._clock())

    def _is_here(self) -> bool:
        loop = self._keeper.loop
        return loop is not None and loop.is_here()

    def _check_here(self) -> None:
        if self._hooks.are_async and not self._is_here() and self._state.is_open:
            msg = (
                f"pool {self.name!r}: its resources belong to the event loop that opened it, and this is another loop "
                "or a thread. Lease in that loop (in sync endpoints through Leased), or write the hooks as `def`"
            )
            raise WrongEventLoop(msg)

    def _check_timeout(self, timeout: float | None | Default) -> None:
        if not isinstance(timeout, Default) and timeout is not None:
            self._policy.check_seconds("timeout", timeout, hint="0 never waits, None waits for ever")

    def _seconds(self, timeout: float | None | Default) -> float | None:
        return self._policy.timeout if isinstance(timeout, Default) else timeout

    def _granted(self, waiter: Waiter[T]) -> Slot[T]:
        if waiter.slot is None:
            error, waiter.error = waiter.error, None
            assert error is not None  # noqa: S101 - a waiter is woken with either
            try:
                raise error
            finally:
                del error  # or it would keep itself and the caller's variables alive: a cycle
        if self._hooks.are_async:  # only now may it be known: by what create has returned
            try:
                self._check_here()
            except WrongEventLoop:
                self._commit(self._state.withdraw, waiter, self._clock())
                raise
        return waiter.slot

    def _leased(self, resource: T) -> Slot[T]:
        return self._state.leased(resource)

    def _take(self) -> Slot[T] | None:
        if self._hooks.are_async:
            self._check_here()
        slot = self._state.take(self._clock())
        while slot is not None and self._has_doubts and self._mistrusts(slot):
            slot = self._state.take(self._clock())
        return slot

    def _queue_up(self, waiter: Waiter[T], timeout: float | None) -> Slot[T] | None:
        """Lease at once what can be, or let the waiter into the queue."""
        slot = self._commit(self._state.acquire, waiter, timeout, self._clock())
        while slot is not None and self._mistrusts(slot):
            slot = self._commit(self._state.acquire, waiter, timeout, self._clock())
        return slot

    def _mistrusts(self, slot: Slot[T]) -> bool:
        """Whether a slot that nobody has used yet is to be checked first; then it is on its way."""
        if not self._has_doubts:
            return False
        mistrusted = True  # also if not even an answer comes
        try:
            mistrusted = self._hooks.doubt(slot.resource)
        finally:
            if mistrusted:
                self._commit(self._state.mistrust, slot, self._clock())
        return mistrusted

    def _note_acquired(self, slot: Slot[T], owner: object) -> None:
        """Take note of who leases by hand: it need not be who gives back."""
        slot.lease = ref(owner) if owner is not None else None
        if self._keeps_stacks:
            slot.stack = acquiring_stack()

    def _give_back(self, slot: Slot[T]) -> bool:
        """Give a slot back; True if it may be being changed."""
        state = self._state
        if self._asks_before_return and state.taken.get(slot.key) is slot:  # else its doubts are nobody's any more
            slot.doubted = self._hooks.doubt(slot.resource)
        now = self._clock()
        state.end(slot, now)
        if state.put_back(slot, now):
            if state.gate:  # somebody came to wait in between
                self._commit(state.settle, now)
            return False
        self._commit(state.release, slot, now)
        return slot in state.changing

    def _discard(self, slot: Slot[T]) -> None:
        now = self._clock()
        self._state.end(slot, now)
        self._commit(self._state.discard, slot, now)

    def _detach(self, slot: Slot[T]) -> T:
        now = self._clock()
        self._state.end(slot, now)
        self._commit(self._state.detach, slot, now)
        return slot.resource
