"""Numbers that can be trusted: they add up, never go back, and count each thing once."""

import dataclasses
from typing import Any

import anyio
import pytest

from connectionpools_fastapi import PoolStats, PoolTimeout
from connectionpools_fastapi._core.recorder import Recorder
from connectionpools_fastapi._runtime.caller import current_task
from connectionpools_fastapi._runtime.holders import name_of
from tests.support import Backend, PlainBackend, held, outcome_of, settled

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


async def test_a_snapshot_tells_every_state_apart() -> None:
    backend = Backend()
    async with backend.pool("check", "change", limit=6, check_after=0, name="db") as pool:
        leases = [pool.lease() for _ in range(5)]
        for lease in leases:
            await lease.__aenter__()
        leases[0].release_nowait()
        await settled()
        await anyio.sleep(1)
        for gate in backend.gates.values():
            gate.shut()
        leases[1].release_nowait()
        leases[2].discard()
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(outcome_of, lambda: pool.acquire(timeout=1))
            await settled()
            stats = pool.stats()
            assert (stats.name, stats.status, stats.limit) == ("db", "open", 6)
            assert (stats.free, stats.checking, stats.changing, stats.leased) == (0, 1, 1, 2)
            assert (stats.taken, stats.creating, stats.cleaning, stats.waiting) == (4, 2, 1, 3)
            assert stats.free + stats.taken + stats.creating == 6
        stats = pool.stats()
        assert (stats.waiting, stats.timeouts) == (0, 3)
        for gate in backend.gates.values():
            gate.open()
        await settled()
        assert (pool.free, pool.taken, pool.creating) == (4, 2, 0)
        for lease in leases[3:]:
            lease.release_nowait()


async def test_a_snapshot_is_frozen() -> None:
    stats = Backend().pool().stats()
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.free = 5  # type: ignore[misc]


async def test_waits_uses_and_creations_are_measured() -> None:
    backend = Backend()

    async def slow_create() -> Any:
        await anyio.sleep(0.3)
        return await Backend.create(backend)

    async with backend.pool(limit=1, create=slow_create) as pool:
        async with pool.lease():
            await anyio.sleep(2)
        async with pool.lease():
            pass
        stats = pool.stats()
        assert stats.create.sum == pytest.approx(0.3)
        assert stats.wait.sum == pytest.approx(0.3)
        assert stats.use.sum == pytest.approx(2)
        assert stats.create.count == stats.creates == 1
        assert stats.wait.count == stats.acquires == 2
        assert stats.use.count == stats.releases == 2
        assert stats.wait.counts[0] == 1, "a caller that is served at once waits for no time"


async def test_what_is_gone_is_still_counted() -> None:
    backend = Backend()
    async with backend.pool(limit=1) as pool:
        for end in ("discard", "detach", "release_nowait"):
            lease = pool.lease()
            async with lease:
                await anyio.sleep(1)
                getattr(lease, end)()
        await pool.drain()
        stats = pool.stats()
        assert (stats.acquires, stats.releases) == (3, 3)
        assert stats.use.sum == pytest.approx(3)
        assert (stats.creates, stats.cleans, stats.detached) == (3, 2, 1)
        assert {reason: count for reason, count in stats.discards.items() if count} == {"discard": 1, "expire": 1}


async def test_a_grant_that_came_too_late_takes_nothing_back() -> None:
    backend = Backend()
    async with backend.pool(limit=1) as pool:
        lease = pool.lease()
        await lease.__aenter__()
        scope = anyio.CancelScope()

        async def call() -> None:
            with scope:
                await pool.acquire()

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await settled()
            lease.release_nowait()
            granted = pool.stats()
            scope.cancel()
        after = pool.stats()
        assert after.acquires >= granted.acquires == 2
        assert after.wait.count == after.acquires


@pytest.mark.needs_python
async def test_acquires_never_go_back_while_a_lease_ends() -> None:
    """A counter that goes back makes Prometheus see a restart."""
    seen: list[PoolStats] = []

    class Onlooker(list[int]):
        def __setitem__(self, index: Any, count: Any) -> None:
            seen.append(pool.stats())
            super().__setitem__(index, count)
            seen.append(pool.stats())

    async with Backend().pool(limit=1) as pool:
        async with pool.lease():
            (slot,) = pool._engine.inventory.slots.values()
            slot.use_counts = Onlooker(slot.use_counts)
        assert [(stats.acquires, stats.releases, stats.leased) for stats in seen] == [(1, 0, 1), (1, 1, 0)]


async def test_holders_are_listed_the_longest_first() -> None:
    async with Backend().pool(limit=3) as pool:
        async with pool.lease(holder="first"):
            await anyio.sleep(2)
            async with pool.lease(holder="second"):
                await anyio.sleep(1)
                async with pool.lease():
                    assert [(holder.name, round(holder.age, 3)) for holder in pool.holders()] == [
                        ("first", 3),
                        ("second", 1),
                        (name_of(current_task()), 0),
                    ]
        assert pool.holders() == []
        await pool.release(await pool.acquire())


