"""SyncSqlalchemyManager and LeasedSession in `def` endpoints: the same promises as for async connections."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, assert_type

import httpx
import pytest
import uvicorn
from fastapi import BackgroundTasks, FastAPI, HTTPException
from fastapi.responses import JSONResponse
from sqlalchemy import Connection, NullPool, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, sessionmaker

from connectionpools_fastapi import ConnectionPool, Leased, NotLeased, PoolConfigError, install_pools
from connectionpools_fastapi.adapters.sqlalchemy import LeasedSession, SqlalchemyManager, SyncSqlalchemyManager
from tests.sqlalchemy_pools import COUNT, NOTE, TABLES, each_reset, of_postgres
from tests.support import check
from tests.wheel_servers import PASSWORD, free_port

Pool = ConnectionPool[Connection]

WAIT = 10.0  # for what comes soon, or the test fails
NOTE_OF_NOBODY = text("INSERT INTO notes VALUES (7)")  # which the commit finds out
ONE = text("SELECT 1")


class MySession(Session):
    """A class of the application's own."""


of_mysql = pytest.param("pymysql", marks=pytest.mark.needs_program("mariadbd"))


@pytest.fixture(name="database", params=["psycopg", "sqlite", of_mysql])
def fixture_database(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    if request.param == "sqlite":
        return make_url(f"sqlite:///{tmp_path / 'app.db'}")
    if request.param == "pymysql":
        return make_url(request.getfixturevalue("mariadb_server").url).set(drivername="mysql+pymysql")
    return of_postgres("psycopg", request.getfixturevalue("postgres_url"))


@pytest.fixture(name="server")
def fixture_server(postgres_url: str) -> URL:
    return of_postgres("psycopg", postgres_url)


def pool_of(source: Any, limit: int = 1, **options: Any) -> Pool:
    return ConnectionPool(SyncSqlalchemyManager(source, **options), limit=limit, check_after=0, name="db")


def make_tables(pool: Pool) -> None:
    with pool.lease() as connection:
        for query in TABLES:
            # MySQL has no constraint that only the commit checks.
            mine = query.replace("DEFERRABLE INITIALLY DEFERRED", "") if connection.dialect.name == "mysql" else query
            connection.execute(text(mine))
        connection.commit()


def value(connection: Connection, query: str) -> Any:
    return connection.execute(text(query)).scalar()


# --- what a lease leaves behind ---------------------------------------------------------------------


@each_reset
def test_what_was_not_committed_is_rolled_back(database: URL, reset: str) -> None:
    with pool_of(database, reset=reset) as pool:
        make_tables(pool)
        with pool.lease() as connection:
            connection.execute(NOTE)
        with pool.lease() as connection:
            assert not connection.in_transaction()
            assert connection.execute(COUNT).scalar() == 0
        assert pool.stats().creates == 1
        check(pool)


def test_session_of_sqlite_is_reset(tmp_path: Path) -> None:
    with pool_of(f"sqlite:///{tmp_path / 'app.db'}") as pool:
        with pool.lease() as connection:
            connection.execute(text("CREATE TEMP TABLE mine (id int)"))
            connection.execute(text("PRAGMA foreign_keys = off"))
        with pool.lease() as connection:
            assert value(connection, "SELECT count(*) FROM sqlite_temp_master") == 0
            assert value(connection, "PRAGMA foreign_keys") == 1
            assert value(connection, "SELECT 'ab' REGEXP 'a.'") == 1  # SQLAlchemy's own setup
        assert pool.stats().creates == 1


def test_lost_write_is_told_with_the_remedy(server: URL, caplog: pytest.LogCaptureFixture) -> None:
    with pool_of(server) as pool:
        make_tables(pool)
        with pool.lease(holder="nightly report") as connection:
            connection.execute(NOTE)
        with pool.lease() as connection:
            assert connection.execute(COUNT).scalar() == 0
    (message,) = caplog.messages
    assert "nightly report: it has written within a transaction" in message
    assert "use LeasedSession, which commits" in message


@pytest.mark.parametrize("is_engine", [False, True])
def test_session_is_reset_and_what_psycopg_prepares_works(server: URL, *, is_engine: bool) -> None:
    """psycopg prepares a statement at its sixth execution, also DISCARD ALL itself, which drops it on the server."""
    with pool_of(create_engine(server, poolclass=NullPool) if is_engine else server) as pool:
        for _ in range(15):
            with pool.lease() as connection:
                assert value(connection, "SELECT 7") == 7
                assert value(connection, "SHOW search_path") != "nowhere"
                connection.execute(text("SET search_path TO nowhere"))
                connection.commit()
        assert pool.stats().creates == 1


@each_reset
def test_isolation_level_ends_with_the_lease(server: URL, reset: str) -> None:
    with pool_of(server, reset=reset) as pool:
        with pool.lease() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(ONE)
        with pool.lease() as connection:
            connection.execute(ONE)
            assert connection.connection.driver_connection.info.transaction_status.name == "INTRANS"  # type: ignore[union-attr]


def test_your_reset_is_called_after_the_rollback(database: URL) -> None:
    calls: list[bool] = []
    engine = create_engine(database, poolclass=NullPool)

    def reset(driven: Any) -> None:
        calls.append(bool(getattr(driven, "in_transaction", False)))
        driven.cursor().execute("INSERT INTO notes VALUES (NULL)")

    with pool_of(engine, reset=reset) as pool:
        make_tables(pool)
        with pool.lease() as connection:
            connection.execute(NOTE)
        with pool.lease() as connection:
            assert connection.execute(COUNT).scalar() == 0
        assert pool.stats().creates == 1
    assert calls == [False] * 3


def test_reset_that_fails_destroys_the_connection(database: URL) -> None:
    def reset(_: Any) -> None:
        raise LookupError

    with pool_of(create_engine(database, poolclass=NullPool), reset=reset) as pool:
        for _ in range(2):
            with pool.lease() as connection:
                assert value(connection, "SELECT 7") == 7
        assert pool.stats().creates == 2


def test_closed_connection_is_destroyed(database: URL) -> None:
    with pool_of(database) as pool:
        with pool.lease() as connection:
            connection.execute(ONE)
            connection.close()
        with pool.lease() as connection:
            assert value(connection, "SELECT 7") == 7
        assert pool.stats().creates == 2


def test_detached_connection_is_not_used_again(database: URL) -> None:
    with pool_of(database) as pool:
        with pool.lease() as connection:
            connection.detach()
        with pool.lease() as connection:
            assert value(connection, "SELECT 7") == 7
        assert pool.stats().creates == 2


def test_error_the_application_handles_is_judged(server: URL) -> None:
    """The code says that the server has ended the session for being idle."""
    with pool_of(server) as pool:
        with pool.lease() as connection, suppress(DBAPIError):
            connection.execute(text("DO $$ BEGIN RAISE EXCEPTION 'idle' USING ERRCODE = '57P05'; END $$"))
        with pool.lease() as connection:
            assert value(connection, "SELECT 7") == 7
        assert pool.stats().creates == 2


def test_settings_of_a_connect_listener_hold_in_each_lease(tmp_path: Path) -> None:
    manager = SyncSqlalchemyManager(f"sqlite:///{tmp_path / 'app.db'}")

    @event.listens_for(manager.engine, "connect")
    def set_up(driven: Any, _: Any) -> None:
        driven.execute("PRAGMA cache_size = 77")

    with ConnectionPool(manager, limit=1, name="db") as pool:
        for _ in range(2):
            with pool.lease() as connection:
                assert value(connection, "PRAGMA cache_size") == 77


def keep_connection(connection: Connection) -> Callable[[], object]:
    return lambda: connection.execute(ONE)


def keep_session(connection: Connection) -> Callable[[], object]:
    session = Session(connection)
    session.execute(ONE)
    return lambda: session.execute(ONE)


def keep_transaction(connection: Connection) -> Callable[[], object]:
    return connection.begin().commit


def keep_result(connection: Connection) -> Callable[[], object]:
    many = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) SELECT i FROM n")
    result = connection.execution_options(stream_results=True, max_row_buffer=2).execute(many)
    result.fetchone()
    return result.fetchall


