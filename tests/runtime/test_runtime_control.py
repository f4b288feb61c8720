"""A pool is controlled while it is in use: resized, suspended, resumed, and rid of some resources."""

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

from connectionpools_fastapi import (
    ConnectionPool,
    PoolClosed,
    PoolConfigError,
    PoolTimeout,
    ResourceUnavailable,
    WrongEventLoop,
)
from connectionpools_fastapi._monitoring.health import examine
from tests.support import Backend, PlainBackend, Resource, assert_nothing_is_lost, check, held, loop_time, settled

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


# --- resize ----------------------------------------------------------------------------------------


async def test_higher_limit_serves_waiters_at_once() -> None:
    backend = Backend()
    async with backend.pool(limit=1) as pool, anyio.create_task_group() as group, held(pool):
        got: list[Resource] = []

        async def lease() -> None:
            async with pool.lease() as resource:
                got.append(resource)
                await anyio.sleep(1)

        for _ in range(3):
            group.start_soon(lease)
        await settled()
        assert (pool.waiting, got) == (3, [])
        pool.resize(3)
        await settled()
        assert (pool.limit, pool.waiting, len(got), pool.taken) == (3, 1, 2, 3)
        check(pool)


async def test_lower_limit_retires_leased_ones_as_they_come_back() -> None:
    """The free ones are retired at once."""
    backend = Backend()
    async with backend.pool("change", limit=6) as pool:
        leased = [await pool.acquire() for _ in range(6)]
        for resource in leased[4:]:
            await pool.release(resource)
        pool.resize(2)
        await settled()
        assert (pool.free, pool.taken, len(backend.cleaned)) == (0, 4, 2)
        sizes = []
        for resource in leased[:4]:
            await pool.release(resource)
            sizes.append(pool.free + pool.taken)
            check(pool)
        assert sizes == [3, 2, 2, 2]
        assert pool.stats().discards["resize"] == 4
        await assert_nothing_is_lost(pool, backend)


async def test_no_waiter_is_served_above_lowered_limit() -> None:
    """Nothing is created above it either."""
    backend = Backend()
    async with backend.pool(limit=3) as pool, anyio.create_task_group() as group:
        leases = [pool.lease() for _ in range(3)]
        for lease in leases:
            await lease.__aenter__()
        served: list[float] = []

        async def wait() -> None:
            async with pool.lease(timeout=60):
                served.append(loop_time())

        group.start_soon(wait)
        await settled()
        pool.resize(1)
        for lease in leases[:2]:
            lease.release_nowait()
            await settled()
            assert served == []
        leases[2].release_nowait()
        await settled()
        assert len(served) == 1
        assert len(backend.created) == 3, "the last one was handed on"


async def test_creations_above_lowered_limit_are_not_kept() -> None:
    backend = Backend()
    async with backend.pool(limit=4, min_free=0) as pool, anyio.create_task_group() as group:
        backend["create"].shut()
        got: list[Resource] = []

        async def lease() -> None:
            async with pool.lease(timeout=60) as resource:
                got.append(resource)
                assert pool.taken <= 1
                await settled()

        for _ in range(4):
            group.start_soon(lease)
        await settled()
        assert pool.creating == 4
        pool.resize(1)
        backend["create"].open()
        await settled()
        await anyio.sleep(1)
        assert len(got) == 4
        assert pool.free == 1
        check(pool)


async def test_write_off_and_resize_leave_max_waiting_right() -> None:
    """A caller that spare capacity will serve is let in."""
    backend = Backend()
    pool = backend.pool(limit=1, max_waiting=0, close_timeout=0)
    await pool.open()
    late = await pool.acquire()
    await pool.close()
    async with pool:
        async with pool.lease():
            pass
        await pool.release(late)
    wide = backend.pool(limit=4, max_waiting=2)
    async with wide, anyio.create_task_group() as group:
        leased = [await wide.acquire() for _ in range(4)]
        wide.resize(2)

        async def call() -> None:
            async with wide.lease():
                pass

        for _ in range(2):
            group.start_soon(call)
        await settled()
        assert wide.waiting == 2
        for resource in leased:
            await wide.release(resource)


