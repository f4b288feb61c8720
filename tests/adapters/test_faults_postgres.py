"""Faults of a real PostgreSQL under load: what they cost callers, in numbers.

The scenarios are those of `python -m benchmarks.faults`, which prints what they cost with other pools.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.faults.load import LIMIT, PATIENCE, TINY, Contestant, Effort, Outcome
from benchmarks.faults.postgres import (
    HOOK_TIMEOUT,
    MANAGERS,
    OURS,
    USER,
    Site,
    a_site,
    killed,
    reset,
    slowed,
    stalled,
    terminated,
)
from benchmarks.faults.proxy import Proxy
from connectionpools_fastapi import ConnectionPool, HookTimeout, ResourceUnavailable
from connectionpools_fastapi.adapters.psycopg import PsycopgManager
from connectionpools_fastapi.adapters.sqlalchemy import SqlalchemyManager

pytestmark = pytest.mark.anyio
each_manager = pytest.mark.parametrize("contestant", OURS, ids=lambda contestant: contestant.name.split()[-1])

# Seconds that may be added to any time: a caller that no pool sends away gives up 2 s after PATIENCE.
SLOW_MACHINE = 1.9


@pytest.fixture
def anyio_backend() -> str:
    """The drivers know asyncio only."""
    return "asyncio"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with a_site() as it:
        asyncio.run(it.prepare())
        yield it


def assert_all_is_well(outcome: Outcome) -> None:
    """Assert that nothing is left of the fault, and that no caller waited for longer than its timeout."""
    assert outcome.slots == LIMIT, outcome
    assert outcome.connections == LIMIT, outcome
    assert outcome.recovered_after < math.inf, outcome
    assert outcome.longest_wait < PATIENCE + SLOW_MACHINE, outcome


@each_manager
async def test_terminated_connection_costs_at_most_one_error(contestant: Contestant, site: Site) -> None:
    """Later leases meet none."""
    outcome = await terminated(contestant, site, TINY)
    assert_all_is_well(outcome)
    assert outcome.errors_in_use <= LIMIT, outcome
    assert (outcome.errors_later, outcome.refused) == (0, 0), outcome


@each_manager
async def test_killed_server_means_refusals_then_quick_recovery(contestant: Contestant, site: Site) -> None:
    """Callers are refused within their timeout."""
    outcome = await killed(contestant, site, replace(TINY, down=1.5))  # callers are refused after one second
    assert_all_is_well(outcome)
    assert outcome.errors_in_use + outcome.errors_later <= LIMIT, outcome  # one for each connection
    assert outcome.refused > 0, outcome
    assert outcome.recovered_after < 2, outcome


async def test_replacing_on_a_full_server_refuses_no_caller(site: Site) -> None:
    pool = ConnectionPool(PsycopgManager(site.address), limit=20, max_lifetime=0.4, timeout=10)
    async with site.crowded_but_for(8), pool:

        async def work() -> None:
            for _ in range(40):
                async with pool.lease() as connection:
                    await connection.execute("SELECT pg_sleep(0.01)")

        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(work())
        stats = pool.stats()
        assert (stats.acquires, stats.timeouts, sum(stats.refusals.values())) == (800, 0, 0)
        assert stats.create_failures > 0
        assert stats.discards["max_lifetime"] >= 8


async def test_role_limit_makes_the_next_caller_wait_for_a_lease(site: Site) -> None:
    """The role may have three connections."""
    await site.ask(f"ALTER ROLE {USER} CONNECTION LIMIT 3")
    try:
        async with ConnectionPool(PsycopgManager(site.address), limit=5, timeout=5) as pool:

            async def hold() -> None:
                async with pool.lease() as connection:
                    await connection.execute("SELECT pg_sleep(0.2)")

            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(hold())
            stats = pool.stats()
            assert (stats.creates, stats.acquires, sum(stats.refusals.values())) == (3, 4, 0)
            assert stats.create_failures > 0
    finally:
        await site.ask(f"ALTER ROLE {USER} CONNECTION LIMIT -1")


@each_manager
async def test_stalled_network_lets_callers_time_out(contestant: Contestant, site: Site) -> None:
    """It keeps no pool from closing either."""
    outcome = await stalled(contestant, site, Effort(before=TINY.before, down=HOOK_TIMEOUT + 0.3))
    assert_all_is_well(outcome)
    assert outcome.closed_within < HOOK_TIMEOUT + SLOW_MACHINE, outcome


@each_manager
async def test_network_reset_costs_one_error_per_connection(contestant: Contestant, site: Site) -> None:
    outcome = await reset(contestant, site, Effort(before=TINY.before, down=0))
    assert_all_is_well(outcome)
    assert outcome.errors_in_use <= LIMIT, outcome
    assert (outcome.errors_later, outcome.refused) == (0, 0), outcome


@each_manager
async def test_a_slow_network_makes_no_errors(contestant: Contestant, site: Site) -> None:
    outcome = await slowed(contestant, site, TINY)
    assert_all_is_well(outcome)
    assert (outcome.errors_in_use, outcome.errors_later) == (0, 0), outcome


# --- the hooks themselves, on a network that passes on nothing ---------------------------------------

HOOK_ENDS = 0.3  # hook_timeout, in seconds
SQLALCHEMY_CLOSES = 2.0  # what it gives asyncpg to close a connection whose transaction was cut off
LEASES_HAVE = 0.2  # close_timeout
ALL_MANAGERS = {
    **MANAGERS,
    "SqlalchemyManager with psycopg": (
        lambda address: SqlalchemyManager(PsycopgManager(address)),
        MANAGERS["SqlalchemyManager"][1],
    ),
}


@asynccontextmanager
async def behind_proxy(manager: str, site: Site) -> AsyncIterator[tuple[ConnectionPool[Any], Proxy]]:
    make, _ = ALL_MANAGERS[manager]
    async with Proxy(site.server.port) as proxy:
        pool = ConnectionPool(
            make(lambda: site.address(proxy.port)),
            limit=2,
            timeout=60,
            check_after=0,
            hook_timeout=HOOK_ENDS,
            close_timeout=LEASES_HAVE,
        )
        async with pool:
            yield pool, proxy


async def duration_of(what: Awaitable[object]) -> float:
    began = asyncio.get_running_loop().time()
    await what
    return asyncio.get_running_loop().time() - began


@pytest.mark.parametrize("manager", ALL_MANAGERS)
async def test_hooks_end_at_hook_timeout_on_a_network_that_stalls(manager: str, site: Site) -> None:
    _, work = ALL_MANAGERS[manager]
    async with behind_proxy(manager, site) as (pool, proxy):
        first, second = await pool.acquire(), await pool.acquire()
        await pool.release(second)
        await work(first)  # which may have begun a transaction
        proxy.stall()
        by_then = HOOK_ENDS + SLOW_MACHINE + (SQLALCHEMY_CLOSES if manager == "SqlalchemyManager" else 0)
        assert HOOK_ENDS <= await duration_of(pool.release(first)) < by_then
        assert pool.stats().discards["change"] == 1

        async def ask() -> None:
            with pytest.raises(ResourceUnavailable) as refused:
                await pool.acquire()
            assert isinstance(refused.value.__cause__, HookTimeout)

        # One check of what is free, and creates that are cut off until that has gone on for a second.
        assert 1 + HOOK_ENDS <= await duration_of(ask()) < 1 + 3 * HOOK_ENDS + SLOW_MACHINE
        assert pool.stats().discards["check"] == 1
        assert await duration_of(pool.close()) < HOOK_ENDS + SLOW_MACHINE
        stats = pool.stats()
        assert (stats.creates, stats.cleans) == (2, 2)


@pytest.mark.parametrize("manager", ALL_MANAGERS)
async def test_lease_hanging_in_a_query_lets_the_pool_close(manager: str, site: Site) -> None:
    _, work = ALL_MANAGERS[manager]
    async with behind_proxy(manager, site) as (pool, proxy):
        works = asyncio.Event()

        async def hang() -> None:
            async with pool.lease() as connection:
                proxy.stall()
                works.set()
                await work(connection)

        async with pool.lease(), asyncio.TaskGroup() as group:
            group.create_task(hang())
            await works.wait()
            took = await group.create_task(duration_of(pool.close()))  # in the task of a lease it would be refused
            proxy.resume()
        assert LEASES_HAVE <= took < LEASES_HAVE + HOOK_ENDS + SLOW_MACHINE
        assert await site.gone(await site.sessions(), bound=10)
        assert pool.stats().cleans == pool.stats().creates
