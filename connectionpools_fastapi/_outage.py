"""Outage: what is known of a back-end on which `create` fails, and when to try again."""

from collections.abc import Callable

# 0.1 s, doubled at each failure, at most 1.6 s: a back-end that comes back is in use again
# within two seconds. Half of each pause is left to chance, so that many processes do not
# knock at once ("equal jitter", M. Brooker, "Exponential Backoff And Jitter").
FIRST_PAUSE = 0.1
LAST_PAUSE = 1.6


class Outage:
    """The failures of `create` since it last succeeded."""

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self.failures = 0
        self.cause: BaseException | None = None
        self.retry_at = 0.0
        self._failed_at = 0.0

    def note(self, cause: BaseException, *, started: float, now: float) -> None:
        """Count a failure and put the next try off."""
        self.cause = cause
        if self.failures and started <= self._failed_at:
            return  # begun before the last failure, it says nothing new
        self.failures += 1
        self._failed_at = now
        pause = min(FIRST_PAUSE * 2 ** min(self.failures - 1, 16), LAST_PAUSE)
        self.retry_at = now + pause * (0.5 + 0.5 * self._chance())

    def end(self) -> None:
        """Take note that `create` succeeded."""
        self.failures = 0
        self.cause = None

    def retry_after(self, now: float) -> float:
        """Say in how many seconds the next try is due; never 0, also while it is under way."""
        return max(FIRST_PAUSE / 2, self.retry_at - now)
