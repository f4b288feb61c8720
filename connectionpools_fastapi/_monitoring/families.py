"""Families: the metrics of pools, as prometheus-client's own objects."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ..stats import ObservedStats, PoolStats

PREFIX = "connectionpool"

OLDEST_WAIT = "For how long the caller that has waited the longest waits."

Stats = PoolStats | ObservedStats


# The values of a metric's labels, and its value.
Labels = tuple[str, ...]
Series = Iterable[tuple[Labels, float]]
# The stats of pools, with the values of the labels that all their series have.
Every = Sequence[tuple[Labels, Stats]]


def families(every: Every, labels: Labels = ("pool",)) -> Iterator[Metric]:
    """Yield the metrics of all pools, without numbers that a pool does not know."""
    yield from _gauges(every, labels)
    yield from _counters(every, labels)
    yield from _histograms(every, labels)
    yield from _parts(every, labels)


def _gauges(every: Every, labels: Labels) -> Iterator[Metric]:
    states = ("free", "taken", "creating", "cleaning")
    yield _filled(
        GaugeMetricFamily(f"{PREFIX}_resources", "Resources by state.", labels=(*labels, "state")),
        (((*pool, state), number) for state in states for pool, number in _known(every, state)),
    )
    for name, text in (
        ("limit", "The most resources that may exist at once."),
        ("waiting", "Callers in the queue."),
        ("failing", "1 while the last create failed."),
        ("down", "1 while the back-end is down and callers are refused."),
        ("peak_taken", "The most resources that were taken at once in the last minute."),
        ("peak_waiting", "The most callers that waited at once in the last minute."),
        ("overloaded", "1 while callers are refused that would leave or time out before they are served."),
    ):
        yield _filled(GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels), _known(every, name))
    for name, text in (
        ("patience", "How long callers wait before they leave, as learned; absent while unknown."),
        ("expected_wait", "How long a caller that comes now will wait; absent while unknown."),
        ("oldest_wait", OLDEST_WAIT),
        ("longest_lease", "For how long the lease that is held the longest is held."),
    ):
        yield _filled(GaugeMetricFamily(f"{PREFIX}_{name}_seconds", text, labels=labels), _known(every, name))
    budgets = [((*pool, budget.name), budget) for pool, budget in _known(every, "budget")]
    for name, attribute, text in (
        ("limit", "total", "The most resources that all members of the budget may have together."),
        ("used", "used", "Tokens that all members of the budget hold."),
        ("held", "held", "Tokens that this pool holds."),
    ):
        family = GaugeMetricFamily(f"{PREFIX}_budget_{name}", text, labels=(*labels, "budget"))
        yield _filled(family, ((pool, getattr(budget, attribute)) for pool, budget in budgets))
    yield _filled(
        GaugeMetricFamily(f"{PREFIX}_open", "1 while the pool is open and not suspended.", labels=labels),
        ((pool, stats.status == "open") for pool, stats in every),
    )


def _counters(every: Every, labels: Labels) -> Iterator[Metric]:
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
        yield _filled(CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels), _known(every, name))
    for name, label, text in (
        ("refusals", "reason", "Callers turned away, by reason."),
        ("discards", "reason", "Resources taken out of use, by reason."),
        ("driver", "counter", "What an observed pool counts itself, under its driver's names."),
    ):
        yield _filled(
            CounterMetricFamily(f"{PREFIX}_{name}", text, labels=(*labels, label)),
            (((*pool, kind), number) for pool, counts in _known(every, name) for kind, number in counts.items()),
        )


def _histograms(every: Every, labels: Labels) -> Iterator[Metric]:
    for name, text in (
        ("wait", "How long callers waited that got a resource."),
        ("use", "How long leases were held."),
        ("create", "How long create took where it succeeded."),
    ):
        family = HistogramMetricFamily(f"{PREFIX}_{name}_seconds", text, labels=labels)
        for pool, histogram in _known(every, name):
            bounds = (*map(str, histogram.bounds), "+Inf")
            buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
            family.add_metric(pool, buckets, histogram.sum)
        yield family


def _parts(every: Every, labels: Labels) -> Iterator[Metric]:
    """Yield the numbers of each priority and of each route."""
    for part, parts, kind, field, name, text in (
        ("priority", "priorities", GaugeMetricFamily, "waiting", "waiting", "Callers in the queue, by priority."),
        ("priority", "priorities", GaugeMetricFamily, "oldest_wait", "oldest_wait_seconds", OLDEST_WAIT),
        ("priority", "priorities", CounterMetricFamily, "refusals", "refusals", "Callers turned away, by priority."),
        ("route", "routes", CounterMetricFamily, "leases", "leases", "Leases that have ended, by route."),
        ("route", "routes", CounterMetricFamily, "wait", "wait_seconds", "How long callers waited, by route."),
        ("route", "routes", CounterMetricFamily, "use", "use_seconds", "How long leases were held, by route."),
        ("route", "routes", CounterMetricFamily, "refusals", "refusals", "Callers turned away, by route."),
        ("route", "routes", CounterMetricFamily, "timeouts", "timeouts", "Callers that waited in vain, by route."),
    ):
        yield _filled(
            kind(f"{PREFIX}_{part}_{name}", text, labels=(*labels, part)),
            (
                ((*pool, key), getattr(numbers, field))
                for pool, found in _known(every, parts)
                for key, numbers in found.items()
            ),
        )


def _filled(family: GaugeMetricFamily | CounterMetricFamily, series: Series) -> Metric:
    for labels, number in series:
        family.add_metric(labels, number)
    return family


def _known(every: Every, name: str) -> Iterator[tuple[Labels, Any]]:
    """Yield the labels and value of each pool that knows this number."""
    for labels, stats in every:
        value = getattr(stats, name, None)
        if value is not None:
            yield labels, value
