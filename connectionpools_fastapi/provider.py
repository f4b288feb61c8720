"""All that knows FastAPI: Leased and Pooled, pool_lifespan and install_pools."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Literal, TypeVar, overload

from fastapi import Depends, FastAPI
from starlette.requests import HTTPConnection

from ._request import STATE_PREFIX, RequestLeases, Scope, find_pool
from .errors import PoolConfigError
from .middleware import Authorize, Details, PoolMiddleware, refuse_same_names
from .pool import ConnectionPool

T = TypeVar("T")
LeaseScope = Literal["function", "request"]
Lifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]


class _Provider:
    """A dependency that stands for a pool: equal to each other one of its kind for that pool.

    Equality is what makes FastAPI call it once a request, and `dependency_overrides` find it.
    """

    def __init__(self, pool: ConnectionPool[Any] | str) -> None:
        self._pool = pool

    def _resolve(self, scope: Scope) -> ConnectionPool[Any]:
        return find_pool(scope, self._pool) if isinstance(self._pool, str) else self._pool

    def _key(self) -> object:
        return self._pool

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Provider) and self._kind() is other._kind() and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((self._kind(), self._key()))

    def _kind(self) -> type["_Provider"]:
        return type(self)


class LeaseUntilResponse(_Provider):
    """Leases for a request; PoolMiddleware gives back."""

    def _kind(self) -> type[_Provider]:
        return LeaseUntilResponse  # also for the others below: one override serves all three

    async def __call__(self, connection: HTTPConnection) -> Any:
        """Lease for this request, once."""
        leases = RequestLeases.of(connection.scope)
        pool = self._resolve(connection.scope)
        if not leases.ends_with_response:
            msg = (
                f"pool {pool.name!r}: nothing here gives the resource back. Call install_pools(app, pool), or "
                'app.add_middleware(PoolMiddleware), or write Leased(pool, scope="request")'
            )
            raise PoolConfigError(msg)
        return await leases.enter_until_response(pool, connection.scope)


class LeaseUntilExit(LeaseUntilResponse):
    """Leases for a request or a function; FastAPI's own exit gives back."""

    async def __call__(self, connection: HTTPConnection) -> AsyncIterator[Any]:  # type: ignore[override] # another kind of dependency
        """Lease until FastAPI leaves the dependency."""
        leases = RequestLeases.of(connection.scope)
        pool = self._resolve(connection.scope)
        resource = await leases.enter(pool, connection.scope)
        try:
            yield resource
        finally:
            leases.leave(pool)


class PoolItself(_Provider):
    """Provides the pool itself."""

    async def __call__(self, connection: HTTPConnection) -> ConnectionPool[Any]:
        """Return the pool."""
        return self._resolve(connection.scope)


@overload
def Leased(pool: ConnectionPool[T], scope: LeaseScope | None = None) -> T: ...
@overload
def Leased(pool: str, scope: LeaseScope | None = None) -> Any: ...
def Leased(pool: ConnectionPool[Any] | str, scope: LeaseScope | None = None) -> Any:  # noqa: N802 - as Depends
    """Declare that an endpoint or dependency needs a leased resource.

    Write `conn: Annotated[Connection, Leased(db)]`, in HTTP and WebSocket endpoints,
    `def` or `async def`. However many declarations, a request holds one lease a pool. It
    waits in the event loop, never on a worker thread.

    Args:
        pool: The pool, or its name, which is looked up among the pools that the lifespan opened.
        scope: When to give back. None: just before the last part of the response is sent
            (a stream keeps it to its end, background tasks do not have it any more);
            needs PoolMiddleware. "function" and "request": as FastAPI's own scopes for
            dependencies with yield, after the endpoint or after the whole request.

    Returns:
        A FastAPI dependency, typed as the resource that it provides.

    Raises:
        PoolConfigError: If `pool` or `scope` is neither of these.
    """
    _check_target("Leased", pool)
    if scope is None:
        return Depends(LeaseUntilResponse(pool))
    if scope not in ("function", "request"):
        msg = f'Leased: scope={scope!r} is unknown; write scope="function", scope="request" or leave it out'
        raise PoolConfigError(msg)
    return Depends(LeaseUntilExit(pool), scope=scope)


