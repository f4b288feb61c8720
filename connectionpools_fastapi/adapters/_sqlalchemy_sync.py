"""SyncSqlalchemyManager: SQLAlchemy's connections for threads and `def` endpoints; needs SQLAlchemy."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

from sqlalchemy import Connection, Engine, NullPool, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidRequestError

from connectionpools_fastapi import Loan, Verdict

from ..errors import PoolConfigError, PoolError, own
from ..manager import ResourceManager, telling
from ._options import Reset, check_reset, refuse_prepare
from ._sqlalchemy_address import read
from ._sqlalchemy_drivers import driver_of
from ._sqlalchemy_sync_connection import PooledConnection
from .sqlite import SqliteManager

NAME = "SyncSqlalchemyManager"
Address = str | URL
# What to install for modules that have another name than their package.
PACKAGES = {"MySQLdb": "mysqlclient, or write mysql+pymysql://", "psycopg": "'psycopg[binary]'"}
# Options that SQLAlchemy's dialect adds for SQLite, but SqliteManager sets itself.
OF_SQLITE = frozenset({"check_same_thread", "uri"})
LOST = (
    "it has written within a transaction that was not committed, and that is rolled back: write `conn.commit()` at the "
    "end, or `with conn.begin()` around it, or use LeasedSession, which commits"
)


class SyncSqlalchemyManager(ResourceManager[Connection]):
    """Leases SQLAlchemy's connections to threads and `def` endpoints, without its pool, and resets each one.

    Write `ConnectionPool(SyncSqlalchemyManager("postgresql+psycopg://..."), limit=10, name="db")`.
    Any sync dialect of SQLAlchemy will do. Its hooks are `def`, so the pool belongs to no event loop.

    Each lease gets its own `Connection`. Its transactions, execution options and isolation level
    end with the lease. Then the connection, and sessions and transactions made from it, raise
    `NotLeased` and send nothing.

    By URL, for psycopg and SQLite, the driver's own manager (`SyncPsycopgManager`,
    `SqliteManager`) connects, checks, resets and closes below SQLAlchemy. Then, and by a URL of
    PyMySQL, the same is so for the driver's own objects, a query of a thread that goes on ends
    with its lease, at the server too, and a write that is lost because it was not committed is
    logged. For other drivers, and for an engine of yours, that is not so: do not keep the driver's
    cursor or connection.

    Each `reset` rolls back an open transaction. "session" resets the rest too:

    - By URL, with psycopg or SQLite: as the driver's own manager, in one round trip and without one.
    - PostgreSQL by psycopg2, or by an engine of yours: by DISCARD ALL, in one more round trip.
    - MySQL and MariaDB by PyMySQL: by COM_RESET_CONNECTION, in one more round trip, and one for
      `init_command`. Rows of an SSCursor that were not read cost the connection.
    - Other databases: a function of yours, `reset=function`.

    A connection that SQLAlchemy has invalidated is destroyed; SQLAlchemy does not reconnect within
    a lease.
    """

    def __init__(
        self,
        source: Address | Callable[[], Address] | Engine,
        *,
        reset: Reset | Callable[[Any], object] = "session",
        **options: Any,
    ) -> None:
        """Describe the connections; they are made later.

        Args:
            source: SQLAlchemy's URL, or an engine made with `poolclass=NullPool`. A plain callable
                that returns a URL is called at once, for the dialect, and on a worker thread for
                each connection, since credentials may have been rotated.
            reset: What to reset after a lease: its whole "session", or only its "transaction". Or a
                `def` that takes the driver's connection, is called on a worker thread after the
                rollback, and resets the rest; what it leaves open is rolled back.
            **options: For `create_engine`, as `echo` or `connect_args`. There is no second pool, so
                options of one are refused.

        Raises:
            PoolConfigError: If `source` or `reset` cannot work, the driver is missing, or an option
                asks for another pool.
        """
        if not callable(reset):
            check_reset(NAME, reset)
        self._reset = reset
        self._below: ResourceManager[Any] | None = None  # the manager of the driver
        self._source: Any = source
        self.engine: Engine = self._given(source, options) if isinstance(source, Engine) else self._made(options)
        dialect = self.engine.dialect
        self._driver = driver_of(self.engine)
        is_known = self._below is not None or self._driver.resets_session
        if reset == "session" and not is_known:
            by_url = ", or the URL instead of the engine" if dialect.name == "sqlite" else ""
            raise _mistake(
                f"no reset of a whole session is known for an engine of {dialect.name}+{dialect.driver}: pass "
                "reset='transaction' if no lease changes its session, or reset=function that resets the driver's "
                f"connection{by_url}"
            )

    @staticmethod
    def _given(engine: Engine, options: dict[str, Any]) -> Engine:
        if options:
            raise _mistake(f"{', '.join(sorted(options))} is for create_engine, and source is an engine already")
        if not isinstance(engine.pool, NullPool):
            raise _mistake(
                f"the engine has a pool of its own ({type(engine.pool).__name__}): pass "
                "create_engine(..., poolclass=NullPool), or its URL"
            )
        return engine

    def _made(self, options: dict[str, Any]) -> Engine:
        self._check_source(options)
        url = self._address()
        try:
            if url.get_dialect().is_async:
                raise _mistake("the driver of the URL is async: use SqlalchemyManager, or a sync driver")
            make = {("sqlite", "pysqlite"): self._sqlite_below, ("postgresql", "psycopg"): self._psycopg_below}.get(
                (url.get_backend_name(), url.get_driver_name())
            )
            connect_args = options.pop("connect_args", {})
            if make is not None:
                self._make_below = partial(make, connect_args=connect_args)
                self._below, self._url = self._make_below(url), url
                return create_engine(url, poolclass=NullPool, creator=self._create_below, **options)
            engine = create_engine(url, poolclass=NullPool, connect_args=connect_args, **options)
            if engine.dialect.driver == "pymysql":
                from ._pymysql_connection import Connection as PymysqlConnection  # noqa: PLC0415 - where it is there

                engine.dialect.connect = PymysqlConnection  # type: ignore[method-assign]
        except PoolConfigError:  # a ValueError, but our own text
            raise
        except ImportError as error:
            raise _mistake(f"the driver is missing: pip install {PACKAGES.get(error.name or '', error.name)}") from None
        except (ArgumentError, InvalidRequestError, TypeError, ValueError) as error:  # may contain the password
            raise _mistake(f"the URL or an option is refused ({type(error).__name__})") from None
        if callable(self._source):

            @event.listens_for(engine, "do_connect")
            def aim(dialect: Any, _record: object, arguments: list[Any], named: dict[str, Any]) -> None:
                arguments[:], found = dialect.create_connect_args(self._address())
                named.update({**found, **connect_args})

        return engine

    def _check_source(self, options: dict[str, Any]) -> None:
        pools = sorted(name for name in options if name.startswith("pool") or name == "creator")
        if pools:
            raise _mistake(
                f"{', '.join(pools)} is for another pool than this one; pass limit, max_lifetime and so on to "
                "ConnectionPool"
            )
        if inspect.iscoroutinefunction(self._source):
            raise _mistake("source must not be async: use SqlalchemyManager, or write it with def")
        if not isinstance(self._source, (str, URL)) and not callable(self._source):
            raise _mistake(
                f"source must be a URL, a callable that returns one, or an Engine; got {type(self._source).__name__}"
            )

    def _address(self) -> URL:
        """Return where to connect to now."""
        return read(NAME, self._source() if callable(self._source) else self._source)

    def _create_below(self) -> Any:
        """Connect by the manager of the driver: a new one if the address has changed."""
        if callable(self._source) and (url := self._address()) != self._url:
            self._below, self._url = self._make_below(url), url
        assert self._below is not None  # noqa: S101 - else SQLAlchemy connects
        return self._below.create()

    @property
    def _reset_below(self) -> Reset:
        return "session" if self._reset == "session" else "transaction"

    def _sqlite_below(self, url: URL, connect_args: dict[str, Any]) -> ResourceManager[Any]:
        dialect = _dialect(url)
        (location, *_), found = dialect.create_connect_args(url)
        options = {key: value for key, value in {**found, **connect_args}.items() if key not in OF_SQLITE}
        return SqliteManager(location, reset=self._reset_below, init=dialect.on_connect(), **options)

    def _psycopg_below(self, url: URL, connect_args: dict[str, Any]) -> ResourceManager[Any]:
        arguments, found = _dialect(url).create_connect_args(url)
        from ._psycopg_sync import SyncPsycopgManager  # noqa: PLC0415 - where psycopg is there

        return SyncPsycopgManager(*arguments, reset=self._reset_below, **{**found, **connect_args})

    def create(self) -> Connection:
        """Connect.

        Returns:
            The new connection, for `lend`.

        Raises:
            PoolConfigError: If the address is malformed, or the server refuses user or password or has no such
                database, or no TLS though it was asked for.
            Exception: The error of SQLAlchemy, if the server cannot be reached or is not ready.
        """
        try:
            connection = PooledConnection(self.engine)
        except DBAPIError as error:
            found = None if error.orig is None else self._driver.refusal(error.orig)
            if found is None:
                raise
            raise _mistake(found) from None  # its text names user and host
        connection.remember()
        if self._below is not None:
            _keep(connection.driven)
            return connection
        try:
            connection.made_with = self._driver.remember(connection.driven, resets=self._reset == "session")
        except BaseException:
            connection.close()
            raise
        return connection

    def check(self, resource: Connection) -> bool:
        """Check whether a connection works.

        Args:
            resource: The connection.

        Returns:
            Whether it does. An exception means no.
        """
        connection = cast("PooledConnection", resource)
        if not connection.is_usable:
            return False
        if self._below is not None:
            return cast("bool", self._below.check(connection.driven))
        works = self.engine.dialect.do_ping(connection.driven)
        connection.driven.rollback()
        return works

    def doubtful(self, resource: Connection) -> bool:
        """Whether a connection was closed, as far as this end knows, without a round trip.

        Args:
            resource: The connection.

        Returns:
            Whether it has to be checked before it is used.
        """
        connection = cast("PooledConnection", resource)
        if not connection.is_usable:
            return True
        driven = connection.driven
        return self._driver.is_doubtful(driven) if self._below is None else self._below.doubtful(driven)

    def lend(self, resource: Connection, loan: Loan) -> Connection:
        """Make a connection for one lease, which raises `NotLeased` after it.

        Args:
            resource: The connection.
            loan: The lease.

        Returns:
            What the caller gets.
        """
        connection = cast("PooledConnection", resource)
        driven = connection.driven
        return connection.lend((self._below or self._driver).lend(driven, loan), loan)

    def broken(self, resource: Connection, error: Exception) -> Verdict | None:
        """Say what an error means for a connection.

        Args:
            resource: The connection.
            error: The error.

        Returns:
            What the manager of the driver says, if there is one. Else "discard" if SQLAlchemy's dialect takes
            it for a lost connection, and what the server's code means for PostgreSQL and MySQL.
        """
        connection = cast("PooledConnection", resource)
        found = error.orig if isinstance(error, DBAPIError) else error
        if not isinstance(found, Exception):
            return None
        if self._below is not None:
            return self._below.broken(connection.driven, found)
        return self._driver.verdict(found, connection.driven)

    def change(self, resource: Connection) -> None:
        """Reset a connection, as the class describes.

        Args:
            resource: The connection.

        Raises:
            PoolError: If it cannot be reset.
            Exception: The error of the driver or of your function, with the same meaning.
        """
        self._end_lease(resource, None if self._below is None else self._below.change)

    def change_and_tell(self, resource: Connection) -> list[str]:
        """Do what `change` does, and tell what state the driver's manager had to undo; for the guard of tests.

        Args:
            resource: The connection.

        Returns:
            Names, as "the setting search_path". None for a driver without a manager of its own.
        """
        return list(self._end_lease(resource, None if self._below is None else telling(self._below)) or ())

    def _end_lease(self, resource: Connection, change: Callable[[Any], Any] | None) -> Any:
        connection = cast("PooledConnection", resource)
        if not connection.is_usable:
            raise own(PoolError("the connection is closed or was invalidated"))
        driven = connection.driven
        if change is None and (fault := self._driver.fault(driven)) is not None:
            raise own(PoolError(fault))
        connection.end_lease()
        told = None
        if change is not None:
            told = change(driven)
        else:
            loan = self._driver.end_lease(driven)
            if loan is not None and not loan.has_failed:
                loan.warn(LOST)
            driven.rollback()
        connection.restore()
        if callable(self._reset):
            self._reset(driven)
            driven.rollback()
        elif self._reset == "session" and self._below is None:
            self._driver.reset(driven, connection.made_with)
        return told

    def prepared(self, resource: Connection) -> None:
        """Commit what a `prepare` has set, which a rollback would undo.

        Args:
            resource: The connection.
        """
        resource.commit()

    def refuse_prepare(self) -> str | None:
        """Say why a request may not prepare its connection.

        Returns:
            The reason, if a reset does not undo settings: with `reset="transaction"`, and behind a pooler in
            transaction mode.
        """
        shares = getattr(self._below or self._driver, "shares_sessions", False)
        return refuse_prepare(resets_session=self._reset != "transaction", shares_sessions=shares)

    def sandbox(self, resource: Connection) -> ResourceManager[Connection]:
        """Make the manager of a sandbox, for `connectionpools_fastapi.testing.sandbox`, by the driver's manager.

        Args:
            resource: The connection.

        Returns:
            Its hooks.

        Raises:
            PoolConfigError: If there is none: for an engine of yours, and drivers other than psycopg and SQLite's.
        """
        from ._sqlalchemy_sandbox import SyncSqlalchemySandbox  # noqa: PLC0415 - only tests need it

        if self._below is None:
            raise _mistake("a sandbox needs the URL of a database, by psycopg or of SQLite, instead of an engine")
        below: Any = self._below
        return SyncSqlalchemySandbox(self, resource, below.sandbox(cast("PooledConnection", resource).driven))

    def clean(self, resource: Connection) -> None:
        """Close a connection.

        Args:
            resource: The connection.
        """
        connection = cast("PooledConnection", resource)
        try:
            if self._below is not None:
                self._below.clean(connection.driven)
            else:
                self._driver.abandon(connection.driven)
        finally:
            if not connection.closed:
                connection.invalidate()  # else it would try to end its transaction
                connection.close()
            with suppress(Exception):  # it is closed already, unless a lease has detached it
                connection.driven.close()

    def kill(self, resource: Connection) -> None:
        """Close the driver's connection, whose lease goes on; for the faults of tests.

        Args:
            resource: The connection.
        """
        driven = cast("PooledConnection", resource).driven
        (driven.close if self._below is None else partial(self._below.clean, driven))()


def _keep(driven: Any) -> None:
    """Make a driver's connection keep what SQLAlchemy has set up on it."""
    if hasattr(driven, "remember"):
        driven.remember()
        driven.lost = LOST
    else:
        driven.changes.clear()


def _dialect(url: URL) -> Any:
    kind: Any = url.get_dialect()
    return kind(dbapi=kind.import_dbapi())


def _mistake(what: str) -> PoolConfigError:
    return own(PoolConfigError(f"{NAME}: {what}"))
