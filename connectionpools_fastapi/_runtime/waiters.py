"""The waiters of tasks and threads; that of trio is in `on_trio`."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .._core.slot import T
from .._core.waiter import Waiter


class TaskWaiter(Waiter[T]):
    """A parked task of any event loop: it awaits `parked`, and is the owner."""

    __slots__ = ("loop", "parked")

    loop: Any  # an asyncio loop, or the token of a run of trio
    # The task awaits this until `wake`; if it is cancelled, `slot` tells whether a grant was faster.
    parked: Any

    def call(self, call: Callable[[], object]) -> None:
        """Call a function in its loop, at once or soon, unless that has ended; from any thread."""
        raise NotImplementedError


class AsyncioWaiter(TaskWaiter[T]):
    """A task of asyncio; it awaits a bare future, which is fastest (measured, see the benchmarks)."""

    __slots__ = ()

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop, task: object = None) -> "AsyncioWaiter[T]":
        """Return a waiter for a task of this loop."""
        waiter: AsyncioWaiter[T] = cls(task)
        waiter.loop = loop
        waiter.parked = loop.create_future()
        return waiter

    def wake(self) -> None:
        if asyncio._get_running_loop() is not self.loop:  # noqa: SLF001 - its documented form raises where none runs
            self.loop.call_soon_threadsafe(self._resolve)
        elif not self.parked.done():  # a cancelled caller finds its grant in `slot`
            self.parked.set_result(None)

    def call(self, call: Callable[[], object]) -> None:
        if asyncio._get_running_loop() is self.loop:  # noqa: SLF001 - as above
            call()
        else:
            with suppress(RuntimeError):  # the loop has ended, and the task with it
                self.loop.call_soon_threadsafe(call)

    def _resolve(self) -> None:
        if not self.parked.done():
            self.parked.set_result(None)


class ThreadWaiter(Waiter[T]):
    """A plain thread; it waits for a lock held from the start, the cheapest event with a timeout."""

    __slots__ = ("_parked",)

    def __init__(self) -> None:
        super().__init__()
        self._parked = threading.Lock()
        self._parked.acquire()

    def wait(self, timeout: float | None) -> bool:
        """Park until `wake`, or for `timeout` seconds; False if the time is up first."""
        return self._parked.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))

    def wake(self) -> None:
        self._parked.release()
