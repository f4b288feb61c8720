"""Row-level security of a real PostgreSQL: each request sees its tenant's rows, with each driver."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from urllib.parse import urlsplit

import asyncpg  # type: ignore[import-untyped] # has no types
import httpx
import psycopg
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.testclient import TestClient
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from connectionpools_fastapi import ConnectionPool, Leased, PoolConfigError, install_pools
from connectionpools_fastapi.adapters.aiosqlite import AiosqliteManager
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager
from connectionpools_fastapi.adapters.psycopg import PsycopgManager, SyncPsycopgManager
from connectionpools_fastapi.adapters.redis import RedisManager
from connectionpools_fastapi.adapters.sqlalchemy import LeasedSession, SqlalchemyManager, SyncSqlalchemyManager
from connectionpools_fastapi.adapters.sqlite import SqliteManager
from connectionpools_fastapi.testing import started
from tests.programs import pgbouncer
from tests.support import check
from tests.wheel_servers import PASSWORD

pytestmark = pytest.mark.anyio

ROLE = "test_tenants"
# A role that the policies apply to: no superuser, and no owner.
TABLES = f"""
DROP TABLE IF EXISTS note;
DROP ROLE IF EXISTS {ROLE};
CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}';
CREATE TABLE note (
    tenant text NOT NULL DEFAULT current_setting('app.tenant') CHECK (tenant <> ''), body text NOT NULL
);
ALTER TABLE note ENABLE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON note USING (tenant = current_setting('app.tenant', true));
GRANT SELECT, INSERT ON note TO {ROLE};
"""
NOTES = "SELECT body FROM note ORDER BY body"
TRICKY = "o'hara; DROP TABLE note --"


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio only, as the drivers do."""
    return "asyncio"


