"""Prober: finds out whether the back-end of a driver's own pool answers, by one try at a time."""

import inspect
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import anyio

from ._loop import Loop, current_loop, task_waiter
from ._waiters import TaskWaiter
from .errors import describe
from .stats import ObservedStats

NEVER = float("-inf")

# For how long a try that failed stands for those that ask after it, in seconds: a server that is down is not
# asked by each health check, and is seen soon once it is back.
FAILURE_HOLDS = 1.0


class DriverPool(Protocol):
    """What is to be known of a driver's pool."""

    def stats(self, name: str, cause: str | None) -> ObservedStats:
        """Tell what the pool knows; from any thread."""
        ...

    def can_lend(self) -> bool:
        """Whether a connection can be had, or made, without queueing for it."""
        ...

    def still_fails(self) -> bool:
        """Whether what a failed try has shown is still so, where no other can be made."""
        ...

    def try_out(self, timeout: float) -> Any:
        """Take a connection, ask the server, and give it back; to raise says that this failed.

        It is `async def`, or else called in a thread.
        """


class Prober:
    """Keeps what the last try has shown. Any thread, task and event loop may ask."""

    def __init__(self, driver: DriverPool, clock: Callable[[], float]) -> None:
        self.driver = driver
        self.cause: str | None = None  # of the last failure, where the driver said something
        self._clock = clock
        # Protects all below. While it is held nothing waits, and nothing of the driver's is called but `can_lend`
        # and `still_fails`.
        self._lock = threading.Lock()
        self._proved_at = NEVER
        self._failed_at = NEVER  # NEVER as well once a later try has succeeded
        self._since: float | None = None  # when the try that is under way began
        self._loop: Loop | None = None  # where it runs, unless in a thread
        self._watchers: list[TaskWaiter[Any]] = []

    async def probe(self, max_age: float, timeout: float) -> bool:
        """Say whether the back-end answers, as far as known or can be tried without queueing."""
        watcher: TaskWaiter[Any] = task_waiter()
        known = self._ask(watcher, max_age, timeout)
        if known is not None:
            return known
        try:
            with anyio.move_on_after(timeout):
                await watcher.parked
                return self._failed_at == NEVER
            return False
        finally:
            with self._lock, suppress(ValueError):
                self._watchers.remove(watcher)

    def _ask(self, watcher: TaskWaiter[Any], max_age: float, timeout: float) -> bool | None:
        """Say what is known; None if `watcher` will be woken when more is."""
        now = self._clock()
        with self._lock:
            if now - self._proved_at <= max_age:
                return True
            if now - self._failed_at <= min(max_age, FAILURE_HOLDS):
                return False
            if self._loop is not None and self._loop.has_ended():
                self._since = self._loop = None
            if self._since is None:
                if not self.driver.can_lend():
                    return self._failed_at == NEVER or not self.driver.still_fails()
                self._since = now
                self._start(timeout)
            elif now - self._since >= timeout:
                return False
            self._watchers.append(watcher)
        return None

    def _start(self, timeout: float) -> None:
        if inspect.iscoroutinefunction(self.driver.try_out):
            self._loop = loop = current_loop()
            assert loop is not None  # noqa: S101 - a task asks
            loop.spawn(lambda: self._try(loop, timeout))
        else:
            # A daemon: a driver that hangs keeps its thread, but neither a health check nor the process.
            threading.Thread(target=self._try_in_thread, args=(timeout,), name="pool probe", daemon=True).start()

    async def _try(self, loop: Loop, timeout: float) -> None:
        in_time = False
        try:
            with loop.time_limit(timeout)():
                await self.driver.try_out(timeout)
                in_time = True
        except Exception as error:  # noqa: BLE001 - whatever the driver raises
            self._fail(describe(error))
        except BaseException:  # the loop ends: nothing was shown
            self._end()
            raise
        else:
            self._prove() if in_time else self._fail(None)

    def _try_in_thread(self, timeout: float) -> None:
        try:
            self.driver.try_out(timeout)
        except BaseException as error:  # noqa: BLE001 - as above
            self._fail(describe(error))
        else:
            self._prove()

    def _prove(self) -> None:
        with self._lock:
            self._proved_at, self._failed_at, self.cause = self._clock(), NEVER, None
        self._end()

    def _fail(self, cause: str | None) -> None:
        with self._lock:
            self._proved_at, self._failed_at, self.cause = NEVER, self._clock(), cause
        self._end()

    def _end(self) -> None:
        with self._lock:
            self._since = self._loop = None
            watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            with suppress(RuntimeError):  # its loop has ended
                watcher.wake()
