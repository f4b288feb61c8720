"""Throughput: how fast a queue moves, from the resources that came back and were handed to waiters."""

from collections import deque

from .slot import LONG_AGO

# So many rounds of all resources are remembered: whole ones, since leases that began together end together.
ROUNDS = 4

# At least so many hand-overs are remembered, so that a few short leases of a small pool prove nothing.
LEAST = 20

# Without a hand-over for so many seconds, or for so many holds if that is longer, nothing is known any more.
RECENT = 1.0
RECENT_HOLDS = 3


class Throughput:
    """The mean time between two hand-overs, while callers wait.

    Times without waiters are left out: a pool that has nothing to do is not slow. A resource whose lease was cut
    off does not count, but its time does: it comes back early, and has served no caller.
    """

    def __init__(self, limit: int) -> None:
        self.idle = 0.0  # how long no caller has waited; all times below are earlier by this
        self.cut_off = 0  # leases that were cut off, and whose resources no waiter has got since
        self._cut_off_at = LONG_AGO  # when a waiter got such a resource, the last time
        # When waiters got a resource. Not a method, since each lease that waits appends to it.
        self.handed: deque[float] = deque()
        self.resize(limit)

    def resize(self, limit: int) -> None:
        """Remember as many hand-overs as a pool of this limit needs."""
        self._limit = limit
        self.handed = deque(self.handed, maxlen=max(ROUNDS * limit, LEAST) + 1)

    def forget(self) -> None:
        """Know nothing."""
        self.idle = 0.0
        self.cut_off = 0
        self._cut_off_at = LONG_AGO
        self.handed.clear()

    def begin(self, now: float) -> None:
        """Note that a caller begins to wait, the first one."""
        self.cut_off = 0
        if self.handed:
            self.idle = now - self._last()
        else:
            self.handed.append(now - self.idle)

    def skip(self, now: float) -> None:
        """Note that a waiter gets a resource whose lease was cut off."""
        self.cut_off -= 1
        self._cut_off_at = now - self.idle

    def _last(self) -> float:
        return max(self.handed[-1], self._cut_off_at)

    def interval(self, now: float) -> float | None:
        """Return the mean time between two hand-overs, in seconds; None if too few have happened recently."""
        handed = self.handed
        known = len(handed) - 1
        if known < self._limit and len(handed) != handed.maxlen:  # less than a round
            return None
        last = self._last()
        mean = (last - handed[0]) / known
        silent = now - self.idle - last
        return None if silent > max(RECENT, RECENT_HOLDS * self._limit * mean) else mean
