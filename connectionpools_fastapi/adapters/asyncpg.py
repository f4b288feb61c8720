"""AsyncpgManager: connections of asyncpg to PostgreSQL; needs the extra `asyncpg`."""

# ruff: noqa: SLF001 - only asyncpg's protocol tells what a reset has to know

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from connectionpools_fastapi import Loan, Verdict
from connectionpools_fastapi.errors import PoolConfigError, PoolError, own
from connectionpools_fastapi.manager import ResourceManager, needs_no_task

from ._options import Reset, check_reset, current, refuse_prepare
from ._postgres import (
    BACKEND_PID,
    LOOK_WITHIN,
    READ_ONLY,
    ROUNDS,
    TAKES_NO_WRITES,
    shares_sessions,
    verdict,
    warn_of_shared_sessions,
)
from ._session_state import undone
from ._socket import has_news

try:
    import asyncpg  # type: ignore[import-untyped] # has no types
    from asyncpg.protocol.protocol import PreparedStatementState  # type: ignore[import-untyped] # as above

    if not hasattr(asyncpg.Connection, "get_reset_query"):
        raise ImportError(f"asyncpg {asyncpg.__version__} is too old")
    from ._asyncpg_connect import KNOWN, connect_by, instead, mistake
    from ._asyncpg_connection import ROLLBACK, Leasable, answer_of, leasable, state_of
    from ._asyncpg_reset import RESET, reset_session
except ImportError as _error:
    msg = (
        "connectionpools_fastapi.adapters.asyncpg needs asyncpg 0.30 or newer: "
        "pip install 'connectionpools-fastapi[asyncpg]'"
    )
    raise ImportError(msg) from _error

NONE_FOUND = "SELECT 0"

CONNECT_WITHIN = 5.0
CLOSE_WITHIN = 2.0
CANCEL_WITHIN = 1.0
# How often, at most, all connections are retired because their server takes no writes, in seconds.
RETIRE_EVERY = 1.0

POOLED_OPTIONS = (
    "reset='transaction', statement_cache_size=0 (and prepared_statement_cache_size=0 with SQLAlchemy) unless it is "
    "PgBouncer 1.21 or newer with max_prepared_statements above 0"
)

Dsn = str | Callable[[], str | Awaitable[str]]


