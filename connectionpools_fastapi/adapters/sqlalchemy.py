"""SqlalchemyManager and LeasedSession: SQLAlchemy's connections and sessions; needs the extra `sqlalchemy`."""

import importlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Literal, TypeVar
from weakref import WeakKeyDictionary

from fastapi import Depends

from connectionpools_fastapi.errors import PoolConfigError, PoolError, own
from connectionpools_fastapi.manager import ResourceManager
from connectionpools_fastapi.pool import ConnectionPool
from connectionpools_fastapi.provider import Leased

try:
    from sqlalchemy import NullPool, __version__
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError, InvalidRequestError
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

    if tuple(map(int, __version__.split(".")[:2])) < (2, 0):
        raise ImportError(f"found {__version__}")
except ImportError as _error:
    msg = (
        "connectionpools_fastapi.adapters.sqlalchemy needs SQLAlchemy 2.0.36 or newer: "
        "pip install 'connectionpools-fastapi[sqlalchemy]'"
    )
    raise ImportError(msg) from _error

S = TypeVar("S", bound=AsyncSession)

Address = str | URL
Source = Address | Callable[[], Address | Awaitable[Address]]

# For each driver, who knows its connections, and the name of its dialect.
DRIVERS = {
    "asyncpg": ("AsyncpgManager", "postgresql+asyncpg"),
    "psycopg": ("PsycopgManager", "postgresql+psycopg"),
    "aiosqlite": ("AiosqliteManager", "sqlite+aiosqlite"),
}

# What a URL may say of SQLite; all else is the driver's manager's.
SQLITE_OPTIONS = frozenset({"timeout", "isolation_level", "detect_types", "cached_statements"})


