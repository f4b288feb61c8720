"""asyncpg: what a lease keeps in hand is dead from its end on, and the next lease does not notice."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import asyncpg  # type: ignore[import-untyped] # has no types
import pytest

from connectionpools_fastapi import ConnectionPool, NotLeased
from connectionpools_fastapi.adapters import asyncpg as adapter
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager
from tests.wires import Proxy

pytestmark = pytest.mark.anyio

Reset = Literal["session", "transaction"]
RESETS: list[Reset] = ["session", "transaction"]
ENDED = r"pool 'db': .* after its lease had ended, and nothing was sent.*async with pool\.lease"


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio only, as asyncpg does."""
    return "asyncio"


@pytest.fixture
async def table(postgres_url: str) -> AsyncIterator[Any]:
    """Yield a connection from outside of the pool, and a table `kept (n int)`."""
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("DROP TABLE IF EXISTS kept; CREATE TABLE kept (n int)")
    yield connection
    await connection.execute("DROP TABLE kept")
    await connection.close()


async def rows(table: Any) -> list[int]:
    return [row["n"] for row in await table.fetch("SELECT n FROM kept ORDER BY n")]


def pool_of(url: str, reset: Reset, **options: Any) -> ConnectionPool[Any]:
    return ConnectionPool(AsyncpgManager(url, reset=reset, ssl=False, **options), limit=1, name="db")


# --- the kinds of things, and what is done with them too late --------------------------------

Act = Callable[[Any, Any], Awaitable[object]]


@dataclass
class Kept:
    make: Callable[[Any], Awaitable[Any]]
    # Given the connection of the lease that has ended, and what was made of it.
    acts: tuple[Act, ...]


async def begin(connection: Any) -> Any:
    transaction = connection.transaction()
    await transaction.start()
    return transaction


async def enter(connection: Any) -> Any:
    transaction = connection.transaction()
    await transaction.__aenter__()
    return transaction


async def begin_twice(connection: Any) -> Any:
    await begin(connection)
    return await begin(connection)


async def new_transaction(connection: Any) -> Any:
    return connection.transaction()


async def itself(connection: Any) -> Any:
    return connection


NUMBERS = "SELECT generate_series(1, 99)"


async def open_cursor(connection: Any) -> Any:
    await begin(connection)
    cursor = await connection.cursor(NUMBERS)
    await cursor.fetch(1)
    return cursor


async def iterate(connection: Any) -> Any:
    await begin(connection)
    iterator = aiter(connection.cursor(NUMBERS, prefetch=2))
    await anext(iterator)
    return iterator


async def cursor_factory(connection: Any) -> Any:
    return connection.cursor(NUMBERS)


async def prepare(connection: Any) -> Any:
    return await connection.prepare(NUMBERS)


async def prepared_cursor(connection: Any) -> Any:
    await begin(connection)
    return (await connection.prepare(NUMBERS)).cursor()


async def listen(connection: Any) -> Any:
    await connection.add_listener("news", print)
    return print


async def wait_for(awaitable: Awaitable[object]) -> object:
    return await awaitable


async def to_nowhere(_: bytes) -> None:
    pass


KEPT = {
    "the connection": Kept(
        itself,
        (
            lambda conn, _: conn.execute("INSERT INTO kept VALUES (9)"),
            lambda conn, _: conn.fetch("SELECT 1"),
            lambda conn, _: conn.executemany("INSERT INTO kept VALUES ($1)", [(9,)]),
            lambda conn, _: conn.copy_records_to_table("kept", records=[(9,)]),
            lambda conn, _: conn.copy_from_query("SELECT 1", output=to_nowhere),
            lambda conn, _: conn.reset(),
            lambda conn, _: conn.set_type_codec("int4", schema="pg_catalog", encoder=str, decoder=str),
            lambda conn, _: conn.reload_schema_state(),
            lambda conn, _: conn.close(),
        ),
    ),
    "a transaction": Kept(begin, (lambda _, kept: kept.commit(), lambda _, kept: kept.rollback())),
    "a transaction not begun": Kept(new_transaction, (lambda _, kept: kept.start(), lambda _, kept: kept.__aenter__())),
    "a transaction of async with": Kept(
        enter,
        (
            lambda _, kept: kept.__aexit__(None, None, None),
            lambda _, kept: kept.__aexit__(ValueError, ValueError(), None),
        ),
    ),
    "a savepoint": Kept(begin_twice, (lambda _, kept: kept.commit(), lambda _, kept: kept.rollback())),
    "a cursor": Kept(
        open_cursor,
        (
            lambda _, kept: kept.fetch(1),
            lambda _, kept: kept.fetchrow(),
            lambda _, kept: kept.forward(1),
        ),
    ),
    "an iterator of a cursor": Kept(iterate, (lambda _, kept: anext(kept),)),
    "a factory of cursors": Kept(cursor_factory, (lambda _, kept: wait_for(kept), lambda _, kept: anext(aiter(kept)))),
    "a prepared statement": Kept(
        prepare,
        (
            lambda _, kept: kept.fetch(),
            lambda _, kept: kept.fetchval(),
            lambda _, kept: kept.executemany([()]),
            lambda _, kept: kept.explain(analyze=True),
            lambda _, kept: wait_for(kept.cursor()),
        ),
    ),
    "a cursor of a prepared statement": Kept(prepared_cursor, (lambda _, kept: wait_for(kept),)),
    "a listener": Kept(
        listen,
        (
            lambda conn, kept: conn.remove_listener("news", kept),
            lambda conn, kept: conn.add_listener("news", kept),
        ),
    ),
}


