"""Connections of asyncpg that can be lent for one lease, and be reset after it."""

# ruff: noqa: SLF001 - stands for a connection of asyncpg, with its private members

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Collection
from functools import wraps
from typing import Any, NoReturn
from weakref import WeakSet

import asyncpg  # type: ignore[import-untyped] # has no types
from asyncpg.protocol.protocol import BaseProtocol  # type: ignore[import-untyped] # as above

from connectionpools_fastapi import Loan
from connectionpools_fastapi.errors import NotLeased

from ._asyncpg_reset import RESET_AND_PREPARE
from ._postgres import SESSION_STATE

CANCEL_WITHIN = 2.0  # seconds
ROLLBACK = "ROLLBACK;"  # as asyncpg writes it
LEFT_OPEN = (
    "a transaction is left open; it is rolled back, and what it has written is lost. Write `async with "
    "conn.transaction():`, which commits, or commit it before the lease ends"
)


class ReleasedError(asyncpg.InterfaceError, NotLeased):  # type: ignore[misc] # untyped
    """An object of a lease was used after the lease.

    It is also an InterfaceError: asyncpg, and code for `asyncpg.Pool`, expect that of a connection that is back in its
    pool.
    """


class Wire:
    """The protocol of a connection for one lease.

    Everything that asyncpg sends passes through here: from the connection, a transaction, a cursor or a prepared
    statement. Once the lease is over nothing passes. Errors are noted.
    """

    is_copying = False
    _copy_in: Callable[..., Any]
    _copy_out: Callable[..., Any]

    def __init__(self, protocol: Any, loan: Loan) -> None:
        self._protocol = protocol
        self.loan = loan

    def refuse(self) -> NoReturn:
        """Raise the error that the lease is over."""
        try:
            self.loan.check()
        except NotLeased as error:
            raise ReleasedError(str(error)) from None
        raise AssertionError("unreachable")

    def is_connected(self) -> Any:
        if self.loan.is_over:
            self.refuse()
        return self._protocol.is_connected()

    def _get_timeout(self, timeout: Any) -> Any:
        return self._protocol._get_timeout(timeout)

    def get_record_class(self) -> Any:
        return self._protocol.get_record_class()

    def __getattr__(self, name: str) -> Any:
        """Return an attribute whose use sends nothing, or only ends the connection."""
        if self.loan.is_over:
            self.refuse()
        return getattr(self._protocol, name)

    async def copy_out(self, copy_stmt: Any, sink: Callable[[bytes], Awaitable[Any]], timeout: Any) -> Any:
        """Copy, and set `is_copying`: while it waits for the caller's sink, asyncpg does not look busy."""

        async def until_the_end(data: bytes) -> None:
            await sink(data)
            if self.loan.is_over:
                self.refuse()

        self.is_copying = True
        try:
            return await self._copied(self._copy_out(copy_stmt, until_the_end, timeout))
        finally:
            self.is_copying = False

    async def copy_in(self, copy_stmt: Any, reader: Any, data: Any, records: Any, *others: Any) -> Any:
        """Copy until the caller's source ends, or the lease does: then asyncpg makes the server undo it."""
        if reader is not None:
            reader = self._until_the_end(reader)
        if isinstance(records, AsyncIterable):
            records = self._until_the_end(records)
        return await self._copied(self._copy_in(copy_stmt, reader, data, records, *others))

    async def _copied(self, copy: Awaitable[Any]) -> Any:
        try:
            return await copy
        except AttributeError:  # from asyncpg, if the connection was closed meanwhile
            if self.loan.is_over:
                self.refuse()
            raise

    async def _until_the_end(self, source: AsyncIterable[Any]) -> AsyncIterator[Any]:
        async for part in source:
            if self.loan.is_over:
                self.refuse()
            yield part
        if self.loan.is_over:
            self.refuse()


def _passes(name: str) -> Callable[..., Any]:
    method = getattr(BaseProtocol, name)

    async def call(self: Wire, *args: Any, **options: Any) -> Any:
        if self.loan.is_over:
            self.refuse()
        try:
            return await method(self._protocol, *args, **options)
        except Exception as error:
            self.loan.note(error)
            raise

    return call


for _name in ("prepare", "bind_execute", "bind_execute_many", "bind", "execute", "close_portal", "query"):
    setattr(Wire, _name, _passes(_name))
for _name in ("copy_in", "copy_out"):
    setattr(Wire, f"_{_name}", _passes(_name))