async def test_min_free_is_kept_as_far_as_the_limit_allows() -> None:
    backend = Backend()
    async with backend.pool(limit=5, min_free=3) as pool:
        pool.resize(2)
        await settled()
        assert pool.free == 2
        pool.resize(8)
        await settled()
        assert pool.free == 3


async def test_resizing_under_load_never_exceeds_recent_limits() -> None:
    backend = Backend()
    async with backend.pool(limit=8) as pool:
        async with anyio.create_task_group() as group:

            async def work(number: int) -> None:
                for turn in range(30):
                    async with pool.lease(timeout=None):
                        await anyio.sleep((number * 7 + turn * 3) % 5 / 10)

            async def resize() -> None:
                for limit in (3, 6, 1, 9, 2, 4) * 3:
                    before = pool.free + pool.taken + pool.creating
                    pool.resize(limit)
                    for _ in range(20):
                        await anyio.sleep(0.05)
                        exist = pool.free + pool.taken + pool.creating
                        assert exist <= max(before, limit), "it grew above its limit"
                        before = exist
                        check(pool)
                pool.resize(5)

            group.start_soon(resize)
            for number in range(12):
                group.start_soon(work, number)
        await assert_nothing_is_lost(pool, backend)


async def test_new_limit_outlives_restart_and_is_reported() -> None:
    backend = Backend()
    pool = backend.pool(limit=5)
    pool.resize(2)
    async with pool:
        assert pool.stats().limit == 2
    async with pool, held(pool), held(pool):
        with pytest.raises(PoolTimeout, match="limit 2"):
            await pool.acquire(timeout=0)


@pytest.mark.parametrize("limit", [0, -1, 2.5, True, "3", None])
async def test_bad_limit_is_refused_and_changes_nothing(limit: Any) -> None:
    pool = Backend().pool(limit=5)
    with pytest.raises(PoolConfigError, match="limit must be a positive whole number"):
        pool.resize(limit)
    assert pool.limit == 5


async def test_a_thread_may_resize() -> None:
    backend = PlainBackend()
    pool = backend.pool(limit=3, blocking=False)
    async with pool, held(pool):
        await anyio.to_thread.run_sync(pool.resize, 1)
        assert pool.limit == 1


# --- suspend and resume ------------------------------------------------------------------------------


async def test_suspended_pool_queues_callers_in_order() -> None:
    """Leases go on."""
    backend = Backend()
    async with backend.pool("check", "change", limit=1) as pool, anyio.create_task_group() as group:
        order: list[int] = []
        lease = pool.lease()
        await lease.__aenter__()
        pool.suspend()
        pool.suspend()
        assert pool.status == "suspended"

        async def wait(number: int) -> None:
            async with pool.lease():
                order.append(number)

        for number in range(4):
            group.start_soon(wait, number)
            await settled()
        assert pool.try_acquire() is None
        lease.release_nowait()
        await anyio.sleep(4)
        assert (order, pool.waiting, pool.free) == ([], 4, 1)
        check(pool)
        pool.resume()
        pool.resume()
        await settled()
        assert (order, pool.status) == ([0, 1, 2, 3], "open")


async def test_timeout_of_suspended_pool_says_why() -> None:
    async with Backend().pool(limit=2, timeout=3) as pool:
        pool.suspend()
        began = loop_time()
        with pytest.raises(PoolTimeout, match=r"suspended; pool\.resume\(\)"):
            await pool.acquire()
        assert loop_time() - began == pytest.approx(3, abs=1e-6)
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0)


async def test_back_end_switches_over_without_failed_caller() -> None:
    backend = Backend()
    async with backend.pool(limit=3, min_free=2) as pool, anyio.create_task_group() as group:
        served: list[int] = []

        async def call(number: int) -> None:
            async with pool.lease():
                served.append(number)

        pool.suspend()
        backend.fail("create")
        pool.expire()
        for number in range(5):
            group.start_soon(call, number)
        await anyio.sleep(2)
        assert backend.count("create") == 2, "nothing is created while suspended"
        backend.work("create")
        pool.resume()
        await settled()
        assert sorted(served) == [0, 1, 2, 3, 4]
        check(pool)