async def used(kept: Kept, connection: Any, thing: Any) -> None:
    """Do with a thing all that can be done, and see each refused."""
    for act in kept.acts:
        with pytest.raises(NotLeased, match=ENDED) as refused:
            await act(connection, thing)
        assert isinstance(refused.value, asyncpg.InterfaceError)  # what asyncpg's own pool raises


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("name", KEPT)
async def test_kept_thing_is_refused_in_the_next_lease(
    proxy: Proxy,
    table: Any,
    name: str,
    reset: Reset,
) -> None:
    kept = KEPT[name]
    async with pool_of(proxy.url, reset) as pool:
        async with pool.lease() as connection:
            thing = await kept.make(connection)
        async with pool.lease() as other, other.transaction():
            await other.execute("INSERT INTO kept VALUES (1)")
            sent = len(proxy.sent)
            await used(kept, connection, thing)
            del thing, connection
            gc.collect()
            assert len(proxy.sent) == sent
            await other.execute("INSERT INTO kept VALUES (2)")
            assert await other.fetchval("SELECT 1") == 1
        async with pool.lease() as other:
            assert await other.fetchval("SELECT 1") == 1  # with its types as they were
        assert pool.stats().creates == 1
    assert await rows(table) == [1, 2]


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("name", KEPT)
async def test_kept_thing_is_refused_before_the_reset(
    proxy: Proxy,
    name: str,
    reset: Reset,
) -> None:
    kept = KEPT[name]

    class Manager(AsyncpgManager):
        async def change(self, resource: Any) -> None:
            sent = len(proxy.sent)
            await used(kept, *held)
            assert len(proxy.sent) == sent
            await super().change(resource)

    async with ConnectionPool(Manager(proxy.url, reset=reset, ssl=False), limit=1, name="db") as pool:
        async with pool.lease() as connection:
            held = connection, await kept.make(connection)
        async with pool.lease() as other:
            assert await other.fetchval("SELECT 1") == 1
        assert pool.stats().creates == 1


@pytest.mark.parametrize("reset", RESETS)
async def test_kept_rollback_undoes_nothing_of_the_next_lease(postgres_url: str, table: Any, reset: Reset) -> None:
    async with pool_of(postgres_url, reset) as pool:
        async with pool.lease() as connection:
            transaction = await begin(connection)
        async with pool.lease() as connection, connection.transaction():
            await connection.execute("INSERT INTO kept VALUES (1)")
            with suppress(asyncpg.InterfaceError):
                await transaction.rollback()
            await connection.execute("INSERT INTO kept VALUES (2)")
    assert await rows(table) == [1, 2]


