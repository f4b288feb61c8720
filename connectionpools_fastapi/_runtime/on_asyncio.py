"""The loop of asyncio, and a private one in a thread of its own."""

import asyncio
import concurrent.futures
import contextvars
import threading
from collections.abc import Callable
from contextlib import suppress

from .hook_context import HOOK_CONTEXT
from .loop import Job, Loop, LoopEnded, TimeLimit, Timer
from .time_limit import AsyncioTimeLimit

# How often a thread that waits for a loop checks that the loop still runs, in seconds.
PATIENCE = 1.0


class AsyncioLoop(Loop):
    """A loop of asyncio, or of uvloop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.native = self._loop = loop
        # asyncio itself only keeps weak references. Each task knows its key, since it is slow to find itself.
        self._tasks: dict[object, asyncio.Task[None]] = {}

    def is_here(self) -> bool:
        return asyncio._get_running_loop() is self._loop  # noqa: SLF001 - its documented form raises where none runs

    def has_ended(self) -> bool:
        return self._loop.is_closed()

    def spawn(self, job: Job) -> None:
        if self.is_here():
            self._start(job)
        else:
            self._loop.call_soon_threadsafe(self._start, job)

    def _start(self, job: Job) -> None:
        key = object()
        task = self._loop.create_task(self._run(job, key), context=HOOK_CONTEXT.copy())
        if not task.done():  # an eager task may be: nothing would discard it any more
            self._tasks[key] = task

    async def _run(self, job: Job, key: object) -> None:
        try:
            await job()
        except asyncio.CancelledError:
            # `asyncio.run` ends. It waits for the tasks that it cancels, but not for tasks that
            # these start meanwhile, for example to clean a resource whose `change` failed.
            self._tasks.pop(key, None)
            if self._tasks:
                await asyncio.wait(self._tasks.values())
            raise
        finally:
            self._tasks.pop(key, None)

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
                if not self._loop.is_running():  # the loop has dropped the call
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
    """A loop of asyncio in a thread of its own, for a pool that is opened outside of any loop."""

    def __init__(self, name: str) -> None:
        super().__init__(asyncio.new_event_loop())
        self._stop = asyncio.Event()
        # A daemon thread: a pool that was not closed must not keep the process from ending.
        self._thread = threading.Thread(target=self._live, name=f"pool {name}", daemon=True)
        self._thread.start()

    def _live(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._live_until_stopped())

    async def _live_until_stopped(self) -> None:
        await self._stop.wait()
        while self._tasks:  # hooks, each of which has its time limit
            await asyncio.wait(self._tasks.values())
            self._tasks = {key: task for key, task in self._tasks.items() if not task.done()}

    def stop_soon(self) -> None:
        """End the loop and its thread once its tasks are done; from any thread, and any number of times."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)

    def stop(self) -> None:
        """End the loop, and wait for its thread."""
        self.stop_soon()
        self._thread.join()
