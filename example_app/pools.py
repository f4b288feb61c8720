"""Pools: "db" to read and write in async endpoints, "report" to read in sync ones, "cache" if there is a Redis."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import HTTPConnection

from connectionpools_fastapi import ConnectionPool, Leased

from .cache import Cache, NoCache
from .settings import Settings, SettingsError
from .store import LinkStore, ReportStore
from .store.choose import backend_of

REPORT_LIMIT = 2


class Database:
    """The pools of one database, and the stores on what they lease."""

    def __init__(self, settings: Settings) -> None:
        """Choose the kind of database.

        Raises:
            SettingsError: If it cannot be used; one line says why.
        """
        self._backend = backend_of(settings.database_url)
        self._db = ConnectionPool(
            self._backend.connections,
            name="db",
            limit=settings.pool_limit,
            min_free=settings.pool_min_free,
            timeout=settings.pool_timeout,
        )
        report = ConnectionPool(
            self._backend.report_connections, name="report", limit=REPORT_LIMIT, timeout=settings.pool_timeout
        )
        self.pools: tuple[ConnectionPool[Any], ...] = (self._db, report)

    def links(self, conn: Any) -> LinkStore:
        """Put a store on a connection of the pool "db"."""
        return self._backend.links(conn)

    def report(self, conn: Any) -> ReportStore:
        """Put a store on a connection of the pool "report"."""
        return self._backend.report(conn)

    @asynccontextmanager
    async def lease(self, **options: Any) -> AsyncIterator[LinkStore]:
        """Lease for the length of a block, for work that needs a connection only sometimes, or after the response.

        Args:
            options: As of `ConnectionPool.lease`.

        Yields:
            A store.
        """
        async with self._db.lease(**options) as conn:
            yield self.links(conn)


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


# What endpoints write as the types of their parameters. A lease is taken for the request; the stores on top need none.
Databases = Annotated[Database, Depends(_database_of)]


async def _links(database: Databases, conn: Annotated[Any, Leased("db")]) -> LinkStore:
    return database.links(conn)


async def _report(database: Databases, conn: Annotated[Any, Leased("report")]) -> ReportStore:
    return database.report(conn)


Db = Annotated[LinkStore, Depends(_links)]
ReportDb = Annotated[ReportStore, Depends(_report)]
