"""Managers and sessions for SQLAlchemy, sync and async; needs the extra `sqlalchemy`."""

import asyncio
import importlib
from collections.abc import Awaitable, Callable
from typing import Any, cast

from connectionpools_fastapi import Loan, Verdict

from ..errors import PoolConfigError, PoolError, own
from ..manager import ResourceManager, needs_no_task, telling
from ._options import Reset, awaited, check_reset, current, refuse_prepare

try:
    from sqlalchemy import Engine, NullPool, __version__
    from sqlalchemy.engine import URL
    from sqlalchemy.exc import ArgumentError, InvalidRequestError
    from sqlalchemy.ext import asyncio as sqlalchemy_asyncio
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    if tuple(map(int, __version__.split(".")[:2])) < (2, 0):
        raise ImportError(f"found {__version__}")

    from ._sqlalchemy_address import read
    from ._sqlalchemy_connection import LOST, PooledConnection, original
    from ._sqlalchemy_session import LeasedSession
    from ._sqlalchemy_sync import SyncSqlalchemyManager
except ImportError as _error:
    msg = (
        "connectionpools_fastapi.adapters.sqlalchemy needs SQLAlchemy 2.0.36 or newer: "
        "pip install 'connectionpools-fastapi[sqlalchemy]'"
    )
    raise ImportError(msg) from _error

__all__ = ["LeasedSession", "SqlalchemyManager", "SyncSqlalchemyManager"]

Address = str | URL
Source = Address | Callable[[], Address | Awaitable[Address]]

# For each driver, its manager, and the name of its dialect.
DRIVERS = {
    "asyncpg": ("AsyncpgManager", "postgresql+asyncpg"),
    "psycopg": ("PsycopgManager", "postgresql+psycopg"),
    "aiosqlite": ("AiosqliteManager", "sqlite+aiosqlite"),
    "aiomysql": ("AiomysqlManager", "mysql+aiomysql"),
    "asyncmy": ("AsyncmyManager", "mysql+asyncmy"),
}

# Options that SQLAlchemy's dialects add for SQLite, but the driver's manager sets itself.
OF_SQLITE = frozenset({"check_same_thread", "uri"})
# Options of SQLAlchemy's adapter to a driver, among those of the driver.
OF_ADAPTER = frozenset({"prepared_statement_cache_size", "prepared_statement_name_func"})


