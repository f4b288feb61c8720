"""AsyncpgManager: connections of asyncpg to PostgreSQL; needs the extra `asyncpg`."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Literal

from connectionpools_fastapi.errors import PoolConfigError, PoolError, own
from connectionpools_fastapi.manager import ResourceManager

from ._socket import has_news

try:
    import asyncpg  # type: ignore[import-untyped] # has no types
    from asyncpg.protocol.protocol import PreparedStatementState  # type: ignore[import-untyped] # as above

    if not hasattr(asyncpg.Connection, "get_reset_query"):
        raise ImportError(f"asyncpg {asyncpg.__version__} is too old")
except ImportError as _error:
    msg = (
        "connectionpools_fastapi.adapters.asyncpg needs asyncpg 0.30 or newer: "
        "pip install 'connectionpools-fastapi[asyncpg]'"
    )
    raise ImportError(msg) from _error

# As DISCARD ALL, but for the prepared statements that asyncpg itself has made and counts on. Others
# are looked for last of all, since that is the statement whose outcome asyncpg tells.
RESET = """
SET SESSION AUTHORIZATION DEFAULT;
RESET ALL;
CLOSE ALL;
UNLISTEN *;
SELECT pg_catalog.pg_advisory_unlock_all();
DISCARD TEMP;
DISCARD SEQUENCES;
SELECT FROM pg_catalog.pg_prepared_statement() WHERE pg_catalog.left(name, 10) OPERATOR(pg_catalog.<>) '__asyncpg_'
"""
NONE_FOUND = "SELECT 0"
ROLLBACK = "ROLLBACK;"  # as asyncpg writes it

CONNECT_WITHIN = 5.0
CLOSE_WITHIN = 2.0

Dsn = str | Callable[[], str | Awaitable[str]]


class AsyncpgManager(ResourceManager[asyncpg.Connection]):
    """Connects to PostgreSQL by asyncpg, and lets no lease see what an earlier one has left behind.

    Either `reset` rolls back a transaction that is still open (and reports it to the event
    loop's exception handler, as asyncpg does) and takes away the listeners and loggers that
    a lease has added. Beyond that:

    - "session" brings back all that PostgreSQL keeps of a session, in the same round trip: role,
      settings, temporary tables, advisory locks, LISTEN, cursors, sequences. `asyncpg.Pool`
      does less in as many: it leaves SET ROLE and temporary tables behind. Statements that
      asyncpg has prepared stay prepared, so that no lease has to prepare them again.
    - "transaction" leaves these as they are, and makes no round trip where no transaction
      is open: for applications none of whose leases changes its session.

    Not reset but destroyed is a connection that is busy, whose query was just cancelled (the
    server is told to cancel it too), on which a lease has set type codecs, or has prepared
    statements under names of its own.

    Example:
        ```python
        db = ConnectionPool(AsyncpgManager("postgresql://user:password@host/database"), limit=10, name="db")
        ```
    """

    def __init__(
        self,
        dsn: Dsn | None = None,
        *,
        reset: Literal["session", "transaction"] = "session",
        init: Callable[[asyncpg.Connection], Awaitable[object]] | None = None,
        **options: Any,
    ) -> None:
        """Describe the connections; they are made later.

        Args:
            dsn: Where to connect to. A callable, plain or async, is asked anew for each
                connection, since credentials may have been rotated; a plain one must not
                block. None leaves it to `options` and to asyncpg's defaults.
            reset: What a lease may not leave behind: anything of its "session", or only a
                "transaction".
            init: Is given each new connection, for type codecs and query loggers, which
                stay. Settings go to `server_settings`: a reset takes back what `init` sets.
            **options: For `asyncpg.connect`, such as `ssl`, `server_settings` or
                `command_timeout`; `timeout`, for connecting, is 5 seconds by default.

        Raises:
            PoolConfigError: If `reset` or an option is not one that there is.
        """
        if reset not in {"session", "transaction"}:
            raise PoolConfigError(f"AsyncpgManager: reset must be 'session' or 'transaction', got {reset!r}")
        unknown = sorted(options.keys() - inspect.signature(asyncpg.connect).parameters)
        if unknown:
            raise PoolConfigError(f"AsyncpgManager: asyncpg.connect takes no {', '.join(unknown)}")
        self._dsn = dsn
        self._resets_session = reset == "session"
        self._init = init
        self._options = {"timeout": CONNECT_WITHIN, **options}
        self._options["connection_class"] = _leasable(options.get("connection_class", asyncpg.Connection))

    async def create(self) -> asyncpg.Connection:
        """Connect.

        Returns:
            The new connection.

        Raises:
            PoolConfigError: If the DSN is malformed, the server refuses user or password or
                has no such database, or the event loop is not asyncio's.
            Exception: What asyncpg raises if the server is not reachable or not ready.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise _mistake("asyncpg needs asyncio, and this is another event loop") from None
        dsn = self._dsn() if callable(self._dsn) else self._dsn
        if inspect.isawaitable(dsn):
            dsn = await dsn
        connection = await _connect(dsn, self._options)
        try:
            if self._init is not None:
                await self._init(connection)
        except BaseException:
            connection.terminate()
            raise
        connection.remember()
        return connection

    async def check(self, resource: asyncpg.Connection) -> bool:
        """See whether a connection is open, in one round trip unless it is known to be closed.

        Args:
            resource: The connection.

        Returns:
            Whether it is open. To raise says that it is not.
        """
        if resource.is_closed():
            return False
        await resource.execute("SELECT")
        return True

    def doubtful(self, resource: asyncpg.Connection) -> bool:
        """Say whether a connection was closed, as far as it is known here: no round trip.

        Args:
            resource: The connection.

        Returns:
            Whether it has to be checked before it is used.
        """
        return resource.is_closed() or has_news(resource._transport.get_extra_info("socket").fileno())

    async def change(self, resource: asyncpg.Connection) -> None:
        """Reset a connection; the class says what that means.

        Args:
            resource: The connection.

        Raises:
            PoolError: If it cannot be reset.
            Exception: What asyncpg raises if it is lost meanwhile.
        """
        connection: Any = resource  # one that `_leasable` describes
        if connection.is_closed():
            raise own(PoolError("the connection is closed"))
        if connection.has_new_codecs:
            raise _mistake("a lease has set type codecs; set them in init")
        # Where a query is sent anyhow, to send it is the cheapest way to learn whether another one runs.
        is_busy = connection._protocol._is_cancelling() if self._resets_session else await _is_busy(connection)
        if is_busy:
            raise _busy()
        script = RESET if self._resets_session else ""
        connection.recall()
        if connection.has_transaction:
            connection.forget_transaction()
            script = f"{ROLLBACK}{script}"
        try:
            left = await connection.execute(script) if script else ""
        except asyncpg.InterfaceError:
            raise _busy() from None
        if self._resets_session and left != NONE_FOUND:
            raise own(PoolError("a lease has left prepared statements of its own; DEALLOCATE them"))

    async def clean(self, resource: asyncpg.Connection) -> None:
        """Close a connection, by force after two seconds.

        Args:
            resource: The connection.
        """
        try:
            # A query that still runs is cancelled first, or it would go on without anybody.
            with suppress(Exception):
                async with asyncio.timeout(CLOSE_WITHIN):
                    await resource.close()
        finally:
            resource._transport.abort()  # which asyncpg before 0.32 does not do itself


async def _connect(dsn: str | None, options: dict[str, Any]) -> Any:
    try:
        return await asyncpg.connect(dsn, **options)
    except (ValueError, OverflowError):  # their text may hold what is secret
        text = (
            "the DSN or an option is malformed. Write postgresql://user:password@host:port/database, "
            "with percent-encoding where the password has special characters"
        )
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InsufficientPrivilegeError) as error:
        text = f"the server refuses user or password ({_kind(error)}). Check them, and the server's pg_hba.conf"
    except asyncpg.InvalidCatalogNameError as error:
        text = f"the server has no such database ({_kind(error)}). Check its name, or create it"
    except (asyncpg.UndefinedObjectError, asyncpg.InvalidParameterValueError) as error:
        text = f"the server does not take a setting ({_kind(error)}). Check server_settings and the DSN"
    raise _mistake(text)