class _NotesCodecs:
    """Notes that a lease has set type codecs, which no reset undoes."""

    _checked: Any  # the pool's connection, also in an object that stands for it

    async def set_type_codec(self, *args: Any, **options: Any) -> None:
        self._checked.has_new_codecs = True
        await super().set_type_codec(*args, **options)  # type: ignore[misc] # of asyncpg's class, which follows

    async def reset_type_codec(self, *args: Any, **options: Any) -> None:
        self._checked.has_new_codecs = True
        await super().reset_type_codec(*args, **options)  # type: ignore[misc] # as above

    async def set_builtin_type_codec(self, *args: Any, **options: Any) -> None:
        self._checked.has_new_codecs = True
        await super().set_builtin_type_codec(*args, **options)  # type: ignore[misc] # as above


class Lent(_NotesCodecs):
    """A connection for one lease: the same session of the server, but without leftovers of a lease in the driver.

    It is a full connection of asyncpg. With the one that stays in the pool it shares the protocol, through a `Wire`,
    and the statements that asyncpg has prepared. Its transaction, listeners and loggers are its own, and end with it.
    """

    _listeners: dict[str, set[Any]]
    _protocol: Any
    _top_xact: Any

    def __init__(self, made: "Leasable", loan: Loan) -> None:
        self.__dict__ = made.shared.copy()
        self._made = made
        self._protocol = Wire(made._protocol, loan)
        self._listeners = {}
        made.lent = self

    @property
    def _loan(self) -> Loan:
        loan: Loan = self._protocol.loan
        return loan

    def warn_if_forgotten(self) -> None:
        """Log that the open transaction was forgotten, unless `async with` or an error accounts for it."""
        if not (self._loan.has_failed or (self._top_xact is not None and self._top_xact._managed)):
            self._loan.warn(LEFT_OPEN)

    @property
    def _checked(self) -> Any:
        if self._loan.is_over:
            self._protocol.refuse()
        return self._made

    def __getattr__(self, name: str) -> Any:
        """Return an attribute that a `connection_class` has set in its own `__init__`."""
        return getattr(self._checked, name)

    def __del__(self) -> None:
        """Leave the connection open: it belongs to the pool."""

    @property
    def _pool_release_ctr(self) -> int:
        """Return 0, or raise after the lease: asyncpg's transactions, cursors and statements read this first."""
        if self._loan.is_over:
            self._protocol.refuse()
        return 0

    @property
    def _stmts_to_close(self) -> Any:
        return self._made._stmts_to_close  # also if a prepared statement is collected after the lease

    @_stmts_to_close.setter
    def _stmts_to_close(self, statements: set[Any]) -> None:
        self._made._stmts_to_close = statements

    def _own_callbacks(self) -> None:
        """Copy the callbacks for this lease; until it adds one, it shares those of `init`, which stay."""
        for name in _CALLBACKS:
            setattr(self, name, set(getattr(self, name)))

    async def _reset(self) -> None:
        self._own_callbacks()
        await super()._reset()  # type: ignore[misc] # of asyncpg's class, which follows

    def _abort(self) -> None:
        self._checked._abort()

    def _cleanup(self) -> None:
        self._checked._cleanup()

    def _drop_global_statement_cache(self) -> None:
        self._checked._drop_global_statement_cache()

    def _drop_global_type_cache(self) -> None:
        self._checked._drop_global_type_cache()


def _refuses_late(name: str) -> Callable[..., Any]:
    """Make a method that sends nothing, and so would not notice the end of the lease, check it first."""

    @wraps(getattr(asyncpg.Connection, name))
    def call(self: Lent, *args: Any, **options: Any) -> Any:
        if self._loan.is_over:
            self._protocol.refuse()
        self._own_callbacks()
        return getattr(super(Lent, self), name)(*args, **options)

    return call


_CALLBACKS = ("_log_listeners", "_query_loggers", "_termination_listeners")
for _name in (
    "add_log_listener",
    "add_query_logger",
    "add_termination_listener",
    "get_reset_query",
    "get_server_version",
    "remove_log_listener",
    "remove_query_logger",
    "remove_termination_listener",
):
    setattr(Lent, _name, _refuses_late(_name))

