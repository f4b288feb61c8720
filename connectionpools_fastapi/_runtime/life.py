"""Life: how a pool opens, drains and closes, in an event loop or from a plain thread."""

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Generic

import anyio

from .._core import messages
from .._core.effects import Status
from .._core.slot import T
from .caller import current_task
from .current import current_loop, task_waiter
from .engine import Engine
from .loop import Loop, LoopEnded
from .on_asyncio import PrivateLoop
from .request_context import REQUEST
from .waiters import TaskWaiter

# After this many seconds `close` logs what it waits for.
CLOSE_PATIENCE = 1.0


class Life(Generic[T]):
    """Opens, drains and closes a pool. For plain threads each of these runs in the pool's own loop."""

    def __init__(self, engine: Engine[T]) -> None:
        self._engine = engine
        self._policy = engine.policy
        self._clock = engine.clock
        self._state = engine.state
        self._executor = engine.executor
        self._apply = engine.apply

    # --- open -----------------------------------------------------------------------------

    async def open(self, loop: Loop | None = None) -> None:
        """Open the pool in the running loop, which the caller may pass; see `ConnectionPool.open`."""
        here = loop or current_loop()
        assert here is not None  # noqa: S101 - this is a coroutine: some loop runs it

        def begin(now: float) -> None:
            self._state.check_not_open()
            self._executor.move(here, now)
            self._state.open(now)

        self._apply(begin, self._clock())
        try:
            if self._executor.tokens is not None:
                await self._executor.tokens.join()
            if self._policy.open_timeout != 0:
                await self._wait_min_free()
        except BaseException:
            # The opener does not wait any longer: not for leases of other callers, and not for hooks that hang.
            with anyio.CancelScope(shield=True):
                generation = self._apply(self._begin_close, self._clock())
                self._executor.give_up_creations()
                await self._end_close(generation, logging.INFO)  # the error tells what `create` does
            raise

    async def _wait_min_free(self) -> None:
        with anyio.move_on_after(self._policy.open_timeout):
            waiter: TaskWaiter[T] = task_waiter()
            while waiter.error is None and self._apply(self._state.watch_min_free, waiter, self._clock()):
                await waiter.parked
                waiter = task_waiter()
            if waiter.error is None:
                return
            raise waiter.error
        raise messages.cannot_open(self._state)

    def open_sync(self) -> None:
        """Open the pool from a plain thread, in a loop of its own; see `ConnectionPool.open_sync`."""
        self._engine.refuse_loop("open_sync and `with pool:`", "`async with pool:`")
        hooks = self._engine.hooks
        if hooks.are_async:
            raise hooks.must_be_awaited()
        loop = PrivateLoop(self._policy.name)
        try:
            loop.run(lambda: self.open(loop))
        except BaseException:
            loop.stop()
            raise

    # --- close ----------------------------------------------------------------------------

    async def close(self) -> None:
        """Refuse new callers, wait for leases, clean everything; see `ConnectionPool.close`."""
        if self._state.status is Status.FORKED:
            return  # pragma: no cover - in a process of its own, see tests/runtime/test_fork.py
        self._apply(self._state.check_not_within, current_task(), REQUEST.get())
        generation = self._apply(self._begin_close, self._clock())
        self._executor.give_up_creations()
        try:
            patience = min(CLOSE_PATIENCE, self._policy.close_timeout)
            if not await self._wait_gone(generation, patience) and patience < self._policy.close_timeout:
                self._report_waits()
                await self._wait_gone(generation, self._policy.close_timeout - patience)
        finally:  # a cancelled `close` still cleans everything, but waits for no more leases
            with anyio.CancelScope(shield=True):
                await self._end_close(generation)

    def _report_waits(self) -> None:
        holders = (f"{holder.name} (for {holder.age:.3g} s)" for holder in self._engine.holders())
        self._executor.reports.closing(self._policy.close_timeout, self._engine.stats(), holders)

    def _begin_close(self, now: float) -> int:
        if self._executor.has_lost_loop():
            here = current_loop()
            if here is None or self._engine.hooks.are_async:  # only the ended loop could have cleaned
                self._state.abandon(now)
            else:
                self._executor.move(here, now)
        return self._state.close(now)

    async def _end_close(self, generation: int, level: int = logging.WARNING) -> None:
        for held in self._apply(self._state.write_off, generation, self._clock()):
            self._executor.reports.lease_outlives_close(held)
        if self._state.was_reopened_since(generation):
            return  # another `close` has ended that life, and what goes on now is not this one's to end
        self._executor.abandon_creations(level)
        try:
            # Only hooks are left, which have their own limit; what a late create makes is cleaned separately.
            await self._wait_gone(generation, self._policy.hook_timeout)
        finally:
            self._apply(self._state.closed, generation)
            self._executor.give_back_tokens()
            self._engine.hooks.failures.end()

    def close_sync(self) -> None:
        """Close the pool from a plain thread; see `ConnectionPool.close_sync`."""
        self._engine.refuse_loop("close_sync", "`await pool.close()`")
        loop = self._executor.loop
        if self._state.status is not Status.CLOSED:
            self._run(self.close)
        if isinstance(loop, PrivateLoop) and not self._state.generations.total():
            loop.stop()

    # --- drain ----------------------------------------------------------------------------

    async def drain(self) -> None:
        """Wait until all resources that exist now are cleaned; see `ConnectionPool.drain`."""
        await self._wait_gone(self._apply(self._state.expire, self._clock()), None)

    def drain_sync(self) -> None:
        """Drain the pool from a plain thread; see `ConnectionPool.drain_sync`."""
        self._engine.refuse_loop("drain_sync", "`await pool.drain()`")
        self._run(self.drain)

    async def _wait_gone(self, generation: int, seconds: float | None) -> bool:
        """Wait until nothing of a generation or an older one is left; False if the time is up first."""
        waiter: TaskWaiter[T] = task_waiter()
        if not self._apply(self._state.wait_gone, waiter, generation):
            return True
        try:
            with anyio.move_on_after(seconds):
                await waiter.parked
                return True
            return False
        finally:
            self._apply(self._state.forget, waiter)

    def _run(self, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a job in the pool's own loop, and wait for it."""
        if self._executor.loop is None:
            return  # never opened: there is nothing to wait for
        try:
            self._executor.loop.run(job)
        except LoopEnded:
            if self._state.status is not Status.CLOSED:  # another thread may have closed it meanwhile
                raise self._executor.orphaned() from None
