"""A lease alone and a crowd of tasks, in one event loop of asyncio."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Any, Self, cast

import asyncio_connection_pool
from aiosqlitepool import SQLiteConnectionPool  # type: ignore[import-untyped] # has no types
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import BlockingConnectionPool
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlalchemy.util import greenlet_spawn

from benchmarks.rounds import OURS, Benchmark, Claim, Figures, Measure, Rounds, throughput_of
from benchmarks.stubs import AsyncPsycopgStub, AsyncStub
from connectionpools_fastapi import ConnectionPool

Enter = Callable[[], AbstractAsyncContextManager[object]]
Contestant = AbstractAsyncContextManager[Enter]

TASKS = 500
RESOURCES = 10
NOTHING = "an empty async context manager"
QUEUE = "asyncio.Queue"
PSYCOPG = "psycopg_pool"
SQLALCHEMY = "SQLAlchemy's AsyncAdaptedQueuePool"


class Empty:
    """The floor: a context manager that does nothing."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


class Pair:
    """A context manager out of an acquire and a release, at the least cost."""

    __slots__ = ("_acquire", "_release", "_resource")

    def __init__(
        self, acquire: Callable[[], Coroutine[Any, Any, Any]], release: Callable[[Any], Coroutine[Any, Any, None]]
    ) -> None:
        self._acquire = acquire
        self._release = release

    async def __aenter__(self) -> object:
        self._resource = await self._acquire()
        return self._resource

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._release(self._resource)


class Strategy(asyncio_connection_pool.ConnectionStrategy[object]):
    async def make_connection(self) -> object:
        return object()

    def connection_is_closed(self, conn: object) -> bool:  # noqa: ARG002 - as it is called
        return False

    async def close_connection(self, conn: object) -> None:  # noqa: ARG002 - as it is called
        return None


@asynccontextmanager
async def nothing() -> AsyncIterator[Enter]:
    yield Empty


@asynccontextmanager
async def our_pool() -> AsyncIterator[Enter]:
    async with ConnectionPool(create=object, limit=RESOURCES) as pool:
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
async def asyncio_pool() -> AsyncIterator[Enter]:
    yield asyncio_connection_pool.ConnectionPool(strategy=Strategy(), max_size=RESOURCES).get_connection


@asynccontextmanager
async def psycopg_pool() -> AsyncIterator[Enter]:
    kind = cast("Any", AsyncPsycopgStub)
    async with AsyncConnectionPool(min_size=RESOURCES, max_size=RESOURCES, connection_class=kind) as pool:
        await pool.wait()
        yield pool.connection


@asynccontextmanager
async def sqlite_pool() -> AsyncIterator[Enter]:
    async def connect() -> AsyncStub:
        return AsyncStub()

    async with SQLiteConnectionPool(connect, pool_size=RESOURCES) as pool:
        yield pool.connection


@asynccontextmanager
async def redis_pool() -> AsyncIterator[Enter]:
    kind = cast("Any", AsyncStub)
    pool = BlockingConnectionPool(max_connections=RESOURCES, connection_class=kind)
    yield lambda: Pair(pool.get_connection, pool.release)
    await pool.disconnect()


@asynccontextmanager
async def sqlalchemy_pool() -> AsyncIterator[Enter]:
    pool = AsyncAdaptedQueuePool(cast("Any", AsyncStub), pool_size=RESOURCES, max_overflow=0, reset_on_return=None)

    def acquire() -> Coroutine[Any, Any, Any]:
        return greenlet_spawn(pool.connect)

    def release(connection: Any) -> Coroutine[Any, Any, None]:
        return greenlet_spawn(connection.close)

    yield lambda: Pair(acquire, release)


PEERS: dict[str, Callable[[], Contestant]] = {
    OURS: our_pool,
    QUEUE: a_bare_queue,
    "asyncio-connection-pool": asyncio_pool,
    PSYCOPG: psycopg_pool,
    "aiosqlitepool": sqlite_pool,
    "redis-py's BlockingConnectionPool": redis_pool,
    SQLALCHEMY: sqlalchemy_pool,
}
NOTES = {
    NOTHING: "the floor",
    QUEUE: "in ten lines: no time limit, no check, no statistics",
    PSYCOPG: "stubbed connection",
    "aiosqlitepool": "stubbed connection; asks it SELECT 1 at each lease",
    "redis-py's BlockingConnectionPool": "stubbed connection",
    SQLALCHEMY: "the pool beneath an async engine, stubbed connection, no reset",
}


