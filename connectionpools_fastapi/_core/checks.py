"""Checks: begins checks before a use, to keep a resource alive, or to find out whether the back-end answers."""

from typing import Generic

from .effects import Effect, EffectQueue
from .inventory import Inventory
from .maintenance import Maintenance
from .retirement import Retirement
from .slot import Slot, T


class Checks(Generic[T]):
    """Begins calls of `check`, or retires a slot that has to go anyway."""

    def __init__(
        self, inventory: Inventory[T], retirement: Retirement[T], maintenance: Maintenance[T], effects: EffectQueue
    ) -> None:
        self._inventory = inventory
        self._retirement = retirement
        self._maintenance = maintenance
        self._effects = effects

    def begin(self, slot: Slot[T]) -> None:
        """Ask for a check of a slot that was taken out of the free ones."""
        self._inventory.checking.add(slot)
        self._effects.append((Effect.CHECK, slot))

    def begin_if_usable(self, slot: Slot[T], now: float) -> None:
        """Check a slot that was free but not fresh, unless it has to go anyway."""
        if not self._retirement.discard_if_due(slot, now):
            self.begin(slot)

    def maintain(self, slot: Slot[T], now: float) -> bool:
        """Retire a resource whose time has come, if it is free; False if it stays, perhaps to be checked."""
        maintenance, inventory = self._maintenance, self._inventory
        reason = maintenance.why_retire(slot, now)
        if reason is None and maintenance.is_idle(slot, now) and len(inventory.free) > inventory.min_free:
            reason = "max_idle"
        if reason is not None and inventory.pull(slot):
            self._retirement.discard(slot, reason)
            return True
        maintenance.note_unchecked(slot, now)
        maintenance.schedule(slot, now)
        return False

    def keep_alive(self, now: float) -> None:
        """Check resources unused for `keepalive`, one at a time: the others stay ready for callers."""
        while not self._inventory.checking and (slot := self._maintenance.pop_unchecked(now)) is not None:
            if self._inventory.pull(slot):
                self.begin(slot)
