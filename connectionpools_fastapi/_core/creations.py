"""Creations: the calls of `create` under way, and the one that tries again while they fail."""

from typing import Any

from .backoff import RETRY_PATIENCE, Backoff
from .effects import Effect, EffectQueue
from .generations import Generations
from .inventory import Inventory
from .policy import Policy
from .slot import LONG_AGO, NEVER, Creation


class Creations:
    """Begins calls of `create`, as many at once as allowed, and knows when to try again."""

    def __init__(
        self,
        policy: Policy,
        inventory: Inventory[Any],
        generations: Generations[Any],
        backoff: Backoff,
        effects: EffectQueue,
    ) -> None:
        self.are_allowed = False  # only while the pool is open and not suspended
        self._max_creating = policy.max_creating
        self._inventory = inventory
        self._generations = generations
        self._backoff = backoff
        self._effects = effects
        self._retry: Creation | None = None  # the last try while create fails, under way or not

    def may_begin(self) -> bool:
        """Whether one more resource may be created now."""
        inventory = self._inventory
        return self.are_allowed and inventory.has_room() and len(inventory.creating) < self._max_creating

    def begin(self, now: float) -> Creation:
        """Ask for one more resource."""
        creation = Creation(self._generations.enter(), now, self._backoff.noted)
        self._inventory.creating.add(creation)
        self._effects.append((Effect.CREATE, creation))
        return creation

    def fail(self, creation: Creation, cause: BaseException, now: float, *, is_wanted: bool) -> None:
        """Note what a call of `create` has raised, and whether a caller waits for the next try."""
        self._inventory.creating.remove(creation)
        self._forget_cause()
        self._backoff.note(cause, known=creation.known, now=now, wanted=is_wanted)

    def end_outage(self) -> None:
        """Forget the failures of `create`: it works again, or circumstances have changed."""
        self._forget_cause()
        self._backoff.end()
        self._retry = None

    def _forget_cause(self) -> None:
        if self._backoff.cause is not None:
            self._effects.append((Effect.FORGET, self._backoff.cause))

    # --- while create fails ---------------------------------------------------------------

    def is_back_end_down(self, now: float) -> bool:
        """Whether the back-end is down, and no resource is left that could serve a caller."""
        return now >= self._backoff.down_at and not self._inventory.slots and self.are_allowed

    def is_retrying(self) -> bool:
        """Whether the one try after the failures is under way."""
        return self._retry in self._inventory.creating

    def is_retry_awaited(self) -> bool:
        """Whether callers wait for the try that is under way although the back-end is down."""
        return self._retry is not None and self._retry.patience_ends > LONG_AGO and self.is_retrying()

    def retry_at(self) -> float:
        """Return when to try again; one try at a time, beside those that began before the first failure."""
        backoff = self._backoff
        return backoff.retry_at if backoff.failures and not self.is_retrying() and self.may_begin() else NEVER

    def retry_if_due(self, now: float) -> None:
        """Try again if it is time."""
        if now >= self.retry_at():
            self._retry = self.begin(now)

    def hasten_retry(self, now: float) -> float:
        """Try again soon, or at once, since a caller has come; returns until when that caller may wait."""
        was_retrying = self.is_retrying()
        self._backoff.ask()
        self.retry_if_due(now)
        if not self.is_back_end_down(now):
            return NEVER
        if self._retry is None or not self.is_retrying():
            return LONG_AGO
        if not was_retrying:
            self._retry.patience_ends = now + RETRY_PATIENCE
        return self._retry.patience_ends
