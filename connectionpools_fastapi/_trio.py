"""The trio side of `_loop` and `_waiters`; imported only where trio runs."""

import contextvars
from collections.abc import Callable

import trio

from ._loop import Job, Loop, Timer
from ._waiters import TaskWaiter
from .manager import T


class TrioWaiter(TaskWaiter[T]):
    """A task of trio."""

    __slots__ = ("_event", "_token")

    def __init__(self) -> None:
        super().__init__()
        self._event = trio.Event()
        self._token = trio.lowlevel.current_trio_token()

    async def wait(self) -> None:
        await self._event.wait()

    def wake(self) -> None:
        self._token.run_sync_soon(self._event.set)


class TrioLoop(Loop):
    """A run of trio; the pool's own tasks are system tasks."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()

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
            self._token.run_sync_soon(self._start, job)

    def _start(self, job: Job) -> None:
        trio.lowlevel.spawn_system_task(job, context=contextvars.Context())

    def call_soon(self, call: Callable[[], None]) -> None:
        self._token.run_sync_soon(call)

    def run(self, job: Job) -> None:
        trio.from_thread.run(job, trio_token=self._token)

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        scope = trio.CancelScope()

        async def wait_and_call() -> None:
            with scope:
                await trio.sleep(delay)
                call()

        self._start(wait_and_call)
        return scope
