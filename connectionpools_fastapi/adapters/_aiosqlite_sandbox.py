"""The sandbox of AiosqliteManager: what its leases execute stays within one transaction."""

# ruff: noqa: SLF001 - stands for a connection of aiosqlite, with its private members

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import aiosqlite

from connectionpools_fastapi import Loan
from connectionpools_fastapi.errors import PoolError, own
from connectionpools_fastapi.manager import ResourceManager

from ._sqlite_lent import Session
from ._sqlite_sandbox import SandboxLent, begin, end_lease, resume


@cache
def _in_sandbox(kind: Any) -> Any:
    """Derive a class of a lease's connection that maps transactions to the savepoint."""

    class InSandbox(kind):  # type: ignore[misc] # an aiosqlite.Connection
        @property
        def in_transaction(self) -> bool:
            """Whether the lease had a transaction open after the last call that has ended."""
            return bool(self._connection.in_transaction)

    return InSandbox


class AiosqliteSandbox(ResourceManager[aiosqlite.Connection]):
    """The hooks of one sandbox."""

    def __init__(
        self,
        manager: ResourceManager[aiosqlite.Connection],
        connection: Any,
        changes_of: Callable[[Session], frozenset[str]],
    ) -> None:
        self._manager = manager
        self._connection = connection
        self._changes_of = changes_of
        self._told: frozenset[str] = frozenset()
        self._has_begun = False
        self._lent: SandboxLent | None = None

    async def create(self) -> aiosqlite.Connection:
        connection = self._connection
        if self._has_begun:
            await connection.on_session(partial(resume, lent=self._lent, name=type(self._manager).__name__))
        else:
            await connection.on_session(begin)
            self._has_begun = True
        made: aiosqlite.Connection = connection
        return made

    def lend(self, resource: aiosqlite.Connection, loan: Loan) -> aiosqlite.Connection:
        lent: Any = self._manager.lend(resource, loan)
        kind: Any = type(lent)
        lent.__class__ = _in_sandbox(kind)
        self._lent = lent._connection = SandboxLent(self._connection.session, loan)
        made: aiosqlite.Connection = lent
        return made

    async def change(self, resource: aiosqlite.Connection) -> None:
        connection: Any = resource
        loan, connection.loan = connection.loan, None
        if connection.is_busy and not await connection.settle():
            raise own(PoolError("a statement of the lease still runs, and cannot be interrupted"))
        is_loss = await connection.on_session(partial(end_lease, lent=self._lent))
        if is_loss and loan is not None and not loan.has_failed:
            loan.warn(connection.lost)

    async def change_and_tell(self, resource: aiosqlite.Connection) -> list[str]:
        await self.change(resource)
        before, self._told = self._told, self._changes_of(self._connection.session)
        return sorted(self._told - before)

    def refuse_prepare(self) -> str | None:
        return self._manager.refuse_prepare()
