"""AiosqliteManager: connections of aiosqlite; needs the extra `aiosqlite`."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

from connectionpools_fastapi import Loan, Verdict

from ..errors import PoolConfigError, PoolError, own
from ..manager import ResourceManager
from ._options import Reset, current
from ._sqlite import Database, Init, Location, Pragmas, judge
from ._sqlite_lent import Lent, Session

try:
    import aiosqlite

    if not all(hasattr(aiosqlite.Connection, name) for name in ("_conn", "_execute")):
        raise ImportError(f"this is {aiosqlite.__version__}")
except ImportError as _error:
    msg = (
        "connectionpools_fastapi.adapters.aiosqlite needs aiosqlite 0.20 or a version that is like it: "
        "pip install 'connectionpools-fastapi[aiosqlite]'"
    )
    raise ImportError(msg) from _error

# A loan that belongs to no lease and never ends.
FOR_GOOD = Loan("", cast("Any", None), None)

# How long an interrupted statement may take to end, also when closing, and how often it is interrupted, in seconds.
END_WITHIN = 1.0
CLOSE_WITHIN = 2.0
INTERRUPT_EVERY = 0.1

LOST = "rows that were not committed were rolled back; end with `await conn.commit()`"


class _Connection(aiosqlite.Connection):
    """Knows whether its thread still works for a lease that has ended, and can end that work.

    Meanwhile the event loop calls only `interrupt` of the sqlite3 connection. For other calls sqlite3
    may wait for SQLite's own lock while it holds the GIL, and the thread with that lock may wait for
    the GIL, as to call a Python function: that would be a deadlock.
    """

    def __init__(self, database: Database, iter_chunk_size: int) -> None:
        super().__init__(lambda: None, iter_chunk_size)  # type: ignore[arg-type,return-value] # `open` connects
        self._database = database
        self._session: Session | None = None
        self.loan: Loan | None = None
        self._is_over = False
        self.lost = LOST
        # Each is changed by one thread only: the first by the loop's, the second by the connection's.
        self._asked = 0
        self._answered = 0

    async def open(self, location: str) -> None:
        """Start the thread and connect."""
        thread: Any = getattr(self, "_thread", self)  # before 0.22 it was the thread itself
        thread.daemon = True  # a statement that cannot be interrupted must not keep the process from ending
        thread.start()
        try:
            self._connection = await self._ask(partial(self._open, location))
        except BaseException:
            closed = self._ask(self._close)  # it may be open by then
            await _outlast(self._end_thread() or closed, END_WITHIN)
            raise

    def _open(self, location: str) -> sqlite3.Connection:
        self._session = self._database.open(location)
        return Lent(self._session, FOR_GOOD)  # for SQLAlchemy, which uses this object itself

    @property
    def session(self) -> Session:
        """The connection of sqlite3.

        Raises:
            ValueError: aiosqlite's error, if it was closed.
        """
        return cast("Lent", self._conn).session

    def _close(self) -> None:
        if self._session is not None:
            self._database.close(self._session)

    @property
    def is_busy(self) -> bool:
        """Whether the thread has a call that is not done yet."""
        return self._asked != self._answered

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def answer() -> Any:
            try:
                if self._is_over:
                    raise sqlite3.ProgrammingError("the connection was closed")
                return fn(*args, **kwargs)
            finally:
                self._answered += 1

        self._asked += 1
        return await cast("Any", super())._execute(answer)  # noqa: SLF001 - aiosqlite's way to its thread

    async def on_session(self, act: Callable[[Session], Any]) -> Any:
        """Make the thread call a function with the connection, after all its earlier calls."""
        return await self._execute(act, self.session)

    async def settle(self) -> bool:
        """Interrupt the statement of a lease that has ended; return whether none runs any more."""
        return await self._interrupt_until(self._ask(lambda: None), END_WITHIN)

    async def shut(self) -> None:
        """Interrupt the running statement, skip waiting ones, close; do not wait for one that cannot be interrupted."""
        self._is_over = True
        if self._connection is None:  # it is closed already
            return
        closed = self._ask(self._close)
        self._connection = None
        # Wait for the thread too: it would still answer to the loop, which may be closed by then.
        if await self._interrupt_until(self._end_thread() or closed, CLOSE_WITHIN):
            closed.result()

    def _ask(self, act: Callable[[], Any]) -> asyncio.Future[Any]:
        answer = asyncio.get_running_loop().create_future()
        cast("Any", self)._tx.put_nowait((answer, act))  # noqa: SLF001 - as above
        return answer

    async def _interrupt_until(self, answer: asyncio.Future[Any], within: float) -> bool:
        # Repeatedly: an interruption does not affect a statement that has not begun, or waits for its turn.
        for _ in range(round(within / INTERRUPT_EVERY)):
            if self.is_busy and self._session is not None:
                with suppress(sqlite3.Error):  # it is closed already
                    self._session.interrupt()
            await asyncio.wait({answer}, timeout=INTERRUPT_EVERY)
            if answer.done():
                return True
        return False

    def _end_thread(self) -> asyncio.Future[Any] | None:
        end: Any = getattr(self, "stop", None) or cast("Any", self)._stop_running  # noqa: SLF001 - before 0.22
        answer: asyncio.Future[Any] | None = end()
        return answer


async def _outlast(answer: asyncio.Future[Any], within: float) -> None:
    """Wait for the thread's last answer through any cancellation: once this task has ended, the loop may be closed."""
    clock = asyncio.get_running_loop().time
    ends = clock() + within
    while not answer.done() and clock() < ends:
        with suppress(asyncio.CancelledError):
            await asyncio.wait({answer}, timeout=ends - clock())


