"""Probes: what the pool knows of the back-end without a lease, and the waiters for more."""

from typing import Generic

from ..errors import PoolError
from .checks import Checks
from .creations import Creations
from .effects import EffectQueue
from .inventory import Inventory
from .slot import LONG_AGO, T
from .wait_queue import WaitQueue
from .waiter import Waiter


class Probes(Generic[T]):
    """When the back-end last answered, or did not, and the waiters for the next outcome of `create` or `check`."""

    def __init__(
        self,
        inventory: Inventory[T],
        queue: WaitQueue[T],
        creations: Creations,
        checks: Checks[T],
        effects: EffectQueue,
        *,
        has_check: bool,
    ) -> None:
        self.unserved_at = LONG_AGO  # when a caller last left without a resource
        self.proved_at = LONG_AGO  # when a create or a check last succeeded
        # Waiters of health checks, which get the outcome; and of `open`, which then looks again.
        self._watchers: list[Waiter[T]] = []
        self.openings: list[Waiter[T]] = []
        self._since: float | None = None  # when the probe under way began
        self._inventory = inventory
        self._queue = queue
        self._creations = creations
        self._checks = checks
        self._effects = effects
        self._has_check = has_check

    def ask(self, watcher: Waiter[T], now: float) -> bool:
        """Try the back-end, or wait for a try that is under way; False if none is possible now."""
        if not self._try_back_end(now):
            return False
        if self._since is None:
            self._since = now
        self._watchers.append(watcher)
        return True

    def is_watched(self) -> bool:
        """Whether a health check or `open` waits for an outcome."""
        return bool(self._watchers or self.openings)

    def forget(self, waiter: Waiter[T]) -> None:
        """Remove a waiter."""
        self._watchers = [watcher for watcher in self._watchers if watcher is not waiter]
        self.openings = [opening for opening in self.openings if opening is not waiter]

    def has_taken(self, patience: float, now: float) -> bool:
        """Whether the probe under way has lasted this long without an answer."""
        return self._since is not None and now - self._since >= patience

    def serves_none(self, since: float) -> bool:
        """Whether nothing was leased and nothing came back since then, while a caller waited in vain."""
        last = max((slot.since for slot in list(self._inventory.slots.values())), default=self.proved_at)
        waits = bool(self._queue) and self._queue.oldest().asked_at <= since
        return last < since and (waits or self.unserved_at > last)

    def succeed(self, now: float) -> None:
        """Note that a create or a check has succeeded."""
        self.proved_at = now
        self.finish(None)

    def try_next(self, now: float) -> None:
        """Try the next resource, since the last try proved nothing; or wake the waiters without an answer."""
        if self._since is not None and not self._try_back_end(now):
            self.finish(None)

    def finish(self, error: PoolError | None) -> None:
        """Wake all waiters, with an error if the back-end is down."""
        self._since = None
        for watcher in self._watchers:
            watcher.error = error
            self._effects.wake(watcher)
        self._watchers.clear()
        self.wake_openings()

    def wake_openings(self) -> None:
        """Wake `open`, which then looks again."""
        for opening in self.openings:
            self._effects.wake(opening)
        self.openings.clear()

    def _try_back_end(self, now: float) -> bool:
        """Begin a check, or a creation if no resource exists; return whether one is under way."""
        inventory = self._inventory
        if not inventory.checking:
            slot = inventory.pop_coldest() if self._has_check else None
            if slot is not None:
                self._checks.begin(slot)
            elif not inventory.slots and not inventory.creating and self._creations.may_begin():
                self._creations.begin(now)
        return bool(inventory.checking) or (not inventory.slots and bool(inventory.creating))
