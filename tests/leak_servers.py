"""The databases of the leak matrix: what a lease may leave behind there, and what may befall them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from dataclasses import dataclass
from typing import Any

import aiomysql  # type: ignore[import-untyped] # has no types
import asyncpg  # type: ignore[import-untyped] # has no types

from tests.leak_drivers import ASYNCPG, MYSQL, Driver
from tests.mariadb_servers import MariadbServer, mariadb
from tests.mysql_drivers import outside
from tests.wheel_servers import PASSWORD, PostgresServer, RedisServer, postgres

APP = "app"  # a user that is no superuser
ANOTHER = "another"  # a password


@asynccontextmanager
async def outside_postgres(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@dataclass(frozen=True)
class Leftover:
    """Left behind by `leave`; then the answer to `question` tells, or an error does if `tells_by_error`."""

    leave: Any
    question: Any
    is_seen: Callable[[Any], bool] = bool
    of_session: bool = True  # whether it outlives its transaction
    tells_by_error: bool = False


@dataclass(frozen=True)
class Server:
    """A kind of database: its statements, as far as it has sessions, writes, passwords and TLS."""

    driver: Driver
    outside: Callable[[str], AbstractAsyncContextManager[Any]]  # connects to an address
    leftovers: dict[str, Leftover]
    session: str = ""  # asks for the number of the session
    seven: Any = "SELECT 7"
    version: Any = "SELECT version()"
    sleep: str = ""
    sleeper: str = ""  # asks, from outside, in which session `sleep` runs
    sleeps_in: Callable[[Any], Any] = lambda answer: answer  # reads that answer
    end: str = ""  # ends a session from outside
    tidy: Any = ""  # undoes what leases may have committed
    prepare: tuple[str, ...] = ()  # what leases need
    write: str = ""
    take_no_writes: tuple[str, ...] = ()  # as after a failover
    take_writes: tuple[str, ...] = ()
    takes_no_writes: str = ""  # asks whether the session has heard of it
    set_password: str = ""  # of APP
    is_encrypted: str = ""  # asks about the session


POSTGRES = Server(
    ASYNCPG,
    outside_postgres,
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
    write="DROP TABLE IF EXISTS left_behind",
    take_no_writes=("ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"),
    take_writes=("ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"),
    takes_no_writes="SELECT current_setting('default_transaction_read_only') = 'on'",
    set_password=f"ALTER ROLE {APP} PASSWORD '{{}}'",
    is_encrypted="SELECT true",  # `speaking_tls` takes nothing else
)

MARIADB = Server(
    MYSQL,
    outside,
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
    prepare=tuple(f"CREATE OR REPLACE TABLE {table} (n int) ENGINE InnoDB" for table in ("left_behind", "other")),
    write="INSERT INTO left_behind VALUES (1)",
    take_no_writes=("SET GLOBAL read_only = 1",),
    take_writes=("SET GLOBAL read_only = 0",),
    takes_no_writes="SELECT @@read_only",
    set_password=f"ALTER USER {APP}@127.0.0.1 IDENTIFIED BY '{{}}'",
    is_encrypted="SELECT variable_value FROM information_schema.session_status WHERE variable_name = 'SSL_CIPHER'",
)

# --- where they run ---------------------------------------------------------------------------------


@dataclass
class Place:
    """A server, and where pools connect to it as of now; `ask` asks it by a connection of no pool."""

    server: Server
    url: str
    root_url: str

    async def ask(self, query: str) -> Any:
        """Ask on a new connection, since the server may have been restarted."""
        async with self.server.outside(self.root_url) as connection:
            return await self.server.driver.ask(connection, query)

    async def ask_all(self, queries: Iterable[str]) -> None:
        for query in queries:
            await self.ask(query)

    @asynccontextmanager
    async def full(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Have others take all connections that are left; yield what makes them leave."""
        async with AsyncExitStack() as others:
            with suppress(asyncpg.TooManyConnectionsError, aiomysql.OperationalError):
                while True:
                    await others.enter_async_context(self.server.outside(self.url))
            yield others.aclose

    @asynccontextmanager
    async def failed_over_to(self, other: "Place") -> AsyncIterator[None]:
        """Take no writes, and lead to another server."""
        own = self.url
        await self.ask_all(self.server.take_no_writes)
        self.url = other.url
        try:
            yield
        finally:
            self.url = own
            await self.ask_all(self.server.take_writes)

    @asynccontextmanager
    async def another_password(self, *, is_known: bool) -> AsyncIterator[None]:
        """Change the password, and that of the address if it is known there."""
        own = self.url
        await self.ask(self.server.set_password.format(ANOTHER))
        if is_known:
            self.url = own.replace(PASSWORD, ANOTHER)
        try:
            yield
        finally:
            self.url = own
            await self.ask(self.server.set_password.format(PASSWORD))


async def place_at(server: PostgresServer | MariadbServer) -> Place:
    """Return a place whose user is no superuser, on a server that may be filled, demoted and killed."""
    if isinstance(server, MariadbServer):
        place = Place(MARIADB, server.url, server.root_url)
    else:
        place = Place(POSTGRES, server.url.replace("postgres:", f"{APP}:", 1), server.url)
        await place.ask(
            f"DO $$ BEGIN IF to_regrole('{APP}') IS NULL THEN CREATE ROLE {APP} LOGIN PASSWORD '{PASSWORD}'; "
            "END IF; END $$"
        )
    await place.ask_all(place.server.prepare)
    return place


def limited(server: Server) -> AbstractContextManager[PostgresServer | MariadbServer]:
    """Run a server that takes few connections, and speaks no TLS."""
    few = "10"
    return postgres(max_connections=few) if server is POSTGRES else mariadb(f"--max-connections={few}", "--skip-ssl")


async def restart(server: Any) -> None:
    """Kill a server and start it again; meanwhile the loop may notice."""
    await asyncio.to_thread(server.stop if isinstance(server, RedisServer) else server.kill)
    await asyncio.to_thread(server.start)
