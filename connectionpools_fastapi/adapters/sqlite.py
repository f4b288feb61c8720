"""SqliteManager: connections of the standard library's sqlite3, for threads and sync endpoints."""

import sqlite3
from collections.abc import Callable
from typing import Any, cast

from connectionpools_fastapi import Loan, Verdict

from ..manager import ResourceManager
from ._options import Reset
from ._sqlite import LOST, Database, Init, Location, Pragmas, judge
from ._sqlite_lent import Lent, Session


class SqliteManager(ResourceManager[sqlite3.Connection]):
    """Connects to SQLite by sqlite3, and resets each connection between two leases.

    Its hooks are `def`, so that its pool belongs to no event loop. Any thread may use a
    connection, but only one at a time. After its lease, the leased connection raises
    `NotLeased`, or sqlite3's own error for a closed object, and so do its cursors, blobs and
    iterators. A statement that still runs in another thread then is interrupted; one that
    cannot be interrupted within a second, such as a Python function that blocks, costs the
    connection. `backup` takes a leased connection as its target only if its source is leased too.

    Either `reset` rolls back a transaction that is still open, with a warning if it has
    changed rows, and ends a SELECT that was not read to its end (it would go on showing an
    old state). The two differ in the rest:

    - "session" resets everything: PRAGMA, ATTACH, temporary tables, `row_factory`,
      `text_factory`, `isolation_level` and `autocommit`, functions, collations, handlers, an
      authorizer, limits. It costs some microseconds if a lease has changed at most the
      attributes; else it costs a new connection, since SQLite cannot tell the former value of
      a setting. The manager notices changes by an authorizer of its own, which makes the
      first compilation of a statement a little slower.
    - "transaction" leaves these as they are, and asks SQLite for nothing if no transaction is
      open. Use it if no lease changes its session.

    Neither resets `last_insert_rowid()`, `changes()` and `total_changes`, rows that a lease
    writes into temporary tables of `init`, and what is written to the file, as PRAGMA
    `user_version` is.

    `check` also notices that the file was replaced or deleted, so that callers do not use the
    old file for long. Replacing the file of an open database is dangerous all the same: SQLite
    takes the old file's log for the new one's. Do it while no connection is open, as after
    `drain`.

    Example:
        ```python
        db = ConnectionPool(SqliteManager("app.db"), limit=5, name="db")

        with db, db.lease() as conn:
            conn.execute("INSERT INTO visits DEFAULT VALUES")
            conn.commit()
        ```
    """

    def __init__(
        self,
        database: Location | Callable[[], Location],
        *,
        reset: Reset = "session",
        read_only: bool = False,
        pragmas: Pragmas | None = None,
        init: Init | None = None,
        **options: Any,
    ) -> None:
        """Describe the connections; they are made later.

        Args:
            database: The path of the file, which is created if it does not exist, or a URI as
                "file:app.db?mode=rw", which does not create it. A callable is called for each
                connection. ":memory:" is refused, since each connection would have its own
                database; they share "file:/app?vfs=memdb" while one of them is open.
            reset: What to reset after a lease: its whole "session", or only its "transaction".
            read_only: Whether to open the file only for reading; then it is not created. If the
                last connection to be closed only reads, SQLite leaves its log beside the file,
                for the next one that writes.
            pragmas: Settings beside, or instead of, journal_mode "wal", synchronous "normal"
                (neither if the file is only read) and foreign_keys "on"; None keeps SQLite's
                default of one.
            init: Called with each new connection, for `row_factory`, functions, a schema and
                other lasting settings. What it writes is committed.
            **options: For `sqlite3.connect`, such as `isolation_level` or `detect_types`;
                `timeout`, for which SQLite waits for a lock, is 5 seconds by default.

        Raises:
            PoolConfigError: If one of them cannot work.
        """
        self._location = database
        self._database = Database(
            type(self).__name__, reset=reset, read_only=read_only, pragmas=pragmas, init=init, options=options
        )
        if not callable(database):
            self._database.locate(database)

    def create(self) -> sqlite3.Connection:
        """Connect.

        Returns:
            The new connection.

        Raises:
            PoolConfigError: If there is no such file, or it is no database, or permissions
                forbid opening it.
            sqlite3.Error: SQLite's own error, if waiting may help.
        """
        location = self._location() if callable(self._location) else self._location
        return self._database.open(self._database.locate(location))

    def check(self, resource: sqlite3.Connection) -> bool:
        """See whether a connection works and its file is still the one under its name.

        Args:
            resource: The connection.

        Returns:
            Whether both are so. An exception means no.
        """
        return self._database.check(cast("Session", resource))

    def lend(self, resource: sqlite3.Connection, loan: Loan) -> sqlite3.Connection:
        """Make the connection of one lease; it and its cursors raise after the lease.

        Args:
            resource: The connection.
            loan: The lease.

        Returns:
            A connection that passes each call to the pool's, while the lease goes on.
        """
        session: Any = resource
        session.loan = loan
        return Lent(session, loan)

    def broken(self, resource: sqlite3.Connection, error: Exception) -> Verdict | None:  # noqa: ARG002 - as the base
        """Say what an error means for a connection.

        Args:
            resource: The connection.
            error: The error of a lease.

        Returns:
            "expire" if its file was moved or deleted; "discard" after an error of input or
            output, or of a file that is damaged or no database; "check" if a file beside it
            cannot be opened; None after any other error, such as a lock or a constraint.
        """
        return judge(error)

    def change(self, resource: sqlite3.Connection) -> None:
        """Reset a connection, as the class describes.

        Args:
            resource: The connection.

        Raises:
            PoolError: If a statement still runs on it and cannot be interrupted.
            sqlite3.Error: If it was closed, or cannot be reset.
        """
        session: Any = resource
        loan, session.loan = session.loan, None
        if self._database.reset(session) and loan is not None and not loan.has_failed:
            loan.warn(LOST)

    def change_and_tell(self, resource: sqlite3.Connection) -> list[str]:
        """Do what `change` does, and tell what state of the session it had to undo; for the guard of tests.

        Args:
            resource: The connection.

        Returns:
            Names: of PRAGMAs, temporary tables, functions and attached files.
        """
        told = sorted(self._database.changes_of(cast("Session", resource)))
        self.change(resource)
        return told

    def refuse_prepare(self) -> str | None:
        """Say why a request may not prepare its connection.

        Returns:
            The reason, if a reset does not undo settings: with `reset="transaction"`.
        """
        return self._database.refuse_prepare()

    def sandbox(self, resource: sqlite3.Connection) -> ResourceManager[sqlite3.Connection]:
        """Make the manager of a sandbox, for `connectionpools_fastapi.testing.sandbox`.

        The sandbox has SQLite's lock for writing from its begin to its end. Deferred foreign keys are
        not checked, and what a lease changes without rows (PRAGMA, functions) lasts as long as the sandbox.

        Args:
            resource: The connection.

        Returns:
            Its hooks.
        """
        from ._sqlite_sandbox import SqliteSandbox  # noqa: PLC0415 - only tests need it

        return SqliteSandbox(self, cast("Session", resource), self._database.changes_of)

    def clean(self, resource: sqlite3.Connection) -> None:
        """Close a connection; a statement that still runs on it is interrupted.

        Args:
            resource: The connection.
        """
        self._database.close(cast("Session", resource))
