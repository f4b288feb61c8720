"""A crowd of plain threads."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, cast

import psycopg_pool
from sqlalchemy.pool import QueuePool

from benchmarks.rounds import OURS, Benchmark, Measure, Rounds, throughput_of
from benchmarks.stubs import SyncStub
from connectionpools_fastapi import ConnectionPool

Enter = Callable[[], AbstractContextManager[object]]
Use = Callable[[], None]

THREADS = 8
RESOURCES = 4
LIFO_QUEUE = "queue.LifoQueue"
SQLALCHEMY = "SQLAlchemy's QueuePool"
PSYCOPG = "psycopg_pool"


@contextmanager
def our_pool() -> Iterator[Enter]:
    with ConnectionPool(create=object, limit=RESOURCES) as pool:
        yield pool.lease


@contextmanager
def a_bare_queue() -> Iterator[Enter]:
    resources: queue.LifoQueue[object] = queue.LifoQueue()
    for _ in range(RESOURCES):
        resources.put(object())

    @contextmanager
    def lease() -> Iterator[object]:
        resource = resources.get()
        try:
            yield resource
        finally:
            resources.put(resource)

    yield lease


@contextmanager
def sqlalchemy_pool() -> Iterator[Enter]:
    pool = QueuePool(cast("Any", SyncStub), pool_size=RESOURCES, max_overflow=0, reset_on_return=None)

    @contextmanager
    def lease() -> Iterator[object]:
        connection = pool.connect()
        try:
            yield connection
        finally:
            connection.close()

    yield lease
    pool.dispose()


@contextmanager
def psycopg() -> Iterator[Enter]:
    kind = cast("Any", SyncStub)
    with psycopg_pool.ConnectionPool(min_size=RESOURCES, max_size=RESOURCES, connection_class=kind) as pool:
        pool.wait()
        yield pool.connection


PEERS: dict[str, Callable[[], AbstractContextManager[Enter]]] = {
    OURS: our_pool,
    LIFO_QUEUE: a_bare_queue,
    SQLALCHEMY: sqlalchemy_pool,
    PSYCOPG: psycopg,
}
NOTES = {
    LIFO_QUEUE: "in ten lines: no time limit, no check, no statistics",
    SQLALCHEMY: "stubbed connection, no reset",
    PSYCOPG: "stubbed connection",
}


def use_nothing() -> None:
    """Give the resource back at once."""


def wait_for_nothing() -> None:
    """Let other threads run, as a driver does that waits for its server."""
    time.sleep(0)


def crowd(enter: Enter, use: Use, each: int) -> float:
    """Let threads compete; return the seconds for a lease."""
    gate = threading.Barrier(THREADS + 1)

    def one() -> None:
        gate.wait()
        for _ in range(each):
            with enter():
                use()

    crowd = [threading.Thread(target=one) for _ in range(THREADS)]
    for thread in crowd:
        thread.start()
    gate.wait()
    start = time.perf_counter()
    for thread in crowd:
        thread.join()
    return (time.perf_counter() - start) / (THREADS * each)


def run_threads(rounds: Rounds) -> None:
    uses = {"time": use_nothing, "switching": wait_for_nothing}
    with ExitStack() as stack:
        peers = {name: stack.enter_context(open_it()) for name, open_it in PEERS.items()}
        for figures in rounds:
            for name in rounds.in_any_order(peers):
                for measure, use in uses.items():
                    each = 2 * rounds.operations(name, 400, measure) // THREADS
                    figures[measure][name] = crowd(peers[name], use, each)


BENCHMARK = Benchmark(
    title=f"{THREADS} threads on {RESOURCES} resources",
    run=run_threads,
    measures={
        "time": Measure("time of a lease", "µs", 1e6),
        "switching": Measure("time of a lease that lets other threads run", "µs", 1e6),
    },
    claims=(throughput_of(LIFO_QUEUE, 1.0), throughput_of(SQLALCHEMY, 2.0), throughput_of(PSYCOPG, 2.0)),
    budget=25,
    notes=NOTES,
)
