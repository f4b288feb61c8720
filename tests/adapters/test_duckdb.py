"""DuckdbManager: a lease has a cursor of its own, leaves nothing on it, and keeps nothing alive of it."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
import duckdb
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from connectionpools_fastapi import ConnectionPool, Leased, NotLeased, PoolConfigError, install_pools
from connectionpools_fastapi.adapters.duckdb import DuckdbManager

Pool = ConnectionPool[duckdb.DuckDBPyConnection]
LONG = "SELECT count(*) FROM range(20000000) a, range(1000000) b"  # takes minutes


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.duckdb"


@pytest.fixture
def pool(path: Path) -> Iterator[Pool]:
    with ConnectionPool(DuckdbManager(path), limit=1, timeout=10, name="db") as pool:
        yield pool


def value(conn: duckdb.DuckDBPyConnection, query: str) -> Any:
    row = conn.execute(query).fetchone()
    return row and row[0]


@pytest.mark.parametrize(
    ("left", "look", "seen"),
    [
        ("CREATE TEMP TABLE left_over (i int)", "SELECT count(*) FROM duckdb_tables() WHERE temporary", 0),
        ("SET VARIABLE tenant = 'a'", "SELECT getvariable('tenant')", None),
        ("CREATE SCHEMA other; USE other", "SELECT current_schema()", "main"),
        (
            "CREATE TEMP MACRO twice(x) AS 2 * x",
            "SELECT count(*) FROM duckdb_functions() WHERE function_name = 'twice'",
            0,
        ),
        ("ATTACH ':memory:' AS second; USE second", "SELECT current_database()", "app"),
    ],
)
def test_lease_leaves_nothing_on_its_cursor(pool: Pool, left: str, look: str, seen: object) -> None:
    with pool.lease() as conn:
        conn.execute(left)
        assert value(conn, look) != seen
    with pool.lease() as conn:
        assert value(conn, look) == seen


def test_prepared_statement_ends_with_its_lease(pool: Pool) -> None:
    with pool.lease() as conn:
        conn.execute("PREPARE answer AS SELECT 42")
    with pool.lease() as conn, pytest.raises(duckdb.Error):
        conn.execute("EXECUTE answer")


def test_open_transaction_is_rolled_back_and_told(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    with pool.lease() as conn:
        conn.execute("CREATE TABLE kept (i int)")
        conn.execute("BEGIN")
        conn.execute("INSERT INTO kept VALUES (1)")
    with pool.lease() as conn:
        assert value(conn, "SELECT count(*) FROM kept") == 0
    assert [message for message in caplog.messages if "'db'" in message and "transaction was left open" in message]


def test_failed_block_rolls_back_silently(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    with suppress(ZeroDivisionError), pool.lease() as conn:
        conn.execute("CREATE TABLE kept (i int)")
        conn.begin()
        conn.execute("INSERT INTO kept VALUES (1)")
        raise ZeroDivisionError
    with pool.lease() as conn:
        assert value(conn, "SELECT count(*) FROM kept") == 0
    assert caplog.messages == []


def test_leases_share_what_belongs_to_the_database(path: Path) -> None:
    with (
        ConnectionPool(DuckdbManager(path), limit=2) as pool,
        pool.lease() as one,
        pool.lease(timeout=5) as two,
    ):
        one.execute("ATTACH ':memory:' AS second; SET GLOBAL threads = 1")
        assert value(two, "SELECT count(*) FROM duckdb_databases() WHERE database_name = 'second'") == 1
        assert value(two, "SELECT current_setting('threads')") == 1


def test_locked_configuration_cannot_be_changed() -> None:
    manager = DuckdbManager(config={"lock_configuration": True})
    with ConnectionPool(manager) as pool, pool.lease() as conn, pytest.raises(duckdb.Error):
        conn.execute("SET GLOBAL threads = 1")


def test_what_a_lease_keeps_in_hand_is_dead(pool: Pool) -> None:
    with pool.lease() as conn:
        conn.execute("CREATE TABLE kept (i int)")
        execute = conn.execute
        relation = conn.sql("SELECT 1")
        child = conn.cursor()
        result = conn.execute("SELECT * FROM range(100000)")
        result.fetchone()
    late: list[Callable[[], object]] = [
        lambda: execute("INSERT INTO kept VALUES (1)"),
        relation.fetchall,
        lambda: relation.insert_into("kept"),
        lambda: child.execute("INSERT INTO kept VALUES (1)"),
        result.fetchone,
        lambda: result.execute("INSERT INTO kept VALUES (1)"),
    ]
    for use in late:
        with pytest.raises(duckdb.Error):
            use()
    for name in ("execute", "sql", "cursor", "close", "commit"):
        with pytest.raises(NotLeased, match="pool 'db'"):
            getattr(conn, name)
    with pytest.raises(NotLeased), conn:
        pass
    with pool.lease() as conn:
        assert value(conn, "SELECT count(*) FROM kept") == 0
    assert pool.stats().creates == 1


def test_query_finds_the_callers_variables(pool: Pool) -> None:
    with pool.lease() as conn:
        numbers = conn.sql("SELECT 42 AS i")
        assert conn.sql("SELECT i FROM numbers").fetchall() == [(42,)]
        del numbers


def test_closing_the_leased_cursor_is_no_loss(pool: Pool) -> None:
    with pool.lease() as conn, conn:
        conn.execute("SELECT 1")
    with pool.lease() as conn:
        conn.close()
    with pool.lease() as conn:
        assert value(conn, "SELECT 42") == 42
    assert pool.stats().creates == 1


@pytest.mark.anyio
async def test_cancelled_query_is_interrupted(pool_of_loop: Pool) -> None:
    begun, ended = threading.Event(), threading.Event()

    def work(conn: duckdb.DuckDBPyConnection) -> None:
        begun.set()
        try:
            conn.execute(LONG)
        finally:
            ended.set()

    async def lease() -> None:
        async with pool_of_loop.lease() as conn:
            await anyio.to_thread.run_sync(work, conn, abandon_on_cancel=True)

    task = asyncio.create_task(lease())
    assert await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with pool_of_loop.lease() as conn:
        assert value(conn, "SELECT 42") == 42
    assert await asyncio.to_thread(ended.wait, 30)  # far less than it takes


def test_statement_that_cannot_be_interrupted_costs_its_cursor(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("connectionpools_fastapi.adapters.duckdb.END_WITHIN", -1.0)
    with pool.lease() as conn:
        conn.execute("SELECT 1")
    monkeypatch.undo()
    with pool.lease() as conn:
        assert value(conn, "SELECT 42") == 42
    assert pool.stats().discards["change"] == 1
    assert [message for message in caplog.messages if "cannot be interrupted" in message]


def test_threads_at_once_lose_nothing(path: Path) -> None:
    with ConnectionPool(DuckdbManager(path), limit=3, timeout=30) as pool:
        with pool.lease() as conn:
            conn.execute("CREATE TABLE visits (i int)")

        def work() -> None:
            for number in range(10):
                with pool.lease() as conn:
                    conn.execute("INSERT INTO visits VALUES (?)", [number])

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pool.lease() as conn:
            assert value(conn, "SELECT count(*) FROM visits") == 60


def test_file_is_closed_with_its_pool(path: Path) -> None:
    opened: list[Any] = []
    pool = ConnectionPool(DuckdbManager(path, init=opened.append), limit=2)
    for _ in range(2):
        with pool:
            with pool.lease(), pool.lease(timeout=5):
                pass
            with pytest.raises(duckdb.ConnectionException):  # it is open, to be written
                duckdb.connect(path, read_only=True)
        duckdb.connect(path, read_only=True).close()
    assert len(opened) == 2


def test_database_in_memory_outlasts_its_cursors() -> None:
    pool = ConnectionPool(DuckdbManager(), limit=1)
    with pool, pool.lease() as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS i")
    with pool, pool.lease() as conn:
        assert value(conn, "SELECT i FROM kept") == 42


def test_endpoints_lease_cursors() -> None:
    app = FastAPI()
    db = ConnectionPool(DuckdbManager(), limit=2, name="db")
    install_pools(app, db)

    @app.get("/answer")
    def answer(conn: Annotated[duckdb.DuckDBPyConnection, Leased(db)]) -> int:
        found: int = value(conn, "SELECT 42")
        return found

    with TestClient(app) as client:
        assert client.get("/answer").json() == 42


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"database": "{folder}/missing/app.duckdb"}, "the folder of the file does not exist"),
        ({"database": "{folder}/text"}, "no DuckDB database"),
        ({"database": "{folder}/missing", "read_only": True}, "no such file"),
        ({"config": {"nonsense": 1}}, "does not take these settings for this database: nonsense"),
    ],
)
def test_mistake_is_told_as_the_pool_opens(options: dict[str, Any], part: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database" * 1000)
    if "database" in options:
        options = {**options, "database": options["database"].format(folder=tmp_path)}
    with pytest.raises(PoolConfigError, match=part):
        DuckdbManager(**options).create()


def test_memory_is_never_read_only() -> None:
    with pytest.raises(PoolConfigError, match="read_only"):
        DuckdbManager(read_only=True)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def pool_of_loop(path: Path) -> Any:
    async with ConnectionPool(DuckdbManager(path), limit=1, timeout=10) as pool:
        yield pool
