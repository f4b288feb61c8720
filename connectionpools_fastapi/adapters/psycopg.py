"""PsycopgManager: connections of psycopg 3 to PostgreSQL; needs the extra `psycopg`."""

import asyncio
import inspect
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from operator import attrgetter
from typing import Any, Literal

from connectionpools_fastapi.errors import PoolConfigError, PoolError, own
from connectionpools_fastapi.manager import ResourceManager

from ._arrivals import LOOK_EVERY, Arrivals, arrivals_of
from ._postgres import advice
from ._socket import has_news

try:
    from psycopg import AsyncConnection, Error, ProgrammingError, __version__, capabilities
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.errors import error_from_result
    from psycopg.generators import execute
    from psycopg.pq import ExecStatus, PipelineStatus, TransactionStatus
    from psycopg.waiting import READY_NONE, READY_R, WAIT_R, wait_async

    if tuple(map(int, __version__.split(".")[:2])) < (3, 2):
        raise ImportError(f"found {__version__}")
except ImportError as _error:
    msg = (
        "connectionpools_fastapi.adapters.psycopg needs psycopg 3.2 or newer and libpq: "
        "pip install 'connectionpools-fastapi[psycopg]' 'psycopg[binary]'"
    )
    raise ImportError(msg) from _error

Dsn = str | Callable[[], str | Awaitable[str]]

# DISCARD ALL has to be alone, so where there is a transaction to be ended as well this is its parts, as
# PostgreSQL's manual has them: one round trip for either.
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

CONNECT_WITHIN = 5
CLOSE_WITHIN = 1.0

# What leases may set on a connection itself: these as attributes, the others by `await connection.set_...`.
ATTRIBUTES = ("row_factory", "cursor_factory", "server_cursor_factory", "prepare_threshold", "prepared_max")
MODES = ("autocommit", "isolation_level", "read_only", "deferrable")
SETTINGS = attrgetter(*ATTRIBUTES, *MODES)