class AsyncpgManager(ResourceManager[asyncpg.Connection]):
    """Connects to PostgreSQL by asyncpg, and resets each connection between two leases.

    Each lease gets its own connection object for the session. After the lease it raises
    `NotLeased` and sends nothing, and so does everything made from it: a transaction, cursor,
    prepared statement or coroutine that was kept.

    Either `reset` rolls back a transaction that is still open (the log names the lease's holder)
    and removes the listeners and loggers that a lease has added. The two differ in the rest:

    - "session" resets everything that PostgreSQL keeps of a session, in the same round trip: role,
      settings, temporary tables, advisory locks, LISTEN, cursors, sequences. `asyncpg.Pool`
      does less in as many: it leaves SET ROLE and temporary tables behind. Statements that
      asyncpg has prepared stay prepared, so that no lease has to prepare them again.
    - "transaction" leaves these as they are, and makes no round trip if no transaction is open.
      Use it if no lease changes its session.

    A query that was cancelled, as by a client that leaves, ends at the server too, and its connection
    is reset after that. A connection is destroyed instead if the query has not ended within a second, if
    another one still runs, or if a lease has set type codecs or has prepared statements under its own names.

    A server that was demoted keeps its connections open. If a write of a lease is refused because
    its transaction is read only, the manager asks the server why: if it is a standby, or if its
    configuration says so (`default_transaction_read_only`), all connections are replaced, at most
    once a second. A lease may ask for a read-only transaction itself (`transaction(readonly=True)`,
    SET TRANSACTION READ ONLY, its own `default_transaction_read_only`): that costs nothing.

    Behind a pooler such as PgBouncer, see docs/pgbouncer.md.

    Example:
        ```python
        # A server that falls silent would otherwise keep each connection, and all that wait for one: no query of
        # this application takes longer than a minute. One that does says so: conn.fetch(..., timeout=600).
        postgres = AsyncpgManager("postgresql://user:password@host/database", command_timeout=60)
        db = ConnectionPool(postgres, limit=10, name="db")
        ```
    """

    def __init__(
        self,
        dsn: Dsn | None = None,
        *,
        reset: Reset = "session",
        init: Callable[[asyncpg.Connection], Awaitable[object]] | None = None,
        connect: Callable[..., Awaitable[asyncpg.Connection]] | None = None,
        **options: Any,
    ) -> None:
        """Describe the connections; they are made later.

        Args:
            dsn: Where to connect to. A callable, plain or async, is called for each connection,
                since credentials may have been rotated; a plain one must not block. None
                leaves it to `options` and to asyncpg's defaults.
            reset: What to reset after a lease: its whole "session", or only its "transaction".
            init: Called with each new connection, for type codecs and query loggers, which
                stay. Settings go to `server_settings`: a reset undoes those that `init` makes.
            connect: Called instead of `asyncpg.connect`, with the same arguments, as a connector of
                a cloud provider needs it. It has to pass `connection_class` on.
            **options: For `asyncpg.connect`, such as `ssl` or `server_settings`. `timeout`, for
                connecting, is 5 seconds by default. `command_timeout`, for each query, has no
                default, since a long query may be intended: set it, or a server that has
                fallen silent keeps each connection for good.

        Raises:
            PoolConfigError: If `reset` or an option is unknown.
        """
        check_reset("AsyncpgManager", reset)
        unknown = sorted(options.keys() - KNOWN)
        if unknown:
            raise PoolConfigError(f"AsyncpgManager: asyncpg.connect takes no {', '.join(unknown)}{instead(unknown)}")
        kind = options.get("connection_class", asyncpg.Connection)
        if not (isinstance(kind, type) and issubclass(kind, asyncpg.Connection)):
            raise PoolConfigError("AsyncpgManager: connection_class must be a subclass of asyncpg.Connection")
        self._dsn = dsn
        self._resets_session = reset == "session"
        self._init = init
        self._connect = connect
        self._options = {"timeout": CONNECT_WITHIN, **options}
        self._options["connection_class"] = leasable(kind)
        self._connections: WeakSet[Leasable] = WeakSet()
        self._shares_sessions: bool | None = None  # not known before the first connection
        self._may_retire_at = 0.0

    async def create(self) -> asyncpg.Connection:
        """Connect.

        Returns:
            The new connection.

        Raises:
            PoolConfigError: If the DSN is malformed, the server refuses user or password, has no
                such database or speaks no TLS, or the event loop is not asyncio's.
            Exception: asyncpg's own error, if the server is not reachable or not ready.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise mistake("asyncpg needs asyncio, and this is another event loop") from None
        dsn = await current(self._dsn)
        connection = await connect_by(self._connect or asyncpg.connect, dsn, self._options)
        try:
            if not issubclass(type(connection), Leasable):  # asyncpg takes any connection for an instance
                raise mistake("what `connect` returns is not of its connection_class. Pass that on to asyncpg.connect")
            if self._shares_sessions is None:
                await self._look_for_pooler(connection, dsn)
            if self._init is not None:
                await self._init(connection)
        except BaseException:
            connection.terminate()
            raise
        connection.remember(self._connections)
        return connection

    def lend(self, resource: asyncpg.Connection, loan: Loan) -> asyncpg.Connection:
        """Make the connection that one lease gets, to the same session.

        Args:
            resource: The connection.
            loan: The lease.

        Returns:
            A connection that raises `NotLeased` after the lease, like everything made from it.
        """
        connection: Any = resource  # a Leasable
        return connection.lent_kind(connection, loan)

    def broken(self, resource: asyncpg.Connection, error: Exception) -> Verdict | None:
        """Say what an error means for its connection.

        Args:
            resource: The connection.
            error: The error.

        Returns:
            "discard" if the server ends the session, "expire" if it ends all of them, or if a write
            failed on a standby. None for other errors; after a write that failed in a read-only
            transaction, `change` asks the server whether it takes writes at all.
        """
        connection: Any = resource
        code = getattr(error, "sqlstate", None)
        if code != READ_ONLY:
            return verdict(code)
        if getattr(connection.get_settings(), "in_hot_standby", "off") == "on" and self._may_retire():
            return "expire"
        connection.was_refused_write = True
        return None

    async def check(self, resource: asyncpg.Connection) -> bool:
        """Whether a connection is open; it takes one round trip unless the driver knows already.

        Args:
            resource: The connection.

        Returns:
            Whether it is open. An exception means no.
        """
        connection: Any = resource
        if connection.is_closed() or connection.is_outdated:
            return False
        await connection._protocol.query("SELECT", None)  # tracing does not show this query
        return True

    def doubtful(self, resource: asyncpg.Connection) -> bool:
        """Whether a connection was closed, as far as this end knows, without a round trip.

        Args:
            resource: The connection.

        Returns:
            Whether it has to be checked before it is used.
        """
        connection: Any = resource
        if connection.is_outdated or connection.is_closed():
            return True
        return has_news(connection._transport.get_extra_info("socket").fileno())

    @needs_no_task
    async def change(self, resource: asyncpg.Connection) -> None:
        """Reset a connection, as the class describes.

        Args:
            resource: The connection.

        Raises:
            PoolError: If it cannot be reset.
        """
        await self._change(resource, resets_session=self._resets_session)

    async def change_and_tell(self, resource: asyncpg.Connection) -> list[str]:
        """Do what `change` does, and tell what state of the session it had to undo; for the guard of tests.

        Args:
            resource: The connection.

        Returns:
            Names, as "the setting search_path".
        """
        await self._change(resource, resets_session=False)  # first: what a rollback undoes is no state of the session
        before = await state_of(resource)
        await self._change(resource, resets_session=self._resets_session)
        return undone(before, await state_of(resource))

    async def _change(self, connection: Any, *, resets_session: bool) -> None:
        lent = connection.take_back()
        protocol = connection._protocol
        if protocol._is_cancelling():
            await asyncio.create_task(_query_to_end(protocol))  # a time limit needs a task
        _check_reusable(connection, lent)
        # If a query is sent anyway, sending it is the cheapest way to learn whether another one runs.
        if not resets_session and await _is_busy(connection):
            raise _busy()
        rollback = ""
        if protocol.is_in_transaction():
            if lent is not None and connection.reports_transactions:
                lent.warn_if_forgotten()
            rollback = ROLLBACK
        shares_sessions = self._shares_sessions
        try:
            if resets_session:
                has_statements = await reset_session(connection, rollback, shares_sessions=shares_sessions)
                if has_statements and not shares_sessions:
                    raise own(PoolError("a lease has left prepared statements of its own; DEALLOCATE them"))
            elif rollback:
                await protocol.query(rollback, None)
        except asyncpg.InterfaceError:
            raise _busy() from None
        if connection.was_refused_write:
            await self._look_for_failover(connection)

    async def _look_for_failover(self, connection: Any) -> None:
        """Retire all connections if the server itself, not only a lease, refuses writes."""
        connection.was_refused_write = False
        if await connection._protocol.query(TAKES_NO_WRITES, None) == "SELECT 0":
            return
        if self._may_retire():
            for each in self._connections:
                each.is_outdated = True
        raise own(PoolError("the server takes no writes, as after a failover"))

    def _may_retire(self) -> bool:
        """Whether to retire all connections now; it limits reconnecting to a server that never takes writes."""
        now = time.monotonic()
        if now < self._may_retire_at:
            return False
        self._may_retire_at = now + RETIRE_EVERY
        return True

    async def _look_for_pooler(self, connection: Any, dsn: str | None) -> None:
        """Warn if a pooler gives each transaction another session of the server."""
        shares = False
        with suppress(Exception):  # a failure here must not prevent the connection
            pid = connection.get_server_pid()
            if (
                await connection._protocol.query(f"SELECT WHERE ({BACKEND_PID}) OPERATOR(pg_catalog.<>) {pid}", None)
                != NONE_FOUND
            ):
                async with asyncio.timeout(LOOK_WITHIN):
                    other = await connect_by(self._connect or asyncpg.connect, dsn, self._options)
                    try:
                        pids = [(await _backend_pid(connection), await _backend_pid(other)) for _ in range(ROUNDS)]
                    finally:
                        other.terminate()
                shares = shares_sessions(*zip(*pids, strict=True))
        if shares and not self._shares_sessions:
            warn_of_shared_sessions("AsyncpgManager", POOLED_OPTIONS)
        self._shares_sessions = shares or bool(self._shares_sessions)

    def refuse_prepare(self) -> str | None:
        """Say why a request may not prepare its connection.

        Returns:
            The reason, if a reset does not undo settings: with `reset="transaction"`, and behind a pooler in
            transaction mode.
        """
        return refuse_prepare(resets_session=self._resets_session, shares_sessions=self._shares_sessions)

    def sandbox(self, resource: asyncpg.Connection) -> ResourceManager[asyncpg.Connection]:
        """Make the manager of a sandbox, for `connectionpools_fastapi.testing.sandbox`.

        A COMMIT checks deferred constraints and sets a savepoint. A transaction has the isolation level of the
        sandbox. LISTEN and NOTIFY, which wait for a commit, do nothing.

        Args:
            resource: The connection.

        Returns:
            Its hooks.
        """
        from ._asyncpg_sandbox import AsyncpgSandbox  # noqa: PLC0415 - only tests need it

        return AsyncpgSandbox(self, resource, f"{RESET};" if self._resets_session else "")

    async def clean(self, resource: asyncpg.Connection) -> None:
        """Close a connection, by force after two seconds.

        Args:
            resource: The connection.
        """
        connection: Any = resource
        connection.lent = None
        try:
            # asyncpg cancels a running query first, which would else go on at the server.
            with suppress(Exception):
                async with asyncio.timeout(CLOSE_WITHIN):
                    await connection.close()
        finally:
            connection._transport.abort()  # asyncpg before 0.32 does not do this itself


def _check_reusable(connection: Any, lent: Any) -> None:
    if connection.is_closed():
        raise own(PoolError("the connection is closed"))
    if connection.has_new_codecs:
        raise mistake("a lease has set type codecs; set them in init")
    if lent is not None and lent._protocol.is_copying:
        raise _busy()


def _busy() -> PoolError:
    return own(PoolError("the connection is busy: its query still runs"))


async def _query_to_end(protocol: Any) -> None:
    """Wait until a query that was cancelled has ended.

    asyncpg has asked the server for it over another connection, which the server closes once it has passed that on: so
    the request cannot hit a later query.
    """
    try:
        async with asyncio.timeout(CANCEL_WITHIN):
            await protocol._wait_for_cancellation()
    except TimeoutError:
        raise _busy() from None


async def _backend_pid(connection: Any) -> int:
    """Ask for the number of the server's process."""
    return int(await answer_of(connection, BACKEND_PID))


async def _is_busy(connection: Any) -> bool:
    """Whether a query runs; without a round trip.

    asyncpg has no method for it, but refuses to close a statement that is in use, and it
    checks first that the connection is not busy.
    """
    protocol = connection._protocol
    statement = PreparedStatementState("", "", protocol, asyncpg.Record, False)  # noqa: FBT003 - takes no keywords
    statement.attach()
    try:
        await protocol.close_statement(statement, None)
    except asyncpg.InternalClientError:
        return False
    except asyncpg.InterfaceError:
        pass
    return True
