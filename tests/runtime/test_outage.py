"""A back-end that is down: which callers are told, which may wait, and how the pool finds back."""

import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from connectionpools_fastapi import ConnectionPool, PoolConfigError, PoolError, PoolTimeout, ResourceUnavailable
from tests.support import SECRET, Backend, Resource, assert_nothing_is_lost, loop_time, outcome_of, settled

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


def flaky(backend: Backend, *fails: int) -> Callable[[], Awaitable[Resource]]:
    """Return a `create` that raises at these calls, counted from 1."""

    async def create() -> Resource:
        if backend.count("create") + 1 in fails:
            backend.calls.append("create")
            raise ConnectionError(SECRET)
        return await Backend.create(backend)

    return create


async def down(pool: ConnectionPool[Resource], backend: Backend) -> None:
    """Have the back-end go down, as callers are told."""
    backend.fail("create")
    with pytest.raises(ResourceUnavailable):
        await pool.acquire()


@pytest.mark.parametrize("limit", [1, 4, 10])
@pytest.mark.parametrize("number", [1, 2, 5])
async def test_one_failure_of_create_is_seen_by_no_caller(limit: int, number: int) -> None:
    backend = Backend()
    outcomes: list[Any] = []

    async def call() -> None:
        async with pool.lease():
            outcomes.append(None)
            await anyio.sleep(0.01)

    pool = backend.pool(limit=limit, create=flaky(backend, number))
    async with pool:
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(call)
        assert outcomes == [None] * 50
        await assert_nothing_is_lost(pool, backend)


@pytest.mark.parametrize("limit", [1, 10])
async def test_first_eight_simultaneous_failures_stay_unseen(limit: int) -> None:
    backend = Backend()
    async with backend.pool(limit=limit, create=flaky(backend, *range(1, min(limit, 8) + 1))) as pool:
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(hold, pool)
        assert pool.stats().acquires == 50
        await assert_nothing_is_lost(pool, backend)


async def hold(pool: ConnectionPool[Resource], seconds: float = 0.01) -> None:
    async with pool.lease():
        await anyio.sleep(seconds)


async def test_where_5_percent_of_creates_fail_callers_are_served() -> None:
    backend = Backend()
    chance = random.Random(5)  # noqa: S311 - no secret

    async def create() -> Resource:
        await anyio.sleep(0.01)
        if chance.random() < 0.05:
            raise ConnectionError(SECRET)
        return await Backend.create(backend)

    refused = 0
    async with backend.pool(limit=4, create=create, max_uses=2) as pool:

        async def come() -> None:
            nonlocal refused
            for _ in range(40):
                try:
                    await hold(pool, 0.005)
                except PoolError:
                    refused += 1

        async with anyio.create_task_group() as group:
            for _ in range(30):
                group.start_soon(come)
        stats = pool.stats()
        assert stats.create_failures > 10
        assert refused <= 6
        await assert_nothing_is_lost(pool, backend)


async def test_callers_fail_a_second_after_first_failure() -> None:
    """Later callers fail at once."""
    backend = Backend()
    backend.fail("create")
    async with backend.pool(limit=2) as pool:
        began = loop_time()
        with pytest.raises(ResourceUnavailable) as caught:
            await pool.acquire(timeout=None)
        assert loop_time() - began == pytest.approx(1)
        assert caught.value.__cause__ is backend.raises["create"]
        assert caught.value.retry_after is not None
        assert 0 < caught.value.retry_after <= 0.5
        assert "ConnectionError" in str(caught.value)
        began, known = loop_time(), backend.count("create")
        with pytest.raises(ResourceUnavailable):
            await pool.acquire()
        assert loop_time() == began, "no caller queues while the back-end is down"
        assert backend.count("create") == known
        assert pool.stats().refusals["unavailable"] == 2
        assert pool.stats().down
        backend.work("create")
        await anyio.sleep(1)
        await assert_nothing_is_lost(pool, backend)


async def test_all_in_line_are_told_when_the_back_end_is_down() -> None:
    backend = Backend()
    async with backend.pool(limit=2) as pool:
        outcomes: list[Any] = []

        async def call() -> None:
            outcomes.append(await outcome_of(pool.acquire))

        backend.fail("create")
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(call)
            await anyio.sleep(0.9)
            assert outcomes == []
        assert [type(outcome) for outcome in outcomes] == [ResourceUnavailable] * 5
        backend.work("create")
        await anyio.sleep(1)
        await assert_nothing_is_lost(pool, backend)