@overload
def Pooled(pool: ConnectionPool[T]) -> ConnectionPool[T]: ...
@overload
def Pooled(pool: str) -> Any: ...
def Pooled(pool: ConnectionPool[Any] | str) -> Any:  # noqa: N802 - as Depends
    """Declare that an endpoint needs the pool itself, to lease in short blocks or only sometimes.

    Write `pool: Annotated[ConnectionPool[Connection], Pooled("db")]`.

    Args:
        pool: The pool, or its name.

    Returns:
        A FastAPI dependency, typed as the pool that it provides.

    Raises:
        PoolConfigError: If `pool` is neither.
    """
    _check_target("Pooled", pool)
    return Depends(PoolItself(pool))


def _check_target(what: str, pool: object) -> None:
    if not isinstance(pool, (ConnectionPool, str)) or pool == "":
        msg = f'{what} takes a ConnectionPool or the name of one, as {what}(db) or {what}("db"); got {pool!r}'
        raise PoolConfigError(msg)


def pool_lifespan(*pools: ConnectionPool[Any], lifespan: Lifespan | None = None) -> Lifespan:
    """Make a lifespan that opens pools before the application starts and closes them after it ends.

    Write `FastAPI(lifespan=pool_lifespan(db, cache, lifespan=own))`. It works for routers too.

    Args:
        pools: The pools, opened in this order and closed in the reverse one.
        lifespan: The application's own, run inside: it may use the pools.

    Returns:
        A lifespan. It yields the own one's state and the pools, for `Leased("name")`.

    Raises:
        PoolConfigError: If two pools have one name.
    """
    refuse_same_names(pools)

    @asynccontextmanager
    async def run(app: Any) -> AsyncIterator[Mapping[str, Any]]:
        async with AsyncExitStack() as stack:
            for pool in pools:
                await stack.enter_async_context(pool)
            own = await stack.enter_async_context(lifespan(app)) if lifespan is not None else None
            yield {**(own or {}), **{STATE_PREFIX + pool.name: pool for pool in pools}}

    return run


def install_pools(
    app: FastAPI,
    *pools: ConnectionPool[Any],
    prefix: str = "/pool",
    details: Details = "never",
    authorize: Authorize | None = None,
    probe_max_age: float = 5.0,
    probe_timeout: float = 2.0,
) -> None:
    """Give an application its pools: lifespan, leases per request, endpoints.

    Call it before the application starts. It is `pool_lifespan` around the application's
    own lifespan, and `PoolMiddleware`.

    Args:
        app: The outermost application: a mounted one's lifespan never runs.
        pools: The pools.
        prefix: Where /health and /metrics are.
        details: Who may see why a pool is not well; see `PoolMiddleware`.
        authorize: Says who is authorized to; see `PoolMiddleware`.
        probe_max_age: How old the last sign of life of a back-end may be, in seconds.
        probe_timeout: How long a health check waits for a back-end, in seconds.

    Raises:
        PoolConfigError: If two pools have one name, the options contradict each other, or
            the application has started.
    """
    if not pools:
        msg = "install_pools(app, ...) needs the pools: install_pools(app, db)"
        raise PoolConfigError(msg)
    if app.middleware_stack is not None:
        msg = "install_pools must be called before the application starts, right after FastAPI(...)"
        raise PoolConfigError(msg)
    options: dict[str, Any] = {
        "pools": pools,
        "prefix": prefix,
        "details": details,
        "authorize": authorize,
        "probe_max_age": probe_max_age,
        "probe_timeout": probe_timeout,
    }
    PoolMiddleware(app, **options)  # says now what is wrong with the options, not at start-up
    app.router.lifespan_context = pool_lifespan(  # type: ignore[assignment] # Starlette's type wants no state
        *pools, lifespan=app.router.lifespan_context
    )
    app.add_middleware(PoolMiddleware, **options)