async def alone(enter: Enter, operations: int) -> float:
    """Lease again and again; return the seconds for each."""
    start = time.perf_counter()
    for _ in range(operations):
        async with enter():
            pass
    return (time.perf_counter() - start) / operations


async def at_once() -> None:
    """Come back for the next lease without letting anybody else run in between."""


async def elsewhere() -> None:
    """Yield to the loop for one turn, as a caller that comes back in another request does."""
    await asyncio.sleep(0)


async def crowd(enter: Enter, between: Callable[[], Awaitable[None]], tasks: int, each: int) -> float:
    """Let tasks compete, each of which keeps its resource for one turn of the loop; return the seconds for a lease."""
    gate = asyncio.Event()

    async def one() -> None:
        await gate.wait()
        for _ in range(each):
            async with enter():
                await asyncio.sleep(0)
            await between()

    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(one())
        await asyncio.sleep(0)
        start = time.perf_counter()
        gate.set()
    return (time.perf_counter() - start) / (tasks * each)


async def longest_wait(enter: Enter, tasks: int, each: int) -> float:
    """Return the longest wait of a crowd by the mean one, told in leases that others began meanwhile."""
    waits: list[int] = []
    begun = 0

    async def one() -> None:
        nonlocal begun
        for _ in range(each):
            before = begun
            async with enter():
                waits.append(begun - before)
                begun += 1
                await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(one())
    return max(waits) * len(waits) / max(1, sum(waits))


def run_alone(rounds: Rounds) -> None:
    async def round_by_round() -> None:
        async with AsyncExitStack() as stack:
            peers = {
                name: await stack.enter_async_context(open_it())
                for name, open_it in {NOTHING: nothing, **PEERS}.items()
            }
            for figures in rounds:
                for name in rounds.in_any_order(peers):
                    figures["time"][name] = await alone(peers[name], rounds.operations(name, 500))

    asyncio.run(round_by_round())


def run_crowd(rounds: Rounds) -> None:
    async def round_by_round() -> None:
        async with AsyncExitStack() as stack:
            peers = {name: await stack.enter_async_context(open_it()) for name, open_it in PEERS.items()}
            tasks = rounds.size(TASKS)
            for figures in rounds:
                for name in rounds.in_any_order(peers):
                    for measure, between in (("time", elsewhere), ("at once", at_once)):
                        each = max(4, rounds.operations(name, 1, measure) // tasks)
                        figures[measure][name] = await crowd(peers[name], between, tasks, each)
                    figures["fairness"][name] = await longest_wait(peers[name], tasks, 5)

    asyncio.run(round_by_round())


def _patience(of: Figures) -> float:
    return of["fairness"][OURS]


ALONE = Benchmark(
    title="Lease and return, no caller waiting",
    run=run_alone,
    measures={"time": Measure("time of a lease", "µs", 1e6)},
    claims=(
        Claim("of an empty async context manager", lambda of: of["time"][OURS] / of["time"][NOTHING], at_most=3.0),
        throughput_of(PSYCOPG, 8),
        throughput_of(QUEUE, 2),
    ),
    budget=40,
    notes=NOTES,
)
CROWD = Benchmark(
    title=f"{TASKS} tasks on {RESOURCES} resources",
    run=run_crowd,
    measures={
        "time": Measure("time of a lease", "µs", 1e6),
        "at once": Measure("time of a lease if tasks come back at once, where newcomers may overtake", "µs", 1e6),
        "fairness": Measure("longest wait by the mean one", "x"),
    },
    claims=(
        throughput_of(QUEUE, 1.2),
        throughput_of(PSYCOPG, 4),
        Claim("longest wait by the mean one", _patience, at_most=2.0),
    ),
    budget=50,
    notes=NOTES,
)
