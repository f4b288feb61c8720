"""Exchange: a request and its response, as they pass through PoolMiddleware."""

import gc
from collections.abc import Awaitable, Callable
from contextvars import Context, Token
from types import TracebackType
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Send

from .._core.slot import T
from .._core.waiter import Waiter
from ..errors import only
from ..lease import Lease
from ..pool import ConnectionPool
from .disconnect import DisconnectWatcher
from .pools import Scope
from .request import NO_LEASES, RequestLeases, route_name

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
    """The leases of a request. It passes the messages on, so that leases can last until the response ends.

    Each request has one, even if it uses no pool, so the parts that few requests need are made late.
    """

    __slots__ = (
        *("_has_ended", "_name", "_receive", "_running", "_scope", "_send", "_until_response", "_watcher"),
        *("begun", "token"),
    )

    token: Token[Any]  # of its context variable; set by the middleware

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._leases = NO_LEASES  # these two as in RequestLeases: `super()` would double the cost
        self._again = ()
        self._scope = scope  # it drops this exchange when the request is over, which breaks the cycle
        self._receive = receive
        self._send = send
        self._watcher: DisconnectWatcher | None = None
        self._until_response: tuple[ConnectionPool[Any], ...] = ()
        self._has_ended = False  # while it holds leases: whether the last part of the response was sent
        self._running = 0  # how many endpoints use the leases and have not returned
        self.begun: str | None = None  # the message that began the response
        self._name: str | None = None  # of its route, once that is known and asked for

    def __str__(self) -> str:
        """Name the route, for reports of held leases."""
        name = self._name
        if name is None:
            name = route_name(self._scope)
            if "route" in self._scope:
                self._name = name
        return name

    # Both return the server's own awaitable: a coroutine around it would cost time for each message.

    def receive(self) -> Awaitable[Message]:
        """Return the application's next message."""
        return self._read().receive()

    def send(self, message: Message) -> Awaitable[None]:
        """Send the application's message; give back before the last part of its response."""
        kind = message["type"]
        if kind in PARTS:
            if self._leases:
                if message.get("more_body"):
                    self._note_response()
                else:
                    self._has_ended = True
                    # While the endpoint runs, this may be a middleware's response: then the lease goes on.
                    if self._until_response and not self._running:
                        self.end_response()
        elif kind in BEGINNINGS:
            self.begun = kind
            if self._watcher is not None:
                self._watcher.begin_response()
        elif kind == "websocket.send":
            self._note_response()
        return self._send(message)

    def is_answered(self) -> bool:
        """Whether its response has begun."""
        return self.begun is not None

    def get_context(self) -> Context | None:
        """Return the context in which it began, by a slow look-up, as few requests need it; see `Task.get_context`."""
        return next((found for found in gc.get_referents(self.token) if isinstance(found, Context)), None)

    def keep_until_response(self, pool: ConnectionPool[Any], scope: Scope) -> None:
        """Make the last user leave only just before the last part of the response."""
        # FastAPI's stack of exits that run with the endpoint's end; undocumented, as old as scopes of dependencies.
        if not self._until_response and (stack := scope.get("fastapi_function_astack")) is not None:
            self._running += 1
            stack.push(self)  # takes half as long as `callback`
        self._until_response += (pool,)

    def end_response(self, end: Callable[[Lease[Any]], None] = Lease.release_nowait) -> None:
        """Give back the leases that last until the response."""
        pools, self._until_response = self._until_response, ()
        for pool in pools:
            self.leave(pool, end)

    def cut_off(self) -> None:
        """Give them back after the endpoint was cancelled: its last query may not have ended."""
        self.end_response(Lease.release_cut_off)

    # --- the client, which waiters and endpoints watch ---

    def check(self) -> None:
        """Raise ClientGone if the client has gone away, as far as known."""
        if self._watcher is not None:
            self._watcher.check()

    def watch(self, user: object, leave: Callable[[Exception], None]) -> None:
        """Call `leave` when the client goes away, unless the user is unwatched first."""
        context = self.get_context()  # the server's `receive` may rely on it
        assert context is not None  # noqa: S101 - the request runs
        self._read().watch(user, leave, context.copy())

    def unwatch(self, waiter: Waiter[Any]) -> None:
        """Note that a waiter waits no more."""
        if self._watcher is not None:
            self._watcher.unwatch(waiter)

    def unwatch_use(self, user: object) -> None:
        """Note that a use has ended."""
        if self._watcher is not None:
            self._watcher.unwatch_use(user)

    def was_left(self, error: BaseException | None) -> bool:
        """Whether the client has gone away during the response."""
        if self.begun != "http.response.start" or self._has_ended:
            return False
        if error is None:  # older servers raise nothing: the task that sends was cancelled
            return self._watcher is not None and self._watcher.disconnected
        return only(ClientDisconnect, error) is not None or only(OSError, error) is not None

    def close(self) -> None:
        """End everything that the request has begun; a response that has not ended was cut off."""
        if self._watcher is not None:
            self._watcher.close()
        if self._until_response:
            self.cut_off()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Note that an endpoint has returned or failed; FastAPI's stack calls this."""
        self._running -= 1
        if error is not None:
            self.judge(error)

    def _note_response(self) -> None:
        for lease in self._leases.values():
            lease.note_response()

    def _owner(self) -> object:
        return self

    def _wait_for(self, lease: Lease[T]) -> Awaitable[T]:
        self.check()
        return lease.enter(owner=self, client=self)

    def _read(self) -> DisconnectWatcher:
        if self._watcher is None:
            self._watcher = DisconnectWatcher(self._receive)
            if self.begun is not None:
                self._watcher.begin_response()
        return self._watcher
