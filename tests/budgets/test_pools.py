"""Budgets below pools, of each engine: one token for each resource, and pools that give way to each other."""

import json
import os
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from prometheus_client import CollectorRegistry

from connectionpools_fastapi import ConnectionPool, PoolCollector, PoolConfigError, PoolError, PoolTimeout
from connectionpools_fastapi._monitoring.health import examine
from connectionpools_fastapi._monitoring.metrics import plain_stats, stats_of
from connectionpools_fastapi.budget import Budget
from connectionpools_fastapi.budgets.host import HostBudget
from connectionpools_fastapi.budgets.redis import RedisBudget
from tests.budgets.support import LONG, budget_of, grant_at_once, held, new_name, until
from tests.support import Backend, PlainBackend, Resource

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["host", "redis"])
def budget(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Budget]:
    """Return a function that makes budgets of one name."""
    if request.param == "host":
        return lambda total: HostBudget("orders", total=total, directory=tmp_path / "tokens")
    url, name = request.getfixturevalue("redis_url"), new_name()
    grant_at_once(url, name)
    return lambda total: RedisBudget(url, name, total=total)


Budgets = Callable[..., Budget]


async def test_resources_of_all_pools_stay_within_the_total(budget: Budgets) -> None:
    one, other = (Backend().pool(limit=3, name=name, budget=budget(4)) for name in ("one", "other"))
    async with one, other, AsyncExitStack() as leases:
        for pool in (one, one, other, other):
            await leases.enter_async_context(pool.lease())
        with pytest.raises(PoolTimeout, match="The budget has no token left"):
            await one.acquire(timeout=0.1)
        await until(lambda: budget_of(one).used == 4)
        stats = budget_of(one)
        assert (stats.total, stats.held, sum(stats.members.values())) == (4, 2, 4)


async def test_waiter_takes_what_comes_first(budget: Budgets) -> None:
    pool = Backend().pool(limit=3, budget=budget(1))
    async with pool:
        first = await pool.acquire()
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                assert await pool.acquire() is first
                await pool.release(first)

            tasks.start_soon(wait)
            await until(lambda: pool.waiting == 1)
            await pool.release(first)
        await until(lambda: pool.stats().creating == 0)  # no caller needs the creation that waits for a token


async def test_unused_resource_goes_to_the_pool_in_need(budget: Budgets) -> None:
    idle_back_end = Backend()
    idle, busy = (
        idle_back_end.pool(limit=3, name="idle", budget=budget(3)),
        Backend().pool(name="busy", budget=budget(3)),
    )
    async with idle, busy, AsyncExitStack() as leases:
        async with AsyncExitStack() as before:
            for _ in range(3):
                await before.enter_async_context(idle.lease())
        assert (held(idle), idle.free) == (3, 3)
        for _ in range(2):
            await leases.enter_async_context(busy.lease())
        assert idle.stats().discards["budget"] == 2
        assert [resource.number for resource in idle_back_end.cleaned] == [2, 1]
        with pytest.raises(PoolTimeout):  # the last one is the floor of the pool that rests
            await busy.acquire(timeout=0.2)
        assert (held(idle), held(busy)) == (1, 2)


async def test_busy_pools_share_evenly(budget: Budgets) -> None:
    pools = [Backend().pool(limit=6, name=str(number), budget=budget(6)) for number in range(3)]
    is_over = anyio.Event()

    async def use(pool: ConnectionPool[Any]) -> None:
        while not is_over.is_set():
            async with pool.lease(timeout=LONG):
                await anyio.sleep(0.002)

    async with pools[0], pools[1], pools[2], anyio.create_task_group() as tasks:
        for pool in pools:
            for _ in range(8):
                tasks.start_soon(use, pool)
            await until(lambda pool=pool: held(pool) > 0)  # type: ignore[misc]
        await until(lambda: [held(pool) for pool in pools] == [2, 2, 2])
        creates = sum(pool.stats().creates for pool in pools)
        await anyio.sleep(0.3)
        assert sum(pool.stats().creates for pool in pools) == creates  # they no longer give way in turn
        is_over.set()


async def test_tokens_return_after_clean_and_after_failures(budget: Budgets) -> None:
    back_end = Backend()
    pool = back_end.pool(limit=2, budget=budget(2))
    async with pool:
        back_end["clean"].shut()
        async with pool.lease():
            pass
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.drain)
            await until(lambda: back_end["clean"].waiting == 1)
            assert held(pool) == 1
            back_end["clean"].open()
        assert held(pool) == 0
        back_end.fail("create")
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0.05)
        await until(lambda: held(pool) == 0)
        back_end.work("create")
        async with pool.lease(timeout=LONG) as resource:
            pool.detach(resource)
        await until(lambda: held(pool) == 0)


