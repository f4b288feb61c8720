"""SqliteManager: connections of the standard library's sqlite3, for threads and sync endpoints."""

import sqlite3
from collections.abc import Callable
from typing import Any, cast

from ..manager import ResourceManager
from ._sqlite import Database, Init, Location, Pragmas, Reset, Session


class SqliteManager(ResourceManager[sqlite3.Connection]):
    """Connects to SQLite by sqlite3, and lets no lease see what an earlier one has left behind.

    Its hooks are `def`, so that a pool of it belongs to no event loop. A connection may be
    used from any thread, but by one at a time, as a lease is. Either `reset` rolls back a
    transaction that is still open. Beyond that:

    - "session" brings back everything: PRAGMA, ATTACH, temporary tables, a SELECT that was
      not read to its end (it would go on showing an old state), `row_factory`,
      `text_factory`, `isolation_level` and `autocommit`, functions, collations, handlers, an
      authorizer, limits. It costs some microseconds where a lease has left none of these
      but the attributes, and else a new connection behind the same object, since SQLite
      cannot say what a setting was before. The manager notices by an authorizer of its own,
      which makes compiling a statement for the first time a little slower.
    - "transaction" leaves these as they are, and does nothing where no transaction is open:
      for applications none of whose leases changes its session.

    What neither takes back: `last_insert_rowid()`, `changes()` and `total_changes`, rows
    that a lease writes into temporary tables that `init` has made, and what is written to
    the file, as PRAGMA `user_version` is.

    `check` also notices that the file was replaced or deleted, so that nobody goes on for
    long with one that has no name any more. To replace the file of an open database is
    dangerous all the same: SQLite takes the log of the old one for a log of the new one.
    Do it while no connection is open, as after `drain`.

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
            database: The path of the file, which is made if there is none, or a URI as
                "file:app.db?mode=rw", which does not make it. A callable is asked anew for
                each connection. Connections to ":memory:" would have a database each, so it
                is refused; they share "file:/app?vfs=memdb" as long as one is open.
            reset: What a lease may not leave behind: anything of its "session", or only a
                "transaction".
            read_only: Whether to open the file only to read it; it is not made then. Where the
                last connection to be closed is one that only reads, SQLite leaves its log beside
                the file, for the next one that writes.
            pragmas: What to set beside, or instead of, journal_mode "wal", synchronous
                "normal" (neither where it is only read) and foreign_keys "on"; None leaves
                one at SQLite's default.
            init: Is given each new connection, for `row_factory`, functions, a schema and
                whatever else is to stay. What it writes is committed.
            **options: For `sqlite3.connect`, such as `isolation_level` or `detect_types`;
                `timeout`, for which SQLite waits for a lock, is 5 seconds by default.

        Raises:
            PoolConfigError: If one of them is not what it may be.
        """
        self._location = database
        self._database = Database(
            type(self).__name__, reset=reset, read_only=read_only, pragmas=pragmas, init=init, options=options
        )
        self._change = self._database.bring_back if reset == "session" else self._database.roll_back
        if not callable(database):
            self._database.locate(database)

    def create(self) -> sqlite3.Connection:
        """Connect.

        Returns:
            The new connection.

        Raises:
            PoolConfigError: If there is no such file or it is no database, or must not be
                opened.
            sqlite3.Error: As SQLite says, if waiting may help.
        """
        location = self._location() if callable(self._location) else self._location
        return self._database.open(self._database.locate(location))

    def check(self, resource: sqlite3.Connection) -> bool:
        """See whether a connection works and its file is still the one under its name.

        Args:
            resource: The connection.

        Returns:
            Whether it is. To raise says that it is not.
        """
        return self._database.check(cast("Session", resource))

    def change(self, resource: sqlite3.Connection) -> None:
        """Reset a connection; the class says what that means.

        Args:
            resource: The connection.

        Raises:
            sqlite3.Error: If it was closed, or cannot be reset.
        """
        self._change(cast("Session", resource))

    def clean(self, resource: sqlite3.Connection) -> None:
        """Close a connection; a statement that still runs on it is interrupted.

        Args:
            resource: The connection.
        """
        self._database.close(cast("Session", resource))
