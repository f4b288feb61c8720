"""AiosqliteManager: what an application gets, and what the next lease must not see."""

import asyncio
import importlib.util
import logging
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiosqlite
import anyio
import anyio.to_thread
import pytest

from connectionpools_fastapi import ConnectionPool, PoolConfigError, PoolTimeout
from connectionpools_fastapi.adapters import aiosqlite as adapter
from connectionpools_fastapi.adapters.aiosqlite import AiosqliteManager
from connectionpools_fastapi.adapters.sqlite import SqliteManager
from tests.sqlite_leftovers import COUNT, LEFTOVERS, WRITE, kept, prepare, rows

pytestmark = pytest.mark.anyio

# Counts until it is interrupted.
ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture
def anyio_backend() -> str:
    """Use asyncio only: aiosqlite knows nothing else."""
    return "asyncio"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    yield
    kept.clear()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be ended is given up at once."""
    monkeypatch.setattr(adapter, "END_WITHIN", 0.02)
    monkeypatch.setattr(adapter, "CLOSE_WITHIN", 0.02)
    monkeypatch.setattr(adapter, "INTERRUPT_EVERY", 0.01)


async def within(conn: Any, act: Callable[[sqlite3.Connection], Any]) -> Any:
    """Do something with the connection of sqlite3 that is within, in its thread."""
    return await conn._execute(act, conn._conn)


def thread_of(conn: Any) -> threading.Thread:
    below = getattr(conn, "_lent", conn)
    thread: threading.Thread = getattr(below, "_thread", below)  # before 0.22 it was the thread itself
    return thread


async def ended(thread: threading.Thread) -> None:
    await anyio.to_thread.run_sync(thread.join, 30)
    assert not thread.is_alive()


class Running:
    """A function of SQL that says that it was called; then it returns 0, or blocks until it is let go."""

    def __init__(self, *, blocks: bool = False) -> None:
        self._called = threading.Event()
        self._go = threading.Event()
        if not blocks:
            self._go.set()

    def __call__(self) -> int:
        self._called.set()
        assert self._go.wait(30)
        return 0

    def let_go(self) -> None:
        self._go.set()

    async def begun(self) -> None:
        assert await anyio.to_thread.run_sync(self._called.wait, 30)


def names_in(directory: Path) -> set[str]:
    return {file.name for file in directory.iterdir()}


async def cancel(task: asyncio.Future[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


# --- what a lease leaves behind ---


def fresh(path: Path, name: str) -> object:
    """Return what a new connection shows, which is what the next lease has to see."""
    manager = SqliteManager(path, init=prepare)
    conn = manager.create()
    seen = LEFTOVERS[name].seen(conn)
    manager.clean(conn)
    return seen


async def next_sees(manager: AiosqliteManager, name: str) -> object:
    """Return what one lease shows after another one has left something behind, on the same connection."""
    leftover = LEFTOVERS[name]
    async with ConnectionPool(manager, limit=1) as pool:
        async with pool.lease() as conn:
            await within(conn, leftover.leave)
        async with pool.lease() as again:
            assert pool.stats().creates == 1
            return await within(again, leftover.seen)


@pytest.mark.parametrize("name", LEFTOVERS)
async def test_lease_sees_nothing_the_previous_one_left(path: Path, name: str) -> None:
    expected = fresh(path, name)
    assert await next_sees(AiosqliteManager(path, init=prepare), name) == expected


@pytest.mark.parametrize("name", LEFTOVERS)
async def test_the_smaller_reset_takes_back_only_what_is_open(path: Path, name: str) -> None:
    expected = fresh(path, name)
    seen = await next_sees(AiosqliteManager(path, init=prepare, reset="transaction"), name)
    assert (seen == expected) is LEFTOVERS[name].is_undone_by_either


async def test_lease_sees_nothing_left_by_aiosqlite_methods(path: Path) -> None:
    async with ConnectionPool(AiosqliteManager(path, init=prepare), limit=1) as pool:
        async with pool.lease() as conn:
            conn.row_factory = sqlite3.Row
            await conn.create_function("mine", 0, lambda: 1)
            await conn.set_trace_callback(kept.append)
            await conn.execute("PRAGMA query_only = on")
            cursor = await conn.execute("SELECT text FROM notes")
            await cursor.fetchone()
        kept.clear()
        async with pool.lease() as again:
            assert pool.stats().creates == 1
            await again.execute(WRITE)
            await again.commit()
            assert [row async for row in await again.execute("SELECT count(*) FROM notes")] == [(4,)]
            with pytest.raises(sqlite3.OperationalError, match="no such function"):
                await again.execute("SELECT mine()")
        assert kept == []


@pytest.mark.parametrize("reset", ["session", "transaction"])
async def test_reset_asks_the_thread_once(path: Path, reset: Any) -> None:
    """The smaller reset asks it only where a transaction is open."""
    async with ConnectionPool(AiosqliteManager(path, init=prepare, reset=reset), limit=1) as pool:
        conn: Any
        async with pool.lease() as conn:
            await conn.execute_fetchall("SELECT text FROM notes")
            below, asked = conn._lent, conn._asked
        async with pool.lease() as conn:
            assert below._asked - asked == (reset == "session")
            await conn.execute("BEGIN")
            asked = conn._asked
        async with pool.lease() as conn:
            assert below._asked - asked == 1
            assert not conn.in_transaction
            cursor = await conn.execute("SELECT text FROM notes")
            await cursor.fetchone()
            asked = conn._asked
        async with pool.lease():
            assert below._asked - asked == 1


# --- what still runs ---


@pytest.mark.parametrize("reset", ["session", "transaction"])
async def test_running_statement_ends_before_the_next_lease(path: Path, reset: Any) -> None:
    """The reset interrupts it."""
    running = Running()

    def init(conn: sqlite3.Connection) -> None:
        prepare(conn)
        conn.create_function("running", 0, running)

    async with ConnectionPool(AiosqliteManager(path, init=init, reset=reset), limit=1) as pool:
        async with pool.lease() as conn:
            await conn.execute("BEGIN IMMEDIATE")
            await conn.execute(WRITE)
            task = asyncio.ensure_future(conn.execute_fetchall(f"{ENDLESS} WHERE running() = 0"))
            await running.begun()
            await cancel(task)
        async with pool.lease() as again:
            assert pool.stats().creates == 1
            assert not again.in_transaction
            assert await within(again, COUNT) == [(3,)]
        assert pool.stats().creates == 1


@pytest.mark.parametrize("reset", ["session", "transaction"])
async def test_queued_statements_end_before_the_next_lease(path: Path, reset: Any) -> None:
    """As a cancelled `await conn.execute("BEGIN")`, which may begin its transaction all the same."""
    async with ConnectionPool(AiosqliteManager(path, init=prepare, reset=reset), limit=1) as pool:
        for _ in range(20):
            async with pool.lease() as conn:
                tasks = [asyncio.ensure_future(conn.execute_fetchall(sql)) for sql in ("BEGIN IMMEDIATE", WRITE)]
                await asyncio.sleep(0)
                for task in tasks:
                    await cancel(task)
            async with pool.lease() as again:
                assert not again.in_transaction
                assert await within(again, COUNT) == [(3,)]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("reset", ["session", "transaction"])
async def test_uninterruptible_statement_costs_the_connection(
    path: Path, reset: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The next lease does not wait for its end."""
    running = Running(blocks=True)
    async with ConnectionPool(AiosqliteManager(path, init=prepare, reset=reset), limit=1) as pool:
        async with pool.lease() as conn:
            await conn.create_function("running", 0, running)
            task = asyncio.ensure_future(conn.execute_fetchall("SELECT running()"))
            await running.begun()
            late = asyncio.ensure_future(conn.execute_fetchall(WRITE))
            await asyncio.sleep(0)
            await cancel(task)
        async with pool.lease() as other:
            assert pool.stats().creates == 2
            assert await within(other, COUNT) == [(3,)]
    assert "change failed with" in caplog.text
    assert "a statement of the lease still runs, and cannot be interrupted" in caplog.text

    running.let_go()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        await late  # what waited is skipped
    await ended(thread_of(conn))
    assert names_in(path.parent) == {"app.db"}


