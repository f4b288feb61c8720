"""What a lease of SQLite keeps is dead afterwards, and passes everything on before."""

import asyncio
import gc
import logging
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from connectionpools_fastapi import ConnectionPool, NotLeased
from connectionpools_fastapi.adapters._sqlite import judge
from connectionpools_fastapi.adapters._sqlite_lent import Lent, Session
from connectionpools_fastapi.adapters.aiosqlite import AiosqliteManager
from connectionpools_fastapi.adapters.sqlite import SqliteManager
from tests.sqlite_leftovers import COUNT, WRITE, prepare

RESETS = pytest.mark.parametrize("reset", ["session", "transaction"])
DEAD = (NotLeased, sqlite3.ProgrammingError)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture
def anyio_backend() -> str:
    """Use asyncio only: aiosqlite knows nothing else."""
    return "asyncio"


def sync_pool(path: Path, **options: Any) -> ConnectionPool[sqlite3.Connection]:
    return ConnectionPool(SqliteManager(path, init=prepare, **options), limit=1, name="db")


def async_pool(path: Path, **options: Any) -> ConnectionPool[aiosqlite.Connection]:
    return ConnectionPool(AiosqliteManager(path, init=prepare, **options), limit=1, name="db")


# --- what a thread keeps ---


def half_read(conn: sqlite3.Connection) -> sqlite3.Cursor:
    cursor = conn.execute("SELECT text FROM notes")
    cursor.fetchone()
    return cursor


def in_block(conn: sqlite3.Connection) -> Iterator[None]:
    with conn:
        conn.execute(WRITE)
        yield


def begun(conn: sqlite3.Connection) -> Iterator[None]:
    generator = in_block(conn)
    next(generator)
    return generator


def dumping(conn: sqlite3.Connection) -> Iterator[str]:
    dump = conn.iterdump()
    next(dump)
    return dump


def open_blob(conn: sqlite3.Connection) -> sqlite3.Blob:
    return conn.blobopen("notes", "text", 1)


class Named(sqlite3.Cursor):
    """A cursor of an application."""


def named(below: sqlite3.Connection) -> Named:
    return Named(below)


# What is kept of a lease, and what is done with it during the next one; all of it raises.
KEPT: dict[str, tuple[Callable[[Any], Any], list[Callable[[Any], Any]]]] = {
    "connection": (
        lambda conn: conn,
        [
            lambda conn: conn.execute(WRITE),
            lambda conn: conn.executemany("INSERT INTO notes VALUES (?)", [(1,)]),
            lambda conn: conn.executescript(WRITE),
            lambda conn: conn.cursor(),
            lambda conn: conn.cursor(Named),
            lambda conn: conn.commit(),
            lambda conn: conn.rollback(),
            lambda conn: conn.interrupt(),
            lambda conn: conn.iterdump(),
            lambda conn: conn.create_function("lower", 1, str),
            lambda conn: conn.blobopen("notes", "text", 1),
            lambda conn: conn.backup(sqlite3.connect(":memory:")),
            lambda conn: conn.in_transaction,
            lambda conn: conn.row_factory,
            lambda conn: setattr(conn, "row_factory", dict),
            lambda conn: setattr(conn, "isolation_level", None),
            lambda conn: conn.__enter__(),
            lambda conn: conn.__exit__(None, None, None),
            lambda conn: conn("SELECT 1"),
            lambda conn: conn.close(),
        ],
    ),
    "cursor": (
        lambda conn: conn.cursor(),
        [
            lambda cursor: cursor.execute(WRITE),
            lambda cursor: cursor.executescript(WRITE),
            lambda cursor: cursor.connection.execute(WRITE),
            lambda cursor: cursor.close(),
        ],
    ),
    "cursor of a class of the application": (
        lambda conn: conn.cursor(Named),
        [lambda cursor: cursor.execute(WRITE), lambda cursor: cursor.connection.execute(WRITE)],
    ),
    "half-read cursor": (half_read, [next, lambda cursor: cursor.fetchone(), lambda cursor: cursor.fetchall(), list]),
    "cursor of a function of the application": (
        lambda conn: conn.cursor(named),
        [lambda cursor: cursor.execute(WRITE)],
    ),
    "blob": (open_blob, [lambda blob: blob.read(), lambda blob: blob.write(b"x")]),
    "transaction": (begun, [next]),
    "dump": (dumping, [list]),
}


