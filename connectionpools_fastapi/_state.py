"""The pool as a pure state machine: every decision is made here and nowhere else.

No lock, clock, await, thread or logging: `now` is an argument, and what a decision asks
for (wake this waiter, call that hook) is left in `todo`, to be carried out after the
lock is released. All methods need the pool's lock but `take`, `end` and `put_back`.
These are the fast path, built from single operations that are atomic on CPython with
and without the GIL. They lose no wake-up: who gives back first appends the slot and then
looks at the gate; who waits first raises the gate and then looks for a free slot.
"""

import random
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Generic

from . import _report as report
from ._generations import Generations
from ._outage import Outage
from ._policy import Policy
from ._queue import Queue
from ._slot import Creation, Slot
from ._totals import Totals
from ._waiters import Waiter
from .errors import PoolError
from .manager import T


class Status(Enum):
    """Where a pool is in its life."""

    NEW = "new"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Action(Enum):
    """What a decision asks the pool to carry out, and for whom."""

    WAKE = "wake"  # a waiter
    CREATE = "create"  # a creation
    CHECK = "check"  # a slot, as in the next two
    CHANGE = "change"
    CLEAN = "clean"


class State(Generic[T]):
    """Who has what, who waits for what, and what happens next."""

    def __init__(
        self, policy: Policy, *, has_check: bool, has_change: bool, chance: Callable[[], float] = random.random
    ) -> None:
        self.policy = policy
        self.limit = policy.limit
        self.status = Status.NEW
        self.has_change = has_change
        self.has_check = has_check
        self._check_after = policy.check_after if has_check else float("inf")
        self._min_free = policy.min_free
        # Raised while anything but "take a free one, put it back" may be called for.
        self.gate = True
        # A resource is in exactly one of these; `slots` has all but those in `cleaning`.
        self.free: deque[Slot[T]] = deque()  # the least recently used on the left
        self.taken: dict[int, Slot[T]] = {}
        self.checking: set[Slot[T]] = set()
        self.changing: set[Slot[T]] = set()
        self.cleaning: set[Slot[T]] = set()
        self.slots: dict[int, Slot[T]] = {}
        self.creating: set[Creation] = set()
        self._next_free, self._undo_next_free = (
            (self.free.pop, self.free.append) if policy.reuse == "lifo" else (self.free.popleft, self.free.appendleft)
        )
        self.generations: Generations[T] = Generations()
        self.queue: Queue[T] = Queue()
        self._watchers: list[Waiter[T]] = []  # want to know how the next create or check ends
        self.outage = Outage(chance)
        self._proved_at = float("-inf")  # when a create or a check last succeeded
        self._probing_since: float | None = None  # when somebody began to wait for that
        self.totals = Totals()
        # Left for the caller to carry out, by any thread, without the lock.
        self.todo: deque[tuple[Action, Any]] = deque()

    # --- the fast path: no lock -----------------------------------------------------------

    def take(self, now: float) -> Slot[T] | None:
        """Lease out a free resource that is fresh; None where the lock is needed to say more."""
        if self.gate or len(self.free) <= self._min_free:
            return None
        try:
            slot = self._next_free()
        except IndexError:  # another thread was faster
            return None
        if now > slot.fresh_until:
            self._undo_next_free(slot)
            return None
        slot.since = now
        self.taken[slot.key] = slot
        return slot

    def end(self, slot: Slot[T], now: float) -> None:
        """End a lease: the one step that decides, among several threads, who gives it back.

        Raises:
            NotLeased: If the lease has ended before.
        """
        if self.taken.pop(slot.key, None) is not slot:
            raise report.not_leased(self)
        slot.holder = None
        slot.use.record(now - slot.since)

    def put_back(self, slot: Slot[T], now: float) -> bool:
        """Make a slot free whose lease has ended; False where that takes `release`."""
        if self.gate or self.has_change:
            return False
        slot.fresh_until = now + self._check_after
        self.free.append(slot)
        return True

    # --- life -----------------------------------------------------------------------------

    def open(self, now: float) -> None:
        """Let callers in, and create what `min_free` asks for."""
        if self.status is Status.OPEN or self.status is Status.CLOSING:
            raise report.open_already(self)
        self.status = Status.OPEN
        self.generations.next()
        self.outage.end()
        self.settle(now)

    def close(self, now: float) -> int:
        """Refuse newcomers and fail who waits; returns the generation that has to go."""
        if self.status is not Status.CLOSED:
            self.status = Status.CLOSING
            for waiter in (*self.queue, *self._watchers):
                self._fail(waiter, report.not_open(self))
            self._watchers.clear()
            self._probing_since = None
        return self.expire(now)

    def closed(self) -> None:
        """Be closed; who has not come back by now is cleaned when it does."""
        if self.status is Status.CLOSING:
            self.status = Status.CLOSED

    def write_off(self) -> None:
        """Stop waiting for those that are leased out; they are cleaned when they come back."""
        for slot in tuple(self.taken.values()):
            self._leave(slot.generation)
            slot.generation = self.generations.enter_lost()

    def expire(self, now: float) -> int:
        """Retire all that exist: the free at once, each other one when it comes back."""
        retired = self.generations.next()
        self.settle(now)
        return retired

    def wait_gone(self, waiter: Waiter[T], generation: int) -> bool:
        """Wake `waiter` once nothing of this generation or an older one is left; False if that is so now."""
        if self.generations.is_gone(generation):
            return False
        self.generations.watch(waiter, generation)
        return True

    def forget(self, waiter: Waiter[T]) -> None:
        """No longer tell somebody about a generation or an outcome."""
        self.generations.forget(waiter)
        self._watchers = [watcher for watcher in self._watchers if watcher is not waiter]

    # --- acquire --------------------------------------------------------------------------

    def try_acquire(self, now: float) -> Slot[T] | None:
        """Lease out a resource at once or not at all; then one is readied where there is room.

        Raises:
            PoolClosed: If the pool is not open.
        """
        if self.status is not Status.OPEN:
            self.totals.refusals["closed"] += 1
            raise report.not_open(self)
        if self.queue:
            return None
        slot = self._pop_free()
        if slot is not None and now <= slot.fresh_until:
            slot.since = now
            self.taken[slot.key] = slot
            self.settle(now)
            return slot
        if slot is not None:
            self._undo_next_free(slot)
        if not self._arriving():
            self._ready_one(now)
        return None

    def acquire(self, waiter: Waiter[T], timeout: float | None, now: float) -> Slot[T] | None:
        """Lease out a resource at once, or let the waiter into the queue.

        Raises:
            PoolClosed: If the pool is not open.
            ResourceUnavailable: If `create` fails and there is nothing to wait for.
            PoolTimeout: If it would have to wait with a timeout of 0.
            TooManyWaiting: If the queue is full.
        """
        slot = self.try_acquire(now)
        if slot is not None:
            return slot
        if self._is_down():
            self.totals.refusals["unavailable"] += 1
            raise report.unavailable(self, now)
        if timeout is not None and timeout <= 0:
            self.totals.timeouts += 1
            raise report.timed_out(self, 0)
        # Those for whom there is room wait for nobody; max_waiting bounds the others.
        queued = len(self.queue) - (self.limit - len(self.taken) - len(self.changing))
        if self.policy.max_waiting is not None and queued >= self.policy.max_waiting:
            self.totals.refusals["full"] += 1
            raise report.full(self)
        waiter.asked_at = now
        waiter.deadline = None if timeout is None else now + timeout
        self.gate = True
        self.queue.join(waiter)
        self.settle(now)
        return None

    def withdraw(self, waiter: Waiter[T], now: float) -> None:
        """Let a caller go that was cancelled; what it may just have been granted goes to the next."""
        slot = waiter.slot
        if slot is not None:
            waiter.slot = None
            self.totals.wait.record(waiter.waited, -1)
            del self.taken[slot.key]
            self._undo_next_free(slot)
        elif waiter in self.queue:
            self.queue.leave(waiter)
        else:
            return
        self.totals.withdrawals += 1
        self.settle(now)

    def time_out(self, waiter: Waiter[T], now: float) -> None:
        """Fail a caller whose time is over, unless it was granted or failed already."""
        if waiter in self.queue:
            self.totals.timeouts += 1
            self._fail(waiter, report.timed_out(self, now - waiter.asked_at))
            self.settle(now)

    # --- release: of a slot whose lease was ended by `end` ------------------------------------

    def leased(self, resource: T) -> Slot[T]:
        """Find the slot of a leased resource, by identity.

        Raises:
            NotLeased: If it is not leased from this pool.
        """
        slot = self.taken.get(id(resource))
        if slot is None:
            raise report.not_leased(self)
        return slot

    def release(self, slot: Slot[T], done: Waiter[T] | None, now: float) -> bool:
        """Change, retire or hand on what came back; True if `done` will be woken after a change."""
        if slot.generation == self.generations.current and self.has_change:
            slot.done = done
            self.changing.add(slot)
            self.todo.append((Action.CHANGE, slot))
            return True
        self._come_back(slot, now)
        return False

    def changed(self, slot: Slot[T], now: float, *, failed: bool) -> None:
        """Take note that `change` is over."""
        self.changing.remove(slot)
        if slot.done is not None:
            self.todo.append((Action.WAKE, slot.done))
            slot.done = None
        if failed:
            self._discard(slot, "change")
            self.settle(now)
        else:
            self._come_back(slot, now)

    def discard(self, slot: Slot[T], now: float) -> None:
        """Destroy what came back."""
        self._discard(slot, "discarded")
        self.settle(now)

    def detach(self, slot: Slot[T], now: float) -> None:
        """Forget a slot: its resource is the caller's own from now on."""
        self._remove(slot)
        self.totals.detached += 1
        self._leave(slot.generation)
        self.settle(now)

    def _come_back(self, slot: Slot[T], now: float) -> None:
        if slot.generation != self.generations.current:
            self._discard(slot, "expired")
        else:
            # While `create` fails, use proves nothing: only a check does.
            slot.fresh_until = float("-inf") if self.outage.failures and self.has_check else now + self._check_after
            self.free.append(slot)
        self.settle(now)

    # --- what the hooks said ------------------------------------------------------------------

    def created(self, creation: Creation, resource: T, now: float) -> None:
        """Welcome a new resource; whoever is next in line gets it."""
        if id(resource) in self.slots:
            self.create_failed(creation, report.same_object(self), now)
            return
        self.creating.remove(creation)
        self.totals.create.record(now - creation.started)
        self.outage.end()
        slot = Slot(resource, creation.generation, now + self._check_after)
        self.slots[slot.key] = slot
        if slot.generation == self.generations.current:
            self.free.append(slot)
        else:
            self._discard(slot, "expired")
        self._prove(now)
        self.settle(now)

    def create_failed(self, creation: Creation, cause: BaseException, now: float) -> None:
        """Back off; the head of the queue is told, and all who have nothing left to wait for."""
        self.creating.remove(creation)
        self.totals.create_failures += 1
        self.outage.note(cause, started=creation.started, now=now)
        self._doubt_free()
        if self.queue:
            self._fail(self.queue.head(), report.unavailable(self, now))
        self._tell_watchers(report.unavailable(self, now))
        self._leave(creation.generation)
        self.settle(now)

    def checked(self, slot: Slot[T], now: float, *, healthy: bool) -> None:
        """Use a slot that passed its check; clean one that did not, and doubt the others."""
        self.checking.remove(slot)
        if healthy and slot.generation == self.generations.current:
            slot.fresh_until = now + self._check_after
            # Nobody wants it: it stays the least recently used.
            self._undo_next_free(slot) if self.queue else self.free.appendleft(slot)
        else:
            self._discard(slot, "expired" if healthy else "check")
        if healthy:
            self._prove(now)
        else:
            self._doubt_free()
            if self._probing_since is not None and not self._start_probe(now):
                self._tell_watchers(None)
        self.settle(now)

    def cleaned(self, slot: Slot[T], *, failed: bool) -> None:
        """Let go of a slot whose `clean` is over, whether it raised or not."""
        self.cleaning.remove(slot)
        self.totals.cleans += 1
        self.totals.clean_failures += failed
        self._leave(slot.generation)
        self._set_gate()

    # --- the back-end -------------------------------------------------------------------------

    def probe(self, watcher: Waiter[T], max_age: float, patience: float, now: float) -> bool | None:
        """Say whether the back-end answers, as far as known; None if `watcher` will be woken about it.

        What is not known is tried: a free resource is checked, or one is created where
        none exists. No try is made while another one is under way or all are in use.
        """
        if self.status is not Status.OPEN or self._is_down():
            return False
        if self.outage.failures or now - self._proved_at <= max_age:
            return True
        if self._probing_since is not None and now - self._probing_since >= patience:
            return False
        if not self._start_probe(now):
            return True
        if self._probing_since is None:
            self._probing_since = now
        self._watchers.append(watcher)
        return None

    def watch_min_free(self, watcher: Waiter[T], now: float) -> bool:
        """Wake `watcher` at the next outcome while `min_free` resources do not exist yet."""
        if self.status is not Status.OPEN or len(self.slots) >= self._min_free:
            return False
        if self.outage.failures:
            watcher.error = report.unavailable(self, now)
            return False
        self._watchers.append(watcher)
        return True

    def tick(self, now: float) -> None:
        """Do what is due: time out who waits too long, try `create` again."""
        for waiter in self.queue.overdue(now):
            self.time_out(waiter, now)
        if now >= self._retry_at():
            self._start_creation(now)

    def next_deadline(self) -> float:
        """Say when `tick` is due; infinity if never."""
        return min(self.queue.next_deadline(), self._retry_at())

    def _retry_at(self) -> float:
        retry = self.outage.failures and not self.creating and self._has_room()
        return self.outage.retry_at if retry else float("inf")

    # --- the one place where free, waiting and missing meet ---------------------------------------

    def settle(self, now: float) -> None:
        """Hand over what is free, order what is missing, and fail who cannot be served."""
        if self.generations.are_turning_over():
            self._sweep_free()
        while self.queue and (slot := self._pop_free()) is not None:
            if now <= slot.fresh_until:
                self._grant(self.queue.head(), slot, now)
            elif len(self.queue) > self._arriving():
                self._start_check(slot)
            else:
                self._undo_next_free(slot)
                break
        if not self.outage.failures:
            wanted = len(self.queue) + max(0, self._min_free - len(self.free))
            while wanted > self._arriving() and self._has_room() and len(self.creating) < self.policy.max_creating:
                self._start_creation(now)
        if self._is_down() and not self.creating:
            for waiter in tuple(self.queue):
                self._fail(waiter, report.unavailable(self, now))
        self._set_gate()

    def _set_gate(self) -> None:
        self.gate = (
            self.status is not Status.OPEN
            or len(self.queue) > 0
            or self.outage.failures > 0
            or self.generations.are_turning_over()
        )

    def _grant(self, waiter: Waiter[T], slot: Slot[T], now: float) -> None:
        self.queue.leave(waiter)
        slot.since = now
        self.taken[slot.key] = slot
        waiter.slot = slot
        waiter.waited = now - waiter.asked_at
        self.totals.wait.record(waiter.waited)
        self.todo.append((Action.WAKE, waiter))

    def _fail(self, waiter: Waiter[T], error: PoolError) -> None:
        if waiter in self.queue:
            self.queue.leave(waiter)
        waiter.error = error
        self.todo.append((Action.WAKE, waiter))

    def _start_creation(self, now: float) -> None:
        creation = Creation(self.generations.enter(), now)
        self.creating.add(creation)
        self.todo.append((Action.CREATE, creation))

    def _start_check(self, slot: Slot[T]) -> None:
        self.checking.add(slot)
        self.todo.append((Action.CHECK, slot))

    def _start_probe(self, now: float) -> bool:
        if not self._arriving():
            if self.has_check and self.free:
                self._start_check(self.free.popleft())
            elif not self.slots and self._has_room():
                self._start_creation(now)
        return self._arriving() > 0

    def _ready_one(self, now: float) -> None:
        """Check or create one on behalf of a caller that does not wait."""
        if self.free:
            slot = self._pop_free()
            if slot is not None:
                self._start_check(slot)
        elif self._has_room() and not self.outage.failures:
            self._start_creation(now)

    def _discard(self, slot: Slot[T], reason: str) -> None:
        self._remove(slot)
        self.totals.discards[reason] += 1
        self.cleaning.add(slot)
        self.todo.append((Action.CLEAN, slot))

    def _remove(self, slot: Slot[T]) -> None:
        del self.slots[slot.key]
        self.totals.past_use.add(slot.use)

    def _leave(self, generation: int) -> None:
        for waiter in self.generations.leave(generation):
            self.todo.append((Action.WAKE, waiter))

    def _pop_free(self) -> Slot[T] | None:
        try:
            return self._next_free()
        except IndexError:
            return None

    def _sweep_free(self) -> None:
        for _ in range(len(self.free)):  # all round once: the order stays
            slot = self.free.popleft()
            if slot.generation == self.generations.current:
                self.free.append(slot)
            else:
                self._discard(slot, "expired")

    def _doubt_free(self) -> None:
        """Have each free resource checked before its next use, however fresh it was."""
        if self.has_check:
            for _ in range(len(self.free)):
                slot = self.free.popleft()
                slot.fresh_until = float("-inf")
                self.free.append(slot)

    def _prove(self, now: float) -> None:
        self._proved_at = now
        self._tell_watchers(None)

    def _tell_watchers(self, error: PoolError | None) -> None:
        self._probing_since = None
        for watcher in self._watchers:
            watcher.error = error
            self.todo.append((Action.WAKE, watcher))
        self._watchers.clear()

    def _arriving(self) -> int:
        return len(self.creating) + len(self.checking)

    def _has_room(self) -> bool:
        return self.status is Status.OPEN and len(self.slots) + len(self.creating) < self.limit

    def _is_down(self) -> bool:
        return self.outage.failures > 0 and not self.slots
