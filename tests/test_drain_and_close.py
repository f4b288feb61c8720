"""Drain waits for the taken and leaves the pool usable; close ends it, and neither loses anything."""

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest
import trio

from connectionpools_fastapi import (
    ConnectionPool,
    PoolClosed,
    PoolConfigError,
    PoolTimeout,
    ResourceUnavailable,
    WrongEventLoop,
)
from connectionpools_fastapi._loop import AsyncioLoop
from connectionpools_fastapi._owner import current_task, name_of
from connectionpools_fastapi._policy import Policy
from connectionpools_fastapi._slot import Slot
from connectionpools_fastapi._state import State
from connectionpools_fastapi._waiters import Waiter
from tests.support import (
    Backend,
    PlainBackend,
    Resource,
    assert_nothing_is_lost,
    check,
    held,
    loop_time,
    outcome_of,
    same,
    settled,
)

in_virtual_time = [pytest.mark.anyio, pytest.mark.virtual_time]


def virtual(test: Any) -> Any:
    """Run a test on both libraries, in virtual time."""
    for mark in in_virtual_time:
        test = mark(test)
    return test


# --- drain ------------------------------------------------------------------------------------


@virtual
async def test_drain_cleans_the_free_at_once_waits_for_the_taken_and_the_pool_stays_usable() -> None:
    backend = Backend()
    async with backend.pool("change", limit=3) as pool:
        held, free = await pool.acquire(), await pool.acquire()
        await pool.release(free)
        drained = anyio.Event()

        async def drain() -> None:
            await pool.drain()
            drained.set()

        async with anyio.create_task_group() as group:
            group.start_soon(drain)
            await settled()
            assert backend.cleaned == [free]
            assert not drained.is_set()
            assert pool.status == "open"
            async with pool.lease() as new:
                assert new.number == 2, "who comes meanwhile gets a new one"
            assert not drained.is_set()
            await pool.release(held)
            await settled()
            assert drained.is_set()
        assert same(backend.cleaned, [held, free])
        assert held.uses == 0, "what goes need not be made ready"
        assert pool.free == 1
        await assert_nothing_is_lost(pool, backend)


@virtual
async def test_drain_serves_who_waits() -> None:
    backend = Backend()
    async with backend.pool(limit=1) as pool:
        held = await pool.acquire()
        served: list[int] = []

        async def call() -> None:
            async with pool.lease() as resource:
                served.append(resource.number)

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await settled()
            group.start_soon(pool.drain)
            await settled()
            await pool.release(held)
        assert served == [1]
        await assert_nothing_is_lost(pool, backend)


@virtual
async def test_drain_waits_for_what_is_being_created_checked_changed_and_cleaned() -> None:
    backend = Backend()
    async with backend.pool("check", "change", limit=4, check_after=0) as pool:
        stale, busy = await pool.acquire(), await pool.acquire()
        await pool.release(stale)
        await anyio.sleep(1)
        for gate in backend.gates.values():
            gate.shut()
        assert pool.try_acquire() is None  # checks the stale one
        async with anyio.create_task_group() as group:
            group.start_soon(outcome_of, lambda: pool.release(busy))
            await settled()
            scope = anyio.CancelScope()

            async def give_up() -> None:
                with scope:
                    await pool.acquire()
                    await pool.acquire()

            group.start_soon(give_up)
            await settled()
            stats = pool.stats()
            assert (stats.checking, stats.changing) == (1, 1)
            drained = anyio.Event()

            async def drain() -> None:
                await pool.drain()
                drained.set()

            group.start_soon(drain)
            await settled()
            scope.cancel()
            for hook in ("create", "check", "change"):
                backend[hook].open()
                await settled()
                assert not drained.is_set()
            backend["clean"].open()
        assert drained.is_set()
        await assert_nothing_is_lost(pool, backend)


@virtual
async def test_several_may_drain_at_once() -> None:
    backend = Backend()
    async with backend.pool(limit=2) as pool:
        held = await pool.acquire()
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(pool.drain)
                await settled()
            await pool.release(held)
        with anyio.fail_after(1):
            await pool.drain()
        await assert_nothing_is_lost(pool, backend)


