"""Pools: "db" to read and write in async endpoints, "report" to read in sync ones."""

import asyncio
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Annotated

import aiosqlite
import anyio

from connectionpools_fastapi import ConnectionPool, Leased, Pooled, ResourceManager

from . import store
from .settings import Settings

# How long SQLite waits for a lock. Less than the pools' hook_timeout, so that a hook that
# finds the file locked says so itself.
BUSY_TIMEOUT = 5.0
REPORT_LIMIT = 2

# What endpoints write as the types of their parameters.
Db = Annotated[aiosqlite.Connection, Leased("db")]
DbPool = Annotated[ConnectionPool[aiosqlite.Connection], Pooled("db")]
ReportDb = Annotated[sqlite3.Connection, Leased("report")]

# SQLite refuses, and does not queue, connections that switch a new file to WAL at the same time.
_preparing = threading.Lock()


def prepare(path: Path) -> None:
    """Make sure that the file has its schema; whoever connects first makes it."""
    with _preparing, closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT)) as conn:
        conn.executescript(store.SCHEMA)


class Database(ResourceManager[aiosqlite.Connection]):
    """Connections of aiosqlite, to read and write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closing = anyio.Lock()

    async def create(self) -> aiosqlite.Connection:
        """Connect, after making the schema if this is the first connection."""
        await asyncio.to_thread(prepare, self._path)
        # Without an isolation level nothing begins a transaction behind our back.
        conn = await aiosqlite.connect(self._path, timeout=BUSY_TIMEOUT, isolation_level=None)
        try:
            conn.row_factory = sqlite3.Row
            await conn.execute("PRAGMA foreign_keys = ON")
            await conn.execute("PRAGMA synchronous = NORMAL")  # safe with WAL, and spares a sync per commit
        except BaseException:
            await conn.close()
            raise
        return conn

    async def check(self, resource: aiosqlite.Connection) -> bool:
        """See whether the connection still answers."""
        async with resource.execute("SELECT 1") as cursor:
            return await cursor.fetchone() is not None

    async def change(self, resource: aiosqlite.Connection) -> None:
        """Roll back what a request left open."""
        # Not only if in_transaction: a cancelled request's BEGIN may still be in the connection's queue.
        await resource.rollback()

    async def clean(self, resource: aiosqlite.Connection) -> None:
        """Close the connection."""
        # One after the other: SQLite moves its log into the file when the last connection is
        # closed, and two that are closed at the same moment each take the other for the last.
        async with self._closing:
            await resource.close()


class ReadOnlyDatabase(ResourceManager[sqlite3.Connection]):
    """Connections of the standard library, to read from whichever worker thread a sync endpoint runs on."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> sqlite3.Connection:
        """Connect, after making the schema if this is the first connection."""
        prepare(self._path)
        uri = f"{self._path.absolute().as_uri()}?mode=ro"
        conn = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        conn.row_factory = sqlite3.Row
        return conn

    def clean(self, resource: sqlite3.Connection) -> None:
        """Close the connection."""
        resource.close()


def make_pools(settings: Settings) -> tuple[ConnectionPool[aiosqlite.Connection], ConnectionPool[sqlite3.Connection]]:
    """Make the pools "db" and "report"; the lifespan opens them."""
    db = ConnectionPool(
        Database(settings.database),
        name="db",
        limit=settings.pool_limit,
        min_free=settings.pool_min_free,
        timeout=settings.pool_timeout,
    )
    report = ConnectionPool(
        ReadOnlyDatabase(settings.database), name="report", limit=REPORT_LIMIT, timeout=settings.pool_timeout
    )
    return db, report
