"""Databases below SQLAlchemy, and pools of connections to them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi.adapters.sqlalchemy import SqlalchemyManager
from tests.support import check

Pool = ConnectionPool[AsyncConnection]

TABLES = (
    "DROP TABLE IF EXISTS notes",
    "DROP TABLE IF EXISTS authors",
    "CREATE TABLE authors (id integer PRIMARY KEY)",
    "CREATE TABLE notes (author integer REFERENCES authors (id) DEFERRABLE INITIALLY DEFERRED)",
)
NOTE = text("INSERT INTO notes VALUES (NULL)")
COUNT = text("SELECT count(*) FROM notes")

each_reset = pytest.mark.parametrize("reset", ["session", "transaction"])


def of_postgres(driver: str, postgres_url: str) -> URL:
    return make_url(postgres_url).set(drivername=f"postgresql+{driver}")


@pytest.fixture(name="server", params=["psycopg", "asyncpg"])
def fixture_server(request: pytest.FixtureRequest, postgres_url: str) -> URL:
    return of_postgres(request.param, postgres_url)


of_mysql = pytest.param("aiomysql", marks=pytest.mark.needs_program("mariadbd"))


@pytest.fixture(name="database", params=["psycopg", "asyncpg", "aiosqlite", of_mysql])
def fixture_database(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    if request.param == "aiosqlite":
        return make_url(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")
    if request.param == "aiomysql":
        return make_url(request.getfixturevalue("mariadb_server").url).set(drivername="mysql+aiomysql")
    return of_postgres(request.param, request.getfixturevalue("postgres_url"))


def streams_cost(database: URL) -> bool:
    """Whether a stream that is not read to its end costs the connection: MySQL sends all of it."""
    return database.get_backend_name() == "mysql"


@asynccontextmanager
async def pool_of(source: Any, limit: int = 1, **options: Any) -> AsyncIterator[Pool]:
    """Open a pool that checks a connection before each lease."""
    async with ConnectionPool(SqlalchemyManager(source, **options), limit=limit, check_after=0, name="db") as pool:
        yield pool
        check(pool)


async def value(connection: AsyncConnection | AsyncSession, query: str) -> Any:
    return (await connection.execute(text(query))).scalar()


async def run(connection: AsyncConnection, *queries: str) -> None:
    for query in queries:
        mine = query.replace("DEFERRABLE INITIALLY DEFERRED", "") if connection.dialect.name == "mysql" else query
        await connection.execute(text(mine))
    await connection.commit()
