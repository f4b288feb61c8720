"""The connections of SyncSqlalchemyManager, and the objects that stand for one during a lease; needs SQLAlchemy."""

# ruff: noqa: SLF001 - stands for a connection of SQLAlchemy, with its private members

from typing import Any, NoReturn

from sqlalchemy import Connection

from connectionpools_fastapi import Loan

from ..errors import NotLeased
from ._sqlalchemy_connection import NOT_OF_CONNECTION, LentConnection, LentFairy


class PooledConnection(Connection):
    """A connection that the pool keeps: nothing is executed on it, so that SQLAlchemy's state in it stays as new."""

    driven: Any  # the driver's connection
    made_with: Any = None  # what the driver's reset has to know
    _fairy: Any
    _lent: "_LentFairy | None" = None
    _state: dict[str, Any]

    def remember(self) -> None:
        """Make each lease begin with the present state."""
        try:
            self.commit()  # ends a transaction that a listener of `engine_connect` has begun
        except BaseException:
            self.close()
            raise
        state = {name: value for name, value in vars(self).items() if name not in NOT_OF_CONNECTION}
        self._fairy = self.connection
        self.driven = self._fairy.dbapi_connection
        self._state = state

    @property
    def is_usable(self) -> bool:
        """Whether no lease has closed, invalidated or detached it."""
        return not self._fairy.is_detached

    def lend(self, driven: Any, loan: Loan) -> Connection:
        """Make the connection of one lease; `driven` is what it executes on."""
        connection = object.__new__(_LentConnection)
        connection.__dict__.update(self._state)
        connection._dbapi_connection = self._lent = _LentFairy(self._fairy, driven, loan)
        connection.loan = loan
        return connection

    def end_lease(self) -> None:
        """Close what would still ask the server."""
        if self._lent is not None:
            self._lent.close_cursors()
            self._lent = None

    def restore(self) -> None:
        """Undo what SQLAlchemy has set on the driver's connection: an isolation level."""
        finalizers = self._fairy._connection_record.finalize_callback
        while finalizers:
            finalizers.pop()(self.driven)


class _LentFairy(LentFairy):
    """Makes cursors during its lease only, and keeps those of the server, which a rollback drops."""

    __slots__ = ("_of_server",)

    def __init__(self, own: Any, driven: Any, loan: Loan) -> None:
        super().__init__(own, driven, loan)
        self._of_server: list[Any] = []

    def cursor(self, *args: Any, **options: Any) -> Any:
        self._loan.check()
        cursor = super().cursor(*args, **options)
        if args or options:  # a name, or a class of the driver
            self._of_server.append(cursor)
        return cursor

    def close_cursors(self) -> None:
        for cursor in self._of_server:
            try:
                cursor.close()
            except NotLeased:
                getattr(cursor, "_close", int)()  # of psycopg: the server closes it with the transaction
            except Exception:  # noqa: BLE001, S110 - the transaction has failed
                pass


class _LentConnection(LentConnection):
    def _handle_dbapi_exception(self, e: BaseException, *args: Any, **options: Any) -> NoReturn:
        if isinstance(e, Exception) and not self.loan.is_over:
            self.loan.note(e)
        super()._handle_dbapi_exception(e, *args, **options)
