"""Overload of a pool with tasks: goodput, and what the pool says of it."""

import logging
import random
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from connectionpools_fastapi import ConnectionPool, Overloaded
from connectionpools_fastapi._monitoring.health import examine
from connectionpools_fastapi._monitoring.metrics import render
from tests.support import Backend, Resource, jumping, loop_time, outcome_of, settled

ENOUGH = 0.95  # of the capacity, for clients that stayed
PATIENCE = 1.0
HOLD = 0.1
LIMIT = 4


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return jumping(request.param)


class Load:
    """Clients that come whatever the others get, and leave once their patience is over."""

    def __init__(
        self,
        pool: ConnectionPool[Resource],
        *,
        times: float,
        seconds: float,
        patience: float = PATIENCE,
        hold: float = HOLD,
    ) -> None:
        self._pool = pool
        self._patience = patience
        self._hold = hold
        self._seconds = seconds
        self._arrivals = list(self._draw(times * pool.limit / hold, seconds))
        self.served = self.refused = 0
        self.goodput = 0.0  # the share of the capacity, while clients come, that served those that stayed

    @staticmethod
    def _draw(rate: float, seconds: float) -> Iterator[float]:
        chance, at = random.Random(7), 0.0  # noqa: S311 - no secret
        while (at := at + chance.expovariate(rate)) < seconds:
            yield at

    async def run(self) -> None:
        self._began_at = began_at = loop_time()
        async with anyio.create_task_group() as group:
            for at in self._arrivals:
                await anyio.sleep(began_at + at - loop_time())
                group.start_soon(self._ask)

    async def _ask(self) -> None:
        with anyio.move_on_after(self._patience):
            try:
                async with self._pool.lease(holder="GET /items"):
                    await anyio.sleep(self._hold)
            except Overloaded:
                self.refused += 1
            else:
                self.served += 1
                if loop_time() - self._began_at <= self._seconds:
                    self.goodput += self._hold / (self._seconds * self._pool.limit)


@pytest.mark.anyio
async def test_goodput_of_tasks_stays_under_overload(caplog: pytest.LogCaptureFixture) -> None:
    seconds = 8
    async with Backend().pool(limit=LIMIT, name="db") as pool:
        load = Load(pool, times=3, seconds=seconds)
        await load.run()
        stats = pool.stats()
        assert load.goodput >= ENOUGH
        assert load.refused == stats.refusals["overloaded"] > 0
        assert stats.patience == pytest.approx(PATIENCE, rel=0.25)
        await anyio.sleep(2)
        assert not pool.stats().overloaded
        async with pool.lease():  # the next caller is served at once
            pass
    begin, end = (record.getMessage() for record in caplog.records if "overloaded" in record.getMessage())
    assert begin.startswith("pool 'db': overloaded, callers are refused: ")
    assert "most resources are held by GET /items (" in begin
    assert end.startswith("pool 'db': no longer overloaded after ")
    assert f": {load.refused} callers were refused, {stats.withdrawals} left, " in end


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [jumping("asyncio")], ids=["asyncio"])
@pytest.mark.parametrize(
    ("patience", "hold", "times"),
    [(1.0, 0.02, 5.0), (0.4, 0.02, 5.0), (2.0, 0.02, 3.0), (1.0, 0.01, 2.0), (1.0, 0.02, 1.3)],
)
async def test_goodput_stays_at_each_load(patience: float, hold: float, times: float) -> None:
    async with Backend().pool(limit=LIMIT) as pool:
        load = Load(pool, times=times, seconds=5, patience=patience, hold=hold)
        await load.run()
        assert load.goodput >= ENOUGH


@pytest.mark.anyio
async def test_refusals_show_in_stats_health_and_metrics(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    async with Backend().pool(limit=1, name="db") as pool:
        assert (pool.stats().overloaded, pool.stats().patience, pool.stats().oldest_wait) == (False, None, 0.0)

        async def work() -> None:
            async with pool.lease(timeout=100):
                await anyio.sleep(1)

        async with anyio.create_task_group() as group:
            for _ in range(30):
                group.start_soon(work)
            await anyio.sleep(21.5)
            assert isinstance(await outcome_of(lambda: pool.acquire(timeout=3)), Overloaded)
            stats = pool.stats()
            assert (stats.overloaded, stats.patience, stats.waiting) == (True, None, 8)
            assert stats.expected_wait == pytest.approx(9.0)
            assert stats.oldest_wait == pytest.approx(21.5)
            health = await examine(pool)
            reason = "overloaded, callers are refused: 8 waiting, a new caller for about 9 s"
            assert (health.verdict, health.reason) == ("warn", reason)
            text = render([pool])[0].decode()
            assert 'connectionpool_overloaded{pool="db"} 1.0' in text
            assert 'connectionpool_expected_wait_seconds{pool="db"} 9.0' in text
            assert 'connectionpool_oldest_wait_seconds{pool="db"} 21.5' in text
            assert "connectionpool_patience_seconds{" not in text
            assert 'connectionpool_refusals_total{pool="db",reason="overloaded"} 1.0' in text
            await anyio.sleep(1.2)
            assert (await examine(pool)).reason.startswith("saturated")
        assert pool.stats().expected_wait == 0.0


@pytest.mark.anyio
async def test_cancelled_lease_teaches_patience() -> None:
    async with Backend().pool(limit=1) as pool:
        with anyio.move_on_after(0.5):
            async with pool.lease():
                await anyio.sleep_forever()
        assert pool.stats().patience is None  # it has not waited

        async def hold() -> None:
            async with pool.lease():
                await anyio.sleep(1)

        async with anyio.create_task_group() as group:
            group.start_soon(hold)
            await settled()
            with anyio.move_on_after(0.75):
                await pool.acquire()
            assert pool.stats().patience == pytest.approx(0.75)
            with anyio.move_on_after(1.0):  # waits for 0.25 s, and holds for 0.75 s
                async with pool.lease():
                    await anyio.sleep_forever()
        estimate = 0.75 * 1.03
        assert pool.stats().patience == pytest.approx(estimate + 0.02 * (1.0 - estimate))


@pytest.mark.anyio
async def test_task_with_own_timeout_teaches_nothing() -> None:
    async with Backend().pool(limit=1) as pool, pool.lease():
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                with anyio.move_on_after(0.5):
                    await pool.acquire(timeout=5)

            group.start_soon(wait)
        assert (pool.stats().withdrawals, pool.stats().patience) == (1, None)
