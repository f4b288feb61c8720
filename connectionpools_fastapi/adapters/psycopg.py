"""PsycopgManager: connections of psycopg 3 to PostgreSQL; needs the extra `psycopg`."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any

from connectionpools_fastapi import Loan, Verdict
from connectionpools_fastapi.errors import PoolConfigError, PoolError, own
from connectionpools_fastapi.manager import ResourceManager

from ._options import Reset, check_address, check_reset, current
from ._postgres import (
    LOOK_WITHIN,
    READ_ONLY,
    ROUNDS,
    TAKES_NO_WRITES,
    shares_sessions,
    verdict,
    warn_of_shared_sessions,
)
from ._readiness import readiness_of
from ._socket import has_news

try:
    from psycopg import AsyncConnection, Error, __version__
    from psycopg.pq import TransactionStatus

    if tuple(map(int, __version__.split(".")[:2])) < (3, 2):
        raise ImportError(f"found {__version__}")
except ImportError as _error:
    msg = (
        "connectionpools_fastapi.adapters.psycopg needs psycopg 3.2 or newer and libpq: "
        "pip install 'connectionpools-fastapi[psycopg]' 'psycopg[binary]'"
    )
    raise ImportError(msg) from _error

from ._psycopg_address import read, refusal, unknown_options
from ._psycopg_connection import CLOSE_WITHIN, Connection, Wire

Dsn = str | Callable[[], str | Awaitable[str]]

# DISCARD ALL must be the only statement. To end a transaction in the same round trip, its parts are sent, as
# PostgreSQL's manual lists them.
DISCARD_ALL = b"DISCARD ALL"
ROLLBACK_AND_DISCARD_ALL = b"""
ROLLBACK;
CLOSE ALL;
SET SESSION AUTHORIZATION DEFAULT;
RESET ALL;
DEALLOCATE ALL;
UNLISTEN *;
SELECT pg_catalog.pg_advisory_unlock_all();
DISCARD PLANS;
DISCARD TEMP;
DISCARD SEQUENCES
"""

# Asked before a rollback, in the same round trip: whether the transaction has written anything.
VERSION_13 = 13_00_00
HAS_WRITTEN = b"SELECT pg_catalog.pg_current_xact_id_if_assigned(); "
HAS_WRITTEN_BEFORE_13 = b"SELECT pg_catalog.txid_current_if_assigned(); "

CONNECT_WITHIN = 5

POOLED_OPTIONS = (
    "reset='transaction', and prepare_threshold=None unless it is PgBouncer 1.22 or newer with "
    "max_prepared_statements above 0 and libpq is of version 17"
)

# How often, at most, all connections are asked whether their server takes writes, in seconds: some never do.
COUNT_EVERY = 1.0
UNKNOWN = -1


class PsycopgManager(ResourceManager[AsyncConnection[Any]]):
    """Connects to PostgreSQL by psycopg 3, and resets each connection between two leases.

    Write `ConnectionPool(PsycopgManager("postgresql://..."), limit=10, name="db")`, on
    asyncio. Each lease gets its own AsyncConnection on a connection of the pool. It begins with
    the settings, adapters and handlers from after connecting. After the lease it raises
    `NotLeased`, and objects made from it (cursors, transactions, COPY, pipelines, generators)
    send nothing; rows that have arrived can still be fetched. Its `pgconn` is libpq's own
    object: do not keep it.

    Each `reset` rolls back an open transaction, and warns if writes are lost by that: end it with
    `await conn.commit()`, or use `async with conn.transaction()`. (psycopg_pool's
    `connection()` commits by itself.) The two differ in the rest:

    - "session" resets everything to its state after connecting, as DISCARD ALL does: role,
      settings, temporary tables, advisory locks, LISTEN, cursors, prepared statements. It
      costs one round trip, including the rollback.
    - "transaction" leaves the rest as it is. Use it if no lease changes its session, if
      statements should stay prepared, or behind a pooler in transaction mode. It costs no
      round trip if no transaction is open.

    A connection is destroyed instead of being reset if the server is not done with it (a query,
    COPY, `stream()`, pipeline or `notifies()` goes on), or if a running query was cancelled.
    The manager cancels the query on the server too.

    After a write was refused as read only (SQLSTATE 25006), even if the endpoint handles the
    error, the manager asks on each connection before its next use whether the server takes
    writes. Connections to a standby, or to a server that is configured as read only, are
    replaced, at most once a second. A transaction, session or role that an application has made
    read only does not affect other leases.

    A silent server keeps its lease, and with it a place in the pool. Limit the time:
    `options="-c statement_timeout=30s"` for the server's own work, `tcp_user_timeout=10000`
    (milliseconds, on Linux) for a network that loses packets, and
    `async with asyncio.timeout(...)` around what a request may wait for.
    """

    def __init__(
        self,
        dsn: Dsn = "",
        *,
        reset: Reset = "session",
        init: Callable[[AsyncConnection[Any]], Awaitable[object]] | None = None,
        **options: Any,
    ) -> None:
        """Describe the connections; they are made later.

        Args:
            dsn: Where to connect to, as a URL or "host=db dbname=app". A callable, plain or
                async, is called for each connection, since credentials may have been rotated; a
                plain one must not block. An empty one leaves it to `options`, and to the
                environment variables of libpq.
            reset: What to reset after a lease: its whole "session", or only its "transaction".
            init: Called with each new connection, for adapters, handlers and an isolation
                level, which stay. A reset undoes what it SETs: for settings write
                `options="-c name=value"`, which is libpq's.
            **options: For `psycopg.AsyncConnection.connect`, as `autocommit`, `row_factory`
                or `sslmode`; `connect_timeout`, for each address of the host, is 5 seconds
                unless the DSN says otherwise, and may be a part of a second.

        Raises:
            PoolConfigError: If `dsn`, `reset` or an option cannot work or is unknown.
        """
        check_address("PsycopgManager", "dsn", dsn)
        check_reset("PsycopgManager", reset)
        self._dsn = dsn
        self._reset = reset
        self._init = init
        self._options = options
        if unknown := unknown_options(options):
            raise PoolConfigError(f"PsycopgManager: psycopg.AsyncConnection.connect takes no {', '.join(unknown)}")
        self._has_looked_for_pooler = False
        # Counts refused writes; connections that know a lower count have to ask whether their server takes writes.
        self._refusals = 0
        self._counted_at = -inf

    async def create(self) -> AsyncConnection[Any]:
        """Connect.

        Returns:
            The new connection.

        Raises:
            PoolConfigError: If the DSN or an option is malformed, if the server refuses the
                user or the password or has no such database, or if the event loop is not asyncio's.
            Exception: psycopg's own error, if the server cannot be reached or is not ready.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise _mistake("psycopg runs on asyncio only, and this is another event loop") from None
        refusals = self._refusals
        connection = await self._connect()
        try:
            connection.wire.readiness = readiness_of(loop)
            connection.wire.refusals = refusals
            if not self._has_looked_for_pooler:
                self._has_looked_for_pooler = True
                await self._look_for_pooler(connection)
            if self._init is not None:
                await self._init(connection)
                await connection.rollback()  # ends the transaction that `init` may have begun
            connection.remember()
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _connect(self) -> Connection:
        dsn = await current(self._dsn)
        if not isinstance(dsn, str):
            raise _mistake(f"the callable given as dsn must return a str, and returned {type(dsn).__name__}")
        parts, found = read(dsn)
        if found is None:
            options = (
                self._options if "connect_timeout" in parts else {"connect_timeout": CONNECT_WITHIN, **self._options}
            )
            try:
                return await Connection.connect(dsn, **options)
            except Error as error:
                found = refusal(error)
                if found is None:
                    raise
        raise _mistake(found)

    async def _look_for_pooler(self, connection: Connection) -> None:
        """Warn if a pooler gives each transaction another session of the server."""
        shares = False
        with suppress(Exception):  # a failure here must not prevent the connection
            if await connection.backend() == connection.pgconn.backend_pid:
                return
            async with asyncio.timeout(LOOK_WITHIN):
                other = await self._connect()
                try:
                    pids = [(await connection.backend(), await other.backend()) for _ in range(ROUNDS)]
                finally:
                    await other.close()
            shares = shares_sessions(*zip(*pids, strict=True))
        if shares:
            warn_of_shared_sessions("PsycopgManager", POOLED_OPTIONS)

    async def check(self, resource: AsyncConnection[Any]) -> bool:
        """Send the server an empty query, unless the driver knows that the connection cannot be used.

        Args:
            resource: The connection.

        Returns:
            False if it cannot be used; if the server is gone, an exception means the same.
        """
        if resource.closed or resource.pgconn.transaction_status != TransactionStatus.IDLE:
            return False
        assert isinstance(resource, Connection)  # noqa: S101 - create makes no other
        wire, refusals = resource.wire, self._refusals
        if wire.refusals == refusals:
            await resource.tend(resource.ask(b""))
            return True
        (takes_no_writes,) = await resource.tend(resource.ask(TAKES_NO_WRITES.encode()))
        wire.refusals = refusals
        return not takes_no_writes.ntuples

    def doubtful(self, resource: AsyncConnection[Any]) -> bool:
        """Whether a connection was closed, as far as this end knows, without a round trip.

        Args:
            resource: The connection.

        Returns:
            Whether it has to be checked before it is used.
        """
        wire: Wire = resource.wire  # type: ignore[attr-defined] # create makes no other
        return wire.refusals != self._refusals or resource.closed or has_news(resource.fileno())

    async def change(self, resource: AsyncConnection[Any]) -> None:
        """Reset a connection, as the class describes.

        Args:
            resource: The connection.

        Raises:
            PoolError: If it cannot be reset, so that it has to be discarded.
            Error: psycopg's own error, with the same meaning.
        """
        assert isinstance(resource, Connection)  # noqa: S101 - create makes no other
        if fault := resource.fault():
            raise own(PoolError(fault))
        if resource.pgconn.transaction_status == TransactionStatus.IDLE:
            resource.end_lease()
            if self._reset == "session":
                await resource.tend(resource.ask(DISCARD_ALL))
        else:
            await self._roll_back(resource)
        if self._reset == "session":
            resource.forget_prepared()
        else:
            resource.restore_preparing()

    async def _roll_back(self, connection: Connection) -> None:
        loan = connection.end_lease()
        script = b"ROLLBACK" if self._reset == "transaction" else ROLLBACK_AND_DISCARD_ALL
        has_failed = connection.pgconn.transaction_status != TransactionStatus.INTRANS
        if loan is None or loan.has_failed or has_failed:  # the loss is intended
            await connection.tend(connection.ask(script))
        else:
            question = HAS_WRITTEN if connection.pgconn.server_version >= VERSION_13 else HAS_WRITTEN_BEFORE_13
            written, *_ = await connection.tend(connection.ask(question + script))
            if written.get_value(0, 0) is not None:
                loan.warn(connection.lost)
        if self._reset == "transaction":
            await connection.clear_prepared()

    def lend(self, resource: AsyncConnection[Any], loan: Loan) -> AsyncConnection[Any]:
        """Make the connection that a lease gets; after the lease it raises `NotLeased`.

        Args:
            resource: The connection.
            loan: The lease.

        Returns:
            An AsyncConnection with its own state on the same socket.
        """
        connection: Any = resource
        lent: AsyncConnection[Any] = connection.lend(loan)
        return lent

    def broken(self, resource: AsyncConnection[Any], error: Exception) -> Verdict | None:
        """Say what an error means for its connection.

        Args:
            resource: The connection.
            error: The error.

        Returns:
            "discard" if the server ends the session, "expire" if it ends all of them, "check" if a
            write was refused: `doubtful` then sends every connection to `check`, which asks the
            server whether it takes writes at all. None for other errors.
        """
        assert isinstance(resource, Connection)  # noqa: S101 - as above
        code = getattr(error, "sqlstate", None)
        if code != READ_ONLY:
            return verdict(code)
        resource.wire.refusals = UNKNOWN
        if (now := monotonic()) - self._counted_at >= COUNT_EVERY:
            self._counted_at = now
            self._refusals += 1
        return "check"

    async def clean(self, resource: AsyncConnection[Any]) -> None:
        """Close a connection; a query that still runs is cancelled, within a second.

        Args:
            resource: The connection.
        """
        assert isinstance(resource, Connection)  # noqa: S101 - as above
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_WITHIN):
                    await resource.break_off()
        finally:
            resource.wire.readiness = None
            await resource.close()
            if resource.lent is not None and not resource.wire.waits:
                resource.end_lease()


def _mistake(what: str) -> PoolConfigError:
    return own(PoolConfigError(f"PsycopgManager cannot connect: {what}"))
