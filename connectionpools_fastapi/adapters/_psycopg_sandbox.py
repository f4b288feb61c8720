"""The sandboxes of psycopg's managers: what their leases send stays within one transaction."""

# ruff: noqa: SLF001 - changes how psycopg's connections end their transactions

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from typing import Any

from psycopg import Error
from psycopg.pq import TransactionStatus

from connectionpools_fastapi import Loan
from connectionpools_fastapi.errors import PoolError, own
from connectionpools_fastapi.manager import ResourceManager

from ._postgres import BEGIN_SANDBOX, COMMIT_IN_SANDBOX, LEAVES_STATE, WRITES
from ._psycopg_leases import fault
from ._psycopg_scripts import ROLLBACK_AND_DISCARD_ALL, Steps, ask, state_of
from ._savepoints import KEEP, UNDO, control_of, lost, refusal, statements
from ._session_state import undone

ENDS = (b"COMMIT", b"ROLLBACK")  # compared with what may not be hashable
DISCARD_ALL_BUT_THE_TRANSACTION = ROLLBACK_AND_DISCARD_ALL.decode().replace("ROLLBACK;", "") + ";"


def keep(connection: Any) -> Steps:
    """Commit, as far as the leases see it; the server answers the COMMIT of a failed transaction with ROLLBACK."""
    if connection.pgconn.transaction_status == TransactionStatus.INERROR:
        yield from undo(connection)
        return
    try:
        yield from ask(connection, COMMIT_IN_SANDBOX.encode())
    except Error:  # a deferred constraint fails
        yield from undo(connection)
        raise


def undo(connection: Any) -> Steps:
    """Roll back, as far as the leases see it."""
    yield from ask(connection, UNDO.encode())


def _end(connection: Any, command: bytes, send: Callable[[bytes], Steps]) -> Steps:
    """Commit or roll back within a lease."""
    if not connection._pipeline:
        yield from (keep if command == b"COMMIT" else undo)(connection)
        return
    for statement in statements(COMMIT_IN_SANDBOX if command == b"COMMIT" else UNDO):
        yield from send(statement.encode())  # one by one; the pipeline tells errors at its end


@cache
def _checked(kind: Any) -> Any:
    """Derive a class of cursors that refuse, before they send it, a statement that ends the transaction."""

    class Checked(kind):  # type: ignore[misc] # a cursor of psycopg
        __slots__ = ()

        def _get_prepared(self, query: Any, *args: Any) -> Any:
            sql = query.query.decode(errors="replace")
            if control_of(sql) is not None:
                raise refusal("this statement", "write `conn.transaction()`, `conn.commit()` or `conn.rollback()`")
            if LEAVES_STATE.match(sql) is not None:
                self._conn.leaves_state = True
            if WRITES.match(sql) is not None:
                self._conn.has_written = True
            return super()._get_prepared(query, *args)

    return Checked


def _mapped(kind: Any) -> Any:
    """Derive a class of a lease's connection that maps transactions to the savepoint."""

    class Mapped(kind):  # type: ignore[misc] # a connection of psycopg
        has_begun = has_written = leaves_state = False

        def cursor(self, *args: Any, **options: Any) -> Any:
            cursor = super().cursor(*args, **options)
            kind: Any = type(cursor)
            cursor.__class__ = _checked(kind)
            return cursor

        def _start_query(self) -> Steps:
            self.has_begun = self.has_begun or not self._autocommit
            yield from ()

        def _exec_command(self, command: Any, *args: Any, **options: Any) -> Steps:
            if command not in ENDS:
                return (yield from super()._exec_command(command, *args, **options))
            self.has_begun = self.has_written = False
            yield from _end(self, command, super()._exec_command)
            return None

        def _check_intrans_gen(self, attribute: str) -> Generator[Any, Any, None]:
            if self.has_begun:
                yield from super()._check_intrans_gen(attribute)

        def after(self) -> Steps | None:
            """Return what commits a statement, or undoes it, that was sent outside of a transaction."""
            if self.has_begun or self._pipeline or not self._autocommit:
                return None
            status = self.pgconn.transaction_status
            if status == TransactionStatus.INTRANS:
                return keep(self)
            return undo(self) if status == TransactionStatus.INERROR else None

    return Mapped


@cache
def _async_in_sandbox(kind: Any) -> Any:
    class InSandbox(_mapped(kind)):  # type: ignore[misc] # made above
        has_begun: bool
        has_written: bool

        async def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
            try:
                return await super().wait(gen, *args, **options)
            finally:
                if (steps := self.after()) is not None:
                    await super().wait(steps)

        @asynccontextmanager
        async def transaction(self, *args: Any, **options: Any) -> AsyncIterator[Any]:
            is_outer = not self.has_begun
            self.has_begun = True
            try:
                async with super().transaction(*args, **options) as transaction:
                    yield transaction
                if is_outer:
                    await self.run(keep(self))
            finally:
                self.has_begun = not is_outer
                self.has_written = self.has_written and not is_outer

    return InSandbox


