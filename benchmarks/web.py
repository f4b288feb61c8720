"""What a dependency and the middleware add to a request, and whether a response waits for a reset."""

import asyncio
import statistics
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

import dishka
import svcs
from dishka.integrations.fastapi import FromDishka, inject, setup_dishka
from fastapi import Depends, FastAPI

from benchmarks.asgi import Caller, running
from benchmarks.rounds import OURS, Benchmark, Claim, Figures, Measure, Rounds
from connectionpools_fastapi import ConnectionPool, Leased, install_pools

NOTHING = "no dependency"
YIELD = "an empty yield dependency"
WITH = "with the middleware"
WITHOUT = "without it"
RESET_TAKES = 0.005  # seconds
REQUESTS = 10
NO_RESET = "no change hook"
RESET = "a change hook of 5 ms"


class Thing:
    """A resource."""


def without_dependency() -> FastAPI:
    app = FastAPI()

    @app.get("/")
    async def answer() -> dict[str, bool]:
        return {"ok": True}

    return app


def with_leased(**options: Any) -> FastAPI:
    pool = ConnectionPool(create=Thing, **options)
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


def with_svcs() -> FastAPI:
    async def provide() -> AsyncIterator[Thing]:
        yield Thing()

    @svcs.fastapi.lifespan
    async def lifespan(_: FastAPI, registry: svcs.Registry) -> AsyncGenerator[dict[str, object] | None, None]:
        registry.register_factory(Thing, provide)
        yield {}

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def answer(services: svcs.fastapi.DepContainer) -> dict[str, bool]:
        return {"ok": await services.aget(Thing) is not None}

    return app


def with_dishka() -> FastAPI:
    async def provide() -> AsyncIterator[Thing]:
        yield Thing()

    provider = dishka.Provider(scope=dishka.Scope.REQUEST)
    provider.provide(provide)
    container = dishka.make_async_container(provider)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await container.close()

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    @inject
    async def answer(thing: FromDishka[Thing]) -> dict[str, bool]:
        return {"ok": thing is not None}

    setup_dishka(container, app)
    return app


def with_middleware() -> FastAPI:
    app = without_dependency()
    install_pools(app, ConnectionPool(create=Thing))
    return app


async def latency(caller: Caller, requests: int) -> float:
    """Return the seconds that a request takes."""
    start = time.perf_counter()
    for _ in range(requests):
        await caller.ask()
    return (time.perf_counter() - start) / requests


def compete(rounds: Rounds, apps: dict[str, FastAPI]) -> None:
    async def round_by_round() -> None:
        async with AsyncExitStack() as stack:
            callers = {name: await stack.enter_async_context(running(app)) for name, app in apps.items()}
            for figures in rounds:
                for name in rounds.in_any_order(callers):
                    figures["time"][name] = await latency(callers[name], rounds.operations(name, 100))

    asyncio.run(round_by_round())


def run_leased(rounds: Rounds) -> None:
    compete(
        rounds,
        {
            NOTHING: without_dependency(),
            YIELD: with_yield(),
            OURS: with_leased(),
            "svcs": with_svcs(),
            "dishka": with_dishka(),
        },
    )


def run_idle(rounds: Rounds) -> None:
    compete(rounds, {WITHOUT: without_dependency(), WITH: with_middleware()})


def run_release(rounds: Rounds) -> None:
    async def reset(_: Thing) -> None:
        await asyncio.sleep(RESET_TAKES)

    async def round_by_round() -> None:
        started: list[object] = []
        loop = asyncio.get_running_loop()

        def start(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Any:
            started.append(work)
            return asyncio.Task(work, loop=loop, **options)

        async with AsyncExitStack() as stack:
            callers = {
                name: await stack.enter_async_context(running(app))
                for name, app in ((NO_RESET, with_leased()), (RESET, with_leased(change=reset)))
            }
            for figures in rounds:
                for name in rounds.in_any_order(callers):
                    started.clear()
                    loop.set_task_factory(start)
                    latencies = []
                    for _ in range(REQUESTS):
                        latencies.append(await latency(callers[name], 1))
                        await asyncio.sleep(2 * RESET_TAKES)  # no request waits for the resource that is being reset
                    loop.set_task_factory(None)
                    figures["time"][name] = statistics.median(latencies)
                    figures["tasks"][name] = len(started) / REQUESTS

    asyncio.run(round_by_round())


def _added(of: Figures) -> float:
    times = of["time"]
    return (times[OURS] - times[NOTHING]) / (times[YIELD] - times[NOTHING])


LEASED = Benchmark(
    title="A lease through Leased",
    run=run_leased,
    measures={"time": Measure("time of a request", "µs", 1e6)},
    claims=(Claim("of what an empty yield dependency adds", _added, at_most=0.5),),
    budget=40,
    notes={
        NOTHING: "the floor: no middleware either",
        YIELD: "FastAPI's own",
        OURS: "with its middleware, all in",
        "svcs": "a generator registered as a factory, got from DepContainer",
        "dishka": "a generator provided in the scope of the request, FromDishka",
    },
)
IDLE = Benchmark(
    title="Routes that use no pool",
    run=run_idle,
    measures={"time": Measure("time of a request", "µs", 1e6)},
    claims=(
        Claim("with the middleware, of that without", lambda of: of["time"][WITH] / of["time"][WITHOUT], at_most=1.05),
    ),
    budget=30,
)
RELEASE = Benchmark(
    title="Stepping out of the way: an async change on release",
    run=run_release,
    measures={
        "time": Measure("time of a response", "µs", 1e6),
        "tasks": Measure("tasks started by a request", "tasks"),
    },
    claims=(
        Claim(
            "the time of a response without change",
            lambda of: of["time"][RESET] / of["time"][NO_RESET],
            at_most=1.25,
        ),
        Claim(
            "started by a request whose pool has no change", lambda of: of["tasks"][NO_RESET], at_most=0, unit="tasks"
        ),
    ),
    budget=10,
)
