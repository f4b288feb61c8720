"""The store of the example application: what it promises to endpoints, on each database."""

import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from httpx import AsyncClient
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi.adapters.sqlalchemy import SyncSqlalchemyManager
from example_app import store
from example_app.pools import Db, urls_of
from example_app.store import LinkStore
from example_app.tables import LinkRow, make_tables_on
from tests.link_places import (
    LINK,
    Place,
    PostgresPlace,
    SqlitePlace,
    fixture_place,  # noqa: F401 - pytest finds it, and the next one
    fixture_postgres_place,  # noqa: F401
    fixture_shared_place,  # noqa: F401
)

MANY = 8


@pytest.fixture
def anyio_backend() -> str:
    """Use asyncio only: the drivers know nothing else."""
    return "asyncio"


@pytest.fixture
def app(shared_place: Place) -> FastAPI:
    return shared_place.app()


@asynccontextmanager
async def opened(place: Place, **settings: Any) -> AsyncIterator[ConnectionPool[AsyncConnection]]:
    """Open the pool "db" of an application."""
    pool: ConnectionPool[AsyncConnection] = place.app(pool_limit=1, **settings).state.database.pools[0]
    async with pool:
        yield pool


@pytest.mark.anyio
@pytest.mark.pool_guard_allow("uncommitted", reason="that it is undone is what the test shows")
async def test_what_a_request_leaves_open_is_rolled_back(place: Place) -> None:
    async with opened(place) as pool:
        async with pool.lease() as conn:
            await conn.execute(insert(LinkRow), {"code": "lost", "url": "https://example.com/"})
        async with pool.lease() as again, AsyncSession(again) as session:
            assert await LinkStore(session).find_target("lost") is None
        assert pool.stats().creates == 1


@pytest.mark.anyio
@pytest.mark.usefixtures("pool_sandbox")
async def test_click_on_a_removed_link_is_nothing(app: FastAPI) -> None:
    async with app.state.database.lease() as links:
        assert await links.count_click("gone", "direct") is None


@pytest.mark.anyio
@pytest.mark.usefixtures("pool_sandbox")
async def test_generated_code_in_use_is_generated_again(
    started_app: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = cycle("a" * store.CODE_LENGTH * 2 + "b" * store.CODE_LENGTH)
    monkeypatch.setattr("secrets.choice", lambda _: next(letters))
    codes = ["a" * store.CODE_LENGTH, "b" * store.CODE_LENGTH]
    for code in codes:
        assert (await started_app.post("/api/links", json={"url": "https://example.com/"})).json()["code"] == code
    taken = await started_app.post("/api/links", json={"url": "https://example.com/", "code": codes[0]})
    assert taken.status_code == 409


def test_each_report_sees_what_was_written_before_it(place: Place) -> None:
    place.prepare()
    with TestClient(place.app()) as client:
        for number in range(3):
            assert client.get("/api/report").json()["links"] == number
            place.execute(LINK, [{"code": f"code-{number}", "url": "https://example.com/"}])


def test_a_new_database_can_be_prepared_by_many_at_once(place: Place) -> None:
    barrier = threading.Barrier(MANY)

    def connect() -> None:
        manager = SyncSqlalchemyManager(urls_of(place.url)[1])
        make_tables_on(manager.engine)
        barrier.wait()
        manager.clean(manager.create())

    with ThreadPoolExecutor(MANY) as threads:
        for done in [threads.submit(connect) for _ in range(MANY)]:
            done.result()
    assert place.ask("SELECT count(*) FROM visits") == [(0,)]


# --- SQLite ---


@pytest.mark.anyio
async def test_file_connections_suit_many_writers(tmp_path: Path) -> None:
    async with opened(SqlitePlace(tmp_path / "links.db")) as pool, pool.lease() as conn:
        found = {}
        for pragma in ("journal_mode", "foreign_keys", "busy_timeout"):
            found[pragma] = (await conn.exec_driver_sql(f"PRAGMA {pragma}")).scalar()
    assert found == {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 5000}


# --- PostgreSQL ---


def test_lost_connection_is_told_without_the_drivers_words(
    postgres_place: PostgresPlace, caplog: pytest.LogCaptureFixture
) -> None:
    app = postgres_place.app(pool_limit=1)

    @app.get("/api/lost")
    async def lost(db: Db) -> None:
        postgres_place.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :name",
            name=postgres_place.name,
        )
        await db.find_target("any")

    app.router.routes.insert(0, app.router.routes.pop())  # before /{code}
    with TestClient(app) as client:
        answer = client.get("/api/lost")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert client.get("/api/links").status_code == 200
    assert "GET answered with 503: the database went away (OperationalError)" in caplog.messages
    assert "terminating connection" not in caplog.text


def test_role_without_create_right_uses_existing_tables(postgres_place: PostgresPlace) -> None:
    postgres_place.prepare()
    role, schema = f"test_{uuid4().hex}", postgres_place.name
    for statement in (
        f"CREATE ROLE {role} LOGIN PASSWORD 'simple'",
        f"GRANT USAGE ON SCHEMA {schema} TO {role}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
    ):
        postgres_place.execute(statement)
    address = urlsplit(postgres_place.url)
    host = address.netloc.rpartition("@")[2]
    postgres_place.settings["database_url"] = address._replace(netloc=f"{role}:simple@{host}").geturl()
    try:
        with TestClient(postgres_place.app()) as client:
            assert client.post("/api/links", json={"url": "https://example.com/"}).status_code == 201
            assert client.get("/api/report").json()["links"] == 1
    finally:
        postgres_place.execute(f"DROP OWNED BY {role}")
        postgres_place.execute(f"DROP ROLE {role}")


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
    on_sqlite = run_without(("psycopg", "pymysql", "redis"), tmp_path, code.format(""))
    others = ("aiosqlite", "redis")
    on_postgres = run_without((*others, "pymysql"), tmp_path, code.format("database_url='postgresql://host/links'"))
    on_mariadb = run_without((*others, "psycopg"), tmp_path, code.format("database_url='mysql://host/links'"))

    for ended in (on_sqlite, on_postgres, on_mariadb):
        assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("missing", "variables", "remedy"),
    [
        ("psycopg", {"DATABASE_URL": "postgresql://user:hunter2@h/l"}, "[psycopg]' 'psycopg[binary]'"),
        ("aiomysql", {"DATABASE_URL": "mysql://user:hunter2@h/l"}, "pip install 'connectionpools-fastapi[aiomysql]'"),
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
