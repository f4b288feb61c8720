"""Totals: what happened in a pool since it was made."""

from .stats import CREATE_BOUNDS, USE_BOUNDS, WAIT_BOUNDS, Histogram, Recorder


class Totals:
    """Counters that are changed under the pool's lock; slots keep those of their uses themselves."""

    def __init__(self) -> None:
        self.timeouts = 0
        self.withdrawals = 0
        self.create_failures = 0
        self.cleans = 0
        self.clean_failures = 0
        self.detached = 0
        self.refusals: dict[str, int] = dict.fromkeys(("closed", "deadlock", "full", "unavailable"), 0)
        # By what was said, or by the setting that says it.
        self.discards: dict[str, int] = dict.fromkeys(
            (
                "change",
                "check",
                "discard",
                "expire",
                "leak",
                "max_idle",
                "max_lifetime",
                "max_uses",
                "resize",
                "retain",
            ),
            0,
        )
        self.wait = Recorder(WAIT_BOUNDS)
        self.create = Recorder(CREATE_BOUNDS)
        self.past_use = Recorder(USE_BOUNDS)

    def wait_of(self, acquires: int) -> Histogram:
        """Add to those who waited the others, whom nobody counts as they pass."""
        waited = self.wait.snapshot()
        at_once = acquires - waited.count
        return Histogram(waited.bounds, (waited.counts[0] + at_once, *waited.counts[1:]), waited.sum)
