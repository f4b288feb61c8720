"""Engine: what a pool has, and the steps of a lease that tasks, threads and requests share.

A step first tries the inventory, which needs no lock. If that does not suffice, the state
decides under the lock, and the executor applies the decision.
"""

import asyncio
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Generic
from weakref import WeakMethod, ref

import anyio
from anyio.lowlevel import checkpoint

from .._core import snapshot
from .._core.inventory import Inventory
from .._core.policy import Default, Policy
from .._core.slot import Slot, T
from .._core.state import PoolState
from .._core.terms import RANKS, Priority, Terms, terms_of
from .._core.waiter import Client, Waiter
from ..errors import PoolError, PoolTimeout, WrongEventLoop
from ..listener import PoolListener
from ..stats import Holder, PoolStats
from .caller import acquiring_stack, current_task, current_thread, has_ended
from .current import current_loop, task_waiter
from .executor import Executor
from .holders import describe_age, named, remedy
from .hooks import Hooks
from .loan import Loan
from .request_context import REQUEST, holding_request, is_answered
from .route_usage import RouteUsage
from .waiters import TaskWaiter, ThreadWaiter

# A timeout names this many holders, the longest first.
MOST_HOLDERS = 3


class Engine(Generic[T]):
    """Policy, clock, hooks, state, inventory and executor of one pool, and the steps of its leases.

    `take`, `park` and `acquire_sync` return a slot that is leased out; `hand_over` or a `Lease` notes its
    holder; `give_back`, `discard` and `detach` end its lease.
    """

    inventory: Inventory[T]

    def __init__(self, policy: Policy, hooks: Hooks[T], clock: Callable[[], float]) -> None:
        self.policy = policy
        self.name = policy.name
        self.clock = clock
        self.hooks = hooks
        self.state: PoolState[T] = PoolState(
            policy, has_check=hooks.has_check, has_change=hooks.has_change, has_ended=has_ended
        )
        # A weak reference, so that the engine is dropped with the pool and its last lease.
        self.executor = Executor(self.state, hooks, clock, WeakMethod(self._hold_inventory))
        self._hold_inventory()
        self.apply = self.executor.apply
        self.reclaim_leak = self.executor.reclaim_leak
        self.keeps_stacks = policy.debug
        self.lend_hook = hooks.lend
        self.judges = hooks.judges
        self._tells_waits = False  # whether listeners subscribe to the ends of waits
        self._has_doubts = hooks.has_doubts
        self._asks_before_return = hooks.has_doubts and not hooks.has_change  # else it is asked after `change`
        self._usage: RouteUsage | None = None  # None until routes are counted: a lease then pays nothing for it
        self._looks_at_returns = self._asks_before_return  # whether to stop for either of these two

    def _hold_inventory(self) -> None:
        """Hold the state's inventory directly, as the fast path uses it; a fork renews it."""
        self.inventory = self.state.inventory

    def __del__(self) -> None:
        """Warn of a pool that was dropped open, and end its tasks, which would go on unnoticed."""
        # The garbage collector calls this at any moment, so no lock may be taken here.
        executor = getattr(self, "executor", None)  # None if __init__ was interrupted
        if executor is not None and executor.is_live():
            executor.end_soon()
            msg = (
                f"pool {self.name!r} was dropped without being closed; write `async with pool:` or `await pool.close()`"
            )
            warnings.warn(msg, ResourceWarning, source=self, stacklevel=2)

    # --- what is known --------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """Return a snapshot of the state and all totals, of one moment."""
        routes = {} if self._usage is None else self._usage.snapshot()
        stats = self.apply(snapshot.stats, self.state, self.clock(), routes)
        tokens = self.executor.tokens
        return stats if tokens is None else replace(stats, budget=tokens.stats())

    def count_by_route(self) -> None:
        """Count leases and waits by the route of their request from now on."""
        if self._usage is None:
            self._usage = RouteUsage()
            self._looks_at_returns = True

    def holders(self) -> list[Holder]:
        """Return the holders of all leases, the longest first."""
        return [named(held) for held in self.apply(snapshot.holders, self.state, self.clock())]

    async def probe(self, max_age: float, timeout: float) -> bool:
        """Find out whether the back-end answers; see `ConnectionPool.probe`."""
        watcher: TaskWaiter[T] = task_waiter()
        known = self.apply(self.state.probe, watcher, max_age, timeout, self.clock())
        if known is not None:
            return known
        try:
            with anyio.move_on_after(timeout):
                await watcher.parked
                return watcher.error is None or not self.apply(self.state.is_known_down, self.clock())
            return False
        finally:
            self.apply(self.state.forget, watcher)

    # --- where the caller runs ------------------------------------------------------------

    def is_here(self) -> bool:
        """Whether the calling code runs in the pool's own loop."""
        return self.executor.is_here()

    def check_here(self) -> None:
        """Check that the calling code may use the resources.

        Raises:
            WrongEventLoop: If they belong to another loop.
        """
        if self.hooks.are_async and not self.is_here() and self.state.is_open:
            if self.executor.has_lost_loop():
                raise self.executor.orphaned()
            msg = (
                f"pool {self.name!r}: its resources belong to the event loop that opened it, and this is another loop "
                "or a thread. Lease in that loop (in sync endpoints through Leased), or write the hooks as `def`. A "
                "test opens the pool in its own loop, as the fixture `started_app` does"
            )
            raise WrongEventLoop(msg)

    def refuse_loop(self, call: str, instead: str) -> None:
        """Check that the calling code runs in a plain thread.

        Raises:
            WrongEventLoop: If an event loop runs in this thread, which `call` would block.
        """
        if current_loop() is not None:
            msg = f"pool {self.name!r}: {call} would block the event loop of this thread; write {instead}"
            raise WrongEventLoop(msg)

    # --- acquire --------------------------------------------------------------------------

    def terms(self, timeout: float | None | Default, priority: Priority) -> Terms:
        """Return the terms of a caller; raises PoolConfigError if they are none."""
        return terms_of(self.name, timeout, priority)

    def take(self) -> Slot[T] | None:
        """Lease out a free resource without the lock; None if the state has to decide."""
        if self.hooks.are_async:
            loop = self.executor.loop
            # `is_here` inlined for a loop of asyncio: its calls took a twelfth of a lease.
            if loop is None or asyncio._get_running_loop() is not loop.native:  # noqa: SLF001 - as in `AsyncioLoop`
                self.check_here()
        slot = self.inventory.take(self.clock())
        while slot is not None and self._has_doubts and self._must_check(slot):
            slot = self.inventory.take(self.clock())
        return slot

    def try_acquire(self) -> T | None:
        """Lease out a free resource if there is one; see `ConnectionPool.try_acquire`."""
        self.check_here()
        slot = self.apply(self.state.try_acquire, self.clock())
        while slot is not None and self._must_check(slot):
            slot = self.apply(self.state.try_acquire, self.clock())
        if slot is None:
            return None
        return self.hand_over(slot, current_task() or current_thread())

    async def park(self, terms: Terms, task: object, client: Client | None = None) -> Slot[T]:
        """Make the running task wait for a resource in the queue, for as long as its client is there."""
        waiter: TaskWaiter[T] = task_waiter(task)
        waiter.request, waiter.client = holding_request(), client
        seconds = self._accept(waiter, terms)
        loop = self.executor.loop
        is_here = loop is not None and waiter.loop is loop.native
        try:
            try:
                slot = self._acquire_or_enqueue(waiter, seconds)
            except PoolError as error:
                self._note_failure(error)
                if client is None:
                    # A caller that retries in a loop must not starve the tasks that would end its failures.
                    await checkpoint()
                raise
            if slot is not None:
                return slot
            if (is_here or waiter.deadline is None) and not self._tells_waits:
                await waiter.parked
            else:
                await self._wait(waiter, is_here=is_here)
            if client is not None:
                client.check()  # it may have gone just as the waiter was granted
        except BaseException:
            self.apply(self.state.cancel, waiter, self.clock())
            raise
        finally:
            if client is not None:
                client.unwatch(waiter)
        slot = waiter.slot
        if slot is None or not is_here:
            slot = self._granted(waiter)
        return slot

    async def _wait(self, waiter: TaskWaiter[T], *, is_here: bool) -> None:
        # A task of another loop watches its own timeout: the pool's loop may be blocked, or have ended.
        seconds = None if is_here or waiter.deadline is None else waiter.deadline - waiter.asked_at
        with self.executor.listeners.around_wait(waiter, self.state.queue, self.clock):
            with anyio.move_on_after(seconds):
                await waiter.parked
                return
            self.apply(self.state.time_out, waiter, self.clock())

    def acquire_sync(self, terms: Terms) -> Slot[T]:
        """Lease out a resource to a plain thread, which waits for it if it must."""
        self.refuse_loop("`with pool.lease()` and acquire_sync", "`async with pool.lease()`")
        return self.take() or self._park_sync(terms)

    def _park_sync(self, terms: Terms) -> Slot[T]:
        waiter: ThreadWaiter[T] = ThreadWaiter()
        waiter.request = holding_request()
        seconds = self._accept(waiter, terms)
        try:
            slot = self._acquire_or_enqueue(waiter, seconds)
            if slot is not None:
                return slot
            with self.executor.listeners.around_wait(waiter, self.state.queue, self.clock):
                # A thread watches its own timeout too: the pool's loop may be blocked.
                if not waiter.wait(seconds):
                    self.apply(self.state.time_out, waiter, self.clock())
        except BaseException as error:
            self.apply(self.state.cancel, waiter, self.clock())
            self._note_failure(error)
            raise
        return self._granted(waiter)

    def _note_failure(self, error: BaseException) -> None:
        """Name the pool, and in a timeout the longest leases, so that one line of a log explains a saturated pool."""
        if self._usage is not None:
            self._usage.note_failure(error)
        if isinstance(error, PoolError):
            error.pool = self.name
        if isinstance(error, PoolTimeout) and (holders := self.holders()[:MOST_HOLDERS]):
            each = ", ".join(f"{holder.name} for {describe_age(holder)}" for holder in holders)
            error.args = (f"{error}. Held the longest: {each}{remedy(holders)}",)

    def _accept(self, waiter: Waiter[T], terms: Terms) -> float | None:
        """Note the terms of a waiter; returns its timeout."""
        if isinstance(terms, Default):
            return self.policy.timeout
        waiter.rank = RANKS[terms.priority]
        if isinstance(terms.timeout, Default):
            return self.policy.timeout
        waiter.has_own_timeout = True
        return terms.timeout

    def _acquire_or_enqueue(self, waiter: Waiter[T], timeout: float | None) -> Slot[T] | None:
        """Lease out a resource at once if one is ready, else put the waiter into the queue."""
        slot = self.apply(self.state.acquire, waiter, timeout, self.clock())
        while slot is not None and self._must_check(slot):
            slot = self.apply(self.state.acquire, waiter, timeout, self.clock())
        return slot

    def _granted(self, waiter: Waiter[T]) -> Slot[T]:
        if waiter.slot is None:
            error, waiter.error = waiter.error, None
            assert error is not None  # noqa: S101 - a waiter is woken with either
            self._note_failure(error)
            try:
                raise error
            finally:
                del error  # else a cycle would keep it and the caller's variables alive
        if self.hooks.are_async:  # perhaps known only now, from what `create` returned
            try:
                self.check_here()
            except WrongEventLoop:
                self.apply(self.state.cancel, waiter, self.clock())
                raise
        return waiter.slot

    def _must_check(self, slot: Slot[T]) -> bool:
        """Ask `doubtful` about a slot that was just leased out; if it returns true, send the slot to its check."""
        if not self._has_doubts:
            return False
        is_doubtful = True  # also if the hook ends with a BaseException
        try:
            is_doubtful = self.hooks.doubt(slot.resource)
        finally:
            if is_doubtful:
                self.apply(self.state.send_to_check, slot, self.clock())
        return is_doubtful

    # --- during a lease -------------------------------------------------------------------

    def hand_over(self, slot: Slot[T], owner: object) -> T:
        """Return what is leased by hand, and note its task or thread; any other one may give it back."""
        slot.holder = REQUEST.get()  # its task may be gone when a report names the holder
        slot.lease = ref(owner) if owner is not None else None
        if self.keeps_stacks:
            slot.stack = acquiring_stack()
        lent = slot.resource if self.lend_hook is None else self.lend(slot)
        if not self.inventory.by_hand.is_watched:
            self.apply(self.state.watch_by_hand, slot, self.clock())
        return lent

    def lend(self, slot: Slot[T]) -> T:
        """Make what the caller gets; if that fails, discard the resource."""
        loan = Loan(self.name, slot, self.judge if self.judges else None)
        try:
            # The callers check that there is a hook, to save this call: it would be a twentieth of a lease.
            lent: T = self.lend_hook(slot.resource, loan)  # type: ignore[misc]
        except BaseException:
            loan.end(slot.holder, slot.lease)
            self.discard(slot)
            raise
        self.inventory.lend(slot, loan, lent)
        return lent

    def judge(self, slot: Slot[T], error: Exception) -> None:
        """Ask `broken` what an error of a lease means for its resource."""
        verdict = self.hooks.broken(slot.resource, error)
        if verdict != "keep":
            self.apply(self.state.judge, slot, verdict, self.clock())

    # --- release --------------------------------------------------------------------------

    def give_back(self, slot: Slot[T]) -> bool:
        """Give a slot back; True if it may still be in `change`."""
        inventory, now = self.inventory, self.clock()
        # If it is not taken, another thread gave it back, and the resource may be in use.
        if self._looks_at_returns and inventory.taken.get(slot.key) is slot:
            if self._asks_before_return and slot.verdict is None and self.hooks.doubt(slot.resource):
                slot.verdict = "check"
            if self._usage is not None:
                self._usage.note_lease(now - slot.since, slot.wait())
        inventory.end(slot, now)
        if inventory.put_back(slot, now):
            if inventory.needs_lock:  # a waiter has come meanwhile
                self.apply(self.state.rebalance, now)
            return False
        self.apply(self.state.release, slot, now)
        return slot in inventory.changing

    def give_back_cut_off(self, slot: Slot[T]) -> bool:
        """Give back a slot whose use was cut off; a failure of `change` is then expected."""
        self.executor.cut_off.add(slot)
        if not is_answered():
            self.apply(self.state.overload.cut_off, slot, self.clock())
        loan = self.inventory.loan_of(slot)
        if loan is not None:
            loan.has_failed = True
        is_changing = False
        try:
            is_changing = self.give_back(slot)
        finally:
            if not is_changing:
                self.executor.cut_off.discard(slot)
        return is_changing

    async def wait_changed(self, slot: Slot[T], lease: int) -> None:
        """Wait until a slot that was given back is changed, unless its next lease has begun."""
        try:
            done: TaskWaiter[T] = task_waiter()
        except RuntimeError:  # a coroutine is collected outside of its loop, and cannot wait
            return
        if self.apply(self.state.wait_changed, slot, lease, done):
            await done.parked

    def wait_changed_sync(self, slot: Slot[T], lease: int) -> None:
        """Make a plain thread wait until a slot that was given back is changed, unless its next lease has begun."""
        if not self.is_here():  # else the wait would block the loop that runs `change`
            done: ThreadWaiter[T] = ThreadWaiter()
            if self.apply(self.state.wait_changed, slot, lease, done):
                done.wait(self.policy.hook_timeout)

    def discard(self, slot: Slot[T]) -> None:
        """End a lease, and clean its resource."""
        now = self.clock()
        self._end(slot, now)
        self.apply(self.state.discard, slot, now)

    def detach(self, slot: Slot[T]) -> T:
        """End a lease, and let its resource go; returns the object that the caller got."""
        now = self.clock()
        loan, lent = self.inventory.loan_of(slot), self.inventory.lent_of(slot)
        self._end(slot, now)
        if loan is not None:
            loan.keep()
        self.apply(self.state.detach, slot, now)
        return lent

    def _end(self, slot: Slot[T], now: float) -> None:
        since, waited = slot.since, slot.wait()
        self.inventory.end(slot, now)
        if self._usage is not None:
            self._usage.note_lease(now - since, waited)

    # --- control --------------------------------------------------------------------------

    def retain(self, keep: Callable[[T], object]) -> int:
        """Retire the free resources for which `keep` returns false; see `ConnectionPool.retain`."""
        self.check_here()
        retired = 0
        for slot in self.inventory.list_free():
            if self.apply(self.state.reserve, slot):
                kept = True
                try:
                    kept = bool(keep(slot.resource))
                finally:
                    self.apply(partial(self.state.unreserve, keep=kept), slot, self.clock())
                retired += not kept
        return retired

    def add_listener(self, listener: PoolListener) -> None:
        """Notify a listener from now on."""
        self.executor.listeners.add(listener)
        self._listen()

    def remove_listener(self, listener: PoolListener) -> None:
        """Stop notifying a listener; raises ValueError if it was not added."""
        self.executor.listeners.remove(listener)
        self._listen()

    def _listen(self) -> None:
        self._tells_waits = self.executor.listeners.tell_waits
        self.apply(self.state.listen, self.executor.listeners.subscribed(), self.clock())
