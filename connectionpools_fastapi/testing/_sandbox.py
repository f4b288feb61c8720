"""sandbox: all leases of a test in one transaction, which is rolled back."""

# ruff: noqa: SLF001 - for as long as a sandbox lasts, a pool of one resource takes the place of the pool's engine

import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar, runtime_checkable

import anyio
import anyio.to_thread

from .._core.slot import Slot
from .._runtime.caller import current_task
from .._runtime.engine import Engine
from .._runtime.life import Life
from .._runtime.loan import Loan
from ..errors import PoolClosed, PoolConfigError, PoolError
from ..manager import ResourceManager, telling
from ..pool import ConnectionPool
from ._loop import run_in_loop_of

T = TypeVar("T")

# How long a lease may wait for its turn at least, and the sandbox for its connection; and how long a lease may outlast
# its sandbox, in seconds.
TURN_WITHIN = 5.0
END_WITHIN = 1.0


@runtime_checkable
class SandboxManager(Protocol[T]):
    """What a manager has beside the hooks of a pool if its resources have transactions that `sandbox` can use."""

    def sandbox(self, resource: T) -> ResourceManager[T]:
        """Make the manager of one sandbox.

        The sandbox calls its hooks where the pool calls its own. Each is `def` or `async def` as that of the pool.

        - `create` begins a transaction on the resource, and returns the resource. If it is called again, after a
          lease was discarded, it undoes what that lease has not committed; it raises if the transaction is lost.
        - `lend` makes what a lease gets: its commits and rollbacks stay within the transaction.
        - `change` undoes what a lease has not committed.
        - `prepared` and `refuse_prepare`, if it has them, are for `Leased(prepare=...)`.
        - `end`, if it has it, undoes all that the sandbox has done.

        Then the pool's own `change` or `clean` rolls the transaction back.

        Args:
            resource: One of the pool's resources, which no other caller uses.

        Returns:
            The manager, for one sandbox.
        """
        ...


class sandbox(Generic[T]):  # noqa: N801 - a context manager that reads as a function, like `override_leased`
    """Put all leases of a pool into one transaction, and roll it back at the end.

    Within the block each lease of the pool uses the same connection: in endpoints, background
    tasks, threads and the test itself. Leases take turns. A commit keeps its rows for the leases
    that follow, and an error or a rollback undoes what its own lease has not committed. At the
    end of the block nothing of it is left in the database.

    Use it on a pool that is open: `async with sandbox(db):` in the loop of the pool, or
    `with sandbox(db):` in a plain thread, as with `TestClient`. Closing the pool ends the
    sandbox first. While it lasts, `limit`, `stats` and the metrics of the pool are of the one connection.

    A caller that holds a lease and asks for a second one would wait for itself: WouldDeadlock.

    Example:
        ```python
        with TestClient(app) as client, sandbox(db):
            client.post("/users", json={"name": "ann"})
        ```
    """

    def __init__(self, pool: ConnectionPool[T]) -> None:
        """Name the pool.

        Args:
            pool: The pool, made with a manager that is a `SandboxManager`.

        Raises:
            PoolConfigError: If its resources have no transactions that could be rolled back.
        """
        manager = pool.manager
        if not isinstance(manager, SandboxManager):
            has = "hooks, and no manager" if manager is None else type(manager).__name__
            raise PoolConfigError(
                f"pool {pool.name!r}: a sandbox needs a manager that has transactions, and the pool has {has}. "
                "Use override_leased, or write a method `sandbox` as SandboxManager describes it"
            )
        self._pool: ConnectionPool[T] = pool
        self._manager: SandboxManager[T] = manager
        self._swapped: _Swapped[T] | None = None

    async def __aenter__(self) -> Self:
        """Begin.

        Raises:
            PoolClosed: If the pool is not open.
            PoolConfigError: If the pool is in a sandbox already.
            WrongEventLoop: If the pool belongs to another loop.
            Exception: The driver's own error, if the transaction cannot begin.
        """
        await self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Roll back.

        Raises:
            PoolError: If a lease goes on; its connection is closed. Or if the transaction was lost.
        """
        if self._swapped is not None:
            with anyio.CancelScope(shield=True):
                await self._swapped.end()
            self._swapped.tell(error)

    def __enter__(self) -> Self:
        """Begin, from a plain thread; raises what `async with` raises."""
        engine = self._pool._engine
        engine.refuse_loop("`with sandbox(pool):`", "`async with sandbox(pool):`")
        _check(self._pool)
        if engine.hooks.are_async:
            run_in_loop_of(engine, self._begin)
        else:
            self._begin_sync()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Roll back; raises what `async with` raises."""
        if self._swapped is not None:
            self._swapped.end_sync()
            self._swapped.tell(error)

    async def _begin(self) -> None:
        engine = self._pool._engine
        _check(self._pool)
        slot = engine.take() or await engine.park(engine.terms(_patience(engine), "normal"), current_task())
        slot.holder = "sandbox"
        try:
            manager = self._manager.sandbox(slot.resource)
            await _call(engine, manager.create)
            hooks = (_AsyncOfSandbox if engine.hooks.are_async else _SyncOfSandbox)(manager, slot.resource)
            inner = _inner_of(self._pool, hooks)
            await inner.open()
        except BaseException:
            engine.discard(slot)
            raise
        self._swapped = _Swapped(self._pool, inner, hooks, slot)

    def _begin_sync(self) -> None:
        engine = self._pool._engine
        slot = engine.acquire_sync(engine.terms(_patience(engine), "normal"))
        slot.holder = "sandbox"
        try:
            manager = self._manager.sandbox(slot.resource)
            manager.create()
            hooks = _SyncOfSandbox(manager, slot.resource)
            inner = _inner_of(self._pool, hooks)
            run_in_loop_of(engine, inner.open)
        except BaseException:
            engine.discard(slot)
            raise
        self._swapped = _Swapped(self._pool, inner, hooks, slot)