class Sneaky(State[Resource]):
    """A state in whose decisions another thread gives a resource back, on the fast path."""

    def sneak(self, slot: Slot[Resource]) -> None:
        self.sneaking: Slot[Resource] | None = slot

    def _sweep_free(self) -> None:
        super()._sweep_free()
        slot, self.sneaking = getattr(self, "sneaking", None), None
        if slot is not None:
            self.end(slot, 0)
            self.needs_lock = not self.put_back(slot, 0) or self.gate


def test_what_another_thread_gives_back_while_everything_expires_is_not_overlooked() -> None:
    state = Sneaky(Policy(limit=1), has_check=False, has_change=False)
    state.open(0)
    state.try_acquire(0)
    (creation,) = state.creating
    state.created(creation, Resource(0), 0)
    slot = state.take(0)
    assert slot is not None
    state.sneak(slot)
    state.expire(0)
    assert state.needs_lock, "who gave it back saw the gate down, and nobody will ever look again"


class Snatching(State[Resource]):
    """A state in whose decisions another thread, past the gate already, takes what is free."""

    snatched: Slot[Resource] | None = None

    def _discard(self, slot: Slot[Resource], reason: str) -> None:
        super()._discard(slot, reason)
        self.snatched = self._next_free()
        self._lease_out(self.snatched, 0)


def test_what_another_thread_takes_while_everything_expires_goes_when_it_comes_back() -> None:
    state = Snatching(Policy(limit=2), has_check=False, has_change=False)
    state.open(0)
    for number in range(2):
        state.acquire(Waiter(), None, 0)
        (creation,) = state.creating
        state.created(creation, Resource(number), 0)
    for slot in list(state.taken.values()):
        state.end(slot, 0)
        state.release(slot, 0)
    assert len(state.free) == 2
    state.expire(0)
    assert state.snatched is not None
    assert (len(state.free), len(state.taken), len(state.cleaning)) == (0, 1, 1)
    state.check_invariants(0)


# --- close --------------------------------------------------------------------------------------


@virtual
async def test_who_waits_when_the_pool_closes_is_told_at_once_and_so_are_newcomers() -> None:
    backend = Backend()
    pool = backend.pool(limit=1, close_timeout=5)
    await pool.open()
    held = await pool.acquire()
    outcomes: list[Any] = []

    async def call() -> None:
        outcomes.append((await outcome_of(lambda: pool.acquire(timeout=None)), loop_time()))

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(call)
        await settled()
        now = loop_time()
        group.start_soon(pool.close)
        await settled()
        assert [(type(error), when) for error, when in outcomes] == [(PoolClosed, now)] * 3
        assert pool.status == "closing"
        for call_now in (pool.acquire, pool.try_acquire):
            assert isinstance(await outcome_of(call_now), PoolClosed)
        with pytest.raises(PoolConfigError, match="closing already"):
            await pool.open()
        await pool.release(held)
    assert pool.status == "closed"
    assert loop_time() == now
    assert same(backend.created, backend.cleaned)
    check(pool)


@virtual
async def test_close_waits_close_timeout_reports_stragglers_and_cleans_them_when_they_come_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = Backend()
    pool = backend.pool("change", limit=3, close_timeout=5, name="db")
    await pool.open()
    lease = pool.lease(holder="GET /slow")
    straggler = await lease.__aenter__()
    await anyio.sleep(2)
    other = await pool.acquire()
    await pool.release(await pool.acquire())
    began = loop_time()
    await pool.close()
    assert loop_time() - began == pytest.approx(5, abs=1e-6)
    me = name_of(current_task())
    assert caplog.messages == [
        "pool 'db': closed, but GET /slow has held a resource for 7 s; it is cleaned when it comes back",
        f"pool 'db': closed, but {me} has held a resource for 5 s; it is cleaned when it comes back",
    ]
    assert pool.status == "closed"
    assert len(backend.cleaned) == 1
    lease.release_nowait()
    pool.discard(other)
    await settled()
    assert same(backend.cleaned, backend.created)
    assert straggler.uses == 0
    check(pool)


