"""Ledger: who has what and who waits for what; and the fast path, which needs no lock.

All methods need the pool's lock but `take`, `end`, `put_back` and `leased`. These are
built from single operations that are atomic on CPython with and without the GIL. They
lose no wake-up: who gives back first appends the slot and then looks at the gate; who
waits, or retires what exists, first raises the gate and then looks for free slots. As
they may come in between at any time, nobody may rely on what `free` held a moment ago.
"""

import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from itertools import chain
from typing import Any, Generic

from . import _report as report
from ._generations import LOST, Generations
from ._outage import Outage
from ._policy import Policy
from ._queue import Queue
from ._slot import NEVER, Creation, Slot
from ._totals import Totals
from ._upkeep import Upkeep
from ._waiters import Waiter
from .manager import T
from .stats import USE_BOUNDS


class Status(Enum):
    """Where a pool is in its life."""

    NEW = "new"
    OPEN = "open"
    SUSPENDED = "suspended"  # open, but whoever wants a resource waits
    CLOSING = "closing"
    CLOSED = "closed"
    FORKED = "forked"  # in a child process: whatever there was is the parent's


class Action(Enum):
    """What a decision asks the pool to carry out, and for whom."""

    WAKE = "wake"  # a waiter
    DECIDE = "decide"  # something that had to wait for another decision
    WATCH = "watch"  # the client of a waiter
    TELL = "tell"  # listeners, what has happened
    WARN = "warn"  # of a lease that is held for too long
    CREATE = "create"  # a creation
    CHECK = "check"  # a slot, as in the next two
    CHANGE = "change"
    CLEAN = "clean"
    FORGET = "forget"  # the cause of a failure: what it keeps alive must not die under the lock


# Each look-up in an Enum costs as much as a method call.
OPEN, SUSPENDED, WAKE, CHANGE = Status.OPEN, Status.SUSPENDED, Action.WAKE, Action.CHANGE


