"""Dispatcher: matches free slots, waiters and missing resources."""

from typing import Generic

from .backoff import Backoff
from .callers import Callers
from .checks import Checks
from .creations import Creations
from .generations import Generations
from .held_leases import HeldLeases
from .inventory import Inventory
from .retirement import Retirement
from .slot import NEVER, Slot, T
from .wait_queue import WaitQueue


class Dispatcher(Generic[T]):
    """Grants free slots to waiters, creates missing resources, and decides whether the fast path may be used."""

    def __init__(
        self,
        *,
        inventory: Inventory[T],
        queue: WaitQueue[T],
        generations: Generations[T],
        backoff: Backoff,
        held: HeldLeases,
        creations: Creations,
        callers: Callers[T],
        retirement: Retirement[T],
        checks: Checks[T],
        has_check: bool,
    ) -> None:
        # Whether the pool is open, does not fail, has no older generation left, and is within its limit and budget.
        self.is_steady = False
        self._inventory = inventory
        self._queue = queue
        self._generations = generations
        self._backoff = backoff
        self._held = held
        self._creations = creations
        self._callers = callers
        self._retirement = retirement
        self._checks = checks
        self._has_check = has_check

    def serve(self, now: float) -> None:
        """Grant free slots, create missing resources, and fail callers that cannot be served."""
        inventory, queue, creations = self._inventory, self._queue, self._creations
        if queue.size:
            # With reuse="fifo", a slot that is being checked goes to the first waiter.
            checked_for = len(inventory.checking) if inventory.is_fifo else 0
            while queue.size > checked_for and (slot := inventory.pop_fresh(now)) is not None:
                self._callers.grant(slot, now)
            # Check free slots however many resources are being created: creation may take long.
            while queue.size > len(inventory.checking) and (slot := inventory.pop_free()) is not None:
                self._checks.begin_if_usable(slot, now)
        if not self._backoff.failures:
            wanted = queue.size + max(0, inventory.min_free - len(inventory.free))
            while wanted > inventory.arriving() and creations.may_begin():
                creations.begin(now)
        else:
            creations.retry_if_due(now)
            if queue.size and creations.is_back_end_down(now) and not creations.is_retry_awaited():
                for waiter in tuple(queue):
                    self._callers.fail_unavailable(waiter, now)
        self.set_needs_lock()

    def set_needs_lock(self) -> None:
        """Decide whether take and put_back may go without the lock."""
        self.is_steady = (
            self._creations.are_allowed
            and not self._backoff.failures
            and not self._generations.are_turning_over()
            and not self._inventory.is_above_limit()
            and not self._retirement.owed
        )
        self._inventory.needs_lock = (
            not self.is_steady or self._queue.size > 0 or self._callers.notifies_leases or self._held.is_unscheduled
        )

    def hand_on_fresh(self, slot: Slot[T], now: float) -> bool:
        """Grant a slot that came back to the first waiter, as is common under load; False if more may change."""
        inventory, queue = self._inventory, self._queue
        is_due = self._held.is_unscheduled or slot.verdict  # the timer has to be set, or the slot to be checked
        if is_due or not self.is_steady or not queue.size or not inventory.returns_are_fresh:
            return False
        slot.fresh_until = now + inventory.fresh_after_use
        self._callers.grant(slot, now)
        if not queue.size:
            self.set_needs_lock()
        return True

    def put_to_use(self, slot: Slot[T], now: float) -> None:
        """Retire a slot that came back, hand it on or make it free."""
        if not self._retirement.discard_if_due(slot, now):
            # While `create` fails, use proves nothing: only a check does.
            is_stale = slot.verdict or (self._backoff.failures and self._has_check)
            slot.verdict = None
            slot.fresh_until = min(now + (-NEVER if is_stale else self._inventory.fresh_after_use), slot.retire_at)
            if not self.hand_on(slot, now):
                self._inventory.make_free(slot)

    def hand_on(self, slot: Slot[T], now: float) -> bool:
        """Grant an available slot to the first waiter, if there is one and the slot is fresh."""
        if self._queue.size and self._creations.are_allowed and now <= slot.fresh_until:
            self._callers.grant(slot, now)
            return True
        return False
