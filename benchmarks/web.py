"""What a dependency and the middleware add to a request, and what a look at the metrics takes."""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Annotated

from fastapi import Depends, FastAPI

from benchmarks.arena import Contestant, opened
from benchmarks.asgi import Caller, running
from benchmarks.rounds import OURS, Benchmark, Claim, Figures, Measure, Rounds, ratio
from connectionpools_fastapi import ConnectionPool, Leased, install_pools

NOTHING = "no dependency"
YIELD = "an empty yield dependency"
UNUSED = "our middleware alone"
POOLS = 20


class Thing:
    """A resource."""


def without_dependency() -> FastAPI:
    app = FastAPI()

    @app.get("/")
    async def answer() -> dict[str, bool]:
        return {"ok": True}

    return app


def with_leased() -> FastAPI:
    pool = ConnectionPool(create=Thing)
    app = FastAPI()
    install_pools(app, pool)

    @app.get("/")
    async def answer(thing: Annotated[Thing, Leased(pool)]) -> dict[str, bool]:
        return {"ok": thing is not None}

    return app


def with_yield() -> FastAPI:
    thing = Thing()

    async def provide() -> AsyncIterator[Thing]:
        yield thing

    app = FastAPI()

    @app.get("/")
    async def answer(thing: Annotated[Thing, Depends(provide)]) -> dict[str, bool]:
        return {"ok": thing is not None}

    return app


def with_middleware() -> FastAPI:
    app = without_dependency()
    install_pools(app, ConnectionPool(create=Thing))
    return app


def twenty_pools() -> FastAPI:
    pools = [ConnectionPool(create=object, name=f"pool{number}") for number in range(POOLS)]
    app = FastAPI()
    install_pools(app, *pools)

    @app.get("/")
    async def use_all() -> None:
        for pool in pools:
            async with pool.lease():
                pass

    return app


def nothing() -> AbstractAsyncContextManager[Caller]:
    return running(without_dependency())


def an_empty_yield() -> AbstractAsyncContextManager[Caller]:
    return running(with_yield())


def ours() -> AbstractAsyncContextManager[Caller]:
    return running(with_leased())


def only_middleware() -> AbstractAsyncContextManager[Caller]:
    return running(with_middleware())


@asynccontextmanager
async def scraper() -> AsyncIterator[Caller]:
    async with running(twenty_pools()) as user:
        yield user.to("/pool/metrics")


async def latency(caller: Caller, requests: int) -> float:
    """Return the seconds that a request takes."""
    start = time.thread_time()
    for _ in range(requests):
        await caller.ask()
    return (time.thread_time() - start) / requests


def compete(contestants: Mapping[str, Contestant], least: int, rounds: Rounds) -> None:
    with opened(contestants) as arena:
        for figures in rounds:
            for name in rounds.in_any_order(arena.names):
                figures["time"][name] = arena.measure(name, latency, rounds.operations(name, least))


def _added(of: Figures) -> float:
    times = of["time"]
    return (times[OURS] - times[NOTHING]) / (times[YIELD] - times[NOTHING])


LEASED = Benchmark(
    title="A lease through Leased",
    run=partial(compete, {NOTHING: nothing, YIELD: an_empty_yield, OURS: ours, UNUSED: only_middleware}, 100),
    measures={"time": Measure("time of a request", "µs", 1e6)},
    beside=NOTHING,
    claims=(
        Claim("time beside what an empty yield dependency adds", _added, at_most=0.5),
        Claim("time of a route that uses no pool, beside no middleware", ratio("time", UNUSED, NOTHING), at_most=1.05),
    ),
    notes={
        NOTHING: "the floor: no middleware either",
        YIELD: "FastAPI's own",
        OURS: "with its middleware, all in",
        UNUSED: "a route that uses no pool",
    },
)
SCRAPE = Benchmark(
    title=f"A scrape of /pool/metrics with {POOLS} pools",
    run=partial(compete, {OURS: scraper}, 5),
    measures={"time": Measure("time of a scrape", "ms", 1e3)},
    claims=(Claim("time of a scrape", lambda of: of["time"][OURS] * 1e3, at_most=10, unit="ms"),),
    budget=5,
)
