"""The pool as a pure state machine: every decision is made here and nowhere else.

No lock, clock, await, thread or logging: `now` is an argument, and what a decision asks
for (wake this waiter, call that hook) is left in `todo`, to be carried out after the
lock is released. All methods need the pool's lock; the fast path is in `_ledger`.
"""

import random
from collections.abc import Callable

from . import _report as report
from ._ledger import Action, Ledger, Status
from ._policy import Policy
from ._slot import Creation, Slot
from ._waiters import Waiter
from .errors import PoolError
from .manager import T


class State(Ledger[T]):
    """What happens next: who gets what, what is created, and who is told what."""

    def __init__(
        self, policy: Policy, *, has_check: bool, has_change: bool, chance: Callable[[], float] = random.random
    ) -> None:
        super().__init__(policy, has_check=has_check, has_change=has_change, chance=chance)
        # Want to know how the next create or check ends: who opens the pool, and who probes its back-end.
        self.openers: list[Waiter[T]] = []
        self._watchers: list[Waiter[T]] = []
        self._proved_at = float("-inf")  # when a create or a check last succeeded
        self._probing_since: float | None = None  # when somebody began to wait for that

    # --- life -----------------------------------------------------------------------------

    def check_not_open(self) -> None:
        """See that the pool may be opened.

        Raises:
            PoolConfigError: If it is open, or not closed yet.
        """
        if self.status is Status.OPEN or self.status is Status.CLOSING:
            raise report.open_already(self)

    def open(self, now: float) -> None:
        """Let callers in, and create what `min_free` asks for."""
        self.status = Status.OPEN
        self.generations.next()
        self.outage.end()
        self.settle(now)

    def close(self, now: float) -> int:
        """Refuse newcomers and fail who waits; returns the generation that has to go."""
        if self.status is not Status.CLOSED:
            self.status = Status.CLOSING
            for waiter in tuple(self.queue):
                self._fail(waiter, report.not_open(self))
            self._tell_watchers(report.not_open(self))
        return self.expire(now)

    def fork(self) -> object:
        """Begin anew in a forked child; returns what is the parent's, and must not even be destroyed here."""
        inherited = dict(vars(self))
        vars(self).update(vars(State(self.policy, has_check=self.has_check, has_change=self.has_change)))
        self.status = Status.FORKED
        return inherited

    def is_over(self) -> bool:
        """Whether the pool is closed and nothing is left of it."""
        return self.status is Status.CLOSED and not self.generations.total()

    def closed(self) -> None:
        """Be closed; who has not come back by now is cleaned when it does."""
        if self.status is Status.CLOSING:
            self.status = Status.CLOSED

    def write_off(self, generation: int, now: float) -> list[tuple[object, float]]:
        """Stop waiting for leases of this generation and older ones; returns their holders and ages.

        They no longer count, as if they had ended now, and are cleaned when they come back.
        """
        lost = [slot for slot in list(self.taken.values()) if slot.generation <= generation]
        for slot in lost:
            slot.use.record(now - slot.since)
            self._remove(slot)
            self._leave(slot.generation)
            slot.generation = self.generations.enter_lost()
        return [(slot.holder, now - slot.since) for slot in lost]

    def expire(self, now: float) -> int:
        """Retire all that exist: the free at once, each other one when it comes back."""
        self.gate = True
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
        self.openers = [opener for opener in self.openers if opener is not waiter]
        self._watchers = [watcher for watcher in self._watchers if watcher is not waiter]

    # --- acquire --------------------------------------------------------------------------

    def try_acquire(self, now: float) -> Slot[T] | None:
        """Lease out a resource at once or not at all; then one is readied where there is room.

        Raises:
            PoolClosed: If the pool is not open.
        """
        if self.gate and self.free:  # put back by `take`, when nobody else looked any more
            self.settle(now)
        if self.status is not Status.OPEN:
            self.totals.refusals["closed"] += 1
            raise report.not_open(self)
        if self.queue:
            return None
        slot = self._pop_fresh(now)
        if slot is not None:
            self._lease_out(slot, now)
            self.settle(now)
            return slot
        self._ready_one(now)
        return None

    def acquire(self, waiter: Waiter[T], timeout: float | None, now: float) -> Slot[T] | None:
        """Lease out a resource at once, or let the waiter into the queue.

        Raises:
            PoolClosed: If the pool is not open.
            ResourceUnavailable: If `create` fails and there is nothing to wait for.
            PoolTimeout: If it would have to wait with a timeout of 0.
            WouldDeadlock: If its owner holds a resource already.
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
        if waiter.owner is not None and any(slot.owner is waiter.owner for slot in list(self.taken.values())):
            raise report.would_deadlock(self)
        # Those for whom there is room wait for nobody; max_waiting bounds the others.
        queued = len(self.queue) - (self.limit - len(self.taken) - len(self.changing))
        if self.policy.max_waiting is not None and queued >= self.policy.max_waiting:
            self.totals.refusals["full"] += 1
            raise report.full(self)
        waiter.asked_at = now
        waiter.deadline = None if timeout is None else now + timeout
        self.gate = True
        self.queue.join(waiter)
        if self.free or self._has_room():  # else there is nothing to settle, as so often under load
            self.settle(now)
        return None

    def withdraw(self, waiter: Waiter[T], now: float) -> None:
        """Let a caller go that was cancelled; what it may just have been granted goes to the next."""
        slot = waiter.slot
        if slot is not None:
            waiter.slot = None
            self.end(slot, now)
            if self.outage.failures and self.has_check:
                slot.fresh_until = float("-inf")
            self._make_free(slot)
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
            slot.fresh_until = float("-inf") if self.outage.failures and self.has_check else now + self._fresh_after_use
            if self.queue and now <= slot.fresh_until:  # straight to the next in line, and nothing else changes
                self._grant(self.queue.head(), slot, now)
                if not self.queue:
                    self._set_gate()
                return
            self._make_free(slot)
        self.settle(now)

    # --- what the hooks said ------------------------------------------------------------------

    def created(self, creation: Creation, resource: T, now: float) -> None:
        """Welcome a new resource; whoever is next in line gets it."""
        if self.has_seen(resource):
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
        self.gate = True
        self.creating.remove(creation)
        self.totals.create_failures += 1
        was_failing = self.outage.failures > 0
        self.outage.note(cause, started=creation.started, now=now)
        self._doubt_free()
        if self.queue and not was_failing:  # later ones are tries of our own, made for nobody
            self._fail(self.queue.head(), report.unavailable(self, now))
        self._tell_watchers(report.unavailable(self, now))
        self._leave(creation.generation)
        self.settle(now)

    def checked(self, slot: Slot[T], now: float, *, healthy: bool) -> None:
        """Use a slot that passed its check; clean one that did not, and doubt the others."""
        self.checking.remove(slot)
        if healthy and slot.generation == self.generations.current:
            slot.fresh_until = now + self._check_after
            # Where nobody wants it, it stays the least recently used.
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

    def cleaned(self, slot: Slot[T], now: float, *, failed: bool) -> None:
        """Let go of a slot whose `clean` is over, whether it raised or not."""
        self.cleaning.remove(slot)
        self.totals.cleans += 1
        self.totals.clean_failures += failed
        self._leave(slot.generation)
        self.settle(now)

    def abandon(self, now: float) -> None:
        """Give up all calls of hooks, none of which will ever end: their loop has."""
        for slot in tuple(self.cleaning):
            self.cleaned(slot, now, failed=True)
        for slot in tuple(self.checking):
            self.checked(slot, now, healthy=False)
        for slot in tuple(self.changing):
            self.changed(slot, now, failed=True)
        for creation in tuple(self.creating):
            self.creating.remove(creation)
            self.totals.create_failures += 1
            self._leave(creation.generation)
        self.settle(now)

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

    def watch_min_free(self, watcher: Waiter[T]) -> bool:
        """Wake `watcher` at the next outcome while `min_free` resources do not exist yet, and may yet come."""
        if self.status is not Status.OPEN:
            watcher.error = report.not_open(self)
        elif self.outage.failures:
            watcher.error = report.cannot_open(self)
        elif len(self.slots) < self._min_free:
            self.openers.append(watcher)
            return True
        return False

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
        while self.queue and (slot := self._pop_fresh(now)) is not None:
            self._grant(self.queue.head(), slot, now)
        # Whatever is being created: that may take long.
        while len(self.queue) > len(self.checking) and (slot := self._pop_free()) is not None:
            self._start_check(slot)
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
        self._lease_out(slot, now)
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
        """Have a check under way, or a creation where there is nothing else: it may just be slow."""
        if not self.checking:
            slot = self._pop_coldest() if self.has_check else None
            if slot is not None:
                self._start_check(slot)
            elif not self.slots and not self.creating and self._has_room():
                self._start_creation(now)
        return bool(self.checking) or (not self.slots and bool(self.creating))

    def _ready_one(self, now: float) -> None:
        """Check or create one on behalf of a caller that does not wait."""
        slot = self._pop_free() if not self.checking else None
        if slot is not None:
            self._start_check(slot)
        elif not self._arriving() and self._has_room() and not self.outage.failures:
            self._start_creation(now)

    def _prove(self, now: float) -> None:
        self._proved_at = now
        self._tell_watchers(None)

    def _tell_watchers(self, error: PoolError | None) -> None:
        self._probing_since = None
        for watcher in self._watchers:
            watcher.error = error
            self.todo.append((Action.WAKE, watcher))
        self._watchers.clear()
        for opener in self.openers:  # looks again
            self.todo.append((Action.WAKE, opener))
        self.openers.clear()

    def _arriving(self) -> int:
        return len(self.creating) + len(self.checking)

    def _has_room(self) -> bool:
        return self.status is Status.OPEN and len(self.slots) + len(self.creating) < self.limit

    def _is_down(self) -> bool:
        return self.outage.failures > 0 and not self.slots
