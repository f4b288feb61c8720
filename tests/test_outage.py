"""A back-end that is down: who is told, who may wait, and how the pool finds back."""

import logging
from typing import Any

import anyio
import pytest

from connectionpools_fastapi import PoolConfigError, PoolTimeout, ResourceUnavailable
from tests.support import SECRET, Backend, assert_nothing_is_lost, loop_time, outcome_of, settled

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


async def test_a_caller_is_told_at_once_with_the_cause_and_when_to_come_again() -> None:
    backend = Backend()
    backend.fail("create")
    async with backend.pool(limit=2) as pool:
        with pytest.raises(ResourceUnavailable) as caught:
            await pool.acquire()
        assert caught.value.__cause__ is backend.raises["create"]
        assert caught.value.retry_after == pytest.approx(0.075, abs=0.025)
        assert "ConnectionError" in str(caught.value)
        began = loop_time()
        with pytest.raises(ResourceUnavailable) as caught:
            await pool.acquire()
        assert loop_time() == began, "nobody queues while the back-end is down"
        assert backend.count("create") == 1
        assert pool.stats().refusals["unavailable"] == 1
        backend.work("create")
        await anyio.sleep(1)
        await assert_nothing_is_lost(pool, backend)


async def test_all_who_wait_are_told_at_once_when_nothing_is_left_to_wait_for() -> None:
    backend = Backend()
    async with backend.pool(limit=2) as pool:
        backend["create"].shut()
        outcomes: list[Any] = []

        async def call() -> None:
            outcomes.append(await outcome_of(pool.acquire))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(call)
            await settled()
            backend.fail("create")
            backend["create"].open()
        assert [type(outcome) for outcome in outcomes] == [ResourceUnavailable] * 5
        backend.work("create")
        await anyio.sleep(1)
        await assert_nothing_is_lost(pool, backend)


async def test_one_probe_at_a_time_with_growing_pauses_and_the_first_success_lets_everybody_in() -> None:
    backend = Backend()
    backend.fail("create")
    async with backend.pool(limit=5) as pool:
        began = loop_time()
        with pytest.raises(ResourceUnavailable):
            await pool.acquire()
        tries: list[float] = []
        known = backend.count("create")
        while loop_time() < began + 20:
            await anyio.sleep(0.01)
            assert pool.creating <= 1
            if backend.count("create") > known:
                assert backend.count("create") == known + 1
                known = backend.count("create")
                tries.append(loop_time())
        pauses = [later - earlier for earlier, later in zip([began, *tries], tries, strict=False)]
        assert all(pause <= 1.6 + 0.02 for pause in pauses)
        assert all(pause >= 0.8 - 0.02 for pause in pauses[5:])
        assert 0.05 <= pauses[0] <= 0.12
        backend.work("create")
        await anyio.sleep(1.7)
        assert pool.free == 1, "it recovers by itself, with nobody waiting"
        leased = [await pool.acquire() for _ in range(5)]
        for resource in leased:
            await pool.release(resource)
        assert not pool.stats().failing
        await assert_nothing_is_lost(pool, backend)


async def test_who_holds_a_resource_does_not_notice_and_others_queue_for_it() -> None:
    backend = Backend()
    async with backend.pool(limit=2) as pool:
        held = await pool.acquire()
        backend.fail("create")
        with pytest.raises(ResourceUnavailable):
            await pool.acquire()
        served: list[Any] = []

        async def call() -> None:
            served.append(await outcome_of(pool.acquire))

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await settled()
            assert pool.waiting == 1, "something is alive: it is worth waiting"
            await pool.release(held)
        assert served == [held]
        await pool.release(held)
        backend.work("create")
        await anyio.sleep(2)
        await assert_nothing_is_lost(pool, backend)


async def test_each_waiter_is_told_or_served_when_create_fails_for_one_of_them() -> None:
    backend = Backend()
    async with backend.pool(limit=2) as pool:
        backend["create"].shut()
        outcomes: dict[str, Any] = {}

        async def call(name: str) -> None:
            outcomes[name] = await outcome_of(pool.acquire)

        async with anyio.create_task_group() as group:
            group.start_soon(call, "first")
            await settled()
            backend["create"].open()
            await settled()
            held = outcomes["first"]
            backend["create"].shut()
            group.start_soon(call, "second")
            await settled()
            group.start_soon(call, "third")
            await settled()
            backend.fail("create", OSError(111, SECRET))
            backend["create"].open()
            await settled()
            assert isinstance(outcomes["second"], ResourceUnavailable)
            assert "third" not in outcomes
            await pool.release(held)
            await settled()
            assert outcomes["third"] is held
        await pool.release(held)
        backend.work("create")
        await anyio.sleep(2)
        await assert_nothing_is_lost(pool, backend)


