"""Queue: who waits, first come first served, and whose time is over next."""

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from itertools import count
from typing import Generic

from ._waiters import Waiter
from .manager import T


class Queue(Generic[T]):
    """Waiters in order of arrival; each leaves in constant time, wherever it stands."""

    def __init__(self) -> None:
        # OrderedDict and not dict: taking the first of a dict gets slower as more have gone before.
        self._waiters: OrderedDict[Waiter[T], None] = OrderedDict()
        # May hold waiters that are gone; dropping them late is cheaper than finding them.
        self._deadlines: list[tuple[float, int, Waiter[T]]] = []
        self._order = count()
        self._owners: dict[object, int] = {}  # how many each of them has here

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[Waiter[T]]:
        return iter(self._waiters)

    def __contains__(self, waiter: object) -> bool:
        return waiter in self._waiters

    def join(self, waiter: Waiter[T]) -> None:
        """Let a waiter in, at the end."""
        self._waiters[waiter] = None
        self._owners[waiter.owner] = self._owners.get(waiter.owner, 0) + 1
        if waiter.deadline is not None:
            heapq.heappush(self._deadlines, (waiter.deadline, next(self._order), waiter))
            if len(self._deadlines) > 2 * len(self._waiters) + 64:
                self._deadlines = [entry for entry in self._deadlines if entry[2] in self._waiters]
                heapq.heapify(self._deadlines)

    def leave(self, waiter: Waiter[T]) -> None:
        """Let a waiter go, from wherever it stands."""
        del self._waiters[waiter]
        left = self._owners.pop(waiter.owner) - 1
        if left:
            self._owners[waiter.owner] = left
        waiter.owner = waiter.request = None  # they must not live on with its deadline

    def has_one_of(self, owner: object) -> bool:
        """Whether this task waits here."""
        return owner in self._owners

    def head(self) -> Waiter[T]:
        """Return who has waited the longest."""
        return next(iter(self._waiters))

    def overdue(self, now: float) -> Iterator[Waiter[T]]:
        """Yield, one after the other, who waits although its time is over."""
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][2] not in self._waiters):
            waiter = heapq.heappop(self._deadlines)[2]
            if waiter in self._waiters:
                yield waiter

    def next_deadline(self) -> float:
        """Say when to ask who is overdue: no later than needed, and never if nobody has been let in since."""
        return self._deadlines[0][0] if self._deadlines else float("inf")
