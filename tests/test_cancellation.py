"""Cancellation is safe at every await: the caller gets it always, and the slot comes back."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import anyio
import pytest

from connectionpools_fastapi import ConnectionPool
from tests.support import Backend, Resource, assert_nothing_is_lost, check, held, settled

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)


@asynccontextmanager
async def started(call: Callable[[], Coroutine[Any, Any, Any]]) -> AsyncIterator[anyio.CancelScope]:
    """Start a call in a task of its own; whoever cancels the scope sees that the call was cancelled."""
    scope = anyio.CancelScope()

    async def run() -> None:
        with scope:
            await call()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await settled()
        yield scope
    assert scope.cancelled_caught, "the caller did not get its cancellation"


async def lease_for_ever(pool: ConnectionPool[Resource]) -> None:
    async with pool.lease(timeout=None):
        await anyio.sleep_forever()


async def test_while_it_waits_in_the_queue() -> None:
    backend = Backend()
    async with backend.pool(limit=1) as pool:
        held = await pool.acquire()
        async with started(partial(lease_for_ever, pool)) as scope:
            assert pool.waiting == 1
            scope.cancel()
        assert pool.waiting == 0
        await pool.release(held)
        assert pool.free == 1
        await assert_nothing_is_lost(pool, backend)


async def test_at_the_very_moment_of_the_hand_over_the_next_in_line_gets_it() -> None:
    backend = Backend()
    async with backend.pool(limit=1) as pool:
        held = pool.lease()
        await held.__aenter__()
        call = partial(lease_for_ever, pool)
        async with started(call) as first, started(call) as second:
            assert pool.waiting == 2
            held.release_nowait()  # both in one tick: handed over, and cancelled
            first.cancel()
            await settled()
            assert (pool.waiting, pool.taken) == (0, 1)
            check(pool)
            second.cancel()
        assert (pool.free, pool.taken) == (1, 0)
        await assert_nothing_is_lost(pool, backend)


@pytest.mark.parametrize("release_first", [True, False])
@asyncio_only
async def test_a_native_cancel_in_the_tick_of_the_release(release_first: bool) -> None:  # noqa: FBT001
    backend = Backend()
    async with backend.pool(limit=1) as pool:
        lease = pool.lease()
        await lease.__aenter__()
        task = asyncio.create_task(lease_for_ever(pool))
        await settled()
        if release_first:
            lease.release_nowait()
        task.cancel()
        if not release_first:
            lease.release_nowait()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (pool.free, pool.taken, pool.waiting) == (1, 0, 0)
        assert pool.stats().withdrawals == 1
        await assert_nothing_is_lost(pool, backend)


@asyncio_only
async def test_asyncio_timeout_and_wait_for_end_the_waiting() -> None:
    backend = Backend()
    async with backend.pool(limit=1, timeout=None) as pool:
        async with held(pool):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pool.acquire(), 1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await pool.acquire()
            assert pool.waiting == 0
        await assert_nothing_is_lost(pool, backend)


@asyncio_only
@pytest.mark.parametrize("late", [False, True])
async def test_a_timeout_that_ends_with_the_release_loses_nothing(late: bool) -> None:  # noqa: FBT001
    backend = Backend()
    async with backend.pool(limit=1, timeout=None) as pool:
        lease = pool.lease()
        await lease.__aenter__()
        loop = asyncio.get_running_loop()
        at = loop.time() + 1
        if not late:
            loop.call_at(at, lease.release_nowait)
        waiting = asyncio.ensure_future(asyncio.wait_for(pool.acquire(), 1))
        await settled()
        if late:
            loop.call_at(at, lease.release_nowait)
        with suppress(TimeoutError):
            await pool.release(await waiting)
        assert (pool.taken, pool.waiting) == (0, 0)
        await assert_nothing_is_lost(pool, backend)


async def test_while_its_resource_is_being_created() -> None:
    backend = Backend()
    async with backend.pool(limit=1) as pool:
        backend["create"].shut()
        async with started(partial(lease_for_ever, pool)) as scope:
            assert pool.creating == 1
            scope.cancel()
        assert pool.creating == 1, "it goes on, for whoever comes next"
        backend["create"].open()
        await settled()
        assert pool.free == 1
        await assert_nothing_is_lost(pool, backend)


async def test_while_its_resource_is_being_checked() -> None:
    backend = Backend()
    async with backend.pool("check", limit=1, check_after=0) as pool:
        async with pool.lease():
            pass
        await anyio.sleep(1)
        backend["check"].shut()
        async with started(partial(lease_for_ever, pool)) as scope:
            assert pool.stats().checking == 1
            scope.cancel()
        backend["check"].open()
        await settled()
        assert pool.free == 1
        await assert_nothing_is_lost(pool, backend)


async def test_in_the_block() -> None:
    backend = Backend()
    async with backend.pool("change", limit=1) as pool:
        async with started(partial(lease_for_ever, pool)) as scope:
            assert pool.taken == 1
            scope.cancel()
        await settled()
        assert pool.free == 1
        await assert_nothing_is_lost(pool, backend)


async def test_while_it_waits_for_change() -> None:
    backend = Backend()
    async with backend.pool("change", limit=1) as pool:
        backend["change"].shut()
        resource = await pool.acquire()
        async with started(lambda: pool.release(resource)) as scope:
            assert pool.stats().changing == 1
            scope.cancel()
        assert pool.stats().changing == 1
        backend["change"].open()
        await settled()
        assert (pool.free, resource.uses) == (1, 1)
        await assert_nothing_is_lost(pool, backend)


@asyncio_only
async def test_a_native_cancel_that_arrives_with_the_exit_of_the_block_does_not_interrupt_it() -> None:
    backend = Backend()
    async with backend.pool("change", limit=1) as pool:
        entered = asyncio.Event()
        leave = asyncio.Event()

        async def work() -> None:
            async with pool.lease():
                entered.set()
                await leave.wait()

        task = asyncio.create_task(work())
        await entered.wait()
        backend["change"].shut()
        leave.set()
        await settled()  # now in the exit, waiting for change
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        backend["change"].open()
        await settled()
        assert pool.free == 1
        await assert_nothing_is_lost(pool, backend)


async def test_a_caller_that_is_cancelled_already_leaves_nothing_behind() -> None:
    backend = Backend()
    async with backend.pool(limit=1) as pool:
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with pool.lease():
                await anyio.sleep(1)
        await settled()
        assert (pool.taken, pool.waiting) == (0, 0)
        await assert_nothing_is_lost(pool, backend)


async def test_a_drain_that_is_cancelled_goes_on_by_itself() -> None:
    backend = Backend()
    async with backend.pool(limit=2) as pool:
        held, free = await pool.acquire(), await pool.acquire()
        await pool.release(free)
        async with started(pool.drain) as scope:
            scope.cancel()
        await pool.release(held)
        await settled()
        assert len(backend.cleaned) == 2
        async with pool.lease() as new:
            assert new.number == 2
        await assert_nothing_is_lost(pool, backend)


async def test_a_close_that_is_cancelled_cleans_all_the_same_and_the_pool_can_be_opened_again() -> None:
    backend = Backend()
    pool = backend.pool(limit=2, close_timeout=100)
    await pool.open()
    held, free = await pool.acquire(), await pool.acquire()
    await pool.release(free)
    async with started(pool.close) as scope:
        assert pool.status == "closing"
        scope.cancel()
    assert pool.status == "closed"
    await settled()
    assert backend.cleaned == [free]
    await pool.open()
    await pool.release(held)
    await settled()
    assert len(backend.cleaned) == 2
    assert pool.free == 0
    await assert_nothing_is_lost(pool, backend)


@asyncio_only
async def test_a_native_cancel_of_close_leaves_the_pool_closed() -> None:
    backend = Backend()
    pool = backend.pool(limit=1, close_timeout=100)
    await pool.open()
    held = await pool.acquire()
    task = asyncio.create_task(pool.close())
    await settled()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pool.status == "closed"
    await pool.release(held)
    await settled()
    assert backend.cleaned == [held]
    await pool.open()
    await assert_nothing_is_lost(pool, backend)


async def test_an_open_that_is_cancelled_closes_what_it_has_opened() -> None:
    backend = Backend()
    pool = backend.pool(limit=2, min_free=2)
    backend["create"].shut()
    async with anyio.create_task_group() as group:
        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                await pool.open()

        group.start_soon(run)
        await settled()
        scope.cancel()
        await settled()
        backend["create"].open()
    assert pool.status == "closed"
    assert len(backend.created) == len(backend.cleaned) == 2
    await pool.open()
    await assert_nothing_is_lost(pool, backend)


async def test_a_cancelled_caller_does_not_interrupt_a_clean_that_it_caused() -> None:
    backend = Backend()
    async with backend.pool(limit=1) as pool:
        backend["clean"].shut()

        async def discard() -> None:
            lease = pool.lease()
            async with lease:
                lease.discard()
            await anyio.sleep_forever()

        async with started(discard) as scope:
            assert pool.stats().cleaning == 1
            scope.cancel()
        backend["clean"].open()
        await settled()
        assert pool.stats().cleans == 1
        await assert_nothing_is_lost(pool, backend)


@pytest.mark.parametrize("seed", range(20))
async def test_at_any_moment(seed: int) -> None:
    """Callers with all hooks, each of them cut off after another number of steps."""
    backend = Backend()
    async with backend.pool("check", "change", limit=2, check_after=0) as pool:

        async def work(number: int) -> None:
            with anyio.move_on_after(0.3 * ((number * 7 + seed * 3) % 11)):
                async with pool.lease(timeout=None):
                    await anyio.sleep(0.5)

        for hook in ("create", "check", "change"):

            async def slow(call: Any, *arguments: Any) -> Any:
                await anyio.sleep(0.3)
                return await call(*arguments)

            pool._hooks._hooks[hook] = partial(slow, getattr(backend, hook))
        async with anyio.create_task_group() as group:
            for number in range(12):
                group.start_soon(work, number)
                await anyio.sleep(0.1 * ((seed + number) % 4))
        await anyio.sleep(5)
        assert (pool.taken, pool.waiting, pool.creating) == (0, 0, 0)
        await assert_nothing_is_lost(pool, backend)
