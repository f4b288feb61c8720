"""OpenTelemetry: stats of pools as observable instruments; needs the extra `otel`.

Names and states are those of OpenTelemetry's semantic conventions for database client
connection pools: free is called idle there, taken used.
"""

from collections.abc import Callable, Iterable

from .stats import Observable, ObservedStats, PoolStats

try:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter
except ImportError as _error:  # pragma: no cover - told by hand: newer versions of FastAPI bring it along
    msg = "connectionpools_fastapi.otel needs OpenTelemetry: pip install 'connectionpools-fastapi[otel]'"
    raise ImportError(msg) from _error

POOL = "db.client.connection.pool.name"
STATE = "db.client.connection.state"

Callback = Callable[[CallbackOptions], Iterable[Observation]]


def observe_pools(*pools: Observable, meter: Meter | None = None) -> None:
    """Have OpenTelemetry read the stats of pools at each of its collections.

    Counts are exported (resources by state, limit, waiting, timeouts); durations are not:
    observable instruments have no histograms. Call it once a pool, after the meter
    provider was set.

    Args:
        pools: The pools, opened or not; of an observed one, what it tells.
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
        [_each(pools, lambda stats: stats.timeouts if isinstance(stats, PoolStats) else None)],
        unit="{timeout}",
        description="Callers that waited in vain.",
    )


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
