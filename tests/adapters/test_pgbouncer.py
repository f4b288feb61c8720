"""A PgBouncer between pool and PostgreSQL: what is pooled, what is promised, and what is told."""

import asyncio
import re
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import asyncpg  # type: ignore[import-untyped] # has no types
import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi.adapters import asyncpg as adapter
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager
from connectionpools_fastapi.testing import started
from tests.programs import pgbouncer

pytestmark = [pytest.mark.anyio, pytest.mark.needs_program("pgbouncer")]

MODES = ["session", "transaction", "statement"]
POOLED = "AsyncpgManager: a pooler in transaction or statement mode"


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio only, as asyncpg does."""
    return "asyncio"


@pytest.fixture(scope="module")
def poolers(postgres_url: str) -> Iterator[Any]:
    """Yield what tells the address of a PgBouncer in a mode."""
    with ExitStack() as stack:
        yield {mode: stack.enter_context(pgbouncer(postgres_url, mode)) for mode in MODES}.__getitem__


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [message for message in caplog.messages if message.startswith(POOLED)]


@pytest.mark.parametrize("statement_cache_size", [0, 100])
@pytest.mark.parametrize("reset", ["session", "transaction"])
@pytest.mark.parametrize("mode", MODES)
async def test_asyncpg_twenty_leases_make_one_connection(
    poolers: Any, mode: str, reset: Any, statement_cache_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    manager = AsyncpgManager(poolers(mode), reset=reset, statement_cache_size=statement_cache_size)
    async with ConnectionPool(manager, limit=5, check_after=0) as pool:
        for number in range(20):
            async with pool.lease() as connection:
                assert await connection.fetchval("SELECT 1") == 1
                assert await connection.fetchval("SELECT $1::int", number) == number
                if mode != "statement":
                    async with connection.transaction():
                        await connection.execute("SELECT 1")
        assert pool.stats().creates == 1
    assert len(warnings(caplog)) == (mode != "session")


@pytest.mark.parametrize("mode", MODES)
async def test_asyncpg_many_connections_share_sessions(poolers: Any, mode: str) -> None:
    manager = AsyncpgManager(poolers(mode), reset="transaction", statement_cache_size=0)
    async with ConnectionPool(manager, limit=5) as pool:
        for _ in range(4):
            taken = [await pool.acquire() for _ in range(5)]
            for number, connection in enumerate(taken):
                assert await connection.fetchval("SELECT $1::int", number) == number
            for connection in taken:
                await pool.release(connection)
        assert pool.stats().creates == 5


async def test_asyncpg_transaction_left_open_is_rolled_back(poolers: Any) -> None:
    async with ConnectionPool(AsyncpgManager(poolers("transaction"), statement_cache_size=0), limit=1) as pool:
        async with pool.lease() as connection:
            await connection.execute("BEGIN; CREATE TABLE left_open ()")
        async with pool.lease() as connection:
            assert not connection.is_in_transaction()
            assert await connection.fetchval("SELECT to_regclass('left_open') IS NULL")
        assert pool.stats().creates == 1


async def test_asyncpg_pooler_is_told_once_with_what_to_write(poolers: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with ConnectionPool(AsyncpgManager(poolers("transaction")), limit=3, min_free=3) as pool:
        taken = [await pool.acquire() for _ in range(3)]
        for connection in taken:
            await pool.release(connection)
    (message,) = warnings(caplog)
    for word in ("reset='transaction'", "statement_cache_size=0", "SET LOCAL", "session mode", "docs/pgbouncer.md"):
        assert word in message


async def test_asyncpg_pooler_is_found_among_other_clients(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Sessions go from client to client, in whatever order."""
    with pgbouncer(postgres_url, "transaction", server_round_robin=1, default_pool_size=5) as url:
        others = [await asyncpg.connect(url) for _ in range(4)]
        transactions = [other.transaction() for other in others]
        for transaction in transactions:
            await transaction.start()
        for transaction in transactions:
            await transaction.rollback()
        async with ConnectionPool(AsyncpgManager(url), limit=1) as pool, pool.lease():
            pass
        for other in others:
            await other.close()
    assert len(warnings(caplog)) == 1


