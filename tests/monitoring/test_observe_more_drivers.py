"""Observe: the pools of redis-py, aiomysql and asyncmy tell what they know, and are never queued for."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiomysql  # type: ignore[import-untyped] # has no types
import anyio
import asyncmy  # type: ignore[import-untyped, unused-ignore]
import pytest
import redis
import redis.asyncio

from benchmarks.faults.proxy import Proxy
from connectionpools_fastapi import observe
from connectionpools_fastapi._monitoring.health import examine
from tests.mariadb_servers import MariadbServer
from tests.wheel_servers import PASSWORD

pytestmark = pytest.mark.anyio

WAIT = 20.0  # for what comes soon, or the test fails


@pytest.fixture
def anyio_backend() -> str:
    """The drivers are of asyncio."""
    return "asyncio"


REDIS_ASYNC = (redis.asyncio.ConnectionPool, redis.asyncio.BlockingConnectionPool)
REDIS_THREADS = (redis.ConnectionPool, redis.BlockingConnectionPool)


@asynccontextmanager
async def redis_pool(kind: Any, url: str, **options: Any) -> AsyncIterator[Any]:
    pool = kind.from_url(url, **options)
    try:
        yield pool
    finally:
        closing = pool.disconnect()
        if closing is not None:
            await closing


async def take(pool: Any) -> Any:
    return await awaited(pool.get_connection())


async def awaited(result: Any) -> Any:
    return await result if asyncio.iscoroutine(result) else result


@pytest.mark.parametrize("kind", [*REDIS_ASYNC, *REDIS_THREADS], ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
async def test_redis_pool_tells_its_numbers_and_is_not_queued_for(kind: Any, redis_url: str) -> None:
    async with redis_pool(kind, redis_url, max_connections=2) as pool:
        observed = observe(pool, name="cache")
        found = await examine(observed, max_age=0, timeout=WAIT)
        assert (found.verdict, found.stats.limit, found.stats.free, found.stats.taken) == ("pass", 2, 1, 0)
        one = await take(pool)
        found = await examine(observed, max_age=0, timeout=WAIT)
        assert (found.verdict, found.stats.taken) == ("pass", 1)
        two = await take(pool)
        with anyio.fail_after(WAIT / 2):
            found = await examine(observed, max_age=0, timeout=WAIT)
        assert (found.verdict, found.stats.free, found.stats.taken) == ("warn", 0, 2)
        assert found.reason.startswith("saturated: 2 of 2 taken")
        for connection in (one, two):
            await awaited(pool.release(connection))
        assert (observed.stats().free, observed.stats().taken) == (2, 0)


@pytest.mark.parametrize("kind", [REDIS_ASYNC[0], REDIS_THREADS[0]], ids=lambda kind: kind.__module__)
async def test_redis_that_is_gone_fails_until_it_is_back(kind: Any, redis_url: str) -> None:
    async with Proxy(urlsplit(redis_url).port or 6379) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        async with redis_pool(kind, url, max_connections=2**31) as pool:  # the default of older versions
            observed = observe(pool, name="cache")
            assert observed.stats().limit is None
            await comes(observed, "pass")
            proxy.refuse()
            proxy.reset()
            await comes(observed, "fail")
            assert str(proxy.port) not in repr(observed.stats())
            proxy.resume()
            await comes(observed, "pass")


async def comes(pool: Any, verdict: str) -> None:
    """Ask anew until the verdict is this one; or fail."""
    with anyio.fail_after(WAIT):
        while (await examine(pool, max_age=0, timeout=1)).verdict != verdict:  # noqa: ASYNC110 - it is to be asked
            await anyio.sleep(0.01)


@asynccontextmanager
async def mysql_pool(module: Any, port: int) -> AsyncIterator[Any]:
    pool = await module.create_pool(
        host="127.0.0.1", port=port, user="app", password=PASSWORD, db="test", minsize=0, maxsize=2
    )
    try:
        yield pool
    finally:
        pool.terminate()
        await pool.wait_closed()


each_mysql = pytest.mark.parametrize("module", [aiomysql, asyncmy], ids=lambda module: module.__name__)


@pytest.mark.needs_program("mariadbd")
@each_mysql
async def test_mysql_pool_tells_its_numbers_and_is_not_queued_for(module: Any, mariadb_server: MariadbServer) -> None:
    async with mysql_pool(module, mariadb_server.port) as pool:
        observed = observe(pool, name="db")
        found = await examine(observed, max_age=0, timeout=WAIT)
        assert (found.verdict, found.stats.limit, found.stats.free, found.stats.taken) == ("pass", 2, 1, 0)
        async with pool.acquire(), pool.acquire():
            with anyio.fail_after(WAIT / 2):
                found = await examine(observed, max_age=0, timeout=WAIT)
            assert (found.verdict, found.stats.free, found.stats.taken) == ("warn", 0, 2)
        assert (observed.stats().free, observed.stats().taken) == (2, 0)
        pool.close()
        assert (await examine(observed)).reason == "the pool is not open (closing)"
    assert observed.stats().status == "closed"


@pytest.mark.needs_program("mariadbd")
@each_mysql
async def test_mysql_that_is_gone_fails_until_it_is_back(
    module: Any, mariadb_server: MariadbServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    async with Proxy(mariadb_server.port) as proxy, mysql_pool(module, proxy.port) as pool:
        observed = observe(pool, name="db")
        await comes(observed, "pass")
        proxy.refuse()
        proxy.reset()
        await comes(observed, "fail")
        proxy.resume()
        await comes(observed, "pass")
        proxy.stall()
        assert (await examine(observed, max_age=0, timeout=0.2)).verdict == "fail"
        proxy.resume()
        await comes(observed, "pass")
