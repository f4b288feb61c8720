"""PsycopgManager: what servers, networks and poolers do to it, and what it says of them."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import AsyncConnection, AsyncCursor

from connectionpools_fastapi import ConnectionPool, PoolConfigError
from connectionpools_fastapi.adapters import _psycopg_scripts
from connectionpools_fastapi.adapters.psycopg import PsycopgManager
from tests.certificates import write_certificate
from tests.programs import pgbouncer
from tests.psycopg_pools import (
    WAIT,
    Connection,
    each_reset,
    fixture_anyio_backend,  # noqa: F401
    pool_of,
    value,
)
from tests.wheel_servers import postgres
from tests.wires import speaking_tls

pytestmark = pytest.mark.anyio

# --- errors that tell -------------------------------------------------------------------------------


@asynccontextmanager
async def demoted(url: str) -> AsyncIterator[Connection]:
    """Have a server take no writes, as after a failover, though its connections stay."""
    async with await AsyncConnection.connect(url, autocommit=True) as admin:
        await set_read_only(admin, "SET default_transaction_read_only = on", "on")
        try:
            yield admin
        finally:
            await set_read_only(admin, "RESET default_transaction_read_only", "off")


async def set_read_only(admin: Connection, change: str, until: str) -> None:
    await admin.execute(f"ALTER SYSTEM {change}")
    await admin.execute("SELECT pg_reload_conf()")
    await until_set(admin, until)


async def until_set(connection: Connection, setting: str) -> None:
    """Wait until the server has told its process of one connection."""
    async with asyncio.timeout(WAIT):
        while await value(connection, "SHOW default_transaction_read_only") != setting:
            await connection.rollback()
        await connection.rollback()


@pytest.fixture(scope="module")
def other_url() -> Any:
    """Run a second server."""
    with postgres() as server:
        yield server.url


async def write(connection: Connection) -> None:
    await connection.execute("DROP TABLE IF EXISTS written")
    await connection.commit()


async def ask_for_session(connection: Connection) -> None:
    await connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
    await connection.commit()


ASKS: dict[str, Callable[[Connection], Awaitable[Any]]] = {
    "of the connection": lambda connection: connection.set_read_only(True),
    "of the transaction": lambda connection: connection.execute("SET TRANSACTION READ ONLY"),
    "of the session": ask_for_session,
}


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
async def test_requested_read_only_transaction_retires_nothing(
    postgres_url: str, ask: Callable[[Connection], Awaitable[Any]]
) -> None:
    async with pool_of(postgres_url, limit=3) as pool:
        first, second, third = [await pool.acquire() for _ in range(3)]
        await pool.release(second)
        await pool.release(third)
        await ask(first)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await first.execute("CREATE TABLE lost ()")
        await pool.release(first)
        for connection in [await pool.acquire() for _ in range(3)]:
            await write(connection)
            await pool.release(connection)
        assert pool.stats().creates == 3


async def test_read_only_server_is_not_asked_all_the_time(other_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_psycopg_scripts, "COUNT_EVERY", 1000.0)
    async with demoted(other_url), pool_of(other_url, limit=2) as pool:
        for _ in range(5):
            one, other = await pool.acquire(), await pool.acquire()
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                await write(one)
            await pool.release(one)
            await pool.release(other)
        one, other = await pool.acquire(), await pool.acquire()
        await pool.release(one)
        await pool.release(other)
        assert pool.stats().creates == 2 + 5 + 1  # those that were refused, and once the other one


# --- connecting -------------------------------------------------------------------------------------


@asynccontextmanager
async def silent_server() -> AsyncIterator[tuple[int, asyncio.Event]]:
    """Listen, take connections and say nothing; yield the port, and what is set when a client has gone."""
    is_gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read()
        is_gone.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], is_gone


@asynccontextmanager
async def full_backlog() -> AsyncIterator[tuple[int, asyncio.Event]]:
    """Listen, and take no connection: the operating system answers none."""
    done = asyncio.Event()
    done.set()
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0)
            filler.connect_ex(("127.0.0.1", port))
        yield port, done


def sockets() -> int:
    """Count those of this process."""
    return len([each for each in Path("/proc/self/fd").iterdir() if each.is_socket()])


@pytest.mark.parametrize("server", [silent_server, full_backlog])
@pytest.mark.parametrize("limit", [0.2, "0.2", "1.1"])
async def test_connect_obeys_a_time_limit_below_two_seconds(server: Callable[[], Any], limit: Any) -> None:
    async with server() as (port, is_gone):
        before = sockets()
        manager = PsycopgManager(f"postgresql://postgres:Sw0rdfish@127.0.0.1:{port}/postgres", connect_timeout=limit)
        async with asyncio.timeout(1.9):
            with pytest.raises(psycopg.errors.ConnectionTimeout):
                await manager.create()
            await is_gone.wait()
        await asyncio.sleep(0)
        assert sockets() <= before + (server is silent_server)  # whose own end may not be closed yet


async def test_connect_timeout_is_for_each_address(postgres_url: str) -> None:
    there = urlsplit(postgres_url)
    async with silent_server() as (port, _), asyncio.timeout(WAIT):
        address = (
            f"host=127.0.0.1,127.0.0.1 port={port},{there.port} user=postgres password={there.password} "
            "dbname=postgres connect_timeout=0.2"
        )
        async with pool_of(address) as pool, pool.lease() as connection:
            assert await value(connection, "SELECT 7") == 7


@pytest.mark.parametrize("trusted", ["none", "its own"])
async def test_certificate_that_does_not_verify_is_told(tmp_path: Path, trusted: str) -> None:
    certificate = write_certificate(tmp_path / "both.pem", "elsewhere")
    root = certificate if trusted == "its own" else tmp_path / "missing.pem"
    async with speaking_tls(certificate, "postgresql://postgres:Sw0rdfish@127.0.0.1:1/postgres") as url:
        manager = PsycopgManager(url, sslmode="verify-full", sslrootcert=str(root))
        with pytest.raises(PoolConfigError, match=r"certificate does not verify.*sslrootcert") as error:
            await manager.create()
    assert "Sw0rdfish" not in str(error.value)


# --- poolers and tracing ----------------------------------------------------------------------------


@pytest.mark.needs_program("pgbouncer")
@pytest.mark.parametrize(
    ("mode", "options", "told"),
    [
        ("session", {}, 0),
        ("session", {"reset": "transaction"}, 0),
        ("transaction", {}, 1),
        ("transaction", {"reset": "transaction", "prepare_threshold": None}, 1),
    ],
)
async def test_twenty_leases_behind_a_pooler_make_one_connection(
    postgres_url: str, mode: str, options: dict[str, Any], told: int, caplog: pytest.LogCaptureFixture
) -> None:
    with pgbouncer(postgres_url, mode, default_pool_size=3) as url:
        async with pool_of(url, limit=2, **options) as pool:
            for number in range(20):
                async with pool.lease() as connection:
                    assert await value(connection, "SELECT %s::int", number) == number
                    await connection.commit()
            assert pool.stats().creates == 1
            async with pool.lease(), pool.lease():
                pass
            assert pool.stats().creates == 2
    messages = [message for message in caplog.messages if "a pooler in transaction or statement mode" in message]
    assert len(messages) == told
    assert all("prepare_threshold=None" in message for message in messages)


@each_reset
async def test_reset_and_check_are_no_queries_for_tracing(
    postgres_url: str, reset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def traced(kind: Any) -> None:
        execute = kind.execute

        async def execute_traced(self: Any, query: Any, *args: Any, **options: Any) -> Any:
            seen.append(query)
            return await execute(self, query, *args, **options)

        monkeypatch.setattr(kind, "execute", execute_traced)

    traced(AsyncConnection)
    traced(AsyncCursor)
    options: dict[str, Any] = {"reset": reset}
    async with ConnectionPool(PsycopgManager(postgres_url, **options), limit=1, check_after=0) as pool:
        for _ in range(3):
            async with pool.lease() as connection:
                await connection.execute("SELECT 'mine'")
        assert pool.stats().creates == 1
    assert set(seen) == {"SELECT 'mine'"}
    assert len(seen) == 6  # the connection's and the cursor's
