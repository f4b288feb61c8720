"""Overload: which callers are refused so that the others are served, and how long a caller is expected to wait."""

from dataclasses import dataclass
from typing import Generic

from ..errors import Overloaded
from . import messages
from .counters import Counters
from .effects import Effect, EffectQueue
from .held_leases import LeaseSnapshot
from .inventory import Inventory
from .patience import Patience
from .policy import Policy
from .slot import LONG_AGO, NEVER, Slot, T
from .terms import NORMAL
from .throughput import Throughput
from .wait_queue import WaitQueue
from .waiter import Waiter

# For so many seconds, what was found for one newcomer holds for those that find no more waiters.
GLANCE = 0.02

# An overload is over after so many seconds without a refusal.
CALM = 1.0


@dataclass(frozen=True, slots=True)
class OverloadSnapshot:
    """An overload as it begins or ends."""

    lasted: float  # up to its last refusal
    refused: int
    left: int  # callers that left, or were cancelled
    served: int  # callers that had waited
    waiting: int
    expected_wait: float | None
    patience: float  # infinity if unknown
    leases: tuple[LeaseSnapshot, ...]


class Overload(Generic[T]):
    """Refuses callers that would leave, or time out, before they are served.

    It never refuses while fewer than `limit` callers wait, so that no resource is ever without a next user.
    """

    def __init__(
        self, policy: Policy, inventory: Inventory[T], queue: WaitQueue[T], counters: Counters, effects: EffectQueue
    ) -> None:
        self.sheds = policy.overload == "shed"
        self.patience = Patience()
        self.throughput = Throughput(policy.limit)
        self.room: float = policy.limit  # from so many waiters on, each newcomer is judged
        self.look_at = LONG_AGO  # from then on, the next newcomer is judged in any case
        self.due_at = NEVER  # when to see whether it is over; infinity while there is none
        self._inventory = inventory
        self._queue = queue
        self._counters = counters
        self._effects = effects
        self._began_at = self._refused_at = 0.0
        self._counts_before = self._counts()

    @property
    def is_on(self) -> bool:
        """Whether callers were refused a moment ago."""
        return self.due_at < NEVER

    def forget(self) -> None:
        """Forget what was learned: circumstances have changed."""
        self.patience.forget()
        self.throughput.forget()

    def expected_wait(self, now: float, rank: int = NORMAL) -> float | None:
        """Return how long a newcomer that has to wait will wait, in seconds; None if unknown."""
        interval = None if self._inventory.creating else self.throughput.interval(now)
        return None if interval is None else (self._queue.ahead_of(rank) + 1) * interval

    def leave(self, waiter: Waiter[T], now: float) -> None:
        """Learn from a caller that left while it waited, or as it was granted a slot."""
        if self.sheds and not waiter.has_own_timeout:
            self.patience.leave(now - waiter.asked_at, now)

    def cut_off(self, slot: Slot[T], now: float) -> None:
        """Learn from a caller that left during its lease, which ends with that."""
        if self.sheds and self._queue.size:
            self.throughput.cut_off += 1
            self.patience.suspect()
        self.leave_during_lease(slot, now)

    def leave_served(self, waiter: Waiter[T], slot: Slot[T], now: float) -> None:
        """Learn from a waiter whose client left after it was granted a slot, if that lease goes on."""
        if self._inventory.taken.get(slot.key) is slot:
            if slot.asked == (slot.leases, waiter.asked_at):
                self.leave_during_lease(slot, now)
            else:
                self.patience.suspect()

    def leave_during_lease(self, slot: Slot[T], now: float) -> None:
        """Learn from a caller that left during its lease, if it has waited for it."""
        lease, asked_at = slot.asked
        if self.sheds and lease == slot.leases:
            self.patience.leave(now - asked_at, now)

    def check_newcomer(self, waiter: Waiter[T], timeout: float | None, now: float) -> None:
        """Check that a caller is likely to be served in time, if at least `limit` callers wait.

        Raises:
            Overloaded: If it would wait beyond its timeout, or is likely to leave before it is served.
        """
        waiting, limit = self._queue.ahead_of(waiter.rank), self._inventory.limit
        expected = self.expected_wait(now, waiter.rank) if self.sheds and waiting >= limit else None
        patience, longest = self.patience, NEVER if timeout is None else timeout
        if expected is not None and patience.is_tried and not waiter.has_own_timeout:
            hold = expected / (waiting + 1) * len(self._inventory.slots)
            longest = min(longest, patience.longest_wait(hold, now))
            if expected > longest != timeout:
                patience.lose()
                raise self._refusal(
                    messages.would_leave(self._inventory, expected, patience.estimate(now)), waiter.rank, now
                )
        if expected is not None and timeout is not None and expected > timeout:
            raise self._refusal(messages.would_time_out(self._inventory, expected, timeout), waiter.rank, now)
        if not waiter.has_own_timeout and waiter.rank == NORMAL:
            self.look_at = now + GLANCE
            self.room = max(limit, longest / expected * (waiting + 1) - 1 if expected else 0)

    def why_refuse(self, waiter: Waiter[T], now: float) -> Overloaded | None:
        """Return the error for a waiter whose turn it is, if it is likely to leave before it is done with a slot."""
        if waiter.has_own_timeout or not self.patience.is_tried:
            return None
        interval = self.throughput.interval(now)
        if interval is None:
            return None
        age = now - waiter.asked_at
        if not self.patience.is_spent(age, interval * len(self._inventory.slots), now):
            return None
        self.patience.lose()
        expected = (self._queue.size + 1) * interval
        return self._refusal(
            messages.will_leave(self._inventory, age, expected, self.patience.estimate(now)), waiter.rank, now
        )

    def _refusal(self, error: Overloaded, rank: int, now: float) -> Overloaded:
        begins, self._refused_at = not self.is_on, now
        if begins:
            self._began_at, self._counts_before = now, self._counts()
            self.due_at = now + CALM
        self._counters.note_refusal("overloaded", rank)
        if begins:
            self._effects.append((Effect.OVERLOADED, self._snapshot(now)))
        return error

    def end_if_due(self, now: float) -> None:
        """End an overload in which no caller was refused for a moment."""
        if now >= self.due_at:
            self.due_at = self._refused_at + CALM
            if now >= self.due_at:
                self.due_at = NEVER
                self._effects.append((Effect.RELIEVED, self._snapshot(now)))

    def _counts(self) -> tuple[int, int, int]:
        counters = self._counters
        return counters.refusals["overloaded"], counters.withdrawals, counters.wait.count()

    def _snapshot(self, now: float) -> OverloadSnapshot:
        refused, left, served = (
            count - before for count, before in zip(self._counts(), self._counts_before, strict=True)
        )
        return OverloadSnapshot(
            self._refused_at - self._began_at,
            *(refused, left, served, self._queue.size),
            self.expected_wait(now),
            self.patience.estimate(now),
            tuple(LeaseSnapshot.of(slot, now) for slot in list(self._inventory.taken.values())),
        )
