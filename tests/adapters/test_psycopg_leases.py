"""PsycopgManager: what a lease keeps in hand is dead afterwards, and what it loses is told."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, AsyncCursor
from psycopg.adapt import PyFormat
from psycopg.types import TypeInfo
from psycopg.types.numeric import FloatLoader
from psycopg.types.string import StrDumper

from connectionpools_fastapi import ConnectionPool, NotLeased
from connectionpools_fastapi.adapters.psycopg import PsycopgManager
from tests.psycopg_pools import (
    WAIT,
    Act,
    Connection,
    each_reset,
    fixture_anyio_backend,  # noqa: F401
    pid,
    pool_of,
    value,
)

pytestmark = pytest.mark.anyio

# --- what a lease keeps -----------------------------------------------------------------------------


class Kept:
    """A thing that a lease keeps: how it is used, and how it is closed."""

    def __init__(self, thing: Any, use: Act, close: Act) -> None:
        self.thing = thing
        self.use = use
        self.close = close


async def keep_connection(connection: Connection) -> Kept:
    return Kept(connection, lambda: connection.execute("SELECT 'late'"), connection.close)


async def keep_transaction(connection: Connection) -> Kept:
    block = connection.transaction()
    transaction = await block.__aenter__()
    return Kept(
        block,
        lambda: transaction.connection.execute("SELECT 'late'"),
        lambda: block.__aexit__(None, None, None),
    )


async def keep_transaction_that_fails(connection: Connection) -> Kept:
    block = connection.transaction()
    await block.__aenter__()
    return Kept(block, connection.rollback, lambda: block.__aexit__(LookupError, LookupError(), None))


async def keep_savepoint(connection: Connection) -> Kept:
    outer, inner = connection.transaction(), connection.transaction("mine")
    await outer.__aenter__()
    await inner.__aenter__()
    return Kept((outer, inner), connection.commit, lambda: inner.__aexit__(None, None, None))


async def keep_generator(connection: Connection) -> Kept:
    async def rows() -> AsyncIterator[int]:
        async with connection.transaction():
            for number in range(3):
                await connection.execute("SELECT 'late'")
                yield number

    generator: Any = rows()
    assert await anext(generator) == 0
    return Kept(generator, lambda: anext(generator), generator.aclose)


async def keep_cursor(connection: Connection) -> Kept:
    cursor = connection.cursor()
    await cursor.execute("SELECT generate_series(1, 3)")

    async def read_then_close() -> None:
        async with cursor:
            assert await cursor.fetchone() == (1,)  # what has arrived within the lease is the caller's own

    async def use() -> None:
        await cursor.execute("SELECT 'late'")

    return Kept(cursor, use, read_then_close)


async def keep_server_cursor(connection: Connection, *, withhold: bool = False) -> Kept:
    cursor = connection.cursor("mine", withhold=withhold)
    await cursor.execute("SELECT generate_series(1, 1000)")
    assert await cursor.fetchone() == (1,)
    return Kept(cursor, cursor.fetchone, cursor.close)


async def keep_cursor_with_hold(connection: Connection) -> Kept:
    kept = await keep_server_cursor(connection, withhold=True)
    await connection.commit()
    return kept


async def keep_iterator(connection: Connection) -> Kept:
    cursor: Any = connection.cursor("mine")
    cursor.itersize = 2
    await cursor.execute("SELECT generate_series(1, 1000)")
    rows = aiter(cursor)
    assert [await anext(rows), await anext(rows)] == [(1,), (2,)]
    return Kept((cursor, rows), lambda: anext(rows), cursor.close)


async def keep_notifies(connection: Connection) -> Kept:
    await connection.set_autocommit(True)
    await connection.execute("LISTEN gossip")
    where = connection.info
    async with await AsyncConnection.connect(where.dsn, password=where.password, autocommit=True) as other:
        await other.execute("NOTIFY gossip")
    generator = connection.notifies()
    await anext(generator)
    return Kept(generator, lambda: anext(generator), generator.aclose)


async def keep_two_phases(connection: Connection) -> Kept:
    await connection.tpc_begin(connection.xid(1, "mine", "left"))
    return Kept(connection, connection.tpc_prepare, connection.tpc_rollback)


async def keep_prepared(connection: Connection) -> Kept:
    cursor = await connection.execute("SELECT %s", ["mine"], prepare=True)
    return Kept(cursor, lambda: cursor.execute("SELECT %s", ["late"], prepare=True), cursor.close)


async def keep_coroutine(connection: Connection) -> Kept:
    late = connection.execute("SELECT 'late'")

    async def close() -> None:
        late.close()

    return Kept(late, lambda: late, close)


async def keep_stream(connection: Connection) -> Kept:
    stream: Any = connection.cursor().stream("SELECT generate_series(1, 100000)")
    await anext(stream)
    return Kept(stream, lambda: anext(stream), stream.aclose)


async def keep_pipeline(connection: Connection) -> Kept:
    block = connection.pipeline()
    pipeline = await block.__aenter__()
    await connection.execute("SELECT 'mine'")
    return Kept(block, pipeline.sync, lambda: block.__aexit__(None, None, None))


async def keep_copy_in(connection: Connection) -> Kept:
    await connection.execute("CREATE TEMP TABLE mine (n int)")
    block = connection.cursor().copy("COPY mine FROM STDIN")
    copy = await block.__aenter__()
    await copy.write_row([1])
    return Kept(block, lambda: copy.write(b"2\n"), lambda: block.__aexit__(None, None, None))


async def keep_copy_out(connection: Connection) -> Kept:
    block = connection.cursor().copy("COPY (SELECT generate_series(1, 100000)) TO STDOUT")
    copy = await block.__aenter__()
    await copy.read()
    return Kept(block, copy.read, lambda: block.__aexit__(LookupError, LookupError(), None))


IDLE = [
    keep_connection,
    keep_transaction,
    keep_transaction_that_fails,
    keep_savepoint,
    keep_generator,
    keep_cursor,
    keep_server_cursor,
    keep_cursor_with_hold,
    keep_iterator,
    keep_notifies,
    keep_two_phases,
    keep_prepared,
    keep_coroutine,
]
BUSY = [keep_stream, keep_pipeline, keep_copy_in, keep_copy_out]  # whose connections are destroyed


async def use(kept: Kept) -> None:
    with pytest.raises(NotLeased, match=r"pool 'db'.*after its lease had ended.*lease\(\)"):
        await kept.use()


async def close(kept: Kept) -> None:
    with suppress(NotLeased, psycopg.Error):
        await kept.close()


async def collect(kept: Kept) -> None:
    kept.__dict__.clear()
    gc.collect()
    for _ in range(5):  # asyncio closes generators a turn later
        await asyncio.sleep(0)


@pytest.fixture
async def errors_of_the_loop() -> AsyncIterator[None]:
    """Let asyncio tell of generators that it cannot close, where their leases are over."""
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))
    yield
    assert {type(error) for error in told} <= {NotLeased, psycopg.OperationalError}


@pytest.mark.usefixtures("errors_of_the_loop")
@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("act", [use, close, collect])
@pytest.mark.parametrize("keep", IDLE + BUSY)
@each_reset
async def test_kept_thing_does_nothing_to_the_next_lease(
    postgres_url: str, reset: str, keep: Callable[[Connection], Awaitable[Kept]], act: Callable[[Kept], Awaitable[None]]
) -> None:
    async with (
        asyncio.timeout(WAIT),
        pool_of(postgres_url, autocommit=True) as watchers,
        watchers.lease() as watcher,
        pool_of(postgres_url, reset=reset) as pool,
    ):
        await watcher.execute("DROP TABLE IF EXISTS written")
        await watcher.execute("CREATE TABLE written (n int)")
        async with pool.lease() as connection:
            before = pid(connection)
            kept = await keep(connection)
            del connection
        async with pool.lease() as connection:
            assert (pid(connection) == before) is (keep in IDLE)
            await connection.execute("INSERT INTO written VALUES (1)")
            state = await value(watcher, "SELECT query FROM pg_stat_activity WHERE pid = %s", pid(connection))
            await act(kept)
            await collect(kept)
            assert state == await value(watcher, "SELECT query FROM pg_stat_activity WHERE pid = %s", pid(connection))
            await connection.execute("INSERT INTO written VALUES (2)")
            await connection.commit()
        assert await value(watcher, "SELECT array_agg(n ORDER BY n) FROM written") == [1, 2]
        await watcher.execute("DROP TABLE written")


EACH_USE: dict[str, Callable[[Connection], Any]] = {
    "execute": lambda connection: connection.execute("SELECT 1"),
    "cursor": lambda connection: connection.cursor(),
    "cursor by its class": AsyncCursor,
    "commit": lambda connection: connection.commit(),
    "rollback": lambda connection: connection.rollback(),
    "close": lambda connection: connection.close(),
    "cancel": lambda connection: connection.cancel(),
    "cancel_safe": lambda connection: connection.cancel_safe(),
    "fileno": lambda connection: connection.fileno(),
    "info": lambda connection: connection.info,
    "pgconn": lambda connection: connection.pgconn,
    "closed": lambda connection: connection.closed,
    "broken": lambda connection: connection.broken,
    "autocommit": lambda connection: connection.autocommit,
    "adapters": lambda connection: connection.adapters,
    "row_factory": lambda connection: connection.row_factory,
    "prepare_threshold": lambda connection: connection.prepare_threshold,
    "transaction": lambda connection: connection.transaction().__aenter__(),
    "pipeline": lambda connection: connection.pipeline().__aenter__(),
    "notifies": lambda connection: anext(connection.notifies()),
    "set_autocommit": lambda connection: connection.set_autocommit(True),
    "tpc_begin": lambda connection: connection.tpc_begin("mine"),
    "tpc_recover": lambda connection: connection.tpc_recover(),
    "add_notice_handler": lambda connection: connection.add_notice_handler(print),
    "wait": lambda connection: connection.wait(connection._commit_gen()),
    "block": lambda connection: connection.__aexit__(None, None, None),
}


async def called(use: Callable[[Connection], Any], connection: Connection) -> None:
    made = use(connection)
    if isinstance(made, Awaitable):
        await made


@pytest.mark.parametrize("use", EACH_USE.values(), ids=EACH_USE)
@pytest.mark.parametrize("end", ["release", "discard"])
async def test_each_use_of_a_kept_connection_raises(postgres_url: str, use: Callable[[Any], Any], end: str) -> None:
    async with pool_of(postgres_url) as pool:
        lease = pool.lease()
        async with lease as connection:
            if end == "discard":
                lease.discard()
        async with pool.lease():
            with pytest.raises(NotLeased, match="pool 'db'"):
                await called(use, connection)
            assert "its lease is over" in repr(connection)
            assert isinstance(connection, AsyncConnection)


async def test_connection_is_dead_before_its_reset_begins(postgres_url: str) -> None:
    async with pool_of(postgres_url) as pool:
        lease = pool.lease()
        async with lease as connection:
            await connection.execute("SELECT 1")
            lease.release_nowait()
            with pytest.raises(NotLeased):
                connection.cancel()
            with pytest.raises(NotLeased):
                await connection.execute("CREATE TABLE late ()")
        async with pool.lease() as connection:
            assert await value(connection, "SELECT to_regclass('late')") is None


async def test_notification_between_leases_reaches_init_handlers(postgres_url: str) -> None:
    heard: list[str] = []

    async def init(connection: Connection) -> None:
        connection.add_notify_handler(lambda note: heard.append(note.payload))

    options: dict[str, Any] = {"reset": "transaction", "init": init, "autocommit": True}
    async with (
        pool_of(postgres_url, autocommit=True) as others,
        others.lease() as other,
        ConnectionPool(PsycopgManager(postgres_url, **options), limit=1, check_after=0) as pool,
    ):
        async with pool.lease() as kept:
            kept.add_notify_handler(lambda _: heard.append("mine"))
            await kept.execute("LISTEN gossip")
        await other.execute("NOTIFY gossip, 'secret'")
        async with pool.lease():
            assert heard == ["secret"]


async def test_each_lease_gets_an_object_of_its_own(postgres_url: str) -> None:
    async with pool_of(postgres_url) as pool:
        first = await pool.acquire()
        await pool.release(first)
        second = await pool.acquire()
        assert second is not first
        with pytest.raises(NotLeased):
            await pool.release(first)
        assert await value(second, "SELECT 7") == 7
        await pool.release(second)


async def test_task_that_goes_on_after_its_lease_cannot_send(postgres_url: str) -> None:
    has_begun, may_go_on = asyncio.Event(), asyncio.Event()

    async def write(connection: Connection) -> None:
        await connection.execute("SELECT 1")
        has_begun.set()
        await may_go_on.wait()
        await connection.execute("CREATE TABLE late ()")

    async with pool_of(postgres_url) as pool:
        async with pool.lease() as connection:
            task = asyncio.create_task(write(connection))
            await has_begun.wait()
        async with pool.lease() as connection:
            may_go_on.set()
            with pytest.raises(NotLeased):
                await task
            assert await value(connection, "SELECT to_regclass('late')") is None


async def test_connection_that_a_lease_closes_is_replaced(postgres_url: str) -> None:
    async with pool_of(postgres_url) as pool:
        async with pool.lease() as connection, connection:
            before = pid(connection)
        async with pool.lease() as connection:
            assert pid(connection) != before
        assert pool.stats().creates == 2


@each_reset
async def test_adapters_of_a_lease_end_with_it(postgres_url: str, reset: str) -> None:
    async def init(connection: Connection) -> None:
        connection.adapters.register_loader("int4", FloatLoader)

    async with pool_of(postgres_url, reset=reset, init=init) as pool:
        async with pool.lease() as connection:
            connection.adapters.register_loader("text", FloatLoader)
            TypeInfo("mine", 7, 8).register(connection)
            assert await value(connection, "SELECT '1.5'::text") == 1.5
            assert connection.adapters.types.get("mine") is not None
        async with pool.lease() as connection:
            assert await value(connection, "SELECT '1.5'::text") == "1.5"
            assert connection.adapters.types.get("mine") is None
            assert isinstance(await value(connection, "SELECT 1"), float)
            connection.adapters.types.add(TypeInfo("other", 9, 0))
        async with pool.lease() as connection:
            assert connection.adapters.types.get("other") is None
            connection.adapters.register_dumper(int, StrDumper)
        async with pool.lease() as connection:
            assert connection.adapters.get_dumper(int, PyFormat.AUTO) is not StrDumper


async def test_connection_that_is_detached_lives_on(postgres_url: str, recwarn: pytest.WarningsRecorder) -> None:
    notices: list[Any] = []
    async with pool_of(postgres_url) as pool:
        connection = pool.detach(await pool.acquire())
    gc.collect()
    connection.add_notice_handler(notices.append)
    await connection.execute("DO $$ BEGIN RAISE NOTICE 'loud'; END $$")
    assert len(notices) == 1
    assert await value(connection, "SELECT 7") == 7
    await connection.close()
    assert not [warning for warning in recwarn if issubclass(warning.category, ResourceWarning)]


async def test_connection_that_is_dropped_while_open_is_told(postgres_url: str) -> None:
    async with pool_of(postgres_url) as pool:
        connections = [pool.detach(await pool.acquire())]
        with pytest.warns(ResourceWarning, match="was deleted while still open"):
            connections.clear()


# --- work that is lost ------------------------------------------------------------------------------

LOST = "db': nightly report: it has written within a transaction that was not committed"


async def insert(connection: Connection) -> None:
    await connection.execute("CREATE TABLE lost ()")


async def insert_by_hand(connection: Connection) -> None:
    await connection.set_autocommit(True)
    await connection.execute("BEGIN")
    await connection.execute("CREATE TABLE lost ()")


async def only_read(connection: Connection) -> None:
    await connection.execute("SELECT * FROM pg_class")


async def commit(connection: Connection) -> None:
    await insert(connection)
    await connection.execute("DROP TABLE lost")
    await connection.commit()


async def fail_handled(connection: Connection) -> None:
    await insert(connection)
    with pytest.raises(psycopg.errors.DivisionByZero):
        await connection.execute("SELECT 1 / 0")


async def fail_within_savepoint(connection: Connection) -> None:
    await insert(connection)
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with connection.transaction():
            await connection.execute("SELECT 1 / 0")


async def fail(connection: Connection) -> None:
    await insert(connection)
    raise LookupError


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (insert, 1),
        (insert_by_hand, 1),
        (fail_within_savepoint, 1),
        (only_read, 0),
        (commit, 0),
        (fail_handled, 0),
        (fail, 0),
    ],
)
@each_reset
async def test_lost_writes_are_told_once_with_the_remedy(
    postgres_url: str,
    reset: str,
    work: Callable[[Connection], Awaitable[None]],
    told: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with pool_of(postgres_url, reset=reset) as pool:
        with suppress(LookupError):
            async with pool.lease(holder="nightly report") as connection:
                await work(connection)
        async with pool.lease(holder="another") as connection:
            assert await value(connection, "SELECT to_regclass('lost')") is None
            await connection.rollback()
        assert pool.stats().creates == 1
    assert len(caplog.messages) == told
    assert caplog.text.count(LOST) == caplog.text.count("`await conn.commit()`") == told
