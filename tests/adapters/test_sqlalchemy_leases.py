"""What a lease of SqlalchemyManager keeps in hand is dead after it, and what it loses is told."""

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Any

import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy import event, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, ResourceClosedError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import greenlet_spawn

from connectionpools_fastapi import ConnectionPool, Leased, NotLeased, install_pools
from connectionpools_fastapi.adapters.sqlalchemy import SqlalchemyManager
from connectionpools_fastapi.testing import started
from tests.sqlalchemy_pools import (
    COUNT,
    NOTE,
    TABLES,
    Pool,
    each_reset,
    fixture_database,  # noqa: F401 - pytest finds it, and the next one
    fixture_server,  # noqa: F401
    pool_of,
    run,
    streams_cost,
    value,
)
from tests.web import ask

pytestmark = [
    pytest.mark.anyio,
    # psycopg says so of a server-side cursor that a stream has left open.
    pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning"),
]

Late = Callable[[], Awaitable[object]]

SQL = "INSERT INTO notes VALUES (NULL)"
MANY = text("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) SELECT i FROM n")


@pytest.fixture
def anyio_backend() -> str:
    """SQLAlchemy's asynchronous side is of asyncio."""
    return "asyncio"


# --- what a lease may keep: each returns what is done with it when the lease is over --------------------


async def keep_coroutine(connection: AsyncConnection) -> Late:
    coroutine = connection.execute(NOTE)
    return lambda: coroutine


async def keep_transaction(connection: AsyncConnection) -> Late:
    transaction = await connection.begin()
    await connection.execute(NOTE)
    return transaction.commit


async def keep_transaction_not_begun(connection: AsyncConnection) -> Late:
    return connection.begin().start


async def keep_savepoint(connection: AsyncConnection) -> Late:
    savepoint = await connection.begin_nested()
    await connection.execute(NOTE)
    return savepoint.commit


async def keep_stream(connection: AsyncConnection) -> Late:
    result = await connection.stream(MANY)
    await result.fetchone()
    return result.fetchall


async def keep_stream_not_begun(connection: AsyncConnection) -> Late:
    return connection.stream(MANY).start


async def keep_session(connection: AsyncConnection) -> Late:
    session = AsyncSession(connection)
    await session.execute(COUNT)
    return lambda: session.execute(NOTE)


async def keep_session_that_has_written(connection: AsyncConnection) -> Late:
    session = AsyncSession(connection)
    await session.execute(NOTE)
    return session.commit


async def keep_session_not_used(connection: AsyncConnection) -> Late:
    session = AsyncSession(connection)
    return lambda: session.execute(NOTE)


async def keep_sync_session(connection: AsyncConnection) -> Late:
    session = await connection.run_sync(Session)
    return lambda: greenlet_spawn(session.execute, NOTE)


def of_sync(act: Callable[[Any], object]) -> Callable[[AsyncConnection], Awaitable[Late]]:
    async def keep(connection: AsyncConnection) -> Late:
        sync = connection.sync_connection
        return lambda: greenlet_spawn(act, sync)

    return keep


def of_fairy(act: Callable[[Any], object]) -> Callable[[AsyncConnection], Awaitable[Late]]:
    async def keep(connection: AsyncConnection) -> Late:
        fairy = await connection.get_raw_connection()
        return lambda: greenlet_spawn(act, fairy)

    return keep


async def keep_cursor(connection: AsyncConnection) -> Late:
    fairy = await connection.get_raw_connection()
    cursor: Any = await greenlet_spawn(fairy.cursor)
    await connection.execute(COUNT)
    return lambda: greenlet_spawn(cursor.execute, SQL)


async def keep_adapter(connection: AsyncConnection) -> Late:
    adapter: Any = (await connection.get_raw_connection()).dbapi_connection
    await connection.execute(NOTE)
    return lambda: greenlet_spawn(adapter.commit)


async def keep_connection_of_driver(connection: AsyncConnection) -> Late:
    driven: Any = (await connection.get_raw_connection()).driver_connection
    return lambda: driven.execute(SQL)


def of_connection(act: Callable[[AsyncConnection], Awaitable[object]]) -> Callable[[AsyncConnection], Awaitable[Late]]:
    async def keep(connection: AsyncConnection) -> Late:
        return lambda: act(connection)

    return keep


async def isolate(connection: AsyncConnection) -> None:
    await connection.execution_options(isolation_level="AUTOCOMMIT")


