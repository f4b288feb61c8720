"""Lease: the right to use one resource, from its acquire to its release."""

from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from types import TracebackType
from typing import Any, Generic
from weakref import ref

from ._core.slot import Slot, T
from ._core.terms import Terms
from ._core.waiter import Client
from ._runtime.caller import acquiring_stack, current_task, current_thread
from ._runtime.engine import Engine
from ._runtime.request_context import REQUEST
from .errors import NotLeased, PoolConfigError


class _Phase(Enum):
    NEW = "has not begun"
    WAITING = "has not begun yet"
    ENDED = "has ended"


# Each look-up in an Enum costs as much as a method call.
NEW, WAITING, ENDED = _Phase.NEW, _Phase.WAITING, _Phase.ENDED


class Lease(Generic[T]):
    """A single use of one resource: `async with` in a task, `with` in a plain thread.

    Made by `ConnectionPool.lease`. The block gets the resource, and gives it back
    even if it raises. It cannot be entered twice.
    """

    __slots__ = (
        "__weakref__",
        "_engine",
        "_holder",
        "_owner",
        "_phase",
        "_prepare",
        "_responding_since",
        "_terms",
        "_turn",
    )

    # Set when the lease begins.
    _turn: int  # which lease of its slot this is
    _owner: object  # the task, thread or request that holds it
    _responding_since: float  # set when the response of its request has begun
    _prepare: object  # set by `prepare`

    def __init__(self, engine: Any, terms: Any, holder: object) -> None:
        """Prepare a lease; use `ConnectionPool.lease`."""
        # Not said in the signature: the types of the package's inner parts are no public ones.
        self._engine: Engine[T] = engine
        self._terms: Terms = terms
        self._holder = holder
        self._phase: _Phase | Slot[T] = NEW

    @property
    def resource(self) -> T:
        """The leased resource.

        Raises:
            NotLeased: Before the lease has begun and after it has ended.
        """
        return self._engine.inventory.lent_of(self._slot())

    def release_nowait(self) -> None:
        """Give the resource back without waiting for `change`; it cannot be interrupted.

        Callable from any thread.

        Raises:
            NotLeased: If the lease has not begun or has ended.
        """
        self._engine.give_back(self._finish())

    def discard(self) -> None:
        """End the lease and have the resource cleaned, since it is broken.

        Callable from any thread.

        Raises:
            NotLeased: If the lease has not begun or has ended.
        """
        self._engine.discard(self._finish())

    def detach(self) -> T:
        """End the lease and keep the resource for good; the pool forgets it, `clean` is yours.

        Callable from any thread.

        Returns:
            The resource.

        Raises:
            NotLeased: If the lease has not begun or has ended.
        """
        return self._engine.detach(self._finish())

    async def __aenter__(self) -> T:
        """Acquire; raises what `ConnectionPool.acquire` raises."""
        if self._phase is not NEW:
            raise self._used_up()
        task = current_task()
        slot = self._engine.take()
        if slot is None:
            self._phase = WAITING
            slot = await self._engine.park(self._terms, task)
        return self._hold(slot, task)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the resource back, unless the block discarded or detached it."""
        if error is not None:
            self.judge(error)
        slot = self._leave()
        if slot is not None:
            try:
                if error is None or isinstance(error, Exception):
                    is_changing = self._engine.give_back(slot)
                else:
                    is_changing = self._engine.give_back_cut_off(slot)
            except NotLeased:
                if self._engine.inventory.holds(slot):
                    raise
            else:
                if is_changing:
                    await self._engine.wait_changed(slot, self._turn)

    def __enter__(self) -> T:
        """Acquire from a plain thread; raises what `ConnectionPool.acquire_sync` raises."""
        if self._phase is not NEW:
            raise self._used_up()
        self._phase = WAITING
        if self._holder is None:
            self._holder = REQUEST.get()  # for a worker thread; reports find the request of a task themselves
        return self._hold(self._engine.acquire_sync(self._terms), current_thread())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the resource back, unless the block discarded or detached it."""
        if error is not None:
            self.judge(error)
        slot = self._leave()
        if slot is not None:
            try:
                if error is None or isinstance(error, Exception):
                    is_changing = self._engine.give_back(slot)
                else:
                    is_changing = self._engine.give_back_cut_off(slot)
            except NotLeased:
                if self._engine.inventory.holds(slot):
                    raise
            else:
                if is_changing:
                    self._engine.wait_changed_sync(slot, self._turn)

    # --- for PoolMiddleware, whose leases belong to a request, not to a block --------------------

    def try_enter(self, owner: object) -> bool:
        """Begin if a resource is ready; False if `enter` has to wait. For the middleware.

        Args:
            owner: The request or task that holds the lease.
        """
        if self._phase is not NEW:
            raise self._used_up()
        slot = self._engine.take()
        if slot is None:
            return False
        self._hold(slot, owner)
        return True

    async def enter(self, *, owner: object, client: Client | None = None) -> T:
        """Wait in the queue and begin; raises what `ConnectionPool.acquire` raises. For the middleware.

        Args:
            owner: The request or task that holds the lease.
            client: The client of the request; when it goes away, the wait ends.
        """
        if self._phase is not NEW:
            raise self._used_up()
        self._phase = WAITING
        return self._hold(await self._engine.park(self._terms, current_task(), client), owner)

    def note_response(self) -> None:
        """Note that the response has begun while the lease goes on; only the first call counts. For the middleware."""
        if getattr(self, "_responding_since", None) is None:
            self._responding_since = self._engine.clock()

    def judge(self, error: BaseException) -> None:
        """Note that the block or the request ends with an error, and ask `broken` about it. For the middleware."""
        slot = self._phase
        if not isinstance(slot, Slot) or slot.leases != self._turn:
            return
        loan = self._engine.inventory.loan_of(slot)
        if loan is not None:
            loan.has_failed = True
        if self._engine.judges and isinstance(error, Exception):
            self._engine.judge(slot, error)

    async def prepare(self, prepare: object, act: Callable[[T], object]) -> None:
        """Have the resource prepared for its request, once; if that fails, discard it. For the middleware.

        Args:
            prepare: The callable of the user, which tells one `prepare` from another.
            act: Calls it with the resource.
        """
        before = getattr(self, "_prepare", None)
        if before is not None:
            if before != prepare:
                msg = (
                    f"pool {self._engine.name!r}: a request holds one lease a pool, and this one is prepared by "
                    "another prepare already. Write the same prepare wherever the route leases from this pool"
                )
                raise PoolConfigError(msg)
            return
        self._prepare = prepare
        try:
            await self._engine.hooks.prepare(self.resource, act)
        except BaseException:
            with suppress(NotLeased):  # `prepare` has ended the lease itself
                self.discard()
            raise

    def release_cut_off(self) -> None:
        """Like `release_nowait`, for a use that was cut off, as by a client that left. For the middleware."""
        self._engine.give_back_cut_off(self._finish())

    # --- from one phase to the next -----------------------------------------------------------

    def _used_up(self) -> PoolConfigError:
        return PoolConfigError(f"pool {self._engine.name!r}: a lease can be used once; call pool.lease() again")

    def _hold(self, slot: Slot[T], owner: object) -> T:
        self._owner = owner
        slot.holder = self._holder
        slot.lease = ref(self, self._engine.reclaim_leak)
        if self._engine.keeps_stacks:
            slot.stack = acquiring_stack()
        self._turn = slot.leases
        lent = slot.resource if self._engine.lend_hook is None else self._engine.lend(slot)
        self._phase = slot
        return lent

    def _leave(self) -> Slot[T] | None:
        """End; return the slot to give back, or None if the block has ended the lease itself."""
        slot = self._phase
        if not isinstance(slot, Slot):
            return None
        # The slot may have been given back by its resource, and be leased again.
        if slot.leases != self._turn and self._engine.inventory.holds(slot):
            raise self._not_leased(ENDED)
        self._phase = ENDED
        return slot

    def _slot(self) -> Slot[T]:
        slot = self._phase
        if not isinstance(slot, Slot):
            raise self._not_leased(slot)
        # The slot may have been given back by its resource, and be leased again.
        if slot.leases != self._turn:
            raise self._not_leased(ENDED)
        return slot

    def _not_leased(self, phase: _Phase) -> NotLeased:
        return NotLeased(
            f"pool {self._engine.name!r}: this lease {phase.value}; "
            "use the resource inside of `async with pool.lease()`"
        )

    def _finish(self) -> Slot[T]:
        slot = self._slot()
        self._phase = ENDED
        return slot
