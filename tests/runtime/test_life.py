"""A pool is opened, closed and opened again, in whatever loop or thread, and loses nothing."""

import asyncio
import gc
import sys
import threading
import time
from contextlib import suppress
from itertools import count

import anyio
import pytest

from connectionpools_fastapi import ConnectionPool, PoolClosed, PoolConfigError, ResourceUnavailable
from connectionpools_fastapi._runtime.on_asyncio import AsyncioLoop
from tests.support import Backend, PlainBackend, Resource, assert_nothing_is_lost, check, same, settled


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


def test_pool_may_be_closed_twice_and_by_many_threads() -> None:
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


def test_no_thread_is_left_after_late_return() -> None:
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
async def test_late_close_leaves_leases_of_next_life_alone() -> None:
    backend = Backend()
    pool = backend.pool(limit=2)
    await pool.open()
    ended = pool._engine.apply(pool._engine.state.close, pool._engine.clock())  # and a caller still waits for this
    await pool.close()
    await pool.open()
    resource = await pool.acquire()
    assert pool._engine.apply(pool._engine.state.write_off, ended, pool._engine.clock()) == []
    await pool.release(resource)
    assert pool.free == 1
    await assert_nothing_is_lost(pool, backend)


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_cancelled_close_cleans_but_waits_for_no_lease() -> None:
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
    assert caplog.records == [], "`open` raises it, so the log has no line"
    with pytest.raises(PoolClosed):
        await pool.acquire()
    backend.work("create")
    async with pool:
        assert pool.free == 2


def test_any_number_of_uncleanable_resources_is_let_go(caplog: pytest.LogCaptureFixture) -> None:
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
    check(pool)
    asyncio.run(pool.close())
    first, more, last = caplog.messages
    assert first.startswith("pool 'default': clean failed with pool 'default': the event loop that opened it has ended")
    assert more.startswith(f"{many - 1:,} more failures of clean in pool 'default' within a second: ")
    assert last.startswith(f"no more failures of clean in pool 'default' for a second; there were {many:,} within ")


def test_any_number_of_waiters_of_dead_loop_is_skipped() -> None:
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
    # Their loop is gone: nothing can cancel them any more, and no caller is to be told.
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        coroutine = task.get_coro()
        assert coroutine is not None
        with suppress(RuntimeError):
            coroutine.close()


# --- a pool that is dropped ------------------------------------------------------------------------


def drop(pools: list[ConnectionPool[Resource]]) -> None:
    pools.clear()
    gc.collect()


@pytest.mark.anyio
@pytest.mark.virtual_time
@pytest.mark.parametrize("is_up", [True, False])
async def test_pool_dropped_open_warns_and_ends_its_tasks(is_up: bool) -> None:  # noqa: FBT001
    backend = Backend()
    pool = backend.pool("check", keepalive=1, max_lifetime=5, name="dropped")
    await pool.open()
    if not is_up:
        backend.fail("create")
    with suppress(ResourceUnavailable):
        await pool.release(await pool.acquire(timeout=3))
    pools = [pool]
    del pool
    with pytest.warns(ResourceWarning, match="pool 'dropped' was dropped without being closed"):
        drop(pools)
    await settled()
    calls = list(backend.calls)
    await anyio.sleep(60)
    assert same(backend.created, backend.cleaned)
    assert backend.calls == calls


@pytest.mark.parametrize("was_used", [True, False])
def test_dropped_pool_of_threads_ends_its_thread(was_used: bool) -> None:  # noqa: FBT001
    backend = PlainBackend()
    pool = backend.pool(name="dropped too")
    pool.open_sync()
    if was_used:
        pool.release_sync(pool.acquire_sync())
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "pool dropped too"]
    pools = [pool]
    del pool
    with pytest.warns(ResourceWarning, match="dropped too"):
        drop(pools)
    thread.join(10)
    assert not thread.is_alive()
    assert same(backend.created, backend.cleaned)


@pytest.mark.filterwarnings("error")
def test_closed_or_unopened_pool_is_dropped_in_silence() -> None:
    with PlainBackend().pool():
        pass
    PlainBackend().pool()
    with pytest.raises(PoolConfigError):
        PlainBackend().pool(limit=0)
    gc.collect()


if sys.version_info >= (3, 12):

    def test_eager_tasks_of_hooks_are_not_kept() -> None:
        async def create() -> object:
            return object()

        async def lease() -> None:
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
            async with ConnectionPool(create=create) as pool:
                for _ in range(3):
                    pool.discard(await pool.acquire())
                loop = pool._engine.executor.loop
                assert isinstance(loop, AsyncioLoop)
                assert not loop._tasks

        asyncio.run(lease())


def test_failed_open_leaves_no_warning_of_its_last_try(caplog: pytest.LogCaptureFixture) -> None:
    """The last try still runs on a thread; the error tells that `create` fails."""
    tries = count()
    may_end = threading.Event()

    def create() -> object:
        if next(tries) == 2:
            may_end.wait(30)
        raise ConnectionRefusedError

    with pytest.raises(ResourceUnavailable):
        ConnectionPool(create=create, min_free=1).open_sync()
    may_end.set()
    assert (next(tries), caplog.messages) == (3, [])
