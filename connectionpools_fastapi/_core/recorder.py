"""Recorder: a histogram that is being filled."""

from bisect import bisect_left
from collections.abc import Iterable
from operator import add

from ..stats import Histogram


class Recorder:
    """A histogram that is being filled; only one caller at a time may use `record`."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds: tuple[float, ...] = bounds
        self.counts: list[int] = [0] * (len(bounds) + 1)
        self.sum: float = 0.0

    def record(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def count(self) -> int:
        """How many durations were recorded."""
        return sum(self.counts)

    def add(self, counts: Iterable[int], seconds: float) -> None:
        """Add the counts of another recorder with the same bounds."""
        self.counts = list(map(add, self.counts, counts))
        self.sum += seconds

    def snapshot(self) -> Histogram:
        """Return the counts so far."""
        return Histogram(self.bounds, tuple(self.counts), self.sum)
