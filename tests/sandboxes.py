"""Databases with a sandbox, under the same words: a table `users` of unique names, through each manager."""

import inspect
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi.adapters.aiosqlite import AiosqliteManager
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager
from connectionpools_fastapi.adapters.psycopg import PsycopgManager, SyncPsycopgManager
from connectionpools_fastapi.adapters.sqlalchemy import SqlalchemyManager, SyncSqlalchemyManager
from connectionpools_fastapi.adapters.sqlite import SqliteManager
from tests.mysql_drivers import DRIVERS, Driver, outside, rows

TABLE = "CREATE TABLE users (name varchar(20) UNIQUE)"
LIMIT = 3


def insert_of(name: str) -> str:
    return f"INSERT INTO users VALUES ('{name}')"  # noqa: S608 - a name of a test


@dataclass(frozen=True)
class Kind:
    """A manager, and how its connections are used."""

    name: str
    database: str
    make: Callable[[Any], Any]  # a manager, for an address
    autocommits: bool = False
    rows: Callable[[Any, str], Any] | None = None

    @property
    def marks(self) -> list[Any]:
        return [pytest.mark.needs_program("mariadbd")] if self.database == "mysql" else []


async def awaited(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


async def _of_asyncpg(conn: Any, query: str) -> Any:
    return await conn.fetch(query) if query.startswith("SELECT") else await conn.execute(query)


async def _of_dbapi(conn: Any, query: str) -> Any:
    cursor = await awaited(conn.execute(query))
    return await awaited(cursor.fetchall()) if query.startswith("SELECT") else None


async def _of_sqlalchemy(conn: Any, query: str) -> Any:
    result = await awaited(conn.execute(text(query)))
    return result.all() if query.startswith("SELECT") else None


def sqlalchemy(drivername: str, *, is_async: bool = True) -> Kind:
    database = drivername.partition("+")[0]
    make = SqlalchemyManager if is_async else SyncSqlalchemyManager
    return Kind(
        f"sqlalchemy {drivername}",
        database,
        lambda url: make(make_url(url if "//" in url else f"sqlite:///{url}").set(drivername=drivername)),
        rows=_of_sqlalchemy,
    )


def autocommitting(driver: Driver) -> Callable[[Any], Any]:
    return lambda url: driver.manager(url, autocommit=True)


KINDS = [
    Kind("asyncpg", "postgresql", AsyncpgManager, autocommits=True, rows=_of_asyncpg),
    Kind("psycopg", "postgresql", PsycopgManager, rows=_of_dbapi),
    Kind(
        "psycopg autocommit",
        "postgresql",
        lambda url: PsycopgManager(url, autocommit=True),
        autocommits=True,
        rows=_of_dbapi,
    ),
    Kind("sync psycopg", "postgresql", SyncPsycopgManager, rows=_of_dbapi),
    Kind(
        "sync psycopg autocommit",
        "postgresql",
        lambda url: SyncPsycopgManager(url, autocommit=True),
        autocommits=True,
        rows=_of_dbapi,
    ),
    Kind("aiosqlite", "sqlite", AiosqliteManager, rows=_of_dbapi),
    Kind(
        "aiosqlite autocommit",
        "sqlite",
        lambda at: AiosqliteManager(at, isolation_level=None),
        autocommits=True,
        rows=_of_dbapi,
    ),
    Kind("sqlite", "sqlite", SqliteManager, rows=_of_dbapi),
    Kind(
        "sqlite autocommit",
        "sqlite",
        lambda at: SqliteManager(at, isolation_level=None),
        autocommits=True,
        rows=_of_dbapi,
    ),
    *(Kind(driver.name, "mysql", driver.manager, rows=rows) for driver in DRIVERS),
    *(
        Kind(f"{driver.name} autocommit", "mysql", autocommitting(driver), autocommits=True, rows=rows)
        for driver in DRIVERS
    ),
    *map(sqlalchemy, ("postgresql+asyncpg", "postgresql+psycopg", "sqlite+aiosqlite", "mysql+aiomysql")),
    sqlalchemy("postgresql+psycopg", is_async=False),
    sqlalchemy("sqlite+pysqlite", is_async=False),
]


class Database:
    """A database of one test, seen from outside of the pool."""

    def __init__(self, kind: Kind, address: Any, execute: Callable[[str], Awaitable[list[Any]]]) -> None:
        self.kind = kind
        self.address = address
        self.execute = execute

    def pool(self, **options: Any) -> ConnectionPool[Any]:
        return ConnectionPool(self.kind.make(self.address), **{"limit": LIMIT, "name": "db", **options})

    async def names(self) -> list[str]:
        return sorted(name for (name,) in await self.execute("SELECT name FROM users"))


async def open_database(kind: Kind, request: pytest.FixtureRequest, path: Path) -> Database:
    """Make a database with an empty table of users."""
    if kind.database == "postgresql":
        address = request.getfixturevalue("postgres_url")

        async def execute(query: str) -> list[Any]:
            async with await psycopg.AsyncConnection.connect(address, autocommit=True) as conn:
                cursor = await conn.execute(query)
                return await cursor.fetchall() if cursor.description else []

    elif kind.database == "sqlite":
        address = str(path / "app.db")

        async def execute(query: str) -> list[Any]:
            conn = sqlite3.connect(address)
            try:
                with conn:
                    return conn.execute(query).fetchall()
            finally:
                conn.close()

    else:
        server = request.getfixturevalue("mariadb_server")
        address = server.url

        async def execute(query: str) -> list[Any]:
            async with outside(server.root_url) as conn:
                return await rows(conn, query)

    if kind.database == "mysql":
        await execute(TABLE.replace("CREATE", "CREATE OR REPLACE") + " ENGINE InnoDB")
    else:
        await execute("DROP TABLE IF EXISTS users")
        await execute(TABLE)
    return Database(kind, address, execute)