class PsycopgManager(ResourceManager[AsyncConnection[Any]]):
    """Connects to PostgreSQL by psycopg 3, and lets no lease see what an earlier one has left behind.

    Write `ConnectionPool(PsycopgManager("postgresql://..."), limit=10, name="db")`, on
    asyncio. Each `reset` rolls back an open transaction, gives the connection its own
    settings back (autocommit, isolation level, row factory and the like) and removes
    handlers of notices and notifications that a lease has added; adapters that it has
    registered stay. Beyond that it is a choice:

    - "session" brings everything back to what it was after connecting, as DISCARD ALL does:
      role, settings, temporary tables, advisory locks, LISTEN, cursors, prepared statements.
      It costs one round trip, with the rollback.
    - "transaction" leaves the rest as it is: right if no lease changes its session, and for
      statements that are to stay prepared. It costs none if no transaction is open.

    A connection is destroyed instead of being reset if it is still in use (a query, COPY,
    pipeline, transaction block or `notifies()` that nobody has left), or if a query was
    cancelled in the midst. What it was doing is cancelled on the server as well.
    """

    def __init__(
        self,
        dsn: Dsn = "",
        *,
        reset: Literal["session", "transaction"] = "session",
        init: Callable[[AsyncConnection[Any]], Awaitable[object]] | None = None,
        **options: Any,
    ) -> None:
        """Describe the connections; they are made later.

        Args:
            dsn: Where to connect to, as a URL or "host=db dbname=app". A callable, plain or
                async, is asked anew for each connection, as credentials may have been
                rotated; a plain one must not block. Empty leaves it to `options`, and to
                the environment variables of libpq.
            reset: What a lease may leave behind: "session" nothing, "transaction" all but
                a transaction.
            init: Called with each new connection, for adapters, handlers and an isolation
                level, which stay. What it would SET a reset undoes: write
                `options="-c name=value"`, which is libpq's.
            **options: For `psycopg.AsyncConnection.connect`, as `autocommit`, `row_factory`
                or `sslmode`; `connect_timeout`, for each address of the host, is 5 seconds
                unless the DSN says otherwise.

        Raises:
            PoolConfigError: If `dsn` or `reset` is none that there is.
        """
        if not isinstance(dsn, str) and not callable(dsn):
            raise PoolConfigError(f"PsycopgManager: dsn must be a str or a callable, got {type(dsn).__name__}")
        if reset not in {"session", "transaction"}:
            raise PoolConfigError(f"PsycopgManager: reset must be 'session' or 'transaction', got {reset!r}")
        self._dsn = dsn
        self._reset = reset
        self._init = init
        self._options = options

    async def create(self) -> AsyncConnection[Any]:
        """Connect.

        Returns:
            The new connection.

        Raises:
            PoolConfigError: If the DSN or an option is malformed, if the server refuses the
                user or the password or has no such database, or if the event loop is not asyncio's.
            Exception: What psycopg raises if the server cannot be reached or is not ready.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise _mistake("psycopg runs on asyncio only, and this is another event loop") from None
        connection = await self._connect()
        try:
            connection.arrivals = arrivals_of(loop)
            if self._init is not None:
                await self._init(connection)
                await connection.rollback()  # what it has read
            connection.remember()
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _connect(self) -> "_Connection":
        dsn: Any = self._dsn() if callable(self._dsn) else self._dsn
        if inspect.isawaitable(dsn):
            dsn = await dsn
        if not isinstance(dsn, str):
            raise _mistake(f"the callable given as dsn must return a str, and returned {type(dsn).__name__}")
        try:
            options = dict(self._options)
            if "connect_timeout" not in conninfo_to_dict(dsn):
                options.setdefault("connect_timeout", CONNECT_WITHIN)
            return await _Connection.connect(dsn, **options)
        except ProgrammingError:  # raised before anything is sent; its text shows the DSN
            raise _mistake(
                "the DSN or an option cannot be read: write postgresql://user:password@host:5432/database "
                "(with special characters of the password percent-encoded), or host=... dbname=..."
            ) from None
        except Error as error:
            found = advice(str(error))
            if found is None:
                raise
        raise _mistake(found)

    async def check(self, resource: AsyncConnection[Any]) -> bool:
        """Ask the server for an empty query, unless the connection is known to be of no use.

        Args:
            resource: The connection.

        Returns:
            False if it is; a server that is gone makes this raise, which says the same.
        """
        if resource.closed or resource.pgconn.transaction_status != TransactionStatus.IDLE:
            return False
        assert isinstance(resource, _Connection)  # noqa: S101 - create makes no other
        await resource.tend(resource.ask(b""))
        return True

    def doubtful(self, resource: AsyncConnection[Any]) -> bool:
        """Say whether a connection was closed, as far as it is known here: no round trip.

        Args:
            resource: The connection.

        Returns:
            Whether it has to be checked before it is used.
        """
        return resource.closed or has_news(resource.fileno())

    async def change(self, resource: AsyncConnection[Any]) -> None:
        """Reset a connection; the class says what that means.

        Args:
            resource: The connection.

        Raises:
            PoolError: If it cannot be, so that it has to be discarded.
            Error: Of psycopg, likewise.
        """
        if fault := _fault(resource):
            raise own(PoolError(fault))
        assert isinstance(resource, _Connection)  # noqa: S101 - as above
        if self._reset == "session":
            is_idle = resource.pgconn.transaction_status == TransactionStatus.IDLE
            await resource.tend(resource.ask(DISCARD_ALL if is_idle else ROLLBACK_AND_DISCARD_ALL))
            resource.forget_prepared()
        else:
            await resource.tend(resource.rollback())
        await resource.restore()
        resource.forget_notifications()

    async def clean(self, resource: AsyncConnection[Any]) -> None:
        """Close a connection; a query that still runs is cancelled, for which the server has a second.

        Args:
            resource: The connection.
        """
        assert isinstance(resource, _Connection)  # noqa: S101 - as above
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_WITHIN):
                    await resource.break_off()
        finally:
            resource.arrivals = None
            await resource.close()


class _Begun:
    """A generator of psycopg's that has begun: says once more what it waits for, or first raises what has happened."""

    def __init__(self, gen: Any, error: BaseException | None = None) -> None:
        self._error = error
        self.send = gen.send

    def __next__(self) -> Any:
        if self._error is None:
            return self.send(READY_NONE)
        try:
            raise self._error
        finally:
            self._error = None


