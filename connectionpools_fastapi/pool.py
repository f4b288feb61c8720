"""ConnectionPool: what users make. This page has all methods for tasks and threads; the engine does the work."""

import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Generic, Self, Unpack, overload

from ._core.policy import DEFAULT, Default, OnOverload, Options, Policy, Reuse, check_seconds
from ._core.slot import T
from ._core.terms import Priority, Terms
from ._runtime.caller import current_task, current_thread
from ._runtime.engine import Engine
from ._runtime.hooks import Act, Broken, Check, Create, Doubt, Hooks, Lend
from ._runtime.life import Life
from .budget import Budget
from .errors import PoolConfigError
from .lease import Lease
from .listener import PoolListener
from .manager import ResourceManager, hooks_of
from .stats import Holder, PoolStats


class ConnectionPool(Generic[T]):
    """A pool of any kind of resource, for tasks of asyncio and trio and for threads.

    A pool creates nothing before it is opened: by the application's lifespan, by
    `async with pool:` or, in plain threads, by `with pool:`. A closed pool may be opened
    again. Every method may be called from any thread, unless its docstring says otherwise.

    Example:
        ```python
        db = ConnectionPool(create=connect, clean=lambda conn: conn.close(), limit=10, name="db")

        async with db, db.lease() as conn:
            ...
        ```
    """

    # For type checkers: they find T behind an awaitable only if that overload comes first.
    @overload
    def __init__(self, manager: ResourceManager[T], **options: Unpack[Options]) -> None: ...
    @overload
    def __init__(
        self,
        *,
        create: Callable[[], Awaitable[T]],
        check: Check[T] | None = None,
        doubtful: Doubt[T] | None = None,
        change: Act[T] | None = None,
        clean: Act[T] | None = None,
        lend: Lend[T] | None = None,
        broken: Broken[T] | None = None,
        **options: Unpack[Options],
    ) -> None: ...
    @overload
    def __init__(
        self,
        *,
        create: Callable[[], T],
        check: Check[T] | None = None,
        doubtful: Doubt[T] | None = None,
        change: Act[T] | None = None,
        clean: Act[T] | None = None,
        lend: Lend[T] | None = None,
        broken: Broken[T] | None = None,
        **options: Unpack[Options],
    ) -> None: ...

    def __init__(
        self,
        manager: ResourceManager[T] | None = None,
        *,
        create: Create[T] | None = None,
        check: Check[T] | None = None,
        doubtful: Doubt[T] | None = None,
        change: Act[T] | None = None,
        clean: Act[T] | None = None,
        lend: Lend[T] | None = None,
        broken: Broken[T] | None = None,
        name: str = "default",
        limit: int = 10,
        min_free: int = 0,
        timeout: float | None = 5.0,
        max_waiting: int | None = None,
        max_creating: int = 8,
        check_after: float = 1.0,
        keepalive: float | None = None,
        max_lifetime: float | None = None,
        max_idle: float | None = None,
        max_uses: int | None = None,
        max_hold: float | None = None,
        hook_timeout: float = 10.0,
        close_timeout: float = 10.0,
        open_timeout: float | None = None,
        reuse: Reuse = "lifo",
        overload: OnOverload = "shed",
        budget: Budget | None = None,
        blocking: bool = True,
        debug: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Describe a pool; it is opened later.

        Args:
            manager: The hooks as one object, instead of the callables.
            create: Makes a resource. Like each hook it may be `def` or `async def`; an awaitable
                that a `def` returns is awaited.
            check: Says whether a free resource is good for another use. A falsy result other than
                None means no, and so does an exception.
            doubtful: Says before each lease, without asking the back-end, whether a resource has
                to be checked although it was used within `check_after`. Always `def`; each caller
                that leases or gives back calls it, so it must not block. Needs `check`.
            change: Makes a resource that comes back ready for its next user.
            clean: Destroys a resource.
            lend: Makes the object that the caller gets for one lease, from the resource and a `Loan`, which
                tells when the lease is over. Always `def`. See `ResourceManager.lend`.
            broken: Says what an error during a lease means for its resource: "keep", "check",
                "discard" or "expire". Always `def`. See `ResourceManager.broken`.
            name: What errors, logs, health and metrics call the pool; unique in an application.
            limit: The most resources that may exist at once. A resource that is being cleaned no
                longer counts, so that a `clean` that hangs costs no capacity.
            min_free: How many resources to keep free beyond those in use, as long as `limit` allows.
                They are created before `open` returns, see `open_timeout`.
            timeout: How long an acquire waits, in seconds; None for ever, 0 not at all.
            max_waiting: The most callers that may queue; None for any number. Callers that
                spare capacity below `limit` will serve do not count.
            max_creating: How many calls of `create` may run at once.
            check_after: For how long after its last use or check a resource is used without
                a check, in seconds; 0 for never.
            keepalive: After how long without use or check a free resource is checked in the
                background, in seconds, so that no firewall drops it and no caller has to
                find out that it is dead; None for never. Below `check_after`, no caller waits for a check.
            max_lifetime: How old a resource may get, in seconds; None for any age. It is shortened by up to
                a quarter, differently for each resource, so that resources created together expire
                one after the other; `max_idle` and `keepalive` are shortened by up to a tenth.
            max_idle: How long a resource may be free without use, in seconds; None for any
                time. The pool keeps those that `min_free` asks for.
            max_uses: How often a resource is leased; None for any number.
            max_hold: After how long a lease is reported in the log, with its holder and age,
                in seconds; None for never.
            hook_timeout: How long one call of a hook may take, in seconds.
            close_timeout: How long `close` waits for leases to come back, in seconds.
            open_timeout: How long `open` waits for `min_free` resources and tries again, in seconds: for a
                back-end that starts together with the application. None raises once the back-end is
                down; 0 opens at once, and the pool creates them later.
            reuse: "lifo" takes the resource used last, so that surplus ones age; "fifo" spreads
                the load over all, and checks each one whose last use is older than `check_after`.
            overload: What to do with callers that would leave, or time out, before they are done with a resource:
                "shed" refuses them at once with `Overloaded`, "queue" lets them wait. How long callers
                wait before they leave is learned from those that left.
            budget: The total over the pools of several processes, which this pool keeps to as well, such as
                `HostBudget("orders-db", total=45)`; None for none.
            blocking: Whether `def` hooks block, so that they need worker threads; False calls
                them in the event loop.
            debug: Whether to record where each lease was acquired, for reports of leases that
                are held for too long or lost; a lease then costs a few times as much.
            clock: Returns the time in seconds, which never goes backwards; called from any
                thread, and from callbacks of the event loop.

        Raises:
            PoolConfigError: If a value or a hook cannot work; the message says what to write.
        """
        if isinstance(manager, ResourceManager):
            if any(hook is not None for hook in (create, check, doubtful, change, clean, lend, broken)):
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
            hooks = {
                "create": create,
                "check": check,
                "doubtful": doubtful,
                "change": change,
                "clean": clean,
                "lend": lend,
                "broken": broken,
            }
        if not callable(clock):
            msg = f"pool {name!r}: clock must be callable, as clock=time.monotonic; got {clock!r}"
            raise PoolConfigError(msg)
        policy = Policy(
            name=name,
            limit=limit,
            min_free=min_free,
            timeout=timeout,
            max_waiting=max_waiting,
            max_creating=max_creating,
            check_after=check_after,
            hook_timeout=hook_timeout,
            keepalive=keepalive,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            max_uses=max_uses,
            max_hold=max_hold,
            close_timeout=close_timeout,
            open_timeout=open_timeout,
            reuse=reuse,
            overload=overload,
            budget=budget,
            debug=debug,
        )
        engine = Engine(policy, Hooks(policy, blocking=blocking, **hooks), clock)
        if keepalive is not None and not engine.hooks.has_check:
            msg = f"pool {name!r}: keepalive={keepalive:g} needs a check, as check=lambda conn: conn.is_usable()"
            raise PoolConfigError(msg)
        self._engine: Engine[T] = engine
        self._life: Life[T] = Life(engine)
        self._manager = manager

    # --- its life -------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the pool in the running event loop, and create `min_free` resources.

        It waits for these up to `open_timeout`. If that fails or is cancelled, the pool is closed at once.

        Raises:
            ResourceUnavailable: If they cannot be created.
            PoolConfigError: If the pool is open already, or `create` returns None.
        """
        await self._life.open()

    async def close(self) -> None:
        """Refuse new callers, wait for leases and for `create` on threads up to `close_timeout`, clean everything.

        Callers that wait get `PoolClosed` at once. A lease that does not end in time is reported in
        the log with its holder and age; its resource is cleaned when it comes back. Closing a closed
        pool does nothing, and so does closing the parent's pool in a forked child.

        Raises:
            WouldDeadlock: If it is called within a lease of this pool: it would wait for that lease.
        """
        await self._life.close()

    async def drain(self) -> None:
        """Clean all resources that exist now, wait for those that are leased, and stay usable.

        Free resources are cleaned at once, leased ones as they come back. Callers that come
        meanwhile get new ones. If this is cancelled, the cleaning goes on.
        """
        await self._life.drain()

    async def __aenter__(self) -> Self:
        """Open the pool; see `open`."""
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the pool; see `close`."""
        await self.close()

    def open_sync(self) -> None:
        """Open the pool from a plain thread; no hook may be async.

        The pool's own tasks then run in a background thread.

        Raises:
            ResourceUnavailable: If one of `min_free` resources cannot be created.
            PoolConfigError: If the pool is open already, or a hook is async.
            WrongEventLoop: If an event loop runs in this thread.
        """
        self._life.open_sync()

    def close_sync(self) -> None:
        """Close the pool from a plain thread; see `close`.

        Raises:
            WrongEventLoop: If an event loop runs in this thread, or the pool's has ended.
        """
        self._life.close_sync()

    def drain_sync(self) -> None:
        """Drain the pool from a plain thread; see `drain`.

        Raises:
            WrongEventLoop: If an event loop runs in this thread, or the pool's has ended.
        """
        self._life.drain_sync()

    def __enter__(self) -> Self:
        """Open the pool from a plain thread; see `open_sync`."""
        self.open_sync()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the pool from a plain thread; see `close_sync`."""
        self.close_sync()

    # --- leases ---------------------------------------------------------------------------

    def lease(
        self, *, timeout: float | None | Default = DEFAULT, priority: Priority = "normal", holder: object = None
    ) -> Lease[T]:
        """Lease a resource for a block: `async with` in tasks, `with` in plain threads.

        Args:
            timeout: How long to wait at most, in seconds; by default the pool's `timeout`.
                None for ever, 0 not at all.
            priority: "high" is served before "normal", and that before "low"; within one, first come, first
                served. A low one that has waited for half its timeout, or for a minute, counts as normal.
            holder: What to call the holder in reports; a report calls its `str()`.

        Returns:
            A lease to enter once; its block gets the resource. Entering it raises what
            `acquire` and `acquire_sync` raise.

        Raises:
            PoolConfigError: If `timeout` is no duration, or `priority` is unknown.
        """
        terms: Terms = DEFAULT
        if timeout is not DEFAULT or priority != "normal":
            terms = self._engine.terms(timeout, priority)
        return Lease(self._engine, terms, holder)

    async def acquire(self, *, timeout: float | None | Default = DEFAULT, priority: Priority = "normal") -> T:
        """Lease a resource by hand; `lease` is safer. In any task that may use the pool.

        Another task may give it back. Once the task that acquired has ended and nothing refers to
        the resource any more, the lease is lost: the pool destroys the resource, and the log says so.

        Args:
            timeout: As in `lease`.
            priority: As in `lease`.

        Returns:
            A resource, to be given to `release`, `discard` or `detach` once.

        Raises:
            PoolTimeout: If none came free in time.
            ResourceUnavailable: If the back-end is down.
            TooManyWaiting: If `max_waiting` callers wait already.
            Overloaded: If it would leave or time out before it is done with a resource.
            WouldDeadlock: If the caller would wait for a second resource while its request holds a
                first, or while a task that waits holds each other one in a block of `lease`.
            PoolClosed: If the pool is not open, or closes meanwhile.
            WrongEventLoop: If the resources belong to another loop.
        """
        engine = self._engine
        terms: Terms = DEFAULT
        if timeout is not DEFAULT or priority != "normal":
            terms = engine.terms(timeout, priority)
        task = current_task()
        slot = engine.take() or await engine.park(terms, task)
        return engine.hand_over(slot, task)

    async def release(self, resource: T) -> None:
        """Give back what `acquire` returned, and wait for `change`.

        The resource is given back at once; cancelling this only ends the wait for `change`.

        Raises:
            NotLeased: If it is not leased from this pool, or was given back before.
        """
        engine = self._engine
        slot = engine.inventory.leased(resource)
        lease = slot.leases
        if engine.give_back(slot):
            await engine.wait_changed(slot, lease)

    def try_acquire(self) -> T | None:
        """Lease a free resource without waiting. From tasks and threads.

        Returns:
            A resource, or None if none is ready; then the pool makes one ready in the
            background if there is room for it.

        Raises:
            PoolClosed: If the pool is not open.
            WrongEventLoop: If the resources belong to another loop.
        """
        return self._engine.try_acquire()

    def acquire_sync(self, *, timeout: float | None | Default = DEFAULT, priority: Priority = "normal") -> T:
        """Lease a resource by hand from a plain thread; `with pool.lease()` is safer.

        Another thread may give it back; for a lost lease see `acquire`.

        Args:
            timeout: As in `lease`.
            priority: As in `lease`.

        Returns:
            A resource, to be given to `release_sync`, `discard` or `detach` once.

        Raises:
            PoolError: As `acquire`; and `WrongEventLoop` if an event loop runs in this thread.
        """
        engine = self._engine
        return engine.hand_over(engine.acquire_sync(engine.terms(timeout, priority)), current_thread())

    def release_sync(self, resource: T) -> None:
        """Give back what `acquire_sync` returned, and wait for `change`. From plain threads.

        Raises:
            NotLeased: If it is not leased from this pool, or was given back before.
            WrongEventLoop: If an event loop runs in this thread.
        """
        engine = self._engine
        engine.refuse_loop("release_sync", "`await pool.release(resource)`")
        slot = engine.inventory.leased(resource)
        lease = slot.leases
        if engine.give_back(slot):
            engine.wait_changed_sync(slot, lease)

    def discard(self, resource: T) -> None:
        """End the lease of a resource that is broken: it is cleaned, not used again.

        Raises:
            NotLeased: If it is not leased from this pool.
        """
        self._engine.discard(self._engine.inventory.leased(resource))

    def detach(self, resource: T) -> T:
        """End the lease and keep the resource for good; the caller has to clean it.

        Returns:
            The resource.

        Raises:
            NotLeased: If it is not leased from this pool.
        """
        return self._engine.detach(self._engine.inventory.leased(resource))

    # --- numbers and health ---------------------------------------------------------------

    @property
    def name(self) -> str:
        """What errors, logs, health and metrics call the pool."""
        return self._engine.name

    @property
    def manager(self) -> ResourceManager[T] | None:
        """The manager that it was made with; None if it was made with the hooks one by one."""
        return self._manager

    @property
    def status(self) -> str:
        """Where the pool is: "new", "open", "suspended", "closing", "closed", or "forked" in a child process."""
        return self._engine.state.status.value

    @property
    def limit(self) -> int:
        """The most resources that may exist at once."""
        return self._engine.state.limit

    @property
    def free(self) -> int:
        """How many resources are ready for use."""
        return len(self._engine.inventory.free)

    @property
    def taken(self) -> int:
        """How many resources are leased out, being checked or being changed."""
        inventory = self._engine.inventory
        return max(0, len(inventory.slots) - len(inventory.free))

    @property
    def creating(self) -> int:
        """How many resources are being made."""
        return len(self._engine.inventory.creating)

    @property
    def waiting(self) -> int:
        """How many callers are in the queue."""
        return len(self._engine.state.queue)

    @property
    def belongs_to_loop(self) -> bool:
        """Whether its resources belong to the event loop that opened it, since a hook is async."""
        return self._engine.hooks.are_async

    @property
    def refuses_prepare(self) -> str | None:
        """Why `Leased(prepare=...)` is refused, since the next lease would see what it sets; None if it is not."""
        return self._engine.hooks.refuse_prepare()

    def stats(self) -> PoolStats:
        """Return a frozen snapshot of the state and all totals.

        Returns:
            Counts that add up: all of them are of one moment.
        """
        return self._engine.stats()

    def holders(self) -> list[Holder]:
        """Return the holder and age of each lease, the oldest first.

        Returns:
            One entry a lease. Its name is the `holder` that `lease` was given; for `Leased` the route;
            else that of the task or thread in which the lease began.
        """
        return self._engine.holders()

    async def probe(self, *, max_age: float = 5.0, timeout: float = 2.0) -> bool:
        """Find out whether the back-end answers, without ever queueing for a resource.

        The pool tries nothing if a `create` or `check` has succeeded in the last `max_age`
        seconds, if it knows that its back-end is down, or if all resources are in use. If none of
        these was leased or given back in the last `max_age` seconds, and a caller waits or has
        waited in vain since, the back-end counts as not answering. Calls at the same time share
        one try.

        Args:
            max_age: How old the last answer may be, in seconds.
            timeout: How long to wait for an answer, in seconds.

        Returns:
            False if the back-end is down, or did not answer in time. True means only that nothing
            speaks against it; see `stats` for details.

        Raises:
            PoolConfigError: If `max_age` or `timeout` is no duration.
        """
        policy = self._engine.policy
        check_seconds(f"pool {policy.name!r}", "max_age", max_age, hint="0 trusts nothing that is known")
        check_seconds(f"pool {policy.name!r}", "timeout", timeout, hint="as timeout=2.0")
        return await self._engine.probe(max_age, timeout)

    # --- control while it runs ------------------------------------------------------------

    def expire(self) -> None:
        """Retire all resources that exist: the free ones at once, each other one when it comes back.

        It does not wait, and later callers get new resources: use it after credentials have
        changed or a server has moved. `drain` does the same and waits.
        """
        engine = self._engine
        engine.apply(engine.state.expire, engine.clock())

    def retain(self, keep: Callable[[T], object]) -> int:
        """Retire the free resources for which a function returns false.

        It does not ask about resources that are leased, or that come later. Call it from the pool's
        own event loop; if no hook is async, from any thread or loop.

        Args:
            keep: Gets one resource after the other, each out of use meanwhile; a falsy result
                retires it. It must not block or wait.

        Returns:
            How many were retired.

        Raises:
            WrongEventLoop: If the resources belong to another loop.
            Exception: What `keep` raises; the resource that it was given is kept.
        """
        return self._engine.retain(keep)

    def resize(self, limit: int) -> None:
        """Change the most resources that may exist at once.

        A higher limit serves waiters at once. With a lower one, surplus free resources are cleaned
        at once, other surplus ones when they come back; none is created meanwhile. The limit stays
        when the pool is closed and opened again. It also bounds `min_free`.

        Args:
            limit: The new limit.

        Raises:
            PoolConfigError: If it is no positive whole number.
        """
        engine = self._engine
        engine.policy.check_limit(limit)
        engine.apply(engine.state.resize, limit, engine.clock())

    def suspend(self) -> None:
        """Make all callers wait, say while a back-end is switched over; leases go on and end as usual.

        The pool creates nothing meanwhile. Callers wait up to their own timeouts, and are served
        in order after `resume`. Suspending a suspended pool does nothing.

        Raises:
            PoolClosed: If the pool is not open.
        """
        engine = self._engine
        engine.apply(engine.state.suspend)

    def resume(self) -> None:
        """Serve callers again after `suspend`, and forget earlier failures of `create`.

        Resuming a pool that is not suspended does nothing.

        Raises:
            PoolClosed: If the pool is not open.
        """
        engine = self._engine
        engine.apply(engine.state.resume, engine.clock())

    def count_by_route(self) -> None:
        """Count leases, waits and refusals by the route of their request from now on, for `PoolStats.routes`.

        PoolMiddleware calls it for the pools of its application. Callable from any thread.
        """
        self._engine.count_by_route()

    def add_listener(self, listener: PoolListener) -> None:
        """Notify a listener of what happens from now on.

        Args:
            listener: Its methods are called after the fact, from any thread or task.
        """
        self._engine.add_listener(listener)

    def remove_listener(self, listener: PoolListener) -> None:
        """Stop notifying a listener.

        Args:
            listener: A listener that was added.

        Raises:
            ValueError: If it was not added.
        """
        self._engine.remove_listener(listener)

    def __repr__(self) -> str:
        """Describe the pool as ConnectionPools.jl does."""
        return (
            f"ConnectionPool {self.name!r} of limit {self.limit} with {self.free} free "
            f"and {self.taken} taken resources ({self.status})"
        )