class _Turn:
    """What the inner pool keeps: a new one for each `create`, since all have the same resource."""

    def __init__(self, resource: Any) -> None:
        self.resource = resource


class _Swapped(Generic[T]):
    """A pool whose engine is that of a sandbox."""

    def __init__(self, pool: ConnectionPool[T], inner: ConnectionPool[Any], hooks: "_OfSandbox", slot: Slot[T]) -> None:
        self._pool = pool
        self.inner = inner
        self._hooks = hooks
        self._slot, self._lease = slot, slot.leases
        self.own = pool._engine, pool._life
        self._has_ended = False
        self._outlasting: list[str] = []
        pool._engine, pool._life = inner._engine, _SandboxLife(self)

    async def end(self) -> None:
        """Give the pool its own engine back, and roll back."""
        if self._has_ended:
            return
        self._has_ended = True
        engine: Engine[T] = self.own[0]
        is_undone = False
        try:
            async with anyio.create_task_group() as tasks:  # a task that holds a lease must not close its pool
                tasks.start_soon(self.inner.close)
            await self._hooks.end()
            is_undone = True
        finally:
            if self._give_back(is_undone=is_undone):
                await engine.wait_changed(self._slot, self._lease)

    def end_sync(self) -> None:
        """End from a plain thread."""
        if self._has_ended:
            return
        engine: Engine[T] = self.own[0]
        if engine.hooks.are_async:
            run_in_loop_of(engine, self.end)
            return
        self._has_ended = True
        is_undone = False
        try:
            run_in_loop_of(engine, self.inner.close)
            run_in_loop_of(engine, self._hooks.end)
            is_undone = True
        finally:
            if self._give_back(is_undone=is_undone):
                engine.wait_changed_sync(self._slot, self._lease)

    def _give_back(self, *, is_undone: bool) -> bool:
        # Held leases would go on with a connection that is not theirs.
        self._outlasting = [holder.name for holder in self.inner.holders()]
        self._pool._engine, self._pool._life = self.own
        if self._outlasting or not is_undone:
            self.own[0].discard(self._slot)
            return False
        return self.own[0].give_back(self._slot)

    def tell(self, error: BaseException | None) -> None:
        """Raise what the test has to know, unless it fails anyway."""
        if error is not None:
            return
        if self._outlasting:
            raise PoolError(
                f"pool {self._pool.name!r}: the sandbox has ended within a lease of {', '.join(self._outlasting)}. All "
                "is rolled back, and the connection is closed. Let the test wait until the lease has ended"
            )
        if self._hooks.lost is not None:
            raise PoolError(f"pool {self._pool.name!r}: the sandbox was lost before its end") from self._hooks.lost


