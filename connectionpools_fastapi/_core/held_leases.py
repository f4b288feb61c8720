"""HeldLeases: which leases go on, for how long, and which task, thread or request holds each."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, Self
from weakref import ReferenceType

from .slot import NEVER, Slot, Stack


class LoanRecord(Protocol):
    """What a state knows of a `Loan`."""

    is_over: bool
    has_failed: bool
    lent: Any

    def end(self, holder: object, lease: ReferenceType[Any] | None) -> None:
        """Note that the lease has ended."""

    def keep(self) -> None:
        """Note that the caller keeps the resource for good, without the pool."""


@dataclass(frozen=True, slots=True)
class LeaseSnapshot:
    """One lease at one moment. Its holder is named after the lock is released, since that runs users' code."""

    holder: object
    lease: object
    age: float
    wait: float  # how long its caller waited for it
    uses: int  # how often the resource was leased, this lease included
    responding: float | None  # how long ago its request's response has begun
    stack: Stack | None

    @classmethod
    def of(cls, slot: Slot[Any], now: float) -> Self:
        """Take a snapshot of a slot's lease."""
        reference = slot.lease  # read once: it ends without the pool's lock
        lease = reference() if reference is not None else None
        began_at: float | None = getattr(lease, "_responding_since", None)
        return cls(
            slot.holder,
            lease,
            age=now - slot.since,
            wait=slot.wait(),
            uses=slot.leases,
            responding=None if began_at is None else now - began_at,
            stack=slot.stack,
        )


def owner_of(slot: Slot[Any]) -> object:
    """Return the task, thread or request that holds a slot in a block; None if unknown."""
    lease = slot.lease  # read once: it ends without the pool's lock
    return getattr(lease(), "_owner", None) if lease is not None else None


class HeldLeases:
    """Which leases have lasted longer than `max_hold`, and when to check that next."""

    def __init__(self, max_hold: float | None) -> None:
        self.max_hold = max_hold or NEVER
        self.next_check = NEVER  # infinity while no lease is known
        self.is_unscheduled = self.max_hold < NEVER  # then the next lease has to schedule a check
        self._warned: set[tuple[int, int]] = set()  # the leases, by slot and turn, that were reported as overdue

    def schedule(self, now: float) -> None:
        """Schedule a check of a lease that begins now."""
        if self.is_unscheduled:
            self.next_check = now + self.max_hold
            self.is_unscheduled = False

    def overdue(self, leased: Iterable[Slot[Any]], now: float) -> list[LeaseSnapshot]:
        """Return, once each, the leases that have lasted too long; the next check has to be scheduled after it."""
        self.next_check = NEVER
        self.is_unscheduled = True
        self._warned.intersection_update(map(_turn, leased))
        overdue = []
        for slot in leased:
            if (
                now >= slot.since + self.max_hold and _turn(slot) not in self._warned
            ):  # the same sum as below, to the bit
                self._warned.add(_turn(slot))
                overdue.append(LeaseSnapshot.of(slot, now))
        return overdue

    def schedule_next(self, leased: Iterable[Slot[Any]], now: float) -> None:
        """Schedule the next check for when the first other lease, or one that is just beginning, will be overdue."""
        later = (slot.since + self.max_hold for slot in leased if _turn(slot) not in self._warned)
        self.next_check = min(later, default=now + self.max_hold)
        self.is_unscheduled = False


def _turn(slot: Slot[Any]) -> tuple[int, int]:
    """Return what distinguishes one lease of a slot from the next."""
    return slot.key, slot.leases
