"""aiomysql and asyncmy on MariaDB: what a lease keeps in hand is dead from its end on, and what it loses is told."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest

from connectionpools_fastapi import NotLeased
from connectionpools_fastapi.adapters._options import awaited
from tests.mysql_drivers import (
    AT_ONCE,
    DRIVERS,
    ENDED,
    FOR_A_MINUTE,
    RESETS,
    WRITE,
    Driver,
    Reset,
    end,
    fixture_driver,  # noqa: F401 - pytest finds it
    fixture_proxy,  # noqa: F401 - pytest finds it
    fixture_root,  # noqa: F401 - pytest finds it
    fixture_url,  # noqa: F401 - pytest finds it
    pool_of,
    rows,
    sessions,
    time_to_end,
    until_runs,
    value,
)
from tests.wires import Proxy

pytestmark = [pytest.mark.anyio, pytest.mark.needs_program("mariadbd")]


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio only, as the drivers do."""
    return "asyncio"


# --- work that is lost is told ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("statements", "is_told"),
    [
        ([WRITE], True),
        (["BEGIN", WRITE, "SELECT 1"], True),
        ([WRITE, "COMMIT", WRITE], True),
        (["SELECT * FROM kept"], False),
        ([WRITE, "COMMIT", "SELECT * FROM kept"], False),
        ([WRITE, "ROLLBACK"], False),
        (["DELETE FROM kept"], False),  # no row
        (["SET @mine = 1"], False),
    ],
)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.usefixtures("root")
async def test_lost_writes_are_told_with_their_holder(
    driver: Driver, url: str, statements: list[str], reset: Reset, caplog: pytest.LogCaptureFixture, *, is_told: bool
) -> None:
    async def lease() -> None:
        async with pool.lease() as connection:
            for statement in statements:
                await rows(connection, statement)

    async with pool_of(driver.manager(url, reset=reset)) as pool:
        await asyncio.create_task(lease(), name="the one")
        async with pool.lease() as connection:
            await rows(connection, WRITE)
            await connection.commit()
            await value(connection, "SELECT count(*) FROM kept")
        with suppress(LookupError):
            async with pool.lease() as connection:
                await rows(connection, WRITE)
                raise LookupError
    found = [message for message in caplog.messages if "database exists" not in message]
    assert len(found) == is_told
    if is_told:
        assert found[0].startswith("pool 'db': the one: it has written within a transaction that was not committed")


# --- what a lease keeps in hand --------------------------------------------------------------

Act = Callable[[Any, Any], Awaitable[object]]


@dataclass
class Kept:
    make: Callable[[Driver, Any], Awaitable[Any]]
    # Given the connection of the lease that has ended, and what was made of it.
    acts: tuple[Act, ...]


async def nothing(_: Driver, __: Any) -> None:
    pass


async def executed(_: Driver, connection: Any) -> Any:
    cursor = await connection.cursor()
    await cursor.execute("SELECT 1")
    return cursor


async def unread(driver: Driver, connection: Any) -> Any:
    cursor = await connection.cursor(driver.unbuffered)
    await cursor.execute("SELECT seq FROM seq_1_to_99999")
    return cursor


async def open_context(_: Driver, connection: Any) -> Any:
    return connection.cursor()


async def call(act: Callable[[], Any]) -> Any:
    result = act()
    return await result if hasattr(result, "__await__") else result


KEPT = {
    "the connection": Kept(
        nothing,
        (
            lambda conn, _: rows(conn, WRITE),
            lambda conn, _: conn.query(WRITE),
            lambda conn, _: conn.begin(),
            lambda conn, _: conn.commit(),
            lambda conn, _: conn.rollback(),
            lambda conn, _: conn.autocommit(True),  # noqa: FBT003 - takes no keyword
            lambda conn, _: conn.select_db("test"),
            lambda conn, _: conn.ping(),
            lambda conn, _: conn.ping(reconnect=False),
            lambda conn, _: conn.kill(1),
            lambda conn, _: conn.ensure_closed(),
            lambda conn, _: call(conn.cursor),
        ),
    ),
    "a cursor": Kept(
        executed,
        (
            lambda _, cursor: cursor.execute(WRITE),
            lambda _, cursor: cursor.executemany("INSERT INTO kept VALUES (%s)", [(1,), (2,)]),
            lambda _, cursor: cursor.callproc("none"),
        ),
    ),
}


