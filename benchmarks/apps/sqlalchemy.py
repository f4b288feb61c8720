"""On SQLAlchemy, with asyncpg."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from benchmarks.apps.common import CONNECTIONS, Lend, leasing, limit, yielding
from connectionpools_fastapi.adapters._asyncpg_reset import PREPARED_RESET, RESET_AND_PREPARE
from connectionpools_fastapi.adapters.sqlalchemy import SqlalchemyManager


async def ask(connection: AsyncConnection) -> Any:
    return (await connection.execute(text("SELECT 1"))).scalar_one()


def leased(dsn: str) -> FastAPI:
    return leasing(SqlalchemyManager(_url(dsn)), ask)


def without_pool(dsn: str) -> FastAPI:
    return limit(SqlalchemyManager(_url(dsn)), ask)


def own_pool(dsn: str, prepare: Callable[[AsyncEngine], object] = id, **options: Any) -> FastAPI:
    @asynccontextmanager
    async def run() -> AsyncIterator[Lend]:
        engine = create_async_engine(_url(dsn), pool_size=CONNECTIONS, max_overflow=0, **options)
        prepare(engine)
        yield engine.connect
        await engine.dispose()

    return yielding(run, ask)


def own_pool_same_reset(dsn: str) -> FastAPI:
    def prepare(engine: AsyncEngine) -> None:
        @event.listens_for(engine.sync_engine, "connect")
        def connect(dbapi_connection: Any, _record: Any) -> None:
            dbapi_connection.run_async(lambda connection: connection.execute(RESET_AND_PREPARE))

        @event.listens_for(engine.sync_engine, "reset")
        def reset(dbapi_connection: Any, _record: Any, state: Any) -> None:
            if not state.terminate_only:
                dbapi_connection.rollback()
                dbapi_connection.run_async(lambda connection: connection.execute(PREPARED_RESET))

    return own_pool(dsn, prepare, pool_reset_on_return=None)


def _url(dsn: str) -> str:
    return dsn.replace("postgresql:", "postgresql+asyncpg:", 1)
