"""One connection of redis-py that successive leases share; needs the extra `redis`."""

import asyncio
from collections.abc import Iterable
from functools import cache
from typing import Any, cast

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection, Connection
from redis.exceptions import ConnectionError  # noqa: A004 - as redis-py calls it

from connectionpools_fastapi import Loan

from ._redis_session import HARMLESS, NEW, Session

# How long a command waits for another one of the same lease.
TURN_TIMEOUT = 10.0
# Attributes that redis-py reads from a connection at each command.
FACTS = ("db", "host", "port", "retry")


class Wire(AbstractConnection):
    """A connection that reconnects only if nothing is lost with the old one."""

    is_retired: bool = False  # it was cleaned
    may_connect: bool = True
    fileno: int  # of its socket
    session: Session = NEW
    unanswered: int = 0  # commands that the lease has packed, minus replies that it has read

    async def open(self) -> None:
        """Connect, if that is allowed."""
        # The old parser may have handlers of a PubSub.
        self.set_parser(type(cast("Any", self)._parser))  # noqa: SLF001 - redis-py has no other word for it
        await cast("Any", self).connect()
        self.session = NEW

    @property
    def is_lost(self) -> bool:
        """Whether this end knows that the connection is closed."""
        reader: Any = self._reader
        return reader is None or reader.at_eof()

    @property
    def is_quiet(self) -> bool:
        """Whether it is open, as far as this end knows, and no unread data has arrived."""
        reader: Any = self._reader
        return reader is not None and not reader._buffer and not reader.at_eof()  # noqa: SLF001 - asyncio has no other word for it

    async def disconnect(self, *args: Any, **options: Any) -> None:
        self.unanswered = 0
        await super().disconnect(*args, **options)

    def note(self, command: Any) -> None:
        """Note how a command will change the session."""
        self.unanswered += 1
        if command[0] not in HARMLESS:
            self.session = self.session.after(*command[:2])

    async def _connect(self) -> None:
        if not self.may_connect:
            raise ConnectionError("the connection was lost, and what was in its session with it; lease another one")
        await cast("Any", super())._connect()  # noqa: SLF001 - each kind of connection has its own
        self.fileno = cast("Any", self._writer).get_extra_info("socket").fileno()


class LentConnection:
    """The connection object of one lease: it notes changes of the session, and raises after the lease."""

    _wire: Wire
    _loan: Loan

    def __init__(self, facts: dict[str, Any], loan: Loan) -> None:
        self.__dict__.update(facts, _loan=loan)

    def __getattr__(self, name: str) -> Any:
        self._loan.check()
        return getattr(self._wire, name)

    def __setattr__(self, name: str, value: object) -> None:
        self._loan.check()
        setattr(self._wire, name, value)

    async def send_command(self, *args: Any, check_health: bool = True) -> None:
        if self._loan.is_over and args == ("UNWATCH",):  # sent by a closing pipeline, which handles this error
            raise ConnectionError("the lease has ended, and what was watched is not any more")
        await self._wire.send_packed_command(self.pack_command(*args), check_health)

    async def send_packed_command(self, *args: Any, **options: Any) -> None:
        self._loan.check()
        await self._wire.send_packed_command(*args, **options)

    def pack_command(self, *args: Any) -> list[bytes]:
        if self._loan.is_over:
            self._loan.check()
        packed = self._wire.pack_command(*args)
        self._wire.note(args)
        return packed

    def pack_commands(self, commands: Iterable[Any]) -> list[bytes]:
        self._loan.check()
        commands = list(commands)
        packed = self._wire.pack_commands(commands)  # raises before anything is noted or sent
        for command in commands:
            self._wire.note(command)
        return packed

    async def read_response(self, *args: Any, **options: Any) -> Any:
        if self._loan.is_over:
            self._loan.check()
        self._wire.unanswered -= 1
        try:
            return await self._wire.read_response(*args, **options)
        except Exception as error:
            self._loan.note(error)
            raise

    # Closing after the lease is no mistake, but must not touch the connection, which may be leased again.

    async def disconnect(self, *args: Any, **options: Any) -> None:
        if not self._loan.is_over:
            await self._wire.disconnect(*args, **options)

    def deregister_connect_callback(self, callback: Any) -> None:
        if not self._loan.is_over:
            cast("Any", self._wire).deregister_connect_callback(callback)

    def _close(self) -> None:
        if not self._loan.is_over:
            cast("Any", self._wire)._close()  # noqa: SLF001 - stands for it, with its private members


