"""TaskFront: the front end for tasks, of asyncio and of trio."""

from types import TracebackType
from typing import Self

import anyio

from ._front import Front, holding_request
from ._ledger import Status
from ._log import logger
from ._loop import Loop, current_loop, task_waiter
from ._owner import current_task
from ._slot import Slot
from ._waiters import Client, TaskWaiter
from .lease import DEFAULT, Default
from .manager import T


class TaskFront(Front[T]):
    """What a coroutine calls."""

    async def open(self) -> None:
        """Open the pool in the running event loop, and create `min_free` resources.

        Raises:
            ResourceUnavailable: If one of them cannot be created; the pool is closed then.
            PoolConfigError: If the pool is open already, or `create` returns None.
        """
        loop = current_loop()
        assert loop is not None  # noqa: S101 - this is a coroutine: some loop runs it
        await self._open(loop)

    async def _open(self, loop: Loop) -> None:
        def begin(now: float) -> None:
            self._state.check_not_open()
            self._keeper.move(loop, now)
            self._state.open(now)

        self._commit(begin, self._clock())
        try:
            waiter: TaskWaiter[T] = task_waiter()
            while waiter.error is None and self._commit(self._state.watch_min_free, waiter):
                await waiter.parked
                waiter = task_waiter()
            if waiter.error is not None:
                raise waiter.error
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.close()
            raise

    async def close(self) -> None:
        """Refuse newcomers, wait for leases up to `close_timeout`, clean everything.

        Who waits gets `PoolClosed` at once. What does not come back in time is reported in
        the log with its holder and age, and cleaned when it comes back after all. To close
        a closed pool does nothing, nor to close one that is the parent's of this process.
        """
        if self._state.status is Status.FORKED:
            return  # pragma: no cover - in a process of its own, see tests/test_fork.py
        generation = self._commit(self._begin_close, self._clock())
        try:
            await self._wait_gone(generation, self._policy.close_timeout)
        finally:  # cancelled or not, everything is cleaned; only leases are not waited for any more
            with anyio.CancelScope(shield=True):
                await self._end_close(generation)

    def _begin_close(self, now: float) -> int:
        if self._keeper.has_lost_loop():
            here = current_loop()
            if here is None or self._hooks.are_async:  # cleaning belongs to the loop that has ended
                self._state.abandon(now)
            else:
                self._keeper.move(here, now)
        return self._state.close(now)

    async def _end_close(self, generation: int) -> None:
        for hold in self._commit(self._state.write_off, generation, self._clock()):
            logger.warning(
                "pool %r: closed, but %s; it is cleaned when it comes back%s", self.name, hold, hold.acquired_at()
            )
        try:
            # What is left are hooks, which have their own limit; what a late create made is cleaned by itself.
            await self._wait_gone(generation, self._policy.hook_timeout)
        finally:
            self._commit(self._state.closed)

    async def drain(self) -> None:
        """Wait for what is leased out, clean all that exists now, and stay usable.

        Free resources are cleaned at once, leased ones as they come back. Callers that
        come meanwhile get new ones. May be cancelled; what was begun goes on.
        """
        await self._wait_gone(self._commit(self._state.expire, self._clock()), None)

    async def _wait_gone(self, generation: int, seconds: float | None) -> bool:
        waiter: TaskWaiter[T] = task_waiter()
        if not self._commit(self._state.wait_gone, waiter, generation):
            return True
        try:
            with anyio.move_on_after(seconds):
                await waiter.parked
                return True
            return False
        finally:
            self._commit(self._state.forget, waiter)

    async def __aenter__(self) -> Self:
        """Open the pool; see `open`."""
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the pool; see `close`."""
        await self.close()

    async def acquire(self, *, timeout: float | None | Default = DEFAULT) -> T:
        """Lease a resource by hand; `lease` is safer. In any task that may use the pool.

        Args:
            timeout: As in `lease`.

        Returns:
            A resource, to be given to `release`, `discard` or `detach` once.

        Raises:
            PoolTimeout: If none came free in time.
            ResourceUnavailable: If `create` fails and nothing is left to wait for.
            TooManyWaiting: If `max_waiting` callers wait already.
            WouldDeadlock: If it would wait for a second one while its request holds a first, or
                while each other one is held by a task that waits, in a block of `lease`.
            PoolClosed: If the pool is not open, or closes meanwhile.
            WrongEventLoop: If the resources belong to another loop.
        """
        self._check_timeout(timeout)
        task = current_task()
        slot = self._take() or await self._stand_in_line(timeout, task)
        self._note_acquired(slot, task)
        return slot.resource

    async def release(self, resource: T) -> None:
        """Give back what `acquire` returned, and wait for `change`.

        It is given back at once: to cancel this only ends the waiting.

        Raises:
            NotLeased: If it is not leased from this pool, or was given back before.
        """
        slot = self._leased(resource)
        lease = slot.leases
        if self._give_back(slot):
            await self._wait_changed(slot, lease)

    async def probe(self, *, max_age: float = 5.0, timeout: float = 2.0) -> bool:
        """Find out whether the back-end answers, without ever queueing for a resource.

        Nothing is tried if a `create` or `check` has succeeded in the last `max_age`
        seconds, or the pool knows that its back-end is down, or all resources are in use.
        Calls at the same time share one try.

        Args:
            max_age: How old what is known may be, in seconds.
            timeout: How long to wait for an answer, in seconds.

        Returns:
            False if the try failed or did not end in time. True says only that nothing
            speaks against the back-end; see `stats` for what is known.

        Raises:
            PoolConfigError: If `max_age` or `timeout` is no duration.
        """
        self._policy.check_seconds("max_age", max_age, hint="0 trusts nothing that is known")
        self._policy.check_seconds("timeout", timeout, hint="as timeout=2.0")
        watcher: TaskWaiter[T] = task_waiter()
        known = self._commit(self._state.probe, watcher, max_age, timeout, self._clock())
        if known is not None:
            return known
        try:
            with anyio.move_on_after(timeout):
                await watcher.parked
                return watcher.error is None
            return False
        finally:
            self._commit(self._state.forget, watcher)

    async def _wait_changed(self, slot: Slot[T], lease: int) -> None:
        try:
            done: TaskWaiter[T] = task_waiter()
        except RuntimeError:  # a coroutine is collected outside of its loop: nobody is there to wait
            return
        if self._commit(self._state.wait_changed, slot, lease, done):
            await done.parked

    async def _stand_in_line(
        self, timeout: float | None | Default, task: object, client: Client | None = None
    ) -> Slot[T]:
        waiter: TaskWaiter[T] = task_waiter(task)
        waiter.request, waiter.client = holding_request(), client
        loop = self._keeper.loop
        is_here = loop is not None and waiter.loop is loop.native
        try:
            slot = self._queue_up(waiter, self._seconds(timeout))
            if slot is not None:
                return slot
            if is_here or waiter.deadline is None:
                await waiter.parked
            else:
                await self._park_elsewhere(waiter)
        except BaseException:
            self._commit(self._state.withdraw, waiter, self._clock())
            raise
        finally:
            if client is not None:
                client.unwatch(waiter)
        slot = waiter.slot
        return slot if slot is not None and is_here else self._granted(waiter)

    async def _park_elsewhere(self, waiter: TaskWaiter[T]) -> None:
        assert waiter.deadline is not None  # noqa: S101 - who waits for ever just waits
        # A task of another loop watches its own time: the pool's loop may be blocked, or have ended.
        with anyio.move_on_after(waiter.deadline - waiter.asked_at):
            await waiter.parked
            return
        self._commit(self._state.time_out, waiter, self._clock())