async def test_resume_retries_failed_create_at_once() -> None:
    backend = Backend()
    async with backend.pool(limit=2) as pool:
        backend.fail("create")
        with pytest.raises(ResourceUnavailable):
            await pool.acquire()
        pool.suspend()
        backend.work("create")
        async with anyio.create_task_group() as group:

            async def call() -> None:
                async with pool.lease():
                    pass

            known = backend.count("create")
            group.start_soon(call)
            await anyio.sleep(3)
            assert backend.count("create") == known
            assert pool.waiting == 1
            began = loop_time()
            pool.resume()
        assert loop_time() == began
        assert not pool.stats().failing


async def test_create_that_fails_after_suspend_fails_no_caller() -> None:
    backend = Backend()
    async with backend.pool(limit=2) as pool, anyio.create_task_group() as group:
        backend["create"].shut()
        served: list[Resource] = []

        async def call() -> None:
            async with pool.lease() as resource:
                served.append(resource)

        group.start_soon(call)
        await settled()
        pool.suspend()
        backend.fail("create")
        backend["create"].open()
        await settled()
        assert pool.waiting == 1
        backend.work("create")
        pool.resume()
        await settled()
        assert len(served) == 1


async def test_keepalive_pauses_while_suspended() -> None:
    backend = Backend()
    async with backend.pool("check", limit=2, min_free=2, keepalive=5, check_after=10) as pool:
        pool.suspend()
        backend.fail("check")
        await anyio.sleep(30)
        assert (pool.free, backend.count("check")) == (2, 0)
        backend.work("check")
        pool.resume()
        await settled()
        assert (pool.free, backend.count("check")) == (2, 2)


async def test_a_suspended_pool_closes_like_any_other() -> None:
    backend = Backend()
    pool = backend.pool(limit=2, min_free=1)
    await pool.open()
    pool.suspend()
    with pytest.raises(PoolConfigError, match="suspended already"):
        await pool.open()
    async with anyio.create_task_group() as group:

        async def call() -> None:
            with pytest.raises(PoolClosed):
                await pool.acquire()

        group.start_soon(call)
        await settled()
        await pool.close()
    assert pool.status == "closed"
    async with pool:
        assert pool.status == "open"
        await assert_nothing_is_lost(pool, backend)


async def test_suspended_pool_warns_with_reason_unprobed() -> None:
    backend = Backend()
    async with backend.pool("check", limit=2, min_free=1) as pool:
        pool.suspend()
        health = await examine(pool, max_age=0)
        assert (health.verdict, health.reason) == ("warn", "suspended: 0 waiting")
        assert backend.count("check") == 0
        pool.resume()
        assert (await examine(pool, max_age=0)).verdict == "pass"


@pytest.mark.parametrize("call", [ConnectionPool.suspend, ConnectionPool.resume])
async def test_suspend_and_resume_need_an_open_pool(call: Callable[[ConnectionPool[Resource]], None]) -> None:
    pool = Backend().pool()
    with pytest.raises(PoolClosed, match="never opened"):
        call(pool)
    async with pool:
        pass
    with pytest.raises(PoolClosed):
        call(pool)
    assert pool.status == "closed"


async def test_a_waiter_may_be_cancelled_while_suspended() -> None:
    backend = Backend()
    async with backend.pool(limit=1) as pool:
        pool.suspend()
        with anyio.move_on_after(1) as scope:
            await pool.acquire()
        assert scope.cancelled_caught
        assert (pool.waiting, pool.stats().withdrawals) == (0, 1)
        pool.resume()
        await assert_nothing_is_lost(pool, backend)


# --- retain ------------------------------------------------------------------------------------------


