"""The stores of the example application: what they promise to endpoints, and what each database needs."""

import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest

from connectionpools_fastapi import ConnectionPool
from example_app.store import CodeTakenError, StoreAwayError, questions, sqlite
from example_app.store.backend import Backend
from example_app.store.choose import backend_of
from tests.link_places import (
    Place,
    PostgresPlace,
    SqlitePlace,
    fixture_place,  # noqa: F401 - pytest finds it, and the next ones
    fixture_postgres_place,  # noqa: F401
    fixture_sqlite_place,  # noqa: F401
    schema_of,
)

MANY = 8
LINK = "INSERT INTO links (code, url) VALUES ('lost', 'https://example.com/')"


@pytest.fixture
def anyio_backend() -> str:
    """Use asyncio only: the drivers know nothing else."""
    return "asyncio"


@pytest.fixture
def backend(place: Place) -> Backend:
    return backend_of(place.url)


def pool_of(backend: Backend, limit: int = 1) -> ConnectionPool[Any]:
    return ConnectionPool(backend.connections, limit=limit)


@pytest.mark.anyio
async def test_what_a_request_leaves_open_is_rolled_back(backend: Backend) -> None:
    pool = pool_of(backend)
    async with pool:
        async with pool.lease() as conn:
            await conn.execute("BEGIN")
            await conn.execute(LINK)
        async with pool.lease() as again:
            assert await backend.links(again).find_target("lost") is None
        assert pool.stats().creates == 1


@pytest.mark.anyio
async def test_click_on_a_removed_link_is_nothing(backend: Backend) -> None:
    pool = pool_of(backend)
    async with pool, pool.lease() as conn:
        assert await backend.links(conn).count_click("gone", "direct") is None


@pytest.mark.anyio
async def test_generated_code_in_use_is_generated_again(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = cycle("a" * questions.CODE_LENGTH * 2 + "b" * questions.CODE_LENGTH)
    monkeypatch.setattr("secrets.choice", lambda _: next(letters))
    pool = pool_of(backend)
    async with pool, pool.lease() as conn:
        links = backend.links(conn)
        made = [(await links.add_link("https://example.com/", None)).code for _ in range(2)]
        assert made == ["a" * questions.CODE_LENGTH, "b" * questions.CODE_LENGTH]
        with pytest.raises(CodeTakenError):
            await links.add_link("https://example.com/", made[0])


def test_the_report_cannot_write(place: Place, backend: Backend) -> None:
    refused = {SqlitePlace: sqlite3.OperationalError, PostgresPlace: psycopg.errors.ReadOnlySqlTransaction}[type(place)]
    pool = ConnectionPool(backend.report_connections)
    with pool, pool.lease() as conn, pytest.raises(refused, match=r"read-?only"):
        conn.execute("DELETE FROM links")


def test_a_report_ends_with_its_lease(place: Place, backend: Backend) -> None:
    place.prepare()
    pool = ConnectionPool(backend.report_connections, limit=1, check_after=60)
    with pool:
        for number in range(3):
            with pool.lease() as conn:
                assert backend.report(conn).make_report().links == number
            place.execute("INSERT INTO links (code, url) VALUES (?, 'https://example.com/')", [(f"code-{number}",)])


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_new_database_can_be_prepared_by_many_at_once(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    def connect_at_once(url: str) -> None:
        barrier = threading.Barrier(MANY)

        def connect() -> None:
            manager = backend_of(url).report_connections
            barrier.wait()
            manager.clean(manager.create())

        for done in [threads.submit(connect) for _ in range(MANY)]:
            done.result()

    with ThreadPoolExecutor(MANY) as threads:
        if kind == "sqlite":
            for number in range(30):  # without the lock about one in thirty fails
                connect_at_once(f"sqlite:///{tmp_path / str(number)}")
            return
        for _ in range(5):  # without the lock nearly each one fails
            with schema_of(request.getfixturevalue("postgres_url")) as place:
                connect_at_once(place.url)


# --- SQLite ---


@pytest.mark.anyio
async def test_file_connections_suit_many_writers(sqlite_place: SqlitePlace) -> None:
    pool = pool_of(backend_of(sqlite_place.url))
    async with pool, pool.lease() as conn:
        found = {}
        for pragma in ("journal_mode", "foreign_keys", "busy_timeout"):
            ((found[pragma],),) = await conn.execute_fetchall(f"PRAGMA {pragma}")
    assert found == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 5000}


@pytest.mark.anyio
async def test_a_transaction_that_fails_writes_nothing(sqlite_place: SqlitePlace) -> None:
    backend = backend_of(sqlite_place.url)
    pool = pool_of(backend)
    async with pool, pool.lease() as conn:

        async def fail_halfway() -> None:
            async with sqlite.transaction(conn):
                await conn.execute(LINK)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail_halfway()
        assert not conn.in_transaction
        assert await backend.links(conn).find_target("lost") is None


@pytest.mark.anyio
async def test_transaction_may_write_from_its_beginning(sqlite_place: SqlitePlace) -> None:
    pool = pool_of(backend_of(sqlite_place.url), limit=2)
    async with pool, pool.lease() as one, pool.lease() as other:
        await other.execute("PRAGMA busy_timeout = 0")
        async with sqlite.transaction(one):
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                await other.execute("BEGIN IMMEDIATE")
        async with sqlite.transaction(other):
            pass


# --- PostgreSQL ---


@pytest.mark.anyio
async def test_lost_connection_is_told_without_the_drivers_words(
    postgres_place: PostgresPlace,
) -> None:
    backend = backend_of(postgres_place.url)
    db, report = pool_of(backend), ConnectionPool(backend.report_connections)
    async with db, report, db.lease() as conn, report.lease() as blocking:
        postgres_place.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = ?",
                           postgres_place.name)  # fmt: skip
        for lost in [
            await outcome(backend.links(conn).find_target("any")),
            await outcome(backend.links(conn).count_click("any", "direct")),
        ]:
            assert isinstance(lost, StoreAwayError)
            assert lost.__suppress_context__
        with pytest.raises(StoreAwayError):
            backend.report(blocking).make_report()


