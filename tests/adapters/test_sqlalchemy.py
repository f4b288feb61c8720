"""SqlalchemyManager and LeasedSession: no lease sees another's traces, and success is told after the commit."""

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

import pytest
import sqlalchemy
import trio
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker, create_async_engine

from connectionpools_fastapi import (
    ConnectionPool,
    Leased,
    NotLeased,
    PoolConfigError,
    ResourceUnavailable,
    install_pools,
)
from connectionpools_fastapi.adapters.psycopg import PsycopgManager
from connectionpools_fastapi.adapters.sqlalchemy import LeasedSession, SqlalchemyManager
from connectionpools_fastapi.testing import started
from tests.sqlalchemy_pools import (
    COUNT,
    NOTE,
    TABLES,
    Pool,
    each_reset,
    fixture_database,  # noqa: F401 - pytest finds it, and the next one
    fixture_server,  # noqa: F401
    of_postgres,
    pool_of,
    run,
    value,
)
from tests.web import Answer, ask
from tests.wheel_servers import PASSWORD, free_port

pytestmark = pytest.mark.anyio

Act = Callable[[AsyncConnection], Awaitable[Any]]

WAIT = 10.0  # for what comes soon, or the test fails

NOTE_OF_NOBODY = text("INSERT INTO notes VALUES (7)")  # which the commit finds out


@pytest.fixture
def anyio_backend() -> str:
    """SQLAlchemy's asynchronous side is of asyncio."""
    return "asyncio"


async def below(connection: AsyncConnection) -> Any:
    """Return the driver's own connection."""
    return (await connection.get_raw_connection()).driver_connection


async def after(pool: Pool, leave: Act, look: Act) -> Any:
    """Let one lease leave something behind; return what the next one sees on the same connection."""
    async with pool.lease() as connection:
        before = connection.info
        await leave(connection)
    async with pool.lease() as connection:
        assert connection.info is before
        assert pool.stats().discards["change"] == 0
        return await look(connection)


async def assert_destroyed_after(pool: Pool, leave: Act) -> None:
    """Let one lease leave a connection that cannot be used again; see that the next one gets another one."""
    async with pool.lease() as first:
        before = first.info
        await leave(first)
    async with pool.lease() as connection:
        assert connection.info is not before
        assert await value(connection, "SELECT 7") == 7
    assert pool.stats().creates == 2


async def until_running(pool: Pool, what: str, sessions: int = 1) -> None:
    """Wait until as many sessions are in the midst of a query."""
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE :what AND pid <> pg_backend_pid()"
    )
    async with asyncio.timeout(WAIT), pool.lease() as connection:
        while (await connection.execute(query, {"what": f"%{what}"})).scalar() != sessions:
            await connection.rollback()


# --- what a lease leaves behind ---------------------------------------------------------------------


@each_reset
async def test_what_was_not_committed_is_rolled_back(database: URL, reset: str) -> None:
    async def leave(connection: AsyncConnection) -> None:
        await connection.execute(NOTE)
        assert await value(connection, "SELECT count(*) FROM notes") == 1

    async def look(connection: AsyncConnection) -> Any:
        assert not connection.in_transaction()
        return await value(connection, "SELECT count(*) FROM notes")

    async with pool_of(database, reset=reset) as pool:
        async with pool.lease() as connection:
            await run(connection, *TABLES)
        assert await after(pool, leave, look) == 0


@each_reset
async def test_failed_transaction_and_savepoint_are_rolled_back(database: URL, reset: str) -> None:
    async def leave(connection: AsyncConnection) -> None:
        await connection.begin_nested()
        with pytest.raises(DBAPIError):
            await connection.execute(text("SELECT nonsense"))

    async with pool_of(database, reset=reset) as pool:
        assert await after(pool, leave, lambda connection: value(connection, "SELECT 7")) == 7