class SingleConnectionPool(ConnectionPool):
    """The pool of a `Redis` client: one connection, for one command, pipeline or PubSub at a time."""

    connection: Any  # the wire, or the object of a lease for it
    loan: Loan | None = None

    def __init__(self, connection_class: type[AbstractConnection] = Connection, **options: Any) -> None:
        super().__init__(connection_class=guarded(cast("Any", connection_class)), **options)
        self.max_connections = 0  # besides this one
        self.wire: Wire = cast("Any", self).make_connection()
        self.connection = self.wire
        self.facts = {"_wire": self.wire} | {name: getattr(self.wire, name, None) for name in FACTS}
        self.fieldsets = getattr(self, "himport_registry", None)  # where newer versions store HIMPORT's fields
        self.lent: SingleConnectionPool | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._holder: asyncio.Task[Any] | None = None

    def lend(self, loan: Loan) -> "SingleConnectionPool":
        """Make the pool of a lease: the same connection, with the original settings."""
        lent = SingleConnectionPool.__new__(SingleConnectionPool)
        own = {"loan": loan, "connection": LentConnection(self.facts, loan), "lent": None, "_turn": asyncio.Lock()}
        vars(lent).update(vars(self), **own)
        lent.connection_kwargs = self.connection_kwargs.copy()
        self.lent = lent
        return lent

    def __del__(self) -> None:
        """Skip redis-py's own, which would count connections at each lease."""

    @property
    def is_held(self) -> bool:
        """Whether the connection is taken, and may still be in use."""
        return self._turn.locked()

    def set_retry(self, retry: Any) -> None:
        self.connection.__dict__["retry"] = retry

    async def get_connection(self, *_: Any, **__: Any) -> Any:
        if self.loan is not None and self.loan.is_over:
            self.loan.check()
        await self._take_turn()
        wire = self.wire
        try:
            # The user of a lost connection restores its own part (a PubSub subscribes again, a pipeline reports that it
            # no longer watches), but cannot restore what earlier commands had put into the session.
            wire.may_connect = not wire.is_retired and wire.session.is_new
            if wire.is_lost:
                await wire.disconnect(nowait=True)
                await wire.open()
        except BaseException:
            await self.release(self.connection)
            raise
        return self.connection

    async def release(self, connection: Any) -> None:
        if not (connection is self.connection and self.is_held):
            return
        if self.wire.is_lost and self.wire.may_connect:
            self.wire.session = NEW
        self._holder = None
        self._turn.release()

    async def disconnect(self, *_: Any, **__: Any) -> None:
        await self.connection.disconnect()

    async def _take_turn(self) -> None:
        task = asyncio.current_task()
        try:
            if self.is_held or self._waiting:
                await self._wait_for_turn(task)
            else:
                await self._turn.acquire()  # succeeds at once, so it needs no time limit
        except TimeoutError:
            raise ConnectionError(
                "the one connection of this lease is in use, by a PubSub, a Monitor, a pipeline that watches or a "
                "command that waits: close it first, or lease another one"
            ) from None
        self._holder = task

    async def _wait_for_turn(self, task: asyncio.Task[Any] | None) -> None:
        if self._holder is task:  # the task would wait for itself
            raise TimeoutError
        self._waiting += 1
        try:
            async with asyncio.timeout(TURN_TIMEOUT):
                await self._turn.acquire()
        finally:
            self._waiting -= 1
        if self.loan is not None and self.loan.is_over:
            self._turn.release()
            self.loan.check()


@cache
def guarded(kind: type) -> type[Wire]:
    return type(kind.__name__, (Wire, kind), {})
