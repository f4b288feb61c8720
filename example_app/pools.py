"""Pools: "db" to read and write in async endpoints, "report" to read in sync ones."""

import sqlite3
from pathlib import Path
from typing import Annotated

import aiosqlite

from connectionpools_fastapi import ConnectionPool, Leased, Pooled
from connectionpools_fastapi.adapters.aiosqlite import AiosqliteManager
from connectionpools_fastapi.adapters.sqlite import SqliteManager

from . import store
from .settings import Settings

REPORT_LIMIT = 2

# What endpoints write as the types of their parameters.
Db = Annotated[aiosqlite.Connection, Leased("db")]
DbPool = Annotated[ConnectionPool[aiosqlite.Connection], Pooled("db")]
ReportDb = Annotated[sqlite3.Connection, Leased("report")]


def _set_up(conn: sqlite3.Connection) -> None:
    conn.executescript(store.SCHEMA)
    conn.row_factory = sqlite3.Row


def _read_rows(conn: sqlite3.Connection) -> None:
    conn.row_factory = sqlite3.Row


def prepare(path: Path) -> Path:
    """Make sure that the file has its schema; whoever connects first makes it."""
    manager = SqliteManager(path, init=_set_up)
    manager.clean(manager.create())
    return path


class Database(AiosqliteManager):
    """Connections of aiosqlite, to read and write."""

    def __init__(self, path: Path) -> None:
        # Without an isolation level nothing begins a transaction behind our back.
        super().__init__(path, init=_set_up, isolation_level=None)


class ReadOnlyDatabase(SqliteManager):
    """Connections of the standard library, to read from whichever worker thread a sync endpoint runs on."""

    def __init__(self, path: Path) -> None:
        super().__init__(lambda: prepare(path), init=_read_rows, pragmas={"query_only": "on"}, isolation_level=None)


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
