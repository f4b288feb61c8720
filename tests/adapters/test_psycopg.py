"""PsycopgManager: each lease finds a connection as the first one did; what is broken is not leased again."""

import asyncio
import errno
import importlib.util
import inspect
import re
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import count
from typing import Any

import anyio
import psycopg
import pytest
import trio
from psycopg import AsyncClientCursor, AsyncConnection, AsyncServerCursor, IsolationLevel
from psycopg.connection_async import _INTERRUPTED
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from psycopg.waiting import WAIT_R

from connectionpools_fastapi import ConnectionPool, NotLeased, PoolConfigError, ResourceUnavailable
from connectionpools_fastapi.adapters import _readiness
from connectionpools_fastapi.adapters._psycopg_address import read
from connectionpools_fastapi.adapters._psycopg_scripts import ask
from connectionpools_fastapi.adapters._readiness import Readiness
from connectionpools_fastapi.adapters.psycopg import PsycopgManager, SyncPsycopgManager
from tests import psycopg_pools
from tests.leak_servers import POSTGRES
from tests.psycopg_pools import (
    WAIT,
    Connection,
    Pool,
    fixture_anyio_backend,  # noqa: F401
    pid,
    value,
)
from tests.wheel_servers import PASSWORD, free_port

pytestmark = pytest.mark.anyio

Act = Callable[[Connection], Awaitable[Any]]

pool_of = partial(psycopg_pools.pool_of, check_after=0)


async def run(connection: Connection, *queries: Any) -> None:
    """Run statements, each for itself and committed."""
    for query in queries:
        await connection.execute(query)
        await connection.commit()


async def after(pool: Pool, leave: Act, look: Act) -> Any:
    """Let one lease leave something behind; return what the next one sees on the same connection."""
    async with pool.lease() as connection:
        before = pid(connection)
        await leave(connection)
    async with pool.lease() as connection:
        assert pid(connection) == before
        return await look(connection)


@asynccontextmanager
async def busy(connection: Connection, url: str) -> AsyncIterator[tuple[asyncio.Task[Any], Connection]]:
    """Keep a connection waiting for the server; yield the task that waits, and another connection that sees it."""
    task = asyncio.create_task(connection.execute("SELECT pg_sleep(600)"))
    async with pool_of(url) as watcher, watcher.lease() as other:
        await until_running(other, pid(connection), "pg_sleep(600)")
        yield task, other


async def assert_destroyed_after(pool: Pool, leave: Act) -> None:
    """Let one lease leave a connection that cannot be used again; see that the next one soon gets another one."""
    async with asyncio.timeout(WAIT / 2), pool.lease() as connection:
        before = pid(connection)
        await leave(connection)
    assert sum(pool.stats().discards.values()) == 1
    async with pool.lease() as connection:
        assert pid(connection) != before
        assert await value(connection, "SELECT 7") == 7
        await until_gone(connection, before)
    assert pool.stats().cleans == 1


