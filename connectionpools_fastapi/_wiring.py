"""Wiring: whether an application's routes fit its pools, found out when it starts.

It reads routes as FastAPI and Starlette keep them. What it does not recognise it passes
over: then the same error comes with the first request.
"""

import inspect
from collections.abc import Collection, Iterator
from typing import Any

from starlette.routing import Host, Mount, WebSocketRoute

from ._providers import LeaseUntilResponse, Provider
from ._request import Scope
from .errors import PoolConfigError


def check_dependencies(app: Any, scope: Scope) -> None:
    """See that each route finds its pools.

    Args:
        app: The application.
        scope: The lifespan's scope, whose state has the pools that were opened.

    Raises:
        PoolConfigError: If a pool that a route asks for does not exist or is not open, or a
            dependency with yield outlives its lease.
    """
    for path, provider, outlives in _providers(app):
        if outlives is not None and isinstance(provider, LeaseUntilResponse):
            name = getattr(outlives, "__name__", type(outlives).__name__)
            msg = (
                f"Leased at {path}: {name} goes on after its yield when the resource has been given back already. "
                f'Write Leased(..., scope="request") in {name}, or Depends({name}, scope="function") where it is used'
            )
            raise PoolConfigError(msg)
        try:
            pool = provider.resolve(scope)
        except PoolConfigError as error:
            msg = f"{provider.kind} at {path}: {error}"
            raise PoolConfigError(msg) from None
        if provider.kind == "Leased" and pool.status != "open":
            msg = (
                f"Leased at {path}: pool {pool.name!r} is not open ({pool.status}), since nothing has opened it. "
                "Pass it to install_pools(app, ...) or to pool_lifespan(...)"
            )
            raise PoolConfigError(msg)


def hidden_routes(app: Any, paths: Collection[str]) -> list[str]:
    """Find routes that will not be reached, because others answer at their paths.

    Args:
        app: The application.
        paths: Where others answer.

    Returns:
        The paths among them that are routes of the application; patterns that merely match are not.
    """
    found = (path for path, route, _ in _routes(app) if not isinstance(route, WebSocketRoute))
    return sorted({path for path in found if path.removesuffix("/") in paths})


def _providers(app: Any) -> Iterator[tuple[str, Provider, Any]]:
    """Yield each provider with its path and the dependency that uses it and is left after the response, if any."""
    for path, route, overrides in _routes(app):
        dependants: list[tuple[Any, Any]] = [(getattr(route, "dependant", None), None)]
        while dependants:
            dependant, outlives = dependants.pop()
            for inner in getattr(dependant, "dependencies", ()):
                if inner.call in overrides:
                    continue
                if isinstance(inner.call, Provider):
                    yield path, inner.call, outlives
                goes_on = _yields(inner.call) and getattr(inner, "scope", None) != "function"
                dependants.append((inner, inner.call if goes_on else outlives))


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
    """Yield a route itself, or those of an included router, which newer versions of FastAPI keep in one piece."""
    if hasattr(kept, "effective_route_contexts"):
        for context in kept.effective_route_contexts():
            yield getattr(context, "starlette_route", None) or context
    else:
        yield kept