async def test_outage_tries_singly_until_success_serves_all() -> None:
    backend = Backend()
    backend.fail("create")
    tries: list[float] = []

    async def create() -> Resource:
        tries.append(loop_time())
        return await backend.create()

    async with backend.pool(limit=5, create=create) as pool:
        began = loop_time()
        async with anyio.create_task_group() as group:
            while loop_time() < began + 10:
                group.start_soon(outcome_of, pool.acquire)
                await anyio.sleep(0.01)
                assert pool.creating <= 1
            assert 20 <= len(tries) <= 40
            pauses = [later - earlier for earlier, later in zip(tries[-9:], tries[-8:], strict=False)]
            assert all(0.35 - 1e-6 <= pause <= 0.5 + 1e-6 for pause in pauses)
            assert len(set(pauses)) > 1, "nothing is left to chance"
            backend.work("create")
            while (resource := pool.try_acquire()) is None:  # noqa: ASYNC110 - a caller comes again and again
                await anyio.sleep(0.01)
            assert loop_time() - began <= 10 + 0.6, "callers are served soon after its return"
            await pool.release(resource)
        leased = [await pool.acquire() for _ in range(5)]
        for resource in leased:
            await pool.release(resource)
        assert not pool.stats().failing
        await assert_nothing_is_lost(pool, backend)


async def test_first_caller_after_idle_outage_is_served() -> None:
    backend = Backend()
    async with backend.pool(limit=2) as pool:
        await down(pool, backend)
        await anyio.sleep(30)
        assert backend.count("create") < 20
        at_rest = backend.count("create")
        await anyio.sleep(1)
        if backend.count("create") == at_rest:
            backend.work("create")
            began = loop_time()
            async with pool.lease():
                assert loop_time() == began
        backend.work("create")
        await anyio.sleep(4)
        await assert_nothing_is_lost(pool, backend)


async def test_refusals_let_the_event_loop_go_on() -> None:
    backend = Backend()
    async with backend.pool(limit=1) as pool:
        await down(pool, backend)
        passes = 0

        async def count() -> None:
            nonlocal passes
            while True:
                passes += 1
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            group.start_soon(count)
            for _ in range(20):
                assert isinstance(await outcome_of(pool.acquire), ResourceUnavailable)
            assert passes >= 10
            group.cancel_scope.cancel()
        backend.work("create")
        await anyio.sleep(1)
        await assert_nothing_is_lost(pool, backend)


async def test_callers_wait_for_holder_during_outage() -> None:
    """The holder notices nothing."""
    backend = Backend()
    async with backend.pool(limit=2) as pool:
        held = await pool.acquire()
        backend.fail("create")
        served: list[Any] = []

        async def call() -> None:
            served.append(await outcome_of(pool.acquire))

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await anyio.sleep(4)
            assert pool.waiting == 1, "something is alive: it is worth waiting"
            assert not pool.stats().down
            await pool.release(held)
        assert served == [held]
        await pool.release(held)
        backend.work("create")
        await anyio.sleep(2)
        await assert_nothing_is_lost(pool, backend)


async def test_full_server_refuses_no_caller_served_by_a_lease() -> None:
    backend = Backend()
    room = 3
    most = 0

    async def create() -> Resource:
        nonlocal most
        await anyio.sleep(0.005)
        if len(backend.created) - len(backend.cleaned) >= room:
            raise ConnectionError(SECRET)
        most = max(most, len(backend.created) - len(backend.cleaned) + 1)
        return await Backend.create(backend)

    async with backend.pool(limit=20, create=create, max_lifetime=1) as pool:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(hold_again_and_again, pool, 100)
        stats = pool.stats()
        assert (stats.acquires, stats.timeouts, sum(stats.refusals.values())) == (2000, 0, 0)
        assert stats.discards["max_lifetime"] > 10
        assert most == room


async def hold_again_and_again(pool: ConnectionPool[Resource], times: int) -> None:
    for _ in range(times):
        await hold(pool, 0.02)


async def test_fourth_caller_of_three_connections_waits() -> None:
    backend = Backend()

    async def create() -> Resource:
        if len(backend.created) == 3:
            raise ConnectionError(SECRET)
        return await Backend.create(backend)

    async with backend.pool(limit=5, create=create) as pool:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(hold, pool, 0.2)
            await anyio.sleep(0.1)
            began = loop_time()
            async with pool.lease():
                assert loop_time() - began == pytest.approx(0.1)
        assert pool.stats().refusals["unavailable"] == 0


async def test_failing_create_and_last_discard_strand_no_waiter() -> None:
    backend = Backend()
    async with backend.pool(limit=1) as pool:
        held = await pool.acquire()
        outcomes: list[Any] = []

        async def call() -> None:
            outcomes.append(await outcome_of(lambda: pool.acquire(timeout=None)))

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(call)
            await settled()
            backend.fail("create")
            pool.discard(held)
        assert [type(outcome) for outcome in outcomes] == [ResourceUnavailable] * 3
        backend.work("create")
        await anyio.sleep(1)
        await assert_nothing_is_lost(pool, backend)


