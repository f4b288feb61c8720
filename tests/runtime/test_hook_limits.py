"""Hooks are called where they belong, for as long as they may, and never under the lock."""

import asyncio
import gc
import pickle
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from connectionpools_fastapi import (
    ConnectionPool,
    PoolConfigError,
    PoolTimeout,
    ResourceUnavailable,
    WrongEventLoop,
)
from connectionpools_fastapi._core.invariants import check_invariants
from connectionpools_fastapi._core.state import PoolState
from connectionpools_fastapi._core.waiter import Waiter
from connectionpools_fastapi._monitoring.health import examine
from tests.support import Backend, check, held, loop_time, settled


def count_of(kind: type) -> int:
    return sum(isinstance(found, kind) for found in gc.get_objects())


class Parked(Waiter[Any]):
    def wake(self) -> None:
        """An object without hooks."""


@pytest.mark.anyio
@pytest.mark.virtual_time
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_overlong_hook_is_cancelled_once_and_can_clean_up() -> None:
    tidied = asyncio.Event()

    async def create() -> object:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(1)  # as a driver that says goodbye
            tidied.set()
        return object()

    async with ConnectionPool(create=create, hook_timeout=5) as pool:
        with pytest.raises(ResourceUnavailable, match="hook_timeout=5 s"):
            await pool.acquire(timeout=60)
    assert tidied.is_set()


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_hanging_create_does_not_hold_up_a_check() -> None:
    backend = Backend()
    async with backend.pool("check", limit=2, hook_timeout=100, check_after=1) as pool:
        held = await pool.acquire()
        backend["create"].shut()
        with anyio.move_on_after(1):
            await pool.acquire()
        await pool.release(held)
        await anyio.sleep(5)  # stale by now
        assert pool.creating == 1
        assert await pool.acquire(timeout=1) is held
        assert backend.count("check") == 1
        await pool.release(held)
        backend["create"].open()


def test_stale_slot_goes_to_check_though_a_waiter_came() -> None:
    from connectionpools_fastapi._core.policy import Policy  # noqa: PLC0415 - only here

    state: PoolState[Any] = PoolState(Policy(limit=1, check_after=1), has_check=True, has_change=False, has_ended=bool)
    state.open(0)
    first = Parked()
    state.acquire(first, 5, 0)
    (creation,) = state.inventory.creating
    state.created(creation, object(), 0)
    assert first.slot is not None
    state.inventory.end(first.slot, 0)
    state.release(first.slot, 0)
    # `take` in another thread has the slot in its hands, while a waiter joins the queue.
    stale = state.inventory._next_free()
    state.acquire(Parked(), 5, 9)
    state.inventory.put_next(stale)
    with pytest.raises(PoolTimeout):
        state.acquire(Parked(), 0, 9)  # what that other thread goes on with
    assert state.inventory.checking == {stale}
    check_invariants(state, 9)


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_check_after_0_checks_at_each_reuse_and_handover() -> None:
    backend = Backend()
    async with backend.pool("check", limit=1, check_after=0) as pool:

        async def use() -> None:
            async with pool.lease():
                await settled()

        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(use)
        assert (len(backend.created), backend.count("check")) == (1, 9)


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_slow_create_while_others_serve_is_healthy() -> None:
    backend = Backend()
    async with backend.pool(limit=5, hook_timeout=100) as pool:
        held = [await pool.acquire() for _ in range(3)]
        backend["create"].shut()
        with anyio.move_on_after(1):
            await pool.acquire()
        await anyio.sleep(60)
        await pool.release(held.pop())
        held.append(await pool.acquire())
        health = await examine(pool)
        assert health.verdict == "pass", health.reason
        backend["create"].open()
        for resource in held:
            await pool.release(resource)