async def test_retain_asks_about_free_ones_only() -> None:
    """Those that are not wanted are retired."""
    backend = Backend()
    async with backend.pool(limit=5) as pool:
        leased = [await pool.acquire() for _ in range(5)]
        for resource in leased[1:]:
            await pool.release(resource)
        asked: list[int] = []

        def keep(resource: Resource) -> bool:
            asked.append(resource.number)
            assert (pool.free, pool.taken) == (3 - len(gone), 2), "one is out of use while it is asked about"
            if resource.number % 2:
                gone.append(resource)
            return not resource.number % 2

        gone: list[Resource] = []
        assert pool.retain(keep) == 2
        await settled()
        assert sorted(asked) == [1, 2, 3, 4]
        assert sorted(resource.number for resource in backend.cleaned) == [1, 3]
        assert pool.stats().discards["retain"] == 2
        check(pool)
        await pool.release(leased[0])
        await assert_nothing_is_lost(pool, backend)


async def test_what_retain_keeps_is_as_fresh_and_as_old_as_before() -> None:
    backend = Backend()
    async with backend.pool("check", limit=3, check_after=10) as pool:
        for resource in [await pool.acquire() for _ in range(3)]:
            await pool.release(resource)
            await anyio.sleep(1)
        assert pool.retain(lambda _: True) == 0
        async with pool.lease() as resource:
            assert resource.number == 2, "the one used last"
        await anyio.sleep(11)
        async with pool.lease():
            assert backend.count("check") == 1
        check(pool)


async def test_raising_predicate_keeps_resource() -> None:
    """The caller gets the predicate's error."""
    backend = Backend()
    async with backend.pool(limit=2, min_free=2) as pool:
        with pytest.raises(ZeroDivisionError):
            pool.retain(lambda _: 1 / 0)
        assert (pool.free, pool.taken) == (2, 0)
        await assert_nothing_is_lost(pool, backend)


async def test_min_free_is_refilled_after_retain() -> None:
    backend = Backend()
    async with backend.pool(limit=3, min_free=2) as pool:
        assert pool.retain(lambda _: False) == 2
        await settled()
        assert pool.free == 2
        assert len(backend.created) == 4


async def test_a_waiter_gets_what_comes_back_from_retain() -> None:
    backend = Backend()
    async with backend.pool(limit=1, min_free=1) as pool, anyio.create_task_group() as group:
        got: list[Resource] = []

        async def call() -> None:
            async with pool.lease() as resource:
                got.append(resource)

        def keep(_: Resource) -> bool:
            state = pool._engine.state
            assert pool.try_acquire() is None
            assert state.inventory.checking
            return True

        pool.retain(keep)
        group.start_soon(call)
        await settled()
        assert len(got) == 1
        assert len(backend.created) == 1


async def test_a_pool_may_be_drained_by_the_predicate_itself() -> None:
    backend = Backend()
    async with backend.pool(limit=2, min_free=2) as pool:

        def keep(_: Resource) -> bool:
            pool.expire()
            return True

        pool.retain(keep)
        await settled()
        assert pool.free == 2
        check(pool)
        await assert_nothing_is_lost(pool, backend)


async def test_probe_is_answered_during_retain() -> None:
    """`retain` has the only resource out for a moment."""
    backend = Backend()
    async with backend.pool("check", limit=1, min_free=1) as pool, anyio.create_task_group() as group:
        answers: list[bool] = []

        async def probe() -> None:
            answers.append(await pool.probe(max_age=0, timeout=50))

        slot = pool._engine.inventory.free[0]
        assert pool._engine.apply(pool._engine.state.reserve, slot)  # as retain does, in another thread
        group.start_soon(probe)
        await settled()
        began = loop_time()
        pool._engine.apply(partial(pool._engine.state.unreserve, keep=True), slot, pool._engine.clock())
        await settled()
        assert (answers, loop_time() - began) == ([True], 0)


async def test_retain_in_thread_spares_resources_of_a_loop() -> None:
    async with Backend().pool(min_free=1) as pool:
        with pytest.raises(WrongEventLoop):
            await anyio.to_thread.run_sync(pool.retain, bool)
    plain = PlainBackend().pool(min_free=1, blocking=False)
    async with plain:
        assert await anyio.to_thread.run_sync(plain.retain, lambda _: False) == 1
