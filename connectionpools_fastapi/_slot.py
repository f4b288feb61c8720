"""Slot: one resource and what the pool knows of it."""

from typing import Generic

from ._waiters import Waiter
from .manager import T
from .stats import USE_BOUNDS, Recorder


class Slot(Generic[T]):
    """One resource. Its state is which of the pool's collections it is in."""

    __slots__ = ("done", "fresh_until", "generation", "holder", "key", "leases", "owner", "resource", "since", "use")

    def __init__(self, resource: T, generation: int, fresh_until: float) -> None:
        self.resource = resource
        self.key = id(resource)
        self.generation = generation
        self.fresh_until = fresh_until  # up to then it may be used without a check
        self.since = 0.0  # when its lease began
        self.leases = 0  # how often it was leased out, which tells one lease of it from the next
        self.holder: object = None  # whose str() names who has it
        self.owner: object = None  # on whose behalf it is leased, where that is known
        self.done: Waiter[T] | None = None  # who waits for its change to be over
        # Kept here and not by the pool: a slot has one owner at a time, so no lock is needed.
        self.use = Recorder(USE_BOUNDS)


class Creation:
    """One call of `create` under way."""

    __slots__ = ("generation", "started")

    def __init__(self, generation: int, started: float) -> None:
        self.generation = generation
        self.started = started
