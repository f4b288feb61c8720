"""ConnectionPool: one state, and two thin front ends to it, for tasks and for threads."""

import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack, overload

import anyio

from . import _report as report
from ._hooks import Act, Check, Create, Hooks, hooks_of
from ._keeper import Keeper
from ._ledger import Status
from ._log import logger
from ._loop import Loop, LoopEnded, PrivateLoop, current_loop, task_waiter
from ._policy import Options, Policy, Reuse
from ._slot import Slot
from ._state import State
from ._waiters import TaskWaiter, ThreadWaiter, Waiter
from .errors import PoolConfigError, WrongEventLoop
from .lease import DEFAULT, Default, Lease
from .manager import ResourceManager, T
from .stats import Holder, PoolStats

W = TypeVar("W", bound=Waiter[Any])


class ConnectionPool(Generic[T]):
    """A pool of any kind of resource, for tasks of asyncio and trio and for threads.

    Nothing is created before the pool is open: by the application's lifespan, by
    `async with pool:` or, in plain threads, by `with pool:`. Once closed it may be opened
    again. Every method may be called from any thread, unless its docstring says otherwise.

    Example:
        ```python
        db = ConnectionPool(create=connect, clean=lambda conn: conn.close(), limit=10, name="db")

        async with db, db.lease() as conn:
            ...
        ```
    """

    # For type checkers: they find T behind what `create` awaits only if that is said first.
    @overload
    def __init__(self, manager: ResourceManager[T], **options: Unpack[Options]) -> None: ...
    @overload
    def __init__(
        self,
        *,
        create: Callable[[], Awaitable[T]],
        check: Check[T] | None = None,
        change: Act[T] | None = None,
        clean: Act[T] | None = None,
        **options: Unpack[Options],
    ) -> None: ...
    @overload
    def __init__(
        self,
        *,
        create: Callable[[], T],
        check: Check[T] | None = None,
        change: Act[T] | None = None,
        clean: Act[T] | None = None,
        **options: Unpack[Options],
    ) -> None: ...

    def __init__(
        self,
        manager: ResourceManager[T] | None = None,
        *,
        create: Create[T] | None = None,
        check: Check[T] | None = None,
        change: Act[T] | None = None,
        clean: Act[T] | None = None,
        name: str = "default",
        limit: int = 10,
        min_free: int = 0,
        timeout: float | None = 5.0,
        max_waiting: int | None = None,
        max_creating: int = 8,
        check_after: float = 1.0,
        hook_timeout: float = 10.0,
        close_timeout: float = 10.0,
        reuse: Reuse = "lifo",
        blocking: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Describe a pool; it is opened later.

        Args:
            manager: The hooks as one object, instead of the four callables.
            create: Makes a resource. As each hook it may be `def` or `async def`; what a
                `def` returns is awaited if it is awaitable.
            check: Says whether a free resource is good for another use; falsy (but not
                None) and to raise both mean no.
            change: Makes a resource that comes back ready for its next user.
            clean: Destroys a resource.
            name: What errors, logs, health and metrics call the pool; unique in an application.
            limit: The most resources that may exist at once. One that is being cleaned no
                longer counts, so that a `clean` that hangs costs no capacity.
            min_free: How many are kept free beyond those in use, as long as `limit` allows.
                They are created before `open` returns.
            timeout: How long an acquire waits, in seconds; None for ever, 0 not at all.
            max_waiting: The most callers that may queue; None for any number. Those for
                whom there is room below `limit` do not count.
            max_creating: How many calls of `create` may run at once.
            check_after: For how long after its last use or check a resource is used without
                a check, in seconds; 0 for never.
            hook_timeout: How long one call of a hook may take, in seconds.
            close_timeout: How long `close` waits for leases to come back, in seconds.
            reuse: "lifo" takes the resource used last, so that surplus ones age; "fifo"
                spreads the load over all.
            blocking: Whether `def` hooks block, so that they need worker threads; with
                False they are called in the event loop.
            clock: Where the time comes from, in seconds that never go backwards; called
                from any thread, and from callbacks of the event loop.

        Raises:
            PoolConfigError: If a value or a hook cannot work; the message says what to write.
        """
        if isinstance(manager, ResourceManager):
            if any(hook is not None for hook in (create, check, change, clean)):
                msg = f"pool {name!r}: pass a manager or the hooks one by one, not both"
                raise PoolConfigError(msg)
            hooks = hooks_of(manager)
        elif manager is not None:
            kind = "an instance" if isinstance(manager, type) else "a ResourceManager"
            msg = f"pool {name!r}: the manager must be {kind}; a plain callable goes to create=..."
            raise PoolConfigError(msg)
        elif create is None:
            msg = f"pool {name!r}: create is required, as create=lambda: connect(...)"
            raise PoolConfigError(msg)
        else:
            hooks = {"create": create, "check": check, "change": change, "clean": clean}
        self._policy = Policy(
            name=name,
            limit=limit,
            min_free=min_free,
            timeout=timeout,
            max_waiting=max_waiting,
            max_creating=max_creating,
            check_after=check_after,
            hook_timeout=hook_timeout,
            close_timeout=close_timeout,
            reuse=reuse,
        )
        if not callable(clock):
            msg = f"pool {name!r}: clock must be callable, as clock=time.monotonic; got {clock!r}"
            raise PoolConfigError(msg)
        self._clock = clock
        self._hooks: Hooks[T] = Hooks(self._policy, blocking=blocking, **hooks)
        self._state: State[T] = State(self._policy, has_check=self._hooks.has_check, has_change=self._hooks.has_change)
        self._keeper = Keeper(self._state, self._hooks, clock)
        self._commit = self._keeper.commit

    # --- looking in -----------------------------------------------------------------------

    @property
    def name(self) -> str:
        """What errors, logs, health and metrics call the pool."""
        return self._policy.name

    @property
    def status(self) -> str:
        """Where the pool is in its life: "new", "open", "closing", "closed", or "forked" in a child process."""
        return self._state.status.value

    @property
    def limit(self) -> int:
        """The most resources that may exist at once."""
        return self._state.limit

    @property
    def free(self) -> int:
        """How many resources are ready for use."""
        return len(self._state.free)

    @property
    def taken(self) -> int:
        """How many resources are leased out, being checked or being changed."""
        return max(0, len(self._state.slots) - len(self._state.free))

    @property
    def creating(self) -> int:
        """How many resources are being made."""
        return len(self._state.creating)

    @property
    def waiting(self) -> int:
        """How many callers are in the queue."""
        return len(self._state.queue)

    def stats(self) -> PoolStats:
        """Return a frozen snapshot of the state and all totals.

        Returns:
            Counts that add up: all of them are of one moment.
        """
        return self._commit(report.stats, self._state, self._clock())

    def holders(self) -> list[Holder]:
        """Return who holds a lease and for how long, the longest first.

        Returns:
            One entry a lease. Those taken through `Leased` are named after their route.
        """
        return _named(self._commit(report.holders, self._state, self._clock()))

    def __repr__(self) -> str:
        """Say it as ConnectionPools.jl does."""
        return (
            f"ConnectionPool {self.name!r} of limit {self.limit} with {self.free} free "
            f"and {self.taken} taken resources ({self.status})"
        )

    # --- life -----------------------------------------------------------------------------

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
        def begin() -> None:
            self._state.check_not_open()
            self._keeper.move(loop)
            self._state.open(self._clock())

        self._commit(begin)
        try:
            waiter: TaskWaiter[T] = task_waiter()
            while waiter.error is None and self._commit(self._state.watch_min_free, waiter):
                await waiter.wait()
                if waiter.error is None:
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
        a closed pool does nothing.
        """
        generation = self._commit(self._begin_close)
        try:
            await self._wait_gone(generation, self._policy.close_timeout)
        finally:  # cancelled or not, everything is cleaned; only leases are not waited for any more
            with anyio.CancelScope(shield=True):
                await self._end_close(generation)

    def _begin_close(self) -> int:
        if self._keeper.has_lost_loop():
            here = current_loop()
            if here is None or self._hooks.are_async:  # cleaning belongs to the loop that has ended
                self._state.abandon(self._clock())
            else:
                self._keeper.move(here)
        return self._state.close(self._clock())

    async def _end_close(self, generation: int) -> None:
        for holder in _named(self._commit(self._state.write_off, generation, self._clock())):
            logger.warning(
                "pool %r: closed while %s still holds a resource, for %.3g s now; it is cleaned on return",
                self.name,
                holder.name,
                holder.age,
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

    def expire(self) -> None:
        """Retire all resources that exist: the free ones at once, each other one when it comes back.

        Nobody waits, and callers that come from now on get new ones: for credentials that
        were changed, or a server that was moved. `drain` does the same and waits for it.
        """
        self._commit(self._state.expire, self._clock())

    async def _wait_gone(self, generation: int, seconds: float | None) -> bool:
        waiter: TaskWaiter[T] = task_waiter()
        if not self._commit(self._state.wait_gone, waiter, generation):
            return True
        try:
            with anyio.move_on_after(seconds):
                await waiter.wait()
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

    # --- the front end for tasks ------------------------------------------------------------

    def lease(self, *, timeout: float | None | Default = DEFAULT, holder: object = None) -> Lease[T]:
        """Lease a resource for a block: `async with` in tasks, `with` in plain threads.

        Args:
            timeout: How long to wait at most, in seconds; by default as the pool says.
                None for ever, 0 not at all.
            holder: What to call whoever holds it in reports; its `str()` is taken when needed.

        Returns:
            A lease to enter once; its block gets the resource. What entering it raises:
            see `acquire` and `acquire_sync`.

        Raises:
            PoolConfigError: If `timeout` is no duration.
        """
        if timeout is not DEFAULT and timeout is not None:
            self._policy.check_seconds("timeout", timeout, hint="0 never waits, None waits for ever")
        return Lease(self, timeout, holder)

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
            PoolClosed: If the pool is not open, or closes meanwhile.
            WrongEventLoop: If the resources belong to another loop.
        """
        return await self.lease(timeout=timeout).__aenter__()

    async def release(self, resource: T) -> None:
        """Give back what `acquire` returned, and wait for `change`.

        It is given back at once: to cancel this only ends the waiting.

        Raises:
            NotLeased: If it is not leased from this pool, or was given back before.
        """
        done: TaskWaiter[T] | None = self._give_back(self._leased(resource), task_waiter)
        if done is not None:
            await done.wait()

    def try_acquire(self) -> T | None:
        """Lease a free resource without waiting. From tasks and threads.

        Returns:
            A resource, or None if none is ready; then one is made ready in the background
            if there is room for it.

        Raises:
            PoolClosed: If the pool is not open.
            WrongEventLoop: If the resources belong to another loop.
        """
        self._check_here()
        slot = self._commit(self._state.try_acquire, self._clock())
        return None if slot is None else slot.resource

    def discard(self, resource: T) -> None:
        """End the lease of a resource that is broken: it is cleaned, not used again.

        Raises:
            NotLeased: If it is not leased from this pool.
        """
        self._discard(self._leased(resource))

    def detach(self, resource: T) -> T:
        """End the lease and keep the resource for good; to clean it is the caller's task.

        Returns:
            The resource.

        Raises:
            NotLeased: If it is not leased from this pool.
        """
        return self._detach(self._leased(resource))

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
                await watcher.wait()
                return watcher.error is None
            return False
        finally:
            self._commit(self._state.forget, watcher)

    async def _queue_up(self, timeout: float | None | Default) -> Slot[T]:
        waiter: TaskWaiter[T] = task_waiter()
        slot = self._commit(self._state.acquire, waiter, self._seconds(timeout), self._clock())
        if slot is not None:
            return slot
        try:
            if waiter.deadline is None or self._is_here():
                await waiter.wait()
            else:
                await self._park_elsewhere(waiter)
        except BaseException:
            self._commit(self._state.withdraw, waiter, self._clock())
            raise
        return self._granted(waiter)

    def _is_here(self) -> bool:
        loop = self._keeper.loop
        return loop is not None and loop.is_here()

    async def _park_elsewhere(self, waiter: TaskWaiter[T]) -> None:
        assert waiter.deadline is not None  # noqa: S101 - who waits for ever just waits
        # A task of another loop watches its own time: the pool's loop may be blocked, or have ended.
        with anyio.move_on_after(waiter.deadline - waiter.asked_at):
            await waiter.wait()
            return
        self._commit(self._state.time_out, waiter, self._clock())

    # --- the front end for threads ------------------------------------------------------------

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
        return self.lease(timeout=timeout).__enter__()

    def release_sync(self, resource: T) -> None:
        """Give back what `acquire_sync` returned, and wait for `change`. From plain threads.

        Raises:
            NotLeased: If it is not leased from this pool, or was given back before.
            WrongEventLoop: If an event loop runs in this thread.
        """
        self._refuse_loop("release_sync", "`await pool.release(resource)`")
        self._give_back_sync(self._leased(resource))

    def __enter__(self) -> Self:
        """Open the pool from a plain thread; see `open_sync`."""
        self.open_sync()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the pool from a plain thread; see `close_sync`."""
        self.close_sync()

    def _queue_up_sync(self, timeout: float | None | Default) -> Slot[T]:
        waiter: ThreadWaiter[T] = ThreadWaiter()
        seconds = self._seconds(timeout)
        slot = self._commit(self._state.acquire, waiter, seconds, self._clock())
        if slot is not None:
            return slot
        try:
            # A thread watches its own time too: the pool's loop may be blocked.
            if not waiter.wait(seconds):
                self._commit(self._state.time_out, waiter, self._clock())
        except BaseException:
            self._commit(self._state.withdraw, waiter, self._clock())
            raise
        return self._granted(waiter)

    def _give_back_sync(self, slot: Slot[T]) -> None:
        done: ThreadWaiter[T] | None = self._give_back(slot, ThreadWaiter)
        if done is not None:
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

    # --- what both share ----------------------------------------------------------------------

    def _check_here(self) -> None:
        if self._hooks.are_async and not self._is_here() and self._state.status is Status.OPEN:
            msg = (
                f"pool {self.name!r}: its resources belong to the event loop that opened it, and this is another loop "
                "or a thread. Lease in that loop (in sync endpoints through Leased), or write the hooks as `def`"
            )
            raise WrongEventLoop(msg)

    def _seconds(self, timeout: float | None | Default) -> float | None:
        return self._policy.timeout if isinstance(timeout, Default) else timeout

    def _granted(self, waiter: Waiter[T]) -> Slot[T]:
        if waiter.slot is None:
            error, waiter.error = waiter.error, None
            assert error is not None  # noqa: S101 - a waiter is woken with either
            try:
                raise error
            finally:
                del error  # or it would keep itself and the caller's variables alive: a cycle
        try:
            # Only now may it be known that create is async: by what it returned.
            self._check_here()
        except WrongEventLoop:
            self._commit(self._state.withdraw, waiter, self._clock())
            raise
        return waiter.slot

    def _leased(self, resource: T) -> Slot[T]:
        return self._state.leased(resource)

    def _take(self) -> Slot[T] | None:
        if self._hooks.are_async:
            self._check_here()
        return self._state.take(self._clock())

    def _give_back(self, slot: Slot[T], make_waiter: Callable[[], W | None]) -> W | None:
        """Give a slot back; returns what will be woken when `change` is over, if there is one."""
        now = self._clock()
        self._state.end(slot, now)
        if self._state.put_back(slot, now):
            if self._state.gate:  # somebody came to wait in between
                self._commit(self._state.settle, now)
            return None
        done = make_waiter() if self._state.has_change else None
        return done if self._commit(self._state.release, slot, done, now) else None

    def _discard(self, slot: Slot[T]) -> None:
        now = self._clock()
        self._state.end(slot, now)
        self._commit(self._state.discard, slot, now)

    def _detach(self, slot: Slot[T]) -> T:
        now = self._clock()
        self._state.end(slot, now)
        self._commit(self._state.detach, slot, now)
        return slot.resource


def _named(leases: list[tuple[object, float]]) -> list[Holder]:
    """Name holders, which runs users' code: so not under the lock."""
    return [Holder(name="unnamed" if holder is None else str(holder), age=age) for holder, age in leases]