# --- clean ---


async def test_destroyed_connection_interrupts_its_statement(path: Path) -> None:
    running = Running()
    async with ConnectionPool(AiosqliteManager(path), limit=1) as pool:
        conn = await pool.acquire()
        await conn.create_function("running", 0, running)
        task = asyncio.ensure_future(conn.execute_fetchall(f"{ENDLESS} WHERE running() = 0"))
        await running.begun()
        pool.discard(conn)
    with pytest.raises(sqlite3.Error):
        await task


async def test_closing_ends_the_thread_and_removes_the_log(path: Path) -> None:
    async with ConnectionPool(AiosqliteManager(path, init=prepare), limit=4, min_free=4) as pool:
        conns = [await pool.acquire() for _ in range(4)]
        for conn in conns:
            await pool.release(conn)
    for conn in conns:
        await ended(thread_of(conn))
    assert names_in(path.parent) == {"app.db"}


async def test_closed_connection_can_be_cleaned_and_is_replaced(path: Path) -> None:
    manager = AiosqliteManager(path)
    async with ConnectionPool(manager, limit=1) as pool:
        async with pool.lease() as conn:
            await conn.close()
        async with pool.lease() as other:
            assert pool.stats().creates == 2
            assert await within(other, rows("SELECT 1")) == [(1,)]
    await manager.clean(conn)


