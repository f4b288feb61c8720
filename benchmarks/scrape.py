"""What a look at /pool/metrics takes with 20 pools, and whether requests notice."""

import asyncio
from contextlib import ExitStack
from typing import Annotated

from fastapi import FastAPI

from benchmarks.asgi import running
from benchmarks.load import Order
from benchmarks.rounds import OURS, Benchmark, Claim, Measure, Rounds
from benchmarks.web import latency
from benchmarks.wire import loading, serving
from connectionpools_fastapi import ConnectionPool, Leased, install_pools

POOLS = 20
CLIENTS = 32
SECONDS = 2.0  # of load in a round
EVERY = 1.0  # seconds between two scrapes
WITH = "scraped every second"
WITHOUT = "not scraped"


def twenty_pools(_: str = "") -> FastAPI:
    pools = [ConnectionPool(create=object, name=f"pool{number}") for number in range(POOLS)]
    app = FastAPI()
    install_pools(app, *pools)

    @app.get("/")
    async def answer(one: Annotated[object, Leased(pools[0])]) -> dict[str, bool]:
        return {"ok": one is not None}

    @app.get("/all")
    async def use_all() -> dict[str, bool]:
        for pool in pools:
            async with pool.lease():
                pass
        return {"ok": True}

    return app


def run(rounds: Rounds) -> None:
    async def round_by_round() -> None:
        async with running(twenty_pools(), "/all") as user:
            scraper = user.to("/pool/metrics")
            for figures in rounds:
                figures["time"][OURS] = await latency(scraper, rounds.operations(OURS, 5))
                for name in rounds.in_any_order(orders):
                    figures["p99"][name] = load(orders[name]).p99

    seconds = max(0.1, SECONDS * rounds.effort.share)
    with ExitStack() as stack:
        load = stack.enter_context(loading())
        port = stack.enter_context(serving(f"{__name__}:{twenty_pools.__name__}"))
        orders = {WITHOUT: Order(port, seconds, CLIENTS), WITH: Order(port, seconds, CLIENTS, scrape_every=EVERY)}
        asyncio.run(round_by_round())


BENCHMARK = Benchmark(
    title=f"A scrape of /pool/metrics with {POOLS} pools",
    run=run,
    measures={
        "time": Measure("time of a scrape", "ms", 1e3),
        "p99": Measure("99 % of requests within", "ms", 1e3),
    },
    claims=(
        Claim("for a scrape", lambda of: of["time"][OURS] * 1e3, at_most=10.0, unit="ms"),
        Claim("the p99 of requests without scrapes", lambda of: of["p99"][WITH] / of["p99"][WITHOUT], at_most=1.1),
    ),
    budget=30,
)
