"""What the managers of MySQL's drivers share; needs no driver."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, ClassVar, TypeVar

from connectionpools_fastapi import Loan, Verdict
from connectionpools_fastapi.errors import PoolConfigError, PoolError, own
from connectionpools_fastapi.manager import ResourceManager

from ._mysql import IN_TRANSACTION, NO_TLS, TOO_OLD, UNKNOWN_COMMAND, WHICH_SERVER, Verdicts, code_of, read, refusal
from ._mysql_connection import (
    AUTOCOMMIT,
    COM_INIT_DB,
    COM_QUERY,
    COM_RESET_CONNECTION,
    Killer,
    Leasable,
    NoTlsError,
)
from ._options import Reset, awaited, check_address, check_reset, current, refuse_prepare
from ._session_state import undone
from ._socket import has_news

Url = str | Callable[[], str | Awaitable[str]]

DEFAULTS = {"charset": "utf8mb4", "connect_timeout": 5.0}
CLOSE_WITHIN = 2.0
ROLLBACK = COM_QUERY, "ROLLBACK"
WHICH_DATABASE = "SELECT DATABASE()"

# The settings of a session, but for those that statements change by the way.
SETTINGS = """
SHOW SESSION VARIABLES WHERE Variable_name NOT IN (
    'error_count', 'gtid_seq_no', 'identity', 'in_transaction', 'insert_id', 'last_gtid', 'last_insert_id',
    'pseudo_thread_id', 'rand_seed1', 'rand_seed2', 'statement_id', 'timestamp', 'warning_count'
)
"""
VARIABLES = """
SELECT VARIABLE_NAME, VARIABLE_VALUE FROM performance_schema.user_variables_by_thread
JOIN performance_schema.threads USING (THREAD_ID) WHERE PROCESSLIST_ID = CONNECTION_ID()
"""
VARIABLES_OF_MARIADB = "SELECT VARIABLE_NAME, VARIABLE_VALUE FROM information_schema.USER_VARIABLES"

# Options of other pools and drivers, and what to write for them here.
INSTEAD = {
    "cursor_cls": "cursorclass=...",
    "cursorclass": "cursor_cls=...",
    "database": "db=...",
    "init": "init_command=...",
    "max_overflow": "ConnectionPool(..., limit=...)",
    "maxsize": "ConnectionPool(..., limit=...)",
    "minsize": "ConnectionPool(..., min_free=...)",
    "passwd": "password=...",
    "pool_recycle": "ConnectionPool(..., max_lifetime=...)",
    "pool_size": "ConnectionPool(..., limit=...)",
    "ssl_ca": "ssl=ssl.create_default_context(cafile=...)",
    "username": "user=...",
}


T = TypeVar("T")


class MysqlManager(ResourceManager[T]):
    """The hooks of both drivers' managers."""

    _driver: ClassVar[str]  # its name
    _known: ClassVar[frozenset[str]]  # its options
    _kind: ClassVar[Any]  # its Leasable

    def __init__(self, url: Url | None, *, reset: Reset, options: dict[str, Any]) -> None:
        """Describe the connections, which are made later."""
        name = type(self).__name__
        if url is not None:
            check_address(name, "url", url)
        check_reset(name, reset)
        unknown = sorted(options.keys() - self._known)
        if unknown:
            raise PoolConfigError(
                f"{name}: {self._driver}.connect takes no {', '.join(unknown)}{self._instead(unknown)}"
            )
        self._url = url
        self._resets_session = reset == "session"
        self._options = options
        self._killer = Killer(name, lambda: self._connect(init_command=None, sql_mode=None, autocommit=None))
        self._verdicts = Verdicts()

    def _instead(self, unknown: list[str]) -> str:
        hints = []
        for name in unknown:
            near = get_close_matches(name, self._known, n=1)
            if hint := INSTEAD.get(name) or (f"{near[0]}=..." if near else None):
                hints.append(f"for {name} write {hint}")
        return f": {'; '.join(hints)}" if hints else ""

    async def create(self) -> T:
        """Connect.

        Returns:
            The new connection.

        Raises:
            PoolConfigError: If the URL or an option is malformed, the server refuses user or password, has no such
                database or is too old, or the event loop is not asyncio's.
            Exception: The driver's own error, if the server is not reachable or not ready.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise self._mistake(f"{self._driver} needs asyncio, and this is another event loop") from None
        connection = await self._connect()
        try:
            wire = connection.wire
            wire.server = await connection.fetch_value(WHICH_SERVER)
            if self._resets_session:  # so that the first lease begins as all others do
                await self._reset(connection)
            wire.session, wire.killer = connection.thread_id(), self._killer
        except BaseException as error:
            connection.abort()
            if code_of(error) == UNKNOWN_COMMAND:
                raise self._mistake(TOO_OLD) from None
            raise
        made: T = connection
        return made

    async def _connect(self, **options: Any) -> Any:
        options = {**DEFAULTS, **await self._address(), **self._options, **options}
        if callable(options.get("password")):
            options["password"] = await current(options["password"])
        try:
            connection: Leasable = self._kind(**options)
        except (AttributeError, TypeError, ValueError, OSError) as error:  # their text may contain secrets
            raise self._mistake(
                f"an option or the URL has a value that {_kind(error)} refuses: check charset, port and ssl"
            ) from None
        try:
            async with asyncio.timeout(options["connect_timeout"]):
                await connection.open()
        except BaseException as error:
            connection.abort()
            found = NO_TLS if isinstance(error, NoTlsError) else refusal(error)
            if found is not None:
                raise self._mistake(found) from None  # its text names user and host
            raise
        return connection

    async def _address(self) -> dict[str, Any]:
        if self._url is None:
            return {}
        url = await current(self._url)
        if not isinstance(url, str):
            raise self._mistake(f"the callable given as url must return a str, and returned {_kind(url)}")
        options, wrong = read(url)
        if wrong is not None:
            raise self._mistake(wrong)
        return options

    def lend(self, resource: T, loan: Loan) -> T:
        """Make the connection that one lease gets, to the same session.

        Args:
            resource: The connection.
            loan: The lease.

        Returns:
            A connection that raises `NotLeased` after the lease, like everything made from it.
        """
        connection: Any = resource
        lent: T = connection.lend(loan)
        return lent

    def broken(self, resource: T, error: Exception) -> Verdict | None:  # noqa: ARG002 - errors tell it all
        """Say what an error means for its connection.

        Args:
            resource: The connection.
            error: The error.

        Returns:
            "discard" if the session has ended, "expire" if the server takes no writes, at most once a second. None
            for other errors.
        """
        return self._verdicts.of(error)

    async def check(self, resource: T) -> bool:
        """Send a ping, one round trip, unless the driver knows that the connection is closed.

        Args:
            resource: The connection.

        Returns:
            Whether it is open. An exception means no.
        """
        connection: Any = resource
        if not (connection.is_open and connection.is_quiet):
            return False
        await connection.ping(reconnect=False)
        return True

    def doubtful(self, resource: T) -> bool:
        """Whether a connection was closed, as far as this end knows, without a round trip.

        Args:
            resource: The connection.

        Returns:
            Whether it has to be checked before it is used.
        """
        connection: Any = resource
        if not (connection.is_open and connection.is_quiet):
            return True
        return has_news(connection.transport.get_extra_info("socket").fileno())

    def change(self, resource: T) -> Awaitable[None] | None:
        """Reset a connection, as the class describes.

        Args:
            resource: The connection.

        Returns:
            An awaitable, if there is something to wait for.

        Raises:
            PoolError: If it cannot be reset.
            Exception: The driver's own error, if the connection is lost meanwhile.
        """
        return self._end_lease(resource, resets_session=self._resets_session)

    async def change_and_tell(self, resource: T) -> list[str]:
        """Do what `change` does, and tell what state of the session it had to undo; for the guard of tests.

        Args:
            resource: The connection.

        Returns:
            Names, as "the setting sql_mode". Of `@variables`, those that the server lists; no tables or locks.
        """
        await awaited(self._end_lease(resource, resets_session=False))  # first: it rolls back
        before = await _state_of(resource)
        await awaited(self._end_lease(resource, resets_session=self._resets_session))
        return undone(before, await _state_of(resource))

    def _end_lease(self, connection: Any, *, resets_session: bool) -> Awaitable[None] | None:
        fault = connection.fault()
        if fault is not None:
            raise own(PoolError(fault))
        loan = connection.end_lease()
        if loan is not None and not loan.has_failed:
            loan.warn(connection.lost)
        if resets_session:
            return self._reset(connection)
        # aiomysql does not learn from a SELECT that it has begun a transaction.
        if connection.server_status & IN_TRANSACTION or not connection.server_status & AUTOCOMMIT:
            rollback: Awaitable[None] = connection.exchange(ROLLBACK)
            return rollback
        return None

    async def _reset(self, connection: Any) -> None:
        made = connection.settings()
        settings = [f"NAMES '{made['charset']}'"]
        if made["autocommit"] is not None:
            settings.append(f"autocommit = {int(made['autocommit'])}")
        if made["sql_mode"] is not None:
            settings.append(f"sql_mode = {made['sql_mode']}")
        commands = [(COM_RESET_CONNECTION, ""), (COM_QUERY, f"SET {', '.join(settings)}")]
        if made["db"]:
            commands.append((COM_INIT_DB, made["db"]))
        if made["init_command"] is not None:
            commands.append((COM_QUERY, made["init_command"]))
        await connection.exchange(*commands)
        if not made["db"] and await connection.fetch_value(WHICH_DATABASE) is not None:
            raise own(
                PoolError("a lease has chosen a database, and the connection began with none; name one in the URL")
            )

    def refuse_prepare(self) -> str | None:
        """Say why a request may not prepare its connection.

        Returns:
            The reason, if a reset does not undo settings: with `reset="transaction"`.
        """
        return refuse_prepare(resets_session=self._resets_session)

    def sandbox(self, resource: T) -> ResourceManager[T]:
        """Make the manager of a sandbox, for `connectionpools_fastapi.testing.sandbox`.

        A statement before which MySQL commits, as CREATE TABLE, is refused. What a lease sets in its session lasts
        as long as the sandbox. A query that is cancelled costs the connection, and so the sandbox.

        Args:
            resource: The connection.

        Returns:
            Its hooks.
        """
        from ._mysql_sandbox import MysqlSandbox  # noqa: PLC0415 - only tests need it

        return MysqlSandbox(self, resource)

    async def clean(self, resource: T) -> None:
        """Close a connection; a query that still runs is ended at the server, within two seconds.

        Args:
            resource: The connection.
        """
        connection: Any = resource
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_WITHIN):
                    await connection.break_off()
        finally:
            connection.abort()
            if connection.lent is None or connection.lent.loan.is_over:  # else a test has killed it
                connection.end_lease()

    def _mistake(self, what: str) -> PoolConfigError:
        return own(PoolConfigError(f"{type(self).__name__}: {what}"))


def _kind(value: object) -> str:
    return type(value).__name__


async def _state_of(connection: Any) -> dict[str, str]:
    """Return what the session of a connection has that outlasts a transaction, as far as the server lists it."""
    await connection.exchange(ROLLBACK)  # also reads results that a lease has left
    settings = {f"the setting {name}": str(value) for name, value in await connection.fetch_all(SETTINGS)}
    variables: dict[str, str] = {}
    with suppress(Exception):  # the server has no such table, or this user may not read it
        in_mariadb = "mariadb" in str(await connection.fetch_value("SELECT VERSION()")).lower()
        found = await connection.fetch_all(VARIABLES_OF_MARIADB if in_mariadb else VARIABLES)
        variables = {f"the variable @{name}": str(value) for name, value in found}
    return {**settings, **variables, "the database": str(await connection.fetch_value(WHICH_DATABASE))}
