"""ThreadFront: the front end for plain threads; what opens and closes runs in the pool's own loop."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from ._front import holding_request
from ._ledger import Status
from ._loop import LoopEnded, PrivateLoop, current_loop
from ._owner import current_thread
from ._slot import Slot
from ._tasks import TaskFront
from ._waiters import ThreadWaiter
from .errors import WrongEventLoop
from .lease import DEFAULT, Default
from .manager import T


class ThreadFront(TaskFront[T]):
    """What plain code calls, outside of any event loop."""

    def open_sync(self) -> None:
        """Open the pool from a plain thread; its hooks must not be async.

        The pool's own tasks then run in a background thread.

        Raises:
            ResourceUnavailable: If one of `min_free` resources cannot be created.
            PoolConfigError: If the pool is open already, or a hook is async.
            WrongEventLoop: If an event loop runs in this thread.
        """
        self._refuse_loop("open_sync and `with pool:`", "`async with pool:`")
        if self._hooks.are_async:
            raise self._hooks.must_be_awaited()
        loop = PrivateLoop(self.name)
        try:
            loop.run(lambda: self._open(loop))
        except BaseException:
            loop.stop()
            raise

    def close_sync(self) -> None:
        """Close the pool from a plain thread; see `close`.

        Raises:
            WrongEventLoop: If an event loop runs in this thread, or the pool's has ended.
        """
        self._refuse_loop("close_sync", "`await pool.close()`")
        loop = self._keeper.loop
        if self._state.status is not Status.CLOSED:
            self._run(self.close)
        if isinstance(loop, PrivateLoop) and not self._state.generations.total():
            loop.stop()

    def drain_sync(self) -> None:
        """Drain the pool from a plain thread; see `drain`.

        Raises:
            WrongEventLoop: If an event loop runs in this thread, or the pool's has ended.
        """
        self._refuse_loop("drain_sync", "`await pool.drain()`")
        self._run(self.drain)

    def acquire_sync(self, *, timeout: float | None | Default = DEFAULT) -> T:
        """Lease a resource by hand from a plain thread; `with pool.lease()` is safer.

        Args:
            timeout: As in `lease`.

        Returns:
            A resource, to be given to `release_sync`, `discard` or `detach` once.

        Raises:
            PoolError: As `acquire`; and `WrongEventLoop` if an event loop runs in this thread.
        """
        self._check_timeout(timeout)
        slot = self._obtain_sync(timeout)
        self._note_acquired(slot, current_thread())
        return slot.resource

    def release_sync(self, resource: T) -> None:
        """Give back what `acquire_sync` returned, and wait for `change`. From plain threads.

        Raises:
            NotLeased: If it is not leased from this pool, or was given back before.
            WrongEventLoop: If an event loop runs in this thread.
        """
        self._refuse_loop("release_sync", "`await pool.release(resource)`")
        slot = self._leased(resource)
        self._give_back_sync(slot, slot.leases)

    def __enter__(self) -> Self:
        """Open the pool from a plain thread; see `open_sync`."""
        self.open_sync()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the pool from a plain thread; see `close_sync`."""
        self.close_sync()

    def _obtain_sync(self, timeout: float | None | Default) -> Slot[T]:
        self._refuse_loop("`with pool.lease()` and acquire_sync", "`async with pool.lease()`")
        return self._take() or self._stand_in_line_sync(timeout)

    def _stand_in_line_sync(self, timeout: float | None | Default) -> Slot[T]:
        waiter: ThreadWaiter[T] = ThreadWaiter()
        waiter.request = holding_request()
        seconds = self._seconds(timeout)
        try:
            slot = self._queue_up(waiter, seconds)
            if slot is not None:
                return slot
            # A thread watches its own time too: the pool's loop may be blocked.
            if not waiter.wait(seconds):
                self._commit(self._state.time_out, waiter, self._clock())
        except BaseException:
            self._commit(self._state.withdraw, waiter, self._clock())
            raise
        return self._granted(waiter)

    def _give_back_sync(self, slot: Slot[T], lease: int) -> None:
        if self._give_back(slot) and not self._is_here():  # else it would block the loop that it waits for
            done: ThreadWaiter[T] = ThreadWaiter()
            if self._commit(self._state.wait_changed, slot, lease, done):
                done.wait(self._policy.hook_timeout)

    def _refuse_loop(self, call: str, instead: str) -> None:
        if current_loop() is not None:
            msg = f"pool {self.name!r}: {call} would block the event loop of this thread; write {instead}"
            raise WrongEventLoop(msg)

    def _run(self, job: Callable[[], Any]) -> None:
        if self._keeper.loop is None:
            return  # never opened: there is nothing to wait for
        try:
            self._keeper.loop.run(job)
        except LoopEnded:
            if self._state.status is not Status.CLOSED:  # by another thread, meanwhile
                raise self._keeper.orphaned() from None