KEPT = [keep_connection, keep_session, keep_transaction, keep_result]


@each_reset
@pytest.mark.parametrize("keep", KEPT)
def test_kept_thing_raises_after_its_lease(database: URL, keep: Any, reset: str) -> None:
    with pool_of(database, reset=reset) as pool:
        make_tables(pool)
        with pool.lease() as connection:
            use = keep(connection)
        with pool.lease() as connection:
            connection.execute(NOTE)
            with pytest.raises(NotLeased):
                use()
            assert connection.execute(COUNT).scalar() == 1


# --- where to connect -------------------------------------------------------------------------------


def test_a_callable_is_asked_anew_for_each_connection(tmp_path: Path) -> None:
    places = iter(["dialect", "first", "second"])
    manager = SyncSqlalchemyManager(lambda: f"sqlite:///{tmp_path / next(places)}")
    with ConnectionPool(manager, limit=2) as pool, pool.lease() as one, pool.lease() as two:
        files = [Path(each.exec_driver_sql("PRAGMA database_list").one()[2]).name for each in (one, two)]
    assert files == ["first", "second"]


async def later() -> str:
    return "sqlite:///app.db"


@pytest.mark.parametrize(
    ("source", "options", "remedy"),
    [
        ("postgresql+asyncpg://app:let-me-in@db/app", {}, "use SqlalchemyManager"),
        ("nonsense", {}, "cannot be read"),
        ("sqlite:///app.db", {"pool_size": 3}, "pass limit"),
        ("sqlite:///app.db", {"nonsense": 3}, "refused"),
        ("sqlite://", {}, "memory"),
        ("postgresql+psycopg://app:let-me-in@db/app", {"reset": "all"}, "reset must be"),
        (7, {}, "got int"),
        (later, {}, "must not be async: use SqlalchemyManager"),
        (lambda: "nonsense", {}, "cannot be read"),
        (create_engine("sqlite:///app.db"), {}, "poolclass=NullPool"),
        (create_engine("sqlite:///app.db", poolclass=NullPool), {}, "reset='transaction'"),
        (create_engine("sqlite:///app.db", poolclass=NullPool), {"echo": True}, "echo"),
    ],
)
def test_mistake_is_told_at_once_without_secrets(source: Any, options: dict[str, Any], remedy: str) -> None:
    with pytest.raises(PoolConfigError) as raised:
        SyncSqlalchemyManager(source, **options)
    assert remedy in str(raised.value)
    assert PASSWORD not in str(raised.value)