async def test_unclosed_connection_lets_the_process_end(path: Path) -> None:
    manager = AiosqliteManager(path)
    conn = await manager.create()
    assert thread_of(conn).daemon
    await manager.clean(conn)


# --- create and check ---


async def test_a_connection_that_is_made_too_late_is_closed(path: Path) -> None:
    running = Running(blocks=True)
    conns: list[sqlite3.Connection] = []
    threads: list[threading.Thread] = []

    def init(conn: sqlite3.Connection) -> None:
        conns.append(conn)
        threads.append(threading.current_thread())
        running()

    task = asyncio.create_task(AiosqliteManager(path, init=init).create())
    await running.begun()
    task.cancel()
    running.let_go()
    await cancel(task)
    await ended(threads[0])
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        conns[0].execute("SELECT 1")


async def test_connection_of_a_cancelled_create_is_closed(path: Path) -> None:
    """The connection becomes ready after the cancellation."""
    conns: list[sqlite3.Connection] = []
    threads: list[threading.Thread] = []
    ready = threading.Event()

    def init(conn: sqlite3.Connection) -> None:
        conns.append(conn)
        threads.append(threading.current_thread())
        ready.set()

    task = asyncio.create_task(AiosqliteManager(path, init=init).create())
    await asyncio.sleep(0)
    assert ready.wait(30)  # the loop stands still meanwhile, so no caller has got the connection yet
    await cancel(task)
    await ended(threads[0])
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        conns[0].execute("SELECT 1")


def test_create_cancelled_as_its_loop_ends_is_quiet(path: Path) -> None:
    """Its thread would otherwise answer to a closed loop, and print a traceback."""
    threads: list[threading.Thread] = []
    opening, is_let_go = threading.Event(), threading.Event()

    def init(conn: sqlite3.Connection) -> None:  # noqa: ARG001 - as it is called
        threads.append(threading.current_thread())
        opening.set()
        is_let_go.wait(30)

    async def leave() -> None:
        task = asyncio.create_task(AiosqliteManager(path, init=init).create())
        await asyncio.to_thread(opening.wait, 30)
        task.cancel()
        asyncio.get_running_loop().call_soon(is_let_go.set)

    asyncio.run(leave())
    threads[0].join(30)
    assert not threads[0].is_alive()


