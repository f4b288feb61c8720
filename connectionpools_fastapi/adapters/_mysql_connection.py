"""The connections of MySQL's managers: each lease has an object of its own, and all of them share one socket."""

import asyncio
import contextvars
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import wraps
from typing import Any, NoReturn, Self

from connectionpools_fastapi import Loan

from ._mysql import CAN_TLS, IN_TRANSACTION, NO_SUCH_SESSION, WHICH_SERVER, code_of, warn_of_query

# ruff: noqa: SLF001 - the objects of one connection see each other's private members

COM_INIT_DB = 2
COM_QUERY = 3
COM_RESET_CONNECTION = 0x1F
AUTOCOMMIT = 2  # a bit of `server_status`

KILL_WITHIN = 0.5
LOST = (
    "it has written within a transaction that was not committed, and that is rolled back: write `await conn.commit()` "
    "at the end, or connect with autocommit=True"
)
Method = Callable[..., Coroutine[Any, Any, Any]]


class NoTlsError(Exception):
    """The server speaks no TLS, which the options demand."""


class Killer:
    """Ends sessions at the server whose query was cut off, over one connection for all that wait.

    Closing the socket does not end them: the server notices that only when it has something to send.
    """

    def __init__(self, name: str, connect: Callable[[], Awaitable[Any]]) -> None:
        self._name = name
        self._connect = connect
        self._doomed: deque[tuple[str, int]] = deque()
        self._killing: asyncio.Task[None] | None = None

    def kill(self, server: str, session: int) -> asyncio.Task[None]:
        """Begin to end a session.

        Args:
            server: Its server, as WHICH_SERVER names it.
            session: Its number.

        Returns:
            The task, which never fails.
        """
        self._doomed.append((server, session))
        if self._killing is None or self._killing.done():
            self._killing = contextvars.Context().run(asyncio.create_task, self._kill_all())
        return self._killing

    async def _kill_all(self) -> None:
        try:
            while self._doomed:
                connection = await self._connect()
                try:
                    await self._kill_over(connection)
                finally:
                    connection.abort()
        except Exception as error:  # noqa: BLE001 - of the driver, an address's callable, or a time limit
            self._doomed.clear()
            warn_of_query(self._name, error)

    async def _kill_over(self, connection: Any) -> None:
        async with asyncio.timeout(KILL_WITHIN):
            server = await connection.fetch_value(WHICH_SERVER)
        # MariaDB may hold back its answer for two seconds, if a session goes to sleep at this very moment. It was told
        # then; the other sessions get a new connection.
        with suppress(TimeoutError):
            async with asyncio.timeout(KILL_WITHIN):
                while self._doomed:
                    of_server, session = self._doomed.popleft()
                    # Numbers grow: a greater one than this connection's is of a server that has restarted since.
                    if of_server == server and session < connection.thread_id():
                        await _kill(connection, session)
                await connection.ensure_closed()


async def _kill(connection: Any, session: int) -> None:
    try:
        await connection.query(f"KILL {session}")
    except Exception as error:
        if code_of(error) != NO_SUCH_SESSION:
            raise


class Wire:
    """What the objects of one connection share: its socket's state."""

    def __init__(self) -> None:
        self.reading = 0  # how many tasks wait for the server
        self.was_cut_off = False  # whether one of them was cancelled
        self.server = ""
        self.session = 0
        self.killer: Killer | None = None
        self.killing: asyncio.Task[None] | None = None

    def cut_off(self) -> None:
        """Note that an answer will not be read, and end what the server does for it."""
        self.was_cut_off = True
        if self.killer is not None and self.killing is None:
            self.killing = self.killer.kill(self.server, self.session)


def waits(method: Method) -> Any:
    """Make a driver's method that reads an answer refuse late use, and note errors and cancellation."""

    async def attend(self: Any, *args: Any, **options: Any) -> Any:
        wire = self.wire
        wire.reading += 1
        try:
            return await method(self, *args, **options)
        except Exception as error:
            if self.loan is not None:
                self.loan.note(error)
            raise
        except BaseException:
            wire.cut_off()
            raise
        finally:
            wire.reading -= 1

    @wraps(method)
    def call(self: Any, *args: Any, **options: Any) -> Coroutine[Any, Any, Any]:
        self.check_lease()
        return (method if self.wire.reading else attend)(self, *args, **options)

    return call


def reads_result(method: Method) -> Any:
    """Make a driver's method that reads a result note what the transaction has written, besides what `waits` does."""

    async def read(self: Any, *args: Any, **options: Any) -> None:
        await method(self, *args, **options)
        result = self._result
        if result.description is not None:
            return
        self.server_status = result.server_status  # asyncmy would keep the last one in place of 0
        self.has_written = bool(self.server_status & IN_TRANSACTION and (result.affected_rows or self.has_written))

    return waits(read)