def test_sync_engine_is_no_source_of_the_async_manager() -> None:
    with pytest.raises(PoolConfigError, match="SyncSqlalchemyManager"):
        SqlalchemyManager(create_engine("sqlite:///app.db"))  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"class_": int}, {"class_": Session, "make": sessionmaker()}, {"make": 7}])
def test_session_refuses_what_makes_no_session(options: Any) -> None:
    with pytest.raises(PoolConfigError, match="LeasedSession"):
        LeasedSession("db", **options)


def test_session_has_the_type_of_its_pool_or_class(tmp_path: Path) -> None:
    """mypy and pyright check this."""
    sync = pool_of(f"sqlite:///{tmp_path / 'app.db'}")
    of_tasks = ConnectionPool(SqlalchemyManager(f"sqlite+aiosqlite:///{tmp_path / 'app.db'}"))
    assert_type(LeasedSession(sync), Session)
    assert_type(LeasedSession(of_tasks), AsyncSession)
    assert_type(LeasedSession(sync, class_=MySession), MySession)
    assert_type(LeasedSession("db", sessionmaker(class_=MySession)), MySession)
    assert_type(Leased(sync), Connection)


# --- LeasedSession, as a user would use it ----------------------------------------------------------


class Site:
    """An application on a real server, with a pool of five connections."""

    def __init__(self, database: URL) -> None:
        self.pool: Pool = ConnectionPool(SyncSqlalchemyManager(database), limit=5, timeout=WAIT, name="db")
        self.app = FastAPI()
        install_pools(self.app, self.pool)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{free_port()}", timeout=WAIT)
        self.late: list[BaseException] = []
        # The sessions of this many endpoints are to be open together.
        self.five = threading.Barrier(5)
        self.entered, self.left = threading.Event(), threading.Event()
        self._add_endpoints()
        self._add_other_sessions()

    def _add_endpoints(self) -> None:
        app, db = self.app, self.pool
        session_of = Annotated[Session, LeasedSession(db)]

        @app.post("/note")
        def note(session: session_of) -> None:
            session.execute(NOTE)

        @app.post("/together")
        def together(session: session_of) -> None:
            self.five.wait(WAIT)
            session.execute(NOTE)

        @app.post("/raise")
        def raise_error(session: session_of, status: int) -> None:
            session.execute(NOTE)
            raise HTTPException(status) if status else LookupError

        @app.post("/return")
        def return_error(session: session_of) -> JSONResponse:
            session.execute(NOTE)
            return JSONResponse({}, 409)

        @app.post("/broken")
        def broken(session: session_of) -> None:
            session.execute(NOTE_OF_NOBODY)

        @app.post("/late")
        def late(session: session_of, tasks: BackgroundTasks) -> None:
            tasks.add_task(self.use_late, session)

        @app.post("/slow")
        def slow(session: session_of) -> None:
            session.execute(NOTE)
            self.entered.set()
            assert self.left.wait(WAIT)

    def _add_other_sessions(self) -> None:
        app, db = self.app, self.pool

        @app.post("/class")
        def class_(
            session: Annotated[MySession, LeasedSession("db", class_=MySession)],
            other: Annotated[MySession, LeasedSession("db", class_=MySession)],
            connection: Annotated[Connection, Leased(db, scope="function")],
        ) -> list[bool]:
            return [type(session) is MySession, session is other, session.connection() is connection]

        @app.post("/both")
        def both(
            connection: Annotated[Connection, Leased(db, scope="function")],
            session: Annotated[Session, LeasedSession(db)],
        ) -> None:
            connection.execute(NOTE)
            session.execute(ONE)

        @app.post("/make")
        def make(session: Annotated[Session, LeasedSession(db, sessionmaker(autoflush=False))]) -> bool:
            return session.autoflush

        @app.get("/free")
        def free() -> str:
            return "a worker thread was free"

    def use_late(self, session: Session) -> None:
        try:
            session.execute(ONE)
        except NotLeased as error:
            self.late.append(error)

    def notes(self) -> int:
        with self.pool.lease() as connection:
            return int(connection.execute(COUNT).scalar_one())