async def test_refusals_are_counted_by_reason() -> None:
    backend = Backend()
    pool = backend.pool(limit=1, max_waiting=0)
    await outcome_of(pool.acquire)
    async with pool:
        async with held(pool):
            await outcome_of(pool.acquire)
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0)
        await pool.drain()
        backend.fail("create")
        await outcome_of(pool.acquire)
        await outcome_of(pool.acquire)
    assert pool.stats().refusals == {"closed": 1, "deadlock": 0, "full": 1, "overloaded": 0, "unavailable": 2}


async def test_an_outage_is_told_without_its_text() -> None:
    backend = Backend()
    backend.fail("create")
    async with backend.pool(limit=1) as pool:
        assert (pool.stats().failing, pool.stats().cause, pool.stats().retry_after) == (False, None, None)
        await outcome_of(pool.acquire)
        stats = pool.stats()
        assert (stats.failing, stats.down, stats.cause) == (True, True, "ConnectionError")
        assert stats.create_failures == backend.count("create") >= 4
        assert stats.retry_after is not None
        assert 0 < stats.retry_after <= 0.5
        backend.work("create")
        await anyio.sleep(1)
        assert (pool.stats().failing, pool.stats().down) == (False, False)


async def test_a_flake_is_told_as_failing_and_not_as_down() -> None:
    backend = Backend()
    backend.fail("create")
    async with backend.pool(limit=1) as pool:
        await outcome_of(lambda: pool.acquire(timeout=0.9))
        assert (pool.stats().failing, pool.stats().down) == (True, False)
        backend.work("create")
        await anyio.sleep(1)


def test_a_bound_is_inclusive() -> None:
    recorder = Recorder((1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 2.0, 2.5):
        recorder.record(seconds)
    assert recorder.snapshot().counts == (2, 2, 1)
    assert recorder.snapshot().sum == 7.5


# --- the probe -------------------------------------------------------------------------------


async def test_probe_creates_first_or_checks_coldest_resource() -> None:
    backend = Backend()
    async with backend.pool("check", limit=3) as pool:
        assert await pool.probe()
        assert (len(backend.created), backend.count("check")) == (1, 0)
        async with pool.lease() as cold, pool.lease() as warm:
            pass
        await anyio.sleep(10)
        cold.is_healthy = False
        async with pool.lease() as used:
            assert used is cold or used is warm
        assert await pool.probe(max_age=5)


async def test_a_probe_costs_nothing_while_something_is_known() -> None:
    backend = Backend()
    async with backend.pool("check", limit=3) as pool:
        for _ in range(100):
            assert await pool.probe(max_age=5)
        assert backend.calls == ["create"]
        await anyio.sleep(6)
        assert await pool.probe(max_age=5)
        assert backend.calls == ["create", "check"]


async def test_probes_at_the_same_time_share_one_try() -> None:
    backend = Backend()
    backend["create"].shut()
    async with backend.pool(limit=3) as pool:
        answers: list[bool] = []

        async def probe() -> None:
            answers.append(await pool.probe())

        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(probe)
            await settled()
            assert backend.count("create") == 1
            backend["create"].open()
        assert answers == [True] * 50


async def test_a_probe_ends_in_time_and_says_no() -> None:
    backend = Backend()
    backend["create"].shut()
    async with backend.pool(limit=3) as pool:
        began = anyio.current_time()
        assert not await pool.probe(timeout=2)
        assert anyio.current_time() - began == pytest.approx(2)
        assert not await pool.probe(timeout=2)
        assert anyio.current_time() - began == pytest.approx(2), "what has hung for that long is not waited for again"
        backend["create"].open()
        await settled()
        assert await pool.probe()


async def test_a_probe_never_waits_for_a_resource() -> None:
    backend = Backend()
    async with backend.pool("check", limit=1) as pool, pool.lease():
        await anyio.sleep(100)
        began = anyio.current_time()
        assert await pool.probe(max_age=0)
        assert anyio.current_time() == began


async def test_probe_of_broken_candidate_does_not_wait() -> None:
    backend = Backend()
    async with backend.pool("check", limit=2) as pool, pool.lease():
        async with pool.lease() as broken:
            broken.is_healthy = False
        await anyio.sleep(100)
        began = anyio.current_time()
        assert await pool.probe(max_age=0, timeout=2)
        assert anyio.current_time() == began
        assert backend.count("check") == 1


async def test_a_probe_tells_a_back_end_that_is_down() -> None:
    backend = Backend()
    backend.fail("create")
    async with backend.pool(limit=1) as pool:
        assert await pool.probe(), "one failure may be a flake"
        await anyio.sleep(1)
        known = backend.count("create")
        assert not await pool.probe()
        assert not await pool.probe()
        assert backend.count("create") == known
    assert not await pool.probe()


@pytest.mark.usefixtures("anyio_backend")
def test_a_pool_in_threads_counts_as_well() -> None:
    with PlainBackend().pool(limit=1) as pool:
        for _ in range(5):
            with pool.lease():
                pass
    assert pool.stats().acquires == pool.stats().releases == 5
