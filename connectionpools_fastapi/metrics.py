"""Metrics: stats of pools as Prometheus text, OpenMetrics or JSON."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from .stats import Observable

# With its servers and clients of HTTP, prometheus-client takes as long to import as all of this package.
# That is left to the first scrape: who is never scraped does not need it.
if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
else:
    Collector = object

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

    def describe(self) -> Iterable["Metric"]:
        """Return nothing: a registry then need not collect in order to register."""
        return ()

    def collect(self) -> Iterator["Metric"]:
        """Yield the metrics of all pools. From any thread.

        Yields:
            One family a metric, each with one series a pool or more.
        """
        from ._exposition import metrics  # noqa: PLC0415 - at the first scrape, see above

        yield from metrics([pool.stats() for pool in self._pools])


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
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415 - at the first scrape, see above

    from ._exposition import style_of, write  # noqa: PLC0415

    try:
        encode, content_type = choose_encoder(wish)
    except (TypeError, ValueError):  # asked for a version that is no number
        encode, content_type = choose_encoder(kind)
    style = style_of(content_type)
    body = encode(PoolCollector(pools)) if style is None else write([pool.stats() for pool in pools], style)
    return body, content_type


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