async def test_everything_is_checked_after_a_failure() -> None:
    """Fresh resources are no exception."""
    backend = Backend()
    async with backend.pool("check", limit=3, check_after=1000) as pool:
        busy, free = await pool.acquire(), await pool.acquire()
        backend.fail("create")
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0.5)
        await pool.release(free)
        await pool.release(busy)
        assert backend.count("check") == 0
        busy.is_healthy = free.is_healthy = False
        with pytest.raises(ResourceUnavailable):
            await pool.acquire()
        assert backend.count("check") == 2
        backend.work("create")
        await anyio.sleep(2)
        await assert_nothing_is_lost(pool, backend)


async def test_failure_puts_just_released_resource_in_doubt() -> None:
    backend = Backend()
    async with backend.pool("check", limit=2, check_after=1000) as pool:
        held = await pool.acquire()
        backend["create"].shut()
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=1)
        await pool.release(held)
        backend.fail("create")
        backend["create"].open()
        await settled()
        assert (pool.free, backend.count("check")) == (1, 0)
        async with pool.lease():
            assert backend.count("check") == 1
        backend.work("create")
        await anyio.sleep(2)
        await assert_nothing_is_lost(pool, backend)


async def test_creates_that_fail_together_count_once() -> None:
    backend = Backend()
    backend.fail("create")
    backend["create"].shut()
    async with backend.pool(limit=8, timeout=0.01) as pool:
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(outcome_of, pool.acquire)
            await settled()
            assert backend["create"].waiting == 8
            backend["create"].open()
            await settled()
            assert backend.count("create") == 9, "and one try again at once"
        stats = pool.stats()
        assert stats.create_failures == 9
        assert stats.retry_after is not None
        assert stats.retry_after <= 0.1
        backend.work("create")
        await anyio.sleep(1)
        await assert_nothing_is_lost(pool, backend)


async def test_a_failed_check_puts_the_others_in_doubt() -> None:
    backend = Backend()
    async with backend.pool("check", limit=3, check_after=100, reuse="fifo") as pool:
        every = [await pool.acquire() for _ in range(3)]
        await pool.release(every[0])
        await anyio.sleep(200)
        backend["check"].shut()
        assert pool.try_acquire() is None
        for resource in every[1:]:
            await pool.release(resource)
        every[0].is_healthy = False
        backend["check"].open()
        await settled()
        assert backend.count("check") == 1
        async with pool.lease():
            assert backend.count("check") > 1
        await assert_nothing_is_lost(pool, backend)


async def test_hanging_create_fails_when_cut_off_twice() -> None:
    backend = Backend()
    backend["create"].shut()
    async with backend.pool(limit=1, hook_timeout=2) as pool:
        began = loop_time()
        with pytest.raises(PoolTimeout) as timed_out:
            await pool.acquire(timeout=3)
        assert isinstance(timed_out.value.__cause__, TimeoutError)
        assert "longer than hook_timeout=2 s" in str(timed_out.value)
        with pytest.raises(ResourceUnavailable, match="longer than hook_timeout=2 s") as caught:
            await pool.acquire(timeout=None)
        assert loop_time() - began == pytest.approx(4)
        assert isinstance(caught.value.__cause__, TimeoutError)
        await anyio.sleep(1)
        backend["create"].open()
        await anyio.sleep(1)
        await assert_nothing_is_lost(pool, backend)


async def test_timeout_of_caller_is_no_failure() -> None:
    backend = Backend()
    backend["create"].shut()
    async with backend.pool(limit=1) as pool:
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=1)
        assert not pool.stats().failing
        backend["create"].open()
        await settled()
        await assert_nothing_is_lost(pool, backend)


async def test_the_log_says_it_once_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    backend = Backend()
    backend.fail("create")
    backend["create"].shut()
    async with backend.pool(limit=4, name="db") as pool:
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(outcome_of, pool.acquire)
            await settled()
            backend["create"].open()
        await anyio.sleep(10)
        assert [record.getMessage() for record in caplog.records] == ["pool 'db': create failed with ConnectionError"]
        backend.work("create")
        await anyio.sleep(4)
        assert caplog.records[1].getMessage() == "pool 'db': create works again"
        await assert_nothing_is_lost(pool, backend)
    assert len(caplog.records) == 2


async def test_log_says_that_create_works_after_one_failure(caplog: pytest.LogCaptureFixture) -> None:
    async with ConnectionPool(create=flaky(Backend(), 1), name="db") as pool, pool.lease():
        pass
    assert caplog.messages == ["pool 'db': create failed with ConnectionError", "pool 'db': create works again"]