async def test_resource_created_too_late_needs_a_token_until_it_is_cleaned(budget: Budgets) -> None:
    may_create, cleaned = threading.Event(), threading.Event()

    def create() -> Resource:
        may_create.wait(LONG)
        return Resource(0)

    pool = ConnectionPool(create=create, clean=lambda _: cleaned.set(), hook_timeout=0.05, limit=1, budget=budget(1))
    async with pool:
        with pytest.raises(PoolError):
            await pool.acquire(timeout=0.2)
        may_create.set()
        await until(cleaned.is_set)
    assert pool.stats().budget is None


async def test_close_leaves_the_budget_and_open_joins_it(budget: Budgets) -> None:
    pool, other = Backend().pool(name="one", budget=budget(1)), Backend().pool(name="other", budget=budget(1))
    async with other:
        for _ in range(2):
            async with pool, pool.lease():
                assert held(pool) == 1
            assert pool.stats().budget is None
        async with other.lease():
            pass


async def test_close_does_not_wait_for_a_token(budget: Budgets) -> None:
    pool, other = Backend().pool(name="one", budget=budget(1)), Backend().pool(name="other", budget=budget(1))
    async with other, other.lease(), pool, anyio.create_task_group() as tasks:
        tasks.start_soon(_refused, pool)
        await until(lambda: pool.waiting == 1)
        with anyio.fail_after(LONG):
            await pool.close()


async def _refused(pool: ConnectionPool[Any]) -> None:
    with pytest.raises(Exception, match="closing"):
        await pool.acquire(timeout=LONG)


async def test_min_free_is_created_within_the_budget(budget: Budgets) -> None:
    pool = Backend().pool(limit=3, min_free=2, open_timeout=0.05, budget=budget(1))
    with pytest.raises(Exception, match="cannot be opened"):
        await pool.open()
    assert pool.stats().budget is None
    async with Backend().pool(limit=3, min_free=1, budget=budget(1)) as other:
        assert held(other) == 1


async def test_members_with_another_total_do_not_open(budget: Budgets) -> None:
    pool = Backend().pool(name="one", budget=budget(2))
    async with Backend().pool(name="other", budget=budget(1)):
        with pytest.raises(PoolConfigError, match=r"total=2\b.* but total=1\b"):
            await pool.open()
    assert pool.stats().status == "closed"
    with anyio.fail_after(LONG):
        while pool.stats().status == "closed":  # until the other is known to have left
            with suppress(PoolConfigError):
                await pool.open()
    await pool.close()


def test_forked_child_joins_anew(budget: Budgets) -> None:
    pool = PlainBackend().pool(limit=1, budget=budget(1))
    with pool:
        with pool.lease():
            pass
        child = os.fork()
        if child == 0:  # pragma: no cover - in the child
            with suppress(BaseException):
                is_apart = pool.stats().budget is None
                pool.open_sync()
                with pool.lease(timeout=LONG):  # once the parent has given its token back
                    os._exit(not is_apart)
            os._exit(2)
        pool.close_sync()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        pool.open_sync()


def test_pools_of_threads_share_a_budget_too(budget: Budgets) -> None:
    one, other = (PlainBackend().pool(limit=2, name=name, budget=budget(2)) for name in ("one", "other"))
    with one, other:
        with one.lease(), one.lease():
            pass
        with other.lease(timeout=LONG):
            assert (held(one), held(other)) == (1, 1)


async def test_total_below_the_floors_of_all_members_warns(budget: Budgets, caplog: pytest.LogCaptureFixture) -> None:
    async with Backend().pool(name="one", budget=budget(1)):
        assert not caplog.messages
        async with Backend().pool(name="other", budget=budget(1)):
            assert "total=1 is too small for 2 members, each of which needs 1" in caplog.text


async def test_health_and_metrics_tell_the_budget(budget: Budgets) -> None:
    pool = Backend().pool(limit=2, budget=budget(1))
    registry = CollectorRegistry()
    registry.register(PoolCollector([pool]))
    async with pool, pool.lease(), anyio.create_task_group() as tasks:
        tasks.start_soon(pool.acquire)
        await until(lambda: pool.waiting == 1 and budget_of(pool).used == 1)
        name = budget_of(pool).name
        health = await examine(pool)
        assert health.reason == (
            f"saturated: 1 of 2 taken, 1 waiting; the budget {name!r} has no token left: 1 of 1 used, 1 here"
        )
        for number in ("limit", "used", "held"):
            labels = {"pool": "default", "budget": name}
            assert registry.get_sample_value(f"connectionpool_budget_{number}", labels) == 1
        (plain,) = json.loads(json.dumps(plain_stats([pool])))  # as workers tell each other
        assert getattr(stats_of(plain), "budget", None) == pool.stats().budget
        tasks.cancel_scope.cancel()


def test_budget_of_another_kind_is_refused() -> None:
    with pytest.raises(PoolConfigError, match="budget must be a Budget, as HostBudget"):
        ConnectionPool(create=object, budget=45)  # type: ignore[call-overload]