class _Connection(AsyncConnection[Any]):
    """Remembers how it began, and whether somebody was cancelled who waited for the server."""

    arrivals: Arrivals | None = None
    was_cut_off = False
    needs_rollback = True  # nor would one ask the server where no transaction is open
    _is_tended = False
    _waits = 0  # how many tasks wait for the server
    _let_go: asyncio.Event | None = None  # set when one does no longer
    _cancelling: asyncio.Future[None] | None = None

    async def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        # psycopg has the server cancel the query, and the connection may look well after that. But that request
        # goes another way, and if nobody saw it arrive, it may hit the next lease's query.
        self._waits += 1
        try:
            if args or options or self._waits > 1:
                return await self._wait_as_psycopg(gen, *args, **options)
            return await self._wait_at_less_cost(gen)
        except asyncio.CancelledError:
            self.was_cut_off = True
            raise
        finally:
            self._waits -= 1
            if self._let_go is not None:
                self._let_go.set()

    def _wait_as_psycopg(self, gen: Any, *args: Any, **options: Any) -> Awaitable[Any]:
        if self._is_tended:
            if not args:  # psycopg's own default is not to sleep in between
                options.setdefault("interval", LOOK_EVERY)
            return wait_async(gen, self.pgconn.socket, *args, **options)
        return super().wait(gen, *args, **options)

    async def _wait_at_less_cost(self, gen: Any) -> Any:
        """Do what psycopg does where there is only something to read, which is nearly always, and leave it the rest."""
        arrivals = self.arrivals
        if arrivals is None or arrivals.loop is not asyncio.get_running_loop():
            return await self._wait_as_psycopg(gen)
        _ = self.pgconn.socket  # raises if there is none, and before anything has begun
        has_waited = False
        try:
            wanted = next(gen)
            while wanted == WAIT_R:
                has_waited = True
                try:
                    arrival = arrivals.at(self.pgconn.socket)
                except OSError:  # the loop or the operating system cannot watch it
                    break
                wanted = gen.send(READY_R if await arrival else READY_NONE)
        except StopIteration as end:
            if has_waited:
                return end.value
            # psycopg knows how often that may be before other tasks must have their turn.
            return await self._wait_as_psycopg(_Begun(gen, end))
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit) as error:
            return await self._wait_as_psycopg(_Begun(gen, error))
        return await self._wait_as_psycopg(_Begun(gen))

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Have the server cancel the query, also if whoever asks for it is cancelled once more, as scopes of anyio do.

        psycopg would give up then and close the connection, and the query would go on.
        """
        if capabilities.has_cancel_safe() or self.closed:
            work = super().cancel_safe(timeout=timeout)
        else:  # libpq before 17: psycopg would get it in the thread, and by then may have closed the connection
            work = asyncio.to_thread(self.pgconn.get_cancel().cancel)
        self._cancelling = asyncio.ensure_future(work)
        await asyncio.shield(self._cancelling)

    async def break_off(self) -> None:
        """See to it that the server does nothing any more for a connection that is about to be closed."""
        if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
            with suppress(Error, OSError):  # the server will find out by itself
                await self.cancel_safe(timeout=CLOSE_WITHIN)
        elif self._cancelling is not None:
            await asyncio.wait([self._cancelling])
        if self._waits and not self.closed:
            # Another task listens to this socket. It has to let go of it, and may do so only after it has listened once
            # more, before the operating system gives the number of the socket to the next connection: the loop
            # would not listen to that.
            self._let_go = asyncio.Event()
            end = socket.socket(fileno=self.pgconn.socket)
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.detach()
            while self._waits:
                self._let_go.clear()
                await self._let_go.wait()

    async def tend(self, work: Awaitable[None]) -> None:
        """Let who is cancelled go at once, as hooks are if they take too long: the connection is closed then.

        psycopg would first have the server cancel the query, for which a network that stalls gives it ten seconds.
        """
        self._is_tended = True
        try:
            await work
        finally:
            self._is_tended = False

    async def ask(self, script: bytes) -> None:
        """Have the server execute a script, in one round trip; psycopg begins no transaction for it."""
        async with self.lock:
            self.pgconn.send_query(script)
            results = await self.wait(execute(self.pgconn))
        if results[-1].status == ExecStatus.FATAL_ERROR:  # which ends a script
            raise error_from_result(results[-1])

    def remember(self) -> None:
        """Keep the settings that it has now for `restore`."""
        self._settings = SETTINGS(self)
        self._handlers = list(self._notice_handlers), list(self._notify_handlers)

    async def restore(self) -> None:
        """Undo what a lease has set on the connection itself; the server knows nothing of it."""
        if SETTINGS(self) != self._settings:
            for name, value in zip((*ATTRIBUTES, *MODES), self._settings, strict=True):
                if name in ATTRIBUTES:
                    setattr(self, name, value)
                elif getattr(self, name) != value:
                    await getattr(self, f"set_{name}")(value)
        self._notice_handlers[:], self._notify_handlers[:] = self._handlers

    def forget_prepared(self) -> None:
        """Count on no statement any more: the server has none that psycopg believes to have prepared."""
        self._prepared = type(self._prepared)()

    def forget_notifications(self) -> None:
        """Let nobody hear what was meant for an earlier lease."""
        backlog = getattr(self, "_notifies_backlog", None)  # older versions keep none
        if backlog:
            backlog.clear()


def _fault(connection: AsyncConnection[Any]) -> str | None:
    if connection.closed:
        return "the connection is closed"
    if getattr(connection, "was_cut_off", False):
        return "somebody was cancelled in the midst of a query"
    if connection.pgconn.pipeline_status != PipelineStatus.OFF:
        return "a pipeline was not left"
    if connection._num_transactions or connection._tpc:
        return "a transaction block or a two-phase transaction was not left"
    if connection.lock.locked():
        return "somebody still uses the connection: a query, a COPY or notifies() is not at its end"
    return None


def _mistake(what: str) -> PoolConfigError:
    return own(PoolConfigError(f"PsycopgManager cannot connect: {what}"))
