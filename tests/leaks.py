"""What one lease of a pool does to the next one: the same questions to each pool, ours or a driver's own.

The tests compare the answers of our managers to what is promised; `python -m benchmarks.leaks` prints them for all.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy.util import greenlet_spawn

from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi.adapters.aiomysql import AiomysqlManager
from connectionpools_fastapi.adapters.asyncmy import AsyncmyManager
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager
from connectionpools_fastapi.adapters.psycopg import PsycopgManager, SyncPsycopgManager
from connectionpools_fastapi.adapters.sqlalchemy import SqlalchemyManager, SyncSqlalchemyManager

SOON = 10.0
KEEPS_ON = 3.0  # seconds after which a cancelled query is said to go on

Answer = Literal["gone", "seen", "ends", "goes on", "served", "fails"]

# --- drivers ----------------------------------------------------------------------------------------


async def no_commit(_: Any) -> None:
    """Do nothing: the driver begins no transaction by itself."""


@dataclass(frozen=True)
class Driver:
    """How one driver, or SQLAlchemy upon it, is spoken to: all callables take a connection.

    `ask` executes a statement and returns the first value of its first row. `made` makes something from the connection
    and returns how to use it.
    """

    ask: Callable[[Any, str], Awaitable[Any]]
    made: Callable[[Any], Awaitable[Callable[[], Awaitable[Any]]]]
    commit: Callable[[Any], Awaitable[Any]] = no_commit
    begins: bool = True  # whether it begins a transaction with the first statement


def first(row: Any) -> Any:
    return None if row is None else row[0]


async def ask_psycopg(connection: Any, query: str) -> Any:
    cursor = await connection.execute(query)
    return first(await cursor.fetchone()) if cursor.description else None


async def made_by_psycopg(connection: Any) -> Callable[[], Awaitable[Any]]:
    cursor = connection.cursor()
    await cursor.execute("SELECT 1")
    return lambda: cursor.execute("SELECT 2")


def ask_in_thread(connection: Any, query: str) -> Any:
    cursor = connection.execute(query)
    return first(cursor.fetchone()) if cursor.description else None


async def made_in_thread(connection: Any) -> Callable[[], Awaitable[Any]]:
    cursor = await asyncio.to_thread(connection.cursor)
    await asyncio.to_thread(cursor.execute, "SELECT 1")
    return lambda: asyncio.to_thread(cursor.execute, "SELECT 2")


async def made_by_asyncpg(connection: Any) -> Callable[[], Awaitable[Any]]:
    statement = await connection.prepare("SELECT 1")
    result: Callable[[], Awaitable[Any]] = statement.fetchval
    return result


async def ask_sqlalchemy(connection: Any, query: str) -> Any:
    result = await connection.exec_driver_sql(query)
    return result.scalar() if result.returns_rows else None


async def made_by_sqlalchemy(connection: Any) -> Callable[[], Awaitable[Any]]:
    driven = await connection.get_raw_connection()  # below SQLAlchemy
    cursor = await greenlet_spawn(driven.cursor)

    async def use() -> None:
        await greenlet_spawn(cursor.execute, "SELECT 1")

    await use()
    return use


def ask_sqlalchemy_in_thread(connection: Any, query: str) -> Any:
    result = connection.exec_driver_sql(query)
    return result.scalar() if result.returns_rows else None


async def made_by_sqlalchemy_in_thread(connection: Any) -> Callable[[], Awaitable[Any]]:
    cursor = connection.connection.cursor()  # of the driver, below SQLAlchemy
    await asyncio.to_thread(cursor.execute, "SELECT 1")
    return lambda: asyncio.to_thread(cursor.execute, "SELECT 2")


async def ask_mysql(connection: Any, query: str) -> Any:
    async with connection.cursor() as cursor:
        await cursor.execute(query)
        return first(await cursor.fetchone())


async def made_by_mysql(connection: Any) -> Callable[[], Awaitable[Any]]:
    cursor = await connection.cursor()
    await cursor.execute("SELECT 1")
    await cursor.fetchall()
    return lambda: cursor.execute("SELECT 2")


def committed_in_thread(connection: Any) -> Awaitable[Any]:
    return asyncio.to_thread(connection.commit)


ASYNCPG = Driver(lambda connection, query: connection.fetchval(query), made_by_asyncpg, begins=False)
PSYCOPG = Driver(ask_psycopg, made_by_psycopg, lambda connection: connection.commit())
SYNC_PSYCOPG = Driver(
    lambda connection, query: asyncio.to_thread(ask_in_thread, connection, query), made_in_thread, committed_in_thread
)
SQLALCHEMY = Driver(ask_sqlalchemy, made_by_sqlalchemy, lambda connection: connection.commit())
SYNC_SQLALCHEMY = Driver(
    lambda connection, query: asyncio.to_thread(ask_sqlalchemy_in_thread, connection, query),
    made_by_sqlalchemy_in_thread,
    committed_in_thread,
)
MYSQL = Driver(ask_mysql, made_by_mysql, lambda connection: connection.commit())

# --- what a lease may leave behind ------------------------------------------------------------------


@dataclass(frozen=True)
class Leftover:
    """Left behind by `leave`; then `question` gives a value that is true, or fails if `tells_by_error`."""

    leave: str
    question: str
    of_session: bool = True  # whether it outlives its transaction
    tells_by_error: bool = False


@dataclass(frozen=True)
class Server:
    """A kind of database: its statements."""

    leftovers: dict[str, Leftover]
    session: str  # asks for the number of the session
    sleep: str
    sleeper: str  # asks, from outside, in which session `sleep` runs
    end: str  # ends a session from outside
    tidy: str  # undoes what leases may have committed


POSTGRES = Server(
    {
        "rows that were not committed": Leftover(
            "CREATE TABLE left_behind ()", "SELECT to_regclass('left_behind') IS NOT NULL", of_session=False
        ),
        "a failed transaction": Leftover("SELECT 1 / 0", "SELECT false", of_session=False, tells_by_error=True),
        "a role (SET ROLE)": Leftover("SET ROLE pg_monitor", "SELECT current_user = 'pg_monitor'"),
        "a user (SET SESSION AUTHORIZATION)": Leftover(
            "SET SESSION AUTHORIZATION pg_monitor", "SELECT session_user = 'pg_monitor'"
        ),
        "a setting (search_path)": Leftover(
            "SET search_path = elsewhere", "SELECT current_setting('search_path') = 'elsewhere'"
        ),
        "a setting of the application (a tenant)": Leftover(
            "SET app.tenant = 'alice'", "SELECT current_setting('app.tenant', true) = 'alice'"
        ),
        "a temporary table": Leftover(
            "CREATE TEMP TABLE mine ()", "SELECT count(*) > 0 FROM pg_class WHERE relname = 'mine'"
        ),
        "an advisory lock": Leftover(
            "SELECT pg_advisory_lock(4711)",
            "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        ),
        "LISTEN": Leftover("LISTEN gossip", "SELECT count(*) > 0 FROM pg_listening_channels()"),
        "a cursor WITH HOLD": Leftover(
            "DECLARE mine CURSOR WITH HOLD FOR SELECT 1", "SELECT count(*) > 0 FROM pg_cursors WHERE name = 'mine'"
        ),
        "a statement (PREPARE)": Leftover(
            "PREPARE mine AS SELECT 1", "SELECT count(*) > 0 FROM pg_prepared_statements WHERE name = 'mine'"
        ),
    },
    session="SELECT pg_backend_pid()",
    sleep="SELECT pg_sleep(60)",
    sleeper="SELECT max(pid) FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(60)'",
    end="SELECT pg_terminate_backend({}, 5000)",
    tidy="DROP TABLE IF EXISTS left_behind",
)

MARIADB = Server(
    {
        "rows that were not committed": Leftover(
            "INSERT INTO left_behind VALUES (1)", "SELECT count(*) > 0 FROM left_behind", of_session=False
        ),
        "a locked row (FOR UPDATE)": Leftover(
            "SELECT * FROM left_behind FOR UPDATE", "SELECT @@in_transaction", of_session=False
        ),
        "a variable": Leftover("SET @mine = 1", "SELECT @mine IS NOT NULL"),
        "a setting (sql_mode)": Leftover("SET sql_mode = 'ANSI'", "SELECT locate('ANSI', @@sql_mode) > 0"),
        "the time zone": Leftover("SET time_zone = '+05:00'", "SELECT @@time_zone = '+05:00'"),
        "the isolation level": Leftover(
            "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SELECT count(*) > 0 FROM information_schema.session_variables WHERE variable_value = 'SERIALIZABLE'",
        ),
        "read only": Leftover("SET SESSION TRANSACTION READ ONLY", "SELECT @@tx_read_only"),
        "autocommit": Leftover("SET autocommit = 1", "SELECT @@autocommit"),
        "the charset": Leftover("SET NAMES latin1", "SELECT @@character_set_client = 'latin1'"),
        "the database (USE)": Leftover("USE information_schema", "SELECT database() = 'information_schema'"),
        "a temporary table": Leftover("CREATE TEMPORARY TABLE mine (n int)", "SELECT count(*) + 1 FROM mine"),
        "a lock (GET_LOCK)": Leftover("SELECT get_lock('mine', 1)", "SELECT is_used_lock('mine') IS NOT NULL"),
        "locked tables": Leftover(
            "LOCK TABLES left_behind READ", "SELECT count(*) * 0 FROM other", tells_by_error=True
        ),
        "a statement (PREPARE)": Leftover("PREPARE mine FROM 'SELECT 1'", "EXECUTE mine"),
        "the last number": Leftover("SELECT last_insert_id(7)", "SELECT last_insert_id() = 7"),
    },
    session="SELECT connection_id()",
    sleep="SELECT sleep(60)",
    sleeper="SELECT max(id) FROM information_schema.processlist WHERE info = 'SELECT sleep(60)'",
    end="KILL {}",
    tidy="TRUNCATE left_behind",
)

# --- pools, and what is asked of them ---------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """An open pool of one connection; `lease` leases it."""

    lease: Callable[[], AbstractAsyncContextManager[Any]]
    driver: Driver
    server: Server
    outside: Callable[[str], Awaitable[Any]]  # asks the server by a connection of no pool


async def what_remains(pool: Pool, leftover: Leftover) -> Answer:
    """Let one lease leave something behind, and say whether the next one sees it."""
    driver = pool.driver
    async with pool.lease() as connection:
        if not (leftover.of_session or driver.begins):
            await driver.ask(connection, "BEGIN")
        with suppress(Exception):  # one statement fails, as it is meant to
            await driver.ask(connection, leftover.leave)
        if leftover.of_session:
            await driver.commit(connection)
    async with pool.lease() as connection:
        try:
            is_seen = bool(await driver.ask(connection, leftover.question))
        except Exception:  # noqa: BLE001 - of any driver
            is_seen = leftover.tells_by_error
    return "seen" if is_seen else "gone"


async def what_is_kept(pool: Pool, make: Callable[[Any], Awaitable[Callable[[], Awaitable[Any]]]]) -> Exception | None:
    """Use something that a lease has kept while the next lease goes on; return the error, None if it works."""
    async with pool.lease() as connection:
        use = await make(connection)
    async with pool.lease():
        try:
            await use()
        except Exception as error:  # noqa: BLE001 - of any driver
            return error
    return None


def itself(pool: Pool) -> Callable[[Any], Awaitable[Callable[[], Awaitable[Any]]]]:
    async def make(connection: Any) -> Callable[[], Awaitable[Any]]:
        return lambda: pool.driver.ask(connection, "SELECT 1")

    return make


async def how_a_cancelled_query_ends(pool: Pool) -> tuple[Answer, float]:
    """Cancel a request in its query; say whether and when it ends on the server."""

    async def request() -> None:
        async with pool.lease() as connection:
            await pool.driver.ask(connection, pool.server.sleep)

    async def sleeper() -> Any:
        await asyncio.sleep(0.01)
        return await pool.outside(pool.server.sleeper)

    task = asyncio.create_task(request())
    async with asyncio.timeout(SOON):
        while await sleeper() is None:
            pass
    task.cancel()
    began = time.monotonic()
    while (session := await sleeper()) is not None and time.monotonic() < began + KEEPS_ON:
        pass
    took = time.monotonic() - began
    if session is not None:
        await end_session(pool, session)
    await asyncio.wait([task], timeout=SOON)
    return ("ends" if session is None else "goes on"), took


async def end_session(pool: Pool, session: int) -> None:
    """End a session from outside, unless it has ended."""
    with suppress(Exception):
        await pool.outside(pool.server.end.format(session))


async def how_the_next_is_served(pool: Pool, fault: Callable[[Pool, int], Awaitable[Any]]) -> Answer:
    """Have a fault befall a free connection; say whether the next lease notices."""
    async with pool.lease() as connection:
        session = await pool.driver.ask(connection, pool.server.session)
    await fault(pool, session)
    try:
        async with pool.lease() as connection:
            assert await pool.driver.ask(connection, "SELECT 7") == 7
    except AssertionError:
        raise
    except Exception:  # noqa: BLE001 - of any driver
        return "fails"
    return "served"


# --- our managers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contestant:
    """A kind of pool; `open` takes the address of the server, and yields how to lease from a pool of one connection."""

    name: str
    driver: Driver
    server: Server
    open: Callable[[str], AbstractAsyncContextManager[Callable[[], AbstractAsyncContextManager[Any]]]]

    def __str__(self) -> str:
        return self.name

    @asynccontextmanager
    async def pool(self, url: str, outside: Callable[[str], Awaitable[Any]]) -> AsyncIterator[Pool]:
        """Open a pool, and tidy up after it."""
        async with self.open(url) as lease:
            yield Pool(lease, self.driver, self.server, outside)
        await outside(self.server.tidy)


def ours(name: str, driver: Driver, server: Server, make: Callable[[str], Any]) -> Contestant:
    """Make a contestant of a manager, which `make` makes for an address."""

    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[Any]:
        async with ConnectionPool(make(url), limit=1, name="db") as pool:
            yield pool.lease

    return Contestant(name, driver, server, opened)


def below_sqlalchemy(url: str, driver: str) -> str:
    return f"{driver}://{url.partition('://')[2]}"


def managers(reset: Any = "session") -> list[Contestant]:
    """Return all managers whose database has sessions on a server."""
    return [
        ours("AsyncpgManager", ASYNCPG, POSTGRES, lambda url: AsyncpgManager(url, reset=reset)),
        ours("PsycopgManager", PSYCOPG, POSTGRES, lambda url: PsycopgManager(url, reset=reset)),
        ours("SyncPsycopgManager", SYNC_PSYCOPG, POSTGRES, lambda url: SyncPsycopgManager(url, reset=reset)),
        *(
            ours(
                f"SqlalchemyManager, {below}",
                SQLALCHEMY,
                POSTGRES if below.startswith("postgresql") else MARIADB,
                lambda url, below=below: SqlalchemyManager(below_sqlalchemy(url, below), reset=reset),  # type: ignore[misc] # the default binds it
            )
            for below in ("postgresql+asyncpg", "postgresql+psycopg", "mysql+aiomysql", "mysql+asyncmy")
        ),
        ours(
            "SyncSqlalchemyManager, postgresql+psycopg",
            SYNC_SQLALCHEMY,
            POSTGRES,
            lambda url: SyncSqlalchemyManager(below_sqlalchemy(url, "postgresql+psycopg"), reset=reset),
        ),
        ours("AiomysqlManager", MYSQL, MARIADB, lambda url: AiomysqlManager(url, reset=reset)),
        ours("AsyncmyManager", MYSQL, MARIADB, lambda url: AsyncmyManager(url, reset=reset)),
    ]
