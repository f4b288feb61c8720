"""A pool is opened, closed and opened again, in whatever loop or thread, and loses nothing."""

import asyncio
import threading
import time
from contextlib import suppress

import anyio
import pytest

from connectionpools_fastapi import PoolClosed, ResourceUnavailable
from tests.support import Backend, PlainBackend, assert_nothing_is_lost, check, same, settled


def test_each_new_loop_gets_its_resources_and_cleans_them() -> None:
    backend = Backend()
    pool = backend.pool("check", "change", min_free=2, limit=3, clock=time.monotonic)

    async def live() -> None:
        async with pool, pool.lease():
            check(pool)

    for life in range(1, 4):
        asyncio.run(live())
        assert pool.stats().creates == len(backend.created) == len(backend.cleaned)
        assert pool.stats().create_failures == 0
        assert len(backend.created) >= 2 * life
    check(pool)


def test_each_life_in_plain_threads_cleans_what_it_created() -> None:
    backend = PlainBackend()
    pool = backend.pool(min_free=2, limit=3)
    for _ in range(3):
        with pool, pool.lease():
            check(pool)
        assert same(backend.created, backend.cleaned)


def test_a_pool_may_be_closed_twice_and_by_several_threads_at_once() -> None:
    pool = PlainBackend().pool()
    pool.open_sync()
    failures: list[BaseException] = []

    def close() -> None:
        try:
            pool.close_sync()
        except BaseException as error:  # noqa: BLE001 - whatever it is
            failures.append(error)

    closers = [threading.Thread(target=close) for _ in range(4)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join(10)
    pool.close_sync()
    assert not failures
    assert pool.status == "closed"


def test_no_thread_is_left_when_the_last_lease_comes_back_after_the_end() -> None:
    before = set(threading.enumerate())
    backend = PlainBackend()
    pool = backend.pool(close_timeout=0)
    for _ in range(3):
        pool.open_sync()
        lease = pool.lease()
        lease.__enter__()
        pool.close_sync()
        lease.release_nowait()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive(), thread
    assert same(backend.created, backend.cleaned)


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_a_lease_that_was_lost_costs_the_next_life_nothing() -> None:
    backend = Backend()
    pool = backend.pool(limit=1, close_timeout=1)
    await pool.open()
    lost = await pool.acquire()
    await pool.close()
    check(pool)

    await pool.open()
    async with pool.lease(timeout=1) as conn:
        assert conn is not lost
        await pool.release(lost)
        await settled()
        assert same(backend.cleaned, [lost])
    check(pool)
    await assert_nothing_is_lost(pool, backend)


@pytest.mark.anyio
async def test_a_close_that_ends_late_leaves_the_leases_of_the_next_life_alone() -> None:
    backend = Backend()
    pool = backend.pool(limit=2)
    await pool.open()
    ended = pool._commit(pool._state.close, pool._clock())  # and somebody still waits for this
    await pool.close()
    await pool.open()
    resource = await pool.acquire()
    assert pool._commit(pool._state.write_off, ended, pool._clock()) == []
    await pool.release(resource)
    assert pool.free == 1
    await assert_nothing_is_lost(pool, backend)


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_a_cancelled_close_still_cleans_everything_but_waits_for_no_lease() -> None:
    backend = Backend()
    pool = backend.pool(limit=2, close_timeout=1000)
    with anyio.move_on_after(5) as scope:
        async with pool:
            one, two = await pool.acquire(), await pool.acquire()
            await pool.release(one)
            await anyio.sleep(1000)
    assert scope.cancelled_caught
    assert pool.status == "closed"
    assert same(backend.cleaned, [one])
    await pool.release(two)
    await settled()
    assert same(backend.cleaned, [one, two])


@pytest.mark.anyio
async def test_a_pool_that_cannot_be_opened_says_so_and_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    backend = Backend()
    backend.fail("create", ConnectionRefusedError(111, "at 10.0.0.1"))
    pool = backend.pool(name="db", min_free=2, limit=2)
    with pytest.raises(ResourceUnavailable, match=r"'db'.*cannot be opened.*Connection refused.*min_free=0") as caught:
        await pool.open()
    assert "10.0.0.1" not in str(caught.value)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert pool.status == "closed"
    assert caplog.records == [], "whoever opens the pool says so, once"
    with pytest.raises(PoolClosed):
        await pool.acquire()
    backend.work("create")
    async with pool:
        assert pool.free == 2


def test_what_cannot_be_cleaned_any_more_is_let_go_however_many(caplog: pytest.LogCaptureFixture) -> None:
    many = 2000
    pool = PlainBackend().pool(limit=many, max_creating=many, blocking=False)

    async def fill() -> None:
        await pool.open()
        for resource in [await pool.acquire() for _ in range(many)]:
            await pool.release(resource)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(fill())
    loop.close()
    pool.expire()
    assert (pool.free, pool.stats().cleaning, pool.stats().clean_failures) == (0, 0, many)
    assert len([message for message in caplog.messages if "clean failed with" in message]) == many
    check(pool)


def test_leases_that_end_with_their_loop_are_passed_over_however_many() -> None:
    pool = PlainBackend().pool(limit=1, timeout=None)
    pool.open_sync()
    held = pool.acquire_sync()
    loop = asyncio.new_event_loop()
    gone: list[asyncio.Task[object]] = []

    async def queue_up() -> None:
        gone.extend(asyncio.ensure_future(pool.acquire()) for _ in range(3000))
        await settled()
        assert pool.waiting == 3000

    loop.run_until_complete(queue_up())
    loop.close()
    pool.release_sync(held)
    assert pool.waiting == 0
    with pool.lease(timeout=10):
        pass
    pool.close_sync()
    _forget(gone)


def _forget(tasks: list[asyncio.Task[object]]) -> None:
    # Their loop is gone: nobody can cancel them any more, and nobody is to be told.
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        coroutine = task.get_coro()
        assert coroutine is not None
        with suppress(RuntimeError):
            coroutine.close()
