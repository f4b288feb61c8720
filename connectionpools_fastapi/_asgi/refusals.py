"""Refusals: the answer to a client and the log line if a request gets no resource."""

import logging
import traceback
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from .._acceleration import is_own
from .._runtime.log import facts
from .._runtime.storm import Storm
from ..errors import NotLeased, Overloaded, PoolConfigError, PoolError, WouldDeadlock, WrongEventLoop, only
from .disconnect import ClientGone
from .exchange import Exchange
from .request import Route
from .responses import send_unavailable

# Mistakes of the application, not a lack of resources.
MISTAKES = (PoolConfigError, NotLeased, WouldDeadlock, WrongEventLoop)

TRY_AGAIN_LATER: Message = {"type": "websocket.close", "code": 1013, "reason": "Try again later"}

# As nginx counts them; no client ever sees it.
CLIENT_CLOSED_REQUEST = 499

# Mistakes are told apart by their place; beyond this many places they count as one.
MOST_PLACES = 100


class Refusals:
    """Answers in place of the application to errors of pools, and logs that."""

    def __init__(self) -> None:
        """Begin with a calm log."""
        self._storm = Storm("requests without a resource", extra=facts("request_refused", None))
        self._mistakes: dict[str, Storm] = {}

    async def answer(self, error: Exception, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer if the application raised an error of a pool and no response has begun."""
        if only(ClientGone, error) is not None:
            exchange.end_response()
            if exchange.begun is None:
                await _answer_gone_client(scope, receive, send)
            return True
        pool_error = only(PoolError, error)
        if pool_error is None or exchange.begun not in (None, "websocket.accept"):
            return False
        exchange.end_response()
        if scope["type"] == "http":
            self._log(pool_error, scope, "answered with 503")
            await send_unavailable(pool_error, send)
        elif exchange.begun is None and "websocket.http.response" in scope.get("extensions", {}):
            self._log(pool_error, scope, "denied with 503")
            await send_unavailable(pool_error, send, "websocket.http.response")
        else:
            self._log(pool_error, scope, "closed with 1013")
            await send(TRY_AGAIN_LATER)
        return True

    def end(self) -> None:
        """Log the refusals that were only counted: the application ends."""
        for storm in (self._storm, *self._mistakes.values()):
            storm.end()

    def _log(self, error: PoolError, scope: Scope, answer: str) -> None:
        if isinstance(error, Overloaded):  # the pool logs when that begins and ends, with counts
            return
        route, kind = str(Route(scope)), type(error).__name__
        what = f"{route} {answer}"
        own = {"pool": error.pool, "route": route, "error": kind}
        if not isinstance(error, MISTAKES):
            self._storm.note(f"{what} for {kind}", f"{what}: {error}", **own)
            return
        found = place = _place(error)
        if len(self._mistakes) >= MOST_PLACES and place not in self._mistakes:
            place = ""
        made = Storm("requests that met this mistake", logging.ERROR, facts("request_failed", None))
        storm = self._mistakes.setdefault(place, made)
        storm.note(f"{what} for {kind}", f"{what}: {error} ({found})", **own)


def _place(error: BaseException) -> str:
    """Return where the application made a mistake; a whole traceback would show texts of other errors."""
    calls = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    own = [call for call in calls if not is_own(call[0])]
    return f'"{own[-1][0]}", line {own[-1][1]}' if own else "before any code of the application"


async def _answer_gone_client(scope: Scope, receive: Receive, send: Send) -> None:
    """Send a response that no client will see: without one, servers and outer middleware report an error."""
    with suppress(OSError):  # newer servers raise this if the client has gone
        if scope["type"] == "websocket":
            await send(TRY_AGAIN_LATER)
        else:
            await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, send)
