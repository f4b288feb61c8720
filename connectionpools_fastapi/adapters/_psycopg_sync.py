"""SyncPsycopgManager: psycopg's connections for threads and `def` endpoints; needs psycopg."""

import inspect
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from psycopg import Connection, Error
from psycopg.pq import TransactionStatus

from connectionpools_fastapi import ResourceManager
from connectionpools_fastapi.errors import PoolConfigError

from ._options import Reset
from ._postgres import LOOK_WITHIN, ROUNDS, shares_sessions
from ._psycopg_leases import CLOSE_WITHIN, LOST, Leasable, within
from ._psycopg_manager import BasePsycopgManager
from ._psycopg_scripts import backend, end_lease, state_of
from ._session_state import undone
from ._socket import shut_down


class SyncPsycopgManager(BasePsycopgManager[Connection[Any]]):
    """Connects threads and `def` endpoints to PostgreSQL by psycopg 3, and resets each connection between two leases.

    Write `ConnectionPool(SyncPsycopgManager("postgresql://..."), limit=10, name="db")`. Its hooks are
    `def`, so that its pool belongs to no event loop. It does what `PsycopgManager` does, for a
    `psycopg.Connection`: each lease gets its own, which raises `NotLeased` after the lease, as
    does what was made from it; each `reset` resets the same at the same cost; a connection to a
    server that takes no writes any more is replaced.

    A thread that still uses the connection when its lease ends costs the connection: the manager
    cancels its query on the server, and the thread gets psycopg's error, or `NotLeased`.

    A silent server keeps its lease, and a thread. Limit the time:
    `options="-c statement_timeout=30s"` for the server's own work, and `tcp_user_timeout=10000`
    (milliseconds, on Linux) for a network that loses packets.

    Example:
        ```python
        db = ConnectionPool(SyncPsycopgManager("postgresql://..."), limit=10, name="db")


        @app.get("/visits")
        def visits(conn: Annotated[Connection, Leased(db)]) -> int: ...
        ```
    """

    def __init__(
        self,
        dsn: str | Callable[[], str] = "",
        *,
        reset: Reset = "session",
        init: Callable[[Connection[Any]], object] | None = None,
        connection_class: type[Connection[Any]] = Connection,
        **options: Any,
    ) -> None:
        """Describe the connections; they are made later.

        Args:
            dsn: Where to connect to, as a URL or "host=db dbname=app". A plain callable is called,
                on a worker thread, for each connection, since credentials may have been rotated. An
                empty one leaves it to `options`, and to the environment variables of libpq.
            reset: What to reset after a lease: its whole "session", or only its "transaction".
            init: A plain callable for each new connection, for adapters, handlers and an isolation
                level, which stay. A reset undoes what it SETs: for settings write
                `options="-c name=value"`, which is libpq's.
            connection_class: A subclass of `psycopg.Connection`, of which each lease gets an
                object.
            **options: For `psycopg.Connection.connect`, as `autocommit`, `row_factory` or
                `sslmode`; `connect_timeout`, for each address of the host, is 5 seconds unless
                the DSN says otherwise, and may be a part of a second.

        Raises:
            PoolConfigError: If `dsn`, `reset`, `init`, `connection_class` or an option cannot work or is unknown.
        """
        super().__init__(dsn, reset=reset, kinds=(connection_class, Connection, PooledConnection), options=options)
        for name, given in (("dsn", dsn), ("init", init)):
            if inspect.iscoroutinefunction(given):
                raise PoolConfigError(
                    f"{self._name}: {name} must not be async: use PsycopgManager, or write it with def"
                )
        self._init = init

    def create(self) -> Connection[Any]:
        """Connect.

        Returns:
            The new connection.

        Raises:
            PoolConfigError: If the DSN or an option is malformed, or if the server refuses the
                user or the password or has no such database.
            Exception: psycopg's own error, if the server cannot be reached or is not ready.
        """
        refusals = self._refusals.count
        connection = self._connect()
        try:
            connection.wire.refusals = refusals
            if self.shares_sessions is None:
                self._look_for_pooler(connection)
            if self._init is not None:
                self._init(connection)
                connection.rollback()  # ends the transaction that `init` may have begun
            connection.remember()
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self) -> "PooledConnection":
        dsn = self._dsn() if callable(self._dsn) else self._dsn
        options = self._target.options_for(dsn)
        try:
            connection: PooledConnection = self._kind.connect(dsn, **options)
        except Error as error:
            found = self._target.explain(error)
            if found is error:
                raise
        else:
            return connection
        raise found

    def _look_for_pooler(self, connection: "PooledConnection") -> None:
        """Warn if a pooler gives each transaction another session of the server."""

        def session(of: PooledConnection) -> int:
            pid: int = of.run(within(LOOK_WITHIN, backend(of)))
            return pid

        shares = False
        with suppress(Exception):  # a failure here must not prevent the connection
            if session(connection) != connection.pgconn.backend_pid:
                with self._connect() as other:
                    pids = [(session(connection), session(other)) for _ in range(ROUNDS)]
                shares = shares_sessions(*zip(*pids, strict=True))
        self._note_pooler(shares=shares)

    def check(self, resource: Connection[Any]) -> bool:
        """Send the server an empty query, unless the driver knows that the connection cannot be used.

        Args:
            resource: The connection.

        Returns:
            False if it cannot be used; if the server is gone, an exception means the same.
        """
        if not self._can_be_asked(resource):
            return False
        connection: Any = resource
        works: bool = connection.run(self._refusals.check(connection))
        return works

    def change(self, resource: Connection[Any]) -> None:
        """Reset a connection, as the class describes.

        Args:
            resource: The connection.

        Raises:
            PoolError: If it cannot be reset, so that it has to be discarded.
            Error: psycopg's own error, with the same meaning.
        """
        self._change(resource, self._reset)

    def change_and_tell(self, resource: Connection[Any]) -> list[str]:
        """Do what `change` does, and tell what state of the session it had to undo; for the guard of tests.

        Args:
            resource: The connection.

        Returns:
            Names, as "the setting search_path".
        """
        connection: Any = resource
        self._change(connection, "transaction")  # first: what a rollback undoes is no state of the session
        before = connection.run(state_of(connection))
        self._change(connection, self._reset)
        return undone(before, connection.run(state_of(connection)))

    @staticmethod
    def _change(connection: Any, reset: Reset) -> None:
        steps = end_lease(connection, reset)
        if steps is not None:
            connection.run(steps)

    def prepared(self, resource: Connection[Any]) -> None:
        """Commit what a `prepare` has set, which a rollback would undo.

        Args:
            resource: The connection.
        """
        resource.commit()

    def sandbox(self, resource: Connection[Any]) -> ResourceManager[Connection[Any]]:
        """Make the manager of a sandbox, for `connectionpools_fastapi.testing.sandbox`.

        A commit checks deferred constraints and sets a savepoint. A transaction has the isolation level of the
        sandbox. LISTEN and NOTIFY, which wait for a commit, do nothing. BEGIN, COMMIT and ROLLBACK as text are
        refused: write `conn.transaction()`, `conn.commit()` or `conn.rollback()`.

        Args:
            resource: The connection.

        Returns:
            Its hooks.
        """
        from ._psycopg_sandbox import SyncPsycopgSandbox  # noqa: PLC0415 - only tests need it

        return SyncPsycopgSandbox(self, resource, resets_session=self._reset == "session")

    def clean(self, resource: Connection[Any]) -> None:
        """Close a connection; a query that still runs in another thread is cancelled, within two seconds.

        Args:
            resource: The connection.
        """
        connection: Any = resource
        connection.break_off()
        connection.close()
        if connection.is_given_back and connection.closed:
            connection.leases.end(connection)