@pytest.mark.parametrize("is_collected", [False, True])
@pytest.mark.parametrize("reset", RESETS)
async def test_left_generator_undoes_nothing_of_the_next_lease(
    postgres_url: str, table: Any, reset: Reset, *, is_collected: bool
) -> None:
    async def stream(connection: Any) -> AsyncIterator[int]:
        async with connection.transaction():
            async for row in connection.cursor(NUMBERS):
                yield row[0]

    said: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    async with pool_of(postgres_url, reset) as pool:
        async with pool.lease() as connection:
            generator: Any = stream(connection)
            assert await anext(generator) == 1
        async with pool.lease() as connection, connection.transaction():
            await connection.execute("INSERT INTO kept VALUES (1)")
            if is_collected:
                del generator
                gc.collect()
                await asyncio.sleep(0)  # the loop closes it, in a task
                await asyncio.sleep(0)
            else:
                await generator.aclose()
            await connection.execute("INSERT INTO kept VALUES (2)")
        assert pool.stats().creates == 1
    assert await rows(table) == [1, 2]
    assert not said


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize(
    "call",
    [
        lambda conn: conn.execute("INSERT INTO kept VALUES (9)"),
        lambda conn: conn.execute("INSERT INTO kept VALUES ($1)", 9),
        lambda conn: conn.executemany("INSERT INTO kept VALUES ($1)", [(9,)]),
        lambda conn: conn.fetchval("INSERT INTO kept VALUES (9) RETURNING n"),
        lambda conn: conn.copy_records_to_table("kept", records=[(9,)]),
        lambda conn: conn.prepare(NUMBERS),
        lambda conn: conn.transaction().start(),
        lambda conn: conn.add_listener("news", print),
        lambda conn: conn.set_type_codec("int4", schema="pg_catalog", encoder=str, decoder=str),
        lambda conn: conn.close(),
    ],
)
async def test_late_coroutine_sends_nothing(
    proxy: Proxy,
    table: Any,
    call: Callable[[Any], Any],
    reset: Reset,
) -> None:
    async with pool_of(proxy.url, reset) as pool:
        async with pool.lease() as connection:
            late = call(connection)
        async with pool.lease() as connection:
            sent = len(proxy.sent)
            with pytest.raises(NotLeased, match=ENDED):
                await late
            assert len(proxy.sent) == sent
            assert await connection.fetchval("SELECT 1") == 1
        async with pool.lease():
            pass
        assert pool.stats().creates == 1
    assert await rows(table) == []


@pytest.mark.parametrize("reset", RESETS)
async def test_late_coroutine_of_a_statement_sends_nothing(
    proxy: Proxy,
    table: Any,
    reset: Reset,
) -> None:
    async with pool_of(proxy.url, reset) as pool:
        async with pool.lease() as connection:
            late = (await connection.prepare("INSERT INTO kept VALUES (9)")).fetch()
        async with pool.lease():
            sent = len(proxy.sent)
            with pytest.raises(NotLeased, match=ENDED):
                await late
            assert len(proxy.sent) == sent
    assert await rows(table) == []


@pytest.mark.parametrize("size", [1, 100_000])
@pytest.mark.parametrize("reset", RESETS)
async def test_connection_in_a_copy_is_not_lent_again(
    postgres_url: str, reset: Reset, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "CLOSE_WITHIN", 0.01)
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def sink(_: bytes) -> None:
        begun.set()
        await goes_on.wait()

    async with pool_of(postgres_url, reset) as pool:
        async with pool.lease() as connection:
            query = f"SELECT generate_series(1, {size})"
            copy = asyncio.create_task(connection.copy_from_query(query, output=sink))
            await begun.wait()
        async with pool.lease() as connection:
            goes_on.set()
            with pytest.raises(NotLeased, match=ENDED):
                await copy
            assert await connection.fetchval("SELECT 1") == 1
        assert pool.stats().creates == 2


@pytest.mark.parametrize("reset", RESETS)
async def test_connection_that_is_copied_to_is_not_lent_again(postgres_url: str, table: Any, reset: Reset) -> None:
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield b"9\n"
        begun.set()
        await goes_on.wait()

    async with pool_of(postgres_url, reset) as pool:
        async with pool.lease() as connection:
            copy = asyncio.create_task(connection.copy_to_table("kept", source=source()))
            await begun.wait()
        async with pool.lease() as connection:
            goes_on.set()
            with pytest.raises(NotLeased, match=ENDED):
                await copy
            assert await connection.fetchval("SELECT 1") == 1
        assert pool.stats().creates == 2
    assert await rows(table) == []


# --- the connection that is lent ---------------------------------------------------------------

PUBLIC = [name for name in dir(asyncpg.Connection) if not name.startswith("_")]
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "add_listener": ("news", print),
    "add_log_listener": (print,),
    "add_query_logger": (print,),
    "add_termination_listener": (print,),
    "copy_records_to_table": ("kept",),
    "copy_to_table": ("kept",),
    "copy_from_table": ("kept",),
    "copy_from_query": ("SELECT 1",),
    "cursor": (NUMBERS,),
    "execute": ("SELECT 1",),
    "executemany": ("SELECT $1::int", [(1,)]),
    "fetch": ("SELECT 1",),
    "fetchmany": ("SELECT $1::int", [(1,)]),
    "fetchrow": ("SELECT 1",),
    "fetchval": ("SELECT 1",),
    "prepare": ("SELECT 1",),
    "query_logger": (print,),
    "remove_listener": ("news", print),
    "remove_log_listener": (print,),
    "remove_query_logger": (print,),
    "remove_termination_listener": (print,),
    "reset_type_codec": ("int4",),
    "set_builtin_type_codec": ("int4",),
    "set_type_codec": ("int4",),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "copy_records_to_table": {"records": [(1,)]},
    "copy_to_table": {"source": bytearray(b"1\n")},
    "copy_from_table": {"output": to_nowhere},
    "copy_from_query": {"output": to_nowhere},
    "reset_type_codec": {"schema": "pg_catalog"},
    "set_builtin_type_codec": {"schema": "pg_catalog", "codec_name": "int2"},
    "set_type_codec": {"schema": "pg_catalog", "encoder": str, "decoder": str},
}


