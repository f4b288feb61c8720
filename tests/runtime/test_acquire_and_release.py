"""Leasing: which caller gets which resource, when, and in what order."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.abc
import pytest

from connectionpools_fastapi import (
    ConnectionPool,
    NotLeased,
    PoolConfigError,
    PoolTimeout,
    ResourceUnavailable,
    TooManyWaiting,
)
from tests.support import Backend, Resource, assert_nothing_is_lost, check, held, outcome_of, settled

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


@asynccontextmanager
async def opened(pool: ConnectionPool[Resource], backend: Backend) -> AsyncIterator[ConnectionPool[Resource]]:
    """Open a pool; at the end nothing of it may be lost."""
    async with pool:
        yield pool
        await assert_nothing_is_lost(pool, backend)


class Callers:
    """Callers that queue one after the other, and keep what they got until told otherwise."""

    def __init__(self, pool: ConnectionPool[Resource], group: anyio.abc.TaskGroup) -> None:
        self._pool = pool
        self._group = group
        self.served: list[tuple[str, Any]] = []

    async def join(self, name: str, **options: Any) -> None:
        async def call() -> None:
            self.served.append((name, await outcome_of(lambda: self._pool.acquire(**options))))

        self._group.start_soon(call)
        await settled()

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.served]

    def got(self, name: str) -> Any:
        return dict(self.served)[name]


# --- reuse ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hooks", [(), ("change",)])
async def test_the_resource_that_was_used_last_is_used_next(hooks: tuple[str, ...]) -> None:
    backend = Backend()
    async with opened(backend.pool(*hooks, limit=3), backend) as pool:
        first, second, third = [await pool.acquire() for _ in range(3)]
        for resource in (first, second, third):
            await pool.release(resource)
        assert await pool.acquire() is third
        assert await pool.acquire() is second
        await pool.release(second)
        await pool.release(third)


@pytest.mark.parametrize("hooks", [(), ("change",)])
async def test_fifo_spreads_the_use_over_all(hooks: tuple[str, ...]) -> None:
    backend = Backend()
    async with opened(backend.pool(*hooks, limit=3, reuse="fifo"), backend) as pool:
        every = [await pool.acquire() for _ in range(3)]
        for resource in every:
            await pool.release(resource)
        used = []
        for _ in range(6):
            async with pool.lease() as resource:
                used.append(resource.number)
        assert used == [0, 1, 2, 0, 1, 2]


async def test_creates_on_demand_and_up_to_limit() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=2), backend) as pool:
        assert backend.created == []
        async with pool.lease(), pool.lease():
            assert (pool.free, pool.taken, pool.limit) == (0, 2, 2)
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0)
        assert (pool.free, pool.taken, len(backend.created)) == (2, 0, 2)


async def test_the_resource_comes_back_when_the_body_raises() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=1), backend) as pool:
        with pytest.raises(KeyError):
            async with pool.lease():
                raise KeyError
        assert (pool.free, pool.taken) == (1, 0)


async def test_equal_resources_are_told_apart_by_identity() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=2), backend) as pool:
        one, other = await pool.acquire(), await pool.acquire()
        assert one == other
        assert one is not other
        await pool.release(one)
        with pytest.raises(NotLeased):
            await pool.release(one)
        assert pool.taken == 1
        assert await pool.acquire() is one
        await pool.release(other)
        await pool.release(one)


# --- giving back ------------------------------------------------------------------------------


async def test_foreign_or_returned_resource_is_refused() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=2), backend) as pool:
        resource = await pool.acquire()
        before = pool.stats()
        for foreign in (Resource(0), None, "x"):
            with pytest.raises(NotLeased, match="not leased from it"):
                await pool.release(foreign)  # type: ignore[arg-type]
            with pytest.raises(NotLeased):
                pool.discard(foreign)  # type: ignore[arg-type]
            with pytest.raises(NotLeased):
                pool.detach(foreign)  # type: ignore[arg-type]
        assert pool.stats() == before
        await pool.release(resource)
        after = pool.stats()
        for end in (pool.release, pool.discard, pool.detach):
            assert isinstance(await outcome_of(partial(end, resource)), NotLeased)
        assert pool.stats() == after


async def test_lease_is_usable_only_until_its_one_end() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=1), backend) as pool:
        lease = pool.lease()
        with pytest.raises(NotLeased, match="has not begun"):
            _ = lease.resource
        async with lease as resource:
            assert lease.resource is resource
            lease.release_nowait()
            with pytest.raises(NotLeased, match="has ended"):
                lease.release_nowait()
            with pytest.raises(NotLeased, match="has ended"):
                _ = lease.resource
        with pytest.raises(PoolConfigError, match="used once"):
            await lease.__aenter__()


async def test_lease_entered_by_two_tasks_takes_one_resource() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=2), backend) as pool:
        lease = pool.lease()
        outcomes: list[Any] = []

        async def enter() -> None:
            outcomes.append(await outcome_of(lease.__aenter__))

        async with anyio.create_task_group() as group:
            group.start_soon(enter)
            group.start_soon(enter)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["PoolConfigError", "Resource"]
        lease.release_nowait()
        assert pool.taken == 0


async def test_lease_begins_once_also_for_a_request() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=2), backend) as pool:
        lease = pool.lease()
        await lease.enter(owner=None)
        with pytest.raises(PoolConfigError, match="used once"):
            lease.try_enter(None)
        with pytest.raises(PoolConfigError, match="used once"):
            await lease.enter(owner=None)
        assert pool.taken == 1
        lease.release_nowait()


async def test_ended_lease_leaves_next_lease_of_resource_alone() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=1), backend) as pool:
        lease = pool.lease()
        resource = await lease.__aenter__()
        await pool.release(resource)
        async with pool.lease() as again:
            assert again is resource
            for end in (lease.release_nowait, lease.discard, lease.detach):
                with pytest.raises(NotLeased, match="has ended"):
                    end()
            with pytest.raises(NotLeased):
                await lease.__aexit__(None, None, None)
            assert pool.taken == 1


async def test_block_may_discard_or_detach_its_resource() -> None:
    backend = Backend()
    async with backend.pool(limit=1) as pool:
        async with pool.lease() as broken:
            pool.discard(broken)
        with pytest.raises(KeyError):  # noqa: PT012 - the block is what is tested
            async with pool.lease() as broken:
                pool.discard(broken)
                raise KeyError
        lease = pool.lease()
        async with lease as kept:
            assert lease.detach() is kept
        async with pool.lease() as kept:
            assert pool.detach(kept) is kept
        await settled()
        assert backend.cleaned == backend.created[:2]
        await assert_nothing_is_lost(pool, backend, detached=2)
    assert kept.number == 3
    assert all(cleaned is not kept for cleaned in backend.cleaned)


async def test_detached_object_may_be_created_again() -> None:
    """The lease that detached the object ends later, and leaves the new lease alone."""
    only = Resource(0)
    pool: ConnectionPool[Resource] = ConnectionPool(create=lambda: only, limit=1, blocking=False)
    async with pool:
        old = pool.lease()
        await old.__aenter__()
        pool.detach(only)
        async with pool.lease() as again:
            assert again is only
            with pytest.raises(NotLeased):
                old.release_nowait()
            assert pool.taken == 1
        assert pool.free == 1


async def test_discard_or_detach_makes_room_for_waiter() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=1), backend) as pool, anyio.create_task_group() as group:
        for end in (pool.discard, pool.detach):
            resource = await pool.acquire()
            callers = Callers(pool, group)
            await callers.join("waiter")
            end(resource)
            await settled()
            assert callers.got("waiter") is not resource
            await pool.release(callers.got("waiter"))
            if end == pool.detach:
                backend.cleaned.append(resource)  # our own business


# --- the queue ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hooks", [(), ("change",), ("check",), ("check", "change")])
async def test_waiters_are_served_in_order_of_arrival(hooks: tuple[str, ...]) -> None:
    """No newcomer overtakes a waiter."""
    backend = Backend()
    async with opened(backend.pool(*hooks, limit=1), backend) as pool, anyio.create_task_group() as group:
        held = await pool.acquire()
        callers = Callers(pool, group)
        for name in "abc":
            await callers.join(name)
        assert pool.waiting == 3
        for number, name in enumerate("abc"):
            release = pool.lease  # a newcomer at the very moment of the release
            pool._engine.give_back(pool._engine.inventory.leased(held))
            assert pool.try_acquire() is None
            assert isinstance(await outcome_of(release(timeout=0).__aenter__), PoolTimeout)
            await settled()
            assert callers.names == list("abc")[: number + 1]
            held = callers.got(name)
        await pool.release(held)


async def test_waiter_takes_release_before_slow_create() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=2), backend) as pool, anyio.create_task_group() as group:
        held = await pool.acquire()
        backend["create"].shut()
        callers = Callers(pool, group)
        await callers.join("first")
        await callers.join("second")
        assert backend["create"].waiting == 1
        await pool.release(held)  # faster than the creation
        await settled()
        assert callers.served == [("first", held)]
        backend["create"].open()
        await settled()
        assert callers.names == ["first", "second"]
        assert callers.got("second").number == 1
        for _, resource in callers.served:
            await pool.release(resource)


async def test_a_caller_that_gives_up_wastes_nothing() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=2), backend) as pool:
        backend["create"].shut()
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=1)
        assert pool.creating == 1
        async with anyio.create_task_group() as group:
            callers = Callers(pool, group)
            await callers.join("next")
            assert pool.creating == 1, "what was being made is made for the next in line"
            backend["create"].open()
        assert len(backend.created) == 1
        await pool.release(callers.got("next"))
        assert pool.free == 1


async def test_resource_created_for_lost_caller_becomes_free() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=2), backend) as pool:
        backend["create"].shut()
        with anyio.move_on_after(1):
            await pool.acquire()
        assert pool.waiting == 0
        backend["create"].open()
        await settled()
        assert (pool.free, pool.taken, pool.creating) == (1, 0, 0)
        assert pool.stats().withdrawals == 1


async def test_a_caller_waits_exactly_as_long_as_its_timeout_says() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=1, timeout=7), backend) as pool, held(pool):
        for timeout, expected in ({"timeout": 2.5}, 2.5), ({}, 7), ({"timeout": 0}, 0):
            began = anyio.current_time()
            with pytest.raises(PoolTimeout, match=f"within {expected:g} s") as caught:
                await pool.acquire(**timeout)
            assert anyio.current_time() - began == pytest.approx(expected, abs=1e-6)
            assert caught.value.retry_after == 1.0
        with anyio.move_on_after(10_000) as scope:
            await pool.acquire(timeout=None)
        assert scope.cancelled_caught
        assert pool.stats().timeouts == 3
        assert pool.waiting == 0


async def test_each_waiter_has_its_own_time() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=1), backend) as pool, pool.lease():
        gone: list[float] = []
        began = anyio.current_time()

        async def wait(timeout: float) -> None:
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=timeout)
            gone.append(round(anyio.current_time() - began, 6))

        async with anyio.create_task_group() as group:
            for timeout in (3, 1, 2, 1.5, 4):
                group.start_soon(wait, timeout)
        assert gone == [1, 1.5, 2, 3, 4]


async def test_release_skips_waiter_that_timed_out() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=1), backend) as pool, anyio.create_task_group() as group:
        held = await pool.acquire()
        callers = Callers(pool, group)
        await callers.join("short", timeout=1)
        await callers.join("long", timeout=10)
        await anyio.sleep(2)
        assert isinstance(callers.got("short"), PoolTimeout)
        await pool.release(held)
        await settled()
        assert callers.got("long") is held
        await pool.release(held)


@pytest.mark.parametrize("timeout", [0, 1])
async def test_timeout_names_the_three_longest_leases(timeout: float) -> None:
    backend = Backend()
    async with (
        opened(backend.pool(limit=4), backend) as pool,
        AsyncExitStack() as stack,
        anyio.create_task_group() as group,
    ):
        for route in ("GET /export", "GET /report", "GET /items", "GET /last"):
            await stack.enter_async_context(pool.lease(holder=route))
            await anyio.sleep(1)
        callers = Callers(pool, group)
        await callers.join("late", timeout=timeout)
        await anyio.sleep(timeout)
        await settled()
        told = str(callers.got("late")).partition(". Held the longest: ")[2]
        assert (
            told == f"GET /export for {4 + timeout} s, GET /report for {3 + timeout} s, GET /items for {2 + timeout} s"
        )


async def test_higher_priority_is_served_before_earlier_callers() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=1), backend) as pool, anyio.create_task_group() as group:
        held = await pool.acquire()
        callers = Callers(pool, group)
        for name, priority in (("a", "low"), ("b", "normal"), ("c", "high"), ("d", "high"), ("e", "normal")):
            await callers.join(name, priority=priority)
        for _ in range(5):
            await pool.release(held)
            await settled()
            held = callers.served[-1][1]
        assert callers.names == ["c", "d", "b", "e", "a"]
        await pool.release(held)


async def test_lease_in_a_block_takes_a_priority() -> None:
    backend = Backend()
    order: list[str] = []
    async with opened(backend.pool(limit=1), backend) as pool:

        async def use(priority: Any) -> None:
            async with pool.lease(priority=priority):
                order.append(priority)

        async with anyio.create_task_group() as group, pool.lease():
            for priority in ("low", "normal", "high"):
                group.start_soon(use, priority)
                await settled()
    assert order == ["high", "normal", "low"]


async def test_max_waiting_counts_waiters_without_room() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=2, max_waiting=1), backend) as pool, anyio.create_task_group() as group:
        backend["create"].shut()
        callers = Callers(pool, group)
        for name in ("room", "room too", "queued"):
            await callers.join(name)
        assert pool.waiting == 3
        with pytest.raises(TooManyWaiting, match="max_waiting=1") as caught:
            await pool.acquire()
        assert caught.value.retry_after == 1.0
        assert pool.stats().refusals["full"] == 1
        backend["create"].open()
        await settled()
        for name in ("room", "room too", "queued"):
            await pool.release(callers.got(name))
            await settled()


async def test_max_waiting_0_refuses_to_queue() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=1, max_waiting=0), backend) as pool:
        async with held(pool):
            with pytest.raises(TooManyWaiting):
                await pool.acquire()
        async with pool.lease():
            pass


async def test_max_creating_bounds_concurrent_creates() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=5, max_creating=2), backend) as pool, anyio.create_task_group() as group:
        backend["create"].shut()
        callers = Callers(pool, group)
        for name in "abcde":
            await callers.join(name)
        assert pool.creating == backend["create"].waiting == 2
        backend["create"].open()
        await settled()
        assert sorted(callers.names) == list("abcde")
        for name in "abcde":
            await pool.release(callers.got(name))


# --- min_free -----------------------------------------------------------------------------------


async def test_min_free_is_filled_by_open_and_kept_under_load() -> None:
    backend = Backend()
    async with opened(backend.pool(min_free=2, limit=4), backend) as pool:
        assert pool.free == 2
        held = []
        for free in (2, 2, 1, 0):
            held.append(await pool.acquire())
            await settled()
            assert pool.free == free
        assert len(backend.created) == 4
        for resource in held:
            await pool.release(resource)


async def test_min_free_is_restored_after_discard_and_drain() -> None:
    backend = Backend()
    async with opened(backend.pool(min_free=1, limit=2), backend) as pool:
        pool.discard(await pool.acquire())
        await settled()
        assert pool.free == 1
        before = list(backend.created)
        await pool.drain()
        await settled()
        assert pool.free == 1
        assert all(any(cleaned is old for cleaned in backend.cleaned) for old in before)


# --- check ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [False, 0, "", [], ConnectionError("gone")])
async def test_failed_check_cleans_and_tries_next_resource(verdict: object) -> None:
    backend = Backend()
    async with opened(backend.pool("check", limit=3, check_after=0), backend) as pool:
        every = [await pool.acquire() for _ in range(3)]
        for resource in every:
            await pool.release(resource)
        await anyio.sleep(1)
        every[2].is_healthy = every[1].is_healthy = verdict
        async with pool.lease() as resource:
            assert resource is every[0]
            await settled()
            assert [cleaned.number for cleaned in backend.cleaned] == [2, 1]
        assert pool.stats().discards["check"] == 2


@pytest.mark.parametrize("verdict", [True, None, 1, "yes"])
async def test_check_that_returns_none_or_truthy_passes(verdict: object) -> None:
    backend = Backend()
    async with opened(backend.pool("check", limit=1, check_after=0), backend) as pool:
        async with pool.lease() as resource:
            resource.is_healthy = verdict
        await anyio.sleep(1)
        async with pool.lease() as again:
            assert again is resource
        assert backend.count("check") == 1


async def test_caller_gets_new_resource_when_all_checks_fail() -> None:
    backend = Backend()
    async with opened(backend.pool("check", limit=2, check_after=0), backend) as pool:
        async with pool.lease() as one, pool.lease() as other:
            one.is_healthy = other.is_healthy = False
        await anyio.sleep(1)
        async with pool.lease() as resource:
            assert resource.number == 2


async def test_waiter_keeps_its_place_when_its_check_fails() -> None:
    backend = Backend()
    async with opened(backend.pool("check", limit=1, check_after=0), backend) as pool:
        async with pool.lease() as resource:
            resource.is_healthy = False
        await anyio.sleep(1)
        backend["check"].shut()
        async with anyio.create_task_group() as group:
            callers = Callers(pool, group)
            await callers.join("first")
            await callers.join("second")
            backend["check"].open()
            await settled()
            assert callers.names == ["first"]
            await pool.release(callers.got("first"))
            await anyio.sleep(1)
        assert callers.names == ["first", "second"]
        await pool.release(callers.got("second"))


async def test_what_was_used_a_moment_ago_is_not_checked() -> None:
    backend = Backend()
    async with opened(backend.pool("check", limit=1, check_after=10), backend) as pool:
        async with pool.lease():
            await anyio.sleep(100)
        await anyio.sleep(9.9)
        async with pool.lease():
            pass
        assert backend.count("check") == 0
        await anyio.sleep(10.1)
        async with pool.lease():
            pass
        assert backend.count("check") == 1


async def test_caller_takes_release_while_its_check_runs() -> None:
    backend = Backend()
    async with opened(backend.pool("check", limit=2, check_after=1), backend) as pool:
        busy, stale = await pool.acquire(), await pool.acquire()
        await pool.release(stale)
        await anyio.sleep(5)
        backend["check"].shut()
        async with anyio.create_task_group() as group:
            callers = Callers(pool, group)
            await callers.join("waiter")
            assert pool.stats().checking == 1
            await pool.release(busy)
            await settled()
            assert callers.got("waiter") is busy
            backend["check"].open()
            await settled()
        assert pool.free == 1
        await pool.release(busy)


@pytest.mark.parametrize("hooks", [(), ("check",)])
async def test_fifo_uses_all_resources_alike(hooks: tuple[str, ...]) -> None:
    backend = Backend()
    async with opened(backend.pool(*hooks, limit=10, reuse="fifo"), backend) as pool:
        every = [await pool.acquire() for _ in range(10)]
        for resource in every:
            await pool.release(resource)
        await anyio.sleep(5)
        uses = [0] * 10
        for _ in range(30):
            async with pool.lease() as resource:
                uses[resource.number] += 1
            await anyio.sleep(0.04)
        assert uses == [3] * 10


# --- try_acquire ------------------------------------------------------------------------------------


async def test_try_acquire_prepares_resource_for_next_try() -> None:
    """The call itself never waits."""
    backend = Backend()
    async with opened(backend.pool("check", limit=2, check_after=1), backend) as pool:
        assert pool.try_acquire() is None
        await settled()
        first = pool.try_acquire()
        assert first is not None
        assert pool.try_acquire() is None
        await settled()
        second = pool.try_acquire()
        assert second is not None
        await settled()
        assert pool.try_acquire() is None
        await pool.release(second)
        await anyio.sleep(5)
        assert pool.try_acquire() is None, "it has to be checked first"
        await settled()
        assert pool.try_acquire() is second
        await pool.release(first)
        await pool.release(second)


async def test_try_acquire_creates_one_at_a_time_unless_down() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=5), backend) as pool:
        backend["create"].shut()
        for _ in range(5):
            assert pool.try_acquire() is None
        await settled()
        assert pool.creating == 1
        backend.fail("create")
        backend["create"].open()
        await settled()
        for _ in range(5):
            assert pool.try_acquire() is None
        assert pool.creating == 0
        with pytest.raises(ResourceUnavailable):
            await pool.acquire()
        backend.work("create")
        await anyio.sleep(1)


# --- what a person sees -------------------------------------------------------------------------------


async def test_the_repr_reads_like_the_one_of_the_julia_original() -> None:
    backend = Backend()
    async with opened(backend.pool(limit=3, name="db"), backend) as pool:
        async with pool.lease(), pool.lease():
            pass
        async with pool.lease():
            assert repr(pool) == "ConnectionPool 'db' of limit 3 with 1 free and 1 taken resources (open)"
    assert repr(pool) == "ConnectionPool 'db' of limit 3 with 0 free and 0 taken resources (closed)"


async def test_many_tasks_share_few_resources_without_loss() -> None:
    backend = Backend()
    async with opened(backend.pool("check", "change", limit=3, check_after=0.02), backend) as pool:
        in_use: set[int] = set()

        async def work(number: int) -> None:
            for turn in range(5):
                async with pool.lease(timeout=None) as resource:
                    assert id(resource) not in in_use, "two have the same"
                    in_use.add(id(resource))
                    await anyio.sleep(0.01 * ((number + turn) % 3))
                    in_use.remove(id(resource))
                await anyio.sleep(0.01 * ((number * turn) % 4))

        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(work, number)
        check(pool)
        assert pool.stats().acquires == 250
