"""Cancellation is safe at every await: the caller gets it always, and the slot comes back.

These are the promises one by one; `test_cancellation_matrix` has every moment and every way to cancel.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest

from connectionpools_fastapi import ConnectionPool
from tests.support import Backend, Resource, assert_nothing_is_lost, check, settled

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

asyncio_only = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)


@asynccontextmanager
async def started(call: Callable[[], Coroutine[Any, Any, Any]]) -> AsyncIterator[anyio.CancelScope]:
    """Start a call in a task of its own; the scope shows that the call was cancelled."""
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


async def test_next_waiter_gets_handover_of_cancelled_one() -> None:
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


async def test_while_its_resource_is_being_created() -> None:
    backend = Backend()
    async with backend.pool(limit=1) as pool:
        backend["create"].shut()
        async with started(partial(lease_for_ever, pool)) as scope:
            assert pool.creating == 1
            scope.cancel()
        assert pool.creating == 1, "it goes on, for the next caller"
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


@asyncio_only
async def test_native_cancel_does_not_interrupt_exit_of_block() -> None:
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


async def test_caller_cancelled_beforehand_leaves_nothing() -> None:
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


async def test_cancelled_close_cleans_and_pool_can_reopen() -> None:
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


async def test_cancelled_open_closes_what_it_opened() -> None:
    backend = Backend()
    pool = backend.pool(limit=2, min_free=2, max_creating=1)
    async with anyio.create_task_group() as group:
        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                backend["create"].shut()
                await pool.open()

        group.start_soon(run)
        await settled()
        backend["create"].open()
        backend["create"].shut()
        await settled()
        assert (len(backend.created), pool.creating) == (1, 1)
        scope.cancel()
        await settled()
        assert (backend["create"].waiting, pool.status) == (0, "closed"), "it does not wait for what hangs"
        backend["create"].open()
    assert len(backend.created) == len(backend.cleaned) == 1
    await pool.open()
    await assert_nothing_is_lost(pool, backend)


async def test_cancelled_caller_does_not_interrupt_its_clean() -> None:
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
