"""The sandbox of AsyncpgManager: what its leases send stays within one transaction."""

# ruff: noqa: SLF001 - sends by asyncpg's protocol, as the manager does

from typing import Any

import asyncpg  # type: ignore[import-untyped] # has no types

from connectionpools_fastapi import Loan
from connectionpools_fastapi.errors import PoolError, own
from connectionpools_fastapi.manager import ResourceManager

from ._asyncpg_connection import Wire, state_of
from ._postgres import BEGIN_SANDBOX, COMMIT_IN_SANDBOX, LEAVES_STATE
from ._savepoints import KEEP, UNDO, control_of, lost, refusal
from ._session_state import undone


class SandboxWire(Wire):
    """Maps the transactions of a lease to the savepoint; outside of one, each statement is committed by itself."""

    has_begun = False
    leaves_state = False

    def is_in_transaction(self) -> bool:
        if self.loan.is_over:
            self.refuse()
        return self.has_begun

    async def query(self, query: str, timeout: Any) -> Any:
        control = control_of(query)
        if control is None:
            self.look_at(query)
            return await self._alone(super().query(query, timeout))  # type: ignore[misc] # of the base, which makes it in a loop
        if self.loan.is_over:
            self.refuse()
        self.has_begun = control == "begin"
        if control == "commit":
            await self._keep()
        elif control == "rollback":
            await self._undo()
        return control.upper()

    async def prepare(self, name: Any, query: str, *args: Any, **options: Any) -> Any:
        _refuse_control(query)
        self.look_at(query)
        try:
            return await super().prepare(name, query, *args, **options)  # type: ignore[misc] # of the base, which makes it in a loop
        except Exception:
            await self.undo_alone()
            raise

    async def bind_execute(self, *args: Any, **options: Any) -> Any:
        return await self._alone(super().bind_execute(*args, **options))  # type: ignore[misc] # of the base, which makes it in a loop

    async def bind_execute_many(self, *args: Any, **options: Any) -> Any:
        return await self._alone(super().bind_execute_many(*args, **options))  # type: ignore[misc] # of the base, which makes it in a loop

    async def copy_in(self, *args: Any, **options: Any) -> Any:
        return await self._alone(super().copy_in(*args, **options))

    async def copy_out(self, *args: Any, **options: Any) -> Any:
        return await self._alone(super().copy_out(*args, **options))

    def look_at(self, query: str) -> None:
        """Note whether a statement leaves something in the session."""
        self.leaves_state = self.leaves_state or LEAVES_STATE.match(query) is not None

    async def _alone(self, call: Any) -> Any:
        """Await a call; outside of a transaction, keep what it has done, or undo it if it fails."""
        try:
            result = await call
        except Exception:
            await self.undo_alone()
            raise
        if not self.has_begun:
            await self._keep()
        return result

    async def undo_alone(self) -> None:
        """Undo a statement that has failed outside of a transaction."""
        if not (self.has_begun or self.loan.is_over):
            await self._undo()

    async def _undo(self) -> None:
        await self._protocol.query(UNDO, None)

    async def _keep(self) -> None:
        try:
            await self._protocol.query(COMMIT_IN_SANDBOX, None)
        except asyncpg.InFailedSQLTransactionError:  # the server answers a COMMIT with ROLLBACK
            await self._undo()
        except Exception as error:  # a deferred constraint fails
            await self._undo()
            self.loan.note(error)
            raise


class AsyncpgSandbox(ResourceManager[asyncpg.Connection]):
    """The hooks of one sandbox."""

    def __init__(self, manager: ResourceManager[asyncpg.Connection], connection: Any, reset: str) -> None:
        self._manager = manager
        self._connection = connection
        self._reset = reset
        self._has_begun = False

    async def create(self) -> asyncpg.Connection:
        connection = self._connection
        if not self._has_begun:
            await connection._protocol.query(BEGIN_SANDBOX, None)
            self._has_begun = True
            return connection
        try:
            await connection._protocol.query(UNDO, None)
        except Exception as error:
            raise lost("AsyncpgManager") from error
        return connection

    def lend(self, resource: asyncpg.Connection, loan: Loan) -> asyncpg.Connection:
        lent: Any = self._manager.lend(resource, loan)
        lent._protocol = SandboxWire(self._connection._protocol, loan)
        return lent

    async def change(self, resource: asyncpg.Connection) -> None:
        await self._end_lease(resource, f"{UNDO}{self._reset}{KEEP}")

    async def change_and_tell(self, resource: asyncpg.Connection) -> list[str]:
        lent: Any = self._connection.lent
        if lent is None or not lent._protocol.leaves_state:
            await self.change(resource)
            return []
        await self._end_lease(resource, UNDO)
        before = await state_of(resource)
        await self._end_lease(resource, f"{self._reset}{KEEP}")
        return undone(before, await state_of(resource))

    @staticmethod
    async def _end_lease(connection: Any, script: str) -> None:
        lent = connection.take_back()
        if connection.is_closed():
            raise own(PoolError("the connection is closed"))
        if lent is not None and lent._protocol.has_begun and connection.reports_transactions:
            lent.warn_if_forgotten()
        await connection._protocol.query(script, None)  # waits for a cancelled query

    def refuse_prepare(self) -> str | None:
        return self._manager.refuse_prepare()


def _refuse_control(query: str) -> None:
    if control_of(query) is not None:
        raise refusal("this statement in this way", "write `async with conn.transaction():`")