class SqlalchemyManager(ResourceManager[AsyncConnection]):
    """Leases SQLAlchemy's connections, without its pool, and resets each connection between two leases.

    Write `ConnectionPool(SqlalchemyManager("postgresql+asyncpg://..."), limit=10, name="db")`
    for one of the drivers asyncpg, psycopg, aiosqlite, aiomysql and asyncmy. The driver's own
    manager (`AsyncpgManager`, `PsycopgManager`, `AiosqliteManager`, `AiomysqlManager`,
    `AsyncmyManager`) connects, checks, resets and closes below SQLAlchemy; see there for what
    `reset` resets, and at what cost.

    Each lease gets its own `AsyncConnection`. Its transactions, execution options and isolation
    level end with the lease. Then the connection and everything made from it, down to the driver's
    own objects, raise NotLeased and send nothing. `connection.info` stays, as in SQLAlchemy.

    A connection is destroyed instead of being reset if SQLAlchemy has invalidated it, as it does
    if its server has gone or a running query was cancelled. It does not reconnect within its
    lease.
    """

    def __init__(
        self,
        source: Source | ResourceManager[Any],
        *,
        reset: Reset = "session",
        **options: Any,
    ) -> None:
        """Describe the connections; they are made later.

        Args:
            source: Where to connect to, as SQLAlchemy's URL. A callable, plain or async, is called
                for each connection, since credentials may have been rotated; a plain one must
                not block. Or the driver's manager, with its own options:
                `SqlalchemyManager(PsycopgManager(dsn, init=register))`.
            reset: What to reset after a lease: its whole "session", or only its "transaction".
                Ignored if `source` is a manager, which has its own.
            **options: For `create_async_engine`, as `echo` or `json_serializer`; `connect_args`
                are the driver's. There is no second pool (NullPool), so options of one are refused.

        Raises:
            PoolConfigError: If `source` or `reset` cannot work, or an option asks for another pool.
        """
        check_reset("SqlalchemyManager", reset)
        if isinstance(source, Engine):
            raise PoolConfigError("SqlalchemyManager: source is a sync engine: use SyncSqlalchemyManager(engine)")
        if not isinstance(source, (str, URL, ResourceManager)) and not callable(source):
            raise PoolConfigError(
                "SqlalchemyManager: source must be a URL, a callable that returns one, or the manager of a driver; "
                f"got {type(source).__name__}"
            )
        pools = sorted(name for name in options if name.startswith("pool") or name.endswith("creator"))
        if pools:
            raise PoolConfigError(
                f"SqlalchemyManager: {', '.join(pools)} is for another pool than this one; "
                "pass limit, max_lifetime and so on to ConnectionPool"
            )
        self._source = source
        self._reset = reset
        self._connect_args = options.pop("connect_args", {})
        self._options = options
        self._url: URL | None = None  # what `_driver` was made for
        self._driver: ResourceManager[Any]
        self._of_adapter: dict[str, Any] = {}
        self._engine: AsyncEngine | None = None

    @property
    def engine(self) -> AsyncEngine:
        """The engine, for event listeners and instrumentation: `instrument(engine=manager.engine.sync_engine)`.

        It is made at its first use, or for the first connection. Its own `connect()` does not use the pool.

        Raises:
            PoolConfigError: If the URL or an option of the engine is malformed. Or if the source is a
                callable that was not called yet, so that the dialect is not known: pass the
                driver's manager instead, which takes a callable too.
        """
        if self._engine is None:
            if not isinstance(self._source, (str, URL, ResourceManager)):
                raise _mistake(
                    "engine is known once a connection was made, since the source is a callable; for an engine before "
                    "that, write SqlalchemyManager(AsyncpgManager(callable)), or the like, with the driver's manager"
                )
            self._aim(self._source)
        return self._made_engine()

    async def create(self) -> AsyncConnection:
        """Connect.

        Returns:
            The new connection, for `lend`.

        Raises:
            PoolConfigError: If the URL or an option is malformed, the driver is missing or unknown, or the driver's
                manager raises it.
            Exception: The error of SQLAlchemy or the driver, if the server cannot be reached or is not ready.
        """
        self._aim(self._source if isinstance(self._source, ResourceManager) else await current(self._source))
        connection = PooledConnection(self._made_engine())
        await connection.open()
        try:
            await _keep(connection.driven)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def check(self, resource: AsyncConnection) -> bool | None:
        """Check whether a connection works, by its driver's manager.

        Args:
            resource: The connection.

        Returns:
            Whether it does. An exception means no.
        """
        connection = cast("PooledConnection", resource)
        if not connection.is_usable:
            return False
        verdict: bool | None = await awaited(self._driver.check(connection.driven))
        return verdict

    def doubtful(self, resource: AsyncConnection) -> bool:
        """Whether a connection was closed, as far as this end knows, without a round trip.

        Args:
            resource: The connection.

        Returns:
            Whether it has to be checked before it is used.
        """
        connection = cast("PooledConnection", resource)
        return not connection.is_usable or self._driver.doubtful(connection.driven)

    def lend(self, resource: AsyncConnection, loan: Loan) -> AsyncConnection:
        """Make a connection for one lease, which raises `NotLeased` after it.

        Args:
            resource: The connection.
            loan: The lease.

        Returns:
            What the caller gets.
        """
        connection = cast("PooledConnection", resource)
        return connection.lend(self._driver.lend(connection.driven, loan), loan)

    def broken(self, resource: AsyncConnection, error: Exception) -> Verdict | None:
        """Say what an error means for a connection, by asking its driver's manager about the driver's own error.

        Args:
            resource: The connection.
            error: The error.

        Returns:
            What to do with the connection.
        """
        connection, found = cast("PooledConnection", resource), original(error)
        connection.fail()
        return self._driver.broken(connection.driven, found) if isinstance(found, Exception) else None

    @needs_no_task
    async def change(self, resource: AsyncConnection) -> None:
        """Reset a connection, as the class describes.

        Args:
            resource: The connection.

        Raises:
            PoolError: If it cannot be reset.
            Exception: The error of the driver's manager, with the same meaning.
        """
        change = self._driver.change
        work = self._end_lease(resource, change)
        await (work if getattr(change, "needs_no_task", False) else asyncio.create_task(work))

    async def change_and_tell(self, resource: AsyncConnection) -> list[str]:
        """Do what `change` does, and tell what state the driver's manager had to undo; for the guard of tests.

        Args:
            resource: The connection.

        Returns:
            Names, as "the setting search_path".
        """
        return list(await self._end_lease(resource, telling(self._driver)) or ())

    async def _end_lease(self, resource: AsyncConnection, change: Callable[[Any], Any]) -> Any:
        connection = cast("PooledConnection", resource)
        if not connection.is_usable:
            raise own(PoolError("the connection is closed, or its query was cut off"))
        loan = connection.end_lease()
        result = await awaited(change(connection.driven))
        await connection.restore()
        if loan is not None:
            loan.warn(LOST)
        return result

    async def prepared(self, resource: AsyncConnection) -> None:
        """Commit what a `prepare` has set, which a rollback would undo.

        Args:
            resource: The connection.
        """
        await resource.commit()

    def refuse_prepare(self) -> str | None:
        """Say why a request may not prepare its connection.

        Returns:
            The reason, if a reset does not undo settings: as the driver's manager.
        """
        if isinstance(self._source, ResourceManager):
            return self._source.refuse_prepare()
        if self._url is None:  # there is no driver's manager yet
            return refuse_prepare(resets_session=self._reset == "session")
        return self._driver.refuse_prepare()

    def sandbox(self, resource: AsyncConnection) -> ResourceManager[AsyncConnection]:
        """Make the manager of a sandbox, for `connectionpools_fastapi.testing.sandbox`, by the driver's manager.

        Args:
            resource: The connection.

        Returns:
            Its hooks.
        """
        from ._sqlalchemy_sandbox import SqlalchemySandbox  # noqa: PLC0415 - only tests need it

        driver: Any = self._driver
        return SqlalchemySandbox(self, resource, driver.sandbox(cast("PooledConnection", resource).driven))

    async def clean(self, resource: AsyncConnection) -> None:
        """Close a connection, by its driver's manager.

        Args:
            resource: The connection.
        """
        try:
            await awaited(self._driver.clean(cast("PooledConnection", resource).driven))
        finally:
            if not resource.closed:
                await resource.invalidate()  # else it would try to end its transaction
                await resource.close()

    async def kill(self, resource: AsyncConnection) -> None:
        """Close the driver's connection, whose lease goes on; for the faults of tests.

        Args:
            resource: The connection.
        """
        await awaited(self._driver.clean(cast("PooledConnection", resource).driven))

    def _aim(self, source: object) -> None:
        """Set the driver's manager and the URL from a source."""
        if isinstance(source, ResourceManager):
            dialect = next((name for kind, name in DRIVERS.values() if kind in _names(source)), None)
            if dialect is None:
                raise _mistake(f"no driver is known that {type(source).__name__} is for; {_known()}")
            self._driver = source
            self._url = URL.create(dialect)
        else:
            url = read("SqlalchemyManager", source)
            if url != self._url:
                self._driver = self._make_driver(url)
                self._url = url

    def _made_engine(self) -> AsyncEngine:
        if self._engine is None:
            assert self._url is not None  # noqa: S101 - `_aim` comes first
            try:
                # Looked up now: instrumentation may have replaced it.
                self._engine = sqlalchemy_asyncio.create_async_engine(
                    self._url, poolclass=NullPool, creator=self._connect, **self._options
                )
            except (ArgumentError, InvalidRequestError, TypeError) as error:
                raise _mistake(f"create_async_engine refuses an option ({_kind(error)})") from None
        return self._engine

    def _connect(self) -> Any:
        dbapi: Any = self.engine.dialect.dbapi
        return dbapi.connect(async_creator_fn=self._create_below, **self._of_adapter)

    async def _create_below(self) -> Any:
        return await awaited(self._driver.create())

    def _make_driver(self, url: URL) -> ResourceManager[Any]:
        name = url.drivername.partition("+")[2]
        if name not in DRIVERS or DRIVERS[name][1] != url.drivername:
            raise _mistake(f"no driver is known for such a URL; {_known()}")
        try:
            module = importlib.import_module(f"connectionpools_fastapi.adapters.{name}")
            kind: Any = url.get_dialect()
            dialect = kind(dbapi=kind.import_dbapi())
            arguments, options = dialect.create_connect_args(url)
            if name == "aiosqlite":
                options = {key: value for key, value in options.items() if key not in OF_SQLITE}
                options["init"] = dialect.on_connect()  # also called for the connection that a reset may open
            options = {**options, **self._connect_args, "reset": self._reset}
            options.pop("async_fallback", None)  # an option of SQLAlchemy 2.0 for callers without an event loop
            self._of_adapter = (
                {key: options.pop(key) for key in OF_ADAPTER & options.keys()} if name == "asyncpg" else {}
            )
            manager: ResourceManager[Any] = getattr(module, DRIVERS[name][0])(*arguments, **options)
        except (ImportError, PoolConfigError) as error:  # our own text, without secrets
            raise _mistake(str(error)) from None
        except (ArgumentError, TypeError, ValueError) as error:
            raise _mistake(f"what follows the ? of the URL, or connect_args, is refused ({_kind(error)})") from None
        return manager


async def _keep(driven: Any) -> None:
    """Make a driver's connection keep what SQLAlchemy has set up on it."""
    if hasattr(driven, "remember"):
        driven.remember()
        driven.reports_transactions = False  # SQLAlchemy begins one for each first statement, also for reads
    elif hasattr(driven, "on_session"):  # of SQLite, in its thread
        await driven.on_session(lambda session: session.changes.clear())
    driven.lost = LOST


def _names(manager: ResourceManager[Any]) -> set[str]:
    return {kind.__name__ for kind in type(manager).__mro__}


def _known() -> str:
    return f"write one that begins with {', '.join(f'{name}://' for _, name in DRIVERS.values())}"


def _kind(error: Exception) -> str:
    return type(error).__name__


def _mistake(what: str) -> PoolConfigError:
    return own(PoolConfigError(f"SqlalchemyManager: {what}"))
