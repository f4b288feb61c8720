"""sandbox: what holds whatever the driver, in applications, and its bad input."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import asyncpg  # type: ignore[import-untyped] # has no types
import httpx
import psycopg
import pytest
from fastapi import BackgroundTasks, FastAPI
from fastapi.testclient import TestClient
from sqlmodel import Field, SQLModel, select
from sqlmodel.ext.asyncio.session import AsyncSession

from connectionpools_fastapi import (
    ConnectionPool,
    Leased,
    PoolClosed,
    PoolConfigError,
    PoolError,
    PoolListener,
    WouldDeadlock,
    install_pools,
)
from connectionpools_fastapi.adapters.aiosqlite import AiosqliteManager
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager
from connectionpools_fastapi.adapters.psycopg import PsycopgManager
from connectionpools_fastapi.adapters.smtp import SmtpManager
from connectionpools_fastapi.adapters.sqlalchemy import LeasedSession, SqlalchemyManager
from connectionpools_fastapi.adapters.sqlite import SqliteManager
from connectionpools_fastapi.testing import sandbox, started
from tests.mysql_drivers import DRIVERS, rows
from tests.sandboxes import KINDS, Database, insert_of, open_database
from tests.web import things

pytestmark = pytest.mark.anyio
SOON = 20.0
COUNT = "SELECT count(*) FROM users"
of_kind = {kind.name: kind for kind in KINDS}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(name="database")
async def fixture_database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    return await open_database(of_kind["asyncpg"], request, tmp_path)


@pytest.fixture(name="db")
async def fixture_db(database: Database) -> AsyncIterator[ConnectionPool[asyncpg.Connection]]:
    async with database.pool() as db:
        yield db


# --- in applications ----------------------------------------------------------------------------


def users_of(db: ConnectionPool[asyncpg.Connection]) -> FastAPI:
    app = FastAPI()
    install_pools(app, db)

    async def greet(name: str) -> None:
        async with db.lease() as conn:
            await conn.execute("INSERT INTO users VALUES ($1)", f"greeted {name}")

    @app.post("/users/{name}", status_code=201)
    async def add(name: str, conn: Annotated[Any, Leased(db)], later: BackgroundTasks) -> None:
        async with conn.transaction():
            await conn.execute("INSERT INTO users VALUES ($1)", name)
        later.add_task(greet, name)

    @app.get("/users")
    async def names(conn: Annotated[Any, Leased(db)]) -> list[str]:
        return [row["name"] for row in await conn.fetch("SELECT name FROM users ORDER BY name")]

    return app


async def test_requests_and_background_tasks_share_sandbox(database: Database) -> None:
    db = database.pool()
    app = users_of(db)
    async with started(app) as served, httpx.AsyncClient(transport=httpx.ASGITransport(served)) as client:
        async with sandbox(db):
            added = await asyncio.gather(*(client.post(f"http://test/users/{name}") for name in "abc"))
            assert [answer.status_code for answer in added] == [201, 201, 201]
            seen = (await client.get("http://test/users")).json()
            assert seen == ["a", "b", "c", "greeted a", "greeted b", "greeted c"]
        assert (await client.get("http://test/users")).json() == []


def test_plain_thread_puts_pool_of_other_loop_into_sandbox(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS users")
        conn.execute("CREATE TABLE users (name text UNIQUE)")
    db = ConnectionPool(AsyncpgManager(postgres_url), limit=2, name="db")
    with TestClient(users_of(db)) as client:
        for _ in range(2):
            with sandbox(db):
                client.post("/users/ann")
                assert client.get("/users").json() == ["ann", "greeted ann"]
        assert client.get("/users").json() == []


def test_threads_share_sandbox(tmp_path: Path) -> None:
    def make(conn: Any) -> None:
        conn.execute("CREATE TABLE IF NOT EXISTS users (name text UNIQUE)")

    db = ConnectionPool(SqliteManager(tmp_path / "app.db", init=make), limit=4, name="db")

    def add(name: str) -> None:
        with db.lease() as conn, conn:
            conn.execute("INSERT INTO users VALUES (?)", [name])

    with db:
        with sandbox(db):
            threads = [threading.Thread(target=add, args=(name,)) for name in "abcdef"]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            with db.lease() as conn:
                assert conn.execute(COUNT).fetchone() == (6,)
        with db.lease() as conn:
            assert conn.execute(COUNT).fetchone() == (0,)


async def test_session_of_sqlmodel_commits_within_sandbox(tmp_path: Path) -> None:
    class Hero(SQLModel, table=True):  # here, since other tests clear what SQLModel knows
        id: int | None = Field(default=None, primary_key=True)
        name: str = Field(unique=True)

    db = ConnectionPool(SqlalchemyManager(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}"), limit=2, name="db")
    app = FastAPI()
    install_pools(app, db)
    Session = Annotated[AsyncSession, LeasedSession(db, class_=AsyncSession)]  # noqa: N806 - a type

    @app.post("/{name}", status_code=201)
    async def add(name: str, session: Session) -> None:
        session.add(Hero(name=name))

    @app.get("/")
    async def names(session: Session) -> list[str]:
        return list((await session.exec(select(Hero.name))).all())

    async with started(app) as served, httpx.AsyncClient(transport=httpx.ASGITransport(served)) as client:
        async with db.lease() as conn:
            await conn.run_sync(SQLModel.metadata.tables["hero"].create)
            await conn.commit()
        async with sandbox(db):
            assert (await client.post("http://test/ann")).status_code == 201
            with pytest.raises(Exception, match="UNIQUE"):
                await client.post("http://test/ann")
            assert (await client.get("http://test/")).json() == ["ann"]
        assert (await client.get("http://test/")).json() == []


# --- between two leases ---------------------------------------------------------------------------


async def test_what_lease_sets_is_undone_for_next(db: ConnectionPool[asyncpg.Connection]) -> None:
    async with sandbox(db):
        async with db.lease() as conn:
            await conn.execute("SET application_name = 'mine'")
            await conn.execute("CREATE TEMP TABLE mine (n int)")
        async with db.lease() as conn:
            assert await conn.fetchval("SHOW application_name") != "mine"
            assert await conn.fetchval("SELECT to_regclass('mine')") is None


@pytest.mark.parametrize("make", [AsyncpgManager, PsycopgManager])
async def test_prepare_lasts_for_its_lease(make: Any, postgres_url: str) -> None:
    db = ConnectionPool(make(postgres_url), limit=2, name="db")
    app = FastAPI()
    install_pools(app, db)

    async def prepare(conn: Any) -> None:
        await conn.execute("SET application_name = 'prepared'")

    async def shown(conn: Any) -> str:
        if make is AsyncpgManager:
            return str(await conn.fetchval("SHOW application_name"))
        await conn.rollback()
        return str((await (await conn.execute("SHOW application_name")).fetchone())[0])

    @app.get("/")
    async def show(conn: Annotated[Any, Leased(db, prepare=prepare)]) -> str:
        return await shown(conn)

    async with (
        started(app) as served,
        httpx.AsyncClient(transport=httpx.ASGITransport(served)) as client,
        sandbox(db),
    ):
        assert (await client.get("http://test/")).json() == "prepared"
        async with db.lease() as conn:
            assert await shown(conn) != "prepared"


@pytest.mark.parametrize("make", [AsyncpgManager, PsycopgManager])
async def test_cancelled_query_leaves_sandbox_usable(make: Any, database: Database) -> None:
    async with ConnectionPool(make(database.address), limit=2, name="db") as db, sandbox(db):
        async with db.lease() as conn:
            await conn.execute(insert_of("ann"))
            await (conn.commit() if make is PsycopgManager else asyncio.sleep(0))

        async def hang() -> None:
            async with db.lease() as conn:
                await conn.execute("SELECT pg_sleep(60)")

        task = asyncio.create_task(hang())
        running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
        async with asyncio.timeout(SOON):
            while (await database.execute(running))[0] != (1,):  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with db.lease() as conn:
            found = await conn.execute(COUNT)
            count = await conn.fetchval(COUNT) if make is AsyncpgManager else (await found.fetchone())[0]
            assert count == 1
    assert await database.names() == []


async def test_commit_checks_deferred_constraints(db: ConnectionPool[asyncpg.Connection], database: Database) -> None:
    await database.execute("DROP TABLE IF EXISTS pets")
    await database.execute(
        "CREATE TABLE pets (owner varchar(20) REFERENCES users (name) DEFERRABLE INITIALLY DEFERRED)"
    )
    try:
        async with sandbox(db), db.lease() as conn:
            with pytest.raises(asyncpg.ForeignKeyViolationError):
                async with conn.transaction():
                    await conn.execute("INSERT INTO pets VALUES ('nobody')")
            async with conn.transaction():
                await conn.execute("INSERT INTO pets VALUES ('ann')")
                await conn.execute(insert_of("ann"))
            assert await conn.fetchval("SELECT count(*) FROM pets") == 1
    finally:
        await database.execute("DROP TABLE pets")


async def test_text_ends_transaction_of_its_lease_only(
    db: ConnectionPool[asyncpg.Connection], database: Database
) -> None:
    async with sandbox(db), db.lease() as conn:
        for number, end in enumerate(("commit", "ROLLBACK", " -- why\n COMMIT;", "ABORT")):
            await conn.execute("begin isolation level serializable")
            assert conn.is_in_transaction()
            await conn.execute(insert_of(f"; COMMIT; {number}"))
            await conn.execute(end)
            assert not conn.is_in_transaction()
        assert await conn.fetchval(COUNT) == 2
    assert await database.names() == []


# --- listeners, limits ----------------------------------------------------------------------------


async def test_pool_is_as_before_after_sandbox(database: Database) -> None:
    class Listener(PoolListener):
        acquired = 0

        def on_acquire(self, pool: str, waited: float) -> None:
            self.acquired += 1

    listener = Listener()
    async with database.pool(limit=3) as db:
        db.add_listener(listener)
        async with sandbox(db), db.lease():
            assert (db.limit, db.taken) == (1, 1)
        assert (db.limit, db.taken, db.free, db.status) == (3, 0, 1, "open")
        async with db.lease():
            assert db.taken == 1
    assert listener.acquired >= 1


async def test_second_lease_of_one_task_is_refused(db: ConnectionPool[asyncpg.Connection]) -> None:
    async with sandbox(db), db.lease():
        with pytest.raises(WouldDeadlock, match="'db'"):
            await db.acquire()


async def test_closing_pool_ends_sandbox(database: Database) -> None:
    db = database.pool()
    await db.open()
    async with sandbox(db):
        async with db.lease() as conn:
            await conn.execute(insert_of("ann"))
        await db.close()
        with pytest.raises(PoolClosed):
            await db.acquire()
    assert db.status == "closed"
    assert await database.names() == []


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pool",
    [things(), ConnectionPool(SmtpManager("smtp://localhost"), name="db")],
    ids=["hooks", "no transactions"],
)
def test_pool_without_transactions_is_refused(pool: ConnectionPool[Any]) -> None:
    with pytest.raises(PoolConfigError, match=r"pool 'db': a sandbox needs a manager that has transactions.*override"):
        sandbox(pool)


async def test_pool_that_is_not_open_is_refused(database: Database) -> None:
    with pytest.raises(PoolClosed, match=r"pool 'db': a sandbox needs an open pool.*lifespan"):
        async with sandbox(database.pool()):
            pass


async def test_two_sandboxes_at_once_are_refused(db: ConnectionPool[asyncpg.Connection]) -> None:
    async with sandbox(db):
        with pytest.raises(PoolConfigError, match="in a sandbox already"):
            async with sandbox(db):
                pass
        async with db.lease():  # which goes on
            pass


@pytest.mark.parametrize("manager", [SqliteManager, AiosqliteManager])
async def test_second_sandbox_of_one_sqlite_file_is_told(manager: Any, tmp_path: Path) -> None:
    one, other = (ConnectionPool[Any](manager(tmp_path / "app.db", timeout=0), name=name) for name in ("db", "report"))
    async with one, other, sandbox(one):
        with pytest.raises(PoolError, match=r'needs the file for itself.*@pytest.mark.pool_sandbox\("db"\)'):
            async with sandbox(other):
                pass


async def test_sync_sandbox_in_loop_is_refused(db: ConnectionPool[asyncpg.Connection]) -> None:
    with pytest.raises(RuntimeError, match="async with sandbox"), sandbox(db):
        pass


@pytest.mark.parametrize(
    "script", ["INSERT INTO users VALUES ('ann'); COMMIT", "COMMIT AND CHAIN", "PREPARE TRANSACTION 'x'"]
)
async def test_script_that_commits_is_not_sent(
    script: str, db: ConnectionPool[asyncpg.Connection], database: Database
) -> None:
    async with sandbox(db), db.lease() as conn:
        with pytest.raises(PoolConfigError, match=r"a sandbox cannot run .* Nothing was sent"):
            await conn.execute(script)
        assert await conn.fetchval(COUNT) == 0
    assert await database.names() == []


@pytest.mark.parametrize("kind", [psycopg.AsyncCursor, psycopg.AsyncClientCursor])
async def test_commit_as_text_of_psycopg_is_not_sent(kind: Any, database: Database) -> None:
    manager = PsycopgManager(database.address, cursor_factory=kind)
    async with ConnectionPool(manager, name="db") as db, sandbox(db), db.lease() as conn:
        await conn.execute(insert_of("ann"))
        for text in ("COMMIT", "SELECT 1; END"):
            with pytest.raises(PoolConfigError, match="a sandbox cannot run"):
                await conn.execute(text)
    assert await database.names() == []


@pytest.mark.needs_program("mariadbd")
@pytest.mark.parametrize("driver", DRIVERS, ids=str)
async def test_ddl_that_commits_is_not_sent(driver: Any, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    database = await open_database(of_kind[driver.name], request, tmp_path)
    async with database.pool() as db, sandbox(db), db.lease() as conn:
        await rows(conn, insert_of("ann"))
        for statement in ("CREATE TABLE more (n int)", " /* all */ truncate users", "ALTER TABLE users ADD n int"):
            with pytest.raises(PoolConfigError, match="MySQL commits before this statement"):
                await rows(conn, statement)
        await rows(conn, "CREATE TEMPORARY TABLE passing (n int)")
    assert await database.names() == []


@pytest.mark.needs_program("mariadbd")
async def test_procedure_that_commits_ends_sandbox(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    database = await open_database(of_kind["aiomysql"], request, tmp_path)
    await database.execute("CREATE OR REPLACE PROCEDURE test.end_it() COMMIT")
    async with database.pool() as db:
        with pytest.raises(PoolConfigError, match=r"pool 'db'.*a statement has ended it, as a procedure"):  # noqa: PT012 - the end of the block raises
            async with sandbox(db):
                async with db.lease() as conn:
                    await rows(conn, "CALL test.end_it()")
                await db.acquire()
        async with db.lease() as conn:
            assert await rows(conn, COUNT) == [(0,)]


async def test_statement_of_sqlite_that_rolls_all_back_ends_sandbox(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    database = await open_database(of_kind["aiosqlite"], request, tmp_path)
    async with database.pool() as db:
        with pytest.raises(PoolConfigError, match="transaction of the sandbox is gone"):  # noqa: PT012 - the end raises
            async with sandbox(db):
                async with db.lease() as conn:
                    await conn.execute(insert_of("ann"))
                    with pytest.raises(sqlite3.IntegrityError):
                        await conn.execute(insert_of("ann").replace("INSERT", "INSERT OR ROLLBACK"))
                await db.acquire()
    assert await database.names() == []


async def test_lost_connection_ends_sandbox(db: ConnectionPool[asyncpg.Connection], database: Database) -> None:
    with pytest.raises(PoolError, match=r"pool 'db': .*lost"):  # noqa: PT012 - the end of the block raises
        async with sandbox(db):
            async with db.lease() as conn:
                pid = await conn.fetchval("SELECT pg_backend_pid()")
                await database.execute(f"SELECT pg_terminate_backend({pid})")
            with pytest.raises(PoolConfigError, match="transaction of the sandbox is gone"):
                await db.acquire()
    async with db.lease() as conn:
        assert await conn.fetchval(COUNT) == 0


async def test_lease_that_outlasts_sandbox_is_told(db: ConnectionPool[asyncpg.Connection], database: Database) -> None:
    with pytest.raises(PoolError, match=r"pool 'db': the sandbox has ended within a lease of a test's own"):  # noqa: PT012 - the end of the block raises
        async with sandbox(db):
            lease = db.lease(holder="a test's own")
            conn = await lease.__aenter__()
            await conn.execute(insert_of("ann"))
    with pytest.raises((PoolError, asyncpg.InterfaceError)):
        await conn.execute(insert_of("bob"))
    assert await database.names() == []
    async with db.lease() as conn:
        assert await conn.fetchval(COUNT) == 0
    lease.discard()


@pytest.mark.parametrize("manager", [SqliteManager, AiosqliteManager])
async def test_sandbox_waits_longer_for_connection_than_timeout(manager: Any, tmp_path: Path) -> None:
    async with ConnectionPool[Any](manager(tmp_path / "app.db"), timeout=0, name="db") as db, sandbox(db), db.lease():
        pass
