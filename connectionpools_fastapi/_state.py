"""The pool as a pure state machine: every decision is made here and nowhere else.

No lock, clock, await, thread or logging: `now` is an argument, and what a decision asks
for (wake this waiter, call that hook) is left in `todo`, to be carried out after the
lock is released. All methods need the pool's lock. In three layers: what is where
(`_ledger`), who gets what (`_allocation`), and here the life of the whole.
"""

from typing import Any

from . import _report as report
from ._allocation import Allocation
from ._ledger import OPEN, SUSPENDED, Action, Status
from ._owner import Hold
from ._slot import NEVER, Slot
from ._waiters import Waiter
from .errors import NotLeased
from .manager import T


class State(Allocation[T]):
    """What opens, closes, limits and looks after a pool."""

    # --- life -----------------------------------------------------------------------------

    def check_not_open(self) -> None:
        """See that the pool may be opened.

        Raises:
            PoolConfigError: If it is open, or not closed yet.
        """
        if self.is_open or self.status is Status.CLOSING:
            raise report.open_already(self)

    def open(self, now: float) -> None:
        """Let callers in, and create what `min_free` asks for."""
        self.status = OPEN
        self.generations.next()
        self._end_outage()
        self.settle(now)

    def close(self, now: float) -> int:
        """Refuse newcomers and fail who waits; returns the generation that has to go."""
        if self.status is not Status.CLOSED:
            self.status = Status.CLOSING
            for waiter in tuple(self.queue):
                self._fail(waiter, report.not_open(self))
            self._tell_watchers(report.not_open(self))
        return self.expire(now)

    def fork(self) -> object:  # pragma: no cover - in a process of its own, see tests/test_fork.py
        """Begin anew in a forked child; returns what is the parent's, and must not even be destroyed here."""
        has_nothing = self.status is Status.NEW or self.is_over()
        inherited = dict(vars(self))
        vars(self).update(vars(State(self.policy, has_check=self.has_check, has_change=self.has_change)))
        self.status = inherited["status"] if has_nothing else Status.FORKED
        self.resize(inherited["limit"], 0.0)
        self.listen(inherited["heard"], 0.0)
        return inherited

    def is_over(self) -> bool:
        """Whether the pool is closed and nothing is left of it."""
        return self.status is Status.CLOSED and not self.generations.total()

    def closed(self) -> None:
        """Be closed; who has not come back by now is cleaned when it does."""
        if self.status is Status.CLOSING:
            self.status = Status.CLOSED

    def write_off(self, generation: int, now: float) -> list[Hold]:
        """Stop waiting for leases of this generation and older ones; returns their holders and ages.

        They no longer count, as if they had ended now, and are cleaned when they come back.
        """
        lost = [slot for slot in list(self.taken.values()) if slot.generation <= generation]
        for slot in lost:
            slot.record_use(now - slot.since)
            self._tell("on_release", now - slot.since)
            self._remove(slot)
            self._leave(slot.generation)
            slot.generation = self.generations.enter_lost()
        return [Hold.of(slot, now) for slot in lost]

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

    # --- control while it runs ------------------------------------------------------------------

    def resize(self, limit: int, now: float) -> None:
        """Have another limit from now on; what is beyond it goes as soon as it is free."""
        self.limit = limit
        self._min_free = min(self.policy.min_free, limit)
        self.gate = True
        self.settle(now)

    def suspend(self) -> None:
        """Let all callers wait until `resume`.

        Raises:
            PoolClosed: If the pool is not open.
        """
        if not self.is_open:
            raise report.not_open(self)
        self.status = SUSPENDED
        self.gate = True
        self._is_calm = False

    def resume(self, now: float) -> None:
        """Serve callers again, and take what is known of failures for out of date.

        Raises:
            PoolClosed: If the pool is not open.
        """
        if not self.is_open:
            raise report.not_open(self)
        if self.status is SUSPENDED:
            self.status = OPEN
            self._end_outage()
            self._keep_alive(now)
            self.settle(now)

    def borrow(self, slot: Slot[T]) -> bool:
        """Take a slot out of use for a moment, to look at it; False if it is not free."""
        if not self.pull(slot):
            return False
        self.checking.add(slot)
        return True

    def bring_back(self, slot: Slot[T], now: float, *, keep: bool) -> None:
        """Put back what was borrowed, or let it go."""
        if slot not in self.checking:  # abandoned
            return
        self.checking.remove(slot)
        reason = self._why_retire(slot, now) if keep else "retain"
        if reason is None:
            self._make_free(slot)
        else:
            self._discard(slot, reason)
        self._probe_on(now)
        self._keep_alive(now)
        self.settle(now)

    def listen(self, heard: frozenset[str], now: float) -> None:
        """Tell listeners of these events from now on."""
        self.heard = heard
        self._tells_each = not heard.isdisjoint(("on_acquire", "on_release"))  # which the fast path does not
        self.gate = True
        self.settle(now)

    def lose(self, lease: object, now: float) -> Hold | None:
        """Recover what a lease held that is gone without having ended; says who had it."""
        slot = next((slot for slot in list(self.taken.values()) if slot.lease is lease), None)
        if slot is None:
            return None
        hold = Hold.of(slot, now)
        try:
            self.end(slot, now)
        except NotLeased:  # another thread has just given it back by its resource
            return None
        self._discard(slot, "leak")  # who lost the lease may still use the resource
        self.settle(now)
        return hold

    # --- the back-end -------------------------------------------------------------------------

    def probe(self, watcher: Waiter[T], max_age: float, patience: float, now: float) -> bool | None:
        """Say whether the back-end answers, as far as known; None if `watcher` will be woken about it.

        What is not known is tried: a free resource is checked, or one is created where
        none exists. No try is made while another one is under way or all are in use.
        """
        if not self.is_open or self._is_down():
            return False
        if self.status is SUSPENDED:
            return True
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
        if not self.is_open:
            watcher.error = report.not_open(self)
        elif self.outage.failures:
            watcher.error = report.cannot_open(self)
        elif len(self.slots) < self._min_free and self.status is OPEN:
            self.openers.append(watcher)
            return True
        return False

    # --- time ---------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what is due: time out who waits too long, look after resources, try `create` again."""
        for waiter in self.queue.unwatched(now):
            self.todo.append((Action.WATCH, waiter))
        for waiter in self.queue.overdue(now):
            self.time_out(waiter, now)
        for slot in self.upkeep.due(now):
            self._look_after(slot, now)
        self._keep_alive(now)
        if now >= self._look_at_holds:
            self._look_at_leases(now)
        if now >= self._retry_at():
            self._start_creation(now)
        self.due = self.next_deadline()

    def next_deadline(self) -> float:
        return min(self.queue.due, self.upkeep.next_deadline(), self._look_at_holds, self._retry_at())

    def _look_after(self, slot: Slot[T], now: float) -> None:
        """Retire or check a resource whose time has come, if it is free."""
        reason = self.upkeep.why_retire(slot, now)
        if reason is None and self.upkeep.is_idle(slot, now) and len(self.free) > self._min_free:
            reason = "max_idle"
        if reason is not None and self.pull(slot):
            self._discard(slot, reason)
            self.settle(now)
            return
        if self.upkeep.is_quiet(slot, now):
            self._quiet[slot] = None
        self.upkeep.expect(slot, now)

    def _look_at_leases(self, now: float) -> None:
        """Warn, once each, of leases that have lasted too long; and look again while there are others."""
        self._look_at_holds = NEVER
        self.gate = True  # whoever leases from now on sees to it that somebody looks
        leased = list(self.taken.values())
        self._warned.intersection_update(map(_turn, leased))
        for slot in leased:
            if now >= slot.since + self._max_hold and _turn(slot) not in self._warned:  # as `later` says, to the bit
                self._warned.add(_turn(slot))
                self.todo.append((Action.WARN, Hold.of(slot, now)))
        if len(self.free) < len(self.slots):  # something is leased, or just being leased
            later = [slot.since + self._max_hold for slot in leased if _turn(slot) not in self._warned]
            self._look_at_holds = min(later, default=now + self._max_hold)
        self._set_gate()

    def _retry_at(self) -> float:
        retry = self.outage.failures and not self.creating and self._has_room()
        return self.outage.retry_at if retry else NEVER


def _turn(slot: Slot[Any]) -> tuple[int, int]:
    """Tell one lease of a slot from the next."""
    return slot.key, slot.leases
