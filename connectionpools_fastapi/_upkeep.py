"""Upkeep: when each resource is due, for its age alone, to be checked or to go."""

import heapq
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Generic

from ._policy import Policy
from ._slot import NEVER, Slot
from .manager import T

# Each resource's times are shortened by up to a tenth, left to chance, so that those which
# were created together do not go together. Never lengthened: a limit is a limit.
JITTER = 0.1


class Upkeep(Generic[T]):
    """Knows how old is too old, and which resource to look at next.

    Each resource has one entry in a heap. What becomes of it meanwhile is not followed: it
    is looked at too early now and then, and given its next time, never too late.
    """

    def __init__(self, policy: Policy, slots: Mapping[int, Slot[T]], chance: Callable[[], float]) -> None:
        self._slots = slots
        self._chance = chance
        self._max_lifetime = policy.max_lifetime or NEVER
        self._max_idle = policy.max_idle or NEVER
        self._keepalive = policy.keepalive or NEVER
        self._max_uses = policy.max_uses or NEVER
        # By key and not by slot: what is gone must not be kept alive until its time.
        self._looks: list[tuple[float, int]] = []
        self.retires = self._max_lifetime < NEVER or self._max_uses < NEVER
        self._has_times = min(self._max_lifetime, self._max_idle, self._keepalive) < NEVER

    def enter(self, slot: Slot[T], now: float) -> None:
        """Begin to look after a new resource."""
        if not self._has_times:
            return
        slot.checked_at = now
        slot.pace = 1.0 - JITTER * self._chance()
        slot.retire_at = now + self._max_lifetime * slot.pace
        self.expect(slot, now)

    def why_retire(self, slot: Slot[T], now: float) -> str | None:
        """Say which limit a resource has reached, however busy it is; None if none."""
        if now >= slot.retire_at:
            return "max_lifetime"
        return "max_uses" if slot.leases >= self._max_uses else None

    def is_idle(self, slot: Slot[T], now: float) -> bool:
        """Whether a free resource has been free for too long."""
        return now >= slot.since + self._max_idle * slot.pace

    def is_quiet(self, slot: Slot[T], now: float) -> bool:
        """Whether a free resource should be checked lest it goes stale."""
        return now >= self._quiet_at(slot)

    def _quiet_at(self, slot: Slot[T]) -> float:
        return max(slot.since, slot.checked_at) + self._keepalive * slot.pace

    def expect(self, slot: Slot[T], now: float) -> None:
        """Look at a resource again when something may be due."""
        idle_at, quiet_at = slot.since + self._max_idle * slot.pace, self._quiet_at(slot)
        look_at = min(
            slot.retire_at if slot.retire_at > now else NEVER,
            # What is over by now is in use, or is kept by min_free: then not before it can be over again.
            idle_at if idle_at > now else now + self._max_idle * slot.pace,
            quiet_at if quiet_at > now else now + self._keepalive * slot.pace,
        )
        slot.look_at = max(look_at, math.nextafter(now, NEVER))  # not now again, however short the times are
        if slot.look_at < NEVER:
            heapq.heappush(self._looks, (slot.look_at, slot.key))
            if len(self._looks) > 2 * len(self._slots) + 64:
                self._looks = [look for look in self._looks if self._find(look) is not None]
                heapq.heapify(self._looks)

    def due(self, now: float) -> Iterator[Slot[T]]:
        """Yield, one after the other, what is to be looked at; each has to be expected again, or to go."""
        while self._looks and self._looks[0][0] <= now:
            slot = self._find(heapq.heappop(self._looks))
            if slot is not None:
                slot.look_at = NEVER
                yield slot

    def next_deadline(self) -> float:
        """Say when to ask what is due; infinity if never."""
        while self._looks and self._find(self._looks[0]) is None:
            heapq.heappop(self._looks)
        return self._looks[0][0] if self._looks else NEVER

    def _find(self, look: tuple[float, int]) -> Slot[T] | None:
        slot = self._slots.get(look[1])  # another resource may have the key by now
        return slot if slot is not None and slot.look_at == look[0] else None