class _SandboxLife(Life[Any]):
    """Ends the sandbox before the pool is closed."""

    def __init__(self, swapped: _Swapped[Any]) -> None:
        super().__init__(swapped.inner._engine)
        self._swapped = swapped

    async def close(self) -> None:
        await self._swapped.end()
        await self._swapped.own[1].close()

    def close_sync(self) -> None:
        self._swapped.end_sync()
        self._swapped.own[1].close_sync()


def _check(pool: ConnectionPool[Any]) -> None:
    if isinstance(pool._life, _SandboxLife):
        raise PoolConfigError(
            f"pool {pool.name!r}: it is in a sandbox already, and has one at a time; leave that first"
        )
    if not pool._engine.state.is_open:
        raise PoolClosed(
            f"pool {pool.name!r}: a sandbox needs an open pool. Begin it within the lifespan of the application, as "
            "`async with started(app), sandbox(pool):` or `with TestClient(app), sandbox(pool):`"
        )


async def _call(engine: Engine[Any], hook: Callable[[], object]) -> None:
    """Call a hook as the pool does: `async def` here, `def` on a thread."""
    await _awaited(hook() if engine.hooks.are_async else await anyio.to_thread.run_sync(hook))


def _patience(engine: Engine[Any]) -> float | None:
    """Return how long a lease of the sandbox, or the sandbox itself, may wait for its connection."""
    timeout = engine.policy.timeout
    return None if timeout is None else max(timeout, TURN_WITHIN)


def _inner_of(pool: ConnectionPool[T], hooks: "_OfSandbox") -> ConnectionPool[Any]:
    """Make the pool of the sandbox, whose one resource has a transaction."""
    engine = pool._engine
    policy = engine.policy
    inner = ConnectionPool[Any](
        hooks,
        name=policy.name,
        limit=1,
        timeout=_patience(engine),
        max_waiting=policy.max_waiting,
        max_hold=policy.max_hold,
        hook_timeout=policy.hook_timeout,
        close_timeout=min(policy.close_timeout, END_WITHIN),
        overload="queue",
        debug=policy.debug,
        clock=engine.clock,
    )
    if engine._usage is not None:
        inner.count_by_route()
    for listener in engine.executor.listeners._all:
        inner.add_listener(listener)
    return inner


class _OfSandbox(ResourceManager[Any]):
    """Passes the hooks of the inner pool on to the manager of the sandbox."""

    def __init__(self, manager: ResourceManager[Any], resource: Any) -> None:
        self._manager = manager
        self._resource = resource
        self._is_used = False
        self.lost: Exception | None = None  # why no lease is possible any more

    def _resume(self) -> Any:
        """Undo what a lease has left that was discarded; the first time there is none."""
        if not self._is_used:
            self._is_used = True
            return None
        return self._manager.create()

    def lend(self, resource: Any, loan: Loan) -> Any:
        return self._manager.lend(resource.resource, loan)

    def refuse_prepare(self) -> str | None:
        return self._manager.refuse_prepare()

    async def end(self) -> None:
        """End the sandbox, where rolling back is not enough."""
        await _awaited(getattr(self._manager, "end", _nothing)())


def _nothing() -> None: ...


class _AsyncOfSandbox(_OfSandbox):
    async def create(self) -> _Turn:
        try:
            await _awaited(self._resume())
        except Exception as error:
            self.lost = error
            raise
        return _Turn(self._resource)

    async def change(self, resource: _Turn) -> None:
        await _awaited(self._manager.change(resource.resource))

    async def change_and_tell(self, resource: _Turn) -> list[str]:
        return await _awaited(telling(self._manager)(resource.resource)) or []

    async def prepared(self, resource: Any) -> None:
        await _awaited(self._manager.prepared(resource))


class _SyncOfSandbox(_OfSandbox):
    def create(self) -> _Turn:
        try:
            self._resume()
        except Exception as error:
            self.lost = error
            raise
        return _Turn(self._resource)

    def change(self, resource: _Turn) -> None:
        self._manager.change(resource.resource)

    def change_and_tell(self, resource: _Turn) -> list[str]:
        return telling(self._manager)(resource.resource) or []

    def prepared(self, resource: Any) -> None:
        self._manager.prepared(resource)


async def _awaited(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result
