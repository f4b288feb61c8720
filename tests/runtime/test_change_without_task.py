"""A `change` that is marked as one that needs no task."""

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi._runtime.stepper import Stepper
from connectionpools_fastapi._runtime.time_limit import AsyncioTimeLimit
from connectionpools_fastapi.manager import needs_no_task
from tests.support import Backend, Resource, assert_nothing_is_lost, loop_time, settled

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.virtual_time,
]
in_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)


class Gated:
    """A pool of one, whose `change` awaits a future at each call."""

    def __init__(self, backend: Backend, **options: Any) -> None:
        self.begun: list[asyncio.Future[None]] = []
        hooks: Any = {"create": backend.create, "change": self.change, "clean": backend.clean, **options}
        self.pool = ConnectionPool(**hooks, limit=1, hook_timeout=5, clock=loop_time)

    @needs_no_task
    async def change(self, _: Resource) -> None:
        self.begun.append(asyncio.get_running_loop().create_future())
        await self.begun[-1]

    async def come_back(self) -> asyncio.Future[None]:
        """Lease and give back; return the future of the change that has begun."""
        await self.use()
        return self.begun[-1]

    async def use(self) -> None:
        lease = self.pool.lease()
        if not lease.try_enter(None):
            await lease.enter(owner=None)
        lease.release_nowait()
        await settled()


@in_asyncio
async def test_change_is_over_when_its_last_future_is() -> None:
    backend = Backend()
    gated = Gated(backend)
    async with gated.pool as pool:
        change = await gated.come_back()
        assert (pool.free, pool.taken) == (0, 1)
        change.set_result(None)
        await settled()
        assert (pool.free, pool.taken) == (1, 0)
        await assert_nothing_is_lost(pool, backend)


@in_asyncio
async def test_change_runs_without_a_task() -> None:
    gated = Gated(Backend())
    async with gated.pool:
        before = asyncio.all_tasks()
        change = await gated.come_back()
        assert asyncio.all_tasks() == before
        change.set_result(None)


@in_asyncio
async def test_first_waiter_gets_resource_when_change_is_over() -> None:
    gated = Gated(Backend())
    async with gated.pool as pool:
        change = await gated.come_back()
        waiter = asyncio.create_task(pool.acquire())
        await settled()
        assert not waiter.done()
        change.set_result(None)
        pool.discard(await waiter)


@in_asyncio
async def test_caller_that_gives_back_waits_for_change() -> None:
    gated = Gated(Backend())

    async def use() -> None:
        async with gated.pool.lease():
            pass

    async with gated.pool:
        use_ends = asyncio.create_task(use())
        await settled()
        assert not use_ends.done()
        gated.begun[0].set_result(None)
        await use_ends