async def outcome(question: Any) -> Any:
    try:
        return await question
    except StoreAwayError as error:
        return error


@pytest.mark.anyio
async def test_role_without_create_right_uses_existing_tables(postgres_place: PostgresPlace) -> None:
    postgres_place.prepare()
    role, schema = f"test_{uuid4().hex}", postgres_place.name
    postgres_place.execute(f"""
        CREATE ROLE {role} LOGIN PASSWORD 'simple';
        GRANT USAGE ON SCHEMA {schema} TO {role};
        GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role};
    """)
    address = urlsplit(postgres_place.url)
    host = address.netloc.rpartition("@")[2]
    try:
        backend = backend_of(address._replace(netloc=f"{role}:simple@{host}").geturl())
        db, report = pool_of(backend), ConnectionPool(backend.report_connections)
        async with db, report, db.lease() as conn, report.lease() as blocking:
            await backend.links(conn).add_link("https://example.com/", "mine")
            assert backend.report(blocking).make_report().links == 1
    finally:
        postgres_place.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


# --- drivers ---


def run_without(missing: tuple[str, ...], directory: Path, code: str) -> subprocess.CompletedProcess[str]:
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in missing)
    return subprocess.run(  # noqa: S603 - our own words
        [sys.executable, "-c", f"import sys\n{blocked}{code}"],
        cwd=directory,
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_each_database_needs_only_its_own_driver(tmp_path: Path) -> None:
    code = "from example_app import Settings, create_app; create_app(Settings({}))"
    on_sqlite = run_without(("psycopg", "redis"), tmp_path, code.format(""))
    on_postgres = run_without(("aiosqlite", "redis"), tmp_path, code.format("database_url='postgresql://host/links'"))

    assert (on_sqlite.returncode, on_postgres.returncode) == (0, 0), on_sqlite.stderr + on_postgres.stderr


@pytest.mark.parametrize(
    ("missing", "variables", "remedy"),
    [
        ("psycopg", {"DATABASE_URL": "postgresql://user:hunter2@h/l"}, "pip install 'psycopg[binary]>=3.2'"),
        ("redis", {"CACHE_URL": "redis://user:hunter2@h/0"}, "pip install 'redis>=5.2'"),
    ],
)
def test_what_is_missing_is_one_line_with_what_to_install(
    tmp_path: Path, missing: str, variables: dict[str, str], remedy: str
) -> None:
    code = f"""
import os, runpy
os.environ.update({variables!r})
sys.argv[1:] = []
runpy.run_module("example_app", run_name="__main__")
"""
    ended = run_without((missing,), tmp_path, code)

    assert ended.returncode == 2
    assert ended.stderr.startswith("example_app: ")
    assert ended.stderr.endswith(f"{remedy}\n")
    assert ended.stderr.count("\n") == 1
    assert "hunter2" not in ended.stderr