async def test_asyncpg_pooler_with_one_session_is_borne_with(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In session mode there is none left for the second connection that is to find out the mode."""
    monkeypatch.setattr(adapter, "LOOK_WITHIN", 0.1)
    with pgbouncer(postgres_url, "session", default_pool_size=1) as url:
        async with ConnectionPool(AsyncpgManager(url), limit=1) as pool, pool.lease() as connection:
            assert await connection.fetchval("SELECT 1") == 1
        assert pool.stats().creates == 1
    assert not warnings(caplog)


async def test_asyncpg_statements_of_others_cost_no_connection(postgres_url: str) -> None:
    """Where clients share sessions, what is prepared there may be another client's."""
    with pgbouncer(postgres_url, "transaction", default_pool_size=1) as url:
        other = await asyncpg.connect(url)
        await other.execute("PREPARE theirs AS SELECT 1")
        async with ConnectionPool(AsyncpgManager(url, statement_cache_size=0), limit=1) as pool:
            for _ in range(3):
                async with pool.lease() as connection:
                    await connection.execute("EXECUTE theirs")
            assert pool.stats().creates == 1
        await other.close()


async def test_asyncpg_reset_works_behind_a_pooler_not_found(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each reset may be of a session where its search is prepared already, or not yet."""
    monkeypatch.setattr(adapter, "LOOK_WITHIN", 0)
    with pgbouncer(postgres_url, "transaction", default_pool_size=3, server_round_robin=1) as url:
        async with ConnectionPool(AsyncpgManager(url, statement_cache_size=0), limit=3, min_free=3) as pool:
            for _ in range(5):
                leases = [pool.lease() for _ in range(3)]
                for lease in leases:
                    assert await (await lease.__aenter__()).fetchval("SELECT 1") == 1
                for lease in leases:
                    await lease.__aexit__(None, None, None)
            assert pool.stats().creates == 3
    assert not warnings(caplog)


async def test_asyncpg_server_itself_is_no_pooler(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with ConnectionPool(AsyncpgManager(postgres_url), limit=1) as pool, pool.lease():
        pass
    assert not warnings(caplog)


async def test_asyncpg_reset_lets_statements_of_a_pooler_be(postgres_url: str) -> None:
    """PgBouncer from 1.21 on names the statements of its clients like this."""
    async with ConnectionPool(AsyncpgManager(postgres_url), limit=1) as pool:
        for number in range(3):
            async with pool.lease() as connection:
                await connection.prepare("SELECT 1", name=f"PGBOUNCER_{number}")
        assert pool.stats().creates == 1


# --- the page --------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "pgbouncer.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
PROGRAMS = [code for language, code in BLOCKS if language == "python"]
NUMBERS = range(len(PROGRAMS))


def program(number: int) -> ModuleType:
    module = ModuleType("page")
    exec(compile(PROGRAMS[number], f"<docs/pgbouncer.md, program {number}>", "exec"), module.__dict__)  # noqa: S102
    return module


async def ask(connection: Any, number: int) -> Any:
    """Ask for a number in a transaction, by whatever driver."""
    if isinstance(connection, AsyncConnection):
        async with connection.begin():
            return (await connection.execute(text("SELECT CAST(:number AS int)"), {"number": number})).scalar()
    async with connection.transaction():
        if hasattr(connection, "fetchval"):
            return await connection.fetchval("SELECT $1::int", number)
        (found,) = await (await connection.execute("SELECT %s::int", (number,))).fetchone()
        return found


@pytest.mark.parametrize("number", NUMBERS)
async def test_program_of_the_page_keeps_its_connections(
    poolers: Any, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", poolers("transaction" if number else "session"))
    for pool in [each for each in vars(program(number)).values() if isinstance(each, ConnectionPool)]:
        async with pool:
            for each in range(20):
                async with pool.lease() as connection:
                    assert await ask(connection, each) == each
            assert pool.stats().creates == 1
            taken = [await pool.acquire() for _ in range(4)]
            for each in range(10):
                assert await asyncio.gather(*(ask(connection, each) for connection in taken)) == [each] * 4
            for connection in taken:
                await pool.release(connection)
            assert pool.stats().creates == 4


async def test_endpoint_of_the_page_sees_its_own_tenant(poolers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", poolers("transaction"))
    module = program(-1)
    async with (
        started(module.app) as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):

        async def call(tenant: str) -> str:
            return str((await client.get("/tenant", headers={"X-Tenant": tenant})).json())

        tenants = [f"tenant {number}" for number in range(40)]
        assert await asyncio.gather(*map(call, tenants)) == tenants


@pytest.mark.parametrize("is_set_for_session", [False, True])
async def test_transaction_mode_lets_other_leases_see_what_is_set(
    postgres_url: str, *, is_set_for_session: bool
) -> None:
    """What the page says: a reset cannot prevent it, and SET LOCAL does."""
    with pgbouncer(postgres_url, "transaction", default_pool_size=1) as url:
        seen = []
        async with ConnectionPool(AsyncpgManager(url, reset="session", statement_cache_size=0), limit=2) as pool:
            one, other = await pool.acquire(), await pool.acquire()
            async with one.transaction():
                await one.execute(f"SELECT set_config('app.tenant', 'one', {not is_set_for_session})")
            seen.append(await other.fetchval("SELECT current_setting('app.tenant', true)"))
            await pool.release(one)
            await pool.release(other)
    assert (seen == ["one"]) is is_set_for_session


def test_settings_of_the_page_can_be_read() -> None:
    (settings,) = [code for language, code in BLOCKS if language == "ini"]
    parser = ConfigParser()
    parser.read_string(settings)
    assert dict(parser["pgbouncer"]) == {"pool_mode": "transaction", "max_prepared_statements": "200"}
