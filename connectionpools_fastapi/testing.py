"""What an application's own tests need."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI

from .pool import ConnectionPool
from .provider import LeaseUntilResponse


@contextmanager
def override_leased(app: FastAPI, pool: ConnectionPool[Any] | str, provide: Callable[..., Any]) -> Iterator[None]:
    """Let `Leased(pool)` provide something else while the block runs; the pool is not touched.

    Args:
        app: The application under test.
        pool: The pool, or its name where the application writes `Leased("name")`.
        provide: What FastAPI calls instead: any dependency, as `lambda: FakeConnection()`.

    Yields:
        Nothing; the override ends with the block.
    """
    key = LeaseUntilResponse(pool)
    before = app.dependency_overrides.get(key)
    app.dependency_overrides[key] = provide
    try:
        yield
    finally:
        if before is None:
            del app.dependency_overrides[key]
        else:
            app.dependency_overrides[key] = before
