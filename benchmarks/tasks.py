"""Contestants in one event loop of asyncio."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Self

from connectionpools_fastapi import ConnectionPool

Enter = Callable[[], AbstractAsyncContextManager[object]]
TASKS = 500
RESOURCES = 10


class Empty:
    """The floor: a context manager that does nothing."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


class QueuePool:
    """What one writes in ten lines: asyncio.Queue in a context manager."""

    def __init__(self, size: int) -> None:
        self._queue: asyncio.Queue[object] = asyncio.Queue()
        for _ in range(size):
            self._queue.put_nowait(object())

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[object]:
        resource = await self._queue.get()
        try:
            yield resource
        finally:
            self._queue.put_nowait(resource)


@asynccontextmanager
async def the_floor() -> AsyncIterator[Enter]:
    yield Empty


@asynccontextmanager
async def a_bare_queue() -> AsyncIterator[Enter]:
    yield QueuePool(RESOURCES).lease


@asynccontextmanager
async def our_pool() -> AsyncIterator[Enter]:
    async with ConnectionPool(create=object, limit=RESOURCES, timeout=60) as pool:
        yield pool.lease


async def alone(enter: Enter, operations: int) -> None:
    for _ in range(operations):
        async with enter():
            pass


async def crowd(enter: Enter, operations: int) -> None:
    async def one() -> None:
        for _ in range(max(1, operations // TASKS)):
            async with enter():
                await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for _ in range(TASKS):
            group.create_task(one())


def timed(
    contestant: Callable[[], AbstractAsyncContextManager[Enter]], load: Callable[[Enter, int], Awaitable[None]]
) -> Callable[[int], float]:
    async def run(operations: int) -> float:
        async with contestant() as enter:
            await load(enter, RESOURCES)  # warm: resources exist before the clock starts
            start = time.perf_counter()
            await load(enter, operations)
            return time.perf_counter() - start

    return lambda operations: asyncio.run(run(operations))


ALONE = {
    "an empty async context manager": timed(the_floor, alone),
    "asyncio.Queue": timed(a_bare_queue, alone),
    "connectionpools_fastapi": timed(our_pool, alone),
}
CROWD = {
    "asyncio.Queue": timed(a_bare_queue, crowd),
    "connectionpools_fastapi": timed(our_pool, crowd),
}