# What a `finally` of a kept generator does late must not touch the connection, and may raise.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@RESETS
@pytest.mark.parametrize("name", KEPT)
def test_kept_thing_is_dead_in_the_next_lease(path: Path, reset: Any, name: str) -> None:
    keep, uses = KEPT[name]
    with sync_pool(path, reset=reset) as pool:
        with pool.lease() as conn:
            conn.execute("BEGIN")
            conn.execute(WRITE)
            kept: Any = [keep(conn) for _ in (*uses, None)]
            del conn
        for use in uses:
            traced: list[str] = []
            with pool.lease() as after:
                after.set_trace_callback(traced.append)
                after.execute("BEGIN IMMEDIATE")
                after.execute(WRITE)
                reading = after.execute("SELECT text FROM notes ORDER BY rowid")
                first = reading.fetchone()
                seen = len(traced)

                with pytest.raises(DEAD) as refused:
                    use(kept[-1])
                if isinstance(refused.value, NotLeased):
                    assert "pool 'db'" in str(refused.value)
                with suppress(*DEAD):
                    kept.pop()
                gc.collect()

                assert traced[seen:] == []
                assert after.in_transaction
                assert [first, *reading] == [("one",), ("two",), ("three",), ("mine",)]
                after.execute("ROLLBACK")
                after.set_trace_callback(None)
        assert pool.stats().creates == 1


@RESETS
def test_transaction_that_a_generator_keeps_is_undone(path: Path, reset: Any) -> None:
    """Its `with conn:` commits or rolls back as the generator is closed, by then in the next lease."""
    with sync_pool(path, reset=reset) as pool:
        with pool.lease() as conn:
            generator: Any = begun(conn)
        with pool.lease() as after:
            after.execute("INSERT INTO notes VALUES ('next')")
            with pytest.raises(NotLeased):
                generator.close()
            assert after.in_transaction
            after.commit()
        with pool.lease() as conn:
            assert COUNT(conn) == [(4,)]


def test_late_backup_ends_at_its_next_step(path: Path) -> None:
    with sync_pool(path) as pool, closing(sqlite3.connect(":memory:", check_same_thread=False)) as target:
        conn = pool.acquire_sync()
        with pytest.raises(NotLeased):
            conn.backup(target, pages=1, progress=lambda *_: pool.discard(conn) if pool.taken else None)


# --- what passes through ---


def test_every_public_name_is_passed_on() -> None:
    names = {name for name in dir(sqlite3.Connection) if not name.startswith("_")}
    assert names <= vars(Lent).keys()
    assert {"__call__", "__enter__", "__exit__"} <= vars(Lent).keys()


