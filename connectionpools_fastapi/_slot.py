"""Slot: one resource and what the pool knows of it."""

from bisect import bisect_left
from typing import Any, Generic
from weakref import ReferenceType

from ._owner import Stack
from .manager import T
from .stats import USE_BOUNDS

NEVER = float("inf")
LONG_AGO = -NEVER


class Slot(Generic[T]):
    """One resource. Its state is which of the pool's collections it is in."""

    __slots__ = (
        "checked_at",
        "doubted",
        "fresh_until",
        "generation",
        "holder",
        "key",
        "lease",
        "leases",
        "look_at",
        "pace",
        "resource",
        "retire_at",
        "since",
        "stack",
        "use_counts",
        "use_sum",
    )

    def __init__(self, resource: T, generation: int, now: float) -> None:
        self.resource = resource
        self.key = id(resource)
        self.generation = generation
        self.fresh_until = now  # up to then it may be used without a check
        self.doubted = False  # when it came back the last time, by its manager
        self.since = now  # when its lease began, or ended
        self.checked_at = LONG_AGO  # noted where it matters: each float of its own takes 24 bytes
        self.leases = 0  # how often it was leased out, which tells one lease of it from the next
        # Who has it: a name that was given, or else what `lease` still finds: the lease itself
        # or, of one made by hand, the task or thread in which it began. Kept alive by neither.
        self.holder: object = None
        self.lease: ReferenceType[Any] | None = None
        self.stack: Stack | None = None  # where it was acquired, in debug mode
        # Upkeep's notes: its own share of chance, when it has to go, when to look at it again.
        self.pace = 1.0
        self.retire_at = self.look_at = NEVER
        # How long its leases lasted, as a histogram. Kept here and not by the pool: a slot has one owner
        # at a time, so no lock is needed.
        self.use_counts = [0] * (len(USE_BOUNDS) + 1)
        self.use_sum = 0.0

    def record_use(self, seconds: float) -> None:
        """Count a lease that has ended."""
        self.use_counts[bisect_left(USE_BOUNDS, seconds)] += 1
        self.use_sum += seconds


class Creation:
    """One call of `create` under way."""

    __slots__ = ("generation", "started")

    def __init__(self, generation: int, started: float) -> None:
        self.generation = generation
        self.started = started