KEPT: dict[str, Callable[[AsyncConnection], Awaitable[Late]]] = {
    "execute": of_connection(lambda _: _.execute(NOTE)),
    "commit": of_connection(AsyncConnection.commit),
    "rollback": of_connection(AsyncConnection.rollback),
    "close": of_connection(AsyncConnection.close),
    "invalidate": of_connection(AsyncConnection.invalidate),
    "run_sync": of_connection(lambda _: _.run_sync(id)),
    "get_raw_connection": of_connection(AsyncConnection.get_raw_connection),
    "isolation level": of_connection(isolate),
    "coroutine": keep_coroutine,
    "transaction": keep_transaction,
    "transaction not begun": keep_transaction_not_begun,
    "savepoint": keep_savepoint,
    "stream": keep_stream,
    "stream not begun": keep_stream_not_begun,
    "session": keep_session,
    "session that has written": keep_session_that_has_written,
    "session not used": keep_session_not_used,
    "sync session": keep_sync_session,
    "sync execute": of_sync(lambda _: _.execute(NOTE)),
    "sync begin": of_sync(lambda _: _.begin()),
    "sync close": of_sync(lambda _: _.close()),
    "sync invalidate": of_sync(lambda _: _.invalidate()),
    "sync detach": of_sync(lambda _: _.detach()),
    "sync isolation level": of_sync(lambda _: _.execution_options(isolation_level="AUTOCOMMIT")),
    "raw cursor": of_fairy(lambda _: _.cursor().execute(SQL)),
    "raw close": of_fairy(lambda _: _.close()),
    "raw invalidate": of_fairy(lambda _: _.invalidate()),
    "raw detach": of_fairy(lambda _: _.detach()),
    "cursor of the adapter": keep_cursor,
    "adapter": keep_adapter,
    "connection of the driver": keep_connection_of_driver,
}


async def note_twice(pool: Pool, meanwhile: Late) -> None:
    """Write two notes in one transaction of a lease, something else happening between them."""
    async with pool.lease() as connection:
        async with connection.begin():
            await connection.execute(NOTE)
            await meanwhile()
            await connection.execute(NOTE)
        async with connection.begin():
            assert (await connection.execute(COUNT)).scalar() == 2


@each_reset
@pytest.mark.parametrize("keep", KEPT.values(), ids=KEPT)
async def test_kept_thing_raises_after_its_lease(
    database: URL, reset: str, keep: Callable[[AsyncConnection], Awaitable[Late]], caplog: pytest.LogCaptureFixture
) -> None:
    kept: list[Late] = []
    is_lost = keep is keep_stream and streams_cost(database)

    async def use() -> None:
        with pytest.raises(NotLeased, match="pool 'db'"):
            await kept.pop()()

    async with pool_of(database, reset=reset) as pool:
        async with pool.lease() as connection:
            await run(connection, *TABLES)
        async with pool.lease() as connection:
            before = connection.info
            kept.append(await keep(connection))
        await note_twice(pool, use)
        del connection
        gc.collect()
        async with pool.lease() as connection:
            assert (connection.info is before) is not is_lost
            assert (await connection.execute(COUNT)).scalar() == 2
        assert pool.stats().creates == 1 + is_lost
    assert len([record for record in caplog.records if "commit" not in record.message]) == is_lost


async def leave_block(connection: AsyncConnection) -> Late:
    async def rows() -> AsyncGenerator[int, None]:
        async with connection.begin():
            await connection.execute(NOTE)
            yield 1

    stream = rows()
    await anext(stream)
    return stream.aclose


async def leave_savepoint(connection: AsyncConnection) -> Late:
    async def rows() -> AsyncGenerator[int, None]:
        async with connection.begin(), connection.begin_nested():
            await connection.execute(NOTE)
            yield 1

    stream = rows()
    await anext(stream)
    return stream.aclose


async def leave_session(connection: AsyncConnection) -> Late:
    async def rows() -> AsyncGenerator[int, None]:
        async with AsyncSession(connection) as session:
            await session.execute(NOTE)
            yield 1

    stream = rows()
    await anext(stream)
    return stream.aclose


async def leave_result(connection: AsyncConnection) -> Late:
    async def rows() -> AsyncGenerator[int, None]:
        async with connection.stream(MANY) as result:
            async for row in result:
                yield row[0]

    stream = rows()
    await anext(stream)
    return stream.aclose


@each_reset
@pytest.mark.parametrize("leave", [leave_block, leave_savepoint, leave_session, leave_result])
async def test_late_work_of_an_abandoned_generator_is_unnoticed(
    database: URL, reset: str, leave: Callable[[AsyncConnection], Awaitable[Late]], caplog: pytest.LogCaptureFixture
) -> None:
    async with pool_of(database, reset=reset) as pool:
        async with pool.lease() as connection:
            await run(connection, *TABLES)
        async with pool.lease() as connection:
            late = await leave(connection)
        await note_twice(pool, late)
        is_lost = leave is leave_result and streams_cost(database)
        assert pool.stats().creates == 1 + is_lost
    assert len([record for record in caplog.records if "commit" not in record.message]) == is_lost