class PooledConnection(Leasable, Connection[Any]):
    """A connection of the pool, or the object of one lease."""

    new_lock = threading.Lock
    lost = LOST.format("", "")

    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        loan, wire = self.loan, self.wire
        wire.waits.add(gen)
        try:
            # A lease ends before `end_lease` looks for waits. So either this sees its end, or that sees this wait.
            if loan is not None:
                loan.check()
            return super().wait(gen, *args, **options)
        except Error as error:
            if loan is not None:
                loan.note(error)
            raise
        except (KeyboardInterrupt, SystemExit):  # psycopg has cancelled the query, perhaps too late
            wire.was_cut_off = True
            raise
        finally:
            wire.stop_waiting(gen)

    def run(self, steps: Any) -> Any:
        """Do what a script of the manager says."""
        with self.lock:
            return self.wait(steps)

    def close(self) -> None:
        """Close the connection, unless another thread still waits for it: libpq forbids that.

        Then it is closed when that thread lets it go; its server has seen its end.
        """
        if self.loan is not None or not self.wire.waits:
            super().close()

    def break_off(self) -> None:
        """Stop the server's work for a connection that is about to be closed."""
        if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
            with suppress(Error, OSError):  # the server notices the end by itself
                self.cancel_safe(timeout=CLOSE_WITHIN)
        wire = self.wire
        if wire.waits and not self.closed:
            let_go = threading.Event()
            wire.let_go = let_go.set
            shut_down(self.pgconn.socket)
            if wire.waits:
                let_go.wait(CLOSE_WITHIN)
