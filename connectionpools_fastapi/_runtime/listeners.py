"""Listeners: the listeners of a pool, and how it notifies them."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from .._core.wait_queue import WaitQueue
from .._core.waiter import Waiter
from ..listener import EVENTS, PoolListener
from .storm import Failures


class Listeners:
    """The listeners of one pool."""

    def __init__(self, pool: str, failures: Failures) -> None:
        self._pool = pool
        self._failures = failures
        self._all: tuple[PoolListener, ...] = ()  # replaced and never changed: `notify` needs no lock
        self.tell_waits = False  # whether at least one listener subscribes to the ends of waits

    def add(self, listener: PoolListener) -> None:
        """Notify this listener from now on."""
        self._all = (*self._all, listener)
        self.tell_waits = "on_wait" in self.subscribed()

    def remove(self, listener: PoolListener) -> None:
        """Stop notifying this listener.

        Raises:
            ValueError: If it was not added.
        """
        place = self._all.index(listener)
        self._all = self._all[:place] + self._all[place + 1 :]
        self.tell_waits = "on_wait" in self.subscribed()

    def subscribed(self) -> frozenset[str]:
        """Return the events for which at least one listener overrides the method."""
        return frozenset(
            event
            for event in EVENTS
            for listener in self._all
            if getattr(getattr(listener, event), "__func__", None) is not getattr(PoolListener, event)
        )

    def around_wait(
        self, waiter: Waiter[Any], queue: WaitQueue[Any], clock: Callable[[], float]
    ) -> AbstractContextManager[None]:
        """Return a block for a wait that has just begun; the listeners are notified of its end."""
        if not self.tell_waits:
            return nullcontext()
        return self._tell_wait(waiter, max(1, queue.ahead_of(waiter.rank)), clock)

    @contextmanager
    def _tell_wait(self, waiter: Waiter[Any], position: int, clock: Callable[[], float]) -> Iterator[None]:
        outcome = "acquired"
        try:
            yield
            if waiter.error is not None:
                outcome = type(waiter.error).__name__
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            self.notify("on_wait", (clock() - waiter.asked_at, position, outcome))

    def notify(self, event: str, facts: tuple[object, ...]) -> None:
        """Notify all listeners; from any thread."""
        for listener in self._all:
            try:
                getattr(listener, event)(self._pool, *facts)
            except BaseException as error:  # noqa: BLE001 - whatever it raises, the other effects must still run
                self._failures.note(f"{event} of a listener", error, level=logging.ERROR)
