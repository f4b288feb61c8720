"""ConnectionPool: what users make; its two front ends are for tasks and for threads."""

import time
from collections.abc import Awaitable, Callable
from typing import Unpack, overload

from ._hooks import Act, Check, Create, Doubt, Hooks, hooks_of
from ._policy import Options, Policy, Reuse
from ._threads import ThreadFront
from .errors import PoolConfigError
from .lease import DEFAULT, Default, Lease
from .manager import ResourceManager, T


class ConnectionPool(ThreadFront[T]):
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
        doubtful: Doubt[T] | None = None,
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
        doubtful: Doubt[T] | None = None,
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
        doubtful: Doubt[T] | None = None,
        change: Act[T] | None = None,
        clean: Act[T] | None = None,
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
        reuse: Reuse = "lifo",
        blocking: bool = True,
        debug: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Describe a pool; it is opened later.

        Args:
            manager: The hooks as one object, instead of the callables.
            create: Makes a resource. As each hook it may be `def` or `async def`; what a
                `def` returns is awaited if it is awaitable.
            check: Says whether a free resource is good for another use; falsy (but not
                None) and to raise both mean no.
            doubtful: Says before each lease, without asking the back-end, whether a resource has
                to be checked although it was used within `check_after`; always `def`, called by
                whoever leases or gives back, so it must not block. Needs `check`.
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
            keepalive: After how long without use or check a free resource is checked in the
                background, in seconds, so that no firewall forgets it and no caller has to find
                out that it is dead; None for never. Below `check_after`, no caller waits for a check.
            max_lifetime: How old a resource may get, in seconds; None for any age. Like the next
                one and `keepalive` it is shortened by up to a tenth, left to chance, so that not
                all are due at once.
            max_idle: How long a resource may be free and not be used, in seconds; None for
                any time. Those that `min_free` asks for stay.
            max_uses: How often a resource is leased; None for any number.
            max_hold: After how long a lease is reported in the log, with its holder and age,
                in seconds; None for never.
            hook_timeout: How long one call of a hook may take, in seconds.
            close_timeout: How long `close` waits for leases to come back, in seconds.
            reuse: "lifo" takes the resource used last, so that surplus ones age; "fifo"
                spreads the load over all.
            blocking: Whether `def` hooks block, so that they need worker threads; with
                False they are called in the event loop.
            debug: Whether to remember where each lease was acquired, for reports of leases that
                are held for too long or are lost; each lease then takes a few times as long.
            clock: Where the time comes from, in seconds that never go backwards; called
                from any thread, and from callbacks of the event loop.

        Raises:
            PoolConfigError: If a value or a hook cannot work; the message says what to write.
        """
        if isinstance(manager, ResourceManager):
            if any(hook is not None for hook in (create, check, doubtful, change, clean)):
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
            hooks = {"create": create, "check": check, "doubtful": doubtful, "change": change, "clean": clean}
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
            reuse=reuse,
            debug=debug,
        )
        super().__init__(policy, Hooks(policy, blocking=blocking, **hooks), clock)
        if keepalive is not None and not self._hooks.has_check:
            msg = f"pool {name!r}: keepalive={keepalive:g} needs a check, as check=lambda conn: conn.is_usable()"
            raise PoolConfigError(msg)

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
        if timeout is not DEFAULT:
            self._check_timeout(timeout)
        return Lease(self, timeout, holder)

    def __repr__(self) -> str:
        """Say it as ConnectionPools.jl does."""
        return (
            f"ConnectionPool {self.name!r} of limit {self.limit} with {self.free} free "
            f"and {self.taken} taken resources ({self.status})"
        )
