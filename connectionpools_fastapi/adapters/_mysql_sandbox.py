"""The sandboxes of MySQL's managers: what their leases send stays within one transaction."""

import re
from functools import cache
from typing import Any

from connectionpools_fastapi import Loan
from connectionpools_fastapi.errors import PoolError, own
from connectionpools_fastapi.manager import ResourceManager

from ._mysql_connection import AUTOCOMMIT, COM_QUERY
from ._savepoints import control_of, first_word, lost, refusal, statements

# `pool_sandbox` is set at the begin only: if it is gone, the transaction has ended.
BEGIN = ("START TRANSACTION", "SAVEPOINT pool_sandbox", "SAVEPOINT pool_lease")
CHECK_AND_KEEP = ("RELEASE SAVEPOINT pool_sandbox", "SAVEPOINT pool_sandbox", "SAVEPOINT pool_lease")
KEEP = "SAVEPOINT pool_lease"  # MySQL replaces the one of this name
UNDO = "ROLLBACK TO SAVEPOINT pool_lease"
NOTHING = "DO 0"

# The server commits before it executes one of these.
COMMITTING = frozenset(
    """
    ALTER ANALYZE CACHE CHANGE CHECK CREATE DROP FLUSH GRANT IMPORT INSTALL LOAD LOCK OPTIMIZE RENAME REPAIR RESET
    REVOKE START STOP TRUNCATE UNINSTALL UNLOCK
    """.split()  # noqa: SIM905 - so many strings are no easier to read
)
NOT_COMMITTING = re.compile(r"(?:CREATE|DROP)\s+TEMPORARY\s+TABLE\b|LOAD\s+(?:DATA|XML)\b", re.IGNORECASE)
SETS_AUTOCOMMIT = re.compile(
    r"\s*SET\s+(?:SESSION\s+)?(?:@@)?(?:SESSION\.)?AUTOCOMMIT\s*:?=\s*(\w+)\s*;?\s*$", re.IGNORECASE
)
SETS_MORE = re.compile(r"\s*SET\b.*\bautocommit\b", re.IGNORECASE | re.DOTALL)


@cache
def in_sandbox(kind: Any) -> Any:
    """Derive a class of a lease's connection that maps transactions to the savepoint."""

    class InSandbox(kind):  # type: ignore[misc] # a Leasable
        has_begun = has_written = False
        autocommits = True

        async def _execute_command(self, command: int, sql: Any) -> None:
            if command == COM_QUERY:
                text = sql if isinstance(sql, str) else bytes(sql).decode(errors="replace")
                if (instead := self._map(text)) is not None:
                    sql = instead if isinstance(sql, str) else instead.encode()
            await super()._execute_command(command, sql)

        def _map(self, sql: str) -> str | None:
            """Return what to send instead; None to send it as it is."""
            control = control_of(sql)
            if control is not None:
                had_begun, self.has_begun = self.has_begun, control == "begin"
                self.has_written = False
                return UNDO if control == "rollback" and had_begun else NOTHING if control == "rollback" else KEEP
            if (found := SETS_AUTOCOMMIT.match(sql)) is not None:
                self.autocommits = found[1].upper() in {"1", "ON", "TRUE"}
                self.has_begun = self.has_begun and not self.autocommits
                return KEEP if self.autocommits else NOTHING
            _refuse_committing(sql)
            self.has_begun = self.has_begun or not self.autocommits
            return None

        def get_autocommit(self) -> bool:
            """Whether each statement is committed by itself."""
            return self.autocommits

        def get_transaction_status(self) -> bool:
            """Whether the lease has a transaction open."""
            return self.has_begun

    return InSandbox


def _refuse_committing(sql: str) -> None:
    for statement in statements(sql):
        word = first_word(statement)
        if word in COMMITTING and not NOT_COMMITTING.match(statement.strip()):
            raise refusal(word, "MySQL commits before this statement. Make tables before the sandbox begins")
        if word == "SET" and SETS_MORE.match(statement):
            raise refusal("SET autocommit beside other settings", "send them one by one")


class MysqlSandbox(ResourceManager[Any]):
    """The hooks of one sandbox."""

    def __init__(self, manager: ResourceManager[Any], connection: Any) -> None:
        self._manager = manager
        self._connection = connection
        self._has_begun = False

    async def create(self) -> Any:
        if not self._has_begun:
            await self._send(*BEGIN)
            self._has_begun = True
            return self._connection
        try:
            await self._end_lease()
        except Exception as error:
            raise lost(type(self._manager).__name__) from error
        return self._connection

    async def _end_lease(self) -> Loan | None:
        """Undo what a lease has not committed, and see that the transaction goes on; return its loan if it loses."""
        connection = self._connection
        has_begun = connection.lent is None or connection.lent.has_begun
        loan: Loan | None = connection.end_lease()
        await self._send(*([UNDO] if has_begun else []), *CHECK_AND_KEEP)
        return loan if has_begun else None

    async def _send(self, *texts: str) -> None:
        await self._connection.exchange(*[(COM_QUERY, text) for text in texts])

    def lend(self, resource: Any, loan: Loan) -> Any:
        lent: Any = self._manager.lend(resource, loan)
        kind: Any = type(lent)
        lent.__class__ = in_sandbox(kind)
        lent.autocommits = bool(lent.server_status & AUTOCOMMIT)
        return lent

    async def change(self, resource: Any) -> None:
        fault = resource.fault()
        if fault is not None:
            raise own(PoolError(fault))
        loan = await self._end_lease()
        if loan is not None and not loan.has_failed:
            loan.warn(self._connection.lost)

    def refuse_prepare(self) -> str | None:
        return "a sandbox of MySQL does not reset a session between its leases. Test this without a sandbox"
