"""A `change` that returns a future: the pool awaits it without a task."""

import asyncio
from collections.abc import Callable

import pytest

from connectionpools_fastapi import ConnectionPool
from tests.support import Backend, Resource, assert_nothing_is_lost, loop_time, settled

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.virtual_time,
    pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True),
]


class Futures:
    """A pool of one, whose `change` returns a future at each call."""

    def __init__(self, backend: Backend) -> None:
        self.begun: list[asyncio.Future[None]] = []
        self.pool = ConnectionPool(
            create=backend.create, change=self.change, clean=backend.clean, limit=1, hook_timeout=5, clock=loop_time
        )

    def change(self, _: Resource) -> asyncio.Future[None]:
        self.begun.append(asyncio.get_running_loop().create_future())
        return self.begun[-1]

    async def come_back(self) -> asyncio.Future[None]:
        """Lease and give back; return the future of the change that has begun."""
        lease = self.pool.lease()
        if not lease.try_enter(None):
            await lease.enter(owner=None)
        lease.release_nowait()
        await settled()
        return self.begun[-1]


async def test_change_is_over_when_its_future_is() -> None:
    backend = Backend()
    futures = Futures(backend)
    async with futures.pool as pool:
        change = await futures.come_back()
        assert (pool.free, pool.taken) == (0, 1)
        change.set_result(None)
        await settled()
        assert (pool.free, pool.taken) == (1, 0)
        await assert_nothing_is_lost(pool, backend)


async def test_future_needs_no_task() -> None:
    futures = Futures(Backend())
    async with futures.pool:
        before = asyncio.all_tasks()
        change = await futures.come_back()
        assert asyncio.all_tasks() == before
        change.set_result(None)


async def test_first_waiter_gets_resource_when_future_is_done() -> None:
    futures = Futures(Backend())
    async with futures.pool as pool:
        change = await futures.come_back()
        waiter = asyncio.create_task(pool.acquire())
        await settled()
        assert not waiter.done()
        change.set_result(None)
        pool.discard(await waiter)


async def test_caller_that_gives_back_waits_for_future() -> None:
    futures = Futures(Backend())

    async def use() -> None:
        async with futures.pool.lease():
            pass

    async with futures.pool:
        use_ends = asyncio.create_task(use())
        await settled()
        assert not use_ends.done()
        futures.begun[0].set_result(None)
        await use_ends


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (lambda future: future.set_exception(ConnectionError("gone")), "ConnectionError"),
        (lambda future: future.cancel(), "CancelledError"),
    ],
    ids=["fails", "is cancelled"],
)
async def test_failed_future_discards_its_resource(
    end: Callable[[asyncio.Future[None]], object], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Backend()
    futures = Futures(backend)
    async with futures.pool as pool:
        end(await futures.come_back())
        await settled()
        assert backend.count("clean") == 1
        assert says in caplog.text
        (await futures.come_back()).set_result(None)
        await settled()
        assert pool.free == 1


async def test_future_that_takes_too_long_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    backend = Backend()
    futures = Futures(backend)
    async with futures.pool:
        change = await futures.come_back()
        await asyncio.sleep(4.9)
        assert not change.done()
        await asyncio.sleep(0.2)
        assert change.cancelled()
        assert backend.count("clean") == 1
        assert "change took longer than hook_timeout=5 s" in caplog.text


async def test_close_waits_for_future() -> None:
    backend = Backend()
    futures = Futures(backend)
    async with futures.pool:
        change = await futures.come_back()
        asyncio.get_running_loop().call_later(1, change.set_result, None)
    assert change.done()
    assert backend.count("clean") == 1
