"""Counters: what has happened in a pool since it was made, counted and notified to its listeners."""

from ..stats import CREATE_BOUNDS, USE_BOUNDS, WAIT_BOUNDS, Histogram
from .effects import EffectQueue
from .recorder import Recorder


class Counters:
    """Counters that change under the pool's lock; each slot counts its own uses."""

    def __init__(self, effects: EffectQueue) -> None:
        self._notify = effects.notify
        self.timeouts = 0
        self.withdrawals = 0
        self.create_failures = 0
        self.cleans = 0
        self.clean_failures = 0
        self.detached = 0
        self.refusals: dict[str, int] = dict.fromkeys(("closed", "deadlock", "full", "overloaded", "unavailable"), 0)
        self.refusals_by_rank = [0, 0, 0]
        # By reason: what happened, or the setting that was reached.
        self.discards: dict[str, int] = dict.fromkeys(
            (
                "broken",
                "budget",
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

    def note_refusal(self, reason: str, rank: int) -> None:
        """Count a caller that was refused, by the rank of its priority."""
        self.refusals[reason] += 1
        self.refusals_by_rank[rank] += 1
        self._notify("on_refuse", reason)

    def note_timeout(self, waited: float) -> None:
        """Count a caller whose timeout has passed."""
        self.timeouts += 1
        self._notify("on_timeout", waited)

    def note_withdrawal(self, waited: float) -> None:
        """Count a caller that was cancelled, or whose client went away."""
        self.withdrawals += 1
        self._notify("on_withdraw", waited)

    def note_create(self, took: float) -> None:
        """Count a resource that `create` has returned."""
        self.create.record(took)
        self._notify("on_create", took)

    def note_create_failure(self, cause: BaseException) -> None:
        """Count a call of `create` that has raised."""
        self.create_failures += 1
        self._notify("on_create_failed", cause)

    def note_discard(self, reason: str) -> None:
        """Count a resource that is retired."""
        self.discards[reason] += 1
        self._notify("on_discard", reason)

    def note_clean(self, *, failed: bool) -> None:
        """Count a resource whose `clean` is over."""
        self.cleans += 1
        self.clean_failures += failed
        self._notify("on_clean")

    def note_detach(self) -> None:
        """Count a resource that belongs to its caller from now on."""
        self.detached += 1
        self._notify("on_detach")

    def wait_of(self, acquires: int) -> Histogram:
        """Return the waits of all acquires, adding those of the fast path, which counts none."""
        waited = self.wait.snapshot()
        at_once = acquires - waited.count
        return Histogram(waited.bounds, (waited.counts[0] + at_once, *waited.counts[1:]), waited.sum)
