"""Drain waits for the taken and leaves the pool usable; close ends it, and neither loses anything."""

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio

from connectionpools_fastapi import (
    ConnectionPool,
    PoolClosed,
    PoolConfigError,
    PoolTimeout,
    ResourceUnavailable,
    WouldDeadlock,
    WrongEventLoop,
)
from connectionpools_fastapi._core.invariants import check_invariants
from connectionpools_fastapi._core.policy import Policy
from connectionpools_fastapi._core.slot import Slot
from connectionpools_fastapi._core.state import PoolState
from connectionpools_fastapi._core.waiter import Waiter
from connectionpools_fastapi._runtime.caller import current_task, has_ended
from connectionpools_fastapi._runtime.holders import name_of
from connectionpools_fastapi._runtime.on_asyncio import AsyncioLoop
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
async def test_drain_cleans_free_ones_and_waits_for_taken_ones() -> None:
    """The pool stays usable meanwhile."""
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
                assert new.number == 2, "a caller that comes meanwhile gets a new one"
            assert not drained.is_set()
            await pool.release(held)
            await settled()
            assert drained.is_set()
        assert same(backend.cleaned, [held, free])
        assert held.uses == 0, "what goes need not be made ready"
        assert pool.free == 1
        await assert_nothing_is_lost(pool, backend)


@virtual
async def test_drain_serves_waiters() -> None:
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
async def test_drain_waits_for_every_running_hook() -> None:
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


@pytest.mark.needs_python
def test_expire_sees_concurrent_release_of_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    state: PoolState[Resource] = PoolState(Policy(limit=1), has_check=False, has_change=False, has_ended=has_ended)
    state.open(0)
    state.try_acquire(0)
    inventory = state.inventory
    (creation,) = inventory.creating
    state.created(creation, Resource(0), 0)
    slot = inventory.take(0)
    assert slot is not None
    pull_outdated = inventory.pull_outdated

    def pull_and_be_given_back(generation: int) -> Iterator[Slot[Resource]]:
        yield from pull_outdated(generation)
        inventory.end(slot, 0)  # the other thread
        inventory.put_back(slot, 0)

    monkeypatch.setattr(inventory, "pull_outdated", pull_and_be_given_back)
    state.expire(0)
    assert slot not in inventory.free, "the other thread read needs_lock as not set, and a drain would never end"


@pytest.mark.needs_python
def test_expire_retires_what_a_thread_takes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resource goes when it comes back."""
    state: PoolState[Resource] = PoolState(Policy(limit=2), has_check=False, has_change=False, has_ended=has_ended)
    state.open(0)
    inventory = state.inventory
    for number in range(2):
        state.acquire(Waiter(), None, 0)
        (creation,) = inventory.creating
        state.created(creation, Resource(number), 0)
    for slot in list(inventory.taken.values()):
        inventory.end(slot, 0)
        state.release(slot, 0)
    assert len(inventory.free) == 2
    discard = state.retirement.discard

    def discard_and_be_snatched(slot: Slot[Resource], reason: str) -> None:
        discard(slot, reason)
        snatched = inventory._next_free()  # another thread, which has read needs_lock already
        inventory.lease_out(snatched, 0)

    monkeypatch.setattr(state.retirement, "discard", discard_and_be_snatched)
    state.expire(0)
    assert (len(inventory.free), len(inventory.taken), len(inventory.cleaning)) == (0, 1, 1)
    check_invariants(state, 0)


# --- close --------------------------------------------------------------------------------------


@virtual
async def test_close_tells_waiters_and_newcomers_at_once() -> None:
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
async def test_close_reports_stragglers_after_close_timeout(caplog: pytest.LogCaptureFixture) -> None:
    """A straggler is cleaned when it comes back."""
    backend = Backend()
    pool = backend.pool("change", limit=3, close_timeout=5, name="db")
    await pool.open()
    lease = pool.lease(holder="GET /slow")
    async with anyio.create_task_group() as group:
        group.start_soon(lease.__aenter__)
    straggler = lease.resource
    await anyio.sleep(2)
    other = await pool.acquire()
    await pool.release(await pool.acquire())
    began = loop_time()
    await pool.close()
    assert loop_time() - began == pytest.approx(5, abs=1e-6)
    me = name_of(current_task())
    assert caplog.messages == [
        f"pool 'db': close waits up to 5 s for GET /slow (for 3 s), {me} (for 1 s)",
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
@pytest.mark.parametrize("kind", ["async", "def"])
async def test_close_cancels_a_create_that_hangs(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    backend = Backend()
    create = backend.create if kind == "async" else lambda: backend.create()  # noqa: PLW0108 - a `def` of its own
    pool = ConnectionPool(create=create, clean=backend.clean, clock=loop_time, blocking=False)
    backend["create"].shut()
    await pool.open()
    async with anyio.create_task_group() as group:
        group.start_soon(outcome_of, pool.acquire)
        await settled()
        began = loop_time()
        await pool.close()
        assert loop_time() == began
    assert (pool.creating, backend["create"].waiting, caplog.messages) == (0, 0, [])
    backend["create"].open()
    async with pool, pool.lease():
        check(pool)


@virtual
async def test_close_cancels_a_create_that_was_just_ordered() -> None:
    backend = Backend()
    pool = backend.pool()
    backend["create"].shut()
    await pool.open()
    assert pool.try_acquire() is None
    began = loop_time()
    await pool.close()
    assert (loop_time(), pool.creating, backend.created) == (began, 0, [])


class SlowThreads(PlainBackend):
    """Whose `create` blocks its thread until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on, self.has_cleaned = threading.Event(), threading.Event(), threading.Event()

    def create(self) -> Resource:
        self.begun.set()
        assert self.go_on.wait(10)
        return super().create()

    def clean(self, resource: Resource) -> None:
        super().clean(resource)
        self.has_cleaned.set()

    def is_cleaned_up(self) -> bool:
        """Let `create` go on; say whether all is cleaned that it makes."""
        self.go_on.set()
        return self.has_cleaned.wait(10) and same(self.created, self.cleaned)


