"""Places where an application of the tests keeps its links, each of its own: on SQLite, PostgreSQL and MariaDB."""

import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fastapi import FastAPI
from redis import Redis
from sqlalchemy import Engine, NullPool, create_engine, text

from example_app import Settings, create_app
from example_app.pools import urls_of
from example_app.tables import Table
from tests.mariadb_servers import MariadbServer

PATIENCE = 30.0
LINK = "INSERT INTO links (code, url, created, clicks) VALUES (:code, :url, '2026-01-01 00:00:00', 0)"


class Place:
    """A database, and perhaps a cache.

    Attributes:
        engine: To it, behind the application's back.
    """

    # How many of the application's connections there are, as a query; its name is bound.
    connected = ""

    def __init__(self, url: str, behind: str, name: str = "") -> None:
        self.settings: dict[str, Any] = {"database_url": url}
        self.name = name
        self.engine: Engine = create_engine(urls_of(behind)[1], poolclass=NullPool)

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
        Table.metadata.create_all(self.engine)

    def ask(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        """Ask the database behind the application's back."""
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(sql), values)]

    def execute(self, sql: str, rows: Iterable[dict[str, Any]] = ()) -> None:
        """Change the database behind the application's back; for each of some rows, or once."""
        with self.engine.begin() as connection:
            connection.execute(text(sql), list(rows) or None)

    def assert_that_nobody_is_connected(self) -> None:
        """See that all connections are closed."""
        # A server needs a moment to see that its client has gone.
        deadline = time.monotonic() + PATIENCE
        while self.ask(self.connected, name=self.name) != [(0,)]:
            assert time.monotonic() < deadline, "a connection was left open"


class SqlitePlace(Place):
    """A file in a directory where there is nothing else."""

    def __init__(self, path: Path) -> None:
        url = f"sqlite:///{path}"
        super().__init__(url, url)
        self.path = path

    def assert_that_nobody_is_connected(self) -> None:
        # SQLite removes links.db-wal and links.db-shm when the last connection is closed, and only then;
        # and it is not closed as long as a cursor is open.
        assert [path.name for path in self.path.parent.iterdir()] == [self.path.name]


class PostgresPlace(Place):
    """A schema."""

    connected = "SELECT count(*) FROM pg_stat_activity WHERE application_name = :name"

    def __init__(self, server: str, name: str) -> None:
        there = f"{server}{'&' if '?' in server else '?'}options=-csearch_path%3D{name}"
        super().__init__(f"{there}&application_name={name}", there, name)


class MariadbPlace(Place):
    """A database of the user `app`."""

    connected = "SELECT count(*) FROM information_schema.processlist WHERE db = :name AND user = 'app'"

    def __init__(self, server: MariadbServer, name: str) -> None:
        super().__init__(_named(server.url, name), _named(server.root_url, name), name)


def _named(url: str, database: str) -> str:
    return f"{url.rpartition('/')[0]}/{database}"


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
def database_of(server: MariadbServer) -> Iterator[MariadbPlace]:
    """Make a place on a MariaDB, and take it away again."""
    place = MariadbPlace(server, f"test_{uuid4().hex}")
    root = create_engine(urls_of(_named(server.root_url, "test"))[1], poolclass=NullPool)
    with root.begin() as connection:
        connection.execute(text(f"CREATE DATABASE {place.name}"))
        connection.execute(text(f"GRANT ALL ON {place.name}.* TO app@127.0.0.1"))
    try:
        yield place
    finally:
        place.execute(f"DROP DATABASE {place.name}")


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


# The pool "report" has no sandbox: it would see nothing of what is written in that of "db".
SANDBOX = pytest.mark.pool_sandbox("db")
KINDS = [
    pytest.param("sqlite", marks=SANDBOX),
    pytest.param("postgres", marks=SANDBOX),
    pytest.param("mariadb", marks=[SANDBOX, pytest.mark.needs_program("mariadbd")]),
    pytest.param("postgres and cache", marks=pytest.mark.pool_sandbox("db", "cache")),
]


@pytest.fixture(name="place", params=KINDS)
def fixture_place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Yield a place of each kind, for one test."""
    with place_of(request, tmp_path) as place:
        yield place


@pytest.fixture(name="shared_place", params=KINDS, scope="module")
def fixture_shared_place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Yield a place of each kind, for all tests of a module: in a sandbox, none leaves anything behind."""
    with place_of(request, tmp_path_factory.mktemp("links")) as place:
        yield place


@contextmanager
def place_of(request: pytest.FixtureRequest, directory: Path) -> Iterator[Place]:
    """Make a place of the kind that a fixture asks for."""
    if request.param == "sqlite":
        yield SqlitePlace(directory / "links.db")
        return
    if request.param == "mariadb":
        with database_of(request.getfixturevalue("mariadb_server")) as place_there:
            yield place_there
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
