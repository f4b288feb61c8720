"""MultiprocessFiles: the metrics of pools among those of prometheus-client's own multi-process mode.

There each process writes its metrics into files of the directory PROMETHEUS_MULTIPROC_DIR, from which any process
answers for all. A collector is not asked in this mode, so the numbers of pools are written there now and then.
"""

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from .._runtime.current import current_loop
from .._runtime.log import facts, logger
from ..errors import describe
from ..stats import Observable

# prometheus-client is imported late, as in `metrics`.
if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from .._runtime.loop import Loop, Timer

# How old the numbers of a worker may be, in seconds.
EVERY = 1.0
# Gauges that add up over processes; of the others, the highest counts.
SUMS = frozenset(("resources", "limit", "waiting", "peak_taken", "peak_waiting", "priority_waiting", "budget_held"))

NOT_WRITTEN = (
    "the metrics of pools do not reach the files in PROMETHEUS_MULTIPROC_DIR: %s. Set it before the service starts, to "
    "a directory that the service may write; /pool/metrics of any worker has them in any case"
)

# The process's numbers, as its files hold them, and what a former process of the same id has left in them.
_VALUES: dict[tuple[str, frozenset[tuple[str, str]]], tuple[Any, float]] = {}
_WRITTEN: WeakSet[Observable] = WeakSet()


def is_written(pool: Observable) -> bool:
    """Whether this process writes the numbers of a pool into the files."""
    return pool in _WRITTEN


class MultiprocessFiles:
    """Writes the numbers of an application's pools while it runs, if prometheus-client is in that mode."""

    def __init__(self) -> None:
        self._pools: list[Observable] = []
        self._timer: Timer | None = None

    def start(self, pools: Iterable[Observable]) -> None:
        """Write the numbers of these pools now, and each second from now on."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ and "prometheus_multiproc_dir" not in os.environ:
            return
        from prometheus_client import values  # noqa: PLC0415 - see above

        if values.ValueClass is values.MutexValue:
            why = "prometheus_client was imported before it was set"
            logger.warning(NOT_WRITTEN, why, extra=facts("metrics_not_written", None))
            return
        loop = current_loop()
        self._pools = list(pools)
        try:
            self._write()
        except OSError as error:
            logger.warning(
                NOT_WRITTEN, describe(error), extra=facts("metrics_not_written", None, error=type(error).__name__)
            )
            return
        _WRITTEN.update(self._pools)
        if loop is not None:
            self._write_later(loop)

    def stop(self) -> None:
        """Write the totals a last time, and gauges of 0: the process ends."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._write(is_over=True)
            _WRITTEN.difference_update(self._pools)

    def _write_later(self, loop: "Loop") -> None:
        def write() -> None:
            self._write_later(loop)
            self._write()

        self._timer = loop.call_later(EVERY, write)

    def _write(self, *, is_over: bool = False) -> None:
        from .families import families  # noqa: PLC0415 - see above

        for family in families([((pool.name,), pool.stats()) for pool in self._pools]):
            for name, labels, number in _numbers(family):
                value, before = _value(family, name, labels)
                if family.type == "gauge":
                    value.set(0.0 if is_over else number)
                else:
                    value.set(before + number)


def _numbers(family: "Metric") -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield the name, labels and number of each series, as the files hold them: buckets are not cumulative there."""
    below = 0.0
    for sample in family.samples:
        number = sample.value
        if sample.name == f"{family.name}_count":  # it follows the buckets; the reader counts it itself
            below = 0.0
            continue
        if sample.name == f"{family.name}_bucket":
            number, below = number - below, number
        yield sample.name, sample.labels, number


def _value(family: "Metric", name: str, labels: dict[str, str]) -> tuple[Any, float]:
    from prometheus_client.values import ValueClass  # noqa: PLC0415 - see above

    from .families import PREFIX  # noqa: PLC0415 - see above

    key = name, frozenset(labels.items())
    if key not in _VALUES:
        mode = "livesum" if name.removeprefix(f"{PREFIX}_") in SUMS else "livemax"
        value = ValueClass(
            *(family.type, family.name, name, list(labels), list(labels.values()), family.documentation),
            multiprocess_mode=mode,
        )
        _VALUES[key] = value, value.get()
    return _VALUES[key]
