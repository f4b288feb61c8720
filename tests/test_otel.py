"""OpenTelemetry sees what stats() says."""

import asyncio

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint

from connectionpools_fastapi import ConnectionPool, PoolTimeout
from connectionpools_fastapi.otel import observe_pools


def test_counts_are_exported_under_the_names_of_the_semantic_conventions() -> None:
    async def use() -> dict[tuple[str, ...], float]:
        async with ConnectionPool(create=object, limit=2, name="db") as pool:
            observe_pools(pool, meter=provider.get_meter("test"))
            one, two = await pool.acquire(), await pool.acquire()
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0)
            await pool.release(one)
            seen = read(reader)
            await pool.release(two)
            return seen

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    assert asyncio.run(use()) == {
        ("db.client.connection.count", "db", "idle"): 1,
        ("db.client.connection.count", "db", "used"): 1,
        ("db.client.connection.max", "db"): 2,
        ("db.client.connection.pending_requests", "db"): 0,
        ("db.client.connection.timeouts", "db"): 1,
    }
    provider.shutdown()


def read(reader: InMemoryMetricReader) -> dict[tuple[str, ...], float]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        (metric.name, *map(str, (point.attributes or {}).values())): point.value
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
        if isinstance(point, NumberDataPoint)
    }
