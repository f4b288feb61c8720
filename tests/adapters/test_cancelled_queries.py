"""Cancelled queries: the request that ends one at the server hits no query of a later lease."""

import asyncio
from contextlib import suppress
from typing import Any

import asyncpg  # type: ignore[import-untyped] # has no types
import psycopg
import pytest

from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager
from connectionpools_fastapi.adapters.psycopg import PsycopgManager

pytestmark = pytest.mark.anyio

LEASES = 150
QUERY_TAKES = 0.002  # seconds
QUERY = f"SELECT pg_sleep({QUERY_TAKES})"


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio only, as the drivers do."""
    return "asyncio"


@pytest.mark.parametrize("reset", ["session", "transaction"])
@pytest.mark.parametrize("manager", [AsyncpgManager, PsycopgManager])
async def test_cancel_hits_no_query_of_a_later_lease(postgres_url: str, manager: Any, reset: str) -> None:
    """Leases are cut off at all moments of a query, also just as it ends, and the next lease begins at once."""

    async def work() -> None:
        async with pool.lease() as connection:
            await connection.execute(QUERY)

    async with ConnectionPool(manager(postgres_url, reset=reset), limit=1, name="db") as pool:
        for number in range(LEASES):
            cut_off = asyncio.create_task(work())
            await asyncio.wait([cut_off], timeout=2 * QUERY_TAKES * number / LEASES)
            cut_off.cancel()
            with suppress(asyncio.CancelledError, asyncpg.QueryCanceledError, psycopg.errors.QueryCanceled):
                await cut_off
            await work()
        assert pool.stats().creates < LEASES / 10
