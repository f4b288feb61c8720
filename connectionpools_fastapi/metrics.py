"""Metrics: stats of pools as Prometheus text, OpenMetrics or JSON."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from .stats import Histogram, Observable, ObservedStats, PoolStats

PREFIX = "connectionpool"

Stats = PoolStats | ObservedStats

JSON = "application/json"
FORMATS = ("text/plain", "application/openmetrics-text", JSON)  # the first where a request does not care


class PoolCollector(Collector):
    """Turns the stats of pools into metrics at each scrape; nothing is counted twice.

    What an observed pool does not tell is left out.

    Register it where you want it: `REGISTRY.register(PoolCollector([db]))` adds the pools
    to the metrics that an application exports already.
    """

    def __init__(self, pools: Iterable[Observable]) -> None:
        """Keep the pools.

        Args:
            pools: The pools to report on; read anew at each scrape.
        """
        self._pools = pools

    def describe(self) -> Iterable[Metric]:
        """Return nothing: a registry then need not collect in order to register."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of all pools. From any thread.

        Yields:
            One family a metric, each with one series a pool or more.
        """
        every = [pool.stats() for pool in self._pools]
        yield from _gauges(every)
        yield from _counters(every)
        yield from _histograms(every)


def render(pools: Iterable[Observable], accept: str = "") -> tuple[bytes, str]:
    """Render the metrics of pools as a scraper asks for them. From any thread.

    Args:
        pools: The pools.
        accept: The request's Accept header; Prometheus text where it names nothing better.

    Returns:
        The body and its content type.
    """
    kind, wish = _choose(accept)
    if kind == JSON:
        return json.dumps({"pools": [asdict(pool.stats()) for pool in pools]}, allow_nan=False).encode(), JSON
    try:
        encode, content_type = choose_encoder(wish)
    except (TypeError, ValueError):  # asked for a version that is no number
        encode, content_type = choose_encoder(kind)
    return encode(PoolCollector(pools)), content_type


def _choose(accept: str) -> tuple[str, str]:
    """Return the best of our formats for an Accept header, and the words in which it was asked for.

    As HTTP says, the most specific wish for a format gives its quality. Among equals the
    one named first wins.
    """
    wishes = [(*_quality_of(wish), -place, wish) for place, wish in enumerate(accept.lower().split(","))]
    quality, _, kind, wish = max((_best_wish(kind, wishes) for kind in FORMATS), key=lambda best: best[:2])
    return (kind, wish) if quality > 0 else (FORMATS[0], "")


def _best_wish(kind: str, wishes: list[tuple[str, float, int, str]]) -> tuple[float, int, str, str]:
    for pattern in (kind, kind.partition("/")[0] + "/*", "*/*"):
        found = [(quality, place, wish) for name, quality, place, wish in wishes if name == pattern]
        if found:
            quality, place, wish = max(found)
            return quality, place, kind, wish if pattern == kind else kind
    return 0.0, 0, kind, kind


def _quality_of(wish: str) -> tuple[str, float]:
    name, *parameters = (part.strip() for part in wish.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return name, min(1.0, float(parameter[2:]))
            except ValueError:
                return name, 0.0
    return name, 1.0


def _gauges(every: list[Stats]) -> Iterator[Metric]:
    resources = GaugeMetricFamily(f"{PREFIX}_resources", "Resources by state.", labels=["pool", "state"])
    for state in ("free", "taken", "creating", "cleaning"):
        for pool, number in _known(every, state):
            resources.add_metric([pool, state], number)
    yield resources
    for name, text in (
        ("limit", "The most resources that may exist at once."),
        ("waiting", "Callers in the queue."),
        ("failing", "1 while the last create failed."),
    ):
        family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=["pool"])
        for pool, number in _known(every, name):
            family.add_metric([pool], number)
        yield family
    is_open = GaugeMetricFamily(f"{PREFIX}_open", "1 while the pool is open and not suspended.", labels=["pool"])
    for stats in every:
        is_open.add_metric([stats.name], stats.status == "open")
    yield is_open


def _counters(every: list[Stats]) -> Iterator[Metric]:
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
        family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=["pool"])
        for pool, number in _known(every, name):
            family.add_metric([pool], number)
        yield family
    for name, label, text in (
        ("refusals", "reason", "Callers turned away at once, by reason."),
        ("discards", "reason", "Resources taken out of use, by reason."),
        ("driver", "counter", "What an observed pool counts itself, under its driver's names."),
    ):
        family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=["pool", label])
        for pool, counts in _known(every, name):
            for key, number in counts.items():
                family.add_metric([pool, key], number)
        yield family


def _histograms(every: list[Stats]) -> Iterator[Metric]:
    for name, text in (
        ("wait", "How long callers waited that got a resource."),
        ("use", "How long leases were held."),
        ("create", "How long create took where it succeeded."),
    ):
        family = HistogramMetricFamily(f"{PREFIX}_{name}_seconds", text, labels=["pool"])
        histogram: Histogram
        for pool, histogram in _known(every, name):
            bounds = [*(str(bound) for bound in histogram.bounds), "+Inf"]
            buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
            family.add_metric([pool], buckets, histogram.sum)
        yield family


def _known(every: list[Stats], name: str) -> Iterator[tuple[str, Any]]:
    """Yield each pool that tells this with what it tells."""
    for stats in every:
        value = getattr(stats, name, None)
        if value is not None:
            yield stats.name, value