class Ledger(Generic[T]):
    """What is where; `State` decides where it goes."""

    def __init__(
        self, policy: Policy, *, has_check: bool, has_change: bool, chance: Callable[[], float] = random.random
    ) -> None:
        self.policy = policy
        self.limit = policy.limit
        self.status = Status.NEW
        self.has_change = has_change
        self.has_check = has_check
        self._check_after = policy.check_after if has_check else NEVER
        self._fresh_after_use = self._check_after or float("-inf")  # 0: checked before each reuse
        self._returns_need_more = has_change or self._fresh_after_use < 0
        self._min_free = policy.min_free
        self._max_hold = policy.max_hold or NEVER
        self._look_at_holds = NEVER  # when to look who holds for too long; infinity while nobody was seen to
        self._warned: set[tuple[int, int]] = set()  # the leases, by slot and turn, that it was said of
        self.heard: frozenset[str] = frozenset()  # events that listeners want to be told of
        self._tells_each = False  # leases and returns among them
        # When to look what time has made due: no later than needed.
        self.due = NEVER
        # Whether the pool is open and neither failing nor turning over nor above its limit.
        self._is_calm = False
        # Raised while anything but "take a free one, put it back" may be called for.
        self.gate = True
        # A resource is in exactly one of these; `slots` has all but those in `cleaning`.
        self.free: deque[Slot[T]] = deque()  # the least recently used on the left
        self.taken: dict[int, Slot[T]] = {}
        self.checking: set[Slot[T]] = set()
        self.changing: dict[Slot[T], Waiter[T] | None] = {}  # and who waits for it to be over
        self.cleaning: set[Slot[T]] = set()
        self.slots: dict[int, Slot[T]] = {}
        self.creating: set[Creation] = set()
        right, left = (self.free.pop, self.free.append), (self.free.popleft, self.free.appendleft)
        (self._next_free, self._undo_next_free), self._other_end = (
            (right, left) if policy.reuse == "lifo" else (left, right)
        )
        self.generations: Generations[T] = Generations()
        self.queue: Queue[T] = Queue()
        self.outage = Outage(chance)
        self.upkeep: Upkeep[T] = Upkeep(policy, self.slots, chance)
        self._retires = self.upkeep.retires
        self._returns_are_fresh = not self._retires and self._fresh_after_use > 0
        self.totals = Totals()
        # Left for the caller to carry out, by any thread, without the lock.
        self.todo: deque[tuple[Action, Any]] = deque()

    @property
    def is_open(self) -> bool:
        """Whether callers are let in, be it only to wait."""
        return self.status is OPEN or self.status is SUSPENDED

    # --- the fast path: no lock -----------------------------------------------------------

    def take(self, now: float) -> Slot[T] | None:
        """Lease out a free resource that is fresh; None where the lock is needed to say more."""
        if self.gate or (self._min_free and len(self.free) <= self._min_free and len(self.slots) < self.limit):
            return None
        try:
            slot = self._next_free()
        except IndexError:  # another thread was faster
            return None
        if now > slot.fresh_until:
            self._undo_next_free(slot)
            return None
        # As `_lease_out` does, and in `end` as `record_use`: both calls would be a twentieth of a lease.
        slot.since = now
        slot.leases += 1
        self.taken[slot.key] = slot
        return slot

    def end(self, slot: Slot[T], now: float) -> None:
        """End a lease: the one step that decides, among several threads, who gives it back.

        Raises:
            NotLeased: If the lease has ended before.
        """
        ended = self.taken.pop(slot.key, None)
        if ended is not slot:
            if ended is not None:  # the same object once more, after it was detached
                self.taken[ended.key] = ended
            raise report.not_leased(self)
        slot.holder = slot.lease = None
        used, slot.since = now - slot.since, now
        slot.use_counts[bisect_left(USE_BOUNDS, used)] += 1
        slot.use_sum += used
        if self.heard and slot.generation != LOST:  # else it was told when it was written off
            self._tell("on_release", used)

    def put_back(self, slot: Slot[T], now: float) -> bool:
        """Make a slot free whose lease has ended; False where that takes `release`.

        One that is doubted as well: who leases it next will ask himself.
        """
        if self.gate or self._returns_need_more:
            return False
        fresh_until = now + self._fresh_after_use
        if self._retires:
            if self.upkeep.why_retire(slot, now) is not None:
                return False
            fresh_until = min(fresh_until, slot.retire_at)
        slot.fresh_until = fresh_until
        self.free.append(slot)
        return True

    def leased(self, resource: T) -> Slot[T]:
        """Find the slot of a leased resource, by identity.

        Raises:
            NotLeased: If it is not leased from this pool.
        """
        slot = self.taken.get(id(resource))
        if slot is None:
            raise report.not_leased(self)
        return slot

    def holds(self, slot: Slot[T]) -> bool:
        """Whether the slot is the pool's, or at least expected back."""
        return self.slots.get(slot.key) is slot or self.taken.get(slot.key) is slot

    def has_seen(self, resource: T) -> bool:
        """Whether the pool has this very object already."""
        key = id(resource)
        return key in self.slots or key in self.taken or any(slot.key == key for slot in self.cleaning)

    def _lease_out(self, slot: Slot[T], now: float) -> None:
        slot.since = now
        slot.leases += 1
        self.taken[slot.key] = slot

    def next_deadline(self) -> float:
        """Say when time makes something due; infinity if never."""
        raise NotImplementedError

    def _tell(self, event: str, *facts: object) -> None:
        if event in self.heard:
            self.todo.append((Action.TELL, (event, facts)))

    # --- what is free -----------------------------------------------------------------------

    def _pop_free(self) -> Slot[T] | None:
        try:
            return self._next_free()
        except IndexError:
            return None

    def _pop_coldest(self) -> Slot[T] | None:
        try:
            return self.free.popleft()
        except IndexError:
            return None

    def _pop_fresh(self, now: float) -> Slot[T] | None:
        """Take a free slot that may be used without a check: the next one, or else the one at the other end.

        The freshest is always at one of the ends: what was used comes to the right, what
        was checked and not wanted to the left, and `_make_free` sees to the rest.
        """
        pop_other, undo_other = self._other_end
        for pop, undo in ((self._next_free, self._undo_next_free), (pop_other, undo_other)):
            try:
                slot = pop()
            except IndexError:
                return None
            if now <= slot.fresh_until:
                return slot
            undo(slot)
        return None

    def _make_free(self, slot: Slot[T]) -> None:
        """Put a slot to the right, beneath those that are fresher."""
        fresher: list[Slot[T]] = []
        with suppress(IndexError):  # nothing is left, or another thread was faster
            # Not beyond the least fresh, from where it goes up again to the left.
            while slot.fresh_until < self.free[-1].fresh_until <= (fresher[-1].fresh_until if fresher else NEVER):
                fresher.append(self.free.pop())
        self.free.append(slot)
        self.free.extend(reversed(fresher))

    def pull(self, slot: Slot[T]) -> bool:
        """Take this slot out of the free ones, unless it is not one of them."""
        try:
            self.free.remove(slot)
        except ValueError:  # another thread may just have taken it
            return False
        return True

    def _sweep_free(self) -> None:
        """Discard the free ones of older generations."""
        for slot in self.free.copy():
            if slot.generation != self.generations.current and self.pull(slot):
                self._discard(slot, "expire")

    def _doubt_free(self) -> None:
        """Have each free resource checked before its next use, however fresh it was."""
        if self.has_check:
            for slot in self.free.copy():
                slot.fresh_until = float("-inf")

    def _freshened(self, slot: Slot[T], now: float, seconds: float) -> Slot[T]:
        """Let a slot be used without a check for so long, but never beyond its lifetime."""
        slot.fresh_until = min(now + seconds, slot.retire_at)
        return slot

    # --- what goes --------------------------------------------------------------------------

    def _why_retire(self, slot: Slot[T], now: float) -> str | None:
        """Say why a slot must not be used again; None if it may."""
        if slot.generation != self.generations.current:
            return "expire"
        if self._is_above_limit():
            return "resize"
        return self.upkeep.why_retire(slot, now) if self._retires else None

    def _is_above_limit(self) -> bool:
        return len(self.slots) + len(self.creating) > self.limit

    def _discard(self, slot: Slot[T], reason: str) -> None:
        self._remove(slot)
        self.totals.discards[reason] += 1
        self._tell("on_discard", reason)
        self.cleaning.add(slot)
        self.todo.append((Action.CLEAN, slot))

    def _remove(self, slot: Slot[T]) -> None:
        if self.slots.get(slot.key) is slot:  # and not written off before
            del self.slots[slot.key]
            self.totals.past_use.add(slot.use_counts, slot.use_sum)

    def _leave(self, generation: int) -> None:
        for waiter in self.generations.leave(generation):
            self.todo.append((WAKE, waiter))

    # --- what must hold -----------------------------------------------------------------------

    def check_invariants(self, now: float) -> None:
        """Assert what holds after each decision while nobody is within the fast path; for tests.

        Raises:
            AssertionError: If something does not; it says what.
        """
        free, slots, waiting = list(self.free), list(self.slots.values()), list(self.queue)
        lost = [slot for slot in self.taken.values() if slot.generation == LOST]
        taken = [slot for slot in self.taken.values() if slot.generation != LOST]
        places = [free, taken, list(self.checking), list(self.changing)]
        generations = [each.generation for each in (*slots, *lost, *self.cleaning)]
        generations += [creation.generation for creation in self.creating]
        is_open = self.status is Status.OPEN
        totals = self.totals
        promises = {
            "each slot is in one place": sorted(map(id, chain(*places))) == sorted(map(id, slots))
            and not self.cleaning.intersection(slots),
            "slots are found by the identity of their resource": all(
                key == slot.key == id(slot.resource) for key, slot in chain(self.slots.items(), self.taken.items())
            ),
            "there are no more than the limit, or at least none that is free": not self._is_above_limit() or not free,
            "there are no more calls of create than allowed": len(self.creating) <= self.policy.max_creating,
            "what is calm is": not self._is_calm
            or (
                is_open
                and not self.outage.failures
                and not self.generations.are_turning_over()
                and not self._is_above_limit()
            ),
            "the gate is up where somebody waits": self.gate or not waiting,
            "the gate is up unless the pool is open": self.gate or is_open,
            "the gate is up while create fails": self.gate or not self.outage.failures,
            "the gate is up while older generations are left": self.gate or not self.generations.are_turning_over(),
            "the gate is up while there are more than the limit": self.gate or not self._is_above_limit(),
            "the gate is up while nobody looks who holds for too long": self.gate
            or self._look_at_holds < NEVER
            or self._max_hold == NEVER,
            "nobody waits while a fresh resource is free": not waiting
            or not is_open
            or not any(slot.fresh_until >= now for slot in free),
            "nothing is fresh beyond its lifetime": all(slot.fresh_until <= slot.retire_at for slot in free),
            "nobody waits for nothing": not waiting or not is_open or bool(slots or self.creating),
            "what is missing is being made": not is_open
            or bool(self.outage.failures)
            or len(waiting) + max(0, self._min_free - len(free)) <= len(self.creating) + len(self.checking)
            or len(slots) + len(self.creating) >= self.limit
            or len(self.creating) == self.policy.max_creating,
            "nobody waits, and nothing is free, unless the pool is open": self.is_open or not (waiting or free),
            "who waits was neither granted nor failed": all(
                waiter.slot is None and waiter.error is None for waiter in waiting
            ),
            "what is free is of the current generation": all(
                slot.generation == self.generations.current for slot in free
            ),
            "every generation is counted right": all(
                self.generations.population(generation) == generations.count(generation)
                for generation in set(generations)
            )
            and self.generations.total() == len(generations),
            "nothing is lost": totals.create.count()
            == totals.cleans + totals.detached + len(slots) + len(lost) + len(self.cleaning),
            "each one that is leased was leased out once more than given back": all(
                slot.leases - sum(slot.use_counts) == (slot.key in self.taken) for slot in slots
            ),
            "what time makes due is not looked at too late": self.due <= self.next_deadline(),
            "the states of the statistics add up": self._adds_up(now, len(taken)),
        }
        broken = [promise for promise, kept in promises.items() if not kept]
        if broken:
            raise AssertionError(f"{report.subject(self)}, {self.status}: broken: {'; '.join(broken)}")

    def _adds_up(self, now: float, leased: int) -> bool:
        stats = report.stats(self, now)
        counts = (stats.free, stats.taken, stats.leased, stats.acquires, stats.releases, *stats.wait.counts)
        return (
            min(counts) >= 0
            and stats.free == len(self.free)
            and stats.leased == leased
            and stats.free + stats.taken == len(self.slots)
            and stats.acquires == stats.releases + stats.leased == stats.wait.count
        )
