"""Listeners hear what happens in a pool, and cost nothing and do no harm."""

import asyncio
import logging
import threading
from functools import partial
from typing import Any

import anyio
import pytest

from connectionpools_fastapi import (
    Overloaded,
    PoolClosed,
    PoolListener,
    PoolTimeout,
    ResourceUnavailable,
    TooManyWaiting,
)
from connectionpools_fastapi._runtime.caller import current_task
from connectionpools_fastapi.listener import EVENTS
from tests.support import (
    SECRET,
    Backend,
    PlainBackend,
    Resource,
    assert_nothing_is_lost,
    held,
    jumping,
    outcome_of,
    settled,
)

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


class Everything(PoolListener):
    """Writes down all that it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def count(self, event: str) -> int:
        return [entry[0] for entry in self.heard].count(event)

    def on_create(self, pool: str, took: float) -> None:
        self.heard.append(("on_create", pool, took))

    def on_create_failed(self, pool: str, error: BaseException) -> None:
        self.heard.append(("on_create_failed", pool, error))

    def on_acquire(self, pool: str, waited: float) -> None:
        self.heard.append(("on_acquire", pool, waited))

    def on_release(self, pool: str, used: float) -> None:
        self.heard.append(("on_release", pool, used))

    def on_timeout(self, pool: str, waited: float) -> None:
        self.heard.append(("on_timeout", pool, waited))

    def on_withdraw(self, pool: str, waited: float) -> None:
        self.heard.append(("on_withdraw", pool, waited))

    def on_refuse(self, pool: str, reason: str) -> None:
        self.heard.append(("on_refuse", pool, reason))

    def on_discard(self, pool: str, reason: str) -> None:
        self.heard.append(("on_discard", pool, reason))

    def on_detach(self, pool: str) -> None:
        self.heard.append(("on_detach", pool))

    def on_clean(self, pool: str) -> None:
        self.heard.append(("on_clean", pool))


async def test_listener_hears_events_in_order_with_times() -> None:
    backend, listener = Backend(), Everything()
    pool = backend.pool("change", limit=1, name="db", max_waiting=1)
    pool.add_listener(listener)
    async with pool:
        backend["create"].shut()
        async with anyio.create_task_group() as group:

            async def use() -> None:
                async with pool.lease():
                    await anyio.sleep(3)

            group.start_soon(use)
            await anyio.sleep(2)
            backend["create"].open()
        async with held(pool):
            assert isinstance(await outcome_of(lambda: pool.acquire(timeout=1.5)), PoolTimeout)
            with anyio.move_on_after(0.5):
                await pool.acquire()
        lease = pool.lease()
        async with lease:
            lease.discard()
        await settled()
        pool.detach(await pool.acquire())
        error = ConnectionError(SECRET)
        backend.fail("create", error)
        assert isinstance(await outcome_of(pool.acquire), ResourceUnavailable)
    assert isinstance(await outcome_of(pool.acquire), PoolClosed)
    tries = listener.heard.count(("on_create_failed", "db", error))
    assert tries >= 4
    assert listener.heard == [
        ("on_create", "db", 2.0),
        ("on_acquire", "db", 2.0),
        ("on_release", "db", 3.0),
        ("on_acquire", "db", 0.0),
        ("on_timeout", "db", 1.5),
        ("on_withdraw", "db", 0.5),
        ("on_release", "db", 2.0),
        ("on_acquire", "db", 0.0),
        ("on_release", "db", 0.0),
        ("on_discard", "db", "discard"),
        ("on_clean", "db"),
        ("on_create", "db", 0.0),
        ("on_acquire", "db", 0.0),
        ("on_release", "db", 0.0),
        ("on_detach", "db"),
        *[("on_create_failed", "db", error)] * tries,
        ("on_refuse", "db", "unavailable"),
        ("on_refuse", "db", "closed"),
    ]


async def test_what_is_heard_agrees_with_the_stats_under_load() -> None:
    backend, listener = Backend(), Everything()
    pool = backend.pool("check", "change", limit=3, max_waiting=12, check_after=0)
    pool.add_listener(listener)
    async with pool:
        async with anyio.create_task_group() as group:

            async def work(number: int) -> None:
                for turn in range(10):
                    lease = pool.lease(timeout=(number + turn) % 3)
                    outcome = await outcome_of(lease.__aenter__)
                    if isinstance(outcome, Resource):
                        outcome.is_healthy = turn % 4 > 0
                        await anyio.sleep(number % 4)
                        lease.discard() if turn % 5 == 0 else lease.release_nowait()
                    else:
                        assert isinstance(outcome, (PoolTimeout, TooManyWaiting, Overloaded))

            for number in range(16):
                group.start_soon(work, number)
        await pool.drain()
    stats = pool.stats()
    assert stats.timeouts > 0
    assert sum(stats.refusals.values()) > 0
    assert listener.count("on_create") == stats.creates
    assert listener.count("on_acquire") == stats.acquires
    assert listener.count("on_release") == stats.releases
    assert listener.count("on_timeout") == stats.timeouts
    assert listener.count("on_withdraw") == stats.withdrawals
    assert listener.count("on_refuse") == sum(stats.refusals.values())
    assert listener.count("on_discard") == sum(stats.discards.values())
    assert listener.count("on_clean") == stats.cleans


async def test_listener_to_rare_events_keeps_fast_path() -> None:
    class Alarm(PoolListener):
        def on_timeout(self, pool: str, waited: float) -> None:
            raise AssertionError

    backend = Backend()
    async with backend.pool(limit=1) as pool:
        async with pool.lease():
            pass
        assert not pool._engine.inventory.needs_lock
        alarm, everything = Alarm(), Everything()
        pool.add_listener(alarm)
        assert not pool._engine.inventory.needs_lock
        pool.add_listener(everything)
        assert pool._engine.inventory.needs_lock
        pool.remove_listener(everything)
        assert not pool._engine.inventory.needs_lock
        pool.remove_listener(alarm)
        assert pool._engine.state.effects.subscribed == frozenset()


@pytest.mark.parametrize("error", [ValueError(SECRET), KeyboardInterrupt(), SystemExit(1), asyncio.CancelledError()])
async def test_listener_that_raises_is_logged_and_harmless(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(PoolListener):
        def on_acquire(self, pool: str, waited: float) -> None:
            raise error

        def on_clean(self, pool: str) -> None:
            raise ValueError(SECRET)

    backend, listener = Backend(), Everything()
    pool = backend.pool(limit=1, name="db")
    pool.add_listener(Broken())
    pool.add_listener(listener)
    with caplog.at_level(logging.ERROR, logger="connectionpools_fastapi"):
        async with pool:
            async with pool.lease():
                pass
            await assert_nothing_is_lost(pool, backend)
    assert listener.count("on_acquire") == 2
    assert caplog.messages[0] == f"pool 'db': on_acquire of a listener failed with {type(error).__name__}"
    assert SECRET not in caplog.text


async def test_a_listener_may_call_the_pool() -> None:
    backend = Backend()
    pool = backend.pool(limit=2)
    seen: list[int] = []

    class Curious(PoolListener):
        def on_acquire(self, pool: str, waited: float) -> None:
            assert the_pool._engine.executor._decider is None
            seen.append(the_pool.stats().leased)

        def on_release(self, pool: str, used: float) -> None:
            the_pool.expire()

    the_pool = pool
    pool.add_listener(Curious())
    async with pool:
        for _ in range(3):
            async with pool.lease():
                pass
        await settled()
    assert seen == [1, 1, 1]
    assert len(backend.created) == 3


async def test_removed_listener_hears_no_more() -> None:
    """Removing an unknown one is refused."""
    pool, first, second = Backend().pool(limit=1), Everything(), Everything()
    pool.add_listener(first)
    pool.add_listener(second)
    pool.remove_listener(first)
    with pytest.raises(ValueError, match="not in tuple"):
        pool.remove_listener(first)
    async with pool, pool.lease():
        pass
    assert first.heard == []
    assert second.count("on_acquire") == 1


def test_threads_are_heard_where_they_are() -> None:
    threads: set[threading.Thread] = set()

    class Where(PoolListener):
        def on_release(self, pool: str, used: float) -> None:
            threads.add(threading.current_thread())

    with PlainBackend().pool(limit=2) as pool:
        pool.add_listener(Where())

        def work() -> None:
            with pool.lease():
                pass

        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(10)
    assert threads == set(workers)


def test_every_event_may_be_left_alone() -> None:
    listener = PoolListener()
    for event in EVENTS:
        facts: dict[str, tuple[Any, ...]] = {"on_detach": (), "on_clean": (), "on_wait": (1.0, 1, "acquired")}
        assert getattr(listener, event)("db", *facts.get(event, (1.0,))) is None
    assert set(EVENTS) == {name for name in vars(Everything) | vars(Waits) if name.startswith("on_")}


# --- the ends of waits ----------------------------------------------------------------------------------


class Waits(PoolListener):
    """Writes down the ends of waits, and where it hears of them."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.places: list[object] = []

    def on_wait(self, pool: str, waited: float, position: int, outcome: str) -> None:
        self.heard.append((pool, waited, position, outcome))
        self.places.append(current_task() or threading.current_thread())


