"""`SELECT 1` on a real PostgreSQL through uvicorn: `Leased` beside a `yield` dependency over the driver's own pool.

All servers of a driver are up at the same time. Each pool has 10 connections, for 32 clients.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from functools import partial
from typing import Annotated, Any

import asyncpg  # type: ignore[import-untyped] # has no types
from fastapi import Depends, FastAPI
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection as AlchemyConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks.load import Order
from benchmarks.rounds import OURS, Benchmark, Claim, Figures, Measure, Rounds
from benchmarks.wire import loading, serving
from connectionpools_fastapi import ConnectionPool, Leased, ResourceManager, install_pools
from connectionpools_fastapi.adapters.asyncpg import RESET, AsyncpgManager
from connectionpools_fastapi.adapters.psycopg import PsycopgManager
from connectionpools_fastapi.adapters.sqlalchemy import SqlalchemyManager
from example_app.servers import postgres

CLIENTS = 32
CONNECTIONS = 10
SECONDS = 1.0  # of load in a round

Lend = Callable[[], AbstractAsyncContextManager[Any]]


def _leasing(manager: ResourceManager[Any], ask: Callable[[Any], Any]) -> FastAPI:
    pool = ConnectionPool(manager, limit=CONNECTIONS)
    app = FastAPI()
    install_pools(app, pool)

    @app.get("/")
    async def answer(connection: Annotated[Any, Leased(pool)]) -> Any:
        return await ask(connection)

    return app


def _yielding(run: Callable[[], AbstractAsyncContextManager[Lend]], ask: Callable[[Any], Any]) -> FastAPI:
    """Make an application in the way that drivers' docs show: a pool in the lifespan, a dependency that yields."""
    lend: Lend

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal lend
        async with run() as lend:
            yield

    async def provide() -> AsyncIterator[Any]:
        async with lend() as connection:
            yield connection

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def answer(connection: Annotated[Any, Depends(provide)]) -> Any:
        return await ask(connection)

    return app


async def ask_asyncpg(connection: Any) -> Any:
    return await connection.fetchval("SELECT 1")


async def ask_psycopg(connection: AsyncConnection[tuple[int]]) -> int | None:
    row = await (await connection.execute("SELECT 1")).fetchone()
    return row[0] if row else None


async def ask_sqlalchemy(connection: AlchemyConnection) -> Any:
    return (await connection.execute(text("SELECT 1"))).scalar_one()


def leased_asyncpg(dsn: str) -> FastAPI:
    return _leasing(AsyncpgManager(dsn), ask_asyncpg)


def asyncpg_pool(dsn: str, **options: Any) -> FastAPI:
    @asynccontextmanager
    async def run() -> AsyncIterator[Lend]:
        async with asyncpg.create_pool(dsn, min_size=CONNECTIONS, max_size=CONNECTIONS, **options) as pool:
            yield pool.acquire

    return _yielding(run, ask_asyncpg)


def asyncpg_pool_same_reset(dsn: str) -> FastAPI:
    async def reset(connection: Any) -> None:
        await connection.execute(RESET)

    return asyncpg_pool(dsn, reset=reset)


def leased_psycopg(dsn: str) -> FastAPI:
    return _leasing(PsycopgManager(dsn), ask_psycopg)


def psycopg_pool(dsn: str, **options: Any) -> FastAPI:
    @asynccontextmanager
    async def run() -> AsyncIterator[Lend]:
        async with AsyncConnectionPool(dsn, min_size=CONNECTIONS, max_size=CONNECTIONS, **options) as pool:
            yield pool.connection

    return _yielding(run, ask_psycopg)


def psycopg_pool_same_reset(dsn: str) -> FastAPI:
    async def reset(connection: AsyncConnection[Any]) -> None:
        await connection.set_autocommit(True)
        await connection.execute("DISCARD ALL")
        await connection.set_autocommit(False)

    # With statements that psycopg believes to be prepared still, it fails.
    return psycopg_pool(dsn, reset=reset, kwargs={"prepare_threshold": None})


