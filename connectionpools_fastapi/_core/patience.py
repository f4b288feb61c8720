"""Patience: how long callers wait before they leave, learned from those that left."""

from .slot import LONG_AGO, NEVER

# How far one caller that left moves the estimate towards its age. Down quickly: until then, resources serve
# callers that are about to leave. Up slowly: some callers are more patient than others.
DOWN, UP = 0.3, 0.02

# The estimate grows by this factor in a second, so that a wrong one does not last.
GROWTH = 1.03
LONGEST_GROWTH = 600.0  # seconds: beyond that, the number could grow beyond all numbers

# The weight of one outcome in the share of callers that were lost, and the share from which on patience matters.
WEIGHT = 0.02
LOST_TOO_MANY = 0.1
FORGOTTEN = 0.001  # as good as none
SUSPECTED = 0.01

# The longest wait of a newcomer, and the highest age of a caller at the end of its lease, as parts of the patience.
WAIT_PART, AGE_PART = 0.6, 0.85


class Patience:
    """The estimate, and whether so many callers are lost (left or refused) that it matters.

    Callers that leave together teach once: a client that leaves of its own accord leaves between the arrivals of
    others, while a task group that is cancelled takes all its callers along.
    """

    def __init__(self) -> None:
        self.learned = NEVER  # the estimate at the last lesson
        self.lost = 0.0  # the share of recent outcomes, up to 1
        self.is_tried = False  # whether patience is known, and too many callers are lost
        self.has_newcomer = True  # since the last lesson
        self._learned_at = LONG_AGO

    def forget(self) -> None:
        """Know nothing."""
        self.learned = NEVER
        self.lost = 0.0
        self.is_tried = False

    def leave(self, age: float, now: float) -> None:
        """Learn from a caller that left, so long after it had asked for a resource."""
        if self.has_newcomer:
            self.has_newcomer = False
            before = self.estimate(now)
            part = DOWN if age < before else UP
            self.learned = age if before == NEVER else before + part * (age - before)
            self._learned_at = now
            self.lose()

    def lose(self) -> None:
        """Note a caller that was refused, or left."""
        self.lost += WEIGHT * (1.0 - self.lost)
        self.is_tried = self.lost > LOST_TOO_MANY and self.learned < NEVER

    def suspect(self) -> None:
        """Note that callers may be lost, so that the next ones are looked at."""
        self.lost = max(self.lost, SUSPECTED)

    def serve(self) -> None:
        """Note a caller that got a resource."""
        self.lost -= WEIGHT * self.lost
        if self.lost < FORGOTTEN:
            self.lost = 0.0
        self.is_tried = self.is_tried and self.lost > LOST_TOO_MANY

    def estimate(self, now: float) -> float:
        """Return how long callers wait before they leave, in seconds; infinity if unknown."""
        growth: float = GROWTH ** min(now - self._learned_at, LONGEST_GROWTH)
        return self.learned * growth

    def longest_wait(self, hold: float, now: float) -> float:
        """Return how long a newcomer may have to wait, if it holds a resource so long after that."""
        patience = self.estimate(now)
        return min(WAIT_PART * patience, AGE_PART * patience - hold)

    def is_spent(self, age: float, hold: float, now: float) -> bool:
        """Whether a waiter of this age is likely to leave before it has held a resource so long."""
        return age + hold > AGE_PART * self.estimate(now)