async def test_each_wait_is_told_in_its_own_task_with_place_and_outcome() -> None:
    listener = Waits()
    tasks: list[object] = []
    pool = Backend().pool(limit=1, min_free=1, name="db")
    pool.add_listener(listener)

    async def use(**options: Any) -> None:
        async with pool.lease(**options):
            await anyio.sleep(2)

    async def call(**options: Any) -> None:
        tasks.append(current_task())
        await outcome_of(lambda: use(**options))

    async with pool:
        assert not pool._engine.inventory.needs_lock
        async with anyio.create_task_group() as group:
            for options in ({}, {"timeout": 5}, {"priority": "high"}, {"timeout": 3}):
                group.start_soon(partial(call, **options))
                await settled()
    assert listener.heard == [
        ("db", 2.0, 1, "acquired"),
        ("db", 3.0, 3, "PoolTimeout"),
        ("db", 4.0, 1, "acquired"),
    ]
    assert listener.places == [tasks[2], tasks[3], tasks[1]]


@pytest.mark.parametrize("anyio_backend", [jumping("asyncio")])
async def test_waits_of_cancelled_failed_and_closed_callers_are_told() -> None:
    backend, listener = Backend(), Waits()
    async with backend.pool(limit=1, name="db") as pool, anyio.create_task_group() as group, held(pool):
        pool.add_listener(listener)
        with anyio.move_on_after(1):
            await pool.acquire()
        group.start_soon(outcome_of, pool.acquire)
        await settled()
        group.start_soon(pool.close)
        await settled()
    assert listener.heard == [("db", 1.0, 1, "CancelledError"), ("db", 0.0, 1, "PoolClosed")]


def test_waits_of_threads_and_other_loops_are_told() -> None:
    listener = Waits()
    pool = PlainBackend().pool(limit=1, name="db")
    pool.add_listener(listener)

    def wait() -> None:
        with pytest.raises(PoolTimeout):
            pool.acquire_sync(timeout=0.02)

    async def wait_here() -> None:
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=0.02)

    with pool:
        pool.release_sync(pool.acquire_sync())
        listener.heard.clear()
        with pool.lease():
            thread = threading.Thread(target=wait)
            thread.start()
            thread.join(10)
            asyncio.run(wait_here())
        pool.remove_listener(listener)
    assert [(position, outcome) for _, _, position, outcome in listener.heard] == [(1, "PoolTimeout")] * 2
    assert all(waited >= 0.02 for _, waited, _, _ in listener.heard)
    assert listener.places[-2] is thread
    assert not pool._engine._tells_waits
