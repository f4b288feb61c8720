"""Families: which metrics there are of pools, whoever writes them."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from .stats import Histogram, ObservedStats, PoolStats

PREFIX = "connectionpool"

Stats = PoolStats | ObservedStats


class Family(NamedTuple):
    """One metric with its series: the values of its labels, and a number or, of that kind, a Histogram."""

    kind: Literal["gauge", "counter", "histogram"]
    name: str
    text: str
    labels: tuple[str, ...]  # in alphabetical order, in which they are written
    series: Sequence[tuple[tuple[str, ...], Any]]


def families(every: list[Stats]) -> Iterator[Family]:
    """Yield the metrics of all pools; what a pool does not tell is left out."""
    yield from _gauges(every)
    yield from _counters(every)
    yield from _histograms(every)


def buckets(histogram: Histogram) -> Iterator[tuple[str, int]]:
    """Yield upper bounds with how many durations were not longer."""
    yield from zip((*map(str, histogram.bounds), "+Inf"), accumulate(histogram.counts), strict=True)


def _gauges(every: list[Stats]) -> Iterator[Family]:
    states = ("free", "taken", "creating", "cleaning")
    yield Family(
        "gauge",
        f"{PREFIX}_resources",
        "Resources by state.",
        ("pool", "state"),
        [((pool, state), number) for state in states for pool, number in _known(every, state)],
    )
    for name, text in (
        ("limit", "The most resources that may exist at once."),
        ("waiting", "Callers in the queue."),
        ("failing", "1 while the last create failed."),
    ):
        yield Family("gauge", f"{PREFIX}_{name}", text, ("pool",), _by_pool(every, name))
    is_open = [((stats.name,), stats.status == "open") for stats in every]
    yield Family("gauge", f"{PREFIX}_open", "1 while the pool is open and not suspended.", ("pool",), is_open)


def _counters(every: list[Stats]) -> Iterator[Family]:
    for name, text in (
        ("acquires", "Leases granted."),
        ("releases", "Leases ended."),
        ("timeouts", "Callers that waited in vain."),
        ("withdrawals", "Callers cancelled while they waited."),
        ("creates", "Resources made."),
        ("create_failures", "Calls of create that failed."),
        ("cleans", "Resources cleaned."),
        ("clean_failures", "Calls of clean that failed."),
        ("detached", "Resources given away for good."),
    ):
        yield Family("counter", f"{PREFIX}_{name}", text, ("pool",), _by_pool(every, name))
    for name, text in (
        ("refusals", "Callers turned away at once, by reason."),
        ("discards", "Resources taken out of use, by reason."),
    ):
        by_reason = [
            ((pool, reason), number) for pool, counts in _known(every, name) for reason, number in counts.items()
        ]
        yield Family("counter", f"{PREFIX}_{name}", text, ("pool", "reason"), by_reason)
    own = [((counter, pool), number) for pool, counts in _known(every, "driver") for counter, number in counts.items()]
    text = "What an observed pool counts itself, under its driver's names."
    yield Family("counter", f"{PREFIX}_driver", text, ("counter", "pool"), own)


def _histograms(every: list[Stats]) -> Iterator[Family]:
    for name, text in (
        ("wait", "How long callers waited that got a resource."),
        ("use", "How long leases were held."),
        ("create", "How long create took where it succeeded."),
    ):
        yield Family("histogram", f"{PREFIX}_{name}_seconds", text, ("pool",), _by_pool(every, name))


def _by_pool(every: list[Stats], name: str) -> list[tuple[tuple[str], Any]]:
    return [((pool,), value) for pool, value in _known(every, name)]


def _known(every: list[Stats], name: str) -> Iterator[tuple[str, Any]]:
    """Yield each pool that tells this with what it tells."""
    for stats in every:
        value = getattr(stats, name, None)
        if value is not None:
            yield stats.name, value
