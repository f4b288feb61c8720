"""One connection of redis-py, which takes note of its session and poses as a pool; needs the extra `redis`."""

import asyncio
from collections.abc import Awaitable, Iterable
from functools import cache
from typing import Any, cast

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection, Connection
from redis.exceptions import ConnectionError, ReadOnlyError  # noqa: A004 - as redis-py calls it

from ._redis_session import HARMLESS, NEW, Session

# How long a command waits for another one of the same lease.
TURN_TIMEOUT = 10.0


class Term:
    """For how long a server takes writes: until it says, on any connection, that it only reads."""

    is_over: bool = False


class Noted(AbstractConnection):
    """A connection that takes note of what its user makes of the session: all commands pass `pack_command`."""

    is_retired: bool = False  # it was cleaned
    may_connect: bool = True
    term: Term  # of the server at the other end
    session: Session = NEW
    unanswered: int = 0  # commands that were packed minus replies that were asked for

    async def open(self) -> None:
        """Connect, where that is allowed."""
        await self.connect()
        self.session = NEW

    # A retry of redis-py's own connects as well, in the midst of a command.
    async def connect(self) -> None:
        await self._unnoted(cast("Any", super()).connect())

    async def connect_check_health(self, *args: Any, **options: Any) -> None:
        await self._unnoted(cast("Any", super()).connect_check_health(*args, **options))

    async def _unnoted(self, connecting: Awaitable[None]) -> None:
        before = self.session
        try:
            await connecting
        finally:
            self.session = before

    @property
    def is_lost(self) -> bool:
        """Whether it is known here that it is closed."""
        return not self.is_connected or cast("Any", self._reader).at_eof()

    @property
    def is_quiet(self) -> bool:
        """Whether it is open, as far as is known here, and nothing has come that nobody has read."""
        return not self.is_lost and not cast("Any", self._reader)._buffer

    @property
    def fileno(self) -> int:
        """The number of its socket."""
        number: int = cast("Any", self._writer).get_extra_info("socket").fileno()
        return number

    def pack_command(self, *args: Any) -> list[bytes]:
        packed: list[bytes] = super().pack_command(*args)
        self.unanswered += 1
        if args[0] not in HARMLESS:
            self.session = self.session.after(*args[:2])
        return packed

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        before = self.session, self.unanswered
        try:
            packed: list[bytes] = super().pack_commands(cast("Any", commands))
        except BaseException:  # nothing of it is sent
            self.session, self.unanswered = before
            raise
        return packed

    async def read_response(self, *args: Any, **options: Any) -> Any:
        self.unanswered -= 1
        try:
            return await super().read_response(*args, **options)
        except ReadOnlyError:
            self.term.is_over = True
            raise

    async def disconnect(self, *args: Any, **options: Any) -> None:
        self.unanswered = 0
        await super().disconnect(*args, **options)

    async def _connect(self) -> None:
        if not self.may_connect:
            raise ConnectionError("the connection was lost, and what was in its session with it; lease another one")
        await cast("Any", super())._connect()  # each kind of connection has its own


class Only(ConnectionPool):
    """What a `Redis` takes for a pool: one connection, for one command, pipeline or PubSub after the other."""

    def __init__(self, connection_class: type[AbstractConnection] = Connection, **options: Any) -> None:
        super().__init__(connection_class=noted(cast("Any", connection_class)), **{**options, "max_connections": 1})
        self.connection: Noted = cast("Any", self).get_available_connection()
        self.retry = self.connection.retry
        self.callbacks: dict[Any, Any] = {}
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._holder: asyncio.Task[Any] | None = None

    @property
    def is_held(self) -> bool:
        """Whether somebody has the connection, and may still use it."""
        return self._turn.locked()

    def has_same_settings(self, client: Redis) -> bool:
        """Whether nobody has called `set_retry` or `set_response_callback`."""
        return self.connection.retry is self.retry and client.response_callbacks == self.callbacks

    async def get_connection(self, *_: Any, **__: Any) -> AbstractConnection:
        await self._take_turn()
        connection = self.connection
        # Whoever has it knows what to do when it is lost (a PubSub subscribes again, a pipeline says that it no longer
        # watches), but nobody knows what others had put into the session before.
        connection.may_connect = not connection.is_retired and connection.session.is_new
        try:
            if connection.is_lost:
                await connection.disconnect(nowait=True)
                await connection.open()
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        if not (connection is self.connection and self.is_held):
            return
        if self.connection.is_lost and self.connection.may_connect:
            self.connection.session = NEW
        self._holder = None
        self._turn.release()

    async def _take_turn(self) -> None:
        task = asyncio.current_task()
        try:
            if self.is_held or self._waiting:
                await self._wait_for_turn(task)
            else:
                await self._turn.acquire()  # at once, so that no time limit is needed
        except TimeoutError:
            raise ConnectionError(
                "the one connection of this lease is in use, by a PubSub, a Monitor, a pipeline that watches or a "
                "command that waits: close it first, or lease another one"
            ) from None
        self._holder = task

    async def _wait_for_turn(self, task: asyncio.Task[Any] | None) -> None:
        if self._holder is task:  # it would wait for itself
            raise TimeoutError
        self._waiting += 1
        try:
            async with asyncio.timeout(TURN_TIMEOUT):
                await self._turn.acquire()
        finally:
            self._waiting -= 1


@cache
def noted(kind: type) -> type[Noted]:
    return type(kind.__name__, (Noted, kind), {})
