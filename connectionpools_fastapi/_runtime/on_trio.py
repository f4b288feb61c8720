"""The loop and the waiter of trio; imported only where trio runs."""

from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from .._core.slot import T
from .hook_context import HOOK_CONTEXT
from .loop import Job, Loop, LoopEnded, TimeLimit, Timer
from .waiters import TaskWaiter


class Parked:
    """Waits for an event, once it is awaited."""

    __slots__ = ("event",)

    def __init__(self) -> None:
        self.event = trio.Event()

    def __await__(self) -> Generator[Any, None, None]:
        return self.event.wait().__await__()


class TrioWaiter(TaskWaiter[T]):
    """A task of trio."""

    __slots__ = ()

    def __init__(self, owner: object = None) -> None:
        super().__init__(owner)
        self.loop = trio.lowlevel.current_trio_token()
        self.parked = Parked()

    def call(self, call: Callable[[], object]) -> None:
        with suppress(trio.RunFinishedError):
            self.loop.run_sync_soon(call)

    def wake(self) -> None:
        self.loop.run_sync_soon(self.parked.event.set)


class TrioLoop(Loop):
    """A run of trio; the pool's own tasks are system tasks."""

    def __init__(self) -> None:
        self.native = self._token = trio.lowlevel.current_trio_token()

    def is_here(self) -> bool:
        return trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is self._token

    def has_ended(self) -> bool:
        try:
            self._token.run_sync_soon(bool)
        except trio.RunFinishedError:
            return True
        return False

    def spawn(self, job: Job) -> None:
        if self.is_here():
            self._start(job)
        else:
            self.call_soon(lambda: self._start(job))

    def _start(self, job: Job) -> None:
        trio.lowlevel.spawn_system_task(self._run, job, context=HOOK_CONTEXT.copy())

    async def _run(self, job: Job) -> None:
        # An error of a system task crashes the whole run, even one that a hook raised as the run ended.
        try:
            await job()
        except (Exception, trio.Cancelled):
            raise
        except BaseException:  # noqa: BLE001 - the job has reported it
            await trio.lowlevel.checkpoint_if_cancelled()

    def call_soon(self, call: Callable[[], None]) -> None:
        self._token.run_sync_soon(self._call, call)

    def _call(self, call: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the run is ending and takes no new tasks
            call()

    def run(self, job: Job) -> None:
        try:
            trio.from_thread.run(job, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled):
            raise LoopEnded from None

    def time_limit(self, seconds: float) -> TimeLimit:
        return partial(trio.move_on_after, seconds)

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        scope = trio.CancelScope()

        async def wait_and_call() -> None:
            with scope:
                await trio.sleep(delay)
                call()

        self._start(wait_and_call)
        return scope