async def test_a_connection_is_good_as_long_as_its_file_is_there(path: Path) -> None:
    manager = AiosqliteManager(path)
    conn = await manager.create()
    assert await manager.check(conn)
    for file in path.parent.iterdir():
        file.unlink()
    assert not await manager.check(conn)
    await manager.clean(conn)


async def test_options_and_pragmas_match_the_sqlite_manager(path: Path) -> None:
    manager = AiosqliteManager(path, pragmas={"cache_size": -10}, timeout=1, isolation_level=None, iter_chunk_size=7)
    conn: Any
    async with ConnectionPool(manager, limit=1) as pool, pool.lease() as conn:
        names = ("journal_mode", "synchronous", "foreign_keys", "cache_size", "busy_timeout")
        found = [(await within(conn, rows(f"PRAGMA {name}")))[0][0] for name in names]
        assert found == ["wal", 1, 1, -10, 1000]
        assert conn.isolation_level is None
        assert (await conn.cursor()).iter_chunk_size == 7


async def test_what_is_opened_read_only_cannot_be_written(path: Path) -> None:
    fresh(path, "a lock")
    async with ConnectionPool(AiosqliteManager(path, read_only=True), limit=1) as pool, pool.lease() as conn:
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await conn.execute(WRITE)


async def test_callable_path_is_called_for_each_connection(tmp_path: Path) -> None:
    """The callable may be plain or async."""
    asked = iter(["first.db", "second.db", "third.db"])

    def plain() -> Path:
        return tmp_path / next(asked)

    async def later() -> Path:
        await anyio.lowlevel.checkpoint()
        return tmp_path / next(asked)

    for manager in (AiosqliteManager(plain), AiosqliteManager(later), AiosqliteManager(later)):
        await manager.clean(await manager.create())
    assert names_in(tmp_path) == {"first.db", "second.db", "third.db"}


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"reset": "all"}, "reset must be"),
        ({"pragmas": {"foregn_keys": 1}}, "this SQLite has no PRAGMA foregn_keys"),
        ({"database": ":memory:"}, "each connection to a database in memory would have one of its own"),
        ({"init": anyio.sleep}, "init must be a `def`"),
    ],
)
def test_nonsense_is_refused_in_one_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(PoolConfigError, match=f"^AiosqliteManager: {text}") as refused:
        AiosqliteManager(**{"database": "app.db", **options})
    assert "\n" not in str(refused.value)


async def test_lasting_mistake_fails_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="connectionpools_fastapi")
    pool = ConnectionPool(AiosqliteManager(tmp_path / "secret" / "app.db"), min_free=1)
    with pytest.raises(PoolConfigError, match=r"AiosqliteManager: the directory of the file does not exist") as refused:
        await pool.open()
    assert "secret" not in str(refused.value) + caplog.text


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_with_trio_one_line_says_what_to_use_instead(path: Path) -> None:
    pool = ConnectionPool(AiosqliteManager(path), min_free=1)
    with pytest.raises(PoolConfigError, match=r"aiosqlite needs asyncio, .* use SqliteManager"):
        await pool.open()


@pytest.mark.parametrize("found", ["nothing", "something else"])
def test_without_aiosqlite_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    if found == "nothing":
        monkeypatch.setitem(sys.modules, "aiosqlite", None)
    else:
        monkeypatch.delattr(aiosqlite.Connection, "_execute")
    spec = importlib.util.spec_from_file_location(adapter.__name__, adapter.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"pip install 'connectionpools-fastapi\[aiosqlite\]'") as refused:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert "\n" not in str(refused.value)


async def test_leases_are_as_fair_as_any(path: Path) -> None:
    async with ConnectionPool(AiosqliteManager(path), limit=1) as pool, pool.lease():
        with pytest.raises(PoolTimeout):
            await asyncio.create_task(pool.acquire(timeout=0))