@each_reset
async def test_block_left_open_does_not_affect_the_next_lease(database: URL, reset: str) -> None:
    async with pool_of(database, reset=reset) as pool:
        async with pool.lease() as connection:
            await run(connection, *TABLES)
        left = []
        for _ in range(5):
            async with pool.lease() as connection:
                left.append(await leave_block(connection))
            async with pool.lease() as connection, connection.begin():
                assert await value(connection, "SELECT 7") == 7
        assert pool.stats().creates == 1
        for close in left:
            await close()


async def test_a_detached_connection_lives_on_without_the_pool(database: URL) -> None:
    async with pool_of(database) as pool:
        connection = await pool.acquire()
        assert pool.detach(connection) is connection
        assert await value(connection, "SELECT 7") == 7
    await connection.rollback()
    assert await value(connection, "SELECT 8") == 8
    await connection.close()
    assert connection.closed
    with pytest.raises(ResourceClosedError):
        await connection.execute(COUNT)


# --- what works within a lease --------------------------------------------------------------------------


async def test_invalidated_connection_is_not_reconnected(database: URL) -> None:
    async with pool_of(database) as pool, pool.lease() as connection:
        assert not connection.invalidated
        await connection.invalidate()
        assert connection.invalidated
        assert not connection.closed
        with pytest.raises(ResourceClosedError, match="lease another one"):
            await connection.execute(COUNT)
        await connection.close()
        assert connection.closed
    assert (pool.stats().creates, pool.stats().cleans) == (1, 1)


async def test_connection_detached_by_sqlalchemy_is_destroyed(database: URL) -> None:
    async with pool_of(database) as pool:
        async with pool.lease() as connection:
            before = connection.info
            await connection.run_sync(lambda sync: sync.detach())
            assert await value(connection, "SELECT 7") == 7
        async with pool.lease() as connection:
            assert connection.info is not before


async def test_engine_listeners_hear_statements_but_no_lease(database: URL) -> None:
    heard: list[str] = []
    manager = SqlalchemyManager(database)
    event.listen(manager.engine.sync_engine, "engine_connect", lambda _: heard.append("connect"))
    event.listen(manager.engine.sync_engine, "before_cursor_execute", lambda *args: heard.append(args[2]))
    event.listen(manager.engine.sync_engine, "rollback", lambda _: heard.append("rollback"))
    async with ConnectionPool(manager, limit=1, name="db") as pool:
        await pool.release(await pool.acquire())
        assert heard.pop() == "connect"
        heard.clear()  # what SQLAlchemy asks of a server that it sees for the first time
        for _ in range(2):
            async with pool.lease() as connection:
                await value(connection, "SELECT 7")
    assert heard == ["SELECT 7", "SELECT 7"]


async def test_a_listener_of_a_connection_is_gone_after_its_lease(database: URL) -> None:
    heard: list[str] = []
    async with pool_of(database) as pool:
        for number in range(2):
            async with pool.lease() as connection:
                if number == 0:
                    event.listen(
                        connection.sync_connection, "before_cursor_execute", lambda *args: heard.append(args[2])
                    )
                await value(connection, f"SELECT {number}")
    assert heard == ["SELECT 0"]


async def test_settings_of_a_connect_listener_hold_in_each_lease(database: URL) -> None:
    def connected(connection: Any) -> None:
        connection.execute(text("SELECT 7"))
        connection.execution_options(mine=1)

    manager = SqlalchemyManager(database)
    event.listen(manager.engine.sync_engine, "engine_connect", connected)
    async with ConnectionPool(manager, limit=1, name="db") as pool:
        for _ in range(2):
            async with pool.lease() as connection:
                assert not connection.in_transaction()
                assert (await connection.get_raw_connection()).is_valid
                sync: Any = connection.sync_connection
                assert sync.get_execution_options() == {"mine": 1}


async def test_statements_stay_prepared_from_lease_to_lease(postgres_url: str) -> None:
    url = f"postgresql+asyncpg://{postgres_url.split('://')[1]}"
    async with pool_of(url) as pool:
        names = []
        for _ in range(3):
            async with pool.lease() as connection:
                await connection.execute(text("SELECT 7"))
                found = await connection.execute(
                    text("SELECT name FROM pg_prepared_statements WHERE statement = 'SELECT 7'")
                )
                names.append(found.scalars().all())
        assert len(names[0]) == 1
        assert names == [names[0]] * 3


# --- what is lost ---------------------------------------------------------------------------------------

WORK: dict[str, tuple[Callable[[AsyncConnection], Awaitable[object]], int]] = {
    "write": (lambda _: _.execute(NOTE), 1),
    "write of a session": (lambda _: AsyncSession(_).execute(NOTE), 1),
    "writes of executemany": (lambda _: _.execute(text("INSERT INTO notes VALUES (:n)"), [{"n": None}] * 2), 1),
    "read": (lambda _: _.execute(COUNT), 0),
    "read of a stream": (lambda _: _.stream(MANY), 0),
    "nothing": (lambda _: asyncio.sleep(0), 0),
}


