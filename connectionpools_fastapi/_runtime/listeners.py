"""Listeners: the listeners of a pool, and how it notifies them."""

import logging

from ..listener import EVENTS, PoolListener
from .storm import Failures


class Listeners:
    """The listeners of one pool."""

    def __init__(self, pool: str, failures: Failures) -> None:
        self._pool = pool
        self._failures = failures
        self._all: tuple[PoolListener, ...] = ()  # replaced and never changed: `notify` needs no lock

    def add(self, listener: PoolListener) -> None:
        """Notify this listener from now on."""
        self._all = (*self._all, listener)

    def remove(self, listener: PoolListener) -> None:
        """Stop notifying this listener.

        Raises:
            ValueError: If it was not added.
        """
        place = self._all.index(listener)
        self._all = self._all[:place] + self._all[place + 1 :]

    def subscribed(self) -> frozenset[str]:
        """Return the events for which at least one listener overrides the method."""
        return frozenset(
            event
            for event in EVENTS
            for listener in self._all
            if getattr(getattr(listener, event), "__func__", None) is not getattr(PoolListener, event)
        )

    def notify(self, event: str, facts: tuple[object, ...]) -> None:
        """Notify all listeners; from any thread."""
        for listener in self._all:
            try:
                getattr(listener, event)(self._pool, *facts)
            except BaseException as error:  # noqa: BLE001 - whatever it raises, the other effects must still run
                self._failures.note(f"{event} of a listener", error, level=logging.ERROR)