async def used(kept: Kept, connection: Any, thing: Any) -> None:
    """Do with a thing all that can be done, and see each refused."""
    for act in kept.acts:
        with pytest.raises(NotLeased, match=ENDED):
            await act(connection, thing)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("name", KEPT)
async def test_kept_thing_is_refused_in_the_next_lease(
    driver: Driver, proxy: Proxy, root: Any, name: str, reset: Reset
) -> None:
    kept = KEPT[name]
    async with pool_of(driver.manager(proxy.url, reset=reset)) as pool:
        async with pool.lease() as connection:
            thing = await kept.make(driver, connection)
        async with pool.lease() as other:
            await rows(other, WRITE)
            sent = len(proxy.sent)
            await used(kept, connection, thing)
            del thing, connection
            gc.collect()
            assert len(proxy.sent) == sent
            await other.commit()
        assert pool.stats().creates == 1
    assert await rows(root, "SELECT * FROM kept") == [(1,)]


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("name", KEPT)
@pytest.mark.usefixtures("root")
async def test_kept_thing_is_refused_before_the_reset(driver: Driver, proxy: Proxy, name: str, reset: Reset) -> None:
    kept = KEPT[name]

    class Manager(driver.manager):  # type: ignore[misc, name-defined] # of either driver
        async def change(self, resource: Any) -> None:
            sent = len(proxy.sent)
            await used(kept, *held)
            assert len(proxy.sent) == sent
            await awaited(super().change(resource))

    async with pool_of(Manager(proxy.url, reset=reset, autocommit=False)) as pool:
        async with pool.lease() as connection:
            held = connection, await kept.make(driver, connection)
        async with pool.lease() as other:
            assert await value(other, "SELECT 1") == 1
        assert pool.stats().creates == 1


async def test_unread_rows_cost_the_connection_and_end_with_it(driver: Driver, url: str) -> None:
    async with pool_of(driver.manager(url)) as pool:
        async with pool.lease() as connection:
            session = connection.thread_id()
            cursor = await unread(driver, connection)
        with pytest.raises(NotLeased, match=ENDED):
            await cursor.fetchall()
        async with pool.lease() as connection:
            assert connection.thread_id() != session
            assert await value(connection, "SELECT 1") == 1
        del cursor
        gc.collect()
        assert pool.stats().discards["change"] == 1


async def test_rows_that_arrived_can_be_fetched_late(driver: Driver, url: str) -> None:
    async with pool_of(driver.manager(url)) as pool:
        async with pool.lease() as connection:
            cursor = await executed(driver, connection)
        assert list(await cursor.fetchall()) == [(1,)]


async def test_lease_does_not_reconnect(driver: Driver, url: str, root: Any) -> None:
    """The drivers' `ping` would, to a session that the pool does not know."""
    async with pool_of(driver.manager(url)) as pool:
        async with pool.lease() as connection:
            await rows(root, f"KILL {connection.thread_id()}")
            with pytest.raises(ConnectionError, match="lease another one"):
                await connection.ping()
        async with pool.lease() as connection:
            assert await value(connection, "SELECT 1") == 1


async def test_closed_connection_is_not_used_again(driver: Driver, url: str) -> None:
    async with pool_of(driver.manager(url)) as pool:
        for end in ("close", "ensure_closed"):
            async with pool.lease() as connection:
                assert await value(connection, "SELECT 1") == 1
                await call(getattr(connection, end))
        async with pool.lease() as connection:
            assert await value(connection, "SELECT 1") == 1
        assert pool.stats().creates == 3


async def test_late_close_leaves_the_connection_alone(driver: Driver, url: str) -> None:
    class Manager(driver.manager):  # type: ignore[misc, name-defined] # of either driver
        async def change(self, resource: Any) -> None:
            with suppress(NotLeased):  # asyncmy itself closes, when unread rows are collected
                connection.close()
            await awaited(super().change(resource))

    async with pool_of(Manager(url)) as pool:
        async with pool.lease() as connection:
            assert await value(connection, "SELECT 1") == 1
        with suppress(NotLeased):
            connection.close()
        async with pool.lease() as connection:
            assert await value(connection, "SELECT 1") == 1
        assert pool.stats().creates == 1


