"""Wiring: checks at start-up that an application's routes fit its pools.

It reads routes as FastAPI and Starlette store them, and skips what it does not recognise:
then the same error comes with the first request.
"""

import inspect
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from starlette.routing import Host, Mount, WebSocketRoute

from ..errors import PoolConfigError, PoolError
from ..pool import ConnectionPool
from .dependencies import LeaseUntilResponse, Provider
from .pools import Scope
from .prepared import PreparedLease
from .request import runs_in_loop

# How long to wait for the connection that shows whether its settings last, in seconds.
CONNECT_WITHIN = 5.0


class Use(NamedTuple):
    """Where a route uses a provider."""

    provider: Provider
    user: Any  # the call that gets what it provides
    outlives: Any  # the dependency on the way to it that FastAPI leaves after the response, if any
    prepare: Any = None
    precedes: bool = False  # whether a `prepare` asks for it, which comes after it


def check_dependencies(app: Any, scope: Scope) -> dict[ConnectionPool[Any], str]:
    """Check that each route finds its pools.

    Args:
        app: The application.
        scope: The lifespan's scope, whose state has the pools that were opened.

    Returns:
        The pools whose leases a route prepares, each with the path of one, for `check_prepared`.

    Raises:
        PoolConfigError: If a pool that a route asks for does not exist or is not open, or a
            dependency with yield outlives its lease.
    """
    prepared: dict[ConnectionPool[Any], str] = {}
    for path, endpoint, used in providers_of(app):
        options: dict[str, str] = {}
        prepares: dict[str, Any] = {}
        for provider, user, outlives, prepare, precedes in used:
            if provider.kind != "Leased":
                _find(path, provider, scope)
                continue
            if outlives is not None and isinstance(provider, LeaseUntilResponse):
                raise _outlives(path, outlives)
            pool = _find(path, provider, scope)
            if pool.status != "open":
                msg = (
                    f"Leased at {path}: pool {pool.name!r} is not open ({pool.status}), since nothing has opened it. "
                    "Pass it to install_pools(app, ...) or to pool_lifespan(...)"
                )
                raise PoolConfigError(msg)
            if user is endpoint and pool.belongs_to_loop and not runs_in_loop(endpoint):
                raise _useless(path, endpoint, pool.name)
            if options.setdefault(pool.name, provider.options) != provider.options:
                raise _conflict(path, pool.name, options[pool.name], provider.options)
            if not precedes and prepares.setdefault(pool.name, prepare) != prepare:
                raise _two_prepares(path, pool.name, prepares[pool.name], prepare)
            if prepare is not None:
                prepared[pool] = path
    return prepared


async def check_prepared(pools: dict[ConnectionPool[Any], str]) -> None:
    """Check that what a route sets on a resource ends with its lease.

    It connects, since only a connection shows whether there is a pooler between. A back-end that cannot be reached now
    is asked again before the first request is prepared.

    Raises:
        PoolConfigError: If the settings of one request would be seen by the next.
    """
    for pool, path in pools.items():
        with suppress(PoolError):
            async with pool.lease(timeout=CONNECT_WITHIN, holder="start-up"):
                pass
        if (reason := pool.refuses_prepare) is not None:
            msg = f"Leased at {path}: pool {pool.name!r} is leased with prepare, which is refused: {reason}"
            raise PoolConfigError(msg)


def _find(path: str, provider: Provider, scope: Scope) -> ConnectionPool[Any]:
    try:
        return provider.resolve(scope)
    except PoolConfigError as error:
        msg = f"{provider.kind} at {path}: {error}"
        raise PoolConfigError(msg) from None


def _outlives(path: str, dependency: Any) -> PoolConfigError:
    name = _name(dependency)
    return PoolConfigError(
        f"Leased at {path}: {name} goes on after its yield when the resource has been given back already. "
        f'Write Leased(..., scope="request") in {name}, or Depends({name}, scope="function") where it is used'
    )