@pytest.fixture(scope="module")
def app_url(postgres_url: str) -> Iterator[str]:
    """Yield an address of the application's role, to a database with notes of three tenants."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for statement in TABLES.strip().split(";\n"):
            connection.execute(statement.encode())
        for tenant in ("anna", "bert", TRICKY):
            connection.execute("INSERT INTO note VALUES (%s, %s)", (tenant, f"of {tenant}"))
        server = urlsplit(postgres_url)
        yield f"postgresql://{ROLE}:{PASSWORD}@{server.hostname}:{server.port}{server.path}"
        connection.execute("DROP TABLE note")
        connection.execute(f"DROP ROLE {ROLE}".encode())


def tenant_of(x_tenant: Annotated[str, Header()]) -> str:
    if x_tenant == "stranger":
        raise HTTPException(403)
    return x_tenant


Tenant = Annotated[str, Depends(tenant_of)]
SET = "SELECT set_config('app.tenant', :tenant, false)"


class Way:
    """One way to use PostgreSQL: a manager, its `prepare`, and what the endpoints do."""

    def __init__(self, manager: Callable[..., Any], lease: Any, prepare: Any, notes: Any, roll_back: Any) -> None:
        self.manager, self.lease, self.prepare = manager, lease, prepare
        self.notes, self.roll_back = notes, roll_back

    def app(self, url: str, limit: int = 2, **options: Any) -> tuple[FastAPI, ConnectionPool[Any]]:
        pool: ConnectionPool[Any] = ConnectionPool(self.manager(url, **options), limit=limit, timeout=60, name="db")
        app = FastAPI()
        install_pools(app, pool)
        is_async = inspect.iscoroutinefunction(self.prepare)
        half = set_half if is_async else set_half_in_thread
        leases = [self.lease(pool, prepare=prepare) for prepare in (self.prepare, None, half)]
        (self._add_async if is_async else self._add_sync)(app, *leases)
        return app, pool

    def _add_async(self, app: FastAPI, prepared: Any, plain: Any, half: Any) -> None:
        @app.get("/notes")
        async def notes(db: Any = prepared) -> Any:
            return await self.notes(db)

        @app.get("/rolled-back")
        async def after_rollback(db: Any = prepared) -> Any:
            await self.roll_back(db)
            return await self.notes(db)

        @app.get("/anonymous")
        async def anonymous(db: Any = plain) -> Any:
            return await self.notes(db)

        @app.get("/half")
        async def fails(db: Any = half) -> None:
            """It is never called."""

    def _add_sync(self, app: FastAPI, prepared: Any, plain: Any, half: Any) -> None:
        @app.get("/notes")
        def notes(db: Any = prepared) -> Any:
            return self.notes(db)

        @app.get("/rolled-back")
        def after_rollback(db: Any = prepared) -> Any:
            db.rollback()
            return self.notes(db)

        @app.get("/anonymous")
        def anonymous(db: Any = plain) -> Any:
            return self.notes(db)

        @app.get("/half")
        def fails(db: Any = half) -> None:
            """It is never called."""


async def set_by_asyncpg(conn: asyncpg.Connection, tenant: Tenant) -> None:
    await conn.execute("SELECT set_config('app.tenant', $1, false)", tenant)


async def notes_by_asyncpg(conn: Any) -> list[str]:
    return [row["body"] for row in await conn.fetch(NOTES)]


async def roll_back_by_asyncpg(conn: Any) -> None:
    transaction = conn.transaction()
    await transaction.start()
    await conn.execute("SELECT 1")
    await transaction.rollback()


async def set_by_psycopg(conn: psycopg.AsyncConnection[Any], tenant: Tenant) -> None:
    await conn.execute("SELECT set_config('app.tenant', %s, false)", (tenant,))


async def notes_by_psycopg(conn: Any) -> list[str]:
    return [body async for (body,) in await conn.execute(NOTES)]


async def set_by_sqlalchemy(conn: AsyncConnection, tenant: Tenant) -> None:
    await conn.execute(text(SET), {"tenant": tenant})


async def notes_by_session(session: AsyncSession) -> list[str]:
    return list(await session.scalars(text(NOTES)))


def set_by_sync(conn: Connection, tenant: Tenant) -> None:
    conn.execute(text(SET), {"tenant": tenant})


async def set_half(conn: Any, tenant: Tenant) -> None:
    if isinstance(conn, asyncpg.Connection):
        await set_by_asyncpg(conn, tenant)
    elif isinstance(conn, psycopg.AsyncConnection):
        await set_by_psycopg(conn, tenant)
    else:
        await set_by_sqlalchemy(conn, tenant)
    raise HTTPException(418)


def set_half_in_thread(conn: Any, tenant: Tenant) -> None:
    (set_by_sync if isinstance(conn, Connection) else set_by_psycopg_sync)(conn, tenant)
    raise HTTPException(418)


def set_by_psycopg_sync(conn: psycopg.Connection[Any], tenant: Tenant) -> None:
    conn.execute("SELECT set_config('app.tenant', %s, false)", (tenant,))


def notes_by_psycopg_sync(conn: Any) -> list[str]:
    return [body for (body,) in conn.execute(NOTES)]


def notes_by_sync(session: Session) -> list[str]:
    return list(session.scalars(text(NOTES)))


async def roll_back(db: Any) -> None:
    await db.rollback()


def by_sqlalchemy(driver: str, manager: Any) -> Callable[..., Any]:
    return lambda url, **options: manager(url.replace("://", f"+{driver}://", 1), **options)


WAYS = {
    "asyncpg": Way(AsyncpgManager, Leased, set_by_asyncpg, notes_by_asyncpg, roll_back_by_asyncpg),
    "psycopg": Way(PsycopgManager, Leased, set_by_psycopg, notes_by_psycopg, roll_back),
    **{
        f"sqlalchemy+{driver}": Way(
            by_sqlalchemy(driver, SqlalchemyManager), LeasedSession, set_by_sqlalchemy, notes_by_session, roll_back
        )
        for driver in ("asyncpg", "psycopg")
    },
    "psycopg in threads": Way(SyncPsycopgManager, Leased, set_by_psycopg_sync, notes_by_psycopg_sync, None),
    "sqlalchemy in threads": Way(
        by_sqlalchemy("psycopg", SyncSqlalchemyManager), LeasedSession, set_by_sync, notes_by_sync, None
    ),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[Callable[..., Any]]:
    async with (
        started(app) as served,
        httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://test") as client,
    ):

        async def call(path: str, tenant: str = "anna") -> Any:
            answer = await client.get(path, headers={"X-Tenant": tenant})
            return answer.json() if answer.status_code == 200 else answer.status_code

        yield call


async def test_tenants_see_their_own_rows(way: Way, app_url: str) -> None:
    """Forty at once on two connections, and an anonymous request after each."""
    app, pool = way.app(app_url)
    async with serving(app) as call:
        tenants = ["anna", "bert", TRICKY, "nobody"] * 10
        seen = await asyncio.gather(
            *(call(path, tenant) for tenant in tenants for path in ("/notes", "/anonymous", "/rolled-back"))
        )
        for number, tenant in enumerate(tenants):
            own = [] if tenant == "nobody" else [f"of {tenant}"]
            assert seen[3 * number : 3 * number + 3] == [own, [], own]
        assert await call("/notes", "stranger") == 403
        assert pool.stats().creates <= 2
        check(pool)


async def test_half_prepared_connection_is_destroyed(way: Way, app_url: str) -> None:
    app, pool = way.app(app_url, limit=1)
    async with serving(app) as call:
        assert await call("/half") == 418
        assert await call("/anonymous") == []
        assert pool.stats().discards["discard"] == 1
        assert pool.stats().creates == 2


def test_transaction_reset_is_refused_at_start_up(way: Way, app_url: str) -> None:
    app, _ = way.app(app_url, reset="transaction")
    with pytest.raises(PoolConfigError, match=r"pool 'db' .*prepare, .*reset='transaction' .*Write reset='session'"):
        TestClient(app).__enter__()


@pytest.mark.needs_program("pgbouncer")
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_pooler_in_transaction_mode_is_refused_at_start_up(way: Way, mode: str, postgres_url: str) -> None:
    with pgbouncer(postgres_url, mode) as url:
        app, pool = way.app(url)
        if mode == "session":
            with TestClient(app):
                assert pool.refuses_prepare is None
        else:
            with pytest.raises(PoolConfigError, match=r"prepare, .*a pooler in transaction .*docs/pgbouncer.md"):
                TestClient(app).__enter__()


@pytest.mark.parametrize("manager", [SqliteManager, AiosqliteManager, RedisManager])
def test_other_managers_refuse_a_transaction_reset(manager: Any) -> None:
    address = "redis://localhost" if manager is RedisManager else "app.db"
    assert ConnectionPool(manager(address)).refuses_prepare is None
    refusal = ConnectionPool(manager(address, reset="transaction")).refuses_prepare
    assert refusal is not None
    assert "Write reset='session'" in refusal
