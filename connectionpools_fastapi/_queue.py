"""Queue: who waits, first come first served, and whose time is over next."""

import heapq
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import Generic

from ._slot import NEVER
from ._waiters import Waiter
from .manager import T

# How long somebody waits before his client is watched, in seconds. To watch costs more than to wait
# (about a third of a request that asks a database once, as measured), and is of use where queues are long.
WATCH_AFTER = 0.05


class Queue(Generic[T]):
    """Waiters in order of arrival; each leaves in constant time, wherever it stands.

    Under load most are gone long before their deadlines, so those are sorted only when
    the first of them has come, and only for who is still there.
    """

    def __init__(self) -> None:
        # May hold waiters that are gone, but never as the first.
        self._line: deque[Waiter[T]] = deque()
        self.size = 0  # as `len` says, for those who ask at each lease
        self._owners: dict[object, Waiter[T]] = {}  # the last waiter of each, as most have but one
        # Of those who were here when somebody last looked; these too may be gone.
        self._deadlines: list[tuple[float, int, Waiter[T]]] = []
        self._order = count()
        # Those who wait for somebody who may go away, until he is watched; these too may be gone.
        self._unwatched: deque[Waiter[T]] = deque()
        # When to ask who is overdue, and whose client is to be watched: no later than needed, and
        # never if nobody has been let in since.
        self.due = NEVER

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Waiter[T]]:
        return (waiter for waiter in self._line if waiter.waits)

    def __contains__(self, waiter: Waiter[T]) -> bool:
        return waiter.waits

    def join(self, waiter: Waiter[T]) -> None:
        """Let a waiter in, at the end."""
        waiter.waits = True
        self._line.append(waiter)
        self.size += 1
        self._owners[waiter.owner] = waiter
        if waiter.deadline is not None and waiter.deadline < self.due:
            self.due = waiter.deadline
        if waiter.client is not None:
            self._unwatched.append(waiter)
            self.due = min(self.due, self._unwatched[0].asked_at + WATCH_AFTER)

    def leave(self, waiter: Waiter[T]) -> None:
        """Let a waiter go, from wherever it stands."""
        line = self._line
        if line[0] is waiter:
            self.next()
            return
        self._forget(waiter)
        if len(line) > 2 * self.size + 64:
            self._line = deque(self)

    def has_one_of(self, owner: object) -> bool:
        """Whether this task waits here."""
        return owner in self._owners

    def head(self) -> Waiter[T]:
        """Return who has waited the longest."""
        return self._line[0]

    def next(self) -> Waiter[T]:
        """Let the one go who has waited the longest; return it."""
        line = self._line
        waiter = line.popleft()
        self._forget(waiter)
        while line and not line[0].waits:
            line.popleft()
        return waiter

    def _forget(self, waiter: Waiter[T]) -> None:
        waiter.waits = False
        self.size -= 1
        if self._owners.get(waiter.owner) is waiter:
            del self._owners[waiter.owner]
        waiter.owner = waiter.request = waiter.client = None  # they must not live on with its deadline
        unwatched = self._unwatched
        while unwatched and not unwatched[0].waits:
            unwatched.popleft()

    def overdue(self, now: float) -> Iterator[Waiter[T]]:
        """Yield, one after the other, who waits although its time is over; each has to leave."""
        self._note_deadlines()
        deadlines = self._deadlines
        while deadlines and (deadlines[0][0] <= now or not deadlines[0][2].waits):
            waiter = heapq.heappop(deadlines)[2]
            if waiter.waits:
                yield waiter
        self.due = deadlines[0][0] if deadlines else NEVER
        if self._unwatched:
            self.due = min(self.due, self._unwatched[0].asked_at + WATCH_AFTER)

    def unwatched(self, now: float) -> Iterator[Waiter[T]]:
        """Yield, once each, who has waited so long that his client is to be watched; before `overdue`."""
        unwatched = self._unwatched
        while unwatched and (unwatched[0].asked_at + WATCH_AFTER <= now or not unwatched[0].waits):
            waiter = unwatched.popleft()
            if waiter.waits:
                yield waiter

    def _note_deadlines(self) -> None:
        newcomers = []
        for waiter in reversed(self._line):
            if waiter.is_noted:  # and so is whoever came before
                break
            waiter.is_noted = True
            if waiter.waits and waiter.deadline is not None:
                newcomers.append(waiter)
        for waiter in reversed(newcomers):
            assert waiter.deadline is not None  # noqa: S101 - as seen above
            heapq.heappush(self._deadlines, (waiter.deadline, next(self._order), waiter))
        if len(self._deadlines) > 2 * self.size + 64:
            self._deadlines = [entry for entry in self._deadlines if entry[2].waits]
            heapq.heapify(self._deadlines)
