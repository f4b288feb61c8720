"""WaitQueue: the waiters, by priority and then first come first served, and which of them is overdue next."""

import heapq
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import Generic

from .slot import NEVER, T
from .terms import HIGH, LOW, NORMAL
from .waiter import Waiter

# How long a caller waits before its client is watched, in seconds: at most, and at least where another one's turn
# has come. To watch costs more than to wait, and pays only in long queues; and a tick for several costs less than one
# for each.
WATCH_AFTER = 0.05
WATCH_WITH_OTHERS_AFTER = 0.03


# A waiter of low priority counts as normal after so many seconds, or half its timeout if that is less.
PROMOTE_AFTER = 60.0


class WaitQueue(Generic[T]):
    """Waiters in a lane for each priority, in order of arrival; each leaves in constant time, wherever it stands.

    A waiter of low priority that has waited for half its timeout, or for a minute, counts as normal.

    Under load most are gone long before their deadlines, so deadlines are sorted only when
    the first of them has come, and only those of waiters that are still there.
    """

    def __init__(self) -> None:
        # By rank. A lane may hold waiters that are gone, but never as the first.
        self._lanes: tuple[deque[Waiter[T]], ...] = (deque(), deque(), deque())
        self._waiters = self._lanes[NORMAL]
        self.size = 0  # what `len` returns, for code that reads it at each lease
        self.peak = 0  # the highest size since the last reader of it has set it
        self._counts = [0, 0, 0]  # waiters by rank, but for normal ones
        self._special = 0  # how many are not normal
        # When each waiter of low priority counts as normal; some may be gone.
        self._promotions: list[tuple[float, int, Waiter[T]]] = []
        self._owners: dict[object, Waiter[T]] = {}  # the last waiter of each; most have only one
        # Deadlines of the waiters that were here when `overdue` was last called; some may be gone.
        self._deadlines: list[tuple[float, int, Waiter[T]]] = []
        self._order = count()
        # Waiters whose client may go away and is not watched yet; some may be gone.
        self._unwatched: deque[Waiter[T]] = deque()
        self._next_deadline = NEVER  # a lower bound
        # Lower bound on the next time at which a waiter is overdue, or its client is to be watched;
        # infinity if no waiter has joined since both were last asked.
        self.due = NEVER

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Waiter[T]]:
        return (waiter for lane in self._lanes for waiter in lane if waiter.waits)

    def __contains__(self, waiter: Waiter[T]) -> bool:
        return waiter.waits

    def join(self, waiter: Waiter[T]) -> None:
        """Add a waiter at the end of its lane."""
        waiter.waits = True
        if waiter.rank == NORMAL:
            self._waiters.append(waiter)
        else:
            self._join_special(waiter)
        size = self.size = self.size + 1
        if size > self.peak:  # noqa: PLR1730 - `max` would be a call for each waiter
            self.peak = size
        self._owners[waiter.owner] = waiter
        if waiter.deadline is not None and waiter.deadline < self._next_deadline:
            self._next_deadline = waiter.deadline
            self.due = min(self.due, waiter.deadline)
        if waiter.client is not None:
            if not self._unwatched:
                self.due = min(self.due, waiter.asked_at + WATCH_AFTER)
            self._unwatched.append(waiter)

    def _join_special(self, waiter: Waiter[T]) -> None:
        self._lanes[waiter.rank].append(waiter)
        self._special += 1
        self._counts[waiter.rank] += 1
        # Noted at once: after a promotion it stands among normal ones, which are noted from the end.
        waiter.is_noted = True
        if waiter.deadline is not None:
            heapq.heappush(self._deadlines, (waiter.deadline, next(self._order), waiter))
        if waiter.rank == LOW:
            at = waiter.asked_at + PROMOTE_AFTER
            if waiter.deadline is not None:
                at = min(at, (waiter.asked_at + waiter.deadline) / 2)
            self._promotions = _without_gone(self._promotions, self.size)
            heapq.heappush(self._promotions, (at, next(self._order), waiter))
            self.due = min(self.due, at)

    def leave(self, waiter: Waiter[T]) -> None:
        """Remove a waiter, wherever it stands."""
        lane = self._lanes[waiter.rank]
        if lane[0] is waiter:
            self._pop(lane)
            return
        self._forget(waiter)
        if len(lane) > 2 * self.size + 64:
            staying = [waiter for waiter in lane if waiter.waits]
            lane.clear()
            lane.extend(staying)

    def has_one_of(self, owner: object) -> bool:
        """Whether this task waits here."""
        return owner in self._owners

    def head(self) -> Waiter[T]:
        """Return the waiter that is served next."""
        return self._first_lane()[0] if self._special else self._waiters[0]

    def next(self) -> Waiter[T]:
        """Remove and return the waiter that is served next."""
        return self._pop(self._first_lane() if self._special else self._waiters)

    def _first_lane(self) -> deque[Waiter[T]]:
        return next(lane for lane in self._lanes if lane)

    def _pop(self, lane: deque[Waiter[T]]) -> Waiter[T]:
        waiter = lane.popleft()
        self._forget(waiter)
        while lane and not lane[0].waits:
            lane.popleft()
        return waiter

    def oldest(self) -> Waiter[T]:
        """Return the waiter that has waited the longest."""
        return min((lane[0] for lane in self._lanes if lane), key=lambda waiter: waiter.asked_at)

    def waiting_of(self, rank: int) -> int:
        """Return how many waiters have a rank."""
        return self.size - self._special if rank == NORMAL else self._counts[rank]

    def oldest_of(self, rank: int) -> Waiter[T] | None:
        """Return the waiter of a rank that has waited the longest."""
        lane = self._lanes[rank]
        return lane[0] if lane else None

    def ahead_of(self, rank: int) -> int:
        """Return how many waiters are served before a newcomer of a rank."""
        if rank == LOW:
            return self.size
        return self._counts[HIGH] if rank == HIGH else self.size - self._counts[LOW]

    def last_behind(self, rank: int) -> Waiter[T] | None:
        """Return the last waiter of the lowest priority, if that is lower than this rank."""
        for lane in self._lanes[:rank:-1]:
            for waiter in reversed(lane):
                if waiter.waits:
                    return waiter
        return None

    def _forget(self, waiter: Waiter[T]) -> None:
        waiter.waits = False
        self.size -= 1
        if waiter.rank != NORMAL:
            self._special -= 1
            self._counts[waiter.rank] -= 1
        if self._owners.get(waiter.owner) is waiter:
            del self._owners[waiter.owner]
        waiter.owner = waiter.request = waiter.client = None  # its entry in `_deadlines` must not keep them alive
        unwatched = self._unwatched
        while unwatched and not unwatched[0].waits:
            unwatched.popleft()

    def promote(self, now: float) -> None:
        """Let the waiters of low priority that have waited for long enough count as normal."""
        promotions, lane = self._promotions, self._waiters
        while promotions and (promotions[0][0] <= now or not promotions[0][2].waits):
            waiter = heapq.heappop(promotions)[2]
            if not waiter.waits:
                continue
            self._note_deadlines()
            low = self._lanes[LOW]
            low.remove(waiter)  # mostly one of the first: a linear search that ends at once
            while low and not low[0].waits:
                low.popleft()
            self._special -= 1
            self._counts[LOW] -= 1
            waiter.rank = NORMAL
            lane.insert(bisect_right(lane, waiter.asked_at, key=lambda other: other.asked_at), waiter)

    def overdue(self, now: float) -> Iterator[Waiter[T]]:
        """Yield, one after the other, the waiters whose timeout has passed; each has to leave."""
        if self._next_deadline <= now:  # else it was asked because of clients
            self._note_deadlines()
            deadlines = self._deadlines
            while deadlines and (deadlines[0][0] <= now or not deadlines[0][2].waits):
                waiter = heapq.heappop(deadlines)[2]
                if waiter.waits:
                    yield waiter
            self._next_deadline = deadlines[0][0] if deadlines else NEVER
        self.due = self._next_deadline
        if self._promotions:
            self.due = min(self.due, self._promotions[0][0])
        if self._unwatched:
            self.due = min(self.due, self._unwatched[0].asked_at + WATCH_AFTER)

    def unwatched(self, now: float) -> Iterator[Waiter[T]]:
        """Yield, once each, the waiters whose client is to be watched from now on; call it before `overdue`."""
        unwatched = self._unwatched
        while unwatched and (unwatched[0].asked_at + WATCH_WITH_OTHERS_AFTER <= now or not unwatched[0].waits):
            waiter = unwatched.popleft()
            if waiter.waits:
                yield waiter

    def _note_deadlines(self) -> None:
        newcomers = []
        for waiter in reversed(self._waiters):
            if waiter.is_noted:  # and so are all earlier ones
                break
            waiter.is_noted = True
            if waiter.waits and waiter.deadline is not None:
                newcomers.append(waiter)
        for waiter in reversed(newcomers):
            assert waiter.deadline is not None  # noqa: S101 - as seen above
            heapq.heappush(self._deadlines, (waiter.deadline, next(self._order), waiter))
        self._deadlines = _without_gone(self._deadlines, self.size)


def _without_gone(entries: list[tuple[float, int, Waiter[T]]], waiting: int) -> list[tuple[float, int, Waiter[T]]]:
    """Return a heap without the waiters that are gone, if these are many."""
    if len(entries) > 2 * waiting + 64:
        entries = [entry for entry in entries if entry[2].waits]
        heapq.heapify(entries)
    return entries
