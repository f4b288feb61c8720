"""Maintenance: when the age of each resource requires a check, or its end."""

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Generic

from .policy import Policy
from .slot import NEVER, Slot, T

# Each resource's times are shortened, so that resources created together do not expire together. They are never
# lengthened, since a setting is an upper limit. Random shares alone would sometimes let many lifetimes end at once. So
# each lifetime is shortened by up to a quarter, by a golden section more than the one before: this spreads them evenly.
JITTER = 0.1
SPREAD = 0.25
GOLDEN_SECTION = (math.sqrt(5) - 1) / 2


class Maintenance(Generic[T]):
    """Knows how old is too old, and which resource is due next.

    Each resource has one entry in a heap, which a lease does not update. So a resource may come
    up too early, and then gets its next time; it never comes up too late.
    """

    def __init__(self, policy: Policy, slots: Mapping[int, Slot[T]], chance: Callable[[], float]) -> None:
        self._slots = slots
        self._chance = chance
        self._share: float | None = None  # of SPREAD that shortened the last lifetime, from 0 to 1
        self._max_lifetime = policy.max_lifetime or NEVER
        self._max_idle = policy.max_idle or NEVER
        self._keepalive = policy.keepalive or NEVER
        self._max_uses = policy.max_uses or NEVER
        # Entries hold keys, since a slot that is gone must not be kept alive until its time. A running number orders
        # entries of the same time: keys are addresses, and their order would differ from run to run.
        self._entries: list[tuple[float, int, int]] = []
        self._order = itertools.count()
        self._unchecked: dict[Slot[T], None] = {}  # unused for `keepalive`, the longest of them first
        self.retires = self._max_lifetime < NEVER or self._max_uses < NEVER
        self._has_times = min(self._max_lifetime, self._max_idle, self._keepalive) < NEVER

    def enter(self, slot: Slot[T], now: float) -> None:
        """Begin to maintain a new resource."""
        if not self._has_times:
            return
        slot.checked_at = now
        slot.pace = 1.0 - JITTER * self._chance()
        self._share = share = self._chance() if self._share is None else (self._share + GOLDEN_SECTION) % 1.0
        slot.retire_at = now + self._max_lifetime * (1.0 - SPREAD * share)
        self.schedule(slot, now)

    def why_retire(self, slot: Slot[T], now: float) -> str | None:
        """Say which limit a resource has reached, however busy it is; None if none."""
        if now >= slot.retire_at:
            return "max_lifetime"
        return "max_uses" if slot.leases >= self._max_uses else None

    def is_idle(self, slot: Slot[T], now: float) -> bool:
        """Whether a free resource has been free for too long."""
        return now >= slot.since + self._max_idle * slot.pace

    def is_unchecked(self, slot: Slot[T], now: float) -> bool:
        """Whether a free resource was neither used nor checked for `keepalive`."""
        return now >= self._check_at(slot)

    def note_unchecked(self, slot: Slot[T], now: float) -> None:
        """Note that a resource needs a check, if `keepalive` has passed: `pop_unchecked` will return it."""
        if self.is_unchecked(slot, now):
            self._unchecked[slot] = None

    def pop_unchecked(self, now: float) -> Slot[T] | None:
        """Return the next resource that needs a check to stay alive; it may be in use by now."""
        while self._unchecked:
            slot = next(iter(self._unchecked))
            del self._unchecked[slot]
            if self.is_unchecked(slot, now):
                return slot
        return None

    def _check_at(self, slot: Slot[T]) -> float:
        return max(slot.since, slot.checked_at) + self._keepalive * slot.pace

    def schedule(self, slot: Slot[T], now: float) -> None:
        """Set when a resource may next need a check or have to go."""
        idle_at, check_at = slot.since + self._max_idle * slot.pace, self._check_at(slot)
        due_at = min(
            slot.retire_at if slot.retire_at > now else NEVER,
            # If a time has passed, the resource is in use, or `min_free` keeps it: look again after that time.
            idle_at if idle_at > now else now + self._max_idle * slot.pace,
            check_at if check_at > now else now + self._keepalive * slot.pace,
        )
        slot.due_at = max(due_at, math.nextafter(now, NEVER))  # later than now, however short the times are
        if slot.due_at < NEVER:
            heapq.heappush(self._entries, (slot.due_at, next(self._order), slot.key))
            if len(self._entries) > 2 * len(self._slots) + 64:
                self._entries = [entry for entry in self._entries if self._find(entry) is not None]
                heapq.heapify(self._entries)

    def due(self, now: float) -> Iterator[Slot[T]]:
        """Yield, one after the other, the resources that are due; each has to be scheduled again, or to go."""
        while self._entries and self._entries[0][0] <= now:
            slot = self._find(heapq.heappop(self._entries))
            if slot is not None:
                slot.due_at = NEVER
                yield slot

    def next_deadline(self) -> float:
        """Return when the next resource is due; infinity if never."""
        while self._entries and self._find(self._entries[0]) is None:
            heapq.heappop(self._entries)
        return self._entries[0][0] if self._entries else NEVER

    def _find(self, entry: tuple[float, int, int]) -> Slot[T] | None:
        slot = self._slots.get(entry[2])  # another resource may have the key by now
        return slot if slot is not None and slot.due_at == entry[0] else None