async def call(connection: Any, name: str) -> Any:
    made = getattr(connection, name)(*ARGUMENTS.get(name, ()), **OPTIONS.get(name, {}))
    if hasattr(made, "__enter__"):
        with made:
            return None
    return await made if asyncio.iscoroutine(made) else made


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("name", PUBLIC)
async def test_each_method_works_until_the_lease_ends(
    postgres_url: str,
    name: str,
) -> None:
    async with pool_of(postgres_url, "session") as pool:
        async with pool.lease() as connection:
            assert isinstance(connection, asyncpg.Connection)
            await call(connection, name)
        with pytest.raises(NotLeased, match=ENDED):
            await call(connection, name)


async def test_each_lease_has_a_connection_of_its_own(postgres_url: str) -> None:
    async with pool_of(postgres_url, "session") as pool:
        seen = []
        for _ in range(3):
            async with pool.lease() as connection:
                seen.append(connection)
                assert sum(not each._loan.is_over for each in seen) == 1
        assert pool.stats().creates == 1
    assert len({id(each) for each in seen}) == 3


async def test_callbacks_get_the_lent_connection(postgres_url: str) -> None:
    heard: list[Any] = []
    news = asyncio.Event()

    def hear(connection: Any, *_: object) -> None:
        heard.append(connection)
        news.set()

    async with pool_of(postgres_url, "session") as pool, pool.lease() as connection:
        await connection.add_listener("news", hear)
        connection.add_log_listener(hear)
        connection.add_termination_listener(hear)
        await connection.execute("DO $$ BEGIN RAISE NOTICE 'hear me'; END $$; NOTIFY news")
        await asyncio.wait_for(news.wait(), 5)
        news.clear()
        await connection.close()
        await asyncio.wait_for(news.wait(), 5)
        assert len(heard) == 3
        assert all(each is connection for each in heard)


async def test_listener_of_init_stays_and_gets_its_connection(postgres_url: str) -> None:
    ended: list[Any] = []

    async def init(connection: Any) -> None:
        connection.add_termination_listener(ended.append)

    async with pool_of(postgres_url, "session", init=init) as pool:
        for _ in range(2):
            async with pool.lease() as connection:
                connection.add_termination_listener(lambda _: ended.append("of a lease"))
    await asyncio.sleep(0)
    assert [isinstance(each, asyncpg.Connection) for each in ended] == [True]


async def test_connection_class_works_as_lent(postgres_url: str) -> None:
    class Mine(asyncpg.Connection):  # type: ignore[misc] # has no types
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.answer = 42

        async def ask(self) -> Any:
            return self.answer, await self.fetchval("SELECT 1"), self.given

    async def init(connection: Any) -> None:
        await connection.reload_schema_state()  # before there are siblings
        connection.given = "by init"

    async with pool_of(postgres_url, "session", connection_class=Mine, init=init) as pool, pool.lease() as connection:
        assert isinstance(connection, Mine)
        assert type(connection).__name__ == "Mine"
        assert await connection.ask() == (42, 1, "by init")
        with pytest.raises(AttributeError):
            _ = connection.nothing


async def test_detached_connection_goes_on(postgres_url: str) -> None:
    async with pool_of(postgres_url, "session") as pool:
        connection = await pool.acquire()
        assert pool.detach(connection) is connection
    assert await connection.fetchval("SELECT 1") == 1
    async with connection.transaction():
        await connection.execute("SELECT 1")
    await connection.close()
    assert connection.is_closed()


async def test_cached_statements_outlive_leases_and_are_closed(postgres_url: str) -> None:
    """A prepared statement that was kept is closed on the server later, by a lease that prepares another one."""
    names = "SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT 4711'"
    async with pool_of(postgres_url, "transaction") as pool:
        async with pool.lease() as connection:
            statement = await connection.prepare("SELECT 4711")
        async with pool.lease() as connection:
            assert await connection.fetchval(names) == 1
            del statement
            gc.collect()
            await connection.fetchval("SELECT 4712")
            assert await connection.fetchval(names) == 0
