"""OpenTelemetry: stats of pools as observable instruments; needs the extra `otel`.

Names and states are those of OpenTelemetry's semantic conventions for database client
connection pools: free is called idle there, taken used.
"""

from collections.abc import Callable, Iterable
from typing import Any

from .pool import ConnectionPool
from .stats import PoolStats

try:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter
except ImportError as _error:  # pragma: no cover - told by hand: newer versions of FastAPI bring it along
    msg = "connectionpools_fastapi.otel needs OpenTelemetry: pip install 'connectionpools-fastapi[otel]'"
    raise ImportError(msg) from _error

POOL = "db.client.connection.pool.name"
STATE = "db.client.connection.state"

Callback = Callable[[CallbackOptions], Iterable[Observation]]


def observe_pools(*pools: ConnectionPool[Any], meter: Meter | None = None) -> None:
    """Have OpenTelemetry read the stats of pools at each of its collections.

    Counts are exported (resources by state, limit, waiting, timeouts); durations are not:
    observable instruments have no histograms. Call it once a pool, after the meter
    provider was set.

    Args:
        pools: The pools, opened or not.
        meter: Where to create the instruments; by default one of the global provider.
    """
    instruments = meter if meter is not None else get_meter("connectionpools_fastapi")
    instruments.create_observable_up_down_counter(
        "db.client.connection.count", [_by_state(pools)], unit="{connection}", description="Resources by state."
    )
    for name, unit, read, text in (
        ("max", "{connection}", lambda stats: stats.limit, "The most resources that may exist at once."),
        ("pending_requests", "{request}", lambda stats: stats.waiting, "Callers in the queue."),
    ):
        instruments.create_observable_up_down_counter(
            f"db.client.connection.{name}", [_each(pools, read)], unit=unit, description=text
        )
    instruments.create_observable_counter(
        "db.client.connection.timeouts",
        [_each(pools, lambda stats: stats.timeouts)],
        unit="{timeout}",
        description="Callers that waited in vain.",
    )


def _each(pools: tuple[ConnectionPool[Any], ...], read: Callable[[PoolStats], int]) -> Callback:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(read(pool.stats()), {POOL: pool.name}) for pool in pools]

    return observe


def _by_state(pools: tuple[ConnectionPool[Any], ...]) -> Callback:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        for pool in pools:
            stats = pool.stats()
            yield Observation(stats.free, {POOL: pool.name, STATE: "idle"})
            yield Observation(stats.taken, {POOL: pool.name, STATE: "used"})

    return observe
