"""asyncpg: no lease sees what an earlier one left behind, and what cannot be mended is not used again."""

import asyncio
import importlib
import ssl
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel
import asyncpg  # type: ignore[import-untyped] # has no types
import pytest

from connectionpools_fastapi import ConnectionPool, PoolConfigError, ResourceUnavailable
from connectionpools_fastapi.adapters import asyncpg as adapter
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager
from tests.certificates import write_certificate
from tests.leak_servers import POSTGRES
from tests.wires import LOCAL_PORT, Proxy, speaking_tls

pytestmark = pytest.mark.anyio

Reset = Literal["session", "transaction"]
RESETS: list[Reset] = ["session", "transaction"]


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio only, as asyncpg does."""
    return "asyncio"


@pytest.fixture
async def admin(postgres_url: str) -> AsyncIterator[Any]:
    """Yield a connection from outside of the pool."""
    connection = await asyncpg.connect(postgres_url)
    yield connection
    await connection.close()


def pool_of(manager: AsyncpgManager, **options: Any) -> ConnectionPool[Any]:
    return ConnectionPool(manager, **{"limit": 1, **options})


# --- what a lease may leave behind ---------------------------------------------------------


async def start_transaction(connection: Any) -> None:
    await connection.transaction().start()


async def fail_in_transaction(connection: Any) -> None:
    await connection.execute("BEGIN")
    with suppress(asyncpg.PostgresError):
        await connection.execute("SELECT 1 / 0")


async def test_lease_does_not_see_the_last_sequence_value(postgres_url: str, admin: Any) -> None:
    await admin.execute("CREATE SEQUENCE IF NOT EXISTS numbers")
    try:
        async with pool_of(AsyncpgManager(postgres_url)) as pool:
            async with pool.lease() as connection:
                pid = connection.get_server_pid()
                await connection.execute("SELECT nextval('numbers')")
                await connection.execute("SELECT lastval()")
            async with pool.lease() as connection:
                assert connection.get_server_pid() == pid
                with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError):
                    await connection.execute("SELECT lastval()")
    finally:
        await admin.execute("DROP SEQUENCE numbers")


@pytest.mark.parametrize("reset", RESETS)
async def test_listeners_hear_nothing_of_the_next_lease(postgres_url: str, reset: Reset) -> None:
    """The query loggers of the lease hear nothing either."""
    heard: list[object] = []
    asked: list[str] = []
    at_creation: list[str] = []
    has_heard = asyncio.Event()

    async def init(connection: Any) -> None:
        connection.add_query_logger(lambda record: at_creation.append(record.query))

    async with pool_of(AsyncpgManager(postgres_url, reset=reset, init=init)) as pool:
        async with pool.lease() as connection:
            pid = connection.get_server_pid()
            await connection.add_listener("news", lambda *_: heard.append("news"))
            connection.add_log_listener(lambda *_: heard.append("log"))
            connection.add_termination_listener(lambda *_: heard.append("end"))
            connection.add_query_logger(lambda record: asked.append(record.query))
            await connection.execute("SELECT 'theirs'")
        async with pool.lease() as connection:
            assert connection.get_server_pid() == pid
            await connection.add_listener("news", lambda *_: has_heard.set())
            await connection.execute("DO $$ BEGIN RAISE NOTICE 'hear me'; END $$")
            await connection.execute("NOTIFY news")
            await asyncio.wait_for(has_heard.wait(), 5)
    await anyio.lowlevel.checkpoint()
    assert not heard
    assert "SELECT 'theirs'" in asked
    assert "NOTIFY news" not in asked
    assert {"SELECT 'theirs'", "NOTIFY news"} <= set(at_creation)


@pytest.mark.parametrize("reset", RESETS)
async def test_transaction_ended_by_plain_sql_is_forgotten(postgres_url: str, reset: Reset) -> None:
    """The driver still takes it for open."""
    async with pool_of(AsyncpgManager(postgres_url, reset=reset)) as pool:
        async with pool.lease() as connection:
            await start_transaction(connection)
            await connection.execute("ROLLBACK")
        async with pool.lease() as connection, connection.transaction():
            assert connection.is_in_transaction()
        assert pool.stats().creates == 1


@pytest.mark.parametrize("leave", [start_transaction, fail_in_transaction])
@pytest.mark.parametrize("reset", RESETS)
async def test_open_transaction_is_told_with_its_holder(
    postgres_url: str, reset: Reset, leave: Callable[[Any], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    async def lease() -> None:
        async with pool.lease() as connection:
            async with connection.transaction():
                await connection.execute("SELECT")
            assert not caplog.messages
            await leave(connection)

    async with pool_of(AsyncpgManager(postgres_url, reset=reset), name="db") as pool:
        await asyncio.create_task(lease(), name="the one")
        (message,) = caplog.messages
        assert message.startswith("pool 'db': the one: a transaction is left open")
        assert "async with conn.transaction()" in message


@pytest.mark.parametrize("reset", RESETS)
async def test_statements_prepared_by_the_driver_stay(postgres_url: str, reset: Reset) -> None:
    async with pool_of(AsyncpgManager(postgres_url, reset=reset)) as pool:
        for _ in range(2):
            async with pool.lease() as connection:
                assert await connection.fetchval("SELECT 41 + $1::int", 1) == 42
        async with pool.lease() as connection:
            known = await connection.fetch("SELECT statement FROM pg_prepared_statements")
            assert [row["statement"] for row in known].count("SELECT 41 + $1::int") == 1
        assert pool.stats().creates == 1


async def prepare_by_hand(connection: Any) -> None:
    await connection.execute("PREPARE mine AS SELECT 1")


async def prepare_by_name(connection: Any) -> None:
    await connection.prepare("SELECT 1", name="mine")


@pytest.mark.parametrize("prepare", [prepare_by_hand, prepare_by_name])
async def test_prepared_statements_of_a_lease_cost_the_connection(
    postgres_url: str, prepare: Callable[[Any], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    async with pool_of(AsyncpgManager(postgres_url)) as pool:
        for _ in range(2):
            async with pool.lease() as connection:
                await prepare(connection)
    assert pool.stats().creates == 2
    assert "DEALLOCATE" in caplog.text


async def test_reset_prepares_its_search_once(postgres_url: str, admin: Any) -> None:
    async with pool_of(AsyncpgManager(postgres_url)) as pool:
        for step in ("PREPARE", "EXECUTE", "EXECUTE"):
            async with pool.lease() as connection:
                pid = connection.get_server_pid()
            last = await admin.fetchval("SELECT query FROM pg_stat_activity WHERE pid = $1", pid)
            assert step in last
            assert ("pg_prepared_statement()" in last) is (step == "PREPARE")
        assert pool.stats().creates == 1


@pytest.mark.parametrize("discard", ["DEALLOCATE ALL", "DISCARD ALL", 'PREPARE "__asyncpg_pool_reset__" AS SELECT 1'])
async def test_reset_does_the_same_without_its_prepared_search(postgres_url: str, discard: str) -> None:
    leftovers = [each for name, each in POSTGRES.leftovers.items() if each.of_session and "PREPARE" not in name]
    async with pool_of(AsyncpgManager(postgres_url, statement_cache_size=0)) as pool:
        for _ in range(0 if "PREPARE" in discard else 2):
            async with pool.lease():  # its reset prepares the search, or uses what the last one has prepared
                pass
        for statements in ([discard, *(each.leave for each in leftovers)], [each.leave for each in leftovers]):
            async with pool.lease() as connection:
                for statement in statements:
                    await connection.execute(statement)
            async with pool.lease() as connection:
                assert not [each.leave for each in leftovers if await connection.fetchval(each.question)]
        assert pool.stats().creates == 1
        async with pool.lease() as connection:
            await prepare_by_hand(connection)
        async with pool.lease():
            assert pool.stats().creates == 2


@pytest.mark.parametrize("reset", RESETS)
async def test_type_codecs_are_those_of_init(postgres_url: str, reset: Reset, caplog: pytest.LogCaptureFixture) -> None:
    async def init(connection: Any) -> None:
        await connection.set_type_codec("int4", schema="pg_catalog", encoder=str, decoder=lambda text: f"init {text}")

    async with pool_of(AsyncpgManager(postgres_url, reset=reset, init=init)) as pool:
        for _ in range(2):
            async with pool.lease() as connection:
                assert await connection.fetchval("SELECT 1") == "init 1"
        assert pool.stats().creates == 1
        changes: list[Callable[[Any], Awaitable[None]]] = [
            lambda connection: connection.set_type_codec("int4", schema="pg_catalog", encoder=str, decoder=str),
            lambda connection: connection.set_builtin_type_codec("int4", schema="pg_catalog", codec_name="int2"),
            lambda connection: connection.reset_type_codec("int4", schema="pg_catalog"),
        ]
        for change in changes:
            async with pool.lease() as connection:
                assert await connection.fetchval("SELECT 1") == "init 1"
                with suppress(asyncpg.InterfaceError):  # even if it fails
                    await change(connection)
        async with pool.lease() as connection:
            assert await connection.fetchval("SELECT 1") == "init 1"
    assert "set them in init" in caplog.text


# --- what cannot be mended -----------------------------------------------------------------

FOR_A_MINUTE = "DO $$ BEGIN RAISE NOTICE 'begun'; PERFORM pg_sleep(60); END $$"


async def is_running(connection: Any, query: Awaitable[Any]) -> asyncio.Task[Any]:
    """Start a query as a task, and return when the server has begun with it."""
    begun = asyncio.Event()
    connection.add_log_listener(lambda *_: begun.set())
    task = asyncio.ensure_future(query)
    await asyncio.wait_for(begun.wait(), 5)
    assert isinstance(task, asyncio.Task)
    return task


async def is_gone(admin: Any, pid: int) -> bool:
    """Wait until the server has ended a session."""
    with anyio.move_on_after(5):
        while await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid):
            pass
        return True
    return False


@pytest.mark.parametrize("reset", RESETS)
async def test_a_connection_is_not_used_again_if_it_is_busy(postgres_url: str, admin: Any, reset: Reset) -> None:
    async with pool_of(AsyncpgManager(postgres_url, reset=reset)) as pool:
        async with pool.lease() as connection:
            pid = connection.get_server_pid()
            query = await is_running(connection, connection.execute(FOR_A_MINUTE))
        async with pool.lease() as connection:
            assert connection.get_server_pid() != pid
            assert await connection.fetchval("SELECT 1") == 1
        with pytest.raises(asyncpg.QueryCanceledError):
            await query
        assert await is_gone(admin, pid)
        assert pool.stats().discards["change"] == 1


@pytest.mark.parametrize("reset", RESETS)
async def test_connection_of_a_timed_out_query_is_reused(postgres_url: str, reset: Reset) -> None:
    async with pool_of(AsyncpgManager(postgres_url, reset=reset)) as pool:
        async with pool.lease() as connection:
            with pytest.raises(TimeoutError):
                await connection.execute("SELECT pg_sleep(60)", timeout=0.01)
            assert await connection.fetchval("SELECT 1") == 1  # the driver has waited for the end of the first one
        async with pool.lease() as connection:
            assert await connection.fetchval("SELECT 1") == 1
        assert pool.stats().creates == 1


# --- what it costs, and how it ends: through a proxy -------------------------------------------


@pytest.mark.parametrize(
    ("reset", "leave", "round_trips"),
    [
        ("session", "SELECT", 1),
        ("session", "BEGIN", 1),
        ("transaction", "SELECT", 0),
        ("transaction", "SET ROLE pg_read_all_data", 0),
        ("transaction", "BEGIN", 1),
    ],
)
async def test_a_reset_makes_as_many_round_trips_as_promised(
    proxy: Proxy, reset: Reset, leave: str, round_trips: int
) -> None:
    manager = AsyncpgManager(proxy.url, reset=reset, ssl=False)
    connection = await manager.create()
    await connection.execute(leave)
    proxy.sent.clear()
    await manager.change(connection)
    assert len(proxy.sent) == round_trips
    assert await manager.check(connection) is True
    assert len(proxy.sent) == round_trips + 1
    await manager.clean(connection)
    proxy.sent.clear()
    assert await manager.check(connection) is False
    assert not proxy.sent


@pytest.mark.parametrize("leave", ["SELECT", "BEGIN"])
async def test_clean_does_not_wait_for_a_network_that_stalls(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, leave: str
) -> None:
    monkeypatch.setattr(adapter, "CLOSE_WITHIN", 0.01)
    manager = AsyncpgManager(proxy.url, ssl=False)
    connection = await manager.create()
    await connection.execute(leave)
    query = await is_running(connection, connection.execute(FOR_A_MINUTE)) if leave == "BEGIN" else None
    proxy.stalls = True
    with anyio.fail_after(5):
        await manager.clean(connection)
        await proxy.left.wait()
        if query is not None:
            await asyncio.wait([query])
            query.exception()  # some versions raise one
    assert connection.is_closed()


async def test_clean_bears_with_what_is_closed_already(postgres_url: str) -> None:
    manager = AsyncpgManager(postgres_url)
    connection = await manager.create()
    await manager.clean(connection)
    await manager.clean(connection)
    connection = await manager.create()
    connection.terminate()
    await manager.clean(connection)


async def test_connecting_is_given_up_in_time() -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")  # takes calls and says nothing
    port = listener.extra(LOCAL_PORT)  # noqa: S610 - not of Django
    # Not shorter: asyncpg leaves an error behind if its time is up just as the server takes the call.
    async with listener, pool_of(AsyncpgManager(f"postgresql://127.0.0.1:{port}", timeout=0.3)) as pool:
        with pytest.raises(ResourceUnavailable) as caught:
            await pool.acquire()
    assert isinstance(caught.value.__cause__, TimeoutError)


# --- how to connect, and how not -----------------------------------------------------------


async def test_an_address_is_asked_for_anew_at_each_create(postgres_url: str) -> None:
    asked = []

    def plain() -> str:
        asked.append("plain")
        return postgres_url

    async def later() -> str:
        asked.append("async")
        return postgres_url

    for address in (plain, later):
        async with pool_of(AsyncpgManager(address), limit=2) as pool, pool.lease() as one, pool.lease() as two:
            assert await one.fetchval("SELECT 1") == await two.fetchval("SELECT 1") == 1
    assert asked == ["plain", "plain", "async", "async"]


async def test_options_reach_the_driver(postgres_url: str) -> None:
    class Mine(asyncpg.Connection):  # type: ignore[misc] # has no types
        pass

    manager = AsyncpgManager(postgres_url, connection_class=Mine, server_settings={"application_name": "mine"})
    async with pool_of(manager) as pool:
        for _ in range(2):
            async with pool.lease() as connection:
                assert isinstance(connection, Mine)
                assert await connection.fetchval("SHOW application_name") == "mine"
                await connection.execute("SET application_name = 'other'")
        assert pool.stats().creates == 1


@pytest.mark.parametrize("leave", ["RESET ALL", "SET ROLE NONE", "SET SESSION AUTHORIZATION DEFAULT"])
async def test_the_role_at_connecting_is_that_of_each_lease(postgres_url: str, leave: str) -> None:
    async with pool_of(AsyncpgManager(postgres_url, server_settings={"role": "pg_monitor"})) as pool:
        for _ in range(2):
            async with pool.lease() as connection:
                assert await connection.fetchval("SELECT current_user") == "pg_monitor"
                await connection.execute(leave)
        assert pool.stats().creates == 1


SECRET = "letmein"  # noqa: S105 - of no account


def at(url: str, *, user: str | None = None, database: str | None = None) -> str:
    parts = urlsplit(url)
    account, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user or account}@{host}", path=f"/{database}" if database else parts.path).geturl()


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda _: f"mysql://u:{SECRET}@localhost/db", "malformed"),
        (lambda _: f"postgresql://u:{SECRET}@localhost:port/db", "malformed"),
        (lambda _: f"postgresql://u:{SECRET}@127.0.0.1:99999/db", "malformed"),
        (lambda _: f"{SECRET}", "percent-encoding"),
        (lambda _: f"postgresql+asyncpg://u:{SECRET}@localhost/db", "SQLAlchemy writes it.*Write postgresql://"),
        (lambda _: f"postgresql://u:{SECRET}/{SECRET}@localhost/db", r"a / stands as it is.*Write %2F"),
        (lambda _: f"postgresql://u:1/{SECRET}@localhost/db", r"a / stands as it is.*Write %2F"),
        (lambda _: f"postgresql://u:{SECRET}#{SECRET}@localhost/db", r"a # stands as it is.*Write %23"),
        (lambda _: f"postgresql://u:{SECRET}?{SECRET}@localhost/db", r"a \? stands as it is.*Write %3F"),
        (lambda _: f"postgresql://u:{SECRET}[{SECRET}@localhost/db", r"a \[ stands as it is.*Write %5B"),
        (lambda _: f"postgresql://u:{SECRET}@{SECRET}@localhost/db", r"a @ stands as it is.*Write %40"),
        (lambda url: at(url, user=f"postgres:{SECRET}"), "InvalidPasswordError"),
        (lambda url: at(url, user=f"nobody-there:{SECRET}"), "InvalidPasswordError"),
        (lambda url: at(url, database="nowhere"), "InvalidCatalogNameError"),
        (lambda url: f"{url}?work_mem=much", "InvalidParameterValueError"),
        (lambda url: f"{url}?no_such_setting=1", "UndefinedObjectError"),
    ],
)
async def test_mistake_at_start_is_one_line_without_the_password(
    postgres_url: str, make: Callable[[str], str], names: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager = AsyncpgManager(make(postgres_url))
    with pytest.raises(PoolConfigError, match=names) as caught:
        await pool_of(manager, min_free=1).open()
    told = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(manager)
    assert "\n" not in str(caught.value)
    assert SECRET not in told
    assert str(urlsplit(postgres_url).password) not in told
    async with pool_of(manager) as pool:
        with pytest.raises(PoolConfigError, match=names):
            await pool.acquire()


@pytest.mark.parametrize(("knows_signer", "check"), [(False, "self-signed certificate"), (True, "IP address mismatch")])
async def test_certificate_that_does_not_verify_is_told(tmp_path: Path, check: str, *, knows_signer: bool) -> None:
    certificate = write_certificate(tmp_path / "both.pem", "elsewhere.example")
    context = ssl.create_default_context(cafile=str(certificate) if knows_signer else None)
    async with speaking_tls(certificate, f"postgresql://u:{SECRET}@127.0.0.1:1/db") as url:
        with pytest.raises(PoolConfigError, match=rf"certificate does not pass \({check}") as refused:
            await AsyncpgManager(url, ssl=context).create()
    told = "".join(traceback.format_exception(refused.value))
    assert "malformed" not in told
    assert SECRET not in told


async def test_a_server_that_is_down_is_no_mistake() -> None:
    async with pool_of(AsyncpgManager(f"postgresql://u:{SECRET}@127.0.0.1:1/db")) as pool:
        with pytest.raises(ResourceUnavailable) as caught:
            await pool.acquire()
    assert isinstance(caught.value.__cause__, OSError)
    assert SECRET not in str(caught.value)


async def test_a_connection_whose_init_fails_is_closed(postgres_url: str, admin: Any) -> None:
    pids: list[int] = []

    async def init(connection: Any) -> None:
        pids.append(connection.get_server_pid())
        raise LookupError

    async with pool_of(AsyncpgManager(postgres_url, init=init)) as pool:
        with pytest.raises(ResourceUnavailable) as caught:
            await pool.acquire()
        assert isinstance(caught.value.__cause__, LookupError)
        assert await is_gone(admin, pids[0])


def test_another_event_loop_is_told_to_be_asyncio() -> None:
    async def use() -> None:
        async with pool_of(AsyncpgManager("postgresql://localhost")) as pool:
            await pool.acquire()

    with pytest.raises(PoolConfigError, match="asyncio"):
        anyio.run(use, backend="trio")


def test_what_cannot_be_meant_is_refused_at_once() -> None:
    with pytest.raises(PoolConfigError, match="'session' or 'transaction'"):
        AsyncpgManager("postgresql://localhost", reset="none")  # type: ignore[arg-type]
    with pytest.raises(PoolConfigError, match="connection_class must be a subclass of asyncpg"):
        AsyncpgManager("postgresql://localhost", connection_class=AsyncpgManager)


async def test_connect_of_the_application_makes_the_connections(postgres_url: str) -> None:
    made: list[Any] = []

    async def connect(dsn: str, **options: Any) -> Any:
        made.append(await asyncpg.connect(dsn, **options))
        return made[-1]

    async with pool_of(AsyncpgManager(postgres_url, connect=connect)) as pool, pool.lease() as connection:
        assert await connection.fetchval("SELECT pg_backend_pid()") == made[0].get_server_pid()
        assert len(made) == 1


async def test_connect_that_drops_connection_class_is_told(postgres_url: str) -> None:
    made: list[Any] = []

    async def connect(dsn: str, **_: Any) -> Any:
        made.append(await asyncpg.connect(dsn))
        return made[-1]

    with pytest.raises(PoolConfigError, match=r"what `connect` returns .* Pass that on to asyncpg\.connect"):
        await AsyncpgManager(postgres_url, connect=connect).create()
    assert made[0].is_closed()


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"min_size": 1, "max_size": 9}, r"no max_size, min_size: for max_size write ConnectionPool\(\.\.\., limit="),
        ({"sslmode": "require"}, r"no sslmode: for sslmode write ssl="),
        ({"comand_timeout": 1}, r"no comand_timeout: for comand_timeout write command_timeout="),
        ({"xyzzy": SECRET}, r"no xyzzy$"),
    ],
)
def test_unknown_option_is_refused_with_what_to_write(options: dict[str, Any], hint: str) -> None:
    with pytest.raises(PoolConfigError, match=hint) as refused:
        AsyncpgManager("postgresql://localhost", **options)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("is_there", [False, True])
def test_missing_or_old_driver_names_what_to_install(monkeypatch: pytest.MonkeyPatch, *, is_there: bool) -> None:
    monkeypatch.delitem(sys.modules, adapter.__name__)
    if is_there:
        monkeypatch.delattr(asyncpg.Connection, "get_reset_query")
    else:
        monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(ImportError, match=r"0\.30 or newer: pip install 'connectionpools-fastapi\[asyncpg\]'"):
        importlib.import_module(adapter.__name__)
