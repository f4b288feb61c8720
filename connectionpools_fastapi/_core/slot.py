"""Slot: one resource and what the pool knows of it."""

from bisect import bisect_left
from typing import Any, Generic, Literal, TypeVar
from weakref import ReferenceType

from ..stats import USE_BOUNDS

# A call stack, last call first; its entries are those of `traceback.StackSummary.from_list`.
Stack = list[tuple[str, int, str, str | None]]

T = TypeVar("T")

# What an error means for the resource whose lease met it.
Verdict = Literal["keep", "check", "discard", "expire"]

NEVER = float("inf")

LONG_AGO = -NEVER


class Slot(Generic[T]):
    """One resource. The collection of the pool that holds it is its state."""

    __slots__ = (
        "asked",
        "checked_at",
        "due_at",
        "fresh_until",
        "generation",
        "holder",
        "key",
        "lease",
        "leases",
        "pace",
        "resource",
        "retire_at",
        "since",
        "stack",
        "use_counts",
        "use_sum",
        "verdict",
        "waited",
    )

    def __init__(self, resource: T, generation: int, now: float) -> None:
        self.resource = resource
        self.key = id(resource)
        self.generation = generation
        self.fresh_until = now  # up to then it may be used without a check
        # The gravest verdict of its manager since it was leased out: on an error, or as it came back.
        self.verdict: Verdict | None = None
        self.since = now  # when its lease began, or ended
        self.checked_at = LONG_AGO  # set only if it is used: each further float takes 24 bytes
        self.leases = 0  # how often it was leased out, which distinguishes one lease of it from the next
        # Its last lease whose caller teaches patience: the number of the lease, and when its caller asked for it.
        self.asked: tuple[int, float] = (0, LONG_AGO)
        # Its last lease that had to wait: the number of the lease, and how long its caller waited.
        self.waited: tuple[int, float] = (0, 0.0)
        # The holder: a name that was given, or else what `lease` refers to: the lease itself
        # or, for one made by hand, the task or thread in which it began. It keeps neither alive.
        self.holder: object = None
        self.lease: ReferenceType[Any] | None = None
        self.stack: Stack | None = None  # where it was acquired, in debug mode
        # For maintenance: its own random factor, when it has to go, when it is due next.
        self.pace = 1.0
        self.retire_at = self.due_at = NEVER
        # How long its leases lasted, as a histogram. Kept here and not by the pool: a slot has one owner
        # at a time, so no lock is needed.
        self.use_counts = [0] * (len(USE_BOUNDS) + 1)
        self.use_sum = 0.0

    def wait(self) -> float:
        """Return how long the caller of its last lease waited for it."""
        lease, waited = self.waited
        return waited if lease == self.leases else 0.0

    def record_use(self, seconds: float) -> None:
        """Count a lease that has ended."""
        self.use_counts[bisect_left(USE_BOUNDS, seconds)] += 1
        self.use_sum += seconds


class Creation:
    """One call of `create` under way."""

    __slots__ = ("generation", "has_token", "known", "patience_ends", "started")

    def __init__(self, generation: int, started: float, known: int = 0) -> None:
        self.generation = generation
        self.started = started
        self.known = known  # how many failures had been noted when it began
        self.has_token = False  # whether the budget, if there is one, allows it
        # Until when callers wait for it although the back-end is down, because one of them has started it.
        self.patience_ends = LONG_AGO
