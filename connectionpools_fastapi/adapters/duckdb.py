"""DuckdbManager: cursors of a DuckDB database, for threads and sync endpoints; needs the extra `duckdb`."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self, cast

from connectionpools_fastapi import Loan

from ..errors import PoolConfigError, PoolError, own
from ..manager import ResourceManager

try:
    import duckdb
    from duckdb import DuckDBPyConnection
except ImportError as _error:
    msg = "connectionpools_fastapi.adapters.duckdb needs duckdb: pip install 'connectionpools-fastapi[duckdb]'"
    raise ImportError(msg) from _error

# How long an interrupted statement may take to end, and how often it is interrupted, in seconds.
END_WITHIN = 1.0
INTERRUPT_EVERY = 0.02


class _Slot:
    """What the pool keeps: it holds a new cursor for each lease."""

    def __init__(self, root: DuckDBPyConnection) -> None:
        self.root = root
        self.cursor = root.cursor()
        self.loan: Loan | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cursor, name)

    def end(self) -> bool:
        """Interrupt what runs on the cursor and close it.

        Returns:
            Whether a transaction was open, which is rolled back.

        Raises:
            PoolError: If what runs cannot be interrupted in time.
        """
        ends = time.monotonic() + END_WITHIN
        was_open = False
        while time.monotonic() < ends:
            try:
                self.cursor.interrupt()
                was_open = _rolls_back(self.cursor) or was_open
                self.cursor.close()
            except duckdb.ConnectionException:  # the lease has closed it
                return was_open
            except duckdb.Error:  # newer versions refuse a second call instead of waiting for the first
                time.sleep(INTERRUPT_EVERY)
            else:
                return was_open
        raise own(PoolError("a statement of the lease still runs, and cannot be interrupted"))


class _Lent:
    """What a lease gets: the methods of its cursor, called directly, since DuckDB looks for variables in the caller."""

    def __init__(self, cursor: DuckDBPyConnection, loan: Loan) -> None:
        self._cursor = cursor
        self._loan = loan

    def __getattr__(self, name: str) -> Any:
        self._loan.check()
        return getattr(self._cursor, name)

    def __enter__(self) -> Self:
        self._loan.check()
        return self

    def __exit__(self, *_: object) -> None:
        self._cursor.close()


class DuckdbManager(ResourceManager[DuckDBPyConnection]):
    """Leases cursors of one DuckDB database, each of them to one caller at a time.

    A DuckDB connection that two threads use at once fails, or ends the process in older versions.
    A cursor is a connection of its own to the same database, so each lease gets one. Its hooks
    are `def`, and its pool belongs to no event loop. Calls block: use it in `def` endpoints and threads.

    After a lease its cursor is closed, and the next lease gets a new one: a transaction that was
    left open is rolled back, and the log warns; temporary tables, prepared statements,
    variables, the schema and database of USE are gone. A statement that still runs, as after
    its request was cancelled, is interrupted; one that cannot be interrupted within a second
    costs the cursor.

    After the lease the leased cursor raises `NotLeased`. Results, relations and cursors made
    from it raise DuckDB's own error for a closed connection.

    All leases share the database: tables, attached databases, extensions, secrets, functions,
    and settings that DuckDB keeps for the whole database, such as `threads` and `memory_limit`.
    A lease that changes one of these changes it for all; `config={"lock_configuration": True}`
    forbids it for settings.

    A file is opened with the first cursor and closed after the last one. A database in memory
    lasts as long as the manager.

    Example:
        ```python
        db = ConnectionPool(DuckdbManager("sales.duckdb"), limit=4, name="db")

        with db, db.lease() as conn:
            total = conn.execute("SELECT sum(price) FROM sales").fetchone()
        ```
    """

    def __init__(
        self,
        database: str | os.PathLike[str] = ":memory:",
        *,
        read_only: bool = False,
        config: dict[str, Any] | None = None,
        init: Callable[[DuckDBPyConnection], object] | None = None,
    ) -> None:
        """Describe the database; it is opened later.

        Args:
            database: The path of the file, or ":memory:".
            read_only: Whether to open the file only for reading; several processes may do that at once.
            config: Settings of the database, as for `duckdb.connect`.
            init: Called with the first connection, each time the database is opened: for ATTACH,
                extensions, functions, a schema.

        Raises:
            PoolConfigError: If they cannot work together.
        """
        self._database = os.fspath(database)
        self._is_in_memory = self._database == "" or self._database.startswith(":memory:")
        if self._is_in_memory and read_only:
            raise _mistake("a database in memory cannot be read_only")
        self._read_only = read_only
        self._config = config or {}
        self._init = init
        self._lock = threading.Lock()  # protects the next two; the database is opened and closed while holding it
        self._root: DuckDBPyConnection | None = None
        self._cursors = 0

    def create(self) -> DuckDBPyConnection:
        """Make a cursor; open the database before, if it is not open.

        Returns:
            A cursor.

        Raises:
            PoolConfigError: If there is no such file, it is no database, or an option is wrong.
            duckdb.Error: DuckDB's own error, if waiting may help, as while another process has the file.
        """
        with self._lock:
            if self._root is None:
                self._root = self._open()
            slot = _Slot(self._root)
            self._cursors += 1
        return cast("DuckDBPyConnection", slot)

    def check(self, resource: DuckDBPyConnection) -> bool:
        """See whether the database answers.

        Args:
            resource: A free cursor.

        Returns:
            Whether it does. An exception means no.
        """
        return resource.execute("SELECT 1").fetchone() == (1,)

    def lend(self, resource: DuckDBPyConnection, loan: Loan) -> DuckDBPyConnection:
        """Make what a lease gets of the cursor.

        Args:
            resource: The cursor.
            loan: The lease.

        Returns:
            An object with the cursor's methods, which raises `NotLeased` after the lease.
        """
        slot = cast("_Slot", resource)
        slot.loan = loan
        return cast("DuckDBPyConnection", _Lent(slot.cursor, loan))

    def change(self, resource: DuckDBPyConnection) -> None:
        """Interrupt what still runs, roll back, and go on with a new cursor.

        Args:
            resource: A cursor that was given back.

        Raises:
            PoolError: If a statement runs that cannot be interrupted.
            duckdb.Error: If the database makes no new cursor.
        """
        slot = cast("_Slot", resource)
        loan, slot.loan = slot.loan, None
        if slot.end() and loan is not None and not loan.has_failed:
            loan.warn("a transaction was left open and rolled back; end it with commit() or rollback()")
        slot.cursor = slot.root.cursor()

    def clean(self, resource: DuckDBPyConnection) -> None:
        """Close a cursor, and after the last one the file.

        Args:
            resource: The cursor.
        """
        slot = cast("_Slot", resource)
        try:
            slot.end()
        finally:
            with self._lock:
                self._cursors -= 1
                if not self._cursors and not self._is_in_memory and self._root is not None:
                    with suppress(duckdb.Error):  # a cursor is busy for good
                        self._root.close()
                    self._root = None

    def _open(self) -> DuckDBPyConnection:
        try:
            root = duckdb.connect(self._database, read_only=self._read_only, config=self._config)
        except (duckdb.InvalidInputException, duckdb.ConnectionException):
            names = ", ".join(sorted(self._config))
            raise _mistake(f"DuckDB does not take these settings for this database: {names or 'read_only'}") from None
        except duckdb.IOException as error:
            folder = os.path.dirname(self._database) or "."  # noqa: PTH120 - it may be an address of an extension
            if "valid DuckDB database" in str(error):
                raise _mistake("the file is no DuckDB database of a version that this DuckDB reads") from None
            if "://" not in self._database and not os.path.isdir(folder):  # noqa: PTH112 - as above
                raise _mistake("the folder of the file does not exist") from None
            if self._read_only and not os.path.exists(self._database):  # noqa: PTH110 - as above
                raise _mistake("there is no such file, and with read_only none is made") from None
            raise
        try:
            if self._init is not None:
                self._init(root)
        except BaseException:
            root.close()
            raise
        return root


def _rolls_back(cursor: DuckDBPyConnection) -> bool:
    with suppress(duckdb.TransactionException):  # none is open
        cursor.rollback()
        return True
    return False


def _mistake(problem: str) -> PoolConfigError:
    return own(PoolConfigError(f"DuckdbManager: {problem}"))