# asyncpg's class has a slot for each of these. Plain attributes of a class before it in the MRO move them into the
# object's dictionary, so that all are set in one step.
_SLOTS = [name for name in asyncpg.Connection.__slots__ if name != "__weakref__"]
for _name in _SLOTS:
    if _name not in vars(Lent):
        setattr(Lent, _name, None)
_OF_LEASE = {"_aborted", "_listeners", "_pool_holder", "_pool_release_ctr", "_protocol", "_proxy", "_top_xact"}
_SHARED = [name for name in _SLOTS if name not in _OF_LEASE | {"_stmts_to_close", *_CALLBACKS}]


class Leasable(_NotesCodecs, asyncpg.Connection):  # type: ignore[misc] # untyped
    """A connection that stays in the pool, and remembers its state before its first lease."""

    _top_xact: Any
    lent_kind: type[Lent]
    lent: Lent | None = None
    siblings: "Collection[Leasable]" = ()
    has_new_codecs = False
    # Whether a write of a lease was refused because its transaction was read only.
    was_refused_write = False
    # Whether it must not be used any more.
    is_outdated = False
    # What resets its session; see `reset_session`.
    reset_script = RESET_AND_PREPARE
    # False for SQLAlchemy: it begins a transaction for each first statement, and its adapter reports writes itself.
    reports_transactions = True

    def remember(self, siblings: "WeakSet[Leasable] | None" = None) -> None:
        if siblings is not None:
            self.siblings = siblings
            siblings.add(self)
        self._remembered = (set(self._query_loggers), set(self._termination_listeners))
        self.shared = {name: getattr(self, name) for name in _SHARED}
        self.shared |= {name: frozenset(getattr(self, name)) for name in _CALLBACKS}
        self.has_new_codecs = False

    @property
    def _checked(self) -> Any:
        return self

    def _clean_tasks(self) -> None:
        # asyncpg would stop telling the server to cancel a query, which would go on there: SQLAlchemy closes each
        # connection whose task is cancelled.
        for cancel in self._cancellations - {asyncio.current_task(self._loop)}:
            self._loop.call_later(CANCEL_WITHIN, cancel.cancel)
        self._cancellations.clear()

    def take_back(self) -> Lent | None:
        """Undo the changes of the lease in the driver; returns the lent object."""
        lent = self.lent
        if lent is not None:
            self.lent = None
        else:  # the connection itself was used
            self._top_xact = None
            self._listeners.clear()
            self._log_listeners.clear()
            for now, before in zip((self._query_loggers, self._termination_listeners), self._remembered, strict=True):
                now.clear()
                now.update(before)
        return lent

    def _unwrap(self) -> Any:
        """Return the connection that callbacks get."""
        return self if self.lent is None else self.lent

    def _process_notification(self, pid: Any, channel: Any, payload: Any) -> None:
        asyncpg.Connection._process_notification(self._unwrap(), pid, channel, payload)

    def _process_log_message(self, fields: Any, last_query: Any) -> None:
        asyncpg.Connection._process_log_message(self._unwrap(), fields, last_query)

    def _call_termination_listeners(self) -> None:
        asyncpg.Connection._call_termination_listeners(self._unwrap())

    def _drop_global_statement_cache(self) -> None:
        for each in self._open_ones():
            each._drop_local_statement_cache()

    def _drop_global_type_cache(self) -> None:
        for each in self._open_ones():
            each._drop_local_type_cache()

    def _open_ones(self) -> list["Leasable"]:
        """Return all open connections of the manager in this loop."""
        others = [each for each in self.siblings if each._loop is self._loop and each is not self]
        return [each for each in [self, *others] if not each.is_closed()]


def leasable(kind: type[asyncpg.Connection]) -> type[Leasable]:
    """Derive a kind of connection that can be lent and reset."""
    lent_kind = type(kind.__name__, (Lent, kind), {})
    return type(kind.__name__, (Leasable, kind), {"lent_kind": lent_kind})


async def state_of(connection: Any) -> dict[str, str]:
    """Return what the session of a connection has that outlasts a transaction."""
    lines = (await answer_of(connection, SESSION_STATE)).splitlines()
    return dict(line.split("\t", 1) for line in lines)


async def answer_of(connection: Any, query: str) -> str:
    """Send a query by COPY, since others need a prepared statement; return a line for each row."""
    told: list[bytes] = []

    async def sink(data: bytes) -> None:
        told.append(data)

    await connection._protocol.copy_out(f"COPY ({query}) TO STDOUT", sink, None)
    return b"".join(told).decode()