async def test_opening_fails_once_the_back_end_is_down() -> None:
    backend = Backend()
    backend.fail("create")
    pool = backend.pool(limit=4, min_free=2)
    began = loop_time()
    with pytest.raises(ResourceUnavailable, match="open_timeout=60 would wait longer") as caught:
        await pool.open()
    assert loop_time() - began == pytest.approx(1)
    assert caught.value.__cause__ is backend.raises["create"]
    assert pool.status == "closed"
    backend.work("create")
    async with pool:
        assert pool.free == 2
        await assert_nothing_is_lost(pool, backend)


@pytest.mark.parametrize("number", [1, 2])
async def test_opening_does_not_notice_one_failure(number: int) -> None:
    backend = Backend()
    async with backend.pool(limit=4, min_free=2, create=flaky(backend, number)) as pool:
        assert pool.free == 2
        await assert_nothing_is_lost(pool, backend)


async def test_open_timeout_waits_for_late_back_end() -> None:
    backend = Backend()
    backend.fail("create")
    pool = backend.pool(limit=4, min_free=2, open_timeout=60)
    async with anyio.create_task_group() as group:
        group.start_soon(pool.open)
        await anyio.sleep(20)
        assert pool.free == 0
        backend.work("create")
        await anyio.sleep(0.6)
        assert pool.free == 2
    await assert_nothing_is_lost(pool, backend)


@pytest.mark.parametrize("hangs", [False, True])
async def test_opening_with_open_timeout_fails_when_it_has_passed(*, hangs: bool) -> None:
    backend = Backend()
    if hangs:
        backend["create"].shut()
    else:
        backend.fail("create")
    pool = backend.pool(limit=4, min_free=2, open_timeout=5, hook_timeout=60)
    began = loop_time()
    with pytest.raises(ResourceUnavailable, match="has not answered in time" if hangs else "failed 1[0-9] times"):
        await pool.open()
    assert loop_time() - began == pytest.approx(5)
    assert pool.status == "closed"


async def test_opening_with_an_open_timeout_of_0_fills_later() -> None:
    backend = Backend()
    backend.fail("create")
    async with backend.pool(limit=4, min_free=2, open_timeout=0) as pool:
        assert pool.status == "open"
        await anyio.sleep(10)
        backend.work("create")
        await anyio.sleep(4)
        assert pool.free == 2
        await assert_nothing_is_lost(pool, backend)


async def test_open_obeys_callers_timeout_while_create_hangs() -> None:
    backend = Backend()
    backend["create"].shut()
    pool = backend.pool(limit=4, min_free=2)
    began = loop_time()
    with anyio.move_on_after(0.5):
        await pool.open()
    assert loop_time() - began == pytest.approx(0.5)
    assert pool.status == "closed"
    assert pool.creating == 0
    backend["create"].open()
    async with pool:
        assert pool.free == 2
        await assert_nothing_is_lost(pool, backend)


async def test_a_mistake_in_create_is_told_as_what_it_is() -> None:
    backend = Backend()
    pool = backend.pool(limit=2, create=lambda: None, blocking=False)
    async with pool:
        with pytest.raises(PoolConfigError, match="create returned None; return the resource"):
            await pool.acquire()
    only = object()
    twice = backend.pool(limit=2, create=lambda: only, blocking=False)
    async with twice:
        async with twice.lease() as resource:
            assert resource is only
            with pytest.raises(PoolConfigError, match="already holds"):
                await twice.acquire()
            assert twice.taken == 1
        assert twice.free == 1
        await anyio.sleep(5)
        assert twice.stats().creates == 1


async def test_what_is_being_cleaned_cannot_be_created_again() -> None:
    backend = Backend()
    only = await backend.create()
    pool = backend.pool(limit=1, create=lambda: only, blocking=False)
    async with pool:
        lease = pool.lease()
        backend["clean"].shut()
        async with lease:
            lease.discard()
        with pytest.raises(PoolConfigError, match="already holds"):
            await pool.acquire()
        backend["clean"].open()
        await anyio.sleep(2)
        async with pool.lease() as again:
            assert again is only


async def test_retry_after_is_positive_during_a_try() -> None:
    backend = Backend()
    backend.fail("create")
    async with backend.pool(limit=1) as pool:
        await outcome_of(pool.acquire)
        backend["create"].shut()
        await anyio.sleep(5)
        await outcome_of(pool.acquire)
        await anyio.sleep(1)
        error = await outcome_of(pool.acquire)
        assert isinstance(error, ResourceUnavailable)
        assert error.retry_after == 0.05
        backend.work("create")
        backend["create"].open()
