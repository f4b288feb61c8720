"""asyncpg: what an error of a lease means for its connection, and for all others."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped] # has no types
import pytest

from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager
from tests.support import held
from tests.wheel_servers import PostgresServer, postgres

pytestmark = pytest.mark.anyio

READ_ONLY_ERROR = asyncpg.ReadOnlySQLTransactionError


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio only, as asyncpg does."""
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Yield a PostgreSQL whose settings a test may change."""
    with postgres() as server:
        yield server


@pytest.fixture
async def admin(server: PostgresServer) -> AsyncIterator[Any]:
    """Yield a connection from outside of the pool, and a table `written (n int)`."""
    connection = await asyncpg.connect(server.url, server_settings={"default_transaction_read_only": "off"})
    await connection.execute("DROP TABLE IF EXISTS written; CREATE TABLE written (n int)")
    yield connection
    await connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()


async def take_no_writes(admin: Any, value: str = "on") -> None:
    """Have the server take no writes, as after it was demoted, and wait until each session will hear of it."""
    await admin.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
    await admin.execute("SELECT pg_reload_conf()")
    probe = None
    async with asyncio.timeout(20):
        while probe != value:
            connection = await asyncpg.connect(dsn=admin_url(admin))
            probe = await connection.fetchval("SHOW default_transaction_read_only")
            await connection.close()


def admin_url(admin: Any) -> str:
    parameters = admin._params
    host, port = admin._addr
    return f"postgresql://{parameters.user}:{parameters.password}@{host}:{port}/{parameters.database}"


async def write(connection: Any) -> None:
    await connection.execute("INSERT INTO written VALUES (1)")


async def fill(pool: ConnectionPool[Any]) -> None:
    """Have as many free connections as there may be."""
    taken = [await pool.acquire() for _ in range(pool.limit)]
    for connection in taken:
        await pool.release(connection)


async def errors_of(pool: ConnectionPool[Any], call: Callable[[Any], Awaitable[None]], calls: int) -> int:
    """Count the calls that are refused; the caller handles the errors within its lease."""
    errors = 0
    for _ in range(calls):
        async with pool.lease() as connection:
            try:
                await call(connection)
            except READ_ONLY_ERROR:
                errors += 1
    return errors


async def test_server_that_takes_writes_again_is_written_to(server: PostgresServer, admin: Any) -> None:
    async with ConnectionPool(AsyncpgManager(server.url), limit=3) as pool:
        await fill(pool)
        await take_no_writes(admin)
        assert await errors_of(pool, write, 3) == 3
        await take_no_writes(admin, "off")
        assert await errors_of(pool, write, 5) == 0


async def test_server_without_writes_is_not_connected_to_for_each(server: PostgresServer, admin: Any) -> None:
    """Connections that are free are not all given up again and again, as long as nothing better is to be had."""
    async with ConnectionPool(AsyncpgManager(server.url), limit=3) as pool:
        await fill(pool)
        await take_no_writes(admin)
        assert await errors_of(pool, write, 1) == 1
        await fill(pool)
        assert pool.stats().creates == 6
        assert await errors_of(pool, write, 3) == 3
        await fill(pool)
        assert pool.stats().creates == 9


async def read_only_transaction(connection: Any) -> None:
    async with connection.transaction(readonly=True):
        await write(connection)


async def set_transaction(connection: Any) -> None:
    async with connection.transaction():
        await connection.execute("SET TRANSACTION READ ONLY")
        await write(connection)


async def set_session(connection: Any) -> None:
    await connection.execute("SET default_transaction_read_only = on")
    await write(connection)


async def set_characteristics(connection: Any) -> None:
    await connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
    async with connection.transaction():
        await write(connection)


@pytest.mark.usefixtures("admin")  # its table
@pytest.mark.parametrize("call", [read_only_transaction, set_transaction, set_session, set_characteristics])
@pytest.mark.parametrize("reset", ["session", "transaction"])
async def test_lease_that_asked_for_reading_only_costs_nothing(
    server: PostgresServer,
    reset: Any,
    call: Callable[[Any], Awaitable[None]],
) -> None:
    async with ConnectionPool(AsyncpgManager(server.url, reset=reset), limit=3) as pool:
        await fill(pool)
        assert await errors_of(pool, call, 3) == 3
        await fill(pool)
        assert pool.stats().creates == 3


async def test_standby_is_left_at_once(postgres_url: str) -> None:
    """A connection to a standby is given up while the lease that met it still goes on."""
    elsewhere = await asyncpg.connect(postgres_url)
    await elsewhere.execute("CREATE TABLE IF NOT EXISTS written (n int)")
    try:
        with postgres() as standby:
            connection = await asyncpg.connect(standby.url)
            folder = await connection.fetchval("SHOW data_directory")
            await connection.execute("CREATE TABLE written (n int); CHECKPOINT")
            await connection.close()
            standby.kill()
            (Path(folder) / "standby.signal").touch()
            standby.start()
            address = standby.url
            async with ConnectionPool(AsyncpgManager(lambda: address), limit=3) as pool:
                await fill(pool)
                address = postgres_url
                async with held(pool) as connection:
                    with pytest.raises(READ_ONLY_ERROR):
                        await write(connection)
                    async with pool.lease() as other:
                        await write(other)
                assert await errors_of(pool, write, 5) == 0
                await fill(pool)
                assert pool.stats().creates == 6
    finally:
        await elsewhere.execute("DROP TABLE written")
        await elsewhere.close()


async def statement_fails(connection: Any) -> None:
    await (await connection.prepare("SELECT pg_sleep(60)")).fetch()


async def cursor_fails(connection: Any) -> None:
    async with connection.transaction():
        await anext(aiter(connection.cursor("SELECT pg_sleep(60)")))


async def execute_fails(connection: Any) -> None:
    await connection.execute("SELECT pg_sleep(60)")


async def copy_fails(connection: Any) -> None:
    async def sink(_: bytes) -> None:
        pass

    await connection.copy_from_query("SELECT pg_sleep(60)", output=sink)


@pytest.mark.parametrize("call", [statement_fails, cursor_fails, execute_fails, copy_fails])
async def test_errors_that_the_caller_handles_are_judged(
    postgres_url: str, call: Callable[[Any], Awaitable[None]]
) -> None:
    judged: list[str] = []

    class Manager(AsyncpgManager):
        def broken(self, resource: Any, error: Exception) -> Any:
            judged.append(type(error).__name__)
            return super().broken(resource, error)

    manager = Manager(postgres_url, server_settings={"statement_timeout": "10"})
    async with ConnectionPool(manager, limit=1) as pool:
        async with pool.lease() as connection:
            with pytest.raises(asyncpg.QueryCanceledError):
                await call(connection)
            assert judged == ["QueryCanceledError"]
        assert pool.stats().creates == 1


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (asyncpg.CrashShutdownError, "expire"),
        (asyncpg.AdminShutdownError, "discard"),
        (asyncpg.ConnectionDoesNotExistError, "discard"),
        (asyncpg.UniqueViolationError, None),
        (asyncpg.InterfaceError, None),
        (LookupError, None),
    ],
)
async def test_broken_follows_the_code_of_the_error(
    postgres_url: str, error: type[Exception], verdict: str | None
) -> None:
    manager = AsyncpgManager(postgres_url)
    connection = await manager.create()
    assert manager.broken(connection, error("of a test")) == verdict
    await manager.clean(connection)


# --- changes of the schema -----------------------------------------------------------------


async def in_transaction(connection: Any) -> None:
    async with connection.transaction():
        await connection.fetch("SELECT * FROM written")


async def test_altered_table_costs_one_error(server: PostgresServer, admin: Any) -> None:
    """Each connection has prepared a statement for the table as it was; the first that fails has all forget it."""
    async with ConnectionPool(AsyncpgManager(server.url), limit=5) as pool:
        taken = [await pool.acquire() for _ in range(5)]
        for connection in taken:
            await connection.fetch("SELECT * FROM written")
            await pool.release(connection)
        await admin.execute("ALTER TABLE written ADD COLUMN m int")
        errors = 0
        taken = [await pool.acquire() for _ in range(5)]
        for connection in taken:
            try:
                await in_transaction(connection)
            except asyncpg.InvalidCachedStatementError:
                errors += 1
            await pool.release(connection)
        assert errors == 1
        assert pool.stats().creates == 5


async def test_altered_type_costs_one_error(server: PostgresServer, admin: Any) -> None:
    await admin.execute("CREATE TYPE pair AS (a int, b int); ALTER TABLE written ADD COLUMN p pair")
    await admin.execute("INSERT INTO written (p) VALUES (ROW(1, 2))")
    try:
        async with ConnectionPool(AsyncpgManager(server.url), limit=3) as pool:
            taken = [await pool.acquire() for _ in range(3)]
            for connection in taken:
                await connection.fetch("SELECT p FROM written")
            await admin.execute("ALTER TYPE pair ADD ATTRIBUTE c int")
            errors = 0
            for connection in taken:
                try:
                    await connection.fetch("SELECT p FROM written")
                except asyncpg.OutdatedSchemaCacheError:
                    errors += 1
                await pool.release(connection)
            assert errors == 1
    finally:
        await admin.execute("DROP TABLE written; DROP TYPE pair; CREATE TABLE written (n int)")


# --- tracing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", ["session", "transaction"])
async def test_tracing_sees_the_queries_of_leases_only(
    postgres_url: str, reset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenTelemetry does, which wraps the methods of asyncpg's class."""
    seen: list[str] = []

    def wrap(name: str) -> None:
        method = getattr(asyncpg.Connection, name)

        async def call(self: Any, query: str, *args: Any, **options: Any) -> Any:
            seen.append(query)
            return await method(self, query, *args, **options)

        monkeypatch.setattr(asyncpg.Connection, name, call)

    for name in ("execute", "executemany", "fetch", "fetchval", "fetchrow"):
        wrap(name)
    async with ConnectionPool(AsyncpgManager(postgres_url, reset=reset), limit=1, check_after=0) as pool:
        for _ in range(2):
            async with pool.lease() as connection:
                await connection.execute("SELECT 'theirs'")
                await connection.execute("BEGIN")
    assert seen == ["SELECT 'theirs'", "BEGIN"] * 2
