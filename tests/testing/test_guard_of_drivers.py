"""What the guard finds in what a lease leaves, through each manager that tells, with a sandbox and without."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI

from connectionpools_fastapi import ConnectionPool, Leased, install_pools
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager
from connectionpools_fastapi.testing import GuardError, guard, sandbox, started
from tests.sandboxes import KINDS, Database, awaited, insert_of, open_database

pytestmark = [pytest.mark.anyio, pytest.mark.needs_python]
HERE = Path(__file__).name
EACH: Any = [pytest.param(kind, marks=kind.marks, id=kind.name) for kind in KINDS]
SETS = {
    "postgresql": ("SET work_mem = '5MB'", "the setting work_mem"),
    "sqlite": ("PRAGMA cache_size = 77", "cache_size"),
    "mysql": ("SET sql_mode = 'ANSI'", "the setting sql_mode"),
}
# What is left within a transaction that is rolled back, or only there.
SETS_FOR_A_TRANSACTION = {
    "postgresql": "SELECT set_config('work_mem', '5MB', true)",
    "sqlite": "SELECT 1 FROM users",
    "mysql": "SELECT 1 FROM users",
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=EACH, name="database")
async def fixture_database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    return await open_database(request.param, request, tmp_path)


@pytest.fixture(params=[False, True], ids=["", "sandbox"], name="client")
async def fixture_client(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[httpx.AsyncClient]:
    db = database.pool()
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(started(application(db, database)))
        if request.param:
            await stack.enter_async_context(sandbox(db))
        transport = httpx.ASGITransport(served, raise_app_exceptions=False)
        yield await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://test"))


def application(db: ConnectionPool[Any], database: Database) -> FastAPI:
    app = FastAPI()
    install_pools(app, db)
    kind = database.kind
    assert kind.rows is not None
    rows = kind.rows
    Db = Annotated[Any, Leased(db)]  # noqa: N806 - a type

    async def commit(conn: Any) -> None:
        if not kind.autocommits:
            await awaited(conn.commit())

    async def begin(conn: Any) -> None:
        if kind.name == "asyncpg":
            await conn.transaction().start()
        elif kind.autocommits and "psycopg" not in kind.name:
            await rows(conn, "BEGIN")

    @app.get("/uncommitted")
    async def uncommitted(conn: Db) -> None:
        await begin(conn)
        await rows(conn, insert_of("ann"))

    @app.get("/rolled/back")
    async def rolled_back(conn: Db) -> None:
        await begin(conn)
        await rows(conn, insert_of("ann"))
        raise ZeroDivisionError

    @app.get("/state")
    async def state(conn: Db) -> None:
        await rows(conn, SETS[kind.database][0])
        await commit(conn)

    @app.get("/well")
    async def well(conn: Db) -> None:
        await rows(conn, insert_of("bob"))
        await commit(conn)
        await rows(conn, SETS_FOR_A_TRANSACTION[kind.database])

    return app


async def test_uncommitted_work_is_found_with_its_route(database: Database, client: httpx.AsyncClient) -> None:
    if database.kind.name.endswith("psycopg autocommit"):
        pytest.skip("it commits each statement")
    line = rf"^pool .db.: GET /uncommitted leaves work that is not committed.*{HERE}, line \d+, in uncommitted\)"
    with pytest.raises(GuardError, match=line), guard():
        await client.get("/uncommitted")


async def test_state_is_found_with_its_route_and_name(
    database: Database, client: httpx.AsyncClient, request: Any
) -> None:
    if database.kind.database == "mysql" and "sandbox" in request.node.callspec.id:
        pytest.skip("no session is reset there")
    _, name = SETS[database.kind.database]
    line = rf"^pool .db.: GET /state leaves state in its session.*: {name} \(.*{HERE}, line \d+, in state\)"
    with pytest.raises(GuardError, match=line), guard():
        await client.get("/state")


async def test_nothing_is_found_where_nothing_is_left(client: httpx.AsyncClient) -> None:
    with guard():
        statuses = [(await client.get(path)).status_code for path in ("/well", "/well", "/rolled/back")]
    assert statuses == [200, 500, 500]  # its name is unique; what has failed was not meant to be kept


@pytest.mark.parametrize(
    ("leave", "told"),
    [
        ("SET search_path = pg_catalog", "the setting search_path"),
        ("SELECT set_config('app.tenant', '7', false)", "the setting app.tenant"),
        ("SET ROLE pg_monitor", "the role"),
        ("SELECT pg_advisory_lock(7)", "an advisory lock"),
        ("CREATE TEMP TABLE basket (n int)", "the temporary table basket"),
        ("LISTEN orders", "LISTEN orders"),
        ("DECLARE rows CURSOR WITH HOLD FOR SELECT 1", "the cursor rows"),
    ],
)
async def test_state_of_postgresql_is_told_by_name(leave: str, told: str, postgres_url: str) -> None:
    default = "current_setting('app.tenant', true)"
    manager = AsyncpgManager(postgres_url)
    connection: Any = await manager.create()
    try:
        await connection.execute(f"CREATE TABLE IF NOT EXISTS tenants (name text DEFAULT {default})")
        await connection.execute(leave)
        assert await manager.change_and_tell(connection) == [told]
        assert await manager.change_and_tell(connection) == []
    finally:
        await manager.clean(connection)


async def test_change_of_subclass_is_not_passed_over(postgres_url: str) -> None:
    changed = []

    class Own(AsyncpgManager):
        async def change(self, resource: Any) -> None:
            changed.append(resource)
            await super().change(resource)

    with guard():
        async with ConnectionPool(Own(postgres_url), name="db") as db, db.lease() as conn:
            await conn.execute("SET work_mem = '5MB'")
    assert len(changed) == 1


async def test_committed_block_and_a_read_after_it_leave_nothing(postgres_url: str) -> None:
    kind = next(kind for kind in KINDS if kind.name == "psycopg")
    async with ConnectionPool(kind.make(postgres_url), name="db") as db, sandbox(db):
        async with db.lease() as conn:
            await conn.execute("CREATE TABLE IF NOT EXISTS blocks (n int)")
            await conn.commit()
        with guard():
            async with db.lease() as conn:
                async with conn.transaction():
                    await conn.execute("INSERT INTO blocks VALUES (1)")
                await conn.execute("SELECT n FROM blocks")