@pytest.mark.anyio
async def test_what_a_loop_has_made_is_touched_in_that_loop_only() -> None:
    here = threading.get_ident()
    threads: dict[str, int] = {}

    async def create() -> object:
        return object()

    def note(hook: str) -> Any:
        return lambda _: threads.setdefault(hook, threading.get_ident()) and None

    hooks = {hook: note(hook) for hook in ("check", "change", "clean")}
    async with ConnectionPool(create=create, check_after=0, **hooks) as pool:
        for _ in range(2):
            async with pool.lease():
                pass
    assert threads == dict.fromkeys(("check", "change", "clean"), here)


@pytest.mark.parametrize("decorate", [lambda hook: hook, asynccontextmanager])
def test_a_hook_that_yields_is_refused(decorate: Any) -> None:
    async def create() -> AsyncIterator[object]:
        yield object()

    with pytest.raises(PoolConfigError, match=r"create must not yield.*clean"):
        ConnectionPool(create=decorate(create), name="db")


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_what_an_outage_kept_alive_dies_without_the_lock() -> None:
    seen = []

    class HalfOpen:
        def __del__(self) -> None:
            seen.append(pool.stats().status)  # would hang under the lock

    tries = 0

    async def create() -> object:
        nonlocal tries
        tries += 1
        if tries == 1:
            half_open = HalfOpen()
            raise ConnectionError(type(half_open).__name__)
        return object()

    pool = ConnectionPool(create=create, clock=loop_time)
    async with pool:
        assert pool.try_acquire() is None
        await anyio.sleep(10)
        assert pool.free == 1
        gc.collect()
        assert seen


@pytest.mark.anyio
async def test_release_sync_does_not_block_a_loop() -> None:
    backend = Backend()
    async with backend.pool("change") as pool:
        resource = await pool.acquire()
        with pytest.raises(WrongEventLoop, match=r"await pool\.release"):
            pool.release_sync(resource)
        await pool.release(resource)
        check(pool)


@pytest.mark.anyio
@pytest.mark.virtual_time
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_an_error_does_not_keep_its_caller_alive() -> None:
    async with Backend().pool(limit=1) as pool, held(pool):
        gc.collect()
        before = count_of(PoolTimeout)
        gc.disable()
        try:
            for _ in range(3):
                with pytest.raises(PoolTimeout):
                    await pool.acquire(timeout=1)
            assert count_of(PoolTimeout) == before
        finally:
            gc.enable()


def test_errors_can_be_sent_to_another_process() -> None:
    error = ResourceUnavailable("nothing there", 2.5)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (str(copy), copy.retry_after) == ("nothing there", 2.5)


@pytest.mark.anyio
@pytest.mark.parametrize("option", [{"max_age": -1}, {"timeout": float("nan")}, {"timeout": "2"}])
async def test_a_probe_with_no_duration_is_refused(option: dict[str, Any]) -> None:
    async with Backend().pool() as pool:
        with pytest.raises(PoolConfigError, match="number"):
            await pool.probe(**option)


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_the_clock_is_never_asked_under_the_lock() -> None:
    backend = Backend()
    asked: list[bool] = []

    def clock() -> float:
        asked.append(pool._engine.executor._decider is not None)  # no other thread is there to hold it
        return loop_time()

    pool = backend.pool("check", "change", limit=1, check_after=0, clock=clock, min_free=1)
    async with pool:
        async with held(pool):
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=1)
        await pool.probe(max_age=0)
        await pool.drain()
    assert len(asked) > 10
    assert not any(asked)


def test_a_clock_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(PoolConfigError, match=r"clock=time\.monotonic"):
        ConnectionPool(create=object, clock=3)  # type: ignore[call-overload] # that is the point


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_timeout_blames_slow_create_and_not_the_holders() -> None:
    backend = Backend()
    async with backend.pool(limit=1, hook_timeout=100) as pool:
        backend["create"].shut()
        with pytest.raises(PoolTimeout, match="create is under way"):
            await pool.acquire(timeout=1)
        backend["create"].open()
        async with held(pool):
            with pytest.raises(PoolTimeout, match="raise limit or timeout"):
                await pool.acquire(timeout=1)