@virtual
async def test_closing_twice_or_without_ever_opening_does_nothing() -> None:
    backend = Backend()
    pool = backend.pool()
    await pool.close()
    assert pool.status == "closed"
    async with pool:
        pass
    await pool.close()
    with pytest.raises(PoolClosed, match="is closed"):
        await pool.acquire()


@virtual
async def test_a_closed_pool_can_be_opened_again_with_a_straggler_still_out() -> None:
    backend = Backend()
    pool = backend.pool(limit=2, close_timeout=0)
    await pool.open()
    straggler = await pool.acquire()
    await pool.close()
    async with pool:
        with anyio.fail_after(1):
            await pool.drain()
        async with pool.lease() as new:
            assert new is not straggler
        await pool.release(straggler)
        await settled()
        assert any(cleaned is straggler for cleaned in backend.cleaned)
        check(pool)
        await assert_nothing_is_lost(pool, backend)


@virtual
async def test_timeouts_and_retries_go_on_in_the_next_life() -> None:
    """A timer that was set in the life before does not count any more."""
    backend = Backend()
    pool = backend.pool(limit=1, timeout=5)
    async with pool:
        resource = await pool.acquire()
        async with anyio.create_task_group() as group:
            group.start_soon(outcome_of, pool.acquire)
            await settled()
            await pool.release(resource)
    await pool.close()
    async with pool, held(pool):
        began = loop_time()
        assert isinstance(await outcome_of(lambda: pool.acquire(timeout=100)), TimeoutError)
        assert loop_time() - began == pytest.approx(100, abs=1e-6)


def test_timeouts_go_on_in_the_next_loop() -> None:
    """As each `with TestClient(app)` is: another loop, in which nothing of the first one rings."""
    pool = PlainBackend().pool(limit=1, timeout=3600, blocking=False)

    async def wait_for_a_moment(timeout: float) -> None:
        async with pool:
            resource = await pool.acquire()
            waiting = asyncio.ensure_future(pool.acquire(timeout=timeout))
            await asyncio.sleep(0)
            await pool.release(resource)
            await pool.release(await waiting)

    async def time_out(timeout: float) -> None:
        async with pool, held(pool):
            assert isinstance(await outcome_of(lambda: pool.acquire(timeout=timeout)), PoolTimeout)

    asyncio.run(wait_for_a_moment(0.001))
    asyncio.run(asyncio.wait_for(time_out(0.01), 5))


# --- a loop that ends without the pool ----------------------------------------------------------


