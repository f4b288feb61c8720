"""What a thousand times as many waiters or resources cost, and how much memory each takes."""

import asyncio
import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from time import perf_counter

from benchmarks.rounds import OURS, Benchmark, Claim, Figures, Measure, Rounds
from benchmarks.tasks import QUEUE, RESOURCES, Enter, a_bare_queue, crowd, elsewhere, our_pool
from connectionpools_fastapi import ConnectionPool

FEW, MANY = 10, 10_000
OPERATIONS = 40_000


async def hand_over(enter: Enter, waiters: int, operations: int) -> float:
    """Let this many callers wait beyond those that hold a resource; return the seconds for a lease."""
    tasks = RESOURCES + waiters
    return await crowd(enter, elsewhere, tasks, max(1, operations // tasks))


async def by_hand(pool: ConnectionPool[object], operations: int) -> float:
    """Acquire all that there is and release it, again and again; return the seconds for each."""
    times = max(1, operations // pool.limit)
    start = perf_counter()
    for _ in range(times):
        taken = [await pool.acquire() for _ in range(pool.limit)]
        for resource in taken:
            await pool.release(resource)
    return (perf_counter() - start) / (times * pool.limit)


def run_scale(rounds: Rounds) -> None:
    async def round_by_round() -> None:
        operations, many = rounds.size(OPERATIONS), rounds.size(MANY)
        async with AsyncExitStack() as stack:
            peers = {
                OURS: await stack.enter_async_context(our_pool()),
                QUEUE: await stack.enter_async_context(a_bare_queue()),
            }
            pools: dict[int, ConnectionPool[object]] = {
                limit: ConnectionPool(create=object, limit=limit, blocking=False) for limit in (FEW, many)
            }
            for pool in pools.values():
                await stack.enter_async_context(pool)
            for figures in rounds:
                for name in rounds.in_any_order(peers):
                    for label, waiters in (("few", FEW), ("many", many)):
                        figures[label][name] = await hand_over(peers[name], waiters, operations)
                figures["10"][OURS] = await by_hand(pools[FEW], operations)
                figures["10,000"][OURS] = await by_hand(pools[many], operations)

    asyncio.run(round_by_round())


async def memory_of_resources(count: int) -> float:
    """Return the bytes that a pool takes for each resource, without the resource."""
    make = iter([object() for _ in range(count)]).__next__
    async with ConnectionPool(create=make, limit=count, blocking=False) as pool:
        gc.collect()
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        for resource in [await pool.acquire() for _ in range(count)]:
            await pool.release(resource)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return (after - before) / count


async def memory_of_tasks(count: int, wait: Callable[[], Awaitable[object]]) -> float:
    """Return the bytes that a task takes which waits like this."""

    async def one() -> None:
        await wait()

    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    tasks = [asyncio.create_task(one()) for _ in range(count)]
    await asyncio.sleep(0)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return (after - before) / count


async def memory_of_waiters(count: int) -> dict[str, float]:
    """Return the bytes that a waiter takes beyond those of its task."""
    queue: asyncio.Queue[object] = asyncio.Queue()
    never: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    async def wait_for_nothing() -> object:
        return await never

    async def lease() -> object:
        async with pool.lease() as resource:
            return resource

    async with ConnectionPool(create=object, limit=1) as pool, pool.lease():
        floor = await memory_of_tasks(count, wait_for_nothing)
        return {
            OURS: await memory_of_tasks(count, lease) - floor,
            QUEUE: await memory_of_tasks(count, queue.get) - floor,
        }


def run_memory(rounds: Rounds) -> None:
    async def one_round(figures: Figures) -> None:
        count = rounds.size(MANY)
        figures["resource"][OURS] = await memory_of_resources(count)
        figures["waiter"].update(await memory_of_waiters(count))

    for figures in rounds:
        asyncio.run(one_round(figures))


SCALE = Benchmark(
    title="10 to 10,000 waiters, and resources",
    run=run_scale,
    measures={
        "few": Measure("time of a lease, 10 waiters", "µs", 1e6),
        "many": Measure("time of a lease, 10,000 waiters", "µs", 1e6),
        "10": Measure("time of an acquire and a release, 10 resources, all taken in turn", "µs", 1e6),
        "10,000": Measure("the same, 10,000 resources", "µs", 1e6),
    },
    claims=(
        Claim("the cost with 10 waiters", lambda of: of["many"][OURS] / of["few"][OURS], at_most=1.3),
        Claim("the cost with 10 resources", lambda of: of["10,000"][OURS] / of["10"][OURS], at_most=1.3),
    ),
    budget=35,
)
MEMORY = Benchmark(
    title="Memory",
    run=run_memory,
    measures={
        "resource": Measure("memory for a pooled resource, beyond itself", "bytes"),
        "waiter": Measure("memory for a waiter, beyond its task", "bytes"),
    },
    claims=(
        Claim("for a resource, beyond itself", lambda of: of["resource"][OURS], at_most=512, unit="bytes"),
        Claim("for a waiter, beyond its task", lambda of: of["waiter"][OURS], at_most=1536, unit="bytes"),
    ),
    budget=5,
)
