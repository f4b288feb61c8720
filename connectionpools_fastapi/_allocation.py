"""Allocation: who gets what, and what has to be created, checked, changed and cleaned for it.

The middle of the state machine: `_ledger` beneath it says what is where, `_state` above
it opens, closes, limits and looks after the whole. All methods need the pool's lock.
"""

import random
from collections.abc import Callable

from . import _report as report
from ._generations import LOST
from ._ledger import CHANGE, OPEN, SUSPENDED, WAKE, Action, Ledger
from ._owner import owner_of
from ._policy import Policy
from ._slot import NEVER, Creation, Slot
from ._waiters import Waiter
from .errors import PoolError
from .manager import T


class Allocation(Ledger[T]):
    """What happens when callers come, give back and give up, and when hooks have had their say."""

    def __init__(
        self, policy: Policy, *, has_check: bool, has_change: bool, chance: Callable[[], float] = random.random
    ) -> None:
        super().__init__(policy, has_check=has_check, has_change=has_change, chance=chance)
        # Want to know how the next create or check ends: who opens the pool, and who probes its back-end.
        self.openers: list[Waiter[T]] = []
        self._watchers: list[Waiter[T]] = []
        self._proved_at = float("-inf")  # when a create or a check last succeeded
        self._probing_since: float | None = None  # when somebody began to wait for that
        self._quiet: dict[Slot[T], None] = {}  # due for a check that keeps them alive

    # --- acquire --------------------------------------------------------------------------

    def try_acquire(self, now: float) -> Slot[T] | None:
        """Lease out a resource at once or not at all; then one is readied where there is room.

        Raises:
            PoolClosed: If the pool is not open.
        """
        if self.gate and self.free:  # put back by `take`, when nobody else looked any more
            self.settle(now)
        if self.status is not OPEN and not self.is_open:
            self._note_refusal("closed")
            raise report.not_open(self)
        if self.queue.size or self.status is SUSPENDED:
            return None
        slot = self._pop_fresh(now)
        if slot is not None:
            self._lease_out(slot, now)
            self._watch_holds(now)
            self._tell("on_acquire", 0.0)
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
            WouldDeadlock: If it would wait for itself, or close a circle of those who wait for each other.
            TooManyWaiting: If the queue is full.
        """
        queue = self.queue
        if self.free or not queue.size:  # else somebody was here before, and has got nothing either
            slot = self.try_acquire(now)
            if slot is not None:
                return slot
        if self.outage.failures and self._is_down():
            self._note_refusal("unavailable")
            raise report.unavailable(self, now)
        if timeout is not None and timeout <= 0:
            self._note_timeout(0.0)
            raise report.timed_out(self, 0)
        if waiter.request is not None and self._waits_for_itself(waiter.request):
            self._note_refusal("deadlock")
            raise report.waits_for_itself(self)
        if len(self.taken) >= len(self.slots) >= self.limit and self._closes_circle(waiter):
            self._note_refusal("deadlock")
            raise report.closes_circle(self)
        if self.policy.max_waiting is not None and self._is_full(self.policy.max_waiting):
            self._note_refusal("full")
            raise report.full(self)
        waiter.asked_at = now
        waiter.deadline = None if timeout is None else now + timeout
        self.gate = True
        queue.join(waiter)
        self.due = min(self.due, queue.due)
        if self._max_hold < NEVER:
            self._watch_holds(now)
        if self.free or len(self.slots) < self.limit:  # else there is nothing to settle, as so often under load
            self.settle(now)
        return None

    def mistrust(self, slot: Slot[T], now: float) -> None:
        """Check a slot that was leased out at once, but had better not be used before."""
        if self.taken.pop(slot.key, None) is slot:
            slot.leases -= 1  # nobody has had it
            self._tell("on_release", 0.0)
            self._look_over(slot, now)
            self.settle(now)

    def withdraw(self, waiter: Waiter[T], now: float) -> None:
        """Let a caller go that was cancelled; what it may just have been granted goes to the next."""
        slot = waiter.slot
        if slot is not None:
            waiter.slot = None
            self.end(slot, now)
            if self.outage.failures and self.has_check:
                slot.fresh_until = float("-inf")
            self._make_free(slot)
        elif waiter.waits:
            self.queue.leave(waiter)
        else:
            return
        self.totals.withdrawals += 1
        self._tell("on_withdraw", now - waiter.asked_at)
        self.settle(now)

    def give_up(self, waiter: Waiter[T], error: Exception, now: float) -> None:
        """Fail a caller whose client has gone away, unless it was granted or failed already."""
        if waiter.waits:
            self.totals.withdrawals += 1
            self._tell("on_withdraw", now - waiter.asked_at)
            self._fail(waiter, error)
            self.settle(now)

    def time_out(self, waiter: Waiter[T], now: float) -> None:
        """Fail a caller whose time is over, unless it was granted or failed already."""
        if waiter.waits:
            waited = now - waiter.asked_at
            self._note_timeout(waited)
            self._fail(waiter, report.timed_out(self, waited))
            self.settle(now)

    def _is_full(self, max_waiting: int) -> bool:
        # Those for whom there is room wait for nobody.
        busy = len(self.slots) - len(self.free) - len(self.checking)
        return len(self.queue) - max(0, self.limit - busy) >= max_waiting

    def _waits_for_itself(self, request: object) -> bool:
        """Whether a request holds a resource already, as others may do at the same time."""
        return any(owner_of(slot) is request for slot in list(self.taken.values()))

    def _closes_circle(self, waiter: Waiter[T]) -> bool:
        """Whether all there are are held by tasks that wait, this one among them.

        Threads are not asked: one that runs this and that in turn, as those for `def`
        dependencies do, holds nothing by itself.
        """
        held = 0
        try:
            for slot in self.taken.values():
                if slot.generation != LOST:  # else it was written off
                    owner = owner_of(slot)
                    if owner is None or not (owner is waiter.owner or self.queue.has_one_of(owner)):
                        return False  # most often the very first one
                    held += 1
        except RuntimeError:  # another thread has just leased or given back: then it does not wait
            return False
        return held == len(self.slots)  # and none was given back as we looked

    # --- release: of a slot whose lease was ended by `end` ------------------------------------

    def release(self, slot: Slot[T], now: float) -> None:
        """Change, retire or hand on what came back."""
        if self.has_change and self._why_retire(slot, now) is None:
            self.changing[slot] = None
            self.todo.append((CHANGE, slot))
        else:
            self._come_back(slot, now)

    def wait_changed(self, slot: Slot[T], lease: int, done: Waiter[T]) -> bool:
        """Wake `done` once the change after this lease of the slot is over; False if it is."""
        if slot not in self.changing or slot.leases != lease:
            return False
        self.changing[slot] = done
        return True

    def changed(self, slot: Slot[T], now: float, *, failed: bool) -> None:
        """Take note that `change` is over."""
        done = self.changing.pop(slot)
        if done is not None:
            self.todo.append((WAKE, done))
        if failed:
            self._discard(slot, "change")
            self.settle(now)
        else:
            self._come_back(slot, now)

    def discard(self, slot: Slot[T], now: float) -> None:
        """Destroy what came back."""
        self._discard(slot, "discard")
        self.settle(now)

    def detach(self, slot: Slot[T], now: float) -> None:
        """Forget a slot: its resource is the caller's own from now on."""
        self._remove(slot)
        self.totals.detached += 1
        self._tell("on_detach")
        self._leave(slot.generation)
        self.settle(now)

    def _come_back(self, slot: Slot[T], now: float) -> None:
        if self._is_calm and self.queue.size and self._returns_are_fresh and not slot.doubted:
            # Straight to the next in line, and nothing else changes: as each lease comes back under load.
            slot.fresh_until = now + self._fresh_after_use
            self._grant(slot, now)
            if not self.queue.size:
                self._set_gate()
            return
        reason = self._why_retire(slot, now)
        if reason is not None:
            self._discard(slot, reason)
        else:
            # While `create` fails, use proves nothing: only a check does.
            is_stale = slot.doubted or (self.outage.failures and self.has_check)
            self._make_free(self._freshened(slot, now, -NEVER if is_stale else self._fresh_after_use))
        self.settle(now)

    # --- what the hooks said ------------------------------------------------------------------

    def created(self, creation: Creation, resource: T, now: float) -> None:
        """Welcome a new resource; whoever is next in line gets it."""
        if self.has_seen(resource):
            self.create_failed(creation, report.same_object(self), now)
            return
        self.creating.remove(creation)
        took = now - creation.started
        self.totals.create.record(took)
        self._tell("on_create", took)
        self._end_outage()
        slot = Slot(resource, creation.generation, now)
        self.slots[slot.key] = slot
        self.upkeep.enter(slot, now)
        reason = self._why_retire(slot, now)
        if reason is None:
            self.free.append(self._freshened(slot, now, self._check_after))
        else:
            self._discard(slot, reason)
        self._prove(now)
        self.settle(now)

    def create_failed(self, creation: Creation, cause: BaseException, now: float) -> None:
        """Back off; the head of the queue is told, and all who have nothing left to wait for."""
        self.gate = True
        self.creating.remove(creation)
        self.totals.create_failures += 1
        self._tell("on_create_failed", cause)
        was_failing = self.outage.failures > 0
        self._forget_cause()
        self.outage.note(cause, started=creation.started, now=now)
        self._doubt_free()
        # Later ones are tries of our own, made for nobody; and a suspended pool lets all wait.
        if self.queue and not was_failing and self.status is OPEN:
            self._fail(self.queue.head(), report.unavailable(self, now))
        self._tell_watchers(report.unavailable(self, now))
        self._leave(creation.generation)
        self.settle(now)

    def checked(self, slot: Slot[T], now: float, *, healthy: bool) -> None:
        """Use a slot that passed its check; clean one that did not, and doubt the others."""
        self.checking.remove(slot)
        slot.checked_at = now
        reason = self._why_retire(slot, now) if healthy else "check"
        if reason is None:
            self._freshened(slot, now, self._check_after)
            # Where nobody wants it, it stays the least recently used.
            self._undo_next_free(slot) if self.queue else self.free.appendleft(slot)
        else:
            self._discard(slot, reason)
        if healthy:
            self._prove(now)
        else:
            self._doubt_free()
            self._probe_on(now)
        self._keep_alive(now)
        self.settle(now)

    def cleaned(self, slot: Slot[T], now: float, *, failed: bool) -> None:
        """Let go of a slot whose `clean` is over, whether it raised or not."""
        self.cleaning.remove(slot)
        self.totals.cleans += 1
        self.totals.clean_failures += failed
        self._tell("on_clean")
        self._leave(slot.generation)
        self.settle(now)

    # --- the one place where free, waiting and missing meet ---------------------------------------

    def settle(self, now: float) -> None:
        """Hand over what is free, order what is missing, and fail who cannot be served."""
        if self.generations.are_turning_over():
            self._sweep_free()
        while self._is_above_limit() and (slot := self._pop_coldest()) is not None:
            self._discard(slot, "resize")
        if self.status is not SUSPENDED:
            self._serve(now)
        self.due = self.next_deadline()

    def _serve(self, now: float) -> None:
        while self.queue and (slot := self._pop_fresh(now)) is not None:
            self._grant(slot, now)
        # Whatever is being created: that may take long.
        while len(self.queue) > len(self.checking) and (slot := self._pop_free()) is not None:
            self._look_over(slot, now)
        if not self.outage.failures:
            wanted = len(self.queue) + max(0, self._min_free - len(self.free))
            while wanted > self._arriving() and self._has_room() and len(self.creating) < self.policy.max_creating:
                self._start_creation(now)
        if self._is_down() and not self.creating:
            for waiter in tuple(self.queue):
                self._fail(waiter, report.unavailable(self, now))
        self._set_gate()

    def _set_gate(self) -> None:
        self._is_calm = (
            self.status is OPEN
            and not self.outage.failures
            and not self.generations.are_turning_over()
            and not self._is_above_limit()
        )
        self.gate = (
            not self._is_calm
            or self.queue.size > 0
            or self._tells_each
            or (self._look_at_holds == NEVER and self._max_hold < NEVER)
        )

    def _grant(self, slot: Slot[T], now: float) -> None:
        waiter = self.queue.next()
        waiter.slot = slot
        self._lease_out(slot, now)
        if self._max_hold < NEVER:
            self._watch_holds(now)
        waited = now - waiter.asked_at
        self.totals.wait.record(waited)
        if self._tells_each:
            self._tell("on_acquire", waited)
        self.todo.append((WAKE, waiter))

    def _fail(self, waiter: Waiter[T], error: Exception) -> None:
        self.queue.leave(waiter)
        waiter.error = error
        self.todo.append((WAKE, waiter))

    def _start_creation(self, now: float) -> None:
        creation = Creation(self.generations.enter(), now)
        self.creating.add(creation)
        self.todo.append((Action.CREATE, creation))

    def _start_check(self, slot: Slot[T]) -> None:
        self.checking.add(slot)
        self.todo.append((Action.CHECK, slot))

    def _look_over(self, slot: Slot[T], now: float) -> None:
        """Check what was free but not fresh, unless it has to go anyway."""
        reason = self._why_retire(slot, now)
        if reason is None:
            self._start_check(slot)
        else:
            self._discard(slot, reason)

    def _start_probe(self, now: float) -> bool:
        """Have a check under way, or a creation where there is nothing else: it may just be slow."""
        if not self.checking:
            slot = self._pop_coldest() if self.has_check else None
            if slot is not None:
                self._start_check(slot)
            elif not self.slots and not self.creating and self._has_room():
                self._start_creation(now)
        return bool(self.checking) or (not self.slots and bool(self.creating))

    def _probe_on(self, now: float) -> None:
        """Try the next one for those who probe, or tell them that nothing is known."""
        if self._probing_since is not None and not self._start_probe(now):
            self._tell_watchers(None)

    def _ready_one(self, now: float) -> None:
        """Check or create one on behalf of a caller that does not wait."""
        slot = self._pop_free() if not self.checking else None
        if slot is not None:
            self._look_over(slot, now)
            self.settle(now)
        elif not self._arriving() and self._has_room() and not self.outage.failures:
            self._start_creation(now)

    def _prove(self, now: float) -> None:
        self._proved_at = now
        self._tell_watchers(None)

    def _tell_watchers(self, error: PoolError | None) -> None:
        self._probing_since = None
        for watcher in self._watchers:
            watcher.error = error
            self.todo.append((WAKE, watcher))
        self._watchers.clear()
        for opener in self.openers:  # looks again
            self.todo.append((WAKE, opener))
        self.openers.clear()

    def _arriving(self) -> int:
        return len(self.creating) + len(self.checking)

    def _has_room(self) -> bool:
        return self.status is OPEN and len(self.slots) + len(self.creating) < self.limit

    def _end_outage(self) -> None:
        self._forget_cause()
        self.outage.end()

    def _forget_cause(self) -> None:
        if self.outage.cause is not None:
            self.todo.append((Action.FORGET, self.outage.cause))

    def _is_down(self) -> bool:
        return self.outage.failures > 0 and not self.slots and self.status is OPEN

    # --- upkeep and watch ---------------------------------------------------------------------------

    def _keep_alive(self, now: float) -> None:
        """Check what has been quiet for long, one at a time: the others stay ready for callers."""
        while self._quiet and not self.checking and self.status is not SUSPENDED:
            slot = next(iter(self._quiet))
            del self._quiet[slot]
            if self.upkeep.is_quiet(slot, now) and self.pull(slot):
                self._start_check(slot)

    def _watch_holds(self, now: float) -> None:
        """See to it that somebody looks, in time, who holds a lease for too long."""
        if self._look_at_holds == NEVER:
            self._look_at_holds = now + self._max_hold
            self.due = min(self.due, self._look_at_holds)

    def _note_refusal(self, reason: str) -> None:
        self.totals.refusals[reason] += 1
        self._tell("on_refuse", reason)

    def _note_timeout(self, waited: float) -> None:
        self.totals.timeouts += 1
        self._tell("on_timeout", waited)
