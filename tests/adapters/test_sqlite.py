"""SqliteManager: what an application gets, and what the next lease must not see."""

import logging
import sqlite3
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from connectionpools_fastapi import (
    ConnectionPool,
    Leased,
    NotLeased,
    PoolConfigError,
    ResourceUnavailable,
    install_pools,
)
from connectionpools_fastapi.adapters import _sqlite
from connectionpools_fastapi.adapters.sqlite import SqliteManager
from tests.sqlite_leftovers import COUNT, LEFTOVERS, WRITE, kept, prepare, rows

# How a connection may treat transactions; `autocommit` is there since Python 3.12.
WAYS: list[dict[str, Any]] = [{}, {"isolation_level": None}, {"isolation_level": "IMMEDIATE"}]
if sys.version_info >= (3, 12):
    WAYS += [{"autocommit": False}, {"autocommit": True}]

# Counts until it is interrupted.
ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    yield
    kept.clear()


def fresh(path: Path, name: str) -> object:
    """Return what a new connection shows, which is what the next lease has to see."""
    manager = SqliteManager(path, init=prepare)
    conn = manager.create()
    seen = LEFTOVERS[name].seen(conn)
    manager.clean(conn)
    return seen


def next_sees(manager: SqliteManager, name: str) -> object:
    """Return what one lease shows after another one has left something behind, on the same connection."""
    leftover = LEFTOVERS[name]
    with ConnectionPool(manager, limit=1) as pool:
        with pool.lease() as conn:
            leftover.leave(conn)
        with pool.lease() as again:
            assert pool.stats().creates == 1
            return leftover.seen(again)


# --- what a lease leaves behind ---


@pytest.mark.parametrize("name", LEFTOVERS)
def test_lease_sees_nothing_the_previous_one_left(path: Path, name: str) -> None:
    expected = fresh(path, name)
    assert next_sees(SqliteManager(path, init=prepare), name) == expected


@pytest.mark.parametrize("name", LEFTOVERS)
def test_without_a_reset_each_of_it_would_be_seen(path: Path, name: str) -> None:
    expected = fresh(path, name)
    manager = SqliteManager(path, init=prepare)
    conn = manager.create()
    LEFTOVERS[name].leave(conn)

    assert LEFTOVERS[name].seen(conn) != expected
    manager.clean(conn)


@pytest.mark.parametrize("name", LEFTOVERS)
def test_the_smaller_reset_takes_back_only_what_is_open(path: Path, name: str) -> None:
    expected = fresh(path, name)
    seen = next_sees(SqliteManager(path, init=prepare, reset="transaction"), name)
    assert (seen == expected) is LEFTOVERS[name].is_undone_by_either


