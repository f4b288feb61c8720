"""Places where an application of the tests keeps its links, each of its own: on SQLite, and on PostgreSQL."""

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from fastapi import FastAPI
from redis import Redis

from example_app import Settings, create_app
from example_app.store import postgres, sqlite

PATIENCE = 30.0


class Place:
    """A database, and perhaps a cache."""

    schema = ""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    @property
    def url(self) -> str:
        """The URL of the database."""
        return str(self.settings["database_url"])

    @property
    def environment(self) -> dict[str, str]:
        """The same settings as environment variables."""
        return {name.upper(): str(value) for name, value in self.settings.items()}

    def app(self, **settings: Any) -> FastAPI:
        """Make an application here."""
        return create_app(Settings(**self.settings, **settings))

    def prepare(self) -> None:
        """Make the tables."""
        self.execute(self.schema)

    def ask(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask the database behind the application's back."""
        raise NotImplementedError

    def execute(self, sql: str, rows: Iterable[tuple[Any, ...]] | None = None) -> None:
        """Change the database behind the application's back; for each of some rows, or once."""
        raise NotImplementedError

    def assert_that_nobody_is_connected(self) -> None:
        """See that all connections are closed."""
        raise NotImplementedError


class SqlitePlace(Place):
    """A file in a directory where there is nothing else."""

    schema = sqlite.SCHEMA

    def __init__(self, path: Path) -> None:
        super().__init__(database_url=f"sqlite:///{path}")
        self.path = path

    def ask(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.path)) as conn:
            return conn.execute(sql, values).fetchall()

    def execute(self, sql: str, rows: Iterable[tuple[Any, ...]] | None = None) -> None:
        with closing(sqlite3.connect(self.path)) as conn, conn:
            if rows is None:
                conn.executescript(sql)
            else:
                conn.executemany(sql, rows)

    def assert_that_nobody_is_connected(self) -> None:
        # SQLite removes links.db-wal and links.db-shm when the last connection is closed, and only then;
        # and it is not closed as long as a cursor is open.
        assert [path.name for path in self.path.parent.iterdir()] == [self.path.name]


class PostgresPlace(Place):
    """A schema."""

    schema = postgres.SCHEMA

    def __init__(self, server: str, name: str) -> None:
        separator = "&" if "?" in server else "?"
        url = f"{server}{separator}options=-csearch_path%3D{name}&application_name={name}"
        super().__init__(database_url=url)
        self.name = name
        self._server = server

    @contextmanager
    def _connect(self) -> Iterator[psycopg.Cursor[Any]]:
        with psycopg.connect(self._server, autocommit=True) as conn:
            conn.execute(f"SET search_path TO {self.name}")
            yield conn.cursor()

    def ask(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._connect() as cursor:
            return cursor.execute(sql.replace("?", "%s").encode(), values).fetchall()

    def execute(self, sql: str, rows: Iterable[tuple[Any, ...]] | None = None) -> None:
        with self._connect() as cursor:
            if rows is None:
                cursor.execute(sql.encode())
            else:
                cursor.executemany(sql.replace("?", "%s").encode(), rows)

    def assert_that_nobody_is_connected(self) -> None:
        # A backend needs a moment to see that its client has gone.
        deadline = time.monotonic() + PATIENCE
        while self.ask("SELECT 1 FROM pg_stat_activity WHERE application_name = ?", self.name):
            assert time.monotonic() < deadline, "a connection was left open"


@contextmanager
def schema_of(server: str) -> Iterator[PostgresPlace]:
    """Make a place on a PostgreSQL, and take it away again."""
    place = PostgresPlace(server, f"test_{uuid4().hex}")
    place.execute(f"CREATE SCHEMA {place.name}")
    try:
        yield place
    finally:
        place.execute(f"DROP SCHEMA {place.name} CASCADE")


@contextmanager
def cache_on(server: str, place: Place) -> Iterator[Redis]:
    """Add a cache to a place, and forget afterwards what it has remembered."""
    prefix = f"test:{uuid4().hex}:"
    # So patient that on no machine the cache is taken for one that is down.
    place.settings |= {"cache_url": server, "cache_prefix": prefix, "cache_timeout": PATIENCE}
    with closing(Redis.from_url(server, decode_responses=True)) as client:
        yield client
        for key in client.scan_iter(f"{prefix}*"):
            client.delete(key)


@pytest.fixture(name="place", params=["sqlite", "postgres", "postgres and cache"])
def fixture_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Yield a place of each kind."""
    if request.param == "sqlite":
        yield SqlitePlace(tmp_path / "links.db")
        return
    with schema_of(request.getfixturevalue("postgres_url")) as place:
        if request.param == "postgres":
            yield place
            return
        with cache_on(request.getfixturevalue("redis_url"), place):
            yield place


@pytest.fixture(name="sqlite_place")
def fixture_sqlite_place(tmp_path: Path) -> SqlitePlace:
    """Return a place on SQLite."""
    return SqlitePlace(tmp_path / "links.db")


@pytest.fixture(name="postgres_place")
def fixture_postgres_place(postgres_url: str) -> Iterator[PostgresPlace]:
    """Yield a place on PostgreSQL."""
    with schema_of(postgres_url) as place:
        yield place