class SqlalchemyManager(ResourceManager[AsyncConnection]):
    """Leases SQLAlchemy's connections, without its pool, and lets no lease see what an earlier one has left behind.

    Write `ConnectionPool(SqlalchemyManager("postgresql+asyncpg://..."), limit=10, name="db")`
    for one of the drivers asyncpg, psycopg and aiosqlite. The driver's own manager
    (`AsyncpgManager`, `PsycopgManager`, `AiosqliteManager`) connects, checks, resets and
    closes below SQLAlchemy; see there for what `reset` brings back, and at what cost. On
    top of that an open transaction is rolled back and execution options, an isolation
    level among them, go back to those of the engine. `connection.info` stays, as SQLAlchemy has it.

    A connection is destroyed instead of being reset if SQLAlchemy has invalidated it, as it
    does if its server has gone or a query was cancelled in the midst.
    """

    def __init__(
        self,
        source: Source | ResourceManager[Any],
        *,
        reset: Literal["session", "transaction"] = "session",
        **options: Any,
    ) -> None:
        """Describe the connections; they are made later.

        Args:
            source: Where to connect to, as SQLAlchemy's URL. A callable, plain or async, is
                asked anew for each connection, as credentials may have been rotated; a plain
                one must not block. Or the driver's manager, with whatever it was told:
                `SqlalchemyManager(PsycopgManager(dsn, init=register))`.
            reset: What a lease may leave behind: "session" nothing, "transaction" all but a
                transaction. Of no use with a manager, which was told.
            **options: For `create_async_engine`, as `echo` or `json_serializer`; `connect_args`
                are the driver's. There is no second pool (NullPool), so that nothing may be said of it.

        Raises:
            PoolConfigError: If `source` or `reset` is none that there is, or another pool is asked for.
        """
        if reset not in {"session", "transaction"}:
            raise PoolConfigError(f"SqlalchemyManager: reset must be 'session' or 'transaction', got {reset!r}")
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
        self._engine: AsyncEngine | None = None
        # The driver's own connections: SQLAlchemy does not give out any more what it has invalidated.
        self._driven: WeakKeyDictionary[AsyncConnection, Any] = WeakKeyDictionary()

    async def create(self) -> AsyncConnection:
        """Connect.

        Returns:
            The new connection.

        Raises:
            PoolConfigError: If the URL or an option is malformed, the driver is missing or none that is known, or
                what is wrong is a mistake in the eyes of the driver's manager.
            Exception: What SQLAlchemy or the driver raises if the server cannot be reached or is not ready.
        """
        engine = await self._ready_engine()
        connection = await engine.connect()
        try:
            driven: Any = (await connection.get_raw_connection()).driver_connection
            await _keep(driven)
        except BaseException:
            await connection.close()
            raise
        self._driven[connection] = driven
        return connection

    async def check(self, resource: AsyncConnection) -> bool | None:
        """See whether a connection works, as its driver's manager does.

        Args:
            resource: The connection.

        Returns:
            Whether it does. To raise says that it does not.
        """
        if resource.closed or resource.invalidated:
            return False
        verdict = self._driver.check(self._driven[resource])
        return await verdict if inspect.isawaitable(verdict) else verdict

    def doubtful(self, resource: AsyncConnection) -> bool:
        """Say whether a connection was closed, as far as it is known here: no round trip.

        Args:
            resource: The connection.

        Returns:
            Whether it has to be checked before it is used.
        """
        return resource.closed or resource.invalidated or self._driver.doubtful(self._driven[resource])

    async def change(self, resource: AsyncConnection) -> None:
        """Reset a connection; the class says what that means.

        Args:
            resource: The connection.

        Raises:
            PoolError: If it cannot be reset.
            Exception: What SQLAlchemy or the driver's manager raises, likewise.
        """
        if resource.closed or resource.invalidated:
            raise own(PoolError("the connection is closed, or its query was cut off"))
        driven = self._driven[resource]
        changed = self._driver.change(driven)
        if inspect.isawaitable(changed):
            await changed
        # That was the end of any transaction. SQLAlchemy has yet to learn it, and need not ask for it again.
        driven.needs_rollback = False
        try:
            await resource.run_sync(_restore)
        finally:
            driven.needs_rollback = True

    async def clean(self, resource: AsyncConnection) -> None:
        """Close a connection, as its driver's manager does.

        Args:
            resource: The connection.
        """
        try:
            cleaned = self._driver.clean(self._driven[resource])
            if inspect.isawaitable(cleaned):
                await cleaned
        finally:
            if not resource.closed:
                await resource.invalidate()  # or it would want to end its transaction
                await resource.close()

    async def _ready_engine(self) -> AsyncEngine:
        """Return the engine, ready to connect to where the source says now."""
        if isinstance(self._source, ResourceManager):
            self._driver = self._source
            dialect = next((name for kind, name in DRIVERS.values() if kind in _names(self._source)), None)
            if dialect is None:
                raise _mistake(f"no driver is known that {type(self._source).__name__} is for; {_known()}")
            url = URL.create(dialect)
        else:
            source: Any = self._source() if callable(self._source) else self._source
            url = _read(await source if inspect.isawaitable(source) else source)
            if url != self._url:
                self._driver = self._make_driver(url)
                self._url = url
        if self._engine is None:
            try:
                self._engine = create_async_engine(
                    url, poolclass=NullPool, async_creator=self._connect, **self._options
                )
            except (ArgumentError, InvalidRequestError, TypeError) as error:
                raise _mistake(f"create_async_engine refuses an option ({_kind(error)})") from None
        return self._engine

    async def _connect(self) -> Any:
        made = self._driver.create()
        return await made if inspect.isawaitable(made) else made

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
                options = {key: value for key, value in options.items() if key in SQLITE_OPTIONS}
                options["init"] = dialect.on_connect()  # also for the connection that a reset may open
            manager: ResourceManager[Any] = getattr(module, DRIVERS[name][0])(
                *arguments, **{**options, **self._connect_args, "reset": self._reset}
            )
        except (ImportError, PoolConfigError) as error:  # our own words
            raise _mistake(str(error)) from None
        except (ArgumentError, TypeError, ValueError) as error:
            raise _mistake(f"what follows the ? of the URL, or connect_args, is refused ({_kind(error)})") from None
        return manager


async def _keep(driven: Any) -> None:
    """Have a driver's connection stay as SQLAlchemy has set it up since it was made."""
    if hasattr(driven, "remember"):
        driven.remember()
        driven.reports_transactions = False  # SQLAlchemy begins one for each first statement
    elif hasattr(driven, "on_session"):  # of SQLite, in its thread
        await driven.on_session(lambda session: session.changes.clear())


