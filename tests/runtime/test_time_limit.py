"""One timer for all calls of hooks: what takes too long is cut off once, and nothing else is."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from connectionpools_fastapi._runtime.time_limit import AsyncioTimeLimit
from tests.support import JumpingLoop


def in_virtual_time(main: Callable[[AsyncioTimeLimit], Coroutine[Any, Any, Any]]) -> Any:
    """Run something that has a limit of ten seconds a block."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main(AsyncioTimeLimit(runner.get_loop(), 10.0)))


async def sleeps(limit: AsyncioTimeLimit, seconds: float) -> str:
    with limit():
        await asyncio.sleep(seconds)
        return "in time"
    return "cut off"


def test_block_is_cut_off_at_its_own_time_alone() -> None:
    async def main(limit: AsyncioTimeLimit) -> tuple[list[str], float]:
        began = asyncio.get_running_loop().time()

        async def begin(delay: float, seconds: float) -> str:
            await asyncio.sleep(delay)
            return await sleeps(limit, seconds)

        ends = await asyncio.gather(begin(0, 99), begin(1, 9), begin(2, 99), begin(3, 11), begin(4, 8))
        return list(ends), asyncio.get_running_loop().time() - began

    ends, took = in_virtual_time(main)
    assert ends == ["cut off", "in time", "cut off", "cut off", "in time"]
    assert took == pytest.approx(13)


def test_outer_cancellation_goes_through_at_the_limit() -> None:
    async def main(limit: AsyncioTimeLimit) -> int:
        loop = asyncio.get_running_loop()
        cancelled = 0
        for delay in (5.0, 10.0):
            task = asyncio.create_task(sleeps(limit, 99))
            loop.call_later(delay, task.cancel)
            try:
                await task
            except asyncio.CancelledError:
                cancelled += 1
        return cancelled

    assert in_virtual_time(main) == 2


def test_error_of_cut_off_block_reaches_its_caller() -> None:
    """The task is not cancelled any more."""

    async def main(limit: AsyncioTimeLimit) -> int:
        async def complain() -> None:
            with limit():
                try:
                    await asyncio.sleep(99)
                finally:
                    raise ValueError("as it ends")

        with pytest.raises(ValueError, match="as it ends"):
            await complain()
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert in_virtual_time(main) == 0


def test_ended_block_is_forgotten_behind_running_one() -> None:
    async def main(limit: AsyncioTimeLimit) -> int:
        slow = asyncio.create_task(sleeps(limit, 9))
        await asyncio.sleep(0)
        for _ in range(100):
            with limit():
                pass
        kept = len(limit.blocks)
        await slow
        return kept

    assert in_virtual_time(main) == 1


def test_block_of_other_loop_is_limited_beside_busy_loop() -> None:
    """A pool may leave something to be cleaned in the loop that it has left."""
    is_busy, go_on = threading.Event(), threading.Event()
    loop = asyncio.new_event_loop()

    async def compute() -> str:
        is_busy.set()
        go_on.wait(20)
        await asyncio.sleep(0)
        return "never cancelled"

    async def elsewhere() -> str:
        limit = AsyncioTimeLimit(loop, 0.001)
        with limit():
            assert not limit.blocks
            await asyncio.Event().wait()
        return "cut off"

    busy = asyncio.run_coroutine_threadsafe(compute(), loop)
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        assert is_busy.wait(20)
        assert asyncio.run(elsewhere()) == "cut off"
        go_on.set()
        assert busy.result(20) == "never cancelled"
    finally:
        go_on.set()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()
