"""Four pools of four connections, and a query of 20 ms at /; /queries says how many were begun."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import asyncpg  # type: ignore[import-untyped] # has no types
from fastapi import FastAPI
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.apps.common import Lend, leasing, yielding
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager

CONNECTIONS = 4
QUERY_TAKES = 0.02  # seconds
QUERY = f"SELECT pg_sleep({QUERY_TAKES}) IS NULL"

Make = Callable[[Callable[[Any], Any]], FastAPI]


def leased(dsn: str) -> FastAPI:
    return _counting(lambda ask: leasing(AsyncpgManager(dsn), ask, CONNECTIONS), lambda conn: conn.fetchval(QUERY))


def asyncpg_pool(dsn: str) -> FastAPI:
    @asynccontextmanager
    async def run() -> AsyncIterator[Lend]:
        async with asyncpg.create_pool(dsn, min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
            yield pool.acquire

    return _peer(run, lambda conn: conn.fetchval(QUERY))


def psycopg_pool(dsn: str) -> FastAPI:
    @asynccontextmanager
    async def run() -> AsyncIterator[Lend]:
        async with AsyncConnectionPool(dsn, min_size=CONNECTIONS, max_size=CONNECTIONS) as pool:
            yield pool.connection

    async def ask(conn: Any) -> None:
        await (await conn.execute(QUERY)).fetchone()

    return _peer(run, ask)


def sqlalchemy(dsn: str) -> FastAPI:
    @asynccontextmanager
    async def run() -> AsyncIterator[Lend]:
        url = dsn.replace("postgresql:", "postgresql+asyncpg:", 1)
        engine = create_async_engine(url, pool_size=CONNECTIONS, max_overflow=0)
        yield engine.connect
        await engine.dispose()

    async def ask(conn: Any) -> None:
        (await conn.execute(text(QUERY))).scalar_one()

    return _peer(run, ask)


def _peer(run: Callable[[], AbstractAsyncContextManager[Lend]], ask: Callable[[Any], Any]) -> FastAPI:
    return _counting(lambda counted: yielding(run, counted), ask)


def _counting(make: Make, ask: Callable[[Any], Any]) -> FastAPI:
    queries = 0

    async def count_and_ask(conn: Any) -> None:
        nonlocal queries
        queries += 1
        await ask(conn)

    app = make(count_and_ask)

    @app.get("/queries")
    async def count() -> int:
        return queries

    return app