class Leasable:
    """A connection of the pool, or the object of one lease: the same socket, and its own state.

    It comes before the driver's class, whose objects all send by `_execute_command` and read by methods that `waits`
    has wrapped.
    """

    loan: Loan | None = None  # of a lease's object
    lent: Self | None = None  # of the pool's connection: the object of the current lease
    lost = LOST
    has_written = False  # in this transaction, as far as known here
    wire: Wire
    server_status: int
    _next_seq_id: int
    # Of the driver.
    _result: Any
    _encoding: str
    _ssl_context: object
    server_capabilities: int
    query: Callable[[str], Awaitable[Any]]
    next_result: Callable[[], Awaitable[Any]]
    thread_id: Callable[[], int]
    _write_bytes: Callable[[bytes], object]
    _read_query_result: Callable[[], Awaitable[object]]

    def __init__(self, **options: Any) -> None:
        self.wire = Wire()
        super().__init__(**options)

    def check_lease(self) -> None:
        """Raise NotLeased if the lease of this object is over."""
        loan = self.loan
        if loan is not None and loan.is_over:
            loan.check()

    def __getattr__(self, name: str) -> Any:
        self.check_lease()
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def refuse_reconnecting(self) -> NoReturn:
        """Refuse to connect anew within a lease, to a session without its settings."""
        self.check_lease()
        raise ConnectionError("this connection is closed or was lost; lease another one")

    async def _request_authentication(self) -> None:
        if self._ssl_context and not self.server_capabilities & CAN_TLS:  # aiomysql would go on without TLS
            raise NoTlsError
        await super()._request_authentication()  # type: ignore[misc] # of the driver's class, which follows

    async def _execute_command(self, *args: Any) -> None:
        self.check_lease()
        await super()._execute_command(*args)  # type: ignore[misc] # as above

    async def _read_ok_packet(self) -> Any:
        answer = await super()._read_ok_packet()  # type: ignore[misc] # as above
        if not self.server_status & IN_TRANSACTION:
            self.has_written = False
        return answer

    async def ping(self, reconnect: bool = True) -> None:  # noqa: FBT001, FBT002 - as the drivers'
        self.check_lease()
        await super().ping(reconnect)  # type: ignore[misc] # as above

    def close(self) -> None:
        self.check_lease()
        super().close()  # type: ignore[misc] # as above

    async def ensure_closed(self) -> None:
        self.check_lease()
        await super().ensure_closed()  # type: ignore[misc] # as above

    # --- what the drivers say in different words, and how it ends ---------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether it is open, as far as this end knows."""
        raise NotImplementedError

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has arrived that was not read."""
        raise NotImplementedError

    @property
    def transport(self) -> asyncio.Transport | None:
        """The transport; None if it is closed."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close the socket at once."""
        transport = self.transport
        if transport is not None:
            transport.abort()
        self.close()

    def settings(self) -> dict[str, Any]:
        """Return the settings that it was made with, which a reset has to make again."""
        raise NotImplementedError

    def new(self) -> Self:
        """Make an object of the same class and state, on the same socket."""
        raise NotImplementedError

    def forget(self) -> None:
        """Forget the connection, in the object of a lease that has ended."""
        raise NotImplementedError

    # --- leases -----------------------------------------------------------------------------------------

    def lend(self, loan: Loan) -> Self:
        """Make the object of a lease."""
        self.lent = lent = self.new()
        lent.loan = loan
        return lent

    def end_lease(self) -> Loan | None:
        """Make the lease's object forget the connection; return its loan if writes of the lease will be lost."""
        lent = self.lent
        if lent is None:
            return None
        self.lent = None
        self.server_status = lent.server_status
        self._result, self._next_seq_id = lent._result, lent._next_seq_id  # results may be left to read
        loan = lent.loan
        has_lost = lent.has_written and lent.server_status & IN_TRANSACTION
        lent.forget()
        return loan if has_lost else None

    @property
    def _has_unread_rows(self) -> bool:
        result = (self if self.lent is None else self.lent)._result
        return result is not None and bool(result.unbuffered_active)

    def fault(self) -> str | None:
        """Return why another lease cannot use this connection; None if it can."""
        if self.wire.was_cut_off:
            return "a task was cancelled in the midst of a query"
        if self.wire.reading:
            return "it is still in use: a query is not at its end"
        if not self.is_open:
            return "the connection is closed"
        if self._has_unread_rows:
            return "the rows of an SSCursor were not read to their end"
        return None

    # --- what the pool sends ----------------------------------------------------------------------------

    async def exchange(self, *commands: tuple[int, str]) -> None:
        """Send commands in one write, and read the server's OK to each: one round trip for all."""
        while self._result is not None and self._result.has_next:
            await self.next_result()
        self._result = None
        packets = [(code, text.encode(self._encoding)) for code, text in commands]
        self._write_bytes(b"".join(struct.pack("<iB", len(text) + 1, code) + text for code, text in packets))
        for code, _ in packets:
            self._next_seq_id = 1
            if code == COM_QUERY:
                await self._read_query_result()
                while self._result.has_next:
                    await self.next_result()
            else:
                await self._read_ok_packet()

    async def fetch_value(self, query: str) -> Any:
        """Return the only value that a query gives."""
        (row,) = await self.fetch_all(query)
        return row[0]

    async def fetch_all(self, query: str) -> Any:
        """Return the rows of a query."""
        await self.query(query)
        return self._result.rows

    async def break_off(self) -> None:
        """End the server's work for a connection that is about to be closed, or say goodbye."""
        wire = self.wire
        if wire.reading or self._has_unread_rows:
            wire.cut_off()
        if wire.killing is not None:
            await asyncio.wait([wire.killing])
        elif self.is_open:
            with suppress(Exception):
                await self.ensure_closed()