async def test_detached_connection_stays_usable(driver: Driver, url: str) -> None:
    async with pool_of(driver.manager(url)) as pool:
        async with pool.lease() as connection:
            pool.detach(connection)
        gc.collect()
        assert await value(connection, "SELECT 1") == 1
    assert await value(connection, "SELECT 1") == 1
    await connection.ensure_closed()


# --- queries that are cut off ----------------------------------------------------------------


async def test_cancelled_statement_of_the_cache_ends_at_the_server(url: str, root: Any) -> None:
    """asyncmy reads its answer on another way, from the second time on."""
    async with pool_of(DRIVERS[1].manager(url, stmt_cache_size=1)) as pool, pool.lease() as connection:
        async with connection.cursor() as cursor:
            await cursor.execute("SELECT sleep(%s)", (0,))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await cursor.execute("SELECT sleep(%s)", (60,))
        assert await time_to_end(root, connection.thread_id()) < AT_ONCE


async def test_query_ends_at_the_server_while_its_lease_goes_on(driver: Driver, url: str, root: Any) -> None:
    async with pool_of(driver.manager(url)) as pool, pool.lease() as connection:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await rows(connection, FOR_A_MINUTE)
        assert await time_to_end(root, connection.thread_id()) < AT_ONCE
        with pytest.raises(driver.errors.InterfaceError):
            await rows(connection, "SELECT 1")


async def test_connection_in_use_at_the_end_of_its_lease_is_ended(driver: Driver, url: str, root: Any) -> None:
    async with pool_of(driver.manager(url)) as pool:
        async with pool.lease() as connection:
            query = asyncio.create_task(rows(connection, FOR_A_MINUTE))
            (session,) = await until_runs(root, FOR_A_MINUTE)
        async with pool.lease() as connection:
            assert connection.thread_id() != session
            assert await value(connection, "SELECT 1") == 1
        assert await time_to_end(root, session) < AT_ONCE
        with pytest.raises((driver.errors.OperationalError, NotLeased)):
            await query


async def test_one_connection_ends_all_cancelled_queries(driver: Driver, url: str, root: Any) -> None:
    """A storm of them is no storm of connections."""
    count = "SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'connections'"

    query = "SELECT get_lock('taken', 60)"  # MariaDB is slow to end many sleeps at once

    async def work() -> None:
        async with pool.lease() as connection:
            await rows(connection, query)

    await rows(root, query)
    async with pool_of(driver.manager(url), limit=10) as pool:
        callers = [asyncio.create_task(work()) for _ in range(10)]
        running = await until_runs(root, query, 10)
        before = int(await value(root, count))
        for caller in callers:
            caller.cancel()
        await asyncio.wait(callers)
        assert pool.stats().creates == 10
    assert await time_to_end(root, *running) < AT_ONCE
    assert int(await value(root, count)) - before <= 2


@pytest.mark.parametrize("is_same", [False, True])
async def test_nothing_is_ended_at_another_server(
    driver: Driver,
    url: str,
    root: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    is_same: bool,
) -> None:
    """The address may lead to another one by then, or it has restarted: another session may have that number."""
    manager = driver.manager(url)
    connection = await manager.create()
    session = connection.thread_id()
    if is_same:
        monkeypatch.setattr(type(connection), "thread_id", lambda _: 0)
    else:
        connection.wire.server = "another"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await rows(connection, FOR_A_MINUTE)
    await manager.clean(connection)
    assert await sessions(root, FOR_A_MINUTE) == {session}
    await end(root, session)
    assert not caplog.messages


async def test_query_that_cannot_be_ended_is_told(
    driver: Driver, url: str, root: Any, caplog: pytest.LogCaptureFixture
) -> None:
    addresses = iter([url])
    manager = driver.manager(lambda: next(addresses, "mysql://127.0.0.1:1/test"))
    connection = await manager.create()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await rows(connection, FOR_A_MINUTE)
    await manager.clean(connection)
    (message,) = caplog.messages
    assert message.startswith(f"{driver.manager.__name__}: a query was cut off, and could not be ended")
    await end(root, connection.wire.session)
