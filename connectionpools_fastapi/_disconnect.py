"""Inbox: what the client of a request sends, and whether it is still there while its request waits."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from ._front import REQUEST
from ._loop import _in_trio
from ._slot import Slot
from ._waiters import TaskWaiter
from .lease import DEFAULT
from .manager import T
from .pool import ConnectionPool

DISCONNECTS = frozenset({"http.disconnect", "websocket.disconnect"})


class ClientGone(ClientDisconnect):
    """The client went away while its request waited for a resource."""


class Inbox:
    """Stands between a server's `receive` and the application, which gets each message, in order.

    Only while a request waits, and has done so for a moment, a task of its own reads ahead.
    The end of the waiting does not cut it off: what it reads then goes to the application.
    A `receive` that is cut off may lose a message, as that of Starlette's
    BaseHTTPMiddleware does.
    """

    __slots__ = (
        *("_ahead", "_arrived", "_context", "_is_reading_ahead", "_reader", "_readers", "_receive", "_said_all"),
        *("_task", "_waits", "_watched", "is_gone"),
    )

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._readers = 0  # how many calls of the server's `receive` are on their way
        self._is_reading_ahead = False  # by a task of its own, or just about to
        self._reader: anyio.CancelScope | None = None  # of that task, as long as it runs
        self._ahead: deque[Message] = deque()
        self._watched: dict[object, Callable[[Exception], None]] = {}  # who waits, and what lets it leave
        self._said_all = False  # whether a disconnect must come next: the body is complete
        self._waits = 0  # of the request, watched or not
        self._context: contextvars.Context | None = None  # of one of them; kept no longer, since it knows the request
        self.is_gone = False  # as far as it is known

    async def receive(self) -> Message:
        """Return the application's next message."""
        while self._reader is not None and not self._ahead:
            await self._arrived.wait()
        return self._ahead.popleft() if self._ahead else await self._read()

    async def wait_for(self, pool: ConnectionPool[T], task: object) -> Slot[T]:
        """Wait for a resource as long as the client is there.

        Raises:
            ClientGone: If it goes away, or has.
            PoolError: What acquiring raises.
        """
        if self.is_gone:
            raise ClientGone
        self._context = contextvars.copy_context()
        self._waits += 1
        try:
            slot = await pool._stand_in_line(DEFAULT, task, self)
        finally:
            self._waits -= 1
            if not self._waits:
                self._context = None
        if self.is_gone:  # at the very moment at which it was granted
            pool._give_back(slot)
            raise ClientGone
        return slot

    def watch(self, waiter: TaskWaiter[Any], leave: Callable[[Exception], None]) -> None:
        """Let a waiter leave its queue when the client goes away."""
        if waiter.waits:
            self._watched[waiter] = leave
            if self.is_gone:
                leave(ClientGone())
            elif not self._is_reading_ahead:
                self._is_reading_ahead = True
                self._read_on()

    def unwatch(self, waiter: TaskWaiter[Any]) -> None:
        """Take note that a waiter waits no more."""
        self._watched.pop(waiter, None)

    def close(self) -> None:
        """Read no further: the request is over."""
        if self._reader is not None:
            self._reader.cancel()

    def _read_on(self) -> None:
        context = self._context
        assert context is not None  # noqa: S101 - it waits
        context.run(REQUEST.set, None)  # what a server keeps of its `receive` must not keep the request
        if _in_trio():
            import trio  # noqa: PLC0415 - trio is not a dependency

            trio.lowlevel.spawn_system_task(self._read_ahead, context=context)
        else:  # kept, since asyncio itself only keeps weak references
            self._task = asyncio.create_task(self._read_ahead(), context=context)

    async def _read_ahead(self) -> None:
        self._arrived = anyio.Event()
        self._reader = anyio.CancelScope()
        try:
            with self._reader, suppress(Exception):  # the application gets an error of its own when it asks
                # Whoever reads for the application now sees the disconnect as well.
                # A body that goes on is not piled up: that would take the brakes off the client.
                while self._watched and not self._readers and (not self._ahead or _says_all(self._ahead[-1])):
                    had_said_all = self._said_all
                    self._ahead.append(await self._read())
                    self._arrived.set()
                    self._arrived = anyio.Event()
                    if had_said_all or not self._said_all:
                        break
        finally:
            self._is_reading_ahead = False
            self._reader = None
            self._arrived.set()

    async def _read(self) -> Message:
        self._readers += 1
        try:
            message = await self._receive()
        finally:
            self._readers -= 1
        if message["type"] in DISCONNECTS:
            self.is_gone = True
            for leave in tuple(self._watched.values()):
                leave(ClientGone())
        self._said_all = _says_all(message)
        return message


def _says_all(message: Message) -> bool:
    """Whether only a disconnect can follow, or what a WebSocket sends once it is accepted."""
    return message["type"] == "websocket.connect" or (
        message["type"] == "http.request" and not message.get("more_body")
    )
