"""Lease: the right to use one resource, from its acquire to its release."""

from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Generic
from weakref import ref

from ._owner import acquiring_stack, current_task, current_thread
from ._slot import Slot
from .errors import NotLeased, PoolConfigError
from .manager import T

if TYPE_CHECKING:
    from .pool import ConnectionPool


class Default(Enum):
    """Stands for "as the pool says"."""

    DEFAULT = "default"


DEFAULT = Default.DEFAULT


class _Phase(Enum):
    NEW = "has not begun"
    WAITING = "has not begun yet"
    ENDED = "has ended"


# Each look-up in an Enum costs as much as a method call.
NEW, WAITING, ENDED = _Phase.NEW, _Phase.WAITING, _Phase.ENDED


class Lease(Generic[T]):
    """A single use of one resource: `async with` in a task, `with` in a plain thread.

    Made by `ConnectionPool.lease`. The block gets the resource, and gives it back
    whatever happens in it. It cannot be entered twice.
    """

    __slots__ = ("__weakref__", "_holder", "_owner", "_phase", "_pool", "_timeout", "_turn")

    # Known once it has begun.
    _turn: int  # which lease of its slot this is
    _owner: object  # on whose behalf it is: a task, a thread or a request

    def __init__(self, pool: "ConnectionPool[T]", timeout: float | None | Default, holder: object) -> None:
        """Prepare a lease; use `ConnectionPool.lease`."""
        self._pool = pool
        self._timeout = timeout
        self._holder = holder
        self._phase: _Phase | Slot[T] = NEW

    @property
    def resource(self) -> T:
        """The leased resource.

        Raises:
            NotLeased: Before the lease has begun and after it has ended.
        """
        return self._slot().resource

    def release_nowait(self) -> None:
        """Give the resource back without waiting for `change`; it cannot be interrupted.

        Callable from any thread.

        Raises:
            NotLeased: If the lease has not begun or has ended.
        """
        self._pool._give_back(self._finish())

    def discard(self) -> None:
        """End the lease and have the resource cleaned, since it is broken.

        Callable from any thread.

        Raises:
            NotLeased: If the lease has not begun or has ended.
        """
        self._pool._discard(self._finish())

    def detach(self) -> T:
        """End the lease and keep the resource for good; the pool forgets it, `clean` is yours.

        Callable from any thread.

        Returns:
            The resource.

        Raises:
            NotLeased: If the lease has not begun or has ended.
        """
        return self._pool._detach(self._finish())

    async def __aenter__(self) -> T:
        """Acquire; raises what `ConnectionPool.acquire` raises."""
        if self._phase is not NEW:
            raise self._used_up()
        task = current_task()
        slot = self._pool._take()
        if slot is None:
            self._phase = WAITING
            slot = await self._pool._stand_in_line(self._timeout, task)
        return self._hold(slot, task)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the resource back, unless the block discarded or detached it."""
        slot = self._leave()
        if slot is not None:
            try:
                is_changing = self._pool._give_back(slot)
            except NotLeased:
                if self._pool._state.holds(slot):
                    raise
            else:
                if is_changing:
                    await self._pool._wait_changed(slot, self._turn)

    def __enter__(self) -> T:
        """Acquire from a plain thread; raises what `ConnectionPool.acquire_sync` raises."""
        if self._phase is not NEW:
            raise self._used_up()
        self._phase = WAITING
        return self._hold(self._pool._obtain_sync(self._timeout), current_thread())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the resource back, unless the block discarded or detached it."""
        slot = self._leave()
        if slot is not None:
            try:
                self._pool._give_back_sync(slot, self._turn)
            except NotLeased:
                if self._pool._state.holds(slot):
                    raise

    def _used_up(self) -> PoolConfigError:
        return PoolConfigError(f"pool {self._pool.name!r}: a lease can be used once; call pool.lease() again")

    def _hold(self, slot: Slot[T], owner: object) -> T:
        self._owner = owner
        slot.holder = self._holder
        slot.lease = ref(self, self._pool._lose)
        if self._pool._keeps_stacks:
            slot.stack = acquiring_stack()
        self._turn = slot.leases
        self._phase = slot
        return slot.resource

    def _leave(self) -> Slot[T] | None:
        """End; return what is to be given back, unless the block has ended the lease by itself."""
        slot = self._phase
        if not isinstance(slot, Slot):
            return None
        # A slot that was given back by its resource may be in other hands by now.
        if slot.leases != self._turn and self._pool._state.holds(slot):
            raise self._not_leased(ENDED)
        self._phase = ENDED
        return slot

    def _slot(self) -> Slot[T]:
        slot = self._phase
        if not isinstance(slot, Slot):
            raise self._not_leased(slot)
        # A slot that was given back by its resource may be in other hands by now.
        if slot.leases != self._turn:
            raise self._not_leased(ENDED)
        return slot

    def _not_leased(self, phase: _Phase) -> NotLeased:
        msg = (
            f"pool {self._pool.name!r}: this lease {phase.value}; use the resource inside of `async with pool.lease()`"
        )
        return NotLeased(msg)

    def _finish(self) -> Slot[T]:
        slot = self._slot()
        self._phase = ENDED
        return slot
