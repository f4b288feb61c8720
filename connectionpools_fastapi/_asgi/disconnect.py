"""DisconnectWatcher: reads what a client sends, and notices when it goes away while its request waits."""

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

import anyio
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from .._core.waiter import Waiter
from .._runtime.current import in_trio
from .._runtime.request_context import REQUEST
from .client_poll import DISCONNECTS, ClientPoll, poll_of_loop, presence


class ClientGone(ClientDisconnect):
    """The client went away while its request waited for a resource."""


class DisconnectWatcher:
    """Stands between a server's `receive` and the application, which gets each message, in order.

    Once a request has waited for a moment, a poll asks the server whether the client is there. Where the
    server is not known, a separate task reads ahead while it waits. The end of
    the wait does not cancel a read under way: the application gets its message. A cancelled
    `receive` may lose a message, as that of Starlette's BaseHTTPMiddleware does.
    """

    __slots__ = (
        *("_ahead", "_arrived", "_has_gone", "_is_answered", "_is_reading_ahead", "_poll", "_readers"),
        *("_receive", "_request_complete", "_served", "_stop", "_task", "_watched", "disconnected"),
    )

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._readers = 0  # how many calls of the server's `receive` are under way
        self._is_reading_ahead = False  # a task does so, or is about to begin
        self._stop: Callable[[], object] | None = None  # cancels that task, while it runs
        self._has_gone: Callable[[], bool] | None = None  # asks the server, while the poll does
        self._poll: ClientPoll  # set with it
        self._arrived: anyio.Event | None = None  # made where the application waits for that task
        self._ahead: list[Message] = []  # one or two
        self._watched: dict[object, Callable[[Exception], None]] = {}  # each waiter, with the function that removes it
        self._served: tuple[Callable[[Exception], None], ...] = ()  # the same for waiters that got a lease
        self._is_answered = False  # whether the response has begun
        self._request_complete = False  # the body is complete, so that only a disconnect can come
        self.disconnected = False  # as far as known

    async def receive(self) -> Message:
        """Return the application's next message."""
        while self._stop is not None and not self._ahead:
            if self._arrived is None:
                self._arrived = anyio.Event()
            await self._arrived.wait()
        return self._ahead.pop(0) if self._ahead else await self._read()

    def check(self) -> None:
        """Raise ClientGone if the client has gone away, as far as known."""
        if self._has_gone is not None and self._has_gone():  # since the last look
            self.note_disconnect()
        if self.disconnected:
            raise ClientGone

    def watch(self, user: object, leave: Callable[[Exception], None], context: contextvars.Context) -> None:
        """Call `leave` when the client goes away, while a user waits or uses a lease; read in `context` meanwhile."""
        self._watched[user] = leave
        if self.disconnected:
            leave(ClientGone())
        elif self._has_gone is None and not self._is_reading_ahead:
            self._begin(context)

    def unwatch_use(self, user: object) -> None:
        """Note that a use has ended."""
        self._watched.pop(user, None)

    def unwatch(self, waiter: Waiter[Any]) -> None:
        """Note that a waiter waits no more; if it got a lease, its pool learns of a client that leaves meanwhile."""
        leave = self._watched.pop(waiter, None)
        if leave is not None and waiter.slot is not None and not self._is_answered:
            self._served += (leave,)

    def note_disconnect(self) -> None:
        """Let all leave: the client has gone away."""
        if self.disconnected:
            return
        self.disconnected = True
        for leave in (*self._watched.values(), *self._served):
            leave(ClientGone())
        self._served = ()

    def begin_response(self) -> None:
        """Note that the response has begun: a client that leaves from now on was served."""
        if self._has_gone is not None:
            if self._has_gone():
                self.note_disconnect()
            self._has_gone = None
            self._poll.discard(self)
        self._is_answered = True
        self._served = ()

    def close(self) -> None:
        """Stop watching: the request is over."""
        if self._has_gone is not None:
            self._poll.discard(self)
        if self._stop is not None:
            self._stop()

    def _begin(self, context: contextvars.Context) -> None:
        self._has_gone = presence(self._receive)
        if self._has_gone is None:
            self._read_on(context)
        else:
            self._poll = poll_of_loop()
            self._poll.add(self, self._has_gone)
            if self._has_gone():
                self.note_disconnect()

    def _read_on(self, context: contextvars.Context) -> None:
        self._is_reading_ahead = True
        context.run(REQUEST.set, None)  # a server that keeps its `receive` must not keep the request alive
        if in_trio():
            import trio  # noqa: PLC0415 - trio is not a dependency

            trio.lowlevel.spawn_system_task(self._read_ahead_in_trio, context=context)
        else:  # stored, since asyncio itself keeps only weak references
            self._task = asyncio.create_task(self._read_ahead(), context=context)

    async def _read_ahead_in_trio(self) -> None:
        with anyio.CancelScope() as scope:
            await self._read_while_watched(scope.cancel)

    async def _read_ahead(self) -> None:
        # Not by a cancel scope: that would cost as much as all else here, for each request that waits for a while.
        await self._read_while_watched(self._task.cancel)

    async def _read_while_watched(self, stop: Callable[[], object]) -> None:
        self._stop = stop
        try:
            # Once the application reads, it sees the disconnect itself.
            # A longer body is not read ahead: that would lift the client's backpressure.
            while self._watched and not self._readers and (self._request_complete or not self._ahead):
                was_complete = self._request_complete
                message = await self._receive()
                self._note(message)
                self._ahead.append(message)
                if self._arrived is not None:
                    self._tell_application()
                if was_complete or not self._request_complete:
                    break
        except Exception:  # noqa: BLE001, S110 - the application gets its own error when it reads
            pass
        finally:
            self._is_reading_ahead = False
            self._stop = None
            self._tell_application()

    def _tell_application(self) -> None:
        arrived, self._arrived = self._arrived, None
        if arrived is not None:
            arrived.set()

    async def _read(self) -> Message:
        self._readers += 1
        try:
            message = await self._receive()
        finally:
            self._readers -= 1
        self._note(message)
        return message

    def _note(self, message: Message) -> None:
        if message["type"] in DISCONNECTS:
            self.note_disconnect()
        self._request_complete = _completes_request(message)


def _completes_request(message: Message) -> bool:
    """Whether only a disconnect can follow, or messages of a WebSocket after it is accepted."""
    return message["type"] == "websocket.connect" or (
        message["type"] == "http.request" and not message.get("more_body")
    )