@pytest.mark.parametrize("hook", ["create", "check", "change", "clean"])
@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_a_run_may_end_while_any_hook_is_under_way(hook: str, library: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing hangs, and no warning says that a task was destroyed or a coroutine never awaited."""
    caplog.set_level(logging.DEBUG)
    backend = Backend()
    pool = backend.pool("check", "change", limit=2, check_after=0, hook_timeout=0.5)

    async def leave_something_behind() -> None:
        await pool.open()
        resource = await pool.acquire()
        await pool.release(resource)
        await anyio.sleep(0.001)
        if hook == "create":
            resource = await pool.acquire()
        backend[hook].shut()
        if hook in ("create", "check"):
            with anyio.move_on_after(0.001):
                await pool.acquire()
        else:
            lease = pool.lease()
            async with lease:
                if hook == "clean":
                    lease.discard()
                else:
                    lease.release_nowait()
        await settled()
        assert backend[hook].waiting == 1

    run(library, leave_something_behind)
    gc.collect()
    assert "destroyed" not in caplog.text
    assert pool.status == "open"

    async def close_and_open_again() -> None:
        backend[hook].open()
        with anyio.fail_after(5):
            if hook == "create":
                pool.discard(next(iter(pool._state.taken.values())).resource)
            await pool.close()
            async with pool, pool.lease(), pool.lease():
                check(pool)
                assert pool.taken == pool.limit
        check(pool)

    run(library, close_and_open_again)
    assert "destroyed" not in caplog.text


def run(library: str, main: Any) -> None:
    if library == "trio":
        trio.run(main)
    else:
        asyncio.run(main())


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_a_pool_whose_loop_has_ended_says_so_and_can_be_closed_in_another(library: str) -> None:
    backend = PlainBackend()
    pool = backend.pool(limit=2)

    async def leave_it_open() -> None:
        await pool.open()
        await pool.release(await pool.acquire())

    run(library, leave_it_open)
    resource = pool.acquire_sync()  # what is free needs no loop
    with pytest.raises((WrongEventLoop, ResourceUnavailable), match="the event loop that opened it has ended"):
        pool.acquire_sync(timeout=10)
    pool.release_sync(resource)
    with pytest.raises(WrongEventLoop, match="now write `await pool"):
        pool.close_sync()
    with pytest.raises(WrongEventLoop):
        pool.drain_sync()

    async def close() -> None:
        await pool.close()
        async with pool, pool.lease():
            pass

    run(library, close)
    assert same(backend.created, backend.cleaned)
    check(pool)


def test_a_task_of_another_loop_is_not_left_waiting_when_the_pool_s_loop_has_ended() -> None:
    pool = PlainBackend().pool(limit=1, min_free=1)
    asyncio.run(pool.open())

    async def wait() -> None:
        async with held(pool):
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0.01)
        await pool.close()

    asyncio.run(asyncio.wait_for(wait(), 10))


def test_a_thread_that_waits_for_the_pool_s_loop_is_let_go_when_that_ends() -> None:
    backend = PlainBackend()
    pool = backend.pool(limit=1, close_timeout=60)
    ready, outcomes = threading.Event(), []

    def drain() -> None:
        ready.set()
        try:
            pool.drain_sync()
        except WrongEventLoop as error:
            outcomes.append(error)

    async def end_early() -> threading.Thread:
        await pool.open()
        await pool.acquire()
        thread = threading.Thread(target=drain)
        thread.start()
        await anyio.to_thread.run_sync(ready.wait)
        await asyncio.sleep(0)
        return thread

    thread = asyncio.run(end_early())
    thread.join(10)
    assert not thread.is_alive()
    assert len(outcomes) == 1


def test_an_asyncio_run_that_ends_lets_what_it_cancelled_be_cleaned() -> None:
    cleaned = []

    async def change(_: Resource) -> None:
        await asyncio.sleep(3600)

    async def clean(resource: Resource) -> None:
        await asyncio.sleep(0.001)
        cleaned.append(resource)

    async def create() -> Resource:
        return Resource(0)

    pool = ConnectionPool(create=create, change=change, clean=clean)

    async def leave() -> None:
        await pool.open()
        lease = pool.lease()
        async with lease:
            lease.release_nowait()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(leave())
    assert len(cleaned) == 1


def test_a_loop_that_is_closed_with_a_hook_under_way_costs_the_next_life_nothing() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def create() -> Resource:
        begun.set()
        go_on.wait(10)
        return Resource(0)

    pool = ConnectionPool(create=create, limit=1)

    async def begin() -> None:
        await pool.open()
        assert pool.try_acquire() is None
        await asyncio.to_thread(begun.wait, 10)

    end_abruptly(begin)
    go_on.set()

    async def close_and_open_again() -> None:
        await pool.close()
        async with pool, pool.lease():
            check(pool)

    asyncio.run(asyncio.wait_for(close_and_open_again(), 5))
    check(pool)


def test_a_task_that_is_thrown_away_with_its_loop_waits_for_no_lock() -> None:
    """Garbage is collected at any moment, even while the pool's lock is held."""
    backend = Backend()
    backend["create"].shut()
    pool = backend.pool(limit=1, clock=time.monotonic)

    async def begin() -> None:
        await pool.open()
        assert pool.try_acquire() is None
        await settled()

    end_abruptly(begin)

    def throw_away() -> None:
        assert isinstance(pool._keeper.loop, AsyncioLoop)
        with pool._keeper._lock:
            pool._keeper.loop._tasks.clear()
            backend.gates.clear()
            gc.collect()

    thread = threading.Thread(target=throw_away, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def end_abruptly(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run something in a loop that is closed with tasks pending, as `asyncio.run` never does."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # it says rightly that a task was destroyed
    loop.run_until_complete(main())
    loop.close()
