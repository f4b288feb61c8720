"""What one moment does not show: the peaks of the last minute, the longest lease, and the queue of each priority."""

import random
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from connectionpools_fastapi import ConnectionPool, TooManyWaiting
from connectionpools_fastapi._core.peaks import PIECE, SPAN
from tests.support import settled
from tests.web import Thing, things

pytestmark = pytest.mark.anyio


class Clock:
    """A clock that stands still."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- by priority -------------------------------------------------------------------------------------


async def test_each_priority_has_its_own_queue_and_refusals() -> None:
    clock = Clock()
    async with things(limit=1, max_waiting=3, clock=clock) as pool, anyio.create_task_group() as group:

        async def wait(priority: Any) -> None:
            async with pool.lease(priority=priority, timeout=60):
                pass

        held = await pool.acquire()
        for priority in ("low", "normal", "normal"):
            group.start_soon(wait, priority)
            await settled()
            clock.now += 1.0
        with pytest.raises(TooManyWaiting):
            await pool.acquire(priority="low")
        found = pool.stats().priorities
        assert {name: (each.waiting, each.oldest_wait, each.refusals) for name, each in found.items()} == {
            "high": (0, 0.0, 0),
            "normal": (2, 2.0, 0),
            "low": (1, 3.0, 1),
        }
        await pool.release(held)


# --- peaks ---------------------------------------------------------------------------------------------


async def test_longest_lease_is_that_of_now() -> None:
    clock = Clock()
    async with things(clock=clock) as pool:
        one = await pool.acquire()
        clock.now += 3.0
        async with pool.lease():
            clock.now += 1.0
            assert pool.stats().longest_lease == 4.0
        await pool.release(one)
        assert pool.stats().longest_lease == 0.0


async def test_peak_between_two_scrapes_is_seen_for_a_minute() -> None:
    clock = Clock()
    async with things(limit=3, clock=clock) as pool:
        pool.stats()
        async with pool.lease():  # at the very moment of the scrape
            pass
        assert pool.stats().peak_taken == 1
        clock.now += PIECE
        async with AsyncExitStack() as stack:
            for _ in range(3):
                await stack.enter_async_context(pool.lease())
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(wait_and_leave, pool)
        async with pool.lease():
            pass
        for _ in range(int(SPAN / PIECE)):
            stats = pool.stats()
            assert (stats.taken, stats.waiting, stats.peak_taken, stats.peak_waiting) == (0, 0, 3, 5)
            clock.now += PIECE
        clock.now += PIECE
        async with pool.lease():
            pass
        pool.stats()
        stats = pool.stats()
        assert (stats.peak_taken, stats.peak_waiting) == (1, 0)


async def wait_and_leave(pool: ConnectionPool[Thing]) -> None:
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(cancel_when_settled, scope)
            await pool.acquire()


async def cancel_when_settled(scope: anyio.CancelScope) -> None:
    await settled()
    scope.cancel()


@pytest.mark.parametrize("seed", range(20))
async def test_peak_is_the_most_that_were_taken_at_once(seed: int) -> None:
    chance, clock = random.Random(seed), Clock()  # noqa: S311 - any numbers will do
    async with things(limit=6, clock=clock) as pool:
        held: list[Thing] = []
        for _ in range(20):  # one stretch after the other, each from one scrape to the next
            highest = len(held)
            for _ in range(chance.randrange(20)):
                clock.now += 1e-3
                if held and chance.random() < 0.5:
                    await pool.release(held.pop(chance.randrange(len(held))))
                elif len(held) < 6:
                    held.append(await pool.acquire())
                highest = max(highest, len(held))
            clock.now += SPAN
            assert pool.stats().peak_taken == highest
            clock.now += 1e-3
        for thing in held:
            await pool.release(thing)


async def test_resource_that_was_never_used_is_in_no_peak() -> None:
    async with things(limit=3, min_free=2) as pool:
        await settled()
        assert (pool.stats().free, pool.stats().peak_taken) == (2, 0)


async def test_peak_of_fifo_is_not_known() -> None:
    async with things(reuse="fifo") as pool, pool.lease():
        assert pool.stats().peak_taken is None