async def until_gone(connection: Connection, backend: int) -> None:
    """Wait until the server has ended a session."""
    async with asyncio.timeout(WAIT):
        while await value(connection, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", backend):
            await connection.rollback()


async def until_running(connection: Connection, backend: int, what: str) -> None:
    """Wait until a session is in the midst of a query."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND state = 'active' AND query LIKE %s"
    async with asyncio.timeout(WAIT):
        while not await value(connection, query, backend, f"%{what}%"):
            await connection.rollback()


# --- what a lease leaves behind ---------------------------------------------------------------------

each_reset = pytest.mark.parametrize("reset", ["session", "transaction"])


async def idle_and_empty(connection: Connection) -> None:
    assert connection.info.transaction_status == TransactionStatus.IDLE
    assert await value(connection, "SELECT to_regclass('left_behind')") is None


@each_reset
async def test_manual_begin_in_autocommit_is_rolled_back(postgres_url: str, reset: str) -> None:
    async def leave(connection: Connection) -> None:
        await connection.execute("BEGIN")
        await connection.execute("CREATE TABLE left_behind ()")

    async with pool_of(postgres_url, reset=reset, autocommit=True) as pool:
        await after(pool, leave, idle_and_empty)


@each_reset
async def test_server_cursor_ends_with_its_transaction(postgres_url: str, reset: str) -> None:
    async def leave(connection: Connection) -> None:
        await connection.execute("DECLARE mine CURSOR FOR SELECT generate_series(1, 1000)")
        assert await value(connection, "SELECT count(*) FROM pg_cursors WHERE name = 'mine'") == 1

    async with pool_of(postgres_url, reset=reset) as pool:
        assert await after(pool, leave, lambda _: value(_, "SELECT count(*) FROM pg_cursors WHERE name = 'mine'")) == 0


# What leases may set on a connection itself: these as attributes, the others by `await connection.set_...`.
ATTRIBUTES = ("row_factory", "cursor_factory", "server_cursor_factory", "prepare_threshold", "prepared_max")
MODES = ("autocommit", "isolation_level", "read_only", "deferrable")


def settings(connection: Connection) -> dict[str, Any]:
    return {name: getattr(connection, name) for name in (*ATTRIBUTES, *MODES)}


@each_reset
@pytest.mark.parametrize("autocommit", [False, True])
async def test_attributes_of_the_connection_are_restored(postgres_url: str, reset: str, *, autocommit: bool) -> None:
    async def init(connection: Connection) -> None:
        await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)

    async def leave(connection: Connection) -> None:
        connection.row_factory = dict_row
        connection.cursor_factory = AsyncClientCursor
        connection.server_cursor_factory = type("Mine", (AsyncServerCursor,), {})
        connection.prepare_threshold = None
        connection.prepared_max = 7
        await connection.set_autocommit(not autocommit)
        await connection.set_isolation_level(IsolationLevel.SERIALIZABLE)
        await connection.set_read_only(True)
        await connection.set_deferrable(True)
        assert all(value != settings(connection)[name] for name, value in first.items())

    async with pool_of(postgres_url, reset=reset, init=init, autocommit=autocommit) as pool:
        async with pool.lease() as connection:
            first = settings(connection)
        assert first["autocommit"] is autocommit
        assert first["isolation_level"] is IsolationLevel.REPEATABLE_READ

        async def look(connection: Connection) -> None:
            assert settings(connection) == first
            assert connection.info.transaction_status == TransactionStatus.IDLE
            level = await value(connection, "SHOW transaction_isolation")
            assert level == ("read committed" if autocommit else "repeatable read")

        await after(pool, leave, look)


@each_reset
async def test_handlers_of_a_lease_hear_nothing_of_the_next_one(postgres_url: str, reset: str) -> None:
    heard: list[str] = []
    always: list[str] = []

    async def init(connection: Connection) -> None:
        connection.add_notice_handler(lambda notice: always.append(str(notice.message_primary)))

    async def leave(connection: Connection) -> None:
        connection.add_notice_handler(lambda notice: heard.append(str(notice.message_primary)))
        connection.add_notify_handler(lambda note: heard.append(note.payload))

    async def look(connection: Connection) -> None:
        await run(connection, "LISTEN gossip", "NOTIFY gossip, 'secret'", "DO $$ BEGIN RAISE NOTICE 'loud'; END $$")

    async with pool_of(postgres_url, reset=reset, init=init) as pool:
        await after(pool, leave, look)
        assert heard == []
        assert always == ["loud"]


async def test_unread_notifications_miss_the_next_lease(postgres_url: str) -> None:
    async def leave(connection: Connection) -> None:
        await run(connection, "LISTEN gossip", "NOTIFY gossip, 'secret'")
        await value(connection, "SELECT 1")

    async def look(connection: Connection) -> list[str]:
        return [note.payload async for note in connection.notifies(timeout=0)]

    async with pool_of(postgres_url) as pool:
        assert await after(pool, leave, look) == []


async def prepare_by_itself(connection: Connection, times: int = 8) -> int:
    """Execute the same statement until psycopg prepares it; return how many it has on the server."""
    for _ in range(times):
        assert await value(connection, "SELECT %s::int", 7) == 7
    found: int = await value(connection, "SELECT count(*) FROM pg_prepared_statements WHERE NOT from_sql")
    return found


async def test_prepared_statements_never_fail_in_a_later_lease(postgres_url: str) -> None:
    """psycopg has prepared them by itself."""
    async with pool_of(postgres_url) as pool:
        async with pool.lease() as first:
            backend = pid(first)
        for _ in range(3):  # psycopg itself notices the first DISCARD ALL only
            async with pool.lease() as connection:
                assert pid(connection) == backend
                assert await prepare_by_itself(connection) == 1
                await connection.commit()
        async with pool.lease() as connection:
            assert await value(connection, "SELECT count(*) FROM pg_prepared_statements") == 0


async def test_reset_transaction_keeps_what_psycopg_has_prepared(postgres_url: str) -> None:
    async def leave(connection: Connection) -> None:
        assert await prepare_by_itself(connection) == 1
        await connection.commit()

    async with pool_of(postgres_url, reset="transaction") as pool:
        assert await after(pool, leave, lambda connection: prepare_by_itself(connection, 1)) == 1


async def test_reset_transaction_asks_only_in_a_transaction(postgres_url: str) -> None:
    manager = PsycopgManager(postgres_url, reset="transaction")
    async with pool_of(postgres_url) as observers, observers.lease() as observer:
        connection = await manager.create()
        try:
            query = "SELECT query FROM pg_stat_activity WHERE pid = %s"
            await run(connection, "SELECT 'mine'")
            await manager.change(connection)
            assert await value(observer, query, pid(connection)) == "COMMIT"
            await connection.execute("SELECT 'mine'")
            await manager.change(connection)
            await observer.rollback()
            assert await value(observer, query, pid(connection)) == "ROLLBACK"
        finally:
            await manager.clean(connection)


@pytest.mark.parametrize(("has_transaction", "begin"), [(False, "DISCARD ALL"), (True, "ROLLBACK; CLOSE ALL;")])
async def test_reset_asks_the_server_once(postgres_url: str, begin: str, *, has_transaction: bool) -> None:
    """One round trip also ends a transaction and drops prepared statements."""
    manager = PsycopgManager(postgres_url)
    async with pool_of(postgres_url, autocommit=True) as observers, observers.lease() as observer:
        connection = await manager.create()

        async def last() -> str:
            query = "SELECT query FROM pg_stat_activity WHERE pid = %s"
            return " ".join((await value(observer, query, pid(connection))).split())

        try:
            assert await prepare_by_itself(connection) == 1
            if not has_transaction:
                await connection.commit()
            await manager.change(connection)
            assert (await last()).startswith(begin)
            await connection.execute("SELECT 'mine'")
            assert await last() == "SELECT 'mine'"  # and no DEALLOCATE after it
        finally:
            await manager.clean(connection)


@pytest.mark.parametrize("last", ["SELECT 1", "SELECT 1 / 0"])
async def test_reset_in_a_transaction_undoes_the_session(postgres_url: str, last: str) -> None:
    leftovers = [leftover for leftover in POSTGRES.leftovers.values() if leftover.of_session]

    async def leave(connection: Connection) -> None:
        await run(connection, *(leftover.leave for leftover in leftovers))
        with suppress(psycopg.Error):
            await connection.execute(last)

    async def look(connection: Connection) -> list[str]:
        return [each.leave for each in leftovers if each.is_seen(await value(connection, each.question))]

    async with pool_of(postgres_url) as pool:
        assert await after(pool, leave, look) == []


# --- what cannot be used again ----------------------------------------------------------------------


async def close(connection: Connection) -> None:
    await connection.close()


async def end_from_the_server(connection: Connection) -> None:
    with pytest.raises(psycopg.OperationalError):
        await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


async def enter(block: Any) -> None:
    await block.__aenter__()
    KEPT.append(lambda: block.__aexit__(None, None, None))


async def leave_copy_unfinished(connection: Connection) -> None:
    await run(connection, "CREATE TEMP TABLE mine (n int)")
    await enter(connection.cursor().copy("COPY mine FROM STDIN"))
    assert connection.info.transaction_status == TransactionStatus.ACTIVE


async def leave_pipeline(connection: Connection) -> None:
    await enter(connection.pipeline())


async def leave_a_task_listening(connection: Connection) -> None:
    await run(connection, "LISTEN gossip")
    task = asyncio.ensure_future(anext(connection.notifies()))
    await asyncio.sleep(0)
    assert connection.lock.locked()
    assert connection.info.transaction_status == TransactionStatus.IDLE
    KEPT.append(task.cancel)


# How to leave after all what a test has entered: to have it collected meanwhile would be another test.
KEPT: list[Any] = []


@each_reset
@pytest.mark.parametrize(
    "leave",
    [
        close,
        end_from_the_server,
        leave_copy_unfinished,
        leave_pipeline,
        leave_a_task_listening,
    ],
)
async def test_what_cannot_be_reset_is_destroyed(postgres_url: str, reset: str, leave: Act) -> None:
    async with pool_of(postgres_url, reset=reset) as pool:
        await assert_destroyed_after(pool, leave)
    while KEPT:
        with suppress(psycopg.Error, NotLeased):
            left = KEPT.pop()()
            if inspect.isawaitable(left):
                await left


async def cancel_once(task: asyncio.Task[Any], scope: anyio.CancelScope) -> None:
    del scope
    task.cancel()


async def cancel_twice(task: asyncio.Task[Any], scope: anyio.CancelScope) -> None:
    del scope
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()


async def cancel_scope(task: asyncio.Task[Any], scope: anyio.CancelScope) -> None:
    del task
    scope.cancel()


def sleeping_until(cancel: Callable[..., Awaitable[None]], watcher: Pool) -> Act:
    """Return a lease that cancels its query once it runs."""

    async def leave(connection: Connection) -> None:
        scope = anyio.CancelScope()

        async def sleep() -> None:
            with scope:
                await connection.execute("SELECT pg_sleep(600)")

        task = asyncio.create_task(sleep())
        async with watcher.lease() as other:
            await until_running(other, pid(connection), "pg_sleep(600)")
        await cancel(task, scope)
        await asyncio.wait([task], timeout=WAIT)
        assert task.cancelled() or scope.cancelled_caught

    return leave


@each_reset
@pytest.mark.parametrize("cancel", [cancel_once, cancel_scope])
@pytest.mark.parametrize("autocommit", [False, True])
async def test_cancelled_query_ends_and_its_connection_stays(
    postgres_url: str, reset: str, cancel: Callable[..., Awaitable[None]], *, autocommit: bool
) -> None:
    async with (
        pool_of(postgres_url) as watcher,
        pool_of(postgres_url, reset=reset, autocommit=autocommit) as pool,
    ):
        await after(pool, sleeping_until(cancel, watcher), idle_and_empty)
        assert pool.stats().creates == 1


@each_reset
@pytest.mark.parametrize(
    ("cancel", "is_safe"), [(cancel_twice, True), (cancel_once, False)], ids=["cancelled twice", "libpq before 17"]
)
async def test_query_cut_off_unsafely_costs_its_connection(
    postgres_url: str,
    reset: str,
    cancel: Callable[..., Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_safe: bool,
) -> None:
    monkeypatch.setattr(psycopg.capabilities, "has_cancel_safe", lambda *_: is_safe)
    async with pool_of(postgres_url) as watcher, pool_of(postgres_url, reset=reset) as pool:
        await assert_destroyed_after(pool, sleeping_until(cancel, watcher))


async def test_query_cancelled_twice_ends_on_the_server(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older libpq waits for a free thread before it cancels."""
    monkeypatch.setattr(psycopg.capabilities, "has_cancel_safe", lambda: False)
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    is_free = threading.Event()
    manager = PsycopgManager(postgres_url)
    connection = await manager.create()
    backend = pid(connection)
    async with busy(connection, postgres_url) as (task, other):
        blocker = loop.run_in_executor(None, is_free.wait)
        await cancel_twice(task, anyio.CancelScope())
        await asyncio.wait([task], timeout=WAIT)
        is_free.set()
        await blocker
        await manager.clean(connection)
        await until_gone(other, backend)


async def test_connection_used_by_a_forgotten_task_is_destroyed(postgres_url: str) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def leave(connection: Connection) -> None:
        tasks.append(asyncio.create_task(connection.execute("SELECT pg_sleep(600)")))
        async with watcher.lease() as other:
            await until_running(other, pid(connection), "pg_sleep(600)")

    async with pool_of(postgres_url) as watcher, pool_of(postgres_url) as pool:
        await assert_destroyed_after(pool, leave)
        async with asyncio.timeout(WAIT):
            with pytest.raises(psycopg.Error):
                await tasks[0]


async def test_clean_waits_for_the_cancel_of_a_cut_off_query(postgres_url: str) -> None:
    manager = PsycopgManager(postgres_url)
    connection = await manager.create()
    async with busy(connection, postgres_url) as (task, _):
        pass
    await cancel_twice(task, anyio.CancelScope())
    await asyncio.wait([task], timeout=WAIT)
    await manager.clean(connection)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [other for other in others if "cancel_safe" in repr(other)]


# --- waiting for the server -------------------------------------------------------------------------


@pytest.fixture(params=["epoll", "no epoll"])
def each_wait(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait in the way of this package, and in that of psycopg, as where the operating system has no epoll."""
    if request.param == "no epoll":
        monkeypatch.delattr("select.epoll")


@pytest.mark.usefixtures("each_wait")
async def test_what_a_socket_cannot_take_at_once_is_sent_and_read(postgres_url: str) -> None:
    size = 20_000_000
    async with asyncio.timeout(WAIT), pool_of(postgres_url) as pool, pool.lease() as connection:
        assert await value(connection, "SELECT length(%s)", "x" * size) == size
        assert await value(connection, "SELECT repeat('x', %s)", size) == "x" * size


@pytest.mark.usefixtures("each_wait")
async def test_copies_and_pipelines_work(postgres_url: str) -> None:
    row = "x" * 10_000
    async with asyncio.timeout(WAIT), pool_of(postgres_url) as pool, pool.lease() as connection:
        await connection.execute("CREATE TEMP TABLE mine (thing text)")
        cursor = connection.cursor()
        async with cursor.copy("COPY mine FROM STDIN") as copy:
            for _ in range(1000):
                await copy.write_row([row])
        async with cursor.copy("COPY mine TO STDOUT") as copy:
            assert [line async for line in copy.rows()] == [(row,)] * 1000
        async with connection.pipeline():
            cursors = [await connection.execute("SELECT %s", [number]) for number in range(100)]
            assert [await cursor.fetchone() for cursor in cursors] == [(number,) for number in range(100)]


@pytest.mark.usefixtures("each_wait")
async def test_a_cancelled_query_ends_on_the_server(postgres_url: str) -> None:
    async with asyncio.timeout(WAIT), pool_of(postgres_url) as pool, pool.lease() as connection:
        async with busy(connection, postgres_url) as (task, _):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert connection.pgconn.transaction_status == TransactionStatus.INERROR


@pytest.mark.usefixtures("each_wait")
async def test_closing_a_connection_wakes_its_waiter(postgres_url: str) -> None:
    """The waiter gets an OperationalError."""
    manager = PsycopgManager(postgres_url)
    connection = await manager.create()
    backend = pid(connection)
    async with busy(connection, postgres_url) as (task, other):
        await connection.close()
        async with asyncio.timeout(WAIT):
            with pytest.raises(psycopg.OperationalError):
                await task
        await other.execute("SELECT pg_terminate_backend(%s)", [backend])


async def test_wait_without_waiting_yields_as_psycopg_does(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tasks have their turn as often."""
    monkeypatch.setattr("psycopg.waiting.MAX_BUSY_TIME", -1, raising=False)  # newer versions: at each chance
    manager = PsycopgManager(postgres_url)
    connection = await manager.create()
    turns = 0

    def take_turn() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(take_turn)

    async def turns_of(wait: Callable[[Any], Awaitable[Any]]) -> int:
        before = turns
        for _ in range(100):
            await wait(_ for _ in range(0))
        return turns - before

    take_turn()
    assert await turns_of(connection.wait) == await turns_of(partial(AsyncConnection.wait, connection))
    await manager.clean(connection)


@pytest.mark.usefixtures("each_wait")
@pytest.mark.parametrize("interruption", _INTERRUPTED)
async def test_interrupted_reading_ends_the_query_on_the_server(
    postgres_url: str, interruption: type[BaseException]
) -> None:
    def read() -> Generator[Any, Any, None]:
        yield WAIT_R
        raise interruption

    manager = PsycopgManager(postgres_url)
    connection = await manager.create()
    connection.pgconn.send_query(b"SELECT pg_sleep(600)")
    async with asyncio.timeout(WAIT):
        with pytest.raises(interruption):
            await connection.wait(read())
        fetch = psycopg.generators.fetch_many(connection.pgconn)
        (result,) = await connection.wait(fetch)
        assert "canceling statement" in result.error_message.decode()
        await manager.clean(connection)


@pytest.mark.usefixtures("each_wait")
async def test_a_slow_reset_does_not_keep_the_loop_busy(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = PsycopgManager(postgres_url)
    connection: Any = await manager.create()
    selector: Any = asyncio.get_running_loop()._selector  # type: ignore[attr-defined] # of asyncio's own loop
    turns = count(1)
    select = selector.select
    monkeypatch.setattr(selector, "select", lambda timeout: next(turns) and select(timeout))
    await connection.tend(connection.run(ask(connection, b"SELECT pg_sleep(0.3)")))
    assert next(turns) < 100
    await manager.clean(connection)


@pytest.mark.usefixtures("each_wait")
async def test_clean_ends_the_watch_of_the_socket(
    postgres_url: str,
) -> None:
    """The next socket may get its number."""

    def read() -> Generator[Any, Any, None]:
        yield WAIT_R

    async def read_again_and_again() -> None:  # as psycopg does at the end of a stream that was left early
        for _ in range(5):
            await connection.wait(read(), interval=WAIT)

    manager = PsycopgManager(postgres_url)
    async with asyncio.timeout(WAIT):
        connection = await manager.create()
        number = connection.fileno()
        reading = asyncio.create_task(read_again_and_again())
        await asyncio.sleep(0)
        await manager.clean(connection)
        assert not asyncio.get_running_loop().remove_reader(number)
        await reading


async def test_where_no_epoll_is_to_be_had_connections_work(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("select.epoll", refuse)
    async with pool_of(postgres_url) as pool, pool.lease() as connection:
        assert await value(connection, "SELECT 1") == 1


async def test_queries_work_where_epoll_refuses_the_socket(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with pool_of(postgres_url) as pool, pool.lease() as connection:
        monkeypatch.setattr(Readiness, "wait_readable", refuse)
        assert await value(connection, "SELECT 1") == 1


async def test_a_pool_that_is_closed_keeps_no_epoll(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_readiness, "LOOK_EVERY", 0.01)
    loop = asyncio.get_running_loop()
    is_gone = asyncio.Event()
    async with (
        pool_of(postgres_url) as pool,
        pool_of(postgres_url) as another,
        pool.lease() as connection,
        another.lease() as other,
    ):
        assert await value(connection, "SELECT 1") == await value(other, "SELECT 1")
        readiness: Any = connection.tasks.readiness  # type: ignore[attr-defined] # ours
        assert readiness is other.tasks.readiness is _readiness.readiness_of(loop)  # type: ignore[attr-defined] # as above
        weakref.finalize(readiness, is_gone.set)
        del readiness
    async with asyncio.timeout(WAIT):
        await is_gone.wait()


def test_detached_connection_works_in_another_loop(postgres_url: str) -> None:
    async def detach() -> Connection:
        async with pool_of(postgres_url) as pool:
            async with pool.lease() as connection:
                assert await value(connection, "SELECT 1") == 1
            connection = await pool.acquire()
            pool.detach(connection)
            return connection

    async def use(connection: Connection) -> None:
        async with connection:
            assert await value(connection, "SELECT 1") == 1

    connection = asyncio.run(detach())
    asyncio.run(use(connection))


async def test_cleaning_what_is_gone_already_raises_nothing(postgres_url: str) -> None:
    manager = PsycopgManager(postgres_url)
    connection = await manager.create()
    await end_from_the_server(connection)
    await manager.clean(connection)
    await manager.clean(connection)
    assert connection.closed


# --- connecting -------------------------------------------------------------------------------------


async def test_a_callable_is_asked_anew_for_each_connection(postgres_url: str) -> None:
    asked: list[str] = []

    async def dsn() -> str:
        asked.append("again")
        return postgres_url

    def plain_dsn() -> str:
        asked.append("again")
        return postgres_url

    for source in (dsn, plain_dsn):
        asked.clear()
        async with pool_of(source, limit=2) as pool:
            one, two = await pool.acquire(), await pool.acquire()
            assert asked == ["again", "again"]
            await pool.release(one)
            await pool.release(two)


async def test_options_go_to_psycopg(postgres_url: str) -> None:
    """The connect timeout may be in the URL or in the options."""
    options: dict[str, Any] = {"row_factory": dict_row, "application_name": "mine"}
    async with pool_of(postgres_url, **options) as pool, pool.lease() as connection:
        row = await (await connection.execute("SHOW application_name")).fetchone()
        assert row == {"application_name": "mine"}
        assert connection.info.get_parameters()["connect_timeout"] == "5"
    for dsn, options in ((f"{postgres_url}?connect_timeout=7", {}), (postgres_url, {"connect_timeout": 7})):
        async with pool_of(dsn, **options) as pool, pool.lease() as connection:
            assert connection.info.get_parameters()["connect_timeout"] == "7"


async def test_connection_class_works_as_lent(postgres_url: str) -> None:
    class Mine(AsyncConnection[Any]):
        async def count(self) -> Any:
            return await value(self, "SELECT count(*) FROM pg_class")

    async with pool_of(postgres_url, connection_class=Mine) as pool:
        async with pool.lease() as connection:
            assert isinstance(connection, Mine)
            assert await connection.count() > 0
        with pytest.raises(NotLeased):
            await connection.count()
    with pytest.raises(PoolConfigError, match=r"a subclass of psycopg\.AsyncConnection$"):
        PsycopgManager(connection_class=psycopg.Connection)  # type: ignore[arg-type] # as tested


async def test_lease_begins_with_the_role_of_connecting(postgres_url: str) -> None:
    """It begins outside of a transaction, although `init` has read."""

    async def init(connection: Connection) -> None:
        assert await value(connection, "SELECT current_user") == "pg_monitor"

    async def look(connection: Connection) -> None:
        assert connection.info.transaction_status == TransactionStatus.IDLE
        assert await value(connection, "SELECT current_user") == "pg_monitor"

    async with pool_of(postgres_url, init=init, options="-c role=pg_monitor") as pool:
        async with pool.lease() as connection:
            await look(connection)
        await after(pool, lambda connection: run(connection, "SET ROLE postgres"), look)


async def test_a_failing_init_closes_the_connection(postgres_url: str) -> None:
    made: list[Connection] = []

    async def init(connection: Connection) -> None:
        made.append(connection)
        raise LookupError

    with pytest.raises(LookupError):
        await PsycopgManager(postgres_url, init=init).create()
    assert made[0].closed


MISTAKES: dict[str, tuple[Callable[[str], Any], str]] = {
    "password": (lambda url: url.replace(PASSWORD, "Sw0rdfish"), "user and password"),
    "no password": (lambda url: url.replace(f":{PASSWORD}", ""), "user and password"),
    "user": (lambda url: url.replace("postgres:", "nobody:"), "user and password"),
    "database": (lambda url: f"{url}-Sw0rdfish", "no such database"),
    "port": (lambda url: re.sub(r":\d+/", ":99999/", url), "check the port"),
    "value": (lambda url: f"{url}?sslmode=Sw0rdfish", "check the port"),
    "setting": (lambda url: f"{url}?options=-cSw0rdfish%3D1", "check the port"),
    "not a URL": (lambda url: url.replace("postgresql://", "postgresql:/"), "cannot be read"),
    "option": (lambda url: f"{url}?Sw0rdfish=1", "none of libpq's options"),
    "option without a value": (lambda url: f"{url}?Sw0rdfish", "none of libpq's options"),
    "of SQLAlchemy": (lambda url: url.replace("postgresql://", "postgresql+psycopg://"), "how SQLAlchemy writes it"),
    "of MySQL": (lambda url: url.replace("postgresql://", "mysql://"), "write postgresql://"),
    "@": (lambda url: url.replace(PASSWORD, f"{PASSWORD}@Sw0rdfish"), "Write %40 for it"),
    "@ and /": (lambda url: url.replace(PASSWORD, f"{PASSWORD}@Sw0rdfish/"), "percent-encode"),
    "/": (lambda url: url.replace(PASSWORD, f"Sw0rdfish/{PASSWORD}"), "Write %2F for it"),
    "/ without a database": (lambda _: "postgresql://postgres:Sw0rdfish/1@127.0.0.1", "Write %2F for it"),
    "%": (lambda url: url.replace(PASSWORD, "Sw0rdfish%"), "percent-encode"),
    "connect timeout": (lambda url: f"{url}?connect_timeout=Sw0rdfish", "a value that psycopg cannot read"),
    "nothing": (lambda _: lambda: None, "must return a str"),
}


@pytest.mark.parametrize("kind", [PsycopgManager, SyncPsycopgManager])
@pytest.mark.parametrize(("spoil", "remedy"), MISTAKES.values(), ids=MISTAKES)
async def test_mistake_is_one_line_without_secrets(
    postgres_url: str, kind: Any, spoil: Callable[[str], Any], remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool: Any = ConnectionPool(kind(spoil(postgres_url)))
    async with pool:
        with pytest.raises(PoolConfigError) as error:
            await pool.acquire()
    assert remedy in str(error.value)
    shown = f"{error.value} {caplog.text} {pool!r} {pool.stats()}"
    assert "Sw0rdfish" not in shown
    assert PASSWORD not in shown
    assert "\n" not in str(error.value)


async def test_a_server_that_is_not_there_may_come_back() -> None:
    async with pool_of(f"postgresql://postgres:{PASSWORD}@127.0.0.1:{free_port()}/postgres") as pool:
        with pytest.raises(ResourceUnavailable) as error:
            await pool.acquire()
    assert isinstance(error.value.__cause__, psycopg.OperationalError)
    assert PASSWORD not in str(error.value)


@pytest.mark.parametrize("raw", ["p#ss", "p?ss", "p:ss", "p[ss", "p%40ss%2F"])
def test_password_that_libpq_can_read_is_taken(raw: str) -> None:
    parts, mistake = read(f"postgresql://user:{raw}@host/name?application_name=a@b")
    assert mistake is None
    assert parts["host"] == "host"


def test_what_makes_no_sense_is_refused_at_once() -> None:
    with pytest.raises(PoolConfigError, match=r"AsyncConnection.connect takes no command_timeout, sslmod$"):
        PsycopgManager("", sslmod="require", command_timeout=3, sslmode="require", row_factory=dict_row)
    wrong: Any = "everything"
    with pytest.raises(PoolConfigError, match="'session' or 'transaction'"):
        PsycopgManager("", reset=wrong)
    nothing: Any = None
    with pytest.raises(PoolConfigError, match="a str or a callable; got NoneType"):
        PsycopgManager(nothing)


def test_another_event_loop_than_that_of_asyncio_is_refused() -> None:
    async def main() -> None:
        async with ConnectionPool(PsycopgManager("")) as pool:
            with pytest.raises(PoolConfigError, match="asyncio only"):
                await pool.acquire()

    trio.run(main)


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (lambda patch: patch.setitem(sys.modules, "psycopg", None), "psycopg"),
        (lambda patch: patch.setattr(psycopg, "__version__", "3.1.20"), "found 3.1.20"),
    ],
)
def test_missing_or_old_driver_is_told_with_the_remedy(
    load: Callable[[pytest.MonkeyPatch], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(monkeypatch)
    found = importlib.util.find_spec("connectionpools_fastapi.adapters.psycopg")
    assert found is not None
    assert found.loader is not None
    with pytest.raises(ImportError, match=r"3\.2 or newer and libpq: pip install 'connectionpools") as error:
        found.loader.exec_module(importlib.util.module_from_spec(found))
    assert said in str(error.value.__cause__)
