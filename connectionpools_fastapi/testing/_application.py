"""Helpers for the application of a test: other dependencies, and its lifespan."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from .._asgi.dependencies import LeaseUntilResponse
from .._asgi.startup_checks import providers_of
from ..pool import ConnectionPool


@contextmanager
def override_leased(app: Any, pool: ConnectionPool[Any] | str, provide: Callable[..., Any]) -> Iterator[None]:
    """Make `Leased(pool)` provide something else while the block runs; the pool is not used.

    Args:
        app: The FastAPI application under test.
        pool: The pool, for `Leased(pool)` and `Leased("its name")`; a name, for `Leased("its name")` only.
        provide: The dependency that FastAPI calls instead, as `lambda: FakeConnection()`.

    Yields:
        Nothing; the override ends with the block.
    """
    names = {pool, pool if isinstance(pool, str) else pool.name}
    used = {use.provider for _, _, found in providers_of(app) for use in found if use.provider.kind == "Leased"}
    keys = {provider for provider in used if provider[1] in names} | {LeaseUntilResponse(name) for name in names}
    before = {key: app.dependency_overrides[key] for key in keys if key in app.dependency_overrides}
    app.dependency_overrides.update(dict.fromkeys(keys, provide))
    try:
        yield
    finally:
        for key in keys:
            app.dependency_overrides.pop(key, None)
        app.dependency_overrides.update(before)


@asynccontextmanager
async def started(app: Starlette) -> AsyncIterator[ASGIApp]:
    """Run an application's lifespan around async tests, which `httpx.ASGITransport` does not do.

    Write `async with started(app) as served, AsyncClient(transport=ASGITransport(served)) as client`.

    Args:
        app: The application under test.

    Yields:
        The application with its lifespan's state, in which `Leased("name")` finds its pool.
    """
    async with app.router.lifespan_context(app) as state:

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": {**(state or {})}}, receive, send)

        yield serve
