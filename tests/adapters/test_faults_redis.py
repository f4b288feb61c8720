"""Faults of a real Redis under load, and what they cost at most; peers: `python -m benchmarks.faults`."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError

from benchmarks.faults.load import GIVES_UP, LIMIT, PATIENCE, TINY, Effort, Outcome
from benchmarks.faults.proxy import Proxy
from benchmarks.faults.redis import FAULTS, HOOK_TIMEOUT, OURS, ROOM
from connectionpools_fastapi import ConnectionPool, HookTimeout, PoolClosed, ResourceUnavailable
from connectionpools_fastapi.adapters.redis import RedisManager
from tests.wheel_servers import redis

pytestmark = pytest.mark.anyio

RECOVERS_WITHIN = 2.0
LEEWAY = 1.9  # of a slow machine; a caller that no pool sends away gives up 2 s after PATIENCE


@pytest.fixture
def anyio_backend() -> str:
    """redis-py knows asyncio only."""
    return "asyncio"


async def outcome_of(fault: str, effort: Effort = TINY) -> Outcome:
    """Live through a fault, and see what holds of each."""
    outcome = await FAULTS[fault](OURS[0], effort)
    assert outcome.longest_wait <= PATIENCE + LEEWAY, outcome
    assert outcome.recovered_after <= RECOVERS_WITHIN, outcome
    assert (outcome.slots, outcome.connections) == (LIMIT, LIMIT), outcome
    assert outcome.closed_within <= PATIENCE + HOOK_TIMEOUT + LEEWAY, outcome
    return outcome


# --- under load ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["server killed", "all connections killed", "network resets"])
async def test_loss_costs_one_error_per_lease_in_use(fault: str) -> None:
    """Leases acquired later meet none."""
    outcome = await outcome_of(fault)
    assert outcome.errors_in_use <= LIMIT, outcome
    assert outcome.errors_later == 0, outcome
    assert fault == "server killed" or outcome.refused == 0, outcome


async def test_demoted_master_costs_one_error_and_is_left() -> None:
    """The error is one for each connection."""
    outcome = await outcome_of("failed over, and back")
    assert 1 <= outcome.errors_in_use + outcome.errors_later <= 2 * LIMIT, outcome  # there and back
    assert outcome.refused == 0, outcome


async def test_pool_lives_with_few_server_slots_and_grows_later() -> None:
    """Other clients have the rest of `maxclients`."""
    outcome = await outcome_of("maxclients reached")
    assert (outcome.errors_in_use, outcome.errors_later) == (0, 0), outcome
    assert outcome.refused <= ROOM + 1, (
        outcome
    )  # one hears of it each time that an attempt to grow is the first to fail


async def test_stalled_network_costs_one_error_per_connection() -> None:
    """No newcomer waits for long."""
    outcome = await outcome_of("network stalls", Effort(before=0.3, down=GIVES_UP + HOOK_TIMEOUT))
    assert outcome.errors_in_use + outcome.errors_later <= LIMIT, outcome
    assert outcome.refused > 0, outcome


async def test_slow_network_fails_no_lease() -> None:
    """Callers wait or are refused."""
    outcome = await outcome_of("network slow", Effort(before=0.3, down=1.5))
    assert (outcome.errors_in_use, outcome.errors_later) == (0, 0), outcome


async def test_a_password_changes_without_a_failed_request() -> None:
    outcome = await outcome_of("password changed")
    assert (outcome.errors_in_use, outcome.errors_later, outcome.refused) == (0, 0, 0), outcome


# --- hooks on a network that stalls --------------------------------------------------------------

HOOKS_END = 0.3


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """The way to a Redis of our own."""
    with redis() as server:
        async with Proxy(server.port) as proxy:
            yield proxy


def pool_of(proxy: Proxy, **options: Any) -> ConnectionPool[Any]:
    """A pool whose hooks end long before redis-py gives up by itself, after 5 s."""
    limits: dict[str, Any] = {"limit": 1, "hook_timeout": HOOKS_END, "close_timeout": HOOKS_END, **options}
    return ConnectionPool(RedisManager(f"redis://127.0.0.1:{proxy.port}/0"), **limits)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a socket sets no event
            await asyncio.sleep(0)


async def test_create_ends_at_its_time_limit(proxy: Proxy) -> None:
    async with pool_of(proxy) as pool:
        proxy.stall()
        began = time.monotonic()
        with pytest.raises(ResourceUnavailable) as caught:
            await pool.acquire()
        # Cut off, tried again, and so on until the back-end has been down for a second.
        assert 1 + HOOKS_END <= time.monotonic() - began <= 1 + 2 * HOOKS_END + LEEWAY
        assert isinstance(caught.value.__cause__, HookTimeout)
        assert pool.stats().create_failures >= 3
        proxy.resume()
        pool.suspend()
        pool.resume()  # try at once
        async with pool.lease() as client:
            assert await client.ping()


async def test_check_ends_at_its_time_limit_and_create_follows(proxy: Proxy) -> None:
    async with pool_of(proxy, check_after=0) as pool:
        async with pool.lease() as client:
            await client.ping()
        proxy.stall()
        waiting = asyncio.create_task(pool.acquire())
        await until(lambda: proxy.accepted == 2)
        proxy.resume()
        await pool.release(await waiting)
        assert pool.stats().creates == 2


async def test_change_ends_at_its_time_limit(proxy: Proxy) -> None:
    """The connection that it could not reset is destroyed."""
    async with pool_of(proxy) as pool:
        client = await pool.acquire()
        await client.select(1)
        proxy.stall()
        began = time.monotonic()
        await pool.release(client)
        assert HOOKS_END <= time.monotonic() - began <= HOOKS_END + LEEWAY
        assert (pool.free, pool.taken) == (0, 0)
        proxy.resume()
        async with pool.lease() as client:
            assert (await client.client_info())["db"] == 0


async def test_to_close_does_not_wait_for_what_stalls(proxy: Proxy) -> None:
    pool = pool_of(proxy, limit=3)
    await pool.open()
    in_use, touched = await pool.acquire(), await pool.acquire()
    await touched.select(1)
    proxy.stall()
    using, changing, creating = [
        asyncio.create_task(what) for what in (in_use.ping(), pool.release(touched), pool.acquire())
    ]
    await until(lambda: pool.creating)
    began = time.monotonic()
    await pool.close()
    assert time.monotonic() - began <= 2 * HOOKS_END + LEEWAY
    with pytest.raises(PoolClosed):
        await creating
    await changing
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    await pool.release(in_use)
    await until(lambda: pool.stats().creates == pool.stats().cleans == 2)
    proxy.resume()
    await until(lambda: proxy.connections == 0)


# --- a former master -----------------------------------------------------------------------------


async def test_one_error_retires_all_of_a_former_master() -> None:
    with redis() as old, redis() as new:
        async with (
            Proxy(old.port) as proxy,
            Redis.from_url(old.url) as admin,
            pool_of(proxy, limit=3, check_after=60, hook_timeout=5) as pool,
        ):
            for client in [await pool.acquire() for _ in range(3)]:
                await pool.release(client)
            proxy.lead_to(new.port)
            await admin.replicaof("127.0.0.1", "1")  # where no server is
            async with pool.lease() as client:
                with pytest.raises(ReadOnlyError):
                    await client.set("key", "value")
            for client in [await pool.acquire() for _ in range(3)]:
                assert await client.set("key", "value")
                await pool.release(client)
            assert pool.stats().creates == 6


# --- retries -------------------------------------------------------------------------------------


async def pop(client: Any) -> object:
    return await client.blpop(["queue"], 0)


async def is_blocked(admin: Any) -> None:
    async with asyncio.timeout(10):
        while not (await admin.info("clients"))["blocked_clients"]:
            pass


async def test_connection_remade_by_a_retry_is_reused() -> None:
    with redis() as server:
        async with (
            ConnectionPool(RedisManager(server.url, retry=Retry(NoBackoff(), 3)), limit=1) as pool,
            Redis.from_url(server.url) as admin,
        ):
            async with pool.lease() as client:
                number = await client.client_id()
                waiting = asyncio.create_task(pop(client))
                await is_blocked(admin)
                await admin.client_kill_filter(_id=str(number))
                await is_blocked(admin)
                await admin.rpush("queue", "value")
                assert await waiting
                assert await client.client_id() != number
            assert pool.free == 1
            assert pool.stats().creates == 1