@pytest.fixture
def site(database: URL) -> Iterator[Site]:
    site = Site(database)
    port = site.client.base_url.port
    assert port is not None
    server = uvicorn.Server(uvicorn.Config(site.app, port=port, log_level="critical", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            thread.join(0.01)
        make_tables(site.pool)
        with site.client:
            yield site
    finally:
        site.left.set()
        server.should_exit = True
        thread.join(WAIT)
    check(site.pool)


def post(site: Site, path: str) -> httpx.Response:
    return site.client.post(path)


def test_forty_requests_share_five_sessions(site: Site) -> None:
    """Five endpoints at a time meet; any worker thread that waited for a connection would only add to the crowd."""
    with ThreadPoolExecutor(40) as threads:
        answers = list(threads.map(lambda _: post(site, "/together").status_code, range(40)))
    assert answers == [200] * 40
    assert site.notes() == 40
    assert site.pool.stats().creates <= 5


def test_waiting_requests_hold_no_worker_thread(site: Site) -> None:
    """A crowd larger than FastAPI's forty threads waits while other `def` endpoints go on."""
    leases = [site.pool.acquire_sync() for _ in range(5)]
    with ThreadPoolExecutor(60) as threads:
        answers = [threads.submit(post, site, "/note") for _ in range(60)]
        while site.pool.waiting < 60:
            threading.Event().wait(0.001)
        assert site.client.get("/free").status_code == 200
        for lease in leases:
            site.pool.release_sync(lease)
        assert [answer.result().status_code for answer in answers] == [200] * 60
    assert site.notes() == 60


def test_sessions_end_while_threads_wait_for_a_lease(site: Site) -> None:
    """Endpoints that lease by hand may hold all of FastAPI's threads; a session still commits."""

    @site.app.post("/by-hand")
    def by_hand() -> None:
        with site.pool.lease() as connection:
            connection.execute(ONE)

    with ThreadPoolExecutor(45) as threads:
        first = threads.submit(post, site, "/slow")
        assert site.entered.wait(WAIT)
        leases = [site.pool.acquire_sync() for _ in range(4)]
        answers = [threads.submit(post, site, "/by-hand") for _ in range(39)]
        while site.pool.waiting < 39:
            threading.Event().wait(0.001)
        answers.append(threads.submit(post, site, "/by-hand"))
        site.left.set()
        assert first.result().status_code == 200
        for lease in leases:
            site.pool.release_sync(lease)
        assert {answer.result().status_code for answer in answers} == {200}


@pytest.mark.parametrize(
    ("path", "status", "notes"),
    [
        ("/note", 200, 1),
        ("/raise?status=404", 404, 0),
        ("/raise?status=0", 500, 0),
        ("/return", 409, 1),
    ],
)
def test_session_commits_unless_the_endpoint_raises(site: Site, path: str, status: int, notes: int) -> None:
    assert post(site, path).status_code == status
    assert site.notes() == notes


@pytest.mark.parametrize("database", ["psycopg", "sqlite"], indirect=True)
def test_failed_commit_answers_500(site: Site) -> None:
    assert post(site, "/broken").status_code == 500
    assert site.notes() == 0


def test_background_task_gets_no_session(site: Site) -> None:
    assert post(site, "/late").status_code == 200
    post(site, "/note")
    assert [type(error) for error in site.late] == [NotLeased]


def test_client_that_leaves_costs_nothing(site: Site) -> None:
    """The endpoint goes on, its session commits, and the connection comes back."""
    with pytest.raises(httpx.ReadTimeout):
        site.client.post("/slow", timeout=0.3)
    assert site.entered.is_set()
    site.left.set()
    while site.pool.taken:
        threading.Event().wait(0.001)
    assert site.notes() == 1


def test_work_on_the_connection_itself_is_committed_too(site: Site) -> None:
    assert post(site, "/both").status_code == 200
    assert site.notes() == 1


def test_session_is_of_the_class_and_of_the_request(site: Site) -> None:
    assert post(site, "/class").json() == [True, True, True]
    assert post(site, "/make").json() is False
