"""ByHand: finds leases by hand that are lost: their task or thread has ended, and nothing refers to the resource.

The collector finds a lost lease of a block. A lease by hand has no such object, and its caller may rightly
hand the resource on: `asyncio.wait_for(pool.acquire(), 1)` acquires in a task of its own. So the pool counts
the references to what was lent, from time to time while something is leased by hand.
"""

import sys
from collections.abc import Callable
from typing import Any

from .held_leases import LoanRecord
from .slot import NEVER, Slot

# How often to look, in seconds. Two looks must agree, so that a lease of a block that the collector has just
# found is recovered as such.
LOOK_EVERY = 1.0

# The pause doubles up to this one while a look finds nothing new, in seconds.
LONGEST_PAUSE = 60.0


def _references_to_resource(slot: Slot[Any]) -> int:
    return sys.getrefcount(slot.resource)


def _references_to_lent(loan: LoanRecord) -> int:
    return sys.getrefcount(loan.lent)


# The count of a resource that only its slot refers to.
ALONE = _references_to_resource(Slot(object(), 0, 0.0))


class ByHand:
    """Knows when to look, and what the last look found. Its methods need the pool's lock."""

    __slots__ = (
        *("_has_ended", "_left", "_loans", "_pause", "_references_when_lent", "_seen", "_taken"),
        *("due_at", "is_watched"),
    )

    def __init__(
        self, taken: dict[int, Slot[Any]], loans: dict[int, LoanRecord], has_ended: Callable[[object], bool]
    ) -> None:
        self._has_ended = has_ended  # whether the task or thread that leased a slot has ended
        self._taken = taken
        self._loans = loans
        # Whether a look is due soon; read without the lock by each acquire by hand, after it has noted its owner.
        self.is_watched = False
        self.due_at = NEVER
        self._references_when_lent = 0  # to a lent object, not counting its caller's
        self._pause = LOOK_EVERY
        # The leases that the last look found, by slot and turn; and those of them that nothing referred to.
        self._seen: set[tuple[int, int]] = set()
        self._left: set[tuple[int, int]] = set()

    def watch(self, slot: Slot[Any], now: float) -> None:
        """Schedule a look; `slot` has just been leased by hand, and its caller has one reference to the lent object."""
        self.is_watched = True
        self.due_at = min(self.due_at, now + LOOK_EVERY)
        loan = self._loans.get(slot.key)
        if loan is not None:
            references = _references_to_lent(loan) - 1
            self._references_when_lent = min(self._references_when_lent or references, references)

    def lost(self, now: float) -> list[Slot[Any]]:
        """Look, and return the slots whose leases are lost."""
        # Before the look: a thread that acquires during it then schedules the next one.
        self.is_watched, self.due_at = False, NEVER
        by_hand = {(slot.key, slot.leases): slot for slot in list(self._taken.values()) if _is_by_hand(slot)}
        left = {turn for turn, slot in by_hand.items() if self._is_abandoned(slot)}
        before, self._left = self._left, left
        seen, self._seen = self._seen, set(by_hand)
        if by_hand:
            has_news = left or not self._seen <= seen
            self._pause = LOOK_EVERY if has_news else min(2 * self._pause, LONGEST_PAUSE)
            self.due_at = now + self._pause
            self.is_watched = self._pause == LOOK_EVERY  # else the next acquire makes the pool look sooner
        return [slot for turn, slot in by_hand.items() if turn in left and turn in before]

    def _is_abandoned(self, slot: Slot[Any]) -> bool:
        return self._has_ended(slot.lease and slot.lease()) and self._is_alone(slot)

    def _is_alone(self, slot: Slot[Any]) -> bool:
        """Whether nothing but the pool and its manager refers to what was lent."""
        loan = self._loans.get(slot.key)
        if loan is None:
            return _references_to_resource(slot) <= ALONE
        return loan.lent is not slot.resource and _references_to_lent(loan) <= self._references_when_lent


def _is_by_hand(slot: Slot[Any]) -> bool:
    lease = slot.lease  # read once: it ends without the pool's lock
    # The lease of a block has an owner, unless it is lost: then the collector finds it sooner.
    return lease is not None and not hasattr(lease(), "_owner")