def test_lent_connection_does_what_sqlite3s_does(path: Path) -> None:
    with sync_pool(path) as pool, pool.lease() as conn:
        assert isinstance(conn, sqlite3.Connection)
        cursor = conn.execute("SELECT text FROM notes WHERE rowid > ?", (1,))
        assert isinstance(cursor, sqlite3.Cursor)
        assert cursor.connection is conn
        assert next(cursor) == ("two",)
        assert cursor.fetchmany(5) == [("three",)]
        assert conn.executemany("INSERT INTO notes VALUES (:a)", [{"a": 1}, {"a": 2}]).rowcount == 2
        assert conn.in_transaction
        assert conn.total_changes >= 2
        conn.rollback()
        with conn as same:
            assert same is conn
            conn.execute(WRITE)
        assert not conn.in_transaction
        with pytest.raises(sqlite3.OperationalError), conn:
            conn.executescript(f"BEGIN; {WRITE}; nonsense")
        assert COUNT(conn) == [(4,)]
        conn.row_factory = sqlite3.Row
        assert conn.execute("SELECT 1 AS one").fetchone()["one"] == 1
        assert conn.cursor(Named).execute("SELECT 1 AS one").fetchone()["one"] == 1
        assert isinstance(conn.cursor(factory=Named), Named)
        assert conn.cursor(sqlite3.Cursor).execute("SELECT 1").connection is conn
        conn.create_function("double", 1, lambda n: 2 * n, deterministic=True)
        assert conn.execute("SELECT double(2)").fetchone()[0] == 4
        assert any("CREATE TABLE notes" in line for line in conn.iterdump())
        with conn.blobopen("notes", "text", 1) as blob:
            assert blob.read() == b"one"
        assert conn.getlimit(sqlite3.SQLITE_LIMIT_COLUMN) == conn.setlimit(sqlite3.SQLITE_LIMIT_COLUMN, 100)
        with pytest.raises(conn.OperationalError):
            conn.execute("nonsense")
        assert conn.serialize()[:6] == b"SQLite"
        if sys.version_info >= (3, 12):
            assert conn.autocommit == sqlite3.LEGACY_TRANSACTION_CONTROL


def test_backup_goes_from_and_to_what_is_lent(path: Path) -> None:
    with sync_pool(path) as pool, sync_pool(path.with_name("other.db")) as others:
        with pool.lease() as conn, conn:
            conn.execute(WRITE)
        with pool.lease() as conn, others.lease() as other, closing(sqlite3.connect(":memory:")) as plain:
            conn.backup(other)
            conn.backup(plain)
            assert COUNT(other) == COUNT(plain) == [(4,)]


def test_detached_connection_goes_on(path: Path) -> None:
    with sync_pool(path) as pool:
        conn = pool.acquire_sync()
        assert pool.detach(conn) is conn
        assert COUNT(conn) == [(3,)]
        conn.close()
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            conn.execute("SELECT 1")


# --- what is lost, and what errors mean ---


WARNING = "rows that were not committed were rolled back"


@RESETS
@pytest.mark.parametrize("autocommit", [None, False] if sys.version_info >= (3, 12) else [None])
def test_only_rows_that_are_lost_are_told(
    path: Path, reset: Any, autocommit: Any, caplog: pytest.LogCaptureFixture
) -> None:
    options = {} if autocommit is None else {"autocommit": autocommit}
    with sync_pool(path, reset=reset, **options) as pool:
        with pool.lease() as conn:
            conn.execute(WRITE)
            conn.commit()
            conn.execute("BEGIN") if autocommit is None else None
            conn.execute("SELECT * FROM notes").fetchall()
        with pytest.raises(sqlite3.OperationalError), pool.lease() as conn:
            conn.execute("INSERT INTO notes VALUES (nonsense(?))", (conn.execute(WRITE).rowcount,))
        assert WARNING not in caplog.text
        with pool.lease() as conn:
            conn.execute(WRITE)
    assert [record.message for record in caplog.records if WARNING in record.message] == [
        f"pool 'db': MainThread: {WARNING}; end with `conn.commit()`, or use `with conn:`"
    ]


@pytest.mark.anyio
@RESETS
async def test_rows_that_a_task_loses_are_told(path: Path, reset: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with async_pool(path, reset=reset) as pool:
        async with pool.lease() as conn:
            await conn.execute(WRITE)
            await conn.commit()
            await conn.execute("BEGIN")
            await conn.execute_fetchall("SELECT * FROM notes")
        assert caplog.text == ""
        async with pool.lease() as conn:
            await conn.execute(WRITE)
    assert caplog.text.count(WARNING) == 1
    assert "end with `await conn.commit()`" in caplog.text


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        ("SQLITE_READONLY_DBMOVED", "expire"),
        ("SQLITE_READONLY", None),
        ("SQLITE_CORRUPT", "discard"),
        ("SQLITE_IOERR_READ", "discard"),
        ("SQLITE_NOTADB", "discard"),
        ("SQLITE_CANTOPEN", "check"),
        ("SQLITE_BUSY_SNAPSHOT", None),
        ("SQLITE_CONSTRAINT_UNIQUE", None),
        ("SQLITE_FULL", None),
    ],
)
def test_an_error_says_what_it_means(code: str, verdict: Any) -> None:
    error = sqlite3.OperationalError()
    error.sqlite_errorcode = getattr(sqlite3, code)
    assert judge(error) == verdict
    assert judge(ValueError()) is None