def _kind(error: Exception) -> str:
    return type(error).__name__


def _busy() -> PoolError:
    return own(PoolError("the connection is busy: its query still runs or was just cancelled"))


def _mistake(text: str) -> PoolConfigError:
    return own(PoolConfigError(f"AsyncpgManager: {text}"))


async def _is_busy(connection: Any) -> bool:
    """Whether a query runs or is being cancelled; without a round trip.

    The driver has no word for it, but refuses to close a statement that is in use, which
    it says only after it has seen that the connection is not busy.
    """
    protocol = connection._protocol
    if protocol._is_cancelling():
        return True
    statement = PreparedStatementState("", "", protocol, asyncpg.Record, False)  # noqa: FBT003 - takes no keywords
    statement.attach()
    try:
        await protocol.close_statement(statement, None)
    except asyncpg.InternalClientError:
        return False
    except asyncpg.InterfaceError:
        pass
    return True


class _Leasable(asyncpg.Connection):  # type: ignore[misc] # untyped
    """Remembers what it was like before its first lease."""

    _top_xact: Any
    has_new_codecs = False
    # Of those who begin a transaction unasked it is no news that one is open at the end.
    reports_transactions = True
    # Nor do they learn at once that the reset has ended it.
    needs_rollback = True

    def remember(self) -> None:
        self._remembered = (set(self._query_loggers), set(self._termination_listeners))
        self.has_new_codecs = False

    @property
    def has_transaction(self) -> bool:
        """Whether one is open, or the driver believes so."""
        return self._top_xact is not None or bool(self.is_in_transaction())

    def recall(self) -> None:
        self._listeners.clear()
        self._log_listeners.clear()
        loggers, listeners = self._remembered
        self._query_loggers.clear()
        self._query_loggers.update(loggers)
        self._termination_listeners.clear()
        self._termination_listeners.update(listeners)

    def forget_transaction(self) -> None:
        """Have the driver believe no longer in one that is about to be rolled back."""
        is_left = self._top_xact is None or not self._top_xact._managed  # or who has begun it will end it
        if is_left and self.reports_transactions:
            message = f"AsyncpgManager: a lease has left a transaction open; it is rolled back: {self!r}"
            self._loop.call_exception_handler({"message": message})
        self._top_xact = None

    async def execute(self, query: str, *args: Any, **options: Any) -> Any:
        if query == ROLLBACK and not self.needs_rollback and not self.is_in_transaction():
            return ""
        return await super().execute(query, *args, **options)

    async def set_type_codec(self, *args: Any, **options: Any) -> None:
        self.has_new_codecs = True
        await super().set_type_codec(*args, **options)

    async def reset_type_codec(self, *args: Any, **options: Any) -> None:
        self.has_new_codecs = True
        await super().reset_type_codec(*args, **options)

    async def set_builtin_type_codec(self, *args: Any, **options: Any) -> None:
        self.has_new_codecs = True
        await super().set_builtin_type_codec(*args, **options)


def _leasable(kind: type[asyncpg.Connection]) -> type[asyncpg.Connection]:
    """Derive a kind of connection that can be reset."""
    return type(kind.__name__, (_Leasable, kind), {})
