"""AiosqliteManager: connections of aiosqlite; needs the extra `aiosqlite`."""

import asyncio
import inspect
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

from ..errors import PoolConfigError, PoolError, own
from ..manager import ResourceManager
from ._sqlite import Database, Init, Location, Pragmas, Reset, Session

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

# How long what was interrupted may take to end, in seconds; and how often it is interrupted when closing.
END_WITHIN = 1.0
CLOSE_WITHIN = 2.0
INTERRUPT_EVERY = 0.1


class _Connection(aiosqlite.Connection):
    """Knows whether its thread is still at work for somebody who has gone, and can end that."""

    def __init__(self, database: Database, iter_chunk_size: int) -> None:
        super().__init__(lambda: None, iter_chunk_size)  # type: ignore[arg-type,return-value] # `open` connects
        self._database = database
        self._session: Session | None = None
        self._is_over = False
        self.needs_rollback = True
        # Each is changed by one thread only: by the one that asks, and by the one that answers.
        self._asked = 0
        self._answered = 0

    async def open(self, location: str) -> None:
        """Start the thread and connect."""
        thread: Any = getattr(self, "_thread", self)  # before 0.22 it was the thread itself
        thread.daemon = True  # a statement that cannot be interrupted must not keep the process from ending
        thread.start()
        try:
            self._connection = await self._ask(partial(self._open, location))
        except BaseException as error:
            closed = self._ask(self._close)  # what may be open by then
            end = self._end_thread() or closed
            if isinstance(error, Exception):
                await asyncio.wait({end}, timeout=END_WITHIN)
            raise

    def _open(self, location: str) -> Session:
        self._session = self._database.open(location)
        return self._session

    def _close(self) -> None:
        if self._session is not None:
            self._database.close(self._session)

    @property
    def is_busy(self) -> bool:
        """Whether anything that was asked of the thread is not done yet."""
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
        return await cast("Any", super())._execute(answer)

    async def rollback(self) -> None:
        """Roll back, unless it was done already for somebody above who does not know."""
        if self.needs_rollback:
            await super().rollback()

    async def on_session(self, act: Callable[[Session], Any]) -> Any:
        """Have the thread do something with the connection, after all that it was asked before."""
        return await self._execute(act, self._conn)

    async def settle(self) -> bool:
        """Interrupt what runs for somebody who has gone; say whether nothing does any more."""
        return await self._interrupt_until(self._ask(lambda: None), END_WITHIN)

    async def shut(self) -> None:
        """Interrupt what runs, skip what waits, close; what cannot be interrupted is left to itself."""
        self._is_over = True
        if self._connection is None:  # it is closed already
            return
        closed = self._ask(self._close)
        self._connection = None
        # Not only until it is closed: the thread would still have an answer for a loop that may be closed by then.
        if await self._interrupt_until(self._end_thread() or closed, CLOSE_WITHIN):
            closed.result()

    def _ask(self, act: Callable[[], Any]) -> asyncio.Future[Any]:
        answer = asyncio.get_running_loop().create_future()
        cast("Any", self)._tx.put_nowait((answer, act))
        return answer

    async def _interrupt_until(self, answer: asyncio.Future[Any], within: float) -> bool:
        # Again and again: what has not begun is not interrupted, nor what waits for its turn.
        for _ in range(round(within / INTERRUPT_EVERY)):
            if self.is_busy and self._session is not None:
                with suppress(sqlite3.Error):  # it is closed already
                    self._session.interrupt()
            await asyncio.wait({answer}, timeout=INTERRUPT_EVERY)
            if answer.done():
                return True
        return False

    def _end_thread(self) -> asyncio.Future[Any] | None:
        end: Any = getattr(self, "stop", None) or cast("Any", self)._stop_running  # the latter before 0.22
        answer: asyncio.Future[Any] | None = end()
        return answer


class AiosqliteManager(ResourceManager[aiosqlite.Connection]):
    """Connects to SQLite by aiosqlite, and lets no lease see what an earlier one has left behind.

    What `reset` brings back and what `check` notices is as with `SqliteManager`, of which
    this is the counterpart for `async def`; see there. Of what it costs, the way to the
    connection's thread and back is the greater part: "session" goes it once for each
    lease, "transaction" not at all where no transaction is open.

    A statement that still runs as a connection comes back, as after a cancelled `await`,
    is interrupted, and what it did rolled back. One that cannot be interrupted within a
    second, such as a function of Python's that blocks, costs the connection.

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
            database: The path of the file or a URI, as for `SqliteManager`. A callable,
                plain or async, is asked anew for each connection; a plain one must not block.
            reset: What a lease may not leave behind: anything of its "session", or only a
                "transaction".
            read_only: Whether to open the file only to read it; it is not made then. Where the
                last connection to be closed is one that only reads, SQLite leaves its log beside
                the file, for the next one that writes.
            pragmas: What to set beside, or instead of, journal_mode "wal", synchronous
                "normal" (neither where it is only read) and foreign_keys "on"; None leaves
                one at SQLite's default.
            init: Is given each new connection, the one of sqlite3 that is within, in the
                thread that serves it: for `row_factory`, functions, a schema and whatever
                else is to stay. What it writes is committed.
            iter_chunk_size: How many rows `async for` fetches at once.
            **options: For `sqlite3.connect`, such as `isolation_level` or `detect_types`;
                `timeout`, for which SQLite waits for a lock, is 5 seconds by default.

        Raises:
            PoolConfigError: If one of them is not what it may be.
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
            PoolConfigError: If there is no such file or it is no database, or must not be
                opened; or if the event loop is not asyncio's.
            sqlite3.Error: As SQLite says, if waiting may help.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            text = f"{type(self).__name__}: aiosqlite needs asyncio, and this is another event loop; use SqliteManager"
            raise own(PoolConfigError(text)) from None
        location = self._location() if callable(self._location) else self._location
        if inspect.isawaitable(location):
            location = await location
        connection = _Connection(self._database, self._chunk)
        await connection.open(self._database.locate(location))
        return connection

    async def check(self, resource: aiosqlite.Connection) -> bool:
        """See whether a connection works and its file is still the one under its name.

        Args:
            resource: The connection.

        Returns:
            Whether it is. To raise says that it is not.
        """
        return bool(await cast("_Connection", resource).on_session(self._database.check))

    async def change(self, resource: aiosqlite.Connection) -> None:
        """Reset a connection; the class says what that means.

        Args:
            resource: The connection.

        Raises:
            PoolError: If a statement still runs on it that cannot be interrupted.
            ValueError: aiosqlite's, if it was closed.
            sqlite3.Error: If it cannot be reset.
        """
        connection = cast("_Connection", resource)
        has_transaction = connection.in_transaction  # before anything else: it raises where nobody is there to answer
        if connection.is_busy:
            if not await connection.settle():
                raise own(PoolError("a statement of the lease still runs, and cannot be interrupted"))
            has_transaction = connection.in_transaction
        if self._resets_session:
            await connection.on_session(self._database.bring_back)
        elif has_transaction:
            await connection.on_session(self._database.roll_back)

    async def clean(self, resource: aiosqlite.Connection) -> None:
        """Close a connection; a statement that still runs on it is interrupted.

        Args:
            resource: The connection.
        """
        await cast("_Connection", resource).shut()
