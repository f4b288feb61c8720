"""The sandbox of RedisManager: a database of its own, which is emptied at the end."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio as redis

from connectionpools_fastapi import ConnectionPool, PoolConfigError
from connectionpools_fastapi.adapters._redis_sandbox import CLAIM, DATABASES
from connectionpools_fastapi.adapters.redis import RedisManager
from connectionpools_fastapi.testing import sandbox
from tests.wheel_servers import redis as redis_server

pytestmark = pytest.mark.anyio
EVERY = list(DATABASES)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", name="url")
def fixture_url() -> Any:
    """Start a Redis of this module's own, since its tests look at all databases."""
    with redis_server() as server:
        yield server.url


@pytest.fixture(name="outside")
async def fixture_outside(url: str) -> AsyncIterator[redis.Redis]:
    async with redis.Redis.from_url(url, decode_responses=True) as client:
        await client.flushall()
        await client.set("kept", "yes")
        yield client


async def sizes(outside: redis.Redis) -> dict[str, int]:
    """Return how many keys each database has that is not empty."""
    return {name: facts["keys"] for name, facts in (await outside.info("keyspace")).items()}


def pool_of(url: str, **options: Any) -> ConnectionPool[redis.Redis]:
    return ConnectionPool(RedisManager(url, decode_responses=True), name="cache", **options)


async def test_keys_last_as_long_as_their_sandbox(url: str, outside: redis.Redis) -> None:
    async with pool_of(url) as cache:
        for _ in range(2):
            async with sandbox(cache):
                async with cache.lease() as client:
                    assert await client.get("kept") is None
                    await client.set("mine", "1")
                async with cache.lease() as client:
                    assert await client.get("mine") == "1"
                assert {*await outside.keys()} == {"kept", f"{CLAIM}{EVERY[0]}"}
            assert await sizes(outside) == {"db0": 1}
        async with cache.lease() as client:
            assert await client.get("kept") == "yes"


async def test_two_sandboxes_have_two_databases(url: str, outside: redis.Redis) -> None:
    async with pool_of(url) as one, pool_of(url) as two, sandbox(one), sandbox(two):
        async with one.lease() as client:
            await client.set("mine", "1")
        async with two.lease() as client:
            assert await client.get("mine") is None
    assert await sizes(outside) == {"db0": 1}


async def test_database_with_keys_is_left_alone(url: str, outside: redis.Redis) -> None:
    async with redis.Redis.from_url(f"{url.removesuffix('0')}{EVERY[0]}") as other, pool_of(url) as cache:
        await other.set("theirs", "1")
        async with sandbox(cache), cache.lease() as client:
            await client.flushdb()
        assert await sizes(outside) == {"db0": 1, f"db{EVERY[0]}": 1}


async def test_lease_that_leaves_its_database_comes_back(url: str) -> None:
    async with pool_of(url) as cache, sandbox(cache):
        async with cache.lease() as client:
            await client.set("mine", "1")
            await client.select(0)
        async with cache.lease() as client:
            assert await client.get("mine") == "1"


async def test_sandbox_goes_on_after_a_lost_connection(url: str, outside: redis.Redis) -> None:
    async with pool_of(url, min_free=1) as cache:
        async with sandbox(cache):
            async with cache.lease() as client:
                await client.set("mine", "1")
                await outside.client_kill_filter(_id=str(await client.client_id()))
            async with cache.lease() as client:
                subscriber = client.pubsub()  # keeps the connection, which is then destroyed
                await subscriber.subscribe("news")
            async with cache.lease() as client:
                assert await client.get("mine") == "1"
            await outside.client_kill_filter(_type="normal", skipme=True)
        assert await sizes(outside) == {"db0": 1}


async def test_server_without_empty_database_is_told(url: str, outside: redis.Redis) -> None:
    for number in EVERY[:-1]:
        await outside.set(f"{CLAIM}{number}", "another run")
    async with pool_of(url) as cache:
        with pytest.raises(PoolConfigError, match=r"needs a database of the server that is empty.*FLUSHDB"):
            async with sandbox(cache):
                pass
        async with cache.lease() as client:
            assert await client.get("kept") == "yes"
