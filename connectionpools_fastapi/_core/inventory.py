"""Inventory: where each slot is; and the fast path, which needs no lock.

All methods except `take`, `end`, `put_back` and `leased` need the pool's lock. These four are
built from single operations that are atomic on CPython with and without the GIL. They lose no
wake-up: `put_back` first appends the slot, and its caller then reads `needs_lock`; a decision
that makes a caller wait, or retires resources, first sets `needs_lock` and then looks for free
slots. As both may happen at the same time, no decision may rely on what `free` held a moment ago.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sized
from contextlib import suppress
from typing import Generic

from ..stats import USE_BOUNDS
from . import messages
from .by_hand import ByHand
from .effects import EffectQueue
from .generations import LOST
from .held_leases import LoanRecord
from .maintenance import Maintenance
from .policy import Policy
from .slot import LONG_AGO, NEVER, Creation, Slot, T
from .waiter import Waiter


class Inventory(Generic[T]):
    """Knows where each slot is; `PoolState` decides where it goes."""

    def __init__(
        self,
        policy: Policy,
        slots: dict[int, Slot[T]],
        maintenance: Maintenance[T],
        queue: Sized,
        effects: EffectQueue,
        *,
        has_check: bool,
        has_change: bool,
        has_ended: Callable[[object], bool],
    ) -> None:
        self.policy = policy
        self.queue = queue  # errors say how many callers wait
        self.limit = policy.limit
        self.min_free = policy.min_free
        # True while take and put_back must go through the lock.
        self.needs_lock = True
        self.notifies_release = False  # whether listeners subscribe to the ends of leases
        # A resource is in exactly one of these; `slots` has all but those in `cleaning`.
        self.free: deque[Slot[T]] = deque()  # the least recently used on the left
        self.taken: dict[int, Slot[T]] = {}
        # If the manager lends: the loan of each slot, and the slot of each lent object.
        self.loans: dict[int, LoanRecord] = {}
        self.lent: dict[int, Slot[T]] = {}
        self.by_hand = ByHand(self.taken, self.loans, has_ended)
        self.checking: set[Slot[T]] = set()
        self.changing: dict[Slot[T], Waiter[T] | None] = {}  # with the waiter for its end
        self.cleaning: set[Slot[T]] = set()
        self.slots = slots
        self.creating: set[Creation] = set()
        self._effects = effects
        self._maintenance = maintenance
        self._retires = maintenance.retires
        self._has_check = has_check
        self.fresh_after_check = policy.check_after if has_check else NEVER
        self.fresh_after_use = self.fresh_after_check or LONG_AGO  # 0: checked before each reuse
        self._returns_need_more = has_change or self.fresh_after_use < 0
        self.returns_are_fresh = not self._retires and self.fresh_after_use > 0
        self.is_fifo = policy.reuse == "fifo"
        right, left = (self.free.pop, self.free.append), (self.free.popleft, self.free.appendleft)
        self._next_free, self.put_next = left if self.is_fifo else right
        self._usable_ends = (left,) if self.is_fifo else (right, left)

    def resize(self, limit: int) -> None:
        """Set a new limit; it also bounds `min_free`."""
        self.limit = limit
        self.min_free = min(self.policy.min_free, limit)

    # --- the fast path: no lock -----------------------------------------------------------

    def take(self, now: float) -> Slot[T] | None:
        """Lease out a fresh free resource; None if the caller has to ask the state under the lock."""
        if self.needs_lock or (self.min_free and len(self.free) <= self.min_free and len(self.slots) < self.limit):
            return None
        try:
            slot = self._next_free()
        except IndexError:  # another thread was faster
            return None
        if now > slot.fresh_until:
            self.put_next(slot)
            return None
        # `lease_out` inlined, as `record_use` is in `end`: the two calls would take a twentieth of a lease.
        slot.since = now
        slot.leases += 1
        self.taken[slot.key] = slot
        return slot

    def end(self, slot: Slot[T], now: float) -> None:
        """End a lease: if several threads try, this step decides which of them gives the slot back.

        Raises:
            NotLeased: If the lease has ended before.
        """
        ended = self.taken.pop(slot.key, None)
        if ended is not slot:
            if ended is not None:  # a newer slot of the same object, which was detached before
                self.taken[ended.key] = ended
            raise messages.not_leased(self)
        if self.loans:
            self._end_loan(slot)
        slot.holder = slot.lease = None
        used, slot.since = now - slot.since, now
        slot.use_counts[bisect_left(USE_BOUNDS, used)] += 1
        slot.use_sum += used
        if self.notifies_release and slot.generation != LOST:  # else `write_off` has notified them
            self._effects.notify("on_release", used)

    def put_back(self, slot: Slot[T], now: float) -> bool:
        """Make a slot free whose lease has ended; False if the caller has to use `release`."""
        if self.needs_lock or self._returns_need_more or slot.verdict:
            return False
        fresh_until = now + self.fresh_after_use
        if self._retires:
            if self._maintenance.why_retire(slot, now) is not None:
                return False
            fresh_until = min(fresh_until, slot.retire_at)
        slot.fresh_until = fresh_until
        self.free.append(slot)
        return True

    # --- what is leased -------------------------------------------------------------------

    def leased(self, resource: T) -> Slot[T]:
        """Find the slot of a leased resource, by identity.

        Raises:
            NotLeased: If it is not leased from this pool.
        """
        slot = (self.lent if self.loans else self.taken).get(id(resource))
        if slot is None:
            raise messages.not_leased(self)
        return slot

    def lease_out(self, slot: Slot[T], now: float) -> None:
        """Begin a lease of a slot that was taken out of the free ones."""
        slot.since = now
        slot.leases += 1
        self.taken[slot.key] = slot

    def lend(self, slot: Slot[T], loan: LoanRecord, lent: T) -> None:
        """Note what the caller gets in place of a leased resource."""
        loan.lent = lent
        self.loans[slot.key] = loan
        self.lent[id(lent)] = slot

    def loan_of(self, slot: Slot[T]) -> LoanRecord | None:
        """Return the loan of a leased slot; None where the caller has the resource itself."""
        return self.loans.get(slot.key)

    def lent_of(self, slot: Slot[T]) -> T:
        """Return the object that the caller got for a leased slot."""
        loan = self.loans.get(slot.key)
        lent: T = slot.resource if loan is None else loan.lent
        return lent

    def _end_loan(self, slot: Slot[T]) -> None:
        loan = self.loans.pop(slot.key, None)
        if loan is not None:
            del self.lent[id(loan.lent)]
            loan.end(slot.holder, slot.lease)

    def holds(self, slot: Slot[T]) -> bool:
        """Whether the slot belongs to the pool, or is expected back."""
        return self.slots.get(slot.key) is slot or self.taken.get(slot.key) is slot

    def has_seen(self, resource: T) -> bool:
        """Whether the pool has this very object already."""
        key = id(resource)
        return key in self.slots or key in self.taken or any(slot.key == key for slot in self.cleaning)

    # --- what is free -----------------------------------------------------------------------

    def pop_free(self) -> Slot[T] | None:
        """Take the free slot that is next in turn, fresh or not."""
        try:
            return self._next_free()
        except IndexError:
            return None

    def pop_coldest(self) -> Slot[T] | None:
        """Take the free slot that was used the longest time ago."""
        try:
            return self.free.popleft()
        except IndexError:
            return None

    def pop_fresh(self, now: float) -> Slot[T] | None:
        """Take a free slot that may be used without a check: the next one, or else the one at the other end.

        The freshest is always at one of the ends: `release` puts a slot to the right, a check
        that no caller waits for puts it to the left, and `make_free` keeps the order. With
        reuse="fifo" only the next one may be used: else the freshest would be used again and again.
        """
        for pop, undo in self._usable_ends:
            try:
                slot = pop()
            except IndexError:
                return None
            if now <= slot.fresh_until:
                return slot
            undo(slot)
        return None

    def make_free(self, slot: Slot[T]) -> None:
        """Put a slot to the right, beneath those that are fresher."""
        fresher: list[Slot[T]] = []
        with suppress(IndexError):  # nothing is left, or another thread was faster
            # Stop at the least fresh one: to the left of it, freshness rises again.
            while slot.fresh_until < self.free[-1].fresh_until <= (fresher[-1].fresh_until if fresher else NEVER):
                fresher.append(self.free.pop())
        self.free.append(slot)
        self.free.extend(reversed(fresher))

    def list_free(self) -> list[Slot[T]]:
        """Return the slots that are free, also while other threads take and put back."""
        while True:
            try:
                return list(self.free)
            except RuntimeError:  # without the GIL this is not one step: another thread changed it
                continue

    def pull(self, slot: Slot[T]) -> bool:
        """Take this slot out of the free ones; False if it is not free."""
        try:
            self.free.remove(slot)
        except ValueError:  # another thread may just have taken it
            return False
        return True

    def pull_outdated(self, generation: int) -> Iterator[Slot[T]]:
        """Take the free ones of other generations out, one after the other."""
        return (slot for slot in self.list_free() if slot.generation != generation and self.pull(slot))

    def require_checks(self) -> None:
        """Require a check of each free resource before its next use, however fresh it is."""
        if self._has_check:
            for slot in self.list_free():
                slot.fresh_until = LONG_AGO

    # --- what exists ------------------------------------------------------------------------

    def remove(self, slot: Slot[T]) -> bool:
        """Remove a slot from those that exist; False if it was written off."""
        if self.slots.get(slot.key) is not slot:
            return False
        del self.slots[slot.key]
        return True

    def is_above_limit(self) -> bool:
        """Whether more exist, or are being created, than allowed."""
        return len(self.slots) + len(self.creating) > self.limit

    def has_room(self) -> bool:
        """Whether one more may be created."""
        return len(self.slots) + len(self.creating) < self.limit

    def in_being(self) -> int:
        """How many need a token: they exist in any way, or are being created."""
        written_off = sum(slot.key not in self.slots for slot in list(self.taken.values()))
        allowed = sum(creation.has_token for creation in self.creating)
        return len(self.slots) + len(self.cleaning) + written_off + allowed

    def awaits_token(self) -> bool:
        """Whether a creation waits for a token of the budget."""
        return self.policy.budget is not None and any(not creation.has_token for creation in self.creating)

    def arriving(self) -> int:
        """How many are being created or checked, and will soon be free."""
        return len(self.creating) + len(self.checking)
