"""A lease and one command on a real Redis and a real SQLite, beside the pools that are made for them."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiosqlite
from aiosqlitepool import SQLiteConnectionPool  # type: ignore[import-untyped] # has no types
from redis.asyncio import BlockingConnectionPool, Redis

from benchmarks.rounds import OURS, Benchmark, Measure, Rounds, throughput_of
from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi.adapters.aiosqlite import AiosqliteManager
from connectionpools_fastapi.adapters.redis import RedisManager
from tests.wheel_servers import redis

TASKS = 32
RESOURCES = 10
REDIS_POOL = "redis-py's BlockingConnectionPool"
SQLITE_POOL = "aiosqlitepool"

Use = Callable[[], Awaitable[Any]]


async def crowd(use: Use, each: int) -> float:
    """Let tasks use the resources; return the seconds for each use."""

    async def one() -> None:
        for _ in range(each):
            await use()

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(TASKS):
            group.create_task(one())
    return (time.perf_counter() - start) / (TASKS * each)


async def compete(rounds: Rounds, peers: Mapping[str, Use]) -> None:
    for figures in rounds:
        for name in rounds.in_any_order(peers):
            each = 5 * rounds.operations(name, TASKS) // TASKS
            figures["time"][name] = await crowd(peers[name], max(1, each))


def run_redis(rounds: Rounds) -> None:
    async def round_by_round(url: str) -> None:
        pool = ConnectionPool(RedisManager(url), limit=RESOURCES)
        own = BlockingConnectionPool.from_url(url, max_connections=RESOURCES)
        async with pool, Redis.from_pool(own) as client:

            async def ours() -> None:
                async with pool.lease() as connection:
                    await connection.get("key")

            await compete(rounds, {OURS: ours, REDIS_POOL: lambda: client.get("key")})

    with redis() as server:
        asyncio.run(round_by_round(server.url))


def run_sqlite(rounds: Rounds) -> None:
    async def round_by_round(path: Path) -> None:
        async def connect() -> Any:
            connection = await aiosqlite.connect(path)
            await connection.execute("PRAGMA journal_mode = WAL")
            return connection

        pool = ConnectionPool(AiosqliteManager(str(path)), limit=RESOURCES)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(pool)
            own = await stack.enter_async_context(SQLiteConnectionPool(connect, pool_size=RESOURCES))

            async def ours() -> None:
                async with pool.lease() as connection:
                    await connection.execute_fetchall("SELECT 1")

            async def theirs() -> None:
                connection: Any
                async with own.connection() as connection:
                    await connection.execute_fetchall("SELECT 1")

            await compete(rounds, {OURS: ours, SQLITE_POOL: theirs})

    with TemporaryDirectory() as folder:
        asyncio.run(round_by_round(Path(folder) / "benchmark.db"))


MEASURES = {"time": Measure("time of a lease with a command", "µs", 1e6)}
REDIS = Benchmark(
    title=f"GET on a real Redis, {TASKS} tasks on {RESOURCES} connections",
    run=run_redis,
    measures=MEASURES,
    claims=(throughput_of(REDIS_POOL),),
    budget=10,
    notes={
        REDIS_POOL: "as its client does it: a connection for the command alone",
        OURS: "RedisManager, reset after use",
    },
)
SQLITE = Benchmark(
    title=f"SELECT 1 on a real SQLite, {TASKS} tasks on {RESOURCES} connections",
    run=run_sqlite,
    measures=MEASURES,
    claims=(throughput_of(SQLITE_POOL),),
    budget=10,
    notes={SQLITE_POOL: "asks SELECT 1 at each lease, rolls back after it", OURS: "AiosqliteManager"},
)