def damage(path: Path) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA page_size = 4096")
        conn.execute("CREATE TABLE long AS SELECT randomblob(90000) AS b")
        conn.commit()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)


def test_error_that_the_application_handles_is_judged(path: Path) -> None:
    damage(path)
    with ConnectionPool(SqliteManager(path), limit=1) as pool:
        with pool.lease() as conn, suppress(sqlite3.DatabaseError):
            conn.execute("SELECT * FROM long").fetchall()
        assert pool.stats().discards["broken"] == 1
        with pool.lease() as conn, suppress(sqlite3.OperationalError):
            conn.execute("SELECT * FROM nothing")
        assert pool.stats().discards["broken"] == 1


@pytest.mark.anyio
async def test_error_that_a_task_handles_is_judged(path: Path) -> None:
    damage(path)
    async with ConnectionPool(AiosqliteManager(path), limit=1) as pool:
        async with pool.lease() as conn:
            with suppress(sqlite3.DatabaseError):
                await conn.execute_fetchall("SELECT * FROM long")
        assert pool.stats().discards["broken"] == 1


# --- aiosqlite ---


async def stream(conn: aiosqlite.Connection) -> AsyncIterator[Any]:
    async with conn.execute("SELECT text FROM notes") as cursor:
        async for row in cursor:
            yield row


async def in_transaction(conn: aiosqlite.Connection) -> AsyncIterator[None]:
    await conn.execute("BEGIN")
    await conn.execute(WRITE)
    try:
        yield
    finally:
        await conn.rollback()


@dataclass
class Kept:
    """What a lease of aiosqlite keeps; `late` is a coroutine of it that was not awaited."""

    conn: Any
    cursor: Any
    late: Any


ASYNC_USES: dict[str, Callable[[Any], Any]] = {
    "execute": lambda kept: kept.conn.execute(WRITE),
    "execute_fetchall": lambda kept: kept.conn.execute_fetchall(WRITE),
    "cursor": lambda kept: kept.conn.cursor(),
    "commit": lambda kept: kept.conn.commit(),
    "rollback": lambda kept: kept.conn.rollback(),
    "interrupt": lambda kept: kept.conn.interrupt(),
    "create_function": lambda kept: kept.conn.create_function("lower", 1, str),
    "close": lambda kept: kept.conn.close(),
    "fetchone": lambda kept: kept.cursor.fetchone(),
    "cursor.execute": lambda kept: kept.cursor.execute(WRITE),
    "cursor.close": lambda kept: kept.cursor.close(),
    "coroutine of the lease": lambda kept: kept.late,
}


@pytest.mark.anyio
@RESETS
@pytest.mark.parametrize("name", ASYNC_USES)
async def test_kept_thing_of_aiosqlite_is_dead(path: Path, reset: Any, name: str) -> None:
    async with async_pool(path, reset=reset) as pool:
        conn: Any
        async with pool.lease() as conn:
            cursor = await conn.execute("SELECT text FROM notes")
            await cursor.fetchone()
            late = conn.execute(WRITE)
        traced: list[str] = []
        async with pool.lease() as after:
            await after.set_trace_callback(traced.append)
            await after.execute("BEGIN IMMEDIATE")
            await after.execute(WRITE)
            seen = len(traced)
            with pytest.raises(NotLeased, match="pool 'db'"):
                await ASYNC_USES[name](Kept(conn, cursor, late))
            late.close()
            for get in ("in_transaction", "total_changes", "row_factory", "isolation_level"):
                with pytest.raises(NotLeased):
                    getattr(conn, get)
            with pytest.raises(NotLeased):
                cursor.connection.execute(WRITE)
            del conn, cursor, late
            gc.collect()
            assert traced[seen:] == []
            assert after.in_transaction
            await after.commit()
        async with pool.lease() as after:
            assert list(await after.execute_fetchall("SELECT count(*) FROM notes")) == [(4,)]
        assert pool.stats().creates == 1


