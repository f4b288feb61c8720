"""OpenTelemetry sees what stats() says."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint

from connectionpools_fastapi import ConnectionPool, PoolTimeout
from connectionpools_fastapi.otel import observe_pools
from connectionpools_fastapi.stats import USE_BOUNDS

PREFIX = "db.client.connection"


def test_counts_have_semantic_convention_names() -> None:
    async def use() -> dict[tuple[str, ...], float]:
        async with ConnectionPool(create=object, limit=3, min_free=1, name="db") as pool:
            observe_pools(pool, meter=provider.get_meter("test"))
            one, two, three = [await pool.acquire() for _ in range(3)]
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0)
            await pool.release(one)
            seen = read(reader)
            await pool.release(two)
            await pool.release(three)
            return seen

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    assert asyncio.run(use()) == {
        ("db.client.connection.count", "db", "idle"): 1,
        ("db.client.connection.count", "db", "used"): 2,
        ("db.client.connection.idle.max", "db"): 3,
        ("db.client.connection.idle.min", "db"): 1,
        ("db.client.connection.max", "db"): 3,
        ("db.client.connection.pending_requests", "db"): 0,
        ("db.client.connection.timeouts", "db"): 1,
    }
    provider.shutdown()


class Clock:
    """A clock that the test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.lists(st.floats(0, 200) | st.sampled_from(USE_BOUNDS), max_size=8), min_size=1, max_size=4))
def test_histograms_have_the_counts_and_sums_of_stats(rounds: list[list[float]]) -> None:
    reader, clock = InMemoryMetricReader(), Clock()
    provider = MeterProvider([reader])
    pool = ConnectionPool(create=object, limit=1, name="db", clock=clock)
    observe_pools(pool, meter=provider.get_meter("test"))
    with pool:
        for uses in rounds:
            for seconds in uses:
                with pool.lease():
                    clock.now += seconds
            seen, stats = histograms(reader), pool.stats()
            for name in ("create", "use", "wait"):
                wanted = getattr(stats, name)
                point = seen.get(f"{PREFIX}.{name}_time")
                if point is None:
                    assert wanted.count == 0
                    continue
                assert point.attributes == {f"{PREFIX}.pool.name": "db"}
                assert tuple(point.explicit_bounds) == wanted.bounds
                assert tuple(point.bucket_counts) == wanted.counts
                assert point.sum == pytest.approx(wanted.sum, abs=1e-6)
    provider.shutdown()


def points(reader: InMemoryMetricReader) -> list[tuple[str, Any]]:
    data = reader.get_metrics_data()
    assert data is not None
    return [
        (metric.name, point)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    ]


def histograms(reader: InMemoryMetricReader) -> dict[str, HistogramDataPoint]:
    return {name: point for name, point in points(reader) if isinstance(point, HistogramDataPoint)}


def read(reader: InMemoryMetricReader) -> dict[tuple[str, ...], float]:
    return {
        (name, *map(str, (point.attributes or {}).values())): point.value
        for name, point in points(reader)
        if isinstance(point, NumberDataPoint)
    }
