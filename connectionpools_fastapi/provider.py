"""All that knows FastAPI: Leased and Pooled, pool_lifespan and install_pools."""

import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Literal, TypeVar, overload

import anyio
from fastapi import Depends, FastAPI
from starlette.applications import Starlette

from ._providers import LeaseUntilExit, LeaseUntilResponse, PoolItself
from ._request import STATE_PREFIX, only_observed
from .errors import PoolConfigError
from .middleware import Authorize, Details, PoolMiddleware, checked_pools, two_of_one_name
from .pool import ConnectionPool
from .stats import Observable

T = TypeVar("T")
LeaseScope = Literal["function", "request"]
Lifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any]]]
OwnLifespan = Callable[[Any], AbstractAsyncContextManager[None]] | Lifespan

# The pools of each running application (by identity) and name: a router's lifespan does not see the others.
_RUNNING: dict[tuple[int, str], Observable] = {}


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
        # That scope is what FastAPI would find out by itself for each request anew.
        return Depends(LeaseUntilResponse(pool), scope="request")
    if scope not in ("function", "request"):
        msg = f'Leased: scope={scope!r} is unknown; write scope="function", scope="request" or leave it out'
        raise PoolConfigError(msg)
    # Each has an exit of its own, also where another `Leased` of this pool has been called before.
    return Depends(LeaseUntilExit(pool), use_cache=False, scope=scope)


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
    if isinstance(pool, Observable) and not isinstance(pool, (ConnectionPool, type)):
        raise only_observed(pool)
    if not isinstance(pool, (ConnectionPool, str)) or pool == "":
        msg = f'{what} takes a ConnectionPool or the name of one, as {what}(db) or {what}("db"); got {pool!r}'
        raise PoolConfigError(msg)


def pool_lifespan(*pools: Observable, lifespan: OwnLifespan | None = None) -> Lifespan:
    """Make a lifespan that opens pools before the application starts and closes them after it ends.

    Write `FastAPI(lifespan=pool_lifespan(db, cache, lifespan=own))`. It works for routers too.

    Args:
        pools: The pools, opened in this order and closed all at the same time. Observed ones
            are left to whoever opens and closes them.
        lifespan: The application's own, run inside: it may use the pools.

    Returns:
        A lifespan. It yields the own one's state and the pools, for `Leased("name")`.

    Raises:
        PoolConfigError: If two pools have one name, there is none, or `lifespan` is no lifespan.
    """
    _check_pools(pools, "pool_lifespan(db, cache)")
    if lifespan is not None and (
        not callable(lifespan) or inspect.isasyncgenfunction(lifespan) or inspect.iscoroutinefunction(lifespan)
    ):
        msg = (
            "pool_lifespan: lifespan=... takes a function decorated with @asynccontextmanager, as FastAPI(lifespan=...)"
        )
        raise PoolConfigError(msg)

    @asynccontextmanager
    async def run(app: Any) -> AsyncIterator[Mapping[str, Any]]:
        async with AsyncExitStack() as stack:
            for pool in pools:
                stack.enter_context(_claim_name(app, pool))
            opened: list[ConnectionPool[Any]] = []
            stack.push_async_callback(_close_all, opened)
            for pool in pools:
                if isinstance(pool, ConnectionPool):
                    await pool.open()
                    opened.append(pool)
            own = await stack.enter_async_context(lifespan(app)) if lifespan is not None else None
            yield {**(own or {}), **{STATE_PREFIX + pool.name: pool for pool in pools}}

    return run


async def _close_all(pools: list[ConnectionPool[Any]]) -> None:
    """Close pools side by side, so that a shutdown takes as long as the slowest and not as all together."""
    async with anyio.create_task_group() as group:
        for pool in pools:
            group.start_soon(pool.close)


@contextmanager
def _claim_name(app: object, pool: Observable) -> Iterator[None]:
    """Keep other lifespans of an application from opening another pool of this name."""
    key = (id(app), pool.name)
    if _RUNNING.get(key, pool) is not pool:
        raise two_of_one_name(pool)
    _RUNNING[key] = pool
    try:
        yield
    finally:
        _RUNNING.pop(key, None)


def _check_pools(pools: tuple[Observable, ...], write: str) -> None:
    if not pools:
        msg = f"expected pools, got none; write {write}"
        raise PoolConfigError(msg)
    checked_pools(pools, f"{write}, all else by keyword")


def install_pools(
    app: FastAPI,
    *pools: Observable,
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
        app: The outermost application: a mounted one's lifespan never runs. Right after
            `FastAPI(...)` is the best place to call this: middleware that is added later is
            then around it, and guards its endpoints as well.
        pools: The pools, observed ones among them.
        prefix: Where /health and /metrics are.
        details: Who may see why a pool is not well; see `PoolMiddleware`.
        authorize: Says who is authorized to; see `PoolMiddleware`.
        probe_max_age: How old the last sign of life of a back-end may be, in seconds.
        probe_timeout: How long a health check waits for a back-end, in seconds.

    Raises:
        PoolConfigError: If two pools have one name, the options contradict each other, or
            the application has started.
    """
    if not isinstance(app, Starlette):
        msg = f"install_pools takes the application first, as install_pools(app, db); got {type(app).__name__}"
        raise PoolConfigError(msg)
    _check_pools(pools, "install_pools(app, db, cache)")
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
    app.router.lifespan_context = pool_lifespan(*pools, lifespan=app.router.lifespan_context)
    app.add_middleware(PoolMiddleware, **options)
