"""Retirement: which resources must not be used again, and how they leave the pool."""

from typing import Generic

from .backoff import Backoff
from .counters import Counters
from .effects import Effect, EffectQueue
from .generations import Generations
from .held_leases import LeaseSnapshot
from .inventory import Inventory
from .maintenance import Maintenance
from .slot import Slot, T


class Retirement(Generic[T]):
    """Takes resources out of use: each leaves the inventory, is cleaned, and then its generation counts one less."""

    def __init__(
        self,
        *,
        inventory: Inventory[T],
        generations: Generations[T],
        maintenance: Maintenance[T],
        backoff: Backoff,
        counters: Counters,
        effects: EffectQueue,
    ) -> None:
        self.owed = 0  # how many resources have to go, so that other members of the budget get their tokens
        self._has_budget = inventory.policy.budget is not None
        self._inventory = inventory
        self._generations = generations
        self._maintenance = maintenance
        self._backoff = backoff
        self._counters = counters
        self._effects = effects

    def reason(self, slot: Slot[T], now: float) -> str | None:
        """Say why a slot must not be used again; None if it may."""
        if slot.verdict == "discard":
            return "broken"
        if slot.generation != self._generations.current:
            return "expire"
        if self._inventory.is_above_limit():
            return "resize"
        if self.owed:
            return "budget"
        return self._maintenance.why_retire(slot, now) if self._maintenance.retires else None

    def discard_if_due(self, slot: Slot[T], now: float) -> bool:
        """Discard a slot that must not be used again; False if it may be."""
        reason = self.reason(slot, now)
        if reason is None:
            return False
        self.discard(slot, reason)
        return True

    def discard(self, slot: Slot[T], reason: str) -> None:
        """Clean a slot that was taken out of its place in the inventory."""
        self.remove(slot)
        self.owed = max(0, self.owed - 1)  # whatever the reason: its token will be free
        self._counters.note_discard(reason)
        self._inventory.cleaning.add(slot)
        self._effects.append((Effect.CLEAN, slot))

    def sweep(self) -> None:
        """Discard the free ones of older generations, those beyond the limit, and those that other members need."""
        if self._generations.are_turning_over():
            for slot in self._inventory.pull_outdated(self._generations.current):
                self.discard(slot, "expire")
        while self._inventory.is_above_limit() and (coldest := self._inventory.pop_coldest()) is not None:
            self.discard(coldest, "resize")
        while self.owed and (coldest := self._inventory.pop_coldest()) is not None:
            self.discard(coldest, "budget")

    def remove(self, slot: Slot[T]) -> None:
        """Remove a slot from those that exist, unless it was written off."""
        if self._inventory.remove(slot):
            self._counters.past_use.add(slot.use_counts, slot.use_sum)
            if not self._inventory.slots:
                self._backoff.begin_anew()

    def leave(self, generation: int) -> None:
        """Count one less of a generation, and wake the waiters for its end."""
        for waiter in self._generations.leave(generation):
            self._effects.wake(waiter)
        if self._has_budget:
            self._effects.append((Effect.GIVE_BACK, None))

    def write_off(self, generation: int, now: float) -> list[LeaseSnapshot]:
        """Count leases of this generation and older ones as ended now; returns their holders and ages."""
        lost = [slot for slot in list(self._inventory.taken.values()) if slot.generation <= generation]
        for slot in lost:
            slot.record_use(now - slot.since)
            self._effects.notify("on_release", now - slot.since)
            self.remove(slot)
            self.leave(slot.generation)
            slot.generation = self._generations.enter_lost()
        return [LeaseSnapshot.of(slot, now) for slot in lost]