@each_reset
@pytest.mark.parametrize(("work", "told"), WORK.values(), ids=WORK)
async def test_lost_work_is_told_with_the_remedy(
    database: URL,
    reset: str,
    work: Callable[[AsyncConnection], Awaitable[object]],
    told: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with pool_of(database, reset=reset) as pool:
        async with pool.lease() as connection:
            await run(connection, *TABLES)
        caplog.clear()
        async with pool.lease() as connection:
            await work(connection)
    messages = [message for message in caplog.messages if "SSCursor" not in message]  # which costs the connection
    assert ["await conn.commit()" in message for message in messages] == [True] * told
    assert "INSERT" not in caplog.text


async def commit(connection: AsyncConnection) -> None:
    await connection.commit()


async def roll_back(connection: AsyncConnection) -> None:
    await connection.rollback()


async def fail(connection: AsyncConnection) -> None:
    with suppress(DBAPIError):
        await connection.execute(text("SELECT nonsense"))


async def raise_error(_: AsyncConnection) -> None:
    raise LookupError


async def test_a_write_of_a_cte_is_lost_and_told(server: URL, caplog: pytest.LogCaptureFixture) -> None:
    async with pool_of(server) as pool:
        async with pool.lease() as connection:
            await run(connection, *TABLES)
        async with pool.lease() as connection:
            await connection.execute(text("WITH n AS (INSERT INTO notes VALUES (NULL) RETURNING 1) SELECT * FROM n"))
    assert ["await conn.commit()" in message for message in caplog.messages] == [True]


@pytest.mark.parametrize("end", [commit, roll_back, fail, raise_error])
async def test_what_is_not_lost_or_on_purpose_is_not_told(
    server: URL, end: Callable[[AsyncConnection], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    async with pool_of(server) as pool:
        async with pool.lease() as connection:
            await run(connection, *TABLES)
        with suppress(LookupError):
            async with pool.lease() as connection:
                await connection.execute(NOTE)
                await end(connection)
    assert caplog.messages == []


# --- errors ---------------------------------------------------------------------------------------------


async def test_an_error_is_judged_by_the_manager_of_the_driver(server: URL) -> None:
    judged: list[Any] = []
    manager = SqlalchemyManager(server)
    connection = await manager.create()
    try:
        driver: Any = manager._driver
        driver.broken = lambda _, error: judged.append(error)
        async with pool_of(server) as pool, pool.lease() as other:
            with pytest.raises(DBAPIError) as caught:
                await other.execute(text("SELECT nonsense"))
        manager.broken(connection, caught.value)
        manager.broken(connection, LookupError("of the application"))
    finally:
        await manager.clean(connection)
    assert [type(error).__module__.split(".")[0] for error in judged] == [server.get_driver_name(), "builtins"]
    assert judged[0].sqlstate == "42703"


# --- over HTTP ------------------------------------------------------------------------------------------


async def leave_early(app: Any, path: str) -> None:
    """Take the beginning of a stream, and go while the next part is being sent."""
    messages = [{"type": "http.request", "body": b"", "more_body": False}]
    has_begun = asyncio.Event()

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await has_begun.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message.get("body"):
            has_begun.set()
            await asyncio.Event().wait()

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [], "root_path": ""}
    task = asyncio.ensure_future(app(scope, receive, send))
    await has_begun.wait()
    task.cancel()
    await asyncio.wait([task])


async def test_abandoned_streams_fail_no_other_request(database: URL) -> None:
    app = FastAPI()
    async with pool_of(database) as pool, pool.lease() as connection:
        await run(connection, *TABLES)
    db = ConnectionPool(SqlalchemyManager(database), limit=3, name="db")
    install_pools(app, db)
    connection_of = Annotated[AsyncConnection, Leased(db)]

    @app.get("/stream")
    async def stream(connection: connection_of) -> StreamingResponse:
        async def rows() -> AsyncIterator[bytes]:
            async with connection.begin():
                await connection.execute(NOTE)
                while True:
                    yield b"row"

        return StreamingResponse(rows())

    @app.get("/note")
    async def note(connection: connection_of) -> int:
        async with connection.begin():
            await connection.execute(NOTE)
        return 1

    async with started(app) as served:

        async def request(number: int) -> int:
            if number % 3 == 0:
                await leave_early(served, "/stream")
                return 0
            return (await ask(served, "/note")).status

        answers = []
        for first in range(0, 300, 20):
            answers += await asyncio.gather(*(request(number) for number in range(first, first + 20)))
        assert answers.count(200) == 200
        async with db.lease() as connection:
            assert (await connection.execute(COUNT)).scalar() == 200
