"""Faults of a real PostgreSQL under load: what they cost callers, in numbers.

The scenarios are those of `python -m benchmarks.faults`, which prints what they cost with other pools.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from benchmarks.faults.load import LIMIT, PATIENCE, TINY, Contestant, Effort, Outcome
from benchmarks.faults.postgres import (
    HOOK_TIMEOUT,
    MANAGERS,
    OURS,
    Site,
    a_site,
    crowded,
    killed,
    reset,
    rotated,
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

SLOW_MACHINE = 1.0  # what may be added to any time, in seconds


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
    """Assert that nothing is left of the fault, and that nobody had to wait for longer than it was told to."""
    assert outcome.slots == LIMIT, outcome
    assert outcome.connections == LIMIT, outcome
    assert outcome.recovered_after < math.inf, outcome
    assert outcome.longest_wait < PATIENCE + SLOW_MACHINE, outcome


@each_manager
async def test_connections_that_are_terminated_cost_one_error_each_at_most_and_later_leases_none(
    contestant: Contestant, site: Site
) -> None:
    outcome = await terminated(contestant, site, TINY)
    assert_all_is_well(outcome)
    assert outcome.errors_in_use <= LIMIT, outcome
    assert (outcome.errors_later, outcome.refused) == (0, 0), outcome


@each_manager
async def test_when_the_server_is_killed_callers_are_refused_within_their_timeout_and_served_soon_after_its_return(
    contestant: Contestant, site: Site
) -> None:
    outcome = await killed(contestant, site, TINY)
    assert_all_is_well(outcome)
    assert outcome.errors_in_use + outcome.errors_later <= LIMIT, outcome  # one for each connection
    assert outcome.refused > 0, outcome
    assert outcome.recovered_after < 2, outcome


@each_manager
async def test_a_pool_lives_with_what_max_connections_leaves_and_grows_when_it_can(
    contestant: Contestant, site: Site
) -> None:
    outcome = await crowded(contestant, site, TINY)
    assert_all_is_well(outcome)
    assert (outcome.errors_in_use, outcome.errors_later) == (0, 0), outcome
    assert outcome.refused - outcome.timeouts <= LIMIT, outcome  # who asked before it was known that there are no more
    assert outcome.recovered_after < 2, outcome


@each_manager
async def test_a_network_that_stalls_makes_callers_wait_within_their_timeout_and_keeps_no_pool_from_closing(
    contestant: Contestant, site: Site
) -> None:
    outcome = await stalled(contestant, site, Effort(before=TINY.before, down=HOOK_TIMEOUT + 0.3))
    assert_all_is_well(outcome)
    assert outcome.closed_within < HOOK_TIMEOUT + SLOW_MACHINE, outcome


@each_manager
async def test_a_network_that_resets_costs_one_error_for_each_connection_at_most(
    contestant: Contestant, site: Site
) -> None:
    outcome = await reset(contestant, site, Effort(before=TINY.before, down=0))
    assert_all_is_well(outcome)
    assert outcome.errors_in_use <= LIMIT, outcome
    assert (outcome.errors_later, outcome.refused) == (0, 0), outcome


@each_manager
async def test_a_slow_network_makes_no_errors(contestant: Contestant, site: Site) -> None:
    outcome = await slowed(contestant, site, TINY)
    assert_all_is_well(outcome)
    assert (outcome.errors_in_use, outcome.errors_later) == (0, 0), outcome


@each_manager
async def test_after_a_change_of_password_all_connections_are_replaced_and_no_caller_notices(
    contestant: Contestant, site: Site
) -> None:
    outcome = await rotated(contestant, site, TINY)
    assert_all_is_well(outcome)
    assert (outcome.errors_in_use, outcome.errors_later, outcome.refused) == (0, 0, 0), outcome


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

        # One check of what is free, and at least one create; whichever began first.
        assert HOOK_ENDS <= await duration_of(ask()) < 2 * HOOK_ENDS + SLOW_MACHINE
        assert pool.stats().discards["check"] == 1
        assert await duration_of(pool.close()) < HOOK_ENDS + SLOW_MACHINE
        stats = pool.stats()
        assert (stats.creates, stats.cleans) == (2, 2)


@pytest.mark.parametrize("manager", ALL_MANAGERS)
async def test_a_lease_that_hangs_in_a_query_keeps_no_pool_from_closing(manager: str, site: Site) -> None:
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
            took = await duration_of(pool.close())
            proxy.resume()
        assert LEASES_HAVE <= took < LEASES_HAVE + HOOK_ENDS + SLOW_MACHINE
        assert await site.gone(await site.sessions(), bound=10)
        assert pool.stats().cleans == pool.stats().creates
