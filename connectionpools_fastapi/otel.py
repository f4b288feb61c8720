"""OpenTelemetry: stats of pools as instruments, and waits as spans; needs the extra `otel`.

Names and states are those of OpenTelemetry's semantic conventions for database client
connection pools, which call free idle, and taken used.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from operator import mul, sub
from typing import Any

from ._core.policy import check_seconds
from ._runtime.hook_context import HOOK_CONTEXT
from .listener import PoolListener
from .pool import ConnectionPool
from .stats import CREATE_BOUNDS, USE_BOUNDS, WAIT_BOUNDS, Histogram, Observable, ObservedStats, PoolStats

try:
    from opentelemetry.context import Context, attach
    from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter
    from opentelemetry.trace import (
        NonRecordingSpan,
        SpanContext,
        StatusCode,
        Tracer,
        get_current_span,
        get_tracer,
        set_span_in_context,
    )
except ImportError as _error:  # pragma: no cover - tested by hand: newer versions of FastAPI bring it along
    msg = "connectionpools_fastapi.otel needs OpenTelemetry: pip install 'connectionpools-fastapi[otel]'"
    raise ImportError(msg) from _error

PREFIX = "db.client.connection"
POOL = f"{PREFIX}.pool.name"
STATE = f"{PREFIX}.state"
# The conventions know no waits; these names are the package's own.
POSITION = "connectionpool.wait.position"
OUTCOME = "connectionpool.wait.outcome"

Callback = Callable[[CallbackOptions], Iterable[Observation]]


def observe_pools(*pools: Observable, meter: Meter | None = None) -> None:
    """Make OpenTelemetry read the stats of pools at each collection.

    It exports all nine metrics of the conventions. A lease costs nothing more: at each collection the
    histograms get what `stats()` has counted since the last one, with the same count in each bucket and
    the same sum; their minimum and maximum are bounds of buckets or lie between two of them. Call it once
    a pool, after you have set the meter provider.

    Args:
        pools: The pools, opened or not; an observed pool exports the counts that it has, and no durations.
        meter: The meter for the instruments; by default one of the global provider.
    """
    instruments = meter if meter is not None else get_meter("connectionpools_fastapi")
    instruments.create_observable_up_down_counter(
        f"{PREFIX}.count",
        [_by_state(pools), _Durations(pools, instruments).record],
        unit="{connection}",
        description="Resources by state.",
    )
    for name, unit, read, text in (
        ("idle.max", "{connection}", _limit, "The most resources that may be free."),
        ("idle.min", "{connection}", _min_free, "The fewest free resources that the pool keeps ready."),
        ("max", "{connection}", _limit, "The most resources that may exist at once."),
        ("pending_requests", "{request}", lambda stats: stats.waiting, "Callers in the queue."),
    ):
        instruments.create_observable_up_down_counter(
            f"{PREFIX}.{name}", [_each(pools, read)], unit=unit, description=text
        )
    instruments.create_observable_counter(
        f"{PREFIX}.timeouts",
        [_each(pools, lambda stats: stats.timeouts if isinstance(stats, PoolStats) else None)],
        unit="{timeout}",
        description="Callers that waited in vain.",
    )


def trace_pools(*pools: ConnectionPool[Any], threshold: float = 0.01, tracer: Tracer | None = None) -> None:
    """Make OpenTelemetry show in the trace of a request that it waited for a resource.

    A caller that waited for at least `threshold` gets a span `acquire` within its current span, with the pool, its
    place in the queue, and the outcome; one that did not wait, or has no current span, gets none. From this call
    on, hooks of all pools of the process begin no traces of their own: what an instrumented driver does in
    `create`, `check`, `change` or `clean` is not recorded by a sampler that follows the parent, as the default
    does. Call it once a pool, after you have set the tracer provider.

    Args:
        pools: The pools, opened or not.
        threshold: How long a caller has to wait for a span, in seconds; 0 for each caller that waits.
        tracer: The tracer for the spans; by default one of the global provider.

    Raises:
        PoolConfigError: If `threshold` is no duration.
    """
    check_seconds("trace_pools", "threshold", threshold, hint="as threshold=0.01")
    listener = _WaitSpans(tracer if tracer is not None else get_tracer("connectionpools_fastapi"), threshold)
    HOOK_CONTEXT.run(attach, set_span_in_context(_NOT_RECORDED, Context()))
    for pool in pools:
        pool.add_listener(listener)


# The parent of all spans of hooks: a span of a trace that is not sampled.
_NOT_RECORDED = NonRecordingSpan(SpanContext(trace_id=1, span_id=1, is_remote=False))


class _WaitSpans(PoolListener):
    """Records a span for each long wait of a caller that has a current span."""

    def __init__(self, tracer: Tracer, threshold: float) -> None:
        self._tracer = tracer
        self._threshold = threshold

    def on_wait(self, pool: str, waited: float, position: int, outcome: str) -> None:
        """Record the wait that has just ended."""
        if waited < self._threshold or not get_current_span().get_span_context().is_valid:
            return
        ended = time.time_ns()
        span = self._tracer.start_span(
            "acquire",
            start_time=ended - round(waited * 1e9),
            attributes={POOL: pool, POSITION: position, OUTCOME: outcome},
        )
        if outcome != "acquired":
            span.set_attribute("error.type", outcome)
            span.set_status(StatusCode.ERROR)
        span.end(ended)


class _Durations:
    """Histograms of wait, use and create, filled at each collection from the counts of `stats()`."""

    def __init__(self, pools: tuple[Observable, ...], meter: Meter) -> None:
        self._pools = pools
        self._instruments = {
            name: meter.create_histogram(
                f"{PREFIX}.{name}_time", unit="s", description=text, explicit_bucket_boundaries_advisory=bounds
            )
            for name, bounds, text in (
                ("create", CREATE_BOUNDS, "How long create took where it succeeded."),
                ("use", USE_BOUNDS, "How long leases were held."),
                ("wait", WAIT_BOUNDS, "How long callers waited that got a resource."),
            )
        }
        self._recorded = [{name: Histogram((), (), 0.0) for name in self._instruments} for _ in pools]

    def record(self, _: CallbackOptions) -> Iterable[Observation]:
        """Record what was counted since the last call. It is a callback for its moment, and observes nothing."""
        for pool, recorded in zip(self._pools, self._recorded, strict=True):
            stats = pool.stats()
            if isinstance(stats, PoolStats):
                for name, instrument in self._instruments.items():
                    found: Histogram = getattr(stats, name)
                    for seconds in _since(recorded[name], found):
                        instrument.record(seconds, {POOL: stats.name})
                    recorded[name] = found
        return ()


def _since(before: Histogram, now: Histogram) -> Iterator[float]:
    """Yield durations that change one histogram into the other: right in the count of each bucket, and in their sum.

    All lie equally far between the bounds of their buckets.
    """
    counts = [*map(sub, now.counts, before.counts or repeat(0))]
    total = max(0.0, now.sum - before.sum)
    lower = (0.0, *now.bounds)
    # The durations above all bounds have a mean of at most this.
    upper = (*now.bounds, max(now.bounds[-1], total / counts[-1]) if counts[-1] else now.bounds[-1])
    least, most = sum(map(mul, counts, lower)), sum(map(mul, counts, upper))
    part = min(1.0, max(1e-9, (total - least) / (most - least))) if most > least else 1.0
    for count, low, high in zip(counts, lower, upper, strict=True):
        yield from repeat(low + part * (high - low), count)


def _limit(stats: PoolStats | ObservedStats) -> int | None:
    return stats.limit


def _min_free(stats: PoolStats | ObservedStats) -> int | None:
    return stats.min_free if isinstance(stats, PoolStats) else None


def _each(pools: tuple[Observable, ...], read: Callable[[PoolStats | ObservedStats], int | None]) -> Callback:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        found = [(pool.name, read(pool.stats())) for pool in pools]
        return [Observation(value, {POOL: name}) for name, value in found if value is not None]

    return observe


def _by_state(pools: tuple[Observable, ...]) -> Callback:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        for pool in pools:
            stats = pool.stats()
            for state, value in (("idle", stats.free), ("used", stats.taken)):
                if value is not None:
                    yield Observation(value, {POOL: pool.name, STATE: state})

    return observe