@each_reset
async def test_execution_options_return_to_those_of_the_engine(server: URL, reset: str) -> None:
    """So does the isolation level."""
    options: dict[str, Any] = {"isolation_level": "REPEATABLE READ", "execution_options": {"mine": 1}}
    modes = ("transaction_isolation", "transaction_read_only", "transaction_deferrable")

    async def look(connection: AsyncConnection) -> list[Any]:
        return [await value(connection, f"SHOW {mode}") for mode in modes]

    async def leave(connection: AsyncConnection) -> None:
        await connection.execution_options(
            isolation_level="SERIALIZABLE",
            postgresql_readonly=True,
            postgresql_deferrable=True,
            schema_translate_map={None: "elsewhere"},
            mine=2,
        )
        assert await look(connection) == ["serializable", "on", "on"]

    async with pool_of(server, reset=reset, **options) as pool:
        assert await after(pool, leave, look) == ["repeatable read", "off", "off"]
        async with pool.lease() as connection:
            assert connection.sync_connection is not None
            assert connection.sync_connection.get_execution_options() == options["execution_options"]


@each_reset
async def test_autocommit_ends_with_the_lease(server: URL, reset: str) -> None:
    """It stays where the engine's own isolation level is AUTOCOMMIT."""

    async def leave(connection: AsyncConnection) -> None:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await value(connection, "SELECT 1")

    async def look(connection: AsyncConnection) -> bool:
        transactions = {await value(connection, "SELECT txid_current()") for _ in range(2)}
        return len(transactions) == 2

    async with pool_of(server, reset=reset) as pool:
        assert await after(pool, leave, look) is False
    async with pool_of(server, reset=reset, isolation_level="AUTOCOMMIT") as pool:
        assert await after(pool, leave, look) is True


async def test_prepared_statement_never_fails_in_a_later_lease(server: URL) -> None:
    async with pool_of(server) as pool:
        async with pool.lease() as connection:
            first = connection.info
        for _ in range(3):
            async with pool.lease() as connection:
                assert connection.info is first
                for _ in range(8):
                    assert (await connection.execute(text("SELECT CAST(:n AS integer)"), {"n": 7})).scalar() == 7


async def test_what_sqlalchemy_sets_up_on_connecting_stays(server: URL) -> None:
    async def look(connection: AsyncConnection) -> Any:
        select = sqlalchemy.select(sqlalchemy.cast(sqlalchemy.literal({"a": 1}, sqlalchemy.JSON), sqlalchemy.JSON))
        return (await connection.execute(select)).scalar()

    async with pool_of(server) as pool:
        assert await after(pool, look, look) == {"a": 1}


async def test_driver_transaction_ends_before_the_reset(database: URL, caplog: pytest.LogCaptureFixture) -> None:
    """It was begun below SQLAlchemy."""
    async with pool_of(database) as pool:
        await after(pool, lambda connection: connection.get_isolation_level(), lambda _: value(_, "SELECT 1"))
    assert caplog.records == []  # asyncpg complains of a transaction that is reset


@each_reset
async def test_lease_after_a_driver_transaction_has_its_own(server: URL, reset: str) -> None:
    """The previous lease began a transaction below SQLAlchemy."""
    async with pool_of(server, reset=reset) as pool:
        async with pool.lease() as connection:
            await run(connection, *TABLES)
        await after(pool, lambda _: _.get_isolation_level(), lambda _: _.execute(NOTE))
        async with pool.lease() as connection:
            assert await value(connection, "SELECT count(*) FROM notes") == 0


@each_reset
async def test_rollback_is_part_of_the_one_round_trip_of_reset(
    server: URL, reset: Literal["session", "transaction"]
) -> None:
    async with pool_of(server, isolation_level="AUTOCOMMIT") as observers, pool_of(server, reset=reset) as pool:
        async with pool.lease() as connection:
            backend = await value(connection, "SELECT pg_backend_pid()")
        async with observers.lease() as observer:
            query = f"SELECT query FROM pg_stat_activity WHERE pid = {backend}"  # noqa: S608 - the server's own number
            last = await value(observer, query)
        assert "ROLLBACK" in last
        assert ("RESET ALL" in last) is (reset == "session")


