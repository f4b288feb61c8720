"""ClientPoll: asks known servers, many times a second, whether clients have gone; that costs less than to read."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from functools import partial
from types import MethodType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from starlette.types import Receive

DISCONNECTS = frozenset({"http.disconnect", "websocket.disconnect"})

# Seconds between two looks at all clients: a client that goes away leaves its queue within 50 ms.
PERIOD = 0.04
UVICORN = frozenset({"uvicorn.protocols.http.h11_impl", "uvicorn.protocols.http.httptools_impl"})


def presence(receive: Receive) -> Callable[[], bool] | None:
    """Return what tells at once whether the client of a request has gone; None if only `receive` does."""
    if not isinstance(receive, MethodType):
        return None
    server: Any = receive.__self__
    if type(server).__module__ in UVICORN:
        # uvicorn notices nothing while it reads nothing, as after the first part of a long body; `receive` goes on.
        return None if server.flow.read_paused else partial(getattr, server, "disconnected")
    if type(server) is asyncio.Queue:  # hypercorn's
        return partial(_ends_with_disconnect, server._queue)  # type: ignore[attr-defined] # noqa: SLF001 - no method looks
    return None


def _ends_with_disconnect(messages: deque[Any]) -> bool:
    return bool(messages) and messages[-1]["type"] in DISCONNECTS


class Watcher(Protocol):
    """What a poll tells that a client has gone."""

    def note_disconnect(self) -> None:
        """Note it; called once."""


class ClientPoll:
    """Looks at the clients of one event loop with one timer for all."""

    def __init__(self) -> None:
        self._looks: dict[Watcher, Callable[[], bool]] = {}
        self._is_ticking = False

    def add(self, watcher: Watcher, has_gone: Callable[[], bool]) -> None:
        """Tell `watcher` once `has_gone` says so, unless `discard` comes first."""
        self._looks[watcher] = has_gone
        if not self._is_ticking:
            self._is_ticking = True
            self._tick_later()

    def discard(self, watcher: Watcher) -> None:
        """Look no more."""
        self._looks.pop(watcher, None)

    def _tick_later(self) -> None:
        # In no context: that of a request would be kept for as long as others follow.
        asyncio.get_running_loop().call_later(PERIOD, self._tick, context=Context())

    def _tick(self) -> None:
        for watcher in [watcher for watcher, has_gone in self._looks.items() if has_gone()]:
            if self._looks.pop(watcher, None) is not None:
                watcher.note_disconnect()
        self._is_ticking = bool(self._looks)
        if self._is_ticking:
            self._tick_later()


_polls: WeakKeyDictionary[object, ClientPoll] = WeakKeyDictionary()


def poll_of_loop() -> ClientPoll:
    """Return the poll of the running event loop of asyncio."""
    loop = asyncio.get_running_loop()
    poll = _polls.get(loop)
    if poll is None:
        poll = _polls[loop] = ClientPoll()
    return poll