@pytest.mark.parametrize("reset", ["session", "transaction"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_open_transaction_is_rolled_back(path: Path, reset: Any, way: dict[str, Any]) -> None:
    """The manager rolls back whichever way transactions begin."""
    with ConnectionPool(SqliteManager(path, init=prepare, reset=reset, **way), limit=1) as pool:
        with pool.lease() as conn:
            begins_itself = conn.in_transaction
            if not begins_itself:
                conn.execute("BEGIN")
            conn.execute(WRITE)
        with pool.lease() as again:
            assert pool.stats().creates == 1
            assert COUNT(again) == [(3,)]
            assert again.in_transaction is begins_itself
            again.execute(WRITE)
            again.execute("COMMIT") if again.in_transaction else None
        with pool.lease() as conn:
            assert COUNT(conn) == [(4,)]


def test_transaction_reset_is_idle_outside_a_transaction(path: Path) -> None:
    manager = SqliteManager(path, reset="transaction")
    conn = manager.create()
    conn.execute("SELECT 1").fetchall()
    conn.set_trace_callback(kept.append)

    manager.change(conn)
    assert kept == []
    conn.execute("BEGIN")
    manager.change(conn)
    assert kept == ["BEGIN", "ROLLBACK"]
    manager.clean(conn)


def test_common_use_costs_no_new_connection(path: Path) -> None:
    """The lease reads, writes and looks at the schema."""
    with ConnectionPool(SqliteManager(path, init=prepare), limit=1) as pool:
        with pool.lease() as conn:
            before = conn.total_changes
            with conn:
                conn.execute(WRITE)
            conn.execute("SELECT text FROM notes").fetchone()
            conn.execute("PRAGMA table_info(notes)").fetchall()
            conn.execute("PRAGMA foreign_keys").fetchall()
            conn.execute("PRAGMA wal_checkpoint(passive)").fetchall()
            conn.execute("PRAGMA user_version = 3")
            conn.row_factory = sqlite3.Row
        with pool.lease() as again:
            assert again.total_changes == before + 1  # which counts from when it was connected


def test_leftovers_are_noticed_each_time(path: Path) -> None:
    """The manager also notices what a statement left that sqlite3 keeps compiled."""
    with ConnectionPool(SqliteManager(path), limit=1) as pool:
        for _ in range(4):
            with pool.lease() as conn:
                assert rows("PRAGMA journal_mode")(conn) == [("wal",)]
                assert rows("PRAGMA max_page_count")(conn) != [(50,)]
                conn.execute("PRAGMA journal_mode = delete").fetchall()
                conn.execute("PRAGMA max_page_count = 50").fetchall()
        assert pool.stats().creates == 1


def test_connection_that_cannot_be_reset_is_replaced(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ConnectionPool(SqliteManager(path), limit=1) as pool:
        with pool.lease() as conn:
            conn.close()
        with pool.lease() as other:
            assert pool.stats().creates == 2
            assert rows("SELECT 1")(other) == [(1,)]
    assert "change failed with ProgrammingError" in caplog.text


# --- with FastAPI, asyncio, trio and threads ---


def test_no_request_sees_what_the_one_before_has_left(path: Path) -> None:
    pool = ConnectionPool(SqliteManager(path, init=prepare), limit=1, name="db")
    app = FastAPI()
    install_pools(app, pool)
    Db = Annotated[sqlite3.Connection, Leased(pool)]  # noqa: N806 - a type

    @app.post("/leave")
    def leave(conn: Db) -> None:
        conn.execute("CREATE TEMP TABLE mine (secret)")
        conn.execute(WRITE)

    @app.get("/see")
    def see(conn: Db) -> list[Any]:
        return [COUNT(conn), rows("SELECT count(*) FROM temp.sqlite_schema")(conn)]

    with TestClient(app) as client:
        before = client.get("/see").json()
        client.post("/leave")
        assert client.get("/see").json() == before
        assert before == [[[3]], [[0]]]
        assert pool.stats().creates == 1


@pytest.mark.anyio
@pytest.mark.parametrize("blocking", [True, False])
async def test_tasks_of_either_library_share_it(path: Path, blocking: bool) -> None:  # noqa: FBT001 - as the pool's
    async with ConnectionPool(SqliteManager(path, init=prepare), limit=1, blocking=blocking) as pool:
        async with pool.lease() as conn:
            conn.execute(WRITE)
            conn.execute("PRAGMA query_only = on")
        async with pool.lease() as again:
            assert pool.stats().creates == 1
            assert COUNT(again) == [(3,)]
            again.execute(WRITE)


def test_threads_share_it_and_no_write_is_lost(path: Path) -> None:
    with closing(SqliteManager(path, init=prepare).create()):
        pass
    pool = ConnectionPool(SqliteManager(path, isolation_level=None), limit=3, timeout=30)

    def write() -> None:
        for _ in range(10):
            with pool.lease() as conn:
                conn.execute(WRITE)

    with pool:
        with ThreadPoolExecutor(6) as threads:
            for done in [threads.submit(write) for _ in range(6)]:
                done.result()
        with pool.lease() as conn:
            assert COUNT(conn) == [(63,)]


# --- how it connects ---


def setting(conn: sqlite3.Connection, name: str) -> object:
    return rows(f"PRAGMA {name}")(conn)[0][0]


def test_connection_suits_many_readers_and_writers(path: Path) -> None:
    manager = SqliteManager(path)
    with closing(manager.create()) as conn:
        found = {name: setting(conn, name) for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")}
    assert found == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1, "busy_timeout": 5000}


def test_pragmas_can_be_changed_added_and_left_out(path: Path) -> None:
    pragmas: dict[str, str | int | None] = {"synchronous": "full", "cache_size": -10, "journal_mode": None}
    with closing(SqliteManager(str(path), pragmas=pragmas, timeout=1).create()) as conn:
        found = [setting(conn, name) for name in ("synchronous", "cache_size", "journal_mode", "busy_timeout")]
    assert found == [2, -10, "delete", 1000]


def test_pragmas_are_set_inside_an_always_open_transaction(path: Path) -> None:
    for way in WAYS:
        manager = SqliteManager(path, init=prepare, **way)
        conn = manager.create()
        assert [setting(conn, "foreign_keys"), setting(conn, "journal_mode")] == [1, "wal"]
        assert COUNT(conn) == [(3,)]
        manager.clean(conn)


def test_read_only_lease_cannot_write(path: Path) -> None:
    """It sees what other connections write."""
    with (
        ConnectionPool(SqliteManager(path, init=prepare)) as pool,
        ConnectionPool(SqliteManager(path, read_only=True), limit=1) as readers,
    ):
        with pool.lease(), readers.lease() as conn:
            assert COUNT(conn) == [(3,)]
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                conn.execute(WRITE)
        with pool.lease() as conn, conn:
            conn.execute(WRITE)
        with readers.lease() as again:
            assert COUNT(again) == [(4,)]


def test_file_name_may_have_uri_characters(tmp_path: Path) -> None:
    path = tmp_path / "a?b#c%20 d.db"
    manager, readers = SqliteManager(path, init=prepare), SqliteManager(path, read_only=True)
    with closing(manager.create()), closing(readers.create()) as conn:
        assert COUNT(conn) == [(3,)]
        assert readers.check(conn)
    assert path.exists()


def test_a_uri_is_taken_as_it_is(path: Path) -> None:
    uri = f"{path.as_uri()}?mode=rwc"
    with closing(SqliteManager(uri, init=prepare).create()) as conn:
        assert COUNT(conn) == [(3,)]
        with closing(SqliteManager(uri, read_only=True).create()) as reader:
            assert COUNT(reader) == [(3,)]
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                reader.execute(WRITE)


def test_a_callable_is_asked_at_each_connection(tmp_path: Path) -> None:
    paths = [tmp_path / "first.db", tmp_path / "second.db"]
    manager = SqliteManager(iter(paths).__next__)
    for path in paths:
        manager.clean(manager.create())
        assert path.exists()


@pytest.mark.parametrize("database", ["", ":memory:", "file::memory:", "file:name?mode=memory", lambda: ":memory:"])
def test_database_private_to_each_connection_is_refused(database: Any) -> None:
    with pytest.raises(PoolConfigError, match=r"file:/app\?vfs=memdb"):
        SqliteManager(database).create()


@pytest.mark.parametrize("uri", ["file:/test?vfs=memdb", "file:test?mode=memory&cache=shared"])
def test_a_database_in_memory_can_be_shared(uri: str) -> None:
    manager = SqliteManager(uri, init=prepare, isolation_level=None)
    with closing(manager.create()), closing(SqliteManager(uri).create()) as other:
        assert COUNT(other) == [(3,)]
        assert manager.check(other)


def test_setup_by_init_stays_and_its_writes_are_committed(path: Path) -> None:
    def init(conn: sqlite3.Connection) -> None:
        prepare(conn)
        conn.row_factory = sqlite3.Row
        conn.create_function("ours", 0, lambda: 42)
        conn.execute("CREATE TEMP TABLE ours (text)")
        conn.execute(WRITE)

    with ConnectionPool(SqliteManager(path, init=init), limit=1) as pool:
        for _ in range(4):
            with pool.lease() as conn:
                assert conn.execute("SELECT ours() AS answer FROM notes").fetchall()[3]["answer"] == 42
                assert conn.execute("SELECT count(*) AS n FROM temp.ours").fetchone()["n"] == 0
                conn.row_factory = None
                conn.create_function("mine", 0, lambda: 1)  # costs a new connection
        assert pool.stats().creates == 1  # behind the same object


def test_an_init_that_fails_leaves_nothing_open(path: Path) -> None:
    conns: list[sqlite3.Connection] = []

    def init(conn: sqlite3.Connection) -> None:
        conns.append(conn)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        SqliteManager(path, init=init).create()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        conns[0].execute("SELECT 1")


def test_many_can_connect_to_a_new_file_at_once(tmp_path: Path) -> None:
    many = 8
    with ThreadPoolExecutor(many) as threads:
        for number in range(15):  # about one in thirty fails without another try
            manager, barrier = SqliteManager(tmp_path / f"{number}.db"), threading.Barrier(many)

            def create(manager: SqliteManager = manager, barrier: threading.Barrier = barrier) -> sqlite3.Connection:
                barrier.wait()
                return manager.create()

            for done in [threads.submit(create) for _ in range(many)]:
                manager.clean(done.result())


def test_switch_to_wal_is_retried_while_another_writes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite itself does not wait there, however long the `timeout`."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.executescript("CREATE TABLE notes (text); BEGIN IMMEDIATE")
        monkeypatch.setattr("time.sleep", lambda _: other.execute("COMMIT"))
        with closing(SqliteManager(path).create()) as conn:
            assert setting(conn, "journal_mode") == "wal"
        assert not other.in_transaction


# --- check ---


def test_a_connection_is_good_as_long_as_its_file_is_there(path: Path) -> None:
    manager = SqliteManager(path)
    conn = manager.create()
    assert manager.check(conn)

    for leftover in path.parent.iterdir():
        leftover.unlink()
    assert not manager.check(conn)
    manager.clean(conn)


def test_a_replaced_file_is_noticed_and_the_new_one_opened(path: Path) -> None:
    other = path.with_name("other.db")
    with closing(sqlite3.connect(other)) as conn:
        conn.execute("CREATE TABLE news (text)")
    with ConnectionPool(SqliteManager(path, pragmas={"journal_mode": "delete"}), limit=1, check_after=0) as pool:
        with pool.lease() as conn:
            assert rows("SELECT name FROM sqlite_schema")(conn) == []
        other.replace(path)
        with pool.lease() as conn:
            assert rows("SELECT name FROM sqlite_schema")(conn) == [("news",)]


def test_a_closed_connection_is_no_good(path: Path) -> None:
    manager = SqliteManager(path)
    conn = manager.create()
    conn.close()
    with pytest.raises(sqlite3.ProgrammingError):
        manager.check(conn)


def test_check_passes_while_another_connection_locks(path: Path) -> None:
    manager = SqliteManager(path, pragmas={"journal_mode": "delete"}, timeout=0)
    with closing(manager.create()) as conn, closing(manager.create()) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert manager.check(conn)


# --- clean ---


def test_nothing_is_left_of_the_log_once_all_are_closed(path: Path) -> None:
    for _ in range(5):
        with ConnectionPool(SqliteManager(path, init=prepare), limit=4, min_free=4):
            pass
        assert [file.name for file in path.parent.iterdir()] == ["app.db"]


def test_connections_close_one_after_the_other(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pools close in turn too; otherwise SQLite sometimes leaves its log behind."""
    meeting = threading.Barrier(2)
    managers = [SqliteManager(path), SqliteManager(path)]
    conns = [manager.create() for manager in managers]

    def close(conn: sqlite3.Connection) -> None:
        with pytest.raises(threading.BrokenBarrierError):
            meeting.wait(0.1)
        sqlite3.Connection.close(conn)

    monkeypatch.setattr(type(conns[0]), "close", close)
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(manager.clean, conn) for manager, conn in zip(managers, conns, strict=True)]:
            done.result()


@pytest.mark.parametrize("reset", ["session", "transaction"])
def test_statement_of_another_thread_is_interrupted(path: Path, reset: Any) -> None:
    """As of a `def` endpoint that goes on after its request was cancelled."""
    with ConnectionPool(SqliteManager(path, init=prepare, reset=reset), limit=1) as pool, ThreadPoolExecutor(1) as one:
        runs = threading.Event()
        with pool.lease() as conn:
            conn.execute(WRITE)
            conn.set_progress_handler(runs.set, 1000)
            endless = one.submit(lambda: [*conn.execute(ENDLESS)])
            assert runs.wait(10)
        with pool.lease() as again:
            assert isinstance(endless.exception(10), sqlite3.OperationalError)
            again.execute("PRAGMA foreign_keys")  # some statement that no handler interrupts
            assert COUNT(again) == [(3,)]
        assert pool.stats().creates == 1


def test_loop_of_another_thread_ends_with_its_lease(path: Path) -> None:
    with ConnectionPool(SqliteManager(path, init=prepare), limit=1) as pool, ThreadPoolExecutor(1) as one:
        runs = threading.Event()

        def read(conn: sqlite3.Connection) -> None:
            for _ in conn.execute("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"):
                runs.set()

        for _ in range(20):
            with pool.lease() as conn:
                endless = one.submit(read, conn)
                assert runs.wait(10)
            assert isinstance(endless.exception(10), (sqlite3.Error, NotLeased))
            runs.clear()
        assert pool.stats().creates == 1


@pytest.mark.parametrize("reset", ["session", "transaction"])
def test_statement_that_cannot_end_costs_the_connection(
    path: Path, reset: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sqlite, "END_WITHIN", 0.02)
    monkeypatch.setattr(_sqlite, "CLOSE_WITHIN", 0.02)
    runs, go = threading.Event(), threading.Event()

    def block() -> bool:
        runs.set()
        return go.wait(10)

    with ConnectionPool(SqliteManager(path, init=prepare, reset=reset), limit=1) as pool, ThreadPoolExecutor(1) as one:
        with pool.lease() as conn:
            conn.create_function("block", 0, block)
            blocked = one.submit(lambda: conn.execute("SELECT block() FROM notes").fetchall())
            assert runs.wait(10)
        with pool.lease() as other:
            assert pool.stats().creates == 2
            assert COUNT(other) == [(3,)]
        go.set()
        assert blocked.exception(10) is not None
        for thread in threading.enumerate():
            if thread.name == "SqliteManager: close":
                thread.join(10)
        with pytest.raises(NotLeased):
            conn.execute("SELECT 1")
    assert [file.name for file in path.parent.iterdir()] == ["app.db"]
    assert "a statement of the lease still runs, and cannot be interrupted" in caplog.text


def test_what_is_closed_already_can_be_cleaned(path: Path) -> None:
    manager = SqliteManager(path)
    conn = manager.create()
    for _ in range(2):
        manager.clean(conn)


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"reset": "all"}, "reset must be 'session' or 'transaction'; got 'all'"),
        ({"pragmas": {"foregn_keys": 1}}, "this SQLite has no PRAGMA foregn_keys"),
        ({"check_same_thread": True}, "check_same_thread cannot be set"),
        ({"factory": sqlite3.Connection, "uri": True}, "factory, uri cannot be set"),
        ({"init": 5}, "init must be a `def`"),
        ({"database": 5}, "the database must be a path or a URI"),
        ({"database": b"app.db"}, "the database must be a path or a URI"),
        ({"database": "a\0b"}, "the database must be a path or a URI"),
    ],
    ids=str,
)
def test_nonsense_is_refused_in_one_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(PoolConfigError, match=f"^SqliteManager: {text}") as refused:
        SqliteManager(**{"database": "app.db", **options})
    assert "\n" not in str(refused.value)


def test_unknown_option_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match="tiemout"):
        SqliteManager("app.db", tiemout=5)


def no_directory(path: Path) -> SqliteManager:
    return SqliteManager(path / "secret.db")


def a_directory(path: Path) -> SqliteManager:
    path.mkdir()
    return SqliteManager(path)


def no_file(path: Path) -> SqliteManager:
    return SqliteManager(path, read_only=True)


def no_database(path: Path) -> SqliteManager:
    path.write_bytes(b"secret" * 1000)
    return SqliteManager(path)


def not_to_be_written(path: Path) -> SqliteManager:
    sqlite3.connect(path).close()
    return SqliteManager(f"{path.as_uri()}?mode=ro")


@pytest.mark.parametrize(
    ("mistake", "text"),
    [
        (no_directory, "the directory of the file does not exist"),
        (a_directory, "the file does not exist or is none"),
        (no_file, "the file does not exist or is none"),
        (no_database, "the file is no SQLite database"),
        (not_to_be_written, "the file must not be written"),
    ],
)
def test_lasting_mistake_fails_the_start(path: Path, caplog: pytest.LogCaptureFixture, mistake: Any, text: str) -> None:
    caplog.set_level(logging.DEBUG)
    manager = mistake(path.with_name("secret"))
    pool = ConnectionPool(manager, min_free=1)

    with pytest.raises(PoolConfigError, match=f"SqliteManager: {text}") as refused, pool:
        pass
    assert "secret" not in str(refused.value) + repr(manager) + repr(pool) + caplog.text


def test_locked_database_is_no_mistake(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        pool = ConnectionPool(SqliteManager(path, timeout=0), min_free=1)
        with pytest.raises(ResourceUnavailable) as refused, pool:
            pass
    assert isinstance(refused.value.__cause__, sqlite3.OperationalError)
