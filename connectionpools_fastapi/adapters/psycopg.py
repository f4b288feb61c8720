"""Managers for psycopg 3, async and sync, to PostgreSQL; need the extra `psycopg`."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from connectionpools_fastapi import ResourceManager
from connectionpools_fastapi.manager import needs_no_task

from ._options import Reset, current
from ._postgres import LOOK_WITHIN, ROUNDS, shares_sessions
from ._readiness import readiness_of

try:
    from psycopg import AsyncConnection, Error, __version__

    if tuple(map(int, __version__.split(".")[:2])) < (3, 2):
        raise ImportError(f"found {__version__}")
except ImportError as _error:
    msg = (
        "connectionpools_fastapi.adapters.psycopg needs psycopg 3.2 or newer and libpq: "
        "pip install 'connectionpools-fastapi[psycopg]' 'psycopg[binary]'"
    )
    raise ImportError(msg) from _error

from ._psycopg_connection import Connection
from ._psycopg_leases import CLOSE_WITHIN
from ._psycopg_manager import BasePsycopgManager
from ._psycopg_scripts import backend, end_lease, state_of
from ._psycopg_sync import SyncPsycopgManager
from ._session_state import undone

__all__ = ["PsycopgManager", "SyncPsycopgManager"]

Dsn = str | Callable[[], str | Awaitable[str]]


class PsycopgManager(BasePsycopgManager[AsyncConnection[Any]]):
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
    COPY, `stream()`, pipeline or `notifies()` goes on). A query that was cancelled, as by a client
    that leaves, ends on the server too; with libpq 17 or newer, as the wheels have it, its
    connection is then reset, and with an older one it is destroyed.

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
        connection_class: type[AsyncConnection[Any]] = AsyncConnection,
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
            connection_class: A subclass of `psycopg.AsyncConnection`, of which each lease gets an
                object.
            **options: For `psycopg.AsyncConnection.connect`, as `autocommit`, `row_factory`
                or `sslmode`; `connect_timeout`, for each address of the host, is 5 seconds
                unless the DSN says otherwise, and may be a part of a second.

        Raises:
            PoolConfigError: If `dsn`, `reset`, `connection_class` or an option cannot work or is unknown.
        """
        super().__init__(dsn, reset=reset, kinds=(connection_class, AsyncConnection, Connection), options=options)
        self._init = init

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
            raise self._target.mistake("psycopg runs on asyncio only, and this is another event loop") from None
        refusals = self._refusals.count
        connection = await self._connect()
        try:
            connection.tasks.readiness = readiness_of(loop)
            connection.wire.refusals = refusals
            if self.shares_sessions is None:
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
        options = self._target.options_for(dsn)
        try:
            connection: Connection = await self._kind.connect(dsn, **options)
        except Error as error:
            found = self._target.explain(error)
            if found is error:
                raise
        else:
            return connection
        raise found

    async def _look_for_pooler(self, connection: Connection) -> None:
        """Warn if a pooler gives each transaction another session of the server."""
        shares = False
        with suppress(Exception):  # a failure here must not prevent the connection
            if await connection.run(backend(connection)) != connection.pgconn.backend_pid:
                async with asyncio.timeout(LOOK_WITHIN):
                    other = await self._connect()
                    try:
                        pids = [
                            (await connection.run(backend(connection)), await other.run(backend(other)))
                            for _ in range(ROUNDS)
                        ]
                    finally:
                        await other.close()
                shares = shares_sessions(*zip(*pids, strict=True))
        self._note_pooler(shares=shares)

    async def check(self, resource: AsyncConnection[Any]) -> bool:
        """Send the server an empty query, unless the driver knows that the connection cannot be used.

        Args:
            resource: The connection.

        Returns:
            False if it cannot be used; if the server is gone, an exception means the same.
        """
        if not self._can_be_asked(resource):
            return False
        assert isinstance(resource, Connection)  # noqa: S101 - create makes no other
        works: bool = await resource.tend(resource.run(self._refusals.check(resource)))
        return works

    @needs_no_task
    async def change(self, resource: AsyncConnection[Any]) -> None:
        """Reset a connection, as the class describes.

        Args:
            resource: The connection.

        Raises:
            PoolError: If it cannot be reset, so that it has to be discarded.
            Error: psycopg's own error, with the same meaning.
        """
        await self._change(resource, self._reset)

    async def change_and_tell(self, resource: AsyncConnection[Any]) -> list[str]:
        """Do what `change` does, and tell what state of the session it had to undo; for the guard of tests.

        Args:
            resource: The connection.

        Returns:
            Names, as "the setting search_path".
        """
        connection: Any = resource
        await self._change(connection, "transaction")  # first: what a rollback undoes is no state of the session
        before = await connection.tend(connection.run(state_of(connection)))
        await self._change(connection, self._reset)
        return undone(before, await connection.tend(connection.run(state_of(connection))))

    async def _change(self, resource: AsyncConnection[Any], reset: Reset) -> None:
        assert isinstance(resource, Connection)  # noqa: S101 - create makes no other
        steps = end_lease(resource, reset)
        if steps is not None:
            await resource.tend(resource.run(steps))

    async def prepared(self, resource: AsyncConnection[Any]) -> None:
        """Commit what a `prepare` has set, which a rollback would undo.

        Args:
            resource: The connection.
        """
        await resource.commit()

    def sandbox(self, resource: AsyncConnection[Any]) -> ResourceManager[AsyncConnection[Any]]:
        """Make the manager of a sandbox, for `connectionpools_fastapi.testing.sandbox`.

        A commit checks deferred constraints and sets a savepoint. A transaction has the isolation level of the
        sandbox. LISTEN and NOTIFY, which wait for a commit, do nothing. BEGIN, COMMIT and ROLLBACK as text are
        refused: write `conn.transaction()`, `conn.commit()` or `conn.rollback()`.

        Args:
            resource: The connection.

        Returns:
            Its hooks.
        """
        from ._psycopg_sandbox import PsycopgSandbox  # noqa: PLC0415 - only tests need it

        return PsycopgSandbox(self, resource, resets_session=self._reset == "session")

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
            resource.tasks.readiness = None
            await resource.close()
            if resource.is_given_back and not resource.wire.waits:
                resource.leases.end(resource)