LATE = "pool 'db': closed, but 1 calls of create go on, on threads; what they make is cleaned when it comes"


@pytest.mark.parametrize("library", ["asyncio", "trio"])
@pytest.mark.parametrize("outlives", ["the pool", "the loop"])
def test_close_timeout_bounds_wait_for_threaded_create(
    library: str, outlives: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend = SlowThreads()
    pool = backend.pool(name="db", close_timeout=0)

    async def live() -> None:
        await pool.open()
        assert pool.try_acquire() is None
        assert await anyio.to_thread.run_sync(backend.begun.wait, 10)
        with anyio.fail_after(5):
            await pool.close()
        assert (pool.status, pool.creating, backend.created) == ("closed", 0, [])
        if outlives == "the pool":
            assert await anyio.to_thread.run_sync(backend.is_cleaned_up)

    anyio.run(live, backend=library)
    assert backend.is_cleaned_up()
    assert caplog.messages == [LATE]


def test_close_sync_bounds_wait_for_threaded_create(caplog: pytest.LogCaptureFixture) -> None:
    backend = SlowThreads()
    pool = backend.pool(name="db", close_timeout=0)
    pool.open_sync()
    assert pool.try_acquire() is None
    assert backend.begun.wait(10)
    pool.close_sync()
    assert (pool.status, backend.created) == ("closed", [])
    assert backend.is_cleaned_up()
    assert caplog.messages == [LATE]


@pytest.mark.anyio
async def test_failed_clean_of_late_creation_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """A thread creates the resource after the pool has closed."""
    backend = SlowThreads()

    def clean(resource: Resource) -> None:
        backend.clean(resource)
        raise ConnectionError

    pool = ConnectionPool(create=backend.create, clean=clean, name="db", close_timeout=0)
    await pool.open()
    assert pool.try_acquire() is None
    assert await anyio.to_thread.run_sync(backend.begun.wait, 10)
    await pool.close()
    assert await anyio.to_thread.run_sync(backend.is_cleaned_up)
    with anyio.fail_after(10):
        while len(caplog.messages) < 2:
            await anyio.lowlevel.checkpoint()
    assert caplog.messages == [LATE, "pool 'db': clean failed with ConnectionError"]


@pytest.mark.anyio
async def test_close_cleans_threaded_create_that_ends_in_time() -> None:
    backend = SlowThreads()
    pool = backend.pool(close_timeout=10)
    await pool.open()
    assert pool.try_acquire() is None
    assert await anyio.to_thread.run_sync(backend.begun.wait, 10)
    async with anyio.create_task_group() as group:
        group.start_soon(pool.close)
        await settled()
        assert pool.status == "closing"
        backend.go_on.set()
    assert (len(backend.created), same(backend.created, backend.cleaned)) == (1, True)


@virtual
async def test_close_within_a_lease_of_its_own_is_told_at_once() -> None:
    pool = Backend().pool(name="db")
    async with pool:
        async with pool.lease():
            began = loop_time()
            with pytest.raises(WouldDeadlock, match=r"pool 'db'.*close is called within a lease"):
                await pool.close()
            assert (loop_time(), pool.status) == (began, "open")
        async with held(pool), anyio.create_task_group() as group:
            group.start_soon(pool.close)
            await settled()
            assert pool.status == "closing"
    assert pool.status == "closed"


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
async def test_closed_pool_reopens_with_straggler_still_out() -> None:
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
    pool = backend.pool("check", "change", limit=2, check_after=0)

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
                pool.discard(next(iter(pool._engine.inventory.taken.values())).resource)
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
def test_pool_of_ended_loop_can_be_closed_in_another(library: str) -> None:
    """Until then its errors say that the loop has ended."""
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


def test_task_of_other_loop_times_out_after_end_of_loop() -> None:
    pool = PlainBackend().pool(limit=1, min_free=1)
    asyncio.run(pool.open())

    async def wait() -> None:
        async with held(pool):
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0.01)
        await pool.close()

    asyncio.run(asyncio.wait_for(wait(), 10))


def test_thread_waiting_for_loop_is_let_go_at_its_end() -> None:
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


def test_asyncio_run_cleans_what_it_cancelled() -> None:
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


def test_loop_closed_during_hook_costs_next_life_nothing() -> None:
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


def test_task_dropped_with_its_loop_waits_for_no_lock() -> None:
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
        assert isinstance(pool._engine.executor.loop, AsyncioLoop)
        with pool._engine.executor._lock:
            pool._engine.executor.loop._tasks.clear()
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