def _restore(connection: Any) -> None:
    """Have SQLAlchemy forget all transactions, and give back the engine's execution options."""
    connection.rollback()  # also one whose commit has failed, which counts as none but would be in the way
    dialect, below = connection.dialect, connection.connection.dbapi_connection
    if dialect.driver == "asyncpg":  # whose adapter knows of transactions as well, also such that were begun there
        dialect.do_rollback(below)
    original = connection.engine.get_execution_options()
    changed = {name for name, value in connection.get_execution_options().items() if original.get(name) is not value}
    for name in changed & set(dialect.connection_characteristics):
        dialect.connection_characteristics[name].reset_characteristic(dialect, below)
    if changed:
        connection._execution_options = original


def _read(address: object) -> URL:
    if not isinstance(address, (str, URL)):
        raise _mistake(f"the callable given as source must return a URL, and returned {type(address).__name__}")
    try:
        return make_url(address)
    except (ArgumentError, ValueError):  # their text may hold the password
        text = (
            "the URL cannot be read: write postgresql+asyncpg://user:password@host:5432/database, "
            "with special characters of the password percent-encoded"
        )
    raise _mistake(text)


def _names(manager: ResourceManager[Any]) -> set[str]:
    return {kind.__name__ for kind in type(manager).__mro__}


def _known() -> str:
    return f"write one that begins with {', '.join(f'{name}://' for _, name in DRIVERS.values())}"


def _kind(error: Exception) -> str:
    return type(error).__name__


def _mistake(what: str) -> PoolConfigError:
    return own(PoolConfigError(f"SqlalchemyManager: {what}"))


def LeasedSession(  # noqa: N802 - as Leased
    pool: ConnectionPool[AsyncConnection] | str, make: Callable[..., AsyncSession] | None = None
) -> Any:
    """Declare that an endpoint or dependency needs a session on a leased connection.

    Write `Session = Annotated[AsyncSession, LeasedSession(db)]` once: all of a request that
    declare that share one session. What it has done is committed when the endpoint has
    returned and before the first part of the response is sent: if that fails, the client
    gets an error, and never a success. An exception, HTTPException among them, rolls back;
    an error that is returned as a response commits, since the endpoint has ended well.

    With that the session has ended, and the connection is given back; a stream or a
    background task that uses the session is refused by SQLAlchemy ("permanently closed").
    They lease for themselves: `async with db.lease() as conn, AsyncSession(conn) as session`.

    Args:
        pool: The pool, or its name, which is looked up among the pools that the lifespan opened.
        make: What makes a session, given its `bind` and other options: a subclass of
            AsyncSession, or `async_sessionmaker(...)`. By default an AsyncSession whose objects
            stay as they are after the commit (`expire_on_commit=False`).

    Returns:
        A FastAPI dependency.

    Raises:
        PoolConfigError: If `pool` or `make` is neither of these.
    """
    if make is not None and not callable(make):
        raise PoolConfigError(f"LeasedSession: make must be callable, as async_sessionmaker(); got {make!r}")
    return Depends(_SessionUntilReturn(pool, make), scope="function")


class _SessionUntilReturn:
    """Provides a session; equal to each other one for the same pool and kind of session, as `Leased` is."""

    def __init__(self, pool: ConnectionPool[AsyncConnection] | str, make: Callable[..., AsyncSession] | None) -> None:
        self._key = (pool, make)
        self._make = make
        lease = Annotated[AsyncConnection, Leased(pool, scope="function")]
        # FastAPI finds here that it has to lease first.
        self.__signature__ = inspect.Signature(
            [inspect.Parameter("connection", inspect.Parameter.KEYWORD_ONLY, annotation=lease)]
        )

    async def __call__(self, connection: AsyncConnection) -> AsyncIterator[AsyncSession]:
        options: dict[str, Any] = {
            "bind": connection,
            "join_transaction_mode": "control_fully",  # also where the endpoint has used the connection before
            "close_resets_only": False,
        }
        session = self._make(**options) if self._make else AsyncSession(**options, expire_on_commit=False)
        async with session:
            yield session
            await session.commit()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SessionUntilReturn) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)
