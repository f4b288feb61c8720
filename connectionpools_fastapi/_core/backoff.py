"""Backoff: what the pool knows of a back-end while `create` fails, and when to try again."""

from collections.abc import Callable

from ..errors import PoolConfigError, WrongEventLoop
from .slot import LONG_AGO, NEVER

# The first retry comes at once, since most failures are flakes. The next pause is 0.1 s and doubles at each failure,
# up to 0.5 s: the pool soon uses a back-end that comes back. Each pause has a random part, so that many processes do
# not retry at once; it is so small that one process never makes more than 40 tries in 10 s.
FIRST_PAUSE = 0.1
LAST_PAUSE = 0.5
IDLE_PAUSE = 4.0  # while no callers come
JITTER = 0.3

# A back-end is down once `create` has failed this often in a row, and the first failure is this many seconds old.
LEAST_FAILURES = 2
TOLERANCE = 1.0

# How long a caller waits, while the back-end is down, for the try that it has started, in seconds.
RETRY_PATIENCE = 1.0

# Errors that waiting does not mend: mistakes in `create`, or in the setup of the pool.
MISTAKES = (TypeError, AttributeError, NameError, ImportError, PoolConfigError, WrongEventLoop)


class Backoff:
    """The failures of `create` since it last succeeded."""

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self.failures = 0
        self.noted = 0  # all failures ever: tells what was known when a call of `create` began
        self.cause: BaseException | None = None
        self.retry_at = LONG_AGO
        self.down_at = NEVER  # from when on the back-end is down, unless a resource exists
        self._wanted_at = LONG_AGO
        # The failures since the pool last had a resource: closing that one may have made room.
        self._recent = 0
        self._recent_since = 0.0

    @property
    def is_mistake(self) -> bool:
        """Whether the last failure is one of the code, not of the back-end."""
        return isinstance(self.cause, MISTAKES)

    def note(self, cause: BaseException, *, known: int, now: float, wanted: bool) -> bool:
        """Count a failure and put the next try off; False if `create` began before the last failure.

        Args:
            cause: What `create` raised.
            known: What `noted` was when it was called.
            now: The time.
            wanted: Whether callers wait.
        """
        self.cause = cause
        if self.failures and known < self.noted:
            return False  # it tells nothing new
        self.noted += 1
        self.failures += 1
        self._recent += 1
        if self._recent == 1:
            self._recent_since = now
        if self.is_mistake:
            self.down_at = now
        else:
            self.down_at = self._recent_since + TOLERANCE if self._recent >= LEAST_FAILURES else NEVER
        # A cancelled `create` is no flake: most often its loop is ending, and would have to wait for a retry at once.
        is_flake = self.failures == 1 and isinstance(cause, Exception)
        pause = 0.0 if is_flake else FIRST_PAUSE * 2.0 ** min(max(0, self.failures - 2), 16)
        share = 1.0 - JITTER * self._chance()
        self.retry_at = now + min(pause, IDLE_PAUSE) * share
        self._wanted_at = now + min(pause, LAST_PAUSE) * share
        if wanted:
            self.ask()
        return True

    def ask(self) -> None:
        """Note that a caller wants the next try, which then comes sooner."""
        self.retry_at = min(self.retry_at, self._wanted_at)

    def retry_at_once(self) -> None:
        """Try again at once, since the pool has just closed a resource: there may be room for another."""
        self.retry_at = LONG_AGO

    def begin_anew(self) -> None:
        """Count failures from 0 and retry at once, since the last resource has gone."""
        self._recent = 0
        self.down_at = NEVER
        self.retry_at_once()

    def end(self) -> None:
        """Note that `create` succeeded."""
        self.failures = self._recent = 0
        self.cause = None
        self.retry_at = LONG_AGO
        self.down_at = NEVER

    def retry_after(self, now: float) -> float:
        """Say in how many seconds the next try is due; never 0, also while it is under way."""
        return max(FIRST_PAUSE / 2, self.retry_at - now)
