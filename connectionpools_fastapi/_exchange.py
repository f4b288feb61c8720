"""Exchange: a request and its response, as they pass through PoolMiddleware."""

from collections.abc import Awaitable
from types import TracebackType
from typing import Any

from starlette.types import Message, Receive, Send

from ._disconnect import Inbox
from ._owner import current_task
from ._request import NO_LEASES, RequestLeases, Scope
from ._slot import Slot
from .manager import T
from .pool import ConnectionPool

# The messages that begin an answer, and those whose last part ends it.
BEGINNINGS = frozenset({"http.response.start", "websocket.accept", "websocket.close", "websocket.http.response.start"})
PARTS = frozenset(
    {
        "http.response.body",
        "http.response.pathsend",
        "http.response.zerocopysend",
        "websocket.http.response.body",
    }
)


class Exchange(RequestLeases):
    """The leases of a request whose messages it hands on, so that some last until its response ends.

    Each request has one, also those that use no pool: what only few need is made when it is needed.
    """

    __slots__ = ("_inbox", "_receive", "_running", "_send", "_until_response", "begun")

    def __init__(self, receive: Receive, send: Send) -> None:
        self._leases = NO_LEASES  # these two as RequestLeases has it: `super()` takes as long as all of this
        self._again = ()
        self._receive = receive
        self._send = send
        self._inbox: Inbox | None = None
        self._until_response: tuple[ConnectionPool[Any], ...] = ()
        self._running = 0  # endpoints that use them and have not returned
        self.begun: str | None = None  # the message that began the response

    # Both hand on what the server's own return, since a coroutine around it would cost each message.

    def receive(self) -> Awaitable[Message]:
        """Return the application's next message."""
        return self._read().receive()

    def send(self, message: Message) -> Awaitable[None]:
        """Send the application's message, and before the last one of its response give back."""
        kind = message["type"]
        if kind in PARTS:
            # It is not the endpoint's as long as that still runs: a middleware may answer in its place.
            if self._until_response and not self._running and not message.get("more_body"):
                self.end_response()
        elif kind in BEGINNINGS:
            self.begun = kind
        return self._send(message)

    def keep_until_response(self, pool: ConnectionPool[Any], scope: Scope) -> None:
        """Leave just before the last part of the response, on behalf of who has entered."""
        # FastAPI's own stack of what ends with the endpoint; not documented, as old as scopes of dependencies.
        if not self._until_response and (stack := scope.get("fastapi_function_astack")) is not None:
            self._running += 1
            stack.push(self)  # takes half as long as `callback`
        self._until_response += (pool,)

    def end_response(self) -> None:
        """Give back what was only leased until now."""
        pools, self._until_response = self._until_response, ()
        for pool in pools:
            self.leave(pool)

    def close(self) -> None:
        """End all that the request has begun: it is over."""
        if self._inbox is not None:
            self._inbox.close()
        if self._until_response:
            self.end_response()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take note that an endpoint has returned; FastAPI's stack says it."""
        self._running -= 1

    def _owner(self) -> object:
        return self

    def _wait_for(self, pool: ConnectionPool[T]) -> Awaitable[Slot[T]]:
        return self._read().wait_for(pool, current_task())

    def _read(self) -> Inbox:
        if self._inbox is None:
            self._inbox = Inbox(self._receive)
        return self._inbox