async def test_sqlite_reset_asks_the_thread_once(tmp_path: Path) -> None:
    manager = SqlalchemyManager(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}")
    connection = await manager.create()
    await run(connection, *TABLES)
    await connection.execute(NOTE)
    thread: Any = await below(connection)
    assert thread.in_transaction
    asked = thread._asked
    await manager.change(connection)
    assert thread._asked == asked + 1
    assert await value(connection, "SELECT count(*) FROM notes") == 0
    await manager.clean(connection)


async def test_sqlite_setup_survives_a_reset_that_reconnects(tmp_path: Path) -> None:
    """SQLAlchemy defines functions such as REGEXP."""

    async def look(connection: AsyncConnection) -> Any:
        return await value(connection, "SELECT 'abc' REGEXP 'b'")

    async def writes(connection: AsyncConnection) -> Any:
        return await value(connection, "SELECT total_changes()")  # of this very connection

    async with pool_of(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}") as pool:
        assert await after(pool, lambda _: run(_, *TABLES, str(NOTE)), writes) == 1
        assert await after(pool, lambda _: _.execute(text("ATTACH ':memory:' AS other")), look) == 1
        assert await after(pool, look, writes) == 0


# --- what cannot be used again ----------------------------------------------------------------------


async def close(connection: AsyncConnection) -> None:
    await connection.close()


async def invalidate(connection: AsyncConnection) -> None:
    await connection.invalidate()


@each_reset
@pytest.mark.parametrize("leave", [close, invalidate])
async def test_what_was_closed_or_invalidated_is_destroyed(
    database: URL, reset: str, leave: Act, caplog: pytest.LogCaptureFixture
) -> None:
    async with pool_of(database, reset=reset) as pool:
        await assert_destroyed_after(pool, leave)
    assert caplog.messages == ["pool 'db': change failed with the connection is closed, or its query was cut off"]


async def test_closing_in_a_transaction_logs_nothing(database: URL, caplog: pytest.LogCaptureFixture) -> None:
    async with pool_of(database) as pool:
        connection = await pool.acquire()
        await value(connection, "SELECT 1")
        pool.discard(connection)
    assert pool.stats().cleans == 1
    assert caplog.messages == []


async def test_discard_ends_the_query_on_the_server(server: URL) -> None:
    what = f"pg_sleep(600) AS a{uuid4().hex}"
    async with pool_of(server) as watcher, pool_of(server) as pool:
        connection = await pool.acquire()
        task = asyncio.create_task(value(connection, f"SELECT {what}"))
        await until_running(watcher, what)
        pool.discard(connection)
        await until_running(watcher, what, 0)
        await asyncio.wait([task], timeout=WAIT)
        assert task.exception() is not None


async def test_closing_the_pool_closes_driver_connections(database: URL) -> None:
    async with pool_of(database, limit=2) as pool:
        one, two = await pool.acquire(), await pool.acquire()
        await value(one, "SELECT 1")
        driven = [await below(one), await below(two)]
        await pool.release(one)
        await pool.release(two)
    assert pool.stats().cleans == 2
    assert pool.stats().clean_failures == 0
    for connection in driven:
        with pytest.raises(Exception, match=r"(?i)closed|no active connection|after its lease"):
            await connection.execute("SELECT 1")


# --- connecting -------------------------------------------------------------------------------------


async def test_a_callable_is_asked_anew_for_each_connection(database: URL) -> None:
    asked: list[str] = []

    async def source() -> str:
        asked.append("again")
        return database.render_as_string(hide_password=False)

    def plain_source() -> URL:
        asked.append("again")
        return database

    for ask_for in (source, plain_source):
        asked.clear()
        async with pool_of(ask_for, limit=2) as pool:
            one, two = await pool.acquire(), await pool.acquire()
            assert asked == ["again", "again"]
            await pool.release(one)
            await pool.release(two)


async def test_the_manager_of_a_driver_does_as_it_was_told(postgres_url: str) -> None:
    manager = PsycopgManager(postgres_url, reset="transaction", application_name="mine")
    async with pool_of(manager) as pool:
        assert (
            await after(
                pool,
                lambda connection: run(connection, "SET app.name = 'alice'"),
                lambda connection: value(connection, "SELECT current_setting('app.name')"),
            )
            == "alice"
        )
        async with pool.lease() as connection:
            assert await value(connection, "SHOW application_name") == "mine"


