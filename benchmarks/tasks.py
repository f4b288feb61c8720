"""A lease alone and a crowd of tasks, in one event loop: asyncio's and uvloop's.

All of it is one thread that never waits: its CPU time tells what a lease takes, whatever else the machine does.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Self, cast

from psycopg_pool import AsyncConnectionPool

from benchmarks.arena import ASYNCIO, LOOPS, UVLOOP, Contestant, opened
from benchmarks.rounds import OURS, Benchmark, Claim, Measure, Rounds, ratio, throughput_of
from benchmarks.stubs import AsyncStub
from connectionpools_fastapi import ConnectionPool

Enter = Callable[[], AbstractAsyncContextManager[object]]

TASKS = 500
RESOURCES = 10
NOTHING = "an empty async context manager"
QUEUE = "asyncio.Queue"
PSYCOPG = "psycopg_pool"


class Empty:
    """The floor: a context manager that does nothing."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


@asynccontextmanager
async def nothing() -> AsyncIterator[Enter]:
    yield Empty


@asynccontextmanager
async def our_pool() -> AsyncIterator[Enter]:
    # Where 10,000 wait on a busy machine, the default of 5 s is too short for some, and the pool refuses these.
    async with ConnectionPool(create=object, limit=RESOURCES, timeout=60) as pool:
        yield pool.lease


@asynccontextmanager
async def a_bare_queue() -> AsyncIterator[Enter]:
    queue: asyncio.Queue[object] = asyncio.Queue()
    for _ in range(RESOURCES):
        queue.put_nowait(object())

    @asynccontextmanager
    async def lease() -> AsyncIterator[object]:
        resource = await queue.get()
        try:
            yield resource
        finally:
            queue.put_nowait(resource)

    yield lease


@asynccontextmanager
async def psycopg_pool() -> AsyncIterator[Enter]:
    kind = cast("Any", AsyncStub)
    async with AsyncConnectionPool(min_size=RESOURCES, max_size=RESOURCES, connection_class=kind) as pool:
        await pool.wait()
        yield pool.connection


PEERS: dict[str, Contestant] = {OURS: our_pool, QUEUE: a_bare_queue, PSYCOPG: psycopg_pool}
NOTES = {
    NOTHING: "the floor",
    QUEUE: "in ten lines: no time limit, no check, no statistics",
    PSYCOPG: "stubbed connection",
}


async def alone(enter: Enter, operations: int) -> float:
    """Lease again and again; return the seconds for each."""
    start = time.thread_time()
    for _ in range(operations):
        async with enter():
            pass
    return (time.thread_time() - start) / operations


async def crowd(enter: Enter, tasks: int, each: int) -> float:
    """Let tasks compete; return the seconds for a lease.

    Each keeps its resource for one turn of the loop, and comes back a turn later, as a caller in another request does.
    """
    gate = asyncio.Event()

    async def one() -> None:
        await gate.wait()
        for _ in range(each):
            async with enter():
                await asyncio.sleep(0)
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(one())
        await asyncio.sleep(0)
        start = time.thread_time()
        gate.set()
    return (time.thread_time() - start) / (tasks * each)


def run_alone(rounds: Rounds) -> None:
    with opened({NOTHING: nothing, **PEERS}, LOOPS) as arena:
        for figures in rounds:
            for name in rounds.in_any_order(arena.names):
                for loop in LOOPS:
                    operations = rounds.operations(name, 500, loop)
                    figures[loop][name] = arena.measure(name, alone, operations, loop=loop)


def run_crowd(rounds: Rounds) -> None:
    tasks = rounds.size(TASKS)
    with opened(PEERS, LOOPS) as arena:
        for figures in rounds:
            for name in rounds.in_any_order(arena.names):
                for loop in LOOPS:
                    each = max(4, rounds.operations(name, 1, loop) // tasks)
                    figures[loop][name] = arena.measure(name, crowd, tasks, each, loop=loop)


MEASURES = {loop: Measure(f"time of a lease, {loop}", "µs", 1e6) for loop in LOOPS}
ALONE = Benchmark(
    title="Lease and return, no caller waiting",
    run=run_alone,
    measures=MEASURES,
    beside=NOTHING,
    claims=(
        Claim(f"time beside {NOTHING}", ratio(ASYNCIO, OURS, NOTHING), at_most=2.0),
        throughput_of(PSYCOPG, 8, ASYNCIO),
        throughput_of(QUEUE, 2.5, ASYNCIO),
        throughput_of(QUEUE, None, UVLOOP),
    ),
    budget=30,
    notes=NOTES,
)
CROWD = Benchmark(
    title=f"{TASKS} tasks on {RESOURCES} resources",
    run=run_crowd,
    measures=MEASURES,
    beside=QUEUE,
    claims=(
        throughput_of(QUEUE, 1.2, ASYNCIO),
        throughput_of(PSYCOPG, 4, ASYNCIO, {"3.13": 3}),
        throughput_of(QUEUE, None, UVLOOP),
        throughput_of(PSYCOPG, None, UVLOOP),
    ),
    budget=40,
    notes=NOTES,
)
