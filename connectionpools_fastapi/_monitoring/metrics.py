"""Metrics: stats of pools as Prometheus text, OpenMetrics or JSON."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ..stats import BudgetStats, Histogram, Observable, ObservedStats, PoolStats, PriorityStats, RouteStats
from .multiprocess import is_written

# prometheus-client, with its HTTP servers and clients, takes as long to import as this whole package. So the
# first scrape imports it: a pool that is never scraped does not need it.
if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector

    from .families import Every
else:
    Collector = object

JSON = "application/json"
FORMATS = ("text/plain", "application/openmetrics-text", JSON)  # the first one if a request does not care

# A longer Accept header is ignored, since each entry costs time; that of Prometheus has 350 characters.
LONGEST_ACCEPT = 2048
# Parameters of a requested format, which become a part of the answer's content type.
PARAMETER = re.compile(r"version=[0-9.]{1,12}|escaping=[a-z0-9-]{1,16}")


Stats = PoolStats | ObservedStats
# The stats of each worker's pools, by its number.
Workers = Mapping[int, list[Stats]]


class PoolCollector(Collector):
    """Turns the stats of pools into metrics at each scrape; it counts nothing itself.

    It leaves out numbers that an observed pool does not know, and pools whose numbers are already in
    PROMETHEUS_MULTIPROC_DIR, so that none appears twice.

    Register it in any registry: `REGISTRY.register(PoolCollector([db]))` adds the pools to the
    metrics that an application already exports.
    """

    def __init__(self, pools: Iterable[Observable]) -> None:
        """Keep the pools.

        Args:
            pools: The pools to report on; read anew at each scrape.
        """
        self._pools = pools

    def describe(self) -> Iterable["Metric"]:
        """Return one name a pool, so that a registry refuses a second collector for one of them.

        Returns:
            Descriptions without values, so that nothing has to be collected.
        """
        from prometheus_client.metrics_core import Metric  # noqa: PLC0415 - see above

        return [Metric(f"the PoolCollector of pool {pool.name!r}", "", "gauge") for pool in self._pools]

    def collect(self) -> Iterator["Metric"]:
        """Yield the metrics of all pools. From any thread.

        Yields:
            One family a metric, each with one series a pool or more.
        """
        from .families import families  # noqa: PLC0415 - at the first scrape, see above

        yield from families([((pool.name,), pool.stats()) for pool in self._pools if not is_written(pool)])


class StatsCollector(Collector):
    """Turns stats that were taken before into metrics."""

    def __init__(self, every: "Every", labels: tuple[str, ...]) -> None:
        self._every = every
        self._labels = labels

    def collect(self) -> Iterator["Metric"]:
        """Yield the metrics of all pools of all workers."""
        from .families import families  # noqa: PLC0415 - as above

        yield from families(self._every, self._labels)


def plain_stats(pools: Iterable[Observable]) -> list[dict[str, Any]]:
    """Return the stats of pools as plain values."""
    return [asdict(pool.stats()) for pool in pools]


def stats_of(values: dict[str, Any]) -> Stats:
    """Return the stats that were made into plain values."""
    if "acquires" not in values:
        return ObservedStats(**values)
    for name in ("wait", "use", "create"):
        histogram = values[name]
        values[name] = Histogram(tuple(histogram["bounds"]), tuple(histogram["counts"]), histogram["sum"])
    for name, kind in (("priorities", PriorityStats), ("routes", RouteStats)):
        values[name] = {key: kind(**numbers) for key, numbers in values[name].items()}
    if values["budget"] is not None:
        values["budget"] = BudgetStats(**values["budget"])
    return PoolStats(**values)


def counts_of(stats: Stats) -> Stats:
    """Return the same stats without routes, and without the type of the last error."""
    return replace(stats, routes={}, cause=None) if isinstance(stats, PoolStats) else replace(stats, cause=None)


def render(
    pools: Iterable[Observable], accept: str = "", workers: Workers | None = None, *, details: bool = True
) -> tuple[bytes, str]:
    """Render the metrics of pools as a scraper asks for them. From any thread.

    Args:
        pools: The pools.
        accept: The request's Accept header. The format is Prometheus text if the header names
            nothing better, or is longer than any scraper's.
        workers: The stats of all workers by number, this one included, if there are several.
        details: Whether the scraper may see the application's routes, and the types of errors.

    Returns:
        The body and its content type.
    """
    kind, wish = _choose(accept)
    found = {0: [pool.stats() for pool in pools]} if workers is None else workers
    if not details:
        found = {number: [*map(counts_of, stats)] for number, stats in found.items()}
    if kind == JSON:
        bodies = {str(number): {"pools": [*map(asdict, stats)]} for number, stats in found.items()}
        return json.dumps(bodies["0"] if workers is None else {"workers": bodies}, allow_nan=False).encode(), JSON
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415 - at the first scrape, see above

    try:
        encode, content_type = choose_encoder(wish)
    except (TypeError, ValueError):  # the requested version is no number
        encode, content_type = choose_encoder(kind)
    if workers is None:
        collector = StatsCollector([((stats.name,), stats) for stats in found[0]], ("pool",))
    else:
        every = [((stats.name, str(number)), stats) for number, each in found.items() for stats in each]
        collector = StatsCollector(every, ("pool", "worker"))
    return encode(collector), content_type


def _choose(accept: str) -> tuple[str, str]:
    """Return the best of our formats for an Accept header, and the header's entry for it.

    By the rules of HTTP, the most specific entry for a format gives its quality. Among equal
    ones the first wins.
    """
    if len(accept) > LONGEST_ACCEPT:
        return FORMATS[0], ""
    wishes = [(*_quality_of(wish), -place, wish) for place, wish in enumerate(accept.lower().split(","))]
    quality, _, kind, wish = max((_best_wish(kind, wishes) for kind in FORMATS), key=lambda best: best[:2])
    return (kind, wish) if quality > 0 else (FORMATS[0], "")


def _best_wish(kind: str, wishes: list[tuple[str, float, int, str]]) -> tuple[float, int, str, str]:
    for pattern in (kind, kind.partition("/")[0] + "/*", "*/*"):
        found = [(quality, place, wish) for name, quality, place, wish in wishes if name == pattern]
        if found:
            quality, place, wish = max(found)
            return quality, place, kind, _known_parts(kind, wish) if pattern == kind else kind
    return 0.0, 0, kind, kind


def _known_parts(kind: str, wish: str) -> str:
    parameters = (part.strip() for part in wish.split(";")[1:])
    return ";".join((kind, *filter(PARAMETER.fullmatch, parameters)))


def _quality_of(wish: str) -> tuple[str, float]:
    name, *parameters = (part.strip() for part in wish.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return name, min(1.0, float(parameter[2:]))
            except ValueError:
                return name, 0.0
    return name, 1.0
