"""Pools: "db" to read and write in async endpoints, "report" to read in sync ones, "cache" if there is a Redis."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import Depends
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session
from starlette.requests import HTTPConnection

from connectionpools_fastapi import ConnectionPool, Leased, PoolConfigError
from connectionpools_fastapi.adapters.sqlalchemy import LeasedSession, SqlalchemyManager, SyncSqlalchemyManager

from .cache import Cache, NoCache
from .settings import Settings, SettingsError, bad_value
from .store import LinkStore, ReportStore
from .tables import make_tables_on

REPORT_LIMIT = 2
CONNECT_WITHIN = 5  # seconds
# The drivers of each kind of database: for async endpoints, and for sync ones.
DRIVERS = {
    "sqlite": ("sqlite+aiosqlite", "sqlite+pysqlite"),
    "postgresql": ("postgresql+psycopg", "postgresql+psycopg"),
    "postgres": ("postgresql+psycopg", "postgresql+psycopg"),
    "mysql": ("mysql+aiomysql", "mysql+pymysql"),
    "mariadb": ("mysql+aiomysql", "mysql+pymysql"),
}


class Database:
    """The pools of a database."""

    def __init__(self, settings: Settings) -> None:
        """Describe how to connect.

        Raises:
            SettingsError: If the database cannot be used; one line says why.
        """
        url, report_url = urls_of(settings.database_url)
        within = {} if url.get_backend_name() == "sqlite" else {"connect_timeout": CONNECT_WITHIN}
        try:
            manager = SqlalchemyManager(url, connect_args=within)
            make_tables_on(manager.engine.sync_engine)
            report_manager = SyncSqlalchemyManager(report_url, connect_args=within)
            make_tables_on(report_manager.engine)
        except PoolConfigError as error:  # a driver is missing or an option unknown; it shows no secret
            msg = f"DATABASE_URL cannot be used: {error}"
            raise SettingsError(msg) from None
        self._db = ConnectionPool(
            manager,
            name="db",
            limit=settings.pool_limit,
            min_free=settings.pool_min_free,
            timeout=settings.pool_timeout,
        )
        report = ConnectionPool(report_manager, name="report", limit=REPORT_LIMIT, timeout=settings.pool_timeout)
        self.pools: tuple[ConnectionPool[Any], ...] = (self._db, report)

    @asynccontextmanager
    async def lease(self, **options: Any) -> AsyncIterator[LinkStore]:
        """Lease for the length of a block, for work that needs a connection only sometimes, or after the response.

        Args:
            options: As of `ConnectionPool.lease`.

        Yields:
            A store; what it has written is committed at the end of the block.
        """
        async with self._db.lease(**options) as conn, AsyncSession(conn) as session, session.begin():
            yield LinkStore(session)


def urls_of(url: str) -> tuple[URL, URL]:
    """Return the URLs, as SQLAlchemy writes them, for async and for sync endpoints.

    Raises:
        SettingsError: If it cannot be read.
    """
    kind, _, rest = url.partition("://")
    try:
        # SQLAlchemy takes the path of a file as it stands.
        found = URL.create("sqlite", database=unquote(rest[1:])) if kind == "sqlite" else make_url(url)
    except (ArgumentError, ValueError):  # whose text repeats it
        raise SettingsError(bad_value("database_url")) from None
    asynchronous, synchronous = DRIVERS[kind]
    return found.set(drivername=asynchronous), found.set(drivername=synchronous)


def make_cache(settings: Settings) -> Cache:
    """Make the cache that the settings name.

    Raises:
        SettingsError: If its driver is missing.
    """
    if not settings.cache_url:
        return NoCache()
    try:
        from .redis_cache import RedisCache  # noqa: PLC0415 - needs redis-py
    except ImportError:
        raise SettingsError("CACHE_URL names a Redis, which needs redis-py: pip install 'redis>=5.2'") from None
    return RedisCache(settings.cache_url, prefix=settings.cache_prefix, timeout=settings.cache_timeout)


async def _database_of(connection: HTTPConnection) -> Database:
    database: Database = connection.app.state.database
    return database


async def _links(session: Annotated[AsyncSession, LeasedSession("db")]) -> LinkStore:
    return LinkStore(session)


async def _links_until_response(conn: Annotated[AsyncConnection, Leased("db")]) -> LinkStore:
    return LinkStore(AsyncSession(conn))


async def _report(session: Annotated[Session, LeasedSession("report")]) -> ReportStore:
    return ReportStore(session)


# What endpoints write as the types of their parameters.
Databases = Annotated[Database, Depends(_database_of)]
Db = Annotated[LinkStore, Depends(_links)]  # commits when the endpoint has returned
StreamDb = Annotated[LinkStore, Depends(_links_until_response)]  # lasts to the end of a stream, which only reads
ReportDb = Annotated[ReportStore, Depends(_report)]