async def test_a_server_that_is_not_there_may_come_back(server: URL) -> None:
    async with pool_of(server.set(port=free_port())) as pool:
        with pytest.raises(ResourceUnavailable) as error:
            await pool.acquire()
    assert PASSWORD not in str(error.value)


MISTAKES: dict[str, tuple[Callable[[URL], Any], dict[str, Any], str]] = {
    "password": (lambda url: url.set(password="Sw0rdfish"), {}, "password"),  # noqa: S106 - a wrong one
    "database": (lambda url: url.set(database="Sw0rdfish"), {}, "no such database"),
    "option of the driver": (
        lambda url: url.update_query_dict({"Sw0rdfish": "1"}),
        {},
        "option|setting|connect takes no",
    ),
    "option of the engine": (lambda url: url, {"sw0rdfish": 1}, "create_async_engine refuses an option"),
    "not a URL": (lambda _: "postgresql+psycopg:Sw0rdfish@db", {}, "URL cannot be read"),
    "raw @": (lambda url: f"{url.drivername}://me:Sw0rdfish@Sw0rdfish@{url.host}:{url.port}/db", {}, "%40"),
    "driver": (lambda url: url.set(drivername="postgresql+psycopg2"), {}, r"postgresql\+asyncpg://"),
    "no driver": (lambda url: url.set(drivername="postgresql"), {}, r"postgresql\+asyncpg://"),
    "nothing": (lambda _: lambda: None, {}, "must return a URL"),
}


