"""HangUpScope: cancels an endpoint whose client hangs up; few at once."""

from collections import deque
from collections.abc import Callable
from types import TracebackType
from weakref import WeakKeyDictionary

import anyio

from .._runtime.current import current_loop
from .._runtime.loop import Loop
from .disconnect import ClientGone
from .exchange import Exchange

WATCH_AFTER = 0.05  # seconds; a shorter use is not worth the task that watches

# Drivers open a connection to cancel a query. A place is free again some time after its endpoint has ended, since
# some drivers, as asyncpg, cancel in the background.
AT_ONCE = 4
PAUSE = 0.1


class CancelPlaces:
    """Lets few cancels of one event loop be under way at once; the others wait in order."""

    def __init__(self) -> None:
        self._free = AT_ONCE
        self._waiting: deque[Callable[[], bool]] = deque()

    def enter(self, cancel: Callable[[], bool]) -> None:
        """Call `cancel` as soon as a place is free; it returns whether it needs the place, until `leave` is called."""
        self._waiting.append(cancel)
        self._fill()

    def leave(self, loop: Loop) -> None:
        """Note that an endpoint that was cancelled has ended."""
        loop.call_later(PAUSE, self._clear)

    def _clear(self) -> None:
        self._free += 1
        self._fill()

    def _fill(self) -> None:
        while self._free and self._waiting:
            self._free -= self._waiting.popleft()()


_places: WeakKeyDictionary[object, CancelPlaces] = WeakKeyDictionary()


def _places_of(loop: Loop) -> CancelPlaces:
    places = _places.get(loop.native)
    if places is None:
        places = _places[loop.native] = CancelPlaces()
    return places


class HangUpScope:
    """Around an endpoint, in its own task: the client's disconnect cancels what happens in it."""

    __slots__ = ("_cancelled", "_exchange", "_has_ended", "_loop", "_scope", "_timer")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        loop = current_loop()
        assert loop is not None  # noqa: S101 - a dependency runs in one
        self._loop = loop
        self._scope = anyio.CancelScope()
        self._cancelled = False
        self._has_ended = False

    def __enter__(self) -> None:
        self._scope.__enter__()
        self._timer = self._loop.call_later(WATCH_AFTER, self._watch)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._has_ended = True
        self._timer.cancel()
        self._exchange.unwatch_use(self)
        if self._cancelled:
            _places_of(self._loop).leave(self._loop)
        if self._scope.__exit__(kind, error, traceback) and error is not None:  # trio says True without an error too
            self._exchange.cut_off()
            raise ClientGone from None

    def _watch(self) -> None:
        if not self._has_ended:
            self._exchange.watch(self, self._hang_up)

    def _hang_up(self, _: Exception) -> None:
        _places_of(self._loop).enter(self._cancel)

    def _cancel(self) -> bool:
        if not self._has_ended:
            self._cancelled = True
            self._scope.cancel()
        return self._cancelled