class _Lent(aiosqlite.Connection):
    """What a lease gets: a new object over the same sqlite3 connection, thread and queue."""

    def __init__(self, connection: _Connection, loan: Loan) -> None:
        # Not the base class's __init__, which would make a thread: `__getattr__` finds the existing one.
        self._lent = connection
        self._loan = loan
        self._connection: sqlite3.Connection | None = Lent(connection.session, loan)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lent, name)

    def __del__(self) -> None:
        pass  # aiosqlite's would end the thread

    __repr__ = object.__repr__  # before 0.22 the base class's was that of a thread

    async def _execute(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._loan.is_over:
            self._loan.check()
        return await self._lent._execute(fn, *args, **kwargs)  # noqa: SLF001 - as above

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction was open after the last call that has ended."""
        self._loan.check()
        return self._lent.session.has_transaction

    @property
    def total_changes(self) -> int:
        """How many rows were changed until the last call that has ended."""
        self._loan.check()
        return self._lent.session.changed_rows

    async def close(self) -> None:
        """Close the connection itself, which the pool replaces."""
        self._loan.check()
        await self._lent.close()

    def stop(self) -> asyncio.Future[Any] | None:
        """Close the connection itself, and end its thread."""
        self._loan.check()
        return self._lent.stop()


class AiosqliteManager(ResourceManager[aiosqlite.Connection]):
    """Connects to SQLite by aiosqlite, and resets each connection between two leases.

    It is the counterpart of `SqliteManager` for `async def`: see there for what `reset` resets
    and what `check` notices. Most of the cost is the way to the connection's thread and back:
    "session" takes it once for each lease, "transaction" not at all if no transaction is open
    and all rows were read.

    After its lease, the leased connection raises `NotLeased`, and so do its cursors and
    iterators. A statement that still runs when a connection comes back, as after a cancelled
    `await`, is interrupted and rolled back; one that waits for its turn is skipped. One that
    cannot be interrupted within a second, such as a Python function that blocks, costs the
    connection. While a statement runs, `in_transaction` and `total_changes` have their values
    from before it.

    Example:
        ```python
        db = ConnectionPool(AiosqliteManager("app.db"), limit=5, name="db")

        async with db, db.lease() as conn:
            await conn.execute("INSERT INTO visits DEFAULT VALUES")
            await conn.commit()
        ```
    """

    def __init__(
        self,
        database: Location | Callable[[], Location | Awaitable[Location]],
        *,
        reset: Reset = "session",
        read_only: bool = False,
        pragmas: Pragmas | None = None,
        init: Init | None = None,
        iter_chunk_size: int = 64,
        **options: Any,
    ) -> None:
        """Describe the connections; they are made later.

        Args:
            database: The path of the file or a URI, as for `SqliteManager`. A callable, plain or
                async, is called for each connection; a plain one must not block.
            reset: What to reset after a lease: its whole "session", or only its "transaction".
            read_only: Whether to open the file only for reading; then it is not created. If the
                last connection to be closed only reads, SQLite leaves its log beside the file,
                for the next one that writes.
            pragmas: Settings beside, or instead of, journal_mode "wal", synchronous "normal"
                (neither if the file is only read) and foreign_keys "on"; None keeps SQLite's
                default of one.
            init: Called with the sqlite3 connection inside each new connection, in its thread:
                for `row_factory`, functions, a schema and other lasting settings. What it
                writes is committed.
            iter_chunk_size: How many rows `async for` fetches at once.
            **options: For `sqlite3.connect`, such as `isolation_level` or `detect_types`;
                `timeout`, for which SQLite waits for a lock, is 5 seconds by default.

        Raises:
            PoolConfigError: If one of them cannot work.
        """
        self._location = database
        self._chunk = iter_chunk_size
        self._database = Database(
            type(self).__name__, reset=reset, read_only=read_only, pragmas=pragmas, init=init, options=options
        )
        self._resets_session = reset == "session"
        if not callable(database):
            self._database.locate(database)

    async def create(self) -> aiosqlite.Connection:
        """Connect.

        Returns:
            The new connection.

        Raises:
            PoolConfigError: If there is no such file, or it is no database, or permissions
                forbid opening it; or if the event loop is not asyncio's.
            sqlite3.Error: SQLite's own error, if waiting may help.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            text = f"{type(self).__name__}: aiosqlite needs asyncio, and this is another event loop; use SqliteManager"
            raise own(PoolConfigError(text)) from None
        location = self._database.locate(await current(self._location))
        connection = _Connection(self._database, self._chunk)
        await connection.open(location)
        return connection

    async def check(self, resource: aiosqlite.Connection) -> bool:
        """See whether a connection works and its file is still the one under its name.

        Args:
            resource: The connection.

        Returns:
            Whether both are so. An exception means no.
        """
        return bool(await cast("_Connection", resource).on_session(self._database.check))

    def lend(self, resource: aiosqlite.Connection, loan: Loan) -> aiosqlite.Connection:
        """Make the connection of one lease; it and its cursors raise after the lease.

        Args:
            resource: The connection.
            loan: The lease.

        Returns:
            A connection over the same thread, which works while the lease goes on.
        """
        connection = cast("_Connection", resource)
        connection.loan = loan
        return _Lent(connection, loan)

    def broken(self, resource: aiosqlite.Connection, error: Exception) -> Verdict | None:  # noqa: ARG002 - as the base
        """Say what an error means for a connection; see `SqliteManager.broken`.

        Args:
            resource: The connection.
            error: The error of a lease.

        Returns:
            What to do with the connection.
        """
        return judge(error)

    async def change(self, resource: aiosqlite.Connection) -> None:
        """Reset a connection, as the class describes.

        Args:
            resource: The connection.

        Raises:
            PoolError: If a statement still runs on it and cannot be interrupted.
            ValueError: aiosqlite's error, if it was closed.
            sqlite3.Error: If it cannot be reset.
        """
        connection = cast("_Connection", resource)
        loan, connection.loan = connection.loan, None
        session = connection.session  # first of all: it raises if there is no thread
        if connection.is_busy and not await connection.settle():
            raise own(PoolError("a statement of the lease still runs, and cannot be interrupted"))
        is_loss = False
        if self._resets_session or session.has_transaction or session.unread:
            is_loss = await connection.on_session(self._database.reset)
        if is_loss and loan is not None and not loan.has_failed:
            loan.warn(connection.lost)

    async def change_and_tell(self, resource: aiosqlite.Connection) -> list[str]:
        """Do what `change` does, and tell what state of the session it had to undo; for the guard of tests.

        Args:
            resource: The connection.

        Returns:
            Names: of PRAGMAs, temporary tables, functions and attached files.
        """
        told = sorted(self._database.changes_of(cast("_Connection", resource).session))
        await self.change(resource)
        return told

    def refuse_prepare(self) -> str | None:
        """Say why a request may not prepare its connection.

        Returns:
            The reason, if a reset does not undo settings: with `reset="transaction"`.
        """
        return self._database.refuse_prepare()

    def sandbox(self, resource: aiosqlite.Connection) -> ResourceManager[aiosqlite.Connection]:
        """Make the manager of a sandbox, for `connectionpools_fastapi.testing.sandbox`; see `SqliteManager.sandbox`.

        Args:
            resource: The connection.

        Returns:
            Its hooks.
        """
        from ._aiosqlite_sandbox import AiosqliteSandbox  # noqa: PLC0415 - only tests need it

        return AiosqliteSandbox(self, resource, self._database.changes_of)

    async def clean(self, resource: aiosqlite.Connection) -> None:
        """Close a connection; a statement that still runs on it is interrupted.

        Args:
            resource: The connection.
        """
        await cast("_Connection", resource).shut()
