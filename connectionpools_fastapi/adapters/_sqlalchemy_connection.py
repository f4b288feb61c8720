"""The connections of SqlalchemyManager, and the objects that stand for one during a lease; needs SQLAlchemy."""

# ruff: noqa: SLF001 - stands for a connection of SQLAlchemy, with its private members

import asyncio
from functools import cache, cached_property
from typing import Any, NoReturn

from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection, AsyncAdapt_asyncpg_dbapi
from sqlalchemy.exc import DBAPIError, ResourceClosedError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.pool.base import _ConnectionFairy
from sqlalchemy.util.concurrency import greenlet_spawn

from connectionpools_fastapi import Loan

from ._postgres import WRITES

# Attributes that the objects of a lease do not copy.
NOT_OF_CONNECTION = frozenset({"_dbapi_connection", "dispatch"})
NOT_OF_ADAPTER = frozenset({"_connection", "_execute_mutex"})

LOST = (
    "it has written within a transaction that was not committed, and that is rolled back: write `await conn.commit()` "
    "at the end, or `async with conn.begin()` around it, or use LeasedSession, which commits"
)


class PooledConnection(AsyncConnection):
    """A connection that the pool keeps: nothing is executed on it, so that SQLAlchemy's state in it stays as new.

    Each lease gets its own objects, down to the driver's: their transactions, options and isolation level end with
    them. Statements that SQLAlchemy has prepared, and `connection.info`, belong to the connection and stay.
    """

    __slots__ = ("_adapter", "_adapter_kind", "_adapter_state", "_fairy", "_lent", "_state", "driven")

    driven: Any  # the driver's connection

    async def open(self) -> None:
        """Connect."""
        self._lent: _ToAsyncpg | None = None
        await self.start()
        try:
            await self.commit()  # ends a transaction that a listener of `engine_connect` has begun
            self._remember()
        except BaseException:
            await self.close()
            raise

    def _remember(self) -> None:
        connection: Any = self.sync_connection
        self._state = {name: value for name, value in vars(connection).items() if name not in NOT_OF_CONNECTION}
        self._fairy = connection.connection
        self.driven = self._fairy.driver_connection
        self._adapter = adapter = self._fairy.dbapi_connection
        kind: Any = type(adapter)
        self._adapter_kind, slots = _lent_kind(kind)
        self._adapter_state = {name: getattr(adapter, name) for name in slots}

    @property
    def is_usable(self) -> bool:
        """Whether no lease has closed, invalidated or detached it; SQLAlchemy invalidates it if a query is cut off."""
        return not self._fairy.is_detached  # each of these detaches the fairy

    def lend(self, driven: Any, loan: Loan) -> AsyncConnection:
        """Make the connection of one lease; `driven` is the object that the driver's manager lends for it."""
        adapter = object.__new__(self._adapter_kind)
        adapter.__dict__.update(self._adapter_state)
        adapter._connection = driven
        adapter._execute_mutex = asyncio.Lock()
        if isinstance(adapter, _ToAsyncpg):
            adapter.own = self._adapter
            adapter.loan = loan
            self._lent = adapter
        connection = object.__new__(LentConnection)
        connection.__dict__.update(self._state)
        connection._dbapi_connection = LentFairy(self._fairy, adapter, loan)
        connection.loan = loan
        return _LentAsyncConnection(self.engine, connection, loan)

    def fail(self) -> None:
        """Note an error of the lease: it fails a transaction of PostgreSQL, so `change` warns of no lost writes."""
        if self._lent is not None:
            self._lent.has_written = False

    def end_lease(self) -> Loan | None:
        """End the lease; return its loan if it has uncommitted writes, as far as known here."""
        lent, self._lent = self._lent, None
        if lent is None or not lent.has_written or lent._transaction is None or lent.loan.has_failed:
            return None
        return lent.loan

    async def restore(self) -> None:
        """Undo what SQLAlchemy has set for a lease on shared objects: in SQLite, an isolation level."""
        finalizers = self._fairy._connection_record.finalize_callback
        if finalizers:  # few leases set such; the drivers may need a task
            await asyncio.create_task(self._run(finalizers))

    async def _run(self, finalizers: Any) -> None:
        while finalizers:
            await greenlet_spawn(finalizers.pop(), self._adapter)


class _LentAsyncConnection(AsyncConnection):
    __slots__ = ("_loan",)

    def __init__(self, engine: Any, connection: Connection, loan: Loan) -> None:
        self._loan = loan
        super().__init__(engine, connection)

    @property
    def _proxied(self) -> Connection:
        if self._loan.is_over:
            self._loan.check()
        return self.sync_connection  # type: ignore[return-value] # it was given one