async def test_a_failing_create_strands_no_waiter_when_the_last_resource_goes_too() -> None:
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


async def test_after_a_failure_everything_is_checked_however_fresh_it_was() -> None:
    backend = Backend()
    async with backend.pool("check", limit=3, check_after=1000) as pool:
        busy, free = await pool.acquire(), await pool.acquire()
        await pool.release(free)
        third = await pool.acquire()
        another = await pool.acquire()
        assert third is free
        await pool.release(third)
        pool.discard(another)
        await settled()
        backend.fail("create")
        async with pool.lease():
            with pytest.raises(ResourceUnavailable):
                await pool.acquire()
        await pool.release(busy)
        assert backend.count("check") == 0
        busy.is_healthy = free.is_healthy = False
        with pytest.raises(ResourceUnavailable):
            await pool.acquire()
        assert backend.count("check") == 2
        backend.work("create")
        await anyio.sleep(2)
        await assert_nothing_is_lost(pool, backend)


async def test_a_failure_puts_in_doubt_also_what_became_free_a_moment_before() -> None:
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


async def test_calls_of_create_that_fail_together_count_as_one_failure() -> None:
    backend = Backend()
    backend.fail("create")
    backend["create"].shut()
    async with backend.pool(limit=8) as pool:
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(outcome_of, pool.acquire)
            await settled()
            backend["create"].open()
        stats = pool.stats()
        assert stats.create_failures == 8
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


async def test_a_retry_that_hangs_is_cut_off_and_tried_again() -> None:
    backend = Backend()
    backend["create"].shut()
    async with backend.pool(limit=1, hook_timeout=2) as pool:
        began = loop_time()
        with pytest.raises(ResourceUnavailable, match="longer than hook_timeout=2 s") as caught:
            await pool.acquire(timeout=None)
        assert loop_time() - began == pytest.approx(2)
        assert isinstance(caught.value.__cause__, TimeoutError)
        await anyio.sleep(1)
        backend["create"].open()
        await anyio.sleep(1)
        await assert_nothing_is_lost(pool, backend)


async def test_a_timeout_of_a_caller_says_nothing_about_the_back_end() -> None:
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
        await anyio.sleep(2)
        assert caplog.records[1].getMessage() == "pool 'db': create works again"
        await assert_nothing_is_lost(pool, backend)
    assert len(caplog.records) == 2


async def test_opening_fails_at_once_if_one_of_min_free_cannot_be_created() -> None:
    backend = Backend()
    backend.fail("create")
    pool = backend.pool(limit=4, min_free=2)
    with pytest.raises(ResourceUnavailable) as caught:
        await pool.open()
    assert caught.value.__cause__ is backend.raises["create"]
    assert pool.status == "closed"
    backend.work("create")
    async with pool:
        assert pool.free == 2
        await assert_nothing_is_lost(pool, backend)


async def test_opening_ends_one_way_or_the_other_when_one_create_fails_as_another_succeeds() -> None:
    backend = Backend()

    async def create() -> Any:
        backend.calls.append("create")
        is_first = backend.count("create") == 1
        await backend["create"].pass_through()
        if is_first:
            raise ConnectionError
        return await Backend.create(backend)

    backend["create"].shut()
    pool = backend.pool(limit=4, min_free=2, create=create)
    outcomes: list[Any] = []

    async def begin() -> None:
        outcomes.append(await outcome_of(pool.open))

    async with anyio.create_task_group() as group:
        group.start_soon(begin)
        await settled()
        assert pool.creating == 2
        backend["create"].open()
    if outcomes == [None]:
        assert pool.free == 2
        await assert_nothing_is_lost(pool, backend)
    else:  # the failure came last
        assert isinstance(outcomes[0], ResourceUnavailable)
        assert pool.status == "closed"
        assert len(backend.created) == len(backend.cleaned) == 1


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


async def test_while_a_try_is_under_way_nobody_is_told_to_come_again_in_no_time() -> None:
    backend = Backend()
    backend.fail("create")
    async with backend.pool(limit=1) as pool:
        await outcome_of(pool.acquire)
        backend["create"].shut()
        await anyio.sleep(5)
        error = await outcome_of(pool.acquire)
        assert isinstance(error, ResourceUnavailable)
        assert error.retry_after == 0.05
        backend.work("create")
        backend["create"].open()
