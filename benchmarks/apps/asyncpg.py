"""On asyncpg."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg  # type: ignore[import-untyped] # has no types
from fastapi import FastAPI

from benchmarks.apps.common import CONNECTIONS, Lend, leasing, limit, yielding
from connectionpools_fastapi.adapters._asyncpg_reset import PREPARED_RESET, RESET_AND_PREPARE
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager


async def ask(connection: Any) -> Any:
    return await connection.fetchval("SELECT 1")


def leased(dsn: str) -> FastAPI:
    return leasing(AsyncpgManager(dsn), ask)


def without_pool(dsn: str) -> FastAPI:
    return limit(AsyncpgManager(dsn), ask)


def own_pool(dsn: str, **options: Any) -> FastAPI:
    @asynccontextmanager
    async def run() -> AsyncIterator[Lend]:
        async with asyncpg.create_pool(dsn, min_size=CONNECTIONS, max_size=CONNECTIONS, **options) as pool:
            yield pool.acquire

    return yielding(run, ask)


def own_pool_same_reset(dsn: str) -> FastAPI:
    async def init(connection: Any) -> None:
        await connection.execute(RESET_AND_PREPARE)

    async def reset(connection: Any) -> None:
        await connection.execute(PREPARED_RESET)

    return own_pool(dsn, init=init, reset=reset)
