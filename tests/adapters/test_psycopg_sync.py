"""SyncPsycopgManager: the promises of PsycopgManager, for threads and `def` endpoints."""

import gc
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import psycopg
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from psycopg import Connection, Cursor, IsolationLevel
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row, tuple_row
from psycopg.types.numeric import FloatLoader
from psycopg.waiting import WAIT_R

from connectionpools_fastapi import ConnectionPool, Leased, Loan, NotLeased, PoolConfigError, install_pools
from connectionpools_fastapi.adapters.psycopg import SyncPsycopgManager
from tests.programs import pgbouncer
from tests.psycopg_pools import WAIT, each_reset, pid
from tests.support import check

Conn = Connection[Any]
Pool = ConnectionPool[Conn]


@contextmanager
def pool_of(url: Any, limit: int = 1, **options: Any) -> Iterator[Pool]:
    manager = SyncPsycopgManager(url, **options)
    with ConnectionPool(manager, limit=limit, check_after=0, name="db") as pool:
        yield pool
        check(pool)


@pytest.fixture(name="watcher")
def fixture_watcher(postgres_url: str) -> Iterator[Conn]:
    """See what the pool's connections do."""
    with psycopg.connect(postgres_url, autocommit=True) as watcher:
        yield watcher


@pytest.fixture(name="thread")
def fixture_thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as thread:
        yield thread


def value(connection: Conn, query: Any, *args: Any) -> Any:
    row = Cursor(connection, row_factory=tuple_row).execute(query, args).fetchone()
    return None if row is None else row[0]


def until_gone(watcher: Conn, backend: int) -> None:
    """Wait until the server has ended a session."""
    while value(watcher, "SELECT count(*) FROM pg_stat_activity WHERE pid = %s", backend):
        watcher.execute("SELECT pg_sleep(0.01)")