@cache
def _sync_in_sandbox(kind: Any) -> Any:
    class InSandbox(_mapped(kind)):  # type: ignore[misc] # as above
        has_begun: bool
        has_written: bool

        def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
            try:
                return super().wait(gen, *args, **options)
            finally:
                if (steps := self.after()) is not None:
                    super().wait(steps)

        @contextmanager
        def transaction(self, *args: Any, **options: Any) -> Iterator[Any]:
            is_outer = not self.has_begun
            self.has_begun = True
            try:
                with super().transaction(*args, **options) as transaction:
                    yield transaction
                if is_outer:
                    self.run(keep(self))
            finally:
                self.has_begun = not is_outer
                self.has_written = self.has_written and not is_outer

    return InSandbox


class _PsycopgSandbox(ResourceManager[Any]):
    """What both sandboxes do."""

    _in_sandbox: Callable[[Any], Any]

    def __init__(self, manager: ResourceManager[Any], connection: Any, *, resets_session: bool) -> None:
        self._manager = manager
        self._connection = connection
        self._resets_session = resets_session
        self._has_begun = False

    def _create(self) -> Steps:
        connection = self._connection
        if not self._has_begun:
            yield from ask(connection, BEGIN_SANDBOX.encode())
            self._has_begun = True
            return
        try:
            yield from undo(connection)
        except Error as error:
            raise lost(type(self._manager).__name__) from error

    def _change(self, reset: Callable[[], Steps]) -> Steps:
        connection = self._connection
        connection.wire.was_cut_off = False  # its query is over if the next one can be sent
        if why := fault(connection):
            raise own(PoolError(why))
        has_lost = connection.lent is not None and connection.lent.has_begun and connection.lent.has_written
        loan = connection.leases.end(connection)
        if has_lost and connection.pgconn.transaction_status == TransactionStatus.INTRANS and not loan.has_failed:
            loan.warn(connection.lost)
        return reset()

    def _reset(self) -> Steps:
        connection = self._connection
        reset = DISCARD_ALL_BUT_THE_TRANSACTION if self._resets_session else ""
        yield from ask(connection, f"{UNDO}{reset}{KEEP}".encode())
        if self._resets_session:
            connection.leases.forget_prepared(connection)
        else:
            connection.leases.restore_preparing(connection)

    def _telling(self) -> Callable[[], Steps]:
        lent = self._connection.lent
        return self._reset_and_tell if lent is not None and lent.leaves_state else self._reset

    def _reset_and_tell(self) -> Steps:
        yield from undo(self._connection)  # first: what a rollback undoes is no state of the session
        before = yield from state_of(self._connection)
        yield from self._reset()
        return undone(before, (yield from state_of(self._connection)))

    def lend(self, resource: Any, loan: Loan) -> Any:
        lent: Any = self._manager.lend(resource, loan)
        lent.__class__ = self._in_sandbox(type(lent))
        return lent

    def refuse_prepare(self) -> str | None:
        return self._manager.refuse_prepare()


class PsycopgSandbox(_PsycopgSandbox):
    """The hooks of one sandbox of PsycopgManager."""

    _in_sandbox = staticmethod(_async_in_sandbox)

    async def create(self) -> Any:
        await self._connection.run(self._create())
        return self._connection

    async def change(self, resource: Any) -> None:
        await self._run(resource, self._reset)

    async def change_and_tell(self, resource: Any) -> Any:
        return await self._run(resource, self._telling())

    async def _run(self, resource: Any, reset: Callable[[], Steps]) -> Any:
        if resource.tasks.cancelling is not None:
            await resource.tasks.cancelling
        return await resource.run(self._change(reset))

    def prepared(self, resource: Any) -> Awaitable[None]:
        done: Awaitable[None] = resource.commit()
        return done


class SyncPsycopgSandbox(_PsycopgSandbox):
    """The hooks of one sandbox of SyncPsycopgManager."""

    _in_sandbox = staticmethod(_sync_in_sandbox)

    def create(self) -> Any:
        self._connection.run(self._create())
        return self._connection

    def change(self, resource: Any) -> None:
        resource.run(self._change(self._reset))

    def change_and_tell(self, resource: Any) -> Any:
        return resource.run(self._change(self._telling()))

    def prepared(self, resource: Any) -> None:
        resource.commit()
