"""pool_lifespan and install_pools: pools that open and close with their application."""

import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import anyio
from fastapi import FastAPI
from starlette.applications import Starlette

from ..errors import PoolConfigError
from ..pool import ConnectionPool
from ..stats import Observable
from .authorization import Authorize
from .endpoints import Details
from .middleware import PoolMiddleware
from .pools import STATE_PREFIX, checked_pools, two_of_one_name

Lifespan = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any]]]

OwnLifespan = Callable[[Any], AbstractAsyncContextManager[None]] | Lifespan

# The pools of each running application, by its identity and their name: lifespans of routers do not see each other.
_RUNNING: dict[tuple[int, str], Observable] = {}


def pool_lifespan(*pools: Observable, lifespan: OwnLifespan | None = None) -> Lifespan:
    """Make a lifespan that opens pools before the application starts and closes them after it ends.

    Write `FastAPI(lifespan=pool_lifespan(db, cache, lifespan=own))`. It works for routers too.

    Args:
        pools: The pools, opened in this order and closed all at the same time. The application
            itself opens and closes observed ones.
        lifespan: The application's own lifespan, run inside: it may use the pools.

    Returns:
        A lifespan. It yields the state of the application's own one and the pools, for `Leased("name")`.

    Raises:
        PoolConfigError: If two pools have one name, there is no pool, or `lifespan` is no lifespan.
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
    """Close pools at the same time, so that a shutdown takes only as long as the slowest."""
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


def running_pools(app: object) -> list[Observable]:
    """Return the pools of an application whose lifespan runs."""
    return [pool for (key, _), pool in _RUNNING.items() if key == id(app)]


def _check_pools(pools: tuple[Observable, ...], write: str) -> None:
    if not pools:
        msg = f"expected pools, got none; write {write}"
        raise PoolConfigError(msg)
    checked_pools(pools, f"{write}, all else by keyword")


def install_pools(
    app: FastAPI,
    *pools: Observable,
    optional: Iterable[Observable] = (),
    prefix: str = "/pool",
    details: Details | None = None,
    authorize: Authorize | None = None,
    control: Authorize | None = None,
    probe_max_age: float = 5.0,
    probe_timeout: float = 2.0,
    service: str | None = None,
) -> None:
    """Give an application its pools: lifespan, leases per request, endpoints.

    Call it before the application starts. It puts `pool_lifespan` around the application's own
    lifespan, and adds `PoolMiddleware`.

    Args:
        app: The outermost application: the lifespan of a mounted one never runs. Call this
            right after `FastAPI(...)`: middleware that is added later then wraps it, and
            guards its endpoints too.
        pools: The pools, observed ones among them.
        optional: More pools, which the application can serve without, such as a cache: if one of
            these fails, /pool/health warns, and only /pool/health/{name} fails.
        prefix: Where /health and /metrics are.
        details: Which requests may see why a pool is not healthy; see `PoolMiddleware`.
        authorize: Says whether a request may see details, /pool/leases and the page at /pool/; see `PoolMiddleware`.
        control: Says whether such a request may also expire, suspend, resume and resize pools; see `PoolMiddleware`.
        probe_max_age: How old the last sign of life of a back-end may be, in seconds.
        probe_timeout: How long a health check waits for a back-end, in seconds.
        service: A name by which the workers of one service find each other; see `PoolMiddleware`.

    Raises:
        PoolConfigError: If two pools have one name, the options contradict each other, or
            the application has started.
    """
    if not isinstance(app, Starlette):
        msg = f"install_pools takes the application first, as install_pools(app, db); got {type(app).__name__}"
        raise PoolConfigError(msg)
    optional = checked_pools(optional, "install_pools(app, db, optional=[cache])")
    _check_pools((*pools, *optional), "install_pools(app, db, cache)")
    if app.middleware_stack is not None:
        msg = "install_pools must be called before the application starts, right after FastAPI(...)"
        raise PoolConfigError(msg)
    options: dict[str, Any] = {
        "pools": pools,
        "optional": optional,
        "prefix": prefix,
        "details": details,
        "authorize": authorize,
        "control": control,
        "probe_max_age": probe_max_age,
        "probe_timeout": probe_timeout,
        "service": service,
    }
    PoolMiddleware(app, **options)  # raises here, not at start-up, if an option is wrong
    app.router.lifespan_context = pool_lifespan(*pools, *optional, lifespan=app.router.lifespan_context)
    app.add_middleware(PoolMiddleware, **options)