def until_running(watcher: Conn, backend: int) -> None:
    """Wait until a session is in the midst of its query."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND state = 'active' AND query ~ 'sleep.600'"
    while not value(watcher, query, backend):
        watcher.execute("SELECT pg_sleep(0.01)")


@pytest.fixture(name="busy")
def fixture_busy(watcher: Conn, thread: ThreadPoolExecutor) -> Callable[[Conn], Future[Any]]:
    """Let another thread wait for the server."""

    def keep_busy(connection: Conn) -> Future[Any]:
        running = thread.submit(connection.execute, "SELECT pg_sleep(600)")
        until_running(watcher, pid(connection))
        return running

    return keep_busy


# --- what a lease leaves behind ---------------------------------------------------------------------


@each_reset
@pytest.mark.parametrize("has_failed", [False, True])
def test_what_was_not_committed_is_rolled_back_and_told(
    postgres_url: str, reset: str, caplog: pytest.LogCaptureFixture, *, has_failed: bool
) -> None:
    with pool_of(postgres_url, reset=reset) as pool:
        with suppress(psycopg.Error), pool.lease(holder="nightly report") as connection:
            connection.execute("CREATE TABLE lost ()")
            if has_failed:
                connection.execute("SELECT 1 / 0")
        with pool.lease() as connection:
            assert connection.info.transaction_status == TransactionStatus.IDLE
            assert value(connection, "SELECT to_regclass('lost')") is None
        assert pool.stats().creates == 1
    told = [message for message in caplog.messages if "nightly report: it has written within" in message]
    assert len(told) == (not has_failed)
    assert all("write `conn.commit()` at the end, or `with conn.transaction()`" in message for message in told)


@each_reset
def test_settings_of_the_connection_are_those_of_init(postgres_url: str, reset: str) -> None:
    heard: list[str] = []

    def init(connection: Conn) -> None:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        assert value(connection, "SELECT 1") == 1

    with pool_of(postgres_url, reset=reset, init=init, row_factory=dict_row) as pool:
        with pool.lease() as connection:
            connection.add_notice_handler(lambda notice: heard.append(str(notice.message_primary)))
            connection.adapters.register_loader("text", FloatLoader)
            connection.row_factory, connection.prepare_threshold = tuple_row, None
            connection.isolation_level, connection.autocommit = None, True
        with pool.lease() as connection:
            assert connection.row_factory is dict_row
            assert connection.prepare_threshold == 5
            assert not connection.autocommit
            assert value(connection, "SELECT '1.5'::text") == "1.5"
            assert value(connection, "SHOW transaction_isolation") == "repeatable read"
            connection.execute("DO $$ BEGIN RAISE NOTICE 'loud'; END $$")
        assert not heard


@each_reset
def test_prepared_statements_never_fail_in_a_later_lease(postgres_url: str, reset: str) -> None:
    with pool_of(postgres_url, reset=reset) as pool:
        for _ in range(20):
            with pool.lease() as connection:
                assert [value(connection, "SELECT %s::int", 7) for _ in range(7)] == [7] * 7
        assert pool.stats().creates == 1


# --- what a lease keeps -----------------------------------------------------------------------------

Keep = Callable[[Conn], tuple[Any, Callable[[], Any], Callable[[], Any]]]  # the thing, its use and its end


def keep_connection(connection: Conn) -> Any:
    return connection, lambda: connection.execute("SELECT 'late'"), connection.close


def keep_transaction(connection: Conn) -> Any:
    block = connection.transaction()
    transaction = block.__enter__()
    use = lambda: transaction.connection.execute("SELECT 'late'")  # noqa: E731
    return block, use, lambda: block.__exit__(None, None, None)


def keep_generator(connection: Conn) -> Any:
    def rows() -> Iterator[int]:
        with connection.transaction():
            for number in range(3):
                connection.execute("SELECT 'late'")
                yield number

    generator: Any = rows()
    next(generator)
    return generator, lambda: next(generator), generator.close


def keep_cursor(connection: Conn) -> Any:
    cursor = connection.execute("SELECT generate_series(1, 3)")

    def read() -> None:
        assert cursor.fetchone() == (1,)  # what has arrived within the lease is the caller's own
        cursor.close()

    return cursor, lambda: cursor.execute("SELECT 'late'"), read


def keep_server_cursor(connection: Conn) -> Any:
    cursor = connection.cursor("mine", withhold=True)
    cursor.execute("SELECT generate_series(1, 1000)")
    connection.commit()
    return cursor, cursor.fetchone, cursor.close


def keep_two_phases(connection: Conn) -> Any:
    connection.tpc_begin(connection.xid(1, "mine", "left"))
    return connection, connection.tpc_prepare, connection.tpc_rollback


def keep_notifies(connection: Conn) -> Any:
    connection.autocommit = True
    connection.execute("LISTEN gossip")
    where = connection.info
    with psycopg.connect(where.dsn, password=where.password, autocommit=True) as other:
        other.execute("NOTIFY gossip")
    generator = connection.notifies()
    next(generator)
    return generator, lambda: next(generator), generator.close


def keep_stream(connection: Conn) -> Any:
    stream: Any = connection.cursor().stream("SELECT generate_series(1, 100000)")
    next(stream)
    return stream, lambda: next(stream), stream.close


def keep_pipeline(connection: Conn) -> Any:
    block = connection.pipeline()
    pipeline = block.__enter__()
    return block, pipeline.sync, lambda: block.__exit__(None, None, None)


def keep_copy(connection: Conn) -> Any:
    block = connection.cursor().copy("COPY (SELECT generate_series(1, 100000)) TO STDOUT")
    copy = block.__enter__()
    copy.read()
    return block, copy.read, lambda: block.__exit__(LookupError, LookupError(), None)


BUSY = [keep_stream, keep_pipeline, keep_copy]  # whose connections are destroyed
IDLE = [
    keep_connection,
    keep_transaction,
    keep_generator,
    keep_cursor,
    keep_server_cursor,
    keep_two_phases,
    keep_notifies,
]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # generators end after their leases
@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
@pytest.mark.parametrize("keep", IDLE + BUSY)
@each_reset
def test_kept_thing_does_nothing_to_the_next_lease(postgres_url: str, watcher: Conn, reset: str, keep: Keep) -> None:
    with pool_of(postgres_url, reset=reset) as pool:
        with pool.lease() as connection:
            before = pid(connection)
            thing, use, close = keep(connection)
        with pool.lease() as connection:
            assert (pid(connection) == before) is (keep in IDLE)
            connection.execute("CREATE TABLE written ()")
            last = "SELECT query FROM pg_stat_activity WHERE pid = %s"
            with pytest.raises(NotLeased, match=r"pool 'db'.*after its lease had ended"):
                use()
            with suppress(NotLeased, psycopg.Error):
                close()
            del thing, use, close
            gc.collect()
            assert value(watcher, last, pid(connection)) == "CREATE TABLE written ()"
            connection.rollback()


@pytest.mark.parametrize("end", ["release", "discard"])
@pytest.mark.parametrize(
    "use",
    [
        Cursor,
        Connection.commit,
        Connection.close,
        Connection.cancel,
        Connection.cancel_safe,
        Connection.fileno,
        Connection.__enter__,
        lambda connection: connection.pgconn,
        lambda connection: connection.info,
        lambda connection: connection.closed,
        lambda connection: connection.transaction().__enter__(),
        lambda connection: next(connection.notifies()),
    ],
)
def test_each_use_of_a_kept_connection_raises(postgres_url: str, use: Callable[[Any], Any], end: str) -> None:
    with pool_of(postgres_url) as pool:
        lease = pool.lease()
        with lease as connection:
            if end == "discard":
                lease.discard()
        with pool.lease(), pytest.raises(NotLeased, match="pool 'db'"):
            use(connection).closed  # noqa: B018 - `__enter__` returns the connection
        assert "its lease is over" in repr(connection)
        assert isinstance(connection, Connection)


# --- threads ----------------------------------------------------------------------------------------


@each_reset
def test_query_of_a_forgotten_thread_ends_on_the_server(
    postgres_url: str, watcher: Conn, busy: Callable[[Conn], Future[Any]], reset: str
) -> None:
    with pool_of(postgres_url, reset=reset) as pool:
        with pool.lease() as connection:
            before = pid(connection)
            running = busy(connection)
        with pool.lease() as connection:
            assert pid(connection) != before
            with pytest.raises((psycopg.Error, NotLeased)):
                running.result(WAIT)
            until_gone(watcher, before)
        assert pool.stats().discards["change"] == 1


def test_thread_that_goes_on_after_its_lease_cannot_send(postgres_url: str, thread: ThreadPoolExecutor) -> None:
    may_go_on = threading.Event()

    def write(connection: Conn) -> None:
        with connection.cursor() as cursor:
            assert may_go_on.wait(WAIT)
            cursor.execute("CREATE TABLE late ()")

    with pool_of(postgres_url) as pool:
        with pool.lease() as connection:
            before = pid(connection)
            late = thread.submit(write, connection)
        with pool.lease() as connection:
            may_go_on.set()
            with pytest.raises(NotLeased):
                late.result(WAIT)
            assert pid(connection) == before
            assert value(connection, "SELECT to_regclass('late')") is None


def test_interrupted_query_ends_and_costs_the_connection(
    postgres_url: str, watcher: Conn, thread: ThreadPoolExecutor
) -> None:
    def interrupt() -> None:
        until_running(watcher, before)
        signal.pthread_kill(main, signal.SIGINT)

    main = threading.get_ident()
    with pool_of(postgres_url, autocommit=True) as pool:
        with pool.lease() as connection:
            before = pid(connection)
            interrupting = thread.submit(interrupt)
            with pytest.raises(KeyboardInterrupt):
                connection.execute("SELECT pg_sleep(600)")
            interrupting.result(WAIT)
        with pool.lease() as connection:
            assert pid(connection) != before
            until_gone(watcher, before)


def test_connection_is_dead_before_its_reset_begins(postgres_url: str) -> None:
    manager, loan = SyncPsycopgManager(postgres_url), Loan("db", None, None)
    connection = manager.create()
    cursor = manager.lend(connection, loan).execute("SELECT 1")
    loan.is_over = True
    with pytest.raises(NotLeased):
        cursor.execute("CREATE TABLE late ()")
    manager.clean(connection)


def test_clean_of_a_thread_that_does_not_let_go_is_bounded(
    postgres_url: str, watcher: Conn, thread: ThreadPoolExecutor
) -> None:
    """libpq must not close what another thread uses; the server sees the end of the session all the same."""
    may_end, has_begun = threading.Event(), threading.Event()

    def block() -> Any:
        has_begun.set()
        may_end.wait(WAIT)
        yield WAIT_R

    manager = SyncPsycopgManager(postgres_url)
    connection = manager.create()
    using: Future[Any] = thread.submit(connection.wait, block())
    assert has_begun.wait(WAIT)
    manager.clean(connection)
    assert not connection.closed
    until_gone(watcher, pid(connection))
    may_end.set()
    using.exception(WAIT)
    manager.clean(connection)
    assert connection.closed


def test_def_endpoint_gets_a_connection_of_its_own(postgres_url: str) -> None:
    db = ConnectionPool(SyncPsycopgManager(postgres_url), limit=2, name="db")
    app = FastAPI()
    install_pools(app, db)

    @app.get("/backend")
    def backend(connection: Annotated[Conn, Leased(db)]) -> int:
        connection.execute("SET search_path = elsewhere")
        connection.commit()
        return pid(connection)

    @app.get("/path")
    def path(connection: Annotated[Conn, Leased(db)]) -> str:
        return str(value(connection, "SHOW search_path"))

    with TestClient(app) as client, ThreadPoolExecutor(8) as threads:
        backends = set(threads.map(lambda _: client.get("/backend").json(), range(40)))
        assert 1 <= len(backends) <= 2
        assert client.get("/path").json() == '"$user", public'
    check(db)


# --- connecting -------------------------------------------------------------------------------------


def test_a_failing_init_closes_the_connection(postgres_url: str) -> None:
    made: list[Conn] = []

    def init(connection: Conn) -> None:
        made.append(connection)
        raise LookupError

    with pytest.raises(LookupError):
        SyncPsycopgManager(postgres_url, init=init).create()
    assert made[0].closed


def test_connect_obeys_a_time_limit_below_two_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"postgresql://postgres@127.0.0.1:{silent.getsockname()[1]}/postgres"
        with pytest.raises(psycopg.errors.ConnectionTimeout):
            SyncPsycopgManager(address, connect_timeout=0.2).create()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dsn": 7}, "a str or a callable; got int"),
        ({"sslmod": "require"}, r"psycopg\.Connection\.connect takes no sslmod"),
        ({"reset": "everything"}, "'session' or 'transaction'"),
        ({"connection_class": psycopg.AsyncConnection}, r"connection_class must be a subclass of psycopg\.Connection"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PoolConfigError, match=f"SyncPsycopgManager: .*{said}"):
        SyncPsycopgManager(**options)


def test_connection_class_works_as_lent(postgres_url: str) -> None:
    class Mine(Connection[Any]):
        def count(self) -> Any:
            return value(self, "SELECT count(*) FROM pg_class")

    with pool_of(postgres_url, connection_class=Mine, reset="transaction") as pool:
        with pool.lease() as connection:
            assert isinstance(connection, Mine)
            assert connection.count() > 0
        with pytest.raises(NotLeased):
            connection.count()


@pytest.mark.parametrize("name", ["dsn", "init"])
def test_async_callable_is_refused_with_the_remedy(name: str) -> None:
    async def late(*_: object) -> str:
        return ""

    options: dict[str, Any] = {name: late}
    with pytest.raises(PoolConfigError, match=f"{name} must not be async: use PsycopgManager"):
        SyncPsycopgManager(**options)


@pytest.mark.needs_program("pgbouncer")
@pytest.mark.parametrize(("mode", "told"), [("session", 0), ("transaction", 1)])
def test_pooler_in_transaction_mode_is_told(
    postgres_url: str, mode: str, told: int, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        pgbouncer(postgres_url, mode, default_pool_size=3) as url,
        pool_of(url, reset="transaction", prepare_threshold=None) as pool,
        pool.lease() as connection,
    ):
        assert value(connection, "SELECT 7") == 7
    assert sum("SyncPsycopgManager: a pooler in transaction" in message for message in caplog.messages) == told