@pytest.mark.anyio
@RESETS
@pytest.mark.parametrize("make", [stream, in_transaction])
async def test_abandoned_async_generator_is_not_noticed(path: Path, reset: Any, make: Any) -> None:
    """As a stream whose client leaves: what it has in hand is ended during the next lease."""
    async with async_pool(path, reset=reset) as pool:
        async with pool.lease() as conn:
            generator = make(conn)
            await anext(generator)
        async with pool.lease() as after:
            await after.execute("BEGIN IMMEDIATE")
            await after.execute("INSERT INTO notes VALUES ('next')")
            with pytest.raises(NotLeased):
                await generator.aclose()
            assert after.in_transaction
            await after.commit()
        async with pool.lease() as after:
            assert list(await after.execute_fetchall("SELECT count(*) FROM notes")) == [(4,)]
        assert pool.stats().creates == 1


@pytest.mark.anyio
async def test_lent_connection_does_what_aiosqlites_does(path: Path) -> None:
    async with async_pool(path) as pool, async_pool(path.with_name("other.db")) as others, pool.lease() as conn:
        assert isinstance(conn, aiosqlite.Connection)
        assert "Connection" in repr(conn) or "Lent" in repr(conn)
        async with conn.execute("SELECT text FROM notes") as cursor:
            assert [row async for row in cursor] == [("one",), ("two",), ("three",)]
        await conn.execute(WRITE)
        assert conn.in_transaction
        assert conn.total_changes >= 1
        await conn.commit()
        conn.row_factory = sqlite3.Row
        assert (await (await conn.execute("SELECT 1 AS one")).fetchone())["one"] == 1  # type: ignore[index]
        assert isinstance(conn.row_factory, type)
        conn.row_factory = None
        assert len([line async for line in conn.iterdump()]) > 3
        async with others.lease() as other:
            await conn.backup(other)
            assert list(await other.execute_fetchall("SELECT count(*) FROM notes")) == [(4,)]
        await conn.interrupt()


@pytest.mark.anyio
@RESETS
async def test_loop_asks_nothing_of_a_connection_at_work(
    path: Path, reset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SQLite 3.53 the GIL is held while `in_transaction` waits for SQLite's lock: a freeze of everything."""
    asked: list[str] = []
    loop_thread = threading.get_ident()
    called, go = threading.Event(), threading.Event()
    is_within = False

    def block() -> int:
        called.set()
        return int(go.wait(10))

    def guard(name: str) -> property:
        plain = getattr(sqlite3.Connection, name)

        def get(self: sqlite3.Connection) -> Any:
            if is_within and threading.get_ident() == loop_thread:
                asked.append(name)
                return 0
            return plain.__get__(self)

        return property(get)

    for name in ("in_transaction", "total_changes"):
        monkeypatch.setattr(Session, name, guard(name), raising=False)

    async with async_pool(path, reset=reset) as pool:
        async with pool.lease() as conn:
            await conn.create_function("block", 0, block)
            await conn.execute(WRITE)
            at_work = asyncio.ensure_future(conn.execute_fetchall("SELECT block() FROM notes"))
            await asyncio.to_thread(called.wait, 10)
            is_within = True
            assert conn.in_transaction
            assert conn.total_changes >= 1
            assert conn.row_factory is None
            at_work.cancel()
            asyncio.get_running_loop().call_later(0.05, go.set)
        async with pool.lease():
            is_within = False
            assert pool.stats().creates == 1
    assert asked == []
