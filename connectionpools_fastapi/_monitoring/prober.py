"""Prober: finds out whether the back-end of a driver's own pool answers, by one try at a time."""

import inspect
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import anyio

from .._core.slot import LONG_AGO
from .._runtime.current import current_loop, task_waiter
from .._runtime.loop import Loop
from .._runtime.waiters import TaskWaiter
from ..errors import describe
from ..stats import ObservedStats

# For how long a failed try answers later calls too, in seconds: not each health check asks a server that is
# down, and health soon shows that it is back.
FAILURE_HOLDS = 1.0


class DriverPool(Protocol):
    """What a Prober needs of a driver's pool."""

    def stats(self, name: str, cause: str | None) -> ObservedStats:
        """Return the numbers of the pool; from any thread."""
        ...

    def can_lend(self) -> bool:
        """Whether the pool can lend or make a connection without queueing."""
        ...

    def still_fails(self) -> bool:
        """Whether the result of a failed try still holds, when no other try can be made."""
        ...

    def try_out(self, timeout: float) -> Any:
        """Take a connection, ask the server, and give it back; an exception means that this failed.

        If it is not `async def`, it is called in a thread.
        """


class Prober:
    """Keeps the result of the last try. Any thread, task and event loop may ask."""

    def __init__(self, driver: DriverPool, clock: Callable[[], float]) -> None:
        self.driver = driver
        self.cause: str | None = None  # of the last failure, if the driver gave one
        self._clock = clock
        # Protects all below. Under the lock nothing waits, and of the driver only `can_lend` and `still_fails` are
        # called.
        self._lock = threading.Lock()
        self._proved_at = LONG_AGO
        self._failed_at = LONG_AGO  # also LONG_AGO once a later try has succeeded
        self._since: float | None = None  # when the try under way began
        self._loop: Loop | None = None  # where it runs, unless in a thread
        self._watchers: list[TaskWaiter[Any]] = []

    async def probe(self, max_age: float, timeout: float) -> bool:
        """Return whether the back-end answers, as far as is known or a try without queueing shows."""
        watcher: TaskWaiter[Any] = task_waiter()
        known = self._ask(watcher, max_age, timeout)
        if known is not None:
            return known
        try:
            with anyio.move_on_after(timeout):
                await watcher.parked
                return self._failed_at == LONG_AGO
            return False
        finally:
            with self._lock, suppress(ValueError):
                self._watchers.remove(watcher)

    def _ask(self, watcher: TaskWaiter[Any], max_age: float, timeout: float) -> bool | None:
        """Return the known answer; None if `watcher` will be woken with one."""
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
                    return self._failed_at == LONG_AGO or not self.driver.still_fails()
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
            # A daemon: a driver that hangs blocks its thread, but neither a health check nor the end of the process.
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
            self._proved_at, self._failed_at, self.cause = self._clock(), LONG_AGO, None
        self._end()

    def _fail(self, cause: str | None) -> None:
        with self._lock:
            self._proved_at, self._failed_at, self.cause = LONG_AGO, self._clock(), cause
        self._end()

    def _end(self) -> None:
        with self._lock:
            self._since = self._loop = None
            watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            with suppress(RuntimeError):  # its loop has ended
                watcher.wake()
