"""Pools of psycopg's connections, and what the tests ask of these."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from psycopg import AsyncConnection, AsyncCursor, BaseConnection
from psycopg.rows import tuple_row

from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi.adapters.psycopg import PsycopgManager
from tests.support import check

Connection = AsyncConnection[Any]
Pool = ConnectionPool[Connection]
Act = Callable[[], Awaitable[Any]]

WAIT = 10.0  # for what comes soon, or the test fails

each_reset = pytest.mark.parametrize("reset", ["session", "transaction"])


@pytest.fixture(name="anyio_backend")
def fixture_anyio_backend() -> str:
    """Psycopg knows asyncio only."""
    return "asyncio"


@asynccontextmanager
async def pool_of(url: Any, limit: int = 1, check_after: float = 1.0, **options: Any) -> AsyncIterator[Pool]:
    """Open a pool."""
    manager = PsycopgManager(url, **options)
    async with ConnectionPool(manager, limit=limit, check_after=check_after, name="db") as pool:
        yield pool
        check(pool)


def pid(connection: BaseConnection[Any]) -> int:
    return connection.pgconn.backend_pid


async def value(connection: Connection, query: Any, *args: Any) -> Any:
    cursor = AsyncCursor(connection, row_factory=tuple_row)
    row = await (await cursor.execute(query, args)).fetchone()
    return None if row is None else row[0]
