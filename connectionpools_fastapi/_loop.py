"""Loop: the event loop that a pool's own tasks run in, asyncio's or trio's.

Both offer the same few things: start a task, wait in one, set a timer. Everything above
this module is the same for both.
"""

import asyncio
import concurrent.futures
import contextvars
import os
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol

from ._owner import current_task
from ._time_limit import AsyncioTimeLimit
from ._waiters import AsyncioWaiter, TaskWaiter

# After how long a thread that waits for a loop looks whether that still runs, in seconds.
PATIENCE = 1.0

Job = Callable[[], Coroutine[Any, Any, None]]
# Limits the time of a block: `with time_limit(): ...`.
TimeLimit = Callable[[], AbstractContextManager[object, bool | None]]


class Timer(Protocol):
    """Something that will happen unless it is cancelled."""

    def cancel(self) -> None:
        """Let it not happen."""


class LoopEnded(RuntimeError):  # noqa: N818 - reads as what happened
    """The loop ended before it had run what it was to run."""


class Loop(ABC):
    """One event loop. `spawn` and `call_soon` raise RuntimeError once it has ended."""

    native: object  # what its library knows it by, as waiters do

    @abstractmethod
    def is_here(self) -> bool:
        """Whether the calling code runs in this loop."""

    @abstractmethod
    def has_ended(self) -> bool:
        """Whether nothing can run in this loop any more."""

    @abstractmethod
    def spawn(self, job: Job) -> None:
        """Start a task of the pool's own, without the caller's context; from any thread."""

    @abstractmethod
    def call_soon(self, call: Callable[[], None]) -> None:
        """Call something in this loop; from any thread."""

    @abstractmethod
    def run(self, job: Job) -> None:
        """Run a task in this loop and wait for it, in a thread that is not the loop's own.

        Raises:
            LoopEnded: If the loop ends first, or has ended.
        """

    @abstractmethod
    def time_limit(self, seconds: float) -> TimeLimit:
        """Return what limits the time of blocks of this loop's tasks.

        A block that takes longer is cancelled, once, and left without an exception.
        """

    @abstractmethod
    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        """Call something after `delay` seconds; from this loop only."""


class AsyncioLoop(Loop):
    """A loop of asyncio, uvloop's among them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.native = self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()  # asyncio itself only keeps weak references

    def is_here(self) -> bool:
        return asyncio._get_running_loop() is self._loop

    def has_ended(self) -> bool:
        return self._loop.is_closed()

    def spawn(self, job: Job) -> None:
        if self.is_here():
            self._start(job)
        else:
            self._loop.call_soon_threadsafe(self._start, job)

    def _start(self, job: Job) -> None:
        self._tasks.add(self._loop.create_task(self._run(job), context=contextvars.Context()))

    async def _run(self, job: Job) -> None:
        task = asyncio.current_task(self._loop)
        try:
            await job()
        except asyncio.CancelledError:
            # `asyncio.run` ends: it waits for the tasks that it cancels, but not for those
            # that these have started meanwhile, say to clean what could not be changed.
            self._tasks.discard(task)
            if self._tasks:
                await asyncio.wait(self._tasks)
            raise
        finally:
            self._tasks.discard(task)

    def call_soon(self, call: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(call)

    def run(self, job: Job) -> None:
        coroutine = job()
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise LoopEnded from None
        try:
            while not concurrent.futures.wait([future], timeout=PATIENCE).done:
                if not self._loop.is_running():  # it has forgotten what it was to call
                    coroutine.close()
                    raise LoopEnded
            future.result()
        except concurrent.futures.CancelledError:
            raise LoopEnded from None
        except BaseException:
            future.cancel()
            raise

    def time_limit(self, seconds: float) -> TimeLimit:
        return AsyncioTimeLimit(self._loop, seconds)

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        return self._loop.call_later(delay, call, context=contextvars.Context())


class PrivateLoop(AsyncioLoop):
    """A loop of asyncio in a thread of its own, for a pool that is opened outside of any."""

    def __init__(self, name: str) -> None:
        super().__init__(asyncio.new_event_loop())
        self._stop = asyncio.Event()
        # A daemon: a pool that nobody closed must not keep the process from ending.
        self._thread = threading.Thread(target=self._live, name=f"pool {name}", daemon=True)
        self._thread.start()

    def _live(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._live_until_stopped())

    async def _live_until_stopped(self) -> None:
        await self._stop.wait()
        while self._tasks:  # hooks, each of which has its time limit
            done, _ = await asyncio.wait(tuple(self._tasks))
            self._tasks -= done

    def stop_soon(self) -> None:
        """End the loop and its thread once its tasks are done; from any thread, and as often as you like."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)

    def stop(self) -> None:
        """End the loop, and wait for its thread."""
        self.stop_soon()
        self._thread.join()


def _in_trio() -> bool:
    # Looked up and not imported: where nobody imported trio, nobody runs it.
    trio = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_task() and trio.lowlevel.current_trio_token() not in _ENDED


# Runs of trio that a forked child seems to be in still, although nothing runs them there.
_ENDED: list[object] = []


def _fork() -> None:  # pragma: no cover - in a process of its own, see tests/test_fork.py
    if _in_trio():
        _ENDED.append(sys.modules["trio"].lowlevel.current_trio_token())


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows, which does not fork
    os.register_at_fork(after_in_child=_fork)


def current_loop() -> Loop | None:
    """Return the loop that runs the calling code; None in a plain thread."""
    if _in_trio():
        from ._trio import TrioLoop  # noqa: PLC0415 - trio is not a dependency

        return TrioLoop()
    running = asyncio._get_running_loop()
    return None if running is None else AsyncioLoop(running)


def task_waiter(task: object = None) -> TaskWaiter[Any]:
    """Return a new waiter for the running task, whichever library runs it; `task` is the same if it is known."""
    if task is None:
        task = current_task()
    try:
        loop: asyncio.AbstractEventLoop = task.get_loop()  # type: ignore[attr-defined] # if it is asyncio's
    except AttributeError:
        if not _in_trio():
            return AsyncioWaiter.of(asyncio.get_running_loop())
        from ._trio import TrioWaiter  # noqa: PLC0415 - trio is not a dependency

        return TrioWaiter(task)
    return AsyncioWaiter.of(loop, task)
