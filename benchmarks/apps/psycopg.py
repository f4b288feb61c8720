"""On psycopg."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from benchmarks.apps.common import CONNECTIONS, Lend, leasing, limit, yielding
from connectionpools_fastapi.adapters.psycopg import PsycopgManager


async def ask(connection: AsyncConnection[tuple[int]]) -> int | None:
    row = await (await connection.execute("SELECT 1")).fetchone()
    return row[0] if row else None


def leased(dsn: str) -> FastAPI:
    return leasing(PsycopgManager(dsn), ask)


def without_pool(dsn: str) -> FastAPI:
    return limit(PsycopgManager(dsn), ask)


def own_pool(dsn: str, **options: Any) -> FastAPI:
    @asynccontextmanager
    async def run() -> AsyncIterator[Lend]:
        async with AsyncConnectionPool(dsn, min_size=CONNECTIONS, max_size=CONNECTIONS, **options) as pool:
            yield pool.connection

    return yielding(run, ask)


def own_pool_same_reset(dsn: str) -> FastAPI:
    async def reset(connection: AsyncConnection[Any]) -> None:
        await connection.set_autocommit(True)
        await connection.execute("DISCARD ALL")
        await connection.set_autocommit(False)

    # With statements that psycopg believes to be prepared still, it fails.
    return own_pool(dsn, reset=reset, kwargs={"prepare_threshold": None})