def _useless(path: str, endpoint: Any, pool: str) -> PoolConfigError:
    name = _name(endpoint)
    return PoolConfigError(
        f"Leased at {path}: {name} is a `def` and runs on a worker thread, where a resource of pool {pool!r} is of no "
        f"use: its hooks are async, so it belongs to the event loop. Write `async def {name}`, or give the pool hooks "
        "and a driver that are not async"
    )


def _conflict(path: str, pool: str, *options: str) -> PoolConfigError:
    said = " and ".join(each or "none" for each in options)
    return PoolConfigError(
        f"Leased at {path}: the route leases from pool {pool!r} with {said}, but a request holds one lease a pool, "
        "which waits once. Wherever this route leases from it, write the same timeout, priority and on_disconnect"
    )


def _two_prepares(path: str, pool: str, *prepares: Any) -> PoolConfigError:
    said = " and ".join("no prepare" if each is None else f"prepare={_name(each)}" for each in prepares)
    return PoolConfigError(
        f"Leased at {path}: the route leases from pool {pool!r} with {said}, but a request holds one lease a pool, "
        "which is prepared once. Wherever this route leases from it, write the same prepare"
    )


def _name(call: Any) -> str:
    return str(getattr(call, "__name__", type(call).__name__))


def hidden_routes(app: Any, paths: Collection[str]) -> list[str]:
    """Find routes that requests never reach, because other endpoints answer at their paths.

    Args:
        app: The application.
        paths: The paths of these endpoints.

    Returns:
        The paths that are also routes of the application; patterns that only match one are left out.
    """
    found = (path for path, route, _ in _routes(app) if not isinstance(route, WebSocketRoute))
    return sorted({path for path in found if path in paths or path.removesuffix("/") in paths})


def providers_of(app: Any) -> Iterator[tuple[str, Any, list[Use]]]:
    """Yield each route that uses providers, as its path, its endpoint and its uses."""
    for path, route, overrides in _routes(app):
        found: list[Use] = []
        root = getattr(route, "dependant", None)
        dependants: list[tuple[Any, Any, Any, bool]] = [(root, getattr(root, "call", None), None, False)]
        while dependants:
            dependant, user, outlives, precedes = dependants.pop()
            by = dependant.call if isinstance(getattr(dependant, "call", None), PreparedLease) else None
            for inner in getattr(dependant, "dependencies", ()):
                if inner.call in overrides:
                    continue
                is_prepared = by is not None and inner.call == by.lease
                comes_first = precedes or (by is not None and not is_prepared)
                if isinstance(inner.call, Provider):
                    prepare = by.prepare if by is not None and is_prepared else None
                    found.append(Use(inner.call, user, outlives, prepare, comes_first))
                goes_on = _yields(inner.call) and getattr(inner, "scope", None) != "function"
                used_by = user if isinstance(inner.call, PreparedLease) else inner.call
                dependants.append((inner, used_by, inner.call if goes_on else outlives, comes_first))
        if found:
            yield path, getattr(root, "call", None), found


def _yields(call: Any) -> bool:
    return any(
        inspect.isgeneratorfunction(kind) or inspect.isasyncgenfunction(kind)
        for kind in (inspect.unwrap(call), getattr(call, "__call__", None))  # noqa: B004 - a class's own
    )


def _routes(app: Any, prefix: str = "") -> Iterator[tuple[str, Any, Collection[Any]]]:
    """Yield each route with its path and the dependencies that are overridden there."""
    overrides = getattr(app, "dependency_overrides", ())
    for kept in getattr(app, "routes", ()):
        for route in _of_router(kept):
            path = f"{prefix}{getattr(route, 'path', '')}"
            if isinstance(route, (Mount, Host)):
                yield from _routes(route.app if hasattr(route.app, "routes") else route, path)
            else:
                yield path, route, overrides


def _of_router(kept: Any) -> Iterator[Any]:
    """Yield a route itself, or the routes of an included router, which newer versions of FastAPI store as one."""
    if hasattr(kept, "effective_route_contexts"):
        for context in kept.effective_route_contexts():
            yield getattr(context, "starlette_route", None) or context
    else:
        yield kept