def _alchemy_url(dsn: str) -> str:
    return dsn.replace("postgresql:", "postgresql+asyncpg:", 1)


def leased_sqlalchemy(dsn: str) -> FastAPI:
    return _leasing(SqlalchemyManager(_alchemy_url(dsn)), ask_sqlalchemy)


def sqlalchemy_engine(dsn: str, prepare: Callable[[AsyncEngine], object] = id, **options: Any) -> FastAPI:
    @asynccontextmanager
    async def run() -> AsyncIterator[Lend]:
        engine = create_async_engine(_alchemy_url(dsn), pool_size=CONNECTIONS, max_overflow=0, **options)
        prepare(engine)
        yield engine.connect
        await engine.dispose()

    return _yielding(run, ask_sqlalchemy)


def sqlalchemy_engine_same_reset(dsn: str) -> FastAPI:
    def prepare(engine: AsyncEngine) -> None:
        @event.listens_for(engine.sync_engine, "reset")
        def reset(dbapi_connection: Any, _record: Any, state: Any) -> None:
            if not state.terminate_only:
                dbapi_connection.rollback()
                dbapi_connection.run_async(lambda connection: connection.execute(RESET))

    return sqlalchemy_engine(dsn, prepare, pool_reset_on_return=None)


def run(apps: Mapping[str, Callable[[str], FastAPI]], rounds: Rounds) -> None:
    seconds = max(0.1, SECONDS * rounds.effort.share)
    with ExitStack() as stack:
        database = stack.enter_context(postgres())
        load = stack.enter_context(loading())
        ports = {
            name: stack.enter_context(serving(f"{__name__}:{make.__name__}", database.url))
            for name, make in apps.items()
        }
        for figures in rounds:
            for name in rounds.in_any_order(ports):
                answer = load(Order(ports[name], seconds, CLIENTS))
                figures["throughput"][name] = answer.throughput
                figures["p50"][name] = answer.p50
                figures["p99"][name] = answer.p99


def _throughput(peer: str, at_least: float) -> Claim:
    def value(of: Figures) -> float:
        return of["throughput"][OURS] / of["throughput"][peer]

    return Claim(f"the requests a second of {peer}", value, at_least=at_least)


def _benchmark(driver: str, apps: Mapping[str, Callable[[str], FastAPI]], *claims: Claim) -> Benchmark:
    return Benchmark(
        title=f"SELECT 1 over HTTP, {driver}",
        run=partial(run, apps),
        measures={
            "throughput": Measure("requests a second", "1/s", best=max),
            "p50": Measure("half of the responses within", "ms", 1e3),
            "p99": Measure("99 % of the responses within", "ms", 1e3),
        },
        claims=claims,
        budget=50,
        notes=dict.fromkeys(list(apps)[2:], "as it comes: resets less"),
    )


ASYNCPG = "asyncpg.Pool, same reset"
ASYNCPG_BENCHMARK = _benchmark(
    "asyncpg",
    {OURS: leased_asyncpg, ASYNCPG: asyncpg_pool_same_reset, "asyncpg.Pool": asyncpg_pool},
    _throughput(ASYNCPG, 1.35),
    Claim(f"the p99 of {ASYNCPG}", lambda of: of["p99"][OURS] / of["p99"][ASYNCPG], at_most=0.5),
)
PSYCOPG = "psycopg_pool, same reset"
PSYCOPG_BENCHMARK = _benchmark(
    "psycopg",
    {OURS: leased_psycopg, PSYCOPG: psycopg_pool_same_reset, "psycopg_pool": psycopg_pool},
    _throughput(PSYCOPG, 1.5),
)
SQLALCHEMY = "SQLAlchemy's async engine, same reset"
SQLALCHEMY_BENCHMARK = _benchmark(
    "SQLAlchemy on asyncpg",
    {OURS: leased_sqlalchemy, SQLALCHEMY: sqlalchemy_engine_same_reset, "SQLAlchemy's async engine": sqlalchemy_engine},
    _throughput(SQLALCHEMY, 2.0),
)
