"""The sandbox of SqliteManager: what its leases execute stays within one transaction."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal, cast

from connectionpools_fastapi import Loan
from connectionpools_fastapi.errors import PoolError, own
from connectionpools_fastapi.manager import ResourceManager

from ._savepoints import control_of_one, first_word, lost
from ._sqlite import END_WITHIN, LOST
from ._sqlite_lent import Cursor, Lent, Session

# The name of a savepoint; without a transaction it begins one, and its release commits.
SAVEPOINT = re.compile(r"\s*SAVEPOINT\s+(\S+)", re.IGNORECASE)
RELEASE = re.compile(r"\s*RELEASE\s+(?:SAVEPOINT\s+)?(\S+)", re.IGNORECASE)
DML = frozenset({"INSERT", "UPDATE", "DELETE", "REPLACE"})
# What a lease's connection has of its own in a sandbox: in the session, setting them would end the transaction.
VIRTUAL = frozenset({"autocommit", "isolation_level"})
BUSY = (
    "a sandbox needs the file for itself, and another connection writes to it: perhaps a sandbox of another pool, or "
    'another process of the tests. Name one pool of a file, as @pytest.mark.pool_sandbox("db"), and give each process '
    "its own file"
)
NEVER_ENDS = True  # of `autocommit`: sqlite3's commit and rollback do nothing


class SandboxLent(Lent):
    """Maps the transactions of a lease to the savepoint; outside of one, each statement is committed by itself."""

    has_begun = False
    committed_rows = 0  # as of its begin

    def __init__(self, session: Session, loan: Loan) -> None:
        super().__init__(session, loan)
        self._outermost: str | None = None
        self._level: str | None = session.isolation_level
        self._autocommit: bool | int | None = getattr(session, "autocommit", None)

    def keep(self) -> None:
        """Commit, as far as the leases see it."""
        self.run(keep, self.session)

    def undo(self) -> None:
        """Roll back, as far as the leases see it."""
        self.run(undo, self.session)

    def begin(self) -> None:
        """Begin a transaction."""
        self.keep()
        self.committed_rows = self.session.changed_rows
        self.has_begun = True

    def begin_for(self, sql: str) -> None:
        """Begin a transaction where sqlite3 or SQLite would begin one for a statement."""
        if self.has_begun:
            return
        if (found := SAVEPOINT.match(sql)) is not None:
            self.begin()
            self._outermost = found[1]
        elif self._autocommit is False or (
            self._level is not None and self._autocommit is not NEVER_ENDS and first_word(sql) in DML
        ):
            self.begin()

    def end_for(self, sql: str) -> None:
        """Commit where a statement has released the savepoint that had begun a transaction."""
        if self._outermost is not None and (found := RELEASE.match(sql)) is not None and found[1] == self._outermost:
            self.end("commit")

    def commit(self) -> None:
        """Commit."""
        if self._autocommit is not NEVER_ENDS:
            self.end("commit")

    def rollback(self) -> None:
        """Roll back."""
        if self._autocommit is not NEVER_ENDS:
            self.end("rollback")

    def end(self, how: Literal["commit", "rollback"]) -> None:
        """End the transaction of the lease."""
        if how == "commit":
            self.keep()
        elif self.has_begun:
            self.undo()
        self.has_begun, self._outermost = False, None

    @property
    def in_transaction(self) -> bool:
        """Whether the lease has a transaction open."""
        self.loan.check()
        return self.has_begun

    def _get_level(self) -> str | None:
        self.loan.check()
        return self._level

    def _set_level(self, level: str | None) -> None:
        self.loan.check()
        if level is None:
            self.commit()
        self._level = level

    isolation_level: Any = property(_get_level, _set_level)  # how sqlite3 begins transactions

    @property
    def autocommit(self) -> Any:
        """How sqlite3 ends transactions, from Python 3.12 on."""
        self.loan.check()
        return self._autocommit

    @autocommit.setter
    def autocommit(self, value: Any) -> None:
        self.loan.check()
        if value is True:
            self.commit()
        self._autocommit = value

    def cursor(self, factory: Any = None) -> Any:
        """Make a cursor."""
        cursor = super().cursor(factory)
        if isinstance(cursor, Cursor):
            cursor.__class__ = _in_sandbox(type(cursor))
        return cursor

    def execute(self, *args: Any) -> Any:
        """Make a cursor, and execute a statement with it."""
        return self.cursor().execute(*args)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> Literal[False]:
        (self.commit if kind is None else self.rollback)()
        return False


@cache
def _in_sandbox(kind: Any) -> Any:
    class InSandbox(kind):  # type: ignore[misc] # a Cursor
        lent: SandboxLent

        def execute(self, sql: str, *args: Any) -> Any:
            control = control_of_one(sql)
            if control is None:
                self.lent.begin_for(sql)
                super().execute(sql, *args)
                self.lent.end_for(sql)
            elif control == "begin":
                self.lent.begin()
            else:
                self.lent.end(control)
            return self

        def executemany(self, sql: str, *args: Any) -> Any:
            self.lent.begin_for(sql)
            return super().executemany(sql, *args)

        def executescript(self, script: str) -> Any:
            self.lent.commit()  # as sqlite3 does
            for statement in _statements(script):
                self.execute(statement)
            return self

    return InSandbox


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for part in script.split(";"):
        statement += part
        if sqlite3.complete_statement(f"{statement};"):
            if statement.strip():
                yield statement
            statement = ""
        else:
            statement += ";"
    if statement.strip("; \t\r\n"):
        yield statement


def begin(session: Session) -> None:
    """Begin the transaction of a sandbox, which waits for its turn to write here and not later."""
    if not session.in_transaction:
        try:
            session.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            kind = error.sqlite_errorcode & 0xFF
            if kind == sqlite3.SQLITE_BUSY:
                raise own(PoolError(BUSY)) from error
            if kind != sqlite3.SQLITE_READONLY:
                raise
            session.execute("BEGIN")
    session.execute("SAVEPOINT pool_lease")


def keep(session: Session) -> None:
    """Commit, as far as the leases see it."""
    session.execute("RELEASE pool_lease")
    session.execute("SAVEPOINT pool_lease")


def undo(session: Session) -> None:
    """Roll back, as far as the leases see it."""
    session.execute("ROLLBACK TO pool_lease")


def end_lease(session: Session, lent: SandboxLent | None) -> bool:
    """Undo what a lease has not committed, and reset what it has set in Python; return whether rows were lost.

    Raises:
        PoolError: If a statement still runs.
    """
    if not session.take(END_WITHIN):
        raise own(PoolError("a statement of the lease still runs, and cannot be interrupted"))
    try:
        is_loss = lent is not None and lent.has_begun and session.total_changes != lent.committed_rows
        session.close_unread()
        (undo if lent is not None and lent.has_begun else keep)(session)
        for name, value in session.attributes:
            if name not in VIRTUAL:
                setattr(session, name, value)
    finally:
        session.lock.release()  # type: ignore[attr-defined,unused-ignore] # a function before Python 3.13
    return is_loss


def resume(session: Session, lent: SandboxLent | None, name: str) -> None:
    """Undo what a lease that was discarded has not committed.

    Raises:
        PoolConfigError: If the transaction is gone.
    """
    try:
        end_lease(session, lent)
    except sqlite3.Error as error:
        raise lost(name) from error


class SqliteSandbox(ResourceManager[sqlite3.Connection]):
    """The hooks of one sandbox."""

    def __init__(
        self,
        manager: ResourceManager[sqlite3.Connection],
        session: Session,
        changes_of: Callable[[Session], frozenset[str]],
    ) -> None:
        self._manager = manager
        self._session = session
        self._changes_of = changes_of
        self._told: frozenset[str] = frozenset()
        self._has_begun = False
        self._lent: SandboxLent | None = None

    def create(self) -> sqlite3.Connection:
        if self._has_begun:
            resume(self._session, self._lent, type(self._manager).__name__)
        else:
            begin(self._session)
            self._has_begun = True
        return self._session

    def lend(self, resource: sqlite3.Connection, loan: Loan) -> sqlite3.Connection:
        session = cast("Session", resource)
        session.loan = loan
        self._lent = SandboxLent(session, loan)
        return self._lent

    def change(self, resource: sqlite3.Connection) -> None:
        session = cast("Session", resource)
        loan, session.loan = session.loan, None
        if end_lease(session, self._lent) and loan is not None and not loan.has_failed:
            loan.warn(LOST)

    def change_and_tell(self, resource: sqlite3.Connection) -> list[str]:
        self.change(resource)
        before, self._told = self._told, self._changes_of(self._session)  # no reset undoes them in a sandbox
        return sorted(self._told - before)

    def refuse_prepare(self) -> str | None:
        return self._manager.refuse_prepare()