class LentConnection(Connection):
    """Raises NotLeased after its lease; a rollback does nothing then, since the pool has rolled back."""

    loan: Loan

    @cached_property
    def dispatch(self) -> Any:  # type: ignore[override] # as SQLAlchemy makes it, but only if it is used
        events: Any = Connection.dispatch
        return events._for_instance(self)._join(self.engine.dispatch)

    @property
    def connection(self) -> Any:
        if self.loan.is_over:
            self.loan.check()
        fairy = self._dbapi_connection
        return self._revalidate_connection() if fairy is None else fairy

    def _revalidate_connection(self) -> NoReturn:
        # SQLAlchemy would reconnect, to a session without the settings of this lease.
        raise ResourceClosedError("This connection is closed, or was invalidated; lease another one")

    def _rollback_impl(self) -> None:
        if not self.loan.is_over:
            super()._rollback_impl()

    def _rollback_to_savepoint_impl(self, name: str) -> None:
        if not self.loan.is_over:
            super()._rollback_to_savepoint_impl(name)

    def _safe_close_cursor(self, cursor: Any) -> None:
        if not self.loan.is_over:
            super()._safe_close_cursor(cursor)

    def _handle_dbapi_exception(self, e: BaseException, *args: Any, **options: Any) -> NoReturn:
        if not self.loan.is_over:
            super()._handle_dbapi_exception(e, *args, **options)
        if isinstance(e, Exception):
            self.loan.check()
        raise e


class LentFairy(_ConnectionFairy):
    """Passes calls that end the connection on to its own fairy."""

    __slots__ = ("_loan", "_own")

    def __init__(self, own: _ConnectionFairy, adapter: Any, loan: Loan) -> None:
        # Without SQLAlchemy's __init__, which would end the connection when this object is collected.
        self._own = own
        self._loan = loan
        self._pool = own._pool
        self._echo = own._echo
        self._connection_record = own._connection_record
        self._counter = 1
        self.dbapi_connection = adapter

    @property
    def driver_connection(self) -> Any:  # type: ignore[override] # as in SQLAlchemy's own class
        adapter: Any = self.dbapi_connection
        return adapter and self._pool._dialect.get_driver_connection(adapter)

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:  # noqa: FBT001, FBT002 - as SQLAlchemy's
        self._loan.check()
        if not soft:
            self.dbapi_connection = None  # type: ignore[assignment] # as SQLAlchemy does
        self._own.invalidate(e, soft)

    def detach(self) -> None:
        self._loan.check()
        self._own.detach()
        self.info = self._own.info  # type: ignore[misc] # as SQLAlchemy does
        self._connection_record = None

    def _checkin(self, transaction_was_reset: bool = False) -> None:  # noqa: FBT001, FBT002 - as above
        self._loan.check()
        self.dbapi_connection = None  # type: ignore[assignment] # as above
        self._own._checkin(transaction_was_reset)


class _ToAsyncpg(AsyncAdapt_asyncpg_connection):
    """Makes the connection's own adapter prepare statements, which outlive the lease; executions do not."""

    loan: Loan
    own: Any
    has_written = False  # in this transaction; asyncpg's manager cannot tell

    async def _check_type_cache_invalidation(self, invalidate_timestamp: float) -> None:
        self.loan.check()
        self.has_written = True  # called for each `executemany`
        await self.own._check_type_cache_invalidation(invalidate_timestamp)

    async def _prepare(self, operation: str, invalidate_timestamp: float) -> Any:
        self.loan.check()
        if WRITES.match(operation):
            self.has_written = True
        try:
            statement, attributes = await self.own._prepare(operation, invalidate_timestamp)
        except Exception as error:
            self.loan.note(error)
            raise
        return type(statement)(self._connection, statement._query, statement._state), attributes

    def commit(self) -> None:
        super().commit()  # type: ignore[no-untyped-call] # SQLAlchemy's
        self.has_written = False

    def rollback(self) -> None:
        super().rollback()  # type: ignore[no-untyped-call] # as above
        self.has_written = False


@cache
def _lent_kind(kind: Any) -> tuple[type[Any], list[str]]:
    """Derive an adapter for leases, and name the attributes that it copies from the connection's own.

    SQLAlchemy's class has slots. Plain attributes of a derived class move them into the object's dictionary, so that
    all are set in one step.
    """
    base = _ToAsyncpg if issubclass(kind, AsyncAdapt_asyncpg_connection) else kind
    slots = [name for each in kind.__mro__ for name in vars(each).get("__slots__", ())]
    return type(kind.__name__, (base,), dict.fromkeys(slots)), [name for name in slots if name not in NOT_OF_ADAPTER]


def original(error: BaseException) -> BaseException:
    """Return the driver's own error, which SQLAlchemy and its adapter have wrapped."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        error = error.orig
    if isinstance(error, AsyncAdapt_asyncpg_dbapi.Error) and error.__cause__ is not None:
        error = error.__cause__
    return error
