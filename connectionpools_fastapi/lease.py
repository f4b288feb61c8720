"""Lease: the right to use one resource, from its acquire to its release."""

from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Generic

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


class Lease(Generic[T]):
    """A single use of one resource: `async with` in a task, `with` in a plain thread.

    Made by `ConnectionPool.lease`. The block gets the resource, and gives it back
    whatever happens in it. It cannot be entered twice.
    """

    __slots__ = ("_holder", "_phase", "_pool", "_timeout", "_turn")

    def __init__(self, pool: "ConnectionPool[T]", timeout: float | None | Default, holder: object) -> None:
        """Prepare a lease; use `ConnectionPool.lease`."""
        self._pool = pool
        self._timeout = timeout
        self._holder = holder
        self._phase: _Phase | Slot[T] = _Phase.NEW
        self._turn = 0  # which lease of its slot this is

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
        self._pool._give_back(self._finish(), None)

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
        self._begin()
        return self._hold(await self._pool._obtain(self._timeout))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the resource back, unless the block discarded or detached it."""
        if self._is_to_give_back():
            await self._pool._return(self._finish())

    def __enter__(self) -> T:
        """Acquire from a plain thread; raises what `ConnectionPool.acquire_sync` raises."""
        self._begin()
        return self._hold(self._pool._obtain_sync(self._timeout))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the resource back, unless the block discarded or detached it."""
        if self._is_to_give_back():
            self._pool._return_sync(self._finish())

    def _begin(self) -> None:
        if self._phase is not _Phase.NEW:
            msg = f"pool {self._pool.name!r}: a lease can be used once; call pool.lease() again"
            raise PoolConfigError(msg)
        self._phase = _Phase.WAITING

    def _hold(self, slot: Slot[T]) -> T:
        slot.holder = self._holder
        self._turn = slot.leases
        self._phase = slot
        return slot.resource

    def _is_to_give_back(self) -> bool:
        # The block may also have written `pool.discard(resource)`.
        return isinstance(self._phase, Slot) and self._pool._owns(self._phase)

    def _slot(self) -> Slot[T]:
        slot = self._phase
        # A slot that was given back by its resource may be in other hands by now.
        if isinstance(slot, Slot) and slot.leases == self._turn:
            return slot
        when = slot.value if isinstance(slot, _Phase) else _Phase.ENDED.value
        msg = f"pool {self._pool.name!r}: this lease {when}; use the resource inside of `async with pool.lease()`"
        raise NotLeased(msg)

    def _finish(self) -> Slot[T]:
        slot = self._slot()
        self._phase = _Phase.ENDED
        return slot