@pytest.mark.parametrize(("spoil", "options", "remedy"), MISTAKES.values(), ids=MISTAKES)
async def test_mistake_is_one_line_without_secrets(
    server: URL, spoil: Callable[[URL], Any], options: dict[str, Any], remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with pool_of(spoil(server), **options) as pool:
        with pytest.raises(PoolConfigError, match=remedy) as error:
            await pool.acquire()
    shown = f"{error.value} {caplog.text} {pool!r} {pool.stats()}"
    assert "Sw0rdfish" not in shown.replace("takes no Sw0rdfish", "")  # the name of the option
    assert PASSWORD not in shown
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("where", ["url", "connect_args"])
async def test_sqlalchemys_own_asyncpg_options_are_taken(postgres_url: str, where: str) -> None:
    url = of_postgres("asyncpg", postgres_url)
    options: dict[str, Any] = {"statement_cache_size": 0, "async_fallback": True}
    if where == "url":
        url = url.update_query_dict({"prepared_statement_cache_size": "0"})
    else:
        options |= {"prepared_statement_cache_size": 0, "prepared_statement_name_func": lambda: f"mine_{uuid4()}"}
    async with pool_of(url, reset="transaction", connect_args=options) as pool, pool.lease() as connection:
        await value(connection, "SELECT 7")
        named = await value(connection, "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'mine_%'")
        assert named == (0 if where == "url" else 1)
        cached = await value(connection, "SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT 7'")
        assert cached == 0


async def test_the_engine_is_there_before_the_first_connection(database: URL) -> None:
    manager = SqlalchemyManager(database, echo=False)
    engine = manager.engine
    assert engine.dialect.driver == database.get_driver_name()
    async with ConnectionPool(manager, limit=1, name="db") as pool, pool.lease() as connection:
        assert connection.engine is engine
        assert manager.engine is engine


async def test_engine_of_a_callable_exists_once_connected(database: URL) -> None:
    manager = SqlalchemyManager(lambda: database)
    with pytest.raises(PoolConfigError, match=r"SqlalchemyManager\(AsyncpgManager\(callable\)\)"):
        _ = manager.engine
    async with ConnectionPool(manager, limit=1, name="db") as pool, pool.lease() as connection:
        assert manager.engine is connection.engine


def test_the_engine_of_a_drivers_manager_needs_no_address() -> None:
    assert SqlalchemyManager(PsycopgManager(lambda: "")).engine.dialect.driver == "psycopg"


def test_the_engine_is_made_by_what_instruments_sqlalchemy(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def create(*args: Any, **options: Any) -> Any:
        made.append(create_async_engine(*args, **options))
        return made[-1]

    monkeypatch.setattr("sqlalchemy.ext.asyncio.create_async_engine", create)
    assert [SqlalchemyManager("sqlite+aiosqlite:///app.db").engine] == made


async def test_a_manager_of_no_known_driver_is_a_mistake() -> None:
    async with pool_of(SqlalchemyManager("sqlite+aiosqlite://")) as pool:
        with pytest.raises(PoolConfigError, match="no driver is known that SqlalchemyManager is for"):
            await pool.acquire()


def test_what_makes_no_sense_is_refused_at_once() -> None:
    wrong: Any = "everything"
    with pytest.raises(PoolConfigError, match="'session' or 'transaction'"):
        SqlalchemyManager("", reset=wrong)
    nothing: Any = None
    with pytest.raises(PoolConfigError, match="got NoneType"):
        SqlalchemyManager(nothing)
    with pytest.raises(PoolConfigError, match="pool_pre_ping, pool_size is for another pool"):
        SqlalchemyManager("", pool_size=5, pool_pre_ping=True)
    with pytest.raises(PoolConfigError, match="make must be callable"):
        LeasedSession("db", make=wrong)


async def test_a_driver_that_is_missing_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "connectionpools_fastapi.adapters.psycopg")
    async with pool_of("postgresql+psycopg://") as pool:
        with pytest.raises(PoolConfigError, match=r"pip install 'connectionpools-fastapi\[psycopg\]'"):
            await pool.acquire()


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (lambda patch: patch.setitem(sys.modules, "sqlalchemy", None), "sqlalchemy"),
        (lambda patch: patch.setattr(sqlalchemy, "__version__", "1.4.54"), "found 1.4.54"),
    ],
)
def test_missing_or_old_sqlalchemy_is_told_with_the_remedy(
    load: Callable[[pytest.MonkeyPatch], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(monkeypatch)
    found = importlib.util.find_spec("connectionpools_fastapi.adapters.sqlalchemy")
    assert found is not None
    assert found.loader is not None
    with pytest.raises(ImportError, match=r"newer: pip install 'connectionpools-fastapi\[sqlalchemy\]'") as error:
        found.loader.exec_module(importlib.util.module_from_spec(found))
    assert said in str(error.value.__cause__)


# --- LeasedSession ----------------------------------------------------------------------------------


class Site:
    """An application with a pool of one connection, and what happened in it."""

    def __init__(self, database: URL) -> None:
        self.pool: Pool = ConnectionPool(SqlalchemyManager(database), limit=1, name="db")
        self.app = FastAPI()
        install_pools(self.app, self.pool)
        self.session = Annotated[AsyncSession, LeasedSession(self.pool)]

    async def get(self, path: str = "/", **options: Any) -> Answer:
        async with self.running() as get:
            return await get(path, **options)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Callable[..., Awaitable[Answer]]]:
        async with started(self.app) as served:
            async with self.pool.lease() as connection:
                await run(connection, *TABLES)

            async def get(path: str = "/", **options: Any) -> Answer:
                return await ask(served, path, **options)

            yield get

    async def notes(self) -> int:
        async with self.pool.lease() as connection:
            return int((await connection.execute(COUNT)).scalar_one())


@pytest.fixture
def site(database: URL) -> Site:
    return Site(database)


@pytest.fixture
def small_site(tmp_path: Path) -> Site:
    return Site(make_url(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}"))


async def test_session_commits_before_the_response(site: Site) -> None:
    events: list[str] = []

    class Noting(AsyncSession):
        async def commit(self) -> None:
            await super().commit()
            events.append("committed")

    @site.app.get("/")
    async def endpoint(session: Annotated[AsyncSession, LeasedSession(site.pool, Noting)]) -> None:
        await session.execute(NOTE)

    def look(message: Any) -> None:
        events.append(message["type"])
        assert site.pool.holders() == []  # nor does a slow client keep the connection

    async with site.running() as get:
        assert (await get(on_send=look)).status == 200
        assert events == ["committed", "http.response.start", "http.response.body"]
        assert await site.notes() == 1


async def test_a_commit_that_fails_is_never_told_as_a_success(site: Site) -> None:
    @site.app.get("/")
    async def endpoint(session: site.session) -> str:  # type: ignore[name-defined]
        await session.execute(NOTE_OF_NOBODY)
        return "done"

    answers: list[Any] = []
    async with site.running() as get:
        with pytest.raises(IntegrityError):
            await get(on_send=answers.append)
        assert answers[0]["status"] == 500
        assert not any(b"done" in message.get("body", b"") for message in answers)
        assert await site.notes() == 0


async def test_a_handler_may_answer_for_a_commit_that_fails(site: Site) -> None:
    @site.app.exception_handler(IntegrityError)
    async def conflict(_: Any, __: IntegrityError) -> JSONResponse:
        return JSONResponse({}, status_code=409)

    @site.app.get("/")
    async def endpoint(session: site.session) -> None:  # type: ignore[name-defined]
        await session.execute(NOTE_OF_NOBODY)

    async with site.running() as get:
        assert (await get()).status == 409
        assert (await get()).status == 409  # and the connection is as good as before
        assert await site.notes() == 0


@pytest.mark.parametrize("error", [HTTPException(404), LookupError()])
async def test_an_exception_rolls_back(site: Site, error: Exception) -> None:
    @site.app.get("/")
    async def endpoint(session: site.session) -> None:  # type: ignore[name-defined]
        await session.execute(NOTE)
        raise error

    answers: list[Any] = []
    async with site.running() as get:
        with suppress(LookupError):
            await get(on_send=answers.append)
        assert answers[0]["status"] == (404 if isinstance(error, HTTPException) else 500)
        assert await site.notes() == 0


async def test_an_answer_that_fits_no_response_model_rolls_back(small_site: Site) -> None:
    @small_site.app.get("/")
    async def endpoint(session: small_site.session) -> int:  # type: ignore[name-defined]
        await session.execute(NOTE)
        return "no number"  # type: ignore[return-value]

    answers: list[Any] = []
    async with small_site.running() as get:
        with pytest.raises(Exception, match=r"(?i)valid"):
            await get(on_send=answers.append)
        assert answers[0]["status"] == 500
        assert await small_site.notes() == 0


async def test_an_error_that_is_returned_as_a_response_commits(small_site: Site) -> None:
    @small_site.app.get("/")
    async def endpoint(session: small_site.session) -> JSONResponse:  # type: ignore[name-defined]
        await session.execute(NOTE)
        return JSONResponse({}, status_code=402)

    async with small_site.running() as get:
        assert (await get()).status == 402
        assert await small_site.notes() == 1


async def test_a_cancelled_request_rolls_back(site: Site) -> None:
    written = asyncio.Event()

    @site.app.get("/")
    async def endpoint(session: site.session) -> None:  # type: ignore[name-defined]
        await session.execute(NOTE)
        written.set()
        await asyncio.Event().wait()

    async with site.running() as get:
        request = asyncio.ensure_future(get())
        await asyncio.wait_for(written.wait(), WAIT)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert await site.notes() == 0


async def test_request_has_one_session_on_its_connection(small_site: Site) -> None:
    async def other(session: Annotated[AsyncSession, LeasedSession("db")]) -> AsyncSession:
        return session

    @small_site.app.get("/")
    async def endpoint(
        session: Annotated[AsyncSession, LeasedSession("db")],
        again: Annotated[AsyncSession, Depends(other)],
        connection: Annotated[AsyncConnection, Leased(small_site.pool)],
    ) -> list[bool]:
        return [again is session, await session.connection() is connection]

    assert (await small_site.get()).body == b"[true,true]"


async def test_work_on_the_connection_itself_is_committed_too(small_site: Site) -> None:
    @small_site.app.get("/")
    async def endpoint(
        session: small_site.session,  # type: ignore[name-defined]
        connection: Annotated[AsyncConnection, Leased(small_site.pool)],
    ) -> None:
        await connection.execute(NOTE)
        await session.execute(NOTE)

    async with small_site.running() as get:
        assert (await get()).status == 200
        assert await small_site.notes() == 2


async def test_the_application_may_make_the_session_itself(small_site: Site) -> None:
    make = async_sessionmaker(autoflush=False, info={"mine": 1})

    @small_site.app.get("/")
    async def endpoint(
        session: Annotated[AsyncSession, LeasedSession(small_site.pool, make)],
        plain: small_site.session,  # type: ignore[name-defined]
    ) -> list[Any]:
        return [session.info, session.autoflush, plain.autoflush, plain.sync_session.expire_on_commit]

    assert (await small_site.get()).body == b'[{"mine":1},false,true,false]'


async def test_tests_may_put_another_session_in_its_place(small_site: Site) -> None:
    @small_site.app.get("/")
    async def endpoint(session: small_site.session) -> str:  # type: ignore[name-defined]
        return str(session)

    dependency: Any = LeasedSession(small_site.pool)
    small_site.app.dependency_overrides[dependency.dependency] = lambda: "another one"
    assert (await small_site.get()).body == b'"another one"'


async def test_session_leases_with_its_options(small_site: Site) -> None:
    @small_site.app.get("/")
    async def endpoint(session: Annotated[AsyncSession, LeasedSession("db", timeout=0)]) -> None: ...

    async with small_site.running() as get:
        assert (await get()).status == 200
        async with small_site.pool.lease():
            assert (await get()).status == 503


@pytest.mark.parametrize("options", [{"timeout": 1}, {"priority": "low"}, {"on_disconnect": "cancel"}])
def test_sessions_of_one_route_agree_on_their_options(options: Any, small_site: Site) -> None:
    @small_site.app.get("/")
    async def endpoint(
        one: small_site.session,  # type: ignore[name-defined]
        other: Annotated[AsyncSession, LeasedSession("db", **options)],
    ) -> None: ...

    with pytest.raises(PoolConfigError, match=next(iter(options))), TestClient(small_site.app):
        pass


@pytest.mark.parametrize("options", [{"timeout": "soon"}, {"priority": "urgent"}, {"on_disconnect": "stop"}])
def test_session_refuses_wrong_options(options: Any) -> None:
    with pytest.raises(PoolConfigError, match=next(iter(options))):
        LeasedSession("db", **options)


async def test_stream_and_background_task_get_no_session(site: Site) -> None:
    refusals: list[NotLeased] = []

    async def work(session: AsyncSession) -> None:
        try:
            await session.execute(NOTE)
        except NotLeased as error:
            refusals.append(error)
            raise

    @site.app.get("/stream")
    async def stream(session: site.session) -> StreamingResponse:  # type: ignore[name-defined]
        async def rows() -> AsyncIterator[bytes]:
            yield b"first"
            await work(session)

        return StreamingResponse(rows())

    @site.app.get("/task")
    async def task(session: site.session, tasks: BackgroundTasks) -> None:  # type: ignore[name-defined]
        await session.execute(COUNT)
        tasks.add_task(work, session)

    async with site.running() as get:
        for path in ("/stream", "/task"):
            with pytest.raises(Exception, match=r"after its lease had ended|unhandled errors"):
                await get(path)
        assert ["pool 'db'" in str(error) for error in refusals] == [True, True]
        assert await site.notes() == 0


async def test_a_stream_may_lease_for_itself(small_site: Site) -> None:
    @small_site.app.get("/")
    async def stream() -> StreamingResponse:
        async def rows() -> AsyncIterator[bytes]:
            async with small_site.pool.lease() as connection, AsyncSession(connection) as session:
                yield str((await session.execute(COUNT)).scalar()).encode()

        return StreamingResponse(rows())

    assert (await small_site.get()).body == b"0"


async def test_another_event_loop_than_that_of_asyncio_is_refused(postgres_url: str) -> None:
    async def main() -> None:
        async with pool_of(of_postgres("psycopg", postgres_url)) as pool:
            with pytest.raises(PoolConfigError, match="asyncio only"):
                await pool.acquire()

    await asyncio.to_thread(trio.run, main)