@pytest.mark.parametrize(
    ("end", "says"),
    [
        (lambda future: future.set_exception(ConnectionError("gone")), "ConnectionError"),
        (lambda future: future.cancel(), "CancelledError"),
    ],
    ids=["fails", "is cancelled"],
)
@in_asyncio
async def test_failed_change_discards_its_resource(
    end: Callable[[asyncio.Future[None]], object], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Backend()
    gated = Gated(backend)
    async with gated.pool as pool:
        end(await gated.come_back())
        await settled()
        assert backend.count("clean") == 1
        assert says in caplog.text
        (await gated.come_back()).set_result(None)
        await settled()
        assert pool.free == 1


@in_asyncio
async def test_change_that_takes_too_long_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    backend = Backend()
    gated = Gated(backend)
    async with gated.pool:
        change = await gated.come_back()
        await asyncio.sleep(4.9)
        assert not change.done()
        await asyncio.sleep(0.2)
        assert change.cancelled()
        assert backend.count("clean") == 1
        assert "change took longer than hook_timeout=5 s" in caplog.text


@in_asyncio
async def test_change_that_is_cut_off_may_tidy_up(caplog: pytest.LogCaptureFixture) -> None:
    """It is cancelled once. If it then ends without an error, that counts."""
    backend = Backend()
    tidied: list[float] = []

    @needs_no_task
    async def change(_: Resource) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_future()
        except asyncio.CancelledError:
            last = loop.create_future()
            loop.call_later(6, last.set_result, None)
            await last
            tidied.append(loop.time())

    gated = Gated(backend, change=change)
    async with gated.pool as pool:
        begun = asyncio.get_running_loop().time()
        await gated.use()
        await asyncio.sleep(12)
        assert [round(at - begun) for at in tidied] == [11]
        assert pool.free == 1
        assert not caplog.records


@in_asyncio
async def test_cut_off_between_two_futures_is_not_lost() -> None:
    """The first is done, and the coroutine has not gone on yet."""
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()
    ended: list[tuple[BaseException | None, bool]] = []

    async def work() -> None:
        await first
        await second

    stepper = Stepper(work(), AsyncioTimeLimit(loop, 5), lambda error, is_cut_off: ended.append((error, is_cut_off)))
    first.set_result(None)
    stepper.cancel()
    await settled()
    assert [(type(error), is_cut_off) for error, is_cut_off in ended] == [(asyncio.CancelledError, True)]


@in_asyncio
async def test_close_waits_for_change() -> None:
    backend = Backend()
    gated = Gated(backend)
    async with gated.pool:
        change = await gated.come_back()
        asyncio.get_running_loop().call_later(1, change.set_result, None)
    assert change.done()
    assert backend.count("clean") == 1


@pytest.mark.parametrize("outcome", [None, ConnectionError("gone")], ids=["ends", "fails"])
@in_asyncio
async def test_change_that_awaits_nothing_is_over_at_once(outcome: Exception | None) -> None:
    @needs_no_task
    async def change(_: Resource) -> None:
        if outcome is not None:
            raise outcome

    backend = Backend()
    gated = Gated(backend, change=change)
    async with gated.pool as pool:
        lease = pool.lease()
        await lease.enter(owner=None)
        lease.release_nowait()
        assert (pool.free, pool.taken) == (outcome is None, 0)
        await assert_nothing_is_lost(pool, backend)


@in_asyncio
async def test_change_with_a_task_of_its_own_is_awaited() -> None:
    """As where a driver needs one for a rare step; a time limit cancels it too."""
    ended: list[str] = []

    async def step() -> None:
        try:
            async with asyncio.timeout(60):
                await asyncio.sleep(30)
        finally:
            ended.append("step")

    @needs_no_task
    async def change(_: Resource) -> None:
        await asyncio.create_task(step())

    gated = Gated(Backend(), change=change)
    async with gated.pool as pool:
        await gated.use()
        await asyncio.sleep(6)
        assert (ended, pool.free, pool.taken) == (["step"], 0, 0)


@in_asyncio
async def test_mark_on_a_change_that_needs_a_task_is_told(caplog: pytest.LogCaptureFixture) -> None:
    @needs_no_task
    async def change(_: Resource) -> None:
        try:
            await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)

    backend = Backend()
    gated = Gated(backend, change=change)
    async with gated.pool:
        await gated.use()
        assert "so that it needs a task: remove its mark" in caplog.text
        assert backend.count("clean") == 1


async def test_mark_means_nothing_on_trio_or_to_a_subclass(anyio_backend_name: str) -> None:
    steps: list[str] = []

    class Subclass(Gated):
        async def change(self, _: Resource) -> None:
            await anyio.lowlevel.checkpoint()
            steps.append("changed")

    @needs_no_task
    async def change(_: Resource) -> None:
        await anyio.lowlevel.checkpoint()
        steps.append("changed")

    gated = Subclass(Backend()) if anyio_backend_name == "asyncio" else Gated(Backend(), change=change)
    async with gated.pool as pool:
        await gated.use()
        assert (steps, pool.free) == (["changed"], 1)


@in_asyncio
async def test_interrupt_in_a_change_reaches_the_loop() -> None:
    backend = Backend()
    caught: list[Any] = []
    begun = asyncio.Event()

    @needs_no_task
    async def change(_: Resource) -> None:
        begun.set()
        raise SystemExit(3)

    gated = Gated(backend, change=change)
    async with gated.pool as pool:
        lease = pool.lease()
        await lease.enter(owner=None)
        try:
            lease.release_nowait()
        except SystemExit as error:
            caught.append(error.code)
        assert (caught, pool.taken) == ([3], 0)
