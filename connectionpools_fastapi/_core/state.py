"""The pool as a pure state machine: every decision is made here and nowhere else.

It has no lock, clock, await, thread or logging: `now` is an argument. A decision leaves what
it asks for (wake this waiter, call that hook) in `effects`; the executor carries it out after
it has released the lock. All methods need the pool's lock. The state holds one collaborator
for each thing that it has to know: collaborators report facts, the state decides.
"""

import random
from collections.abc import Callable
from typing import Generic

from ..errors import NotLeased
from . import messages
from .backoff import Backoff
from .callers import Callers
from .checks import Checks
from .counters import Counters
from .creations import Creations
from .deadlock import is_held_by
from .dispatcher import Dispatcher
from .effects import CHANGE, OPEN, SUSPENDED, Effect, EffectQueue, Status
from .generations import LOST, Generations
from .held_leases import HeldLeases, LeaseSnapshot
from .inventory import Inventory
from .maintenance import Maintenance
from .overload import Overload
from .peaks import Peaks
from .policy import Policy
from .probes import Probes
from .retirement import Retirement
from .slot import LONG_AGO, NEVER, Creation, Slot, T, Verdict
from .terms import NORMAL
from .wait_queue import WaitQueue
from .waiter import Waiter

# For how long a resource is free before other members of the budget may have it while the pool is not above its level.
UNUSED_AFTER = 0.2

# What has references to resources and callers.
INHERITED = ("inventory", "queue", "effects", "maintenance", "generations", "probes", "creations", "backoff")


class PoolState(Generic[T]):
    """Decides which caller gets which resource, and which are created, checked, changed and cleaned."""

    def __init__(
        self,
        policy: Policy,
        *,
        has_check: bool,
        has_change: bool,
        has_ended: Callable[[object], bool],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.policy = policy
        self.has_check = has_check
        self.has_change = has_change
        self._has_ended = has_ended  # whether the task or thread of a lease by hand has ended
        self.status = Status.NEW
        self._first_generation = 0  # since the pool was opened last
        self.due = NEVER  # lower bound on the next deadline; a tick that comes early is harmless
        self.effects = EffectQueue()
        self.counters = Counters(self.effects)
        self.queue: WaitQueue[T] = WaitQueue()
        self.peaks = Peaks()
        self.generations: Generations[T] = Generations()
        self.backoff = Backoff(chance)
        slots: dict[int, Slot[T]] = {}
        self.maintenance: Maintenance[T] = Maintenance(policy, slots, chance)
        self.inventory: Inventory[T] = Inventory(
            *(policy, slots, self.maintenance, self.queue, self.effects),
            has_check=has_check,
            has_change=has_change,
            has_ended=has_ended,
        )
        self.held = HeldLeases(policy.max_hold)
        self.overload: Overload[T] = Overload(policy, self.inventory, self.queue, self.counters, self.effects)
        self.creations = Creations(policy, self.inventory, self.generations, self.backoff, self.effects)
        self.callers: Callers[T] = Callers(
            policy,
            inventory=self.inventory,
            queue=self.queue,
            creations=self.creations,
            backoff=self.backoff,
            held=self.held,
            counters=self.counters,
            overload=self.overload,
            effects=self.effects,
        )
        self.retirement: Retirement[T] = Retirement(
            inventory=self.inventory,
            generations=self.generations,
            maintenance=self.maintenance,
            backoff=self.backoff,
            counters=self.counters,
            effects=self.effects,
        )
        self.checks: Checks[T] = Checks(self.inventory, self.retirement, self.maintenance, self.effects)
        self.dispatcher: Dispatcher[T] = Dispatcher(
            inventory=self.inventory,
            queue=self.queue,
            generations=self.generations,
            backoff=self.backoff,
            held=self.held,
            creations=self.creations,
            callers=self.callers,
            retirement=self.retirement,
            checks=self.checks,
            has_check=has_check,
        )
        self.probes: Probes[T] = Probes(
            self.inventory, self.queue, self.creations, self.checks, self.effects, has_check=has_check
        )

    @property
    def limit(self) -> int:
        """The most resources that may exist at once."""
        return self.inventory.limit

    @property
    def is_open(self) -> bool:
        """Whether callers may enter, even if only to wait."""
        return self.status is OPEN or self.status is SUSPENDED

    # --- life -----------------------------------------------------------------------------

    def check_not_open(self) -> None:
        """Check that the pool may be opened.

        Raises:
            PoolConfigError: If it is open, or not closed yet.
        """
        if self.is_open or self.status is Status.CLOSING:
            raise messages.open_already(self)

    def open(self, now: float) -> None:
        """Let callers in, and create what `min_free` asks for."""
        self._enter(OPEN)
        self.generations.next()
        self._first_generation = self.generations.current
        self.retirement.owed = 0
        self.creations.end_outage()
        self.rebalance(now)

    def check_not_within(self, task: object, request: object) -> None:
        """Check that a task may close the pool.

        Raises:
            WouldDeadlock: If the task or its request holds a lease in a block: closing would wait for that lease.
        """
        leased = [slot for slot in list(self.inventory.taken.values()) if slot.generation != LOST]
        if is_held_by(leased, task, request):
            raise messages.closes_within(self.inventory)

    def close(self, now: float) -> int:
        """Refuse new callers and fail all waiters; returns the generation that is retired."""
        if self.status is not Status.CLOSED:
            self._enter(Status.CLOSING)
            for waiter in tuple(self.queue):
                self.callers.fail(waiter, messages.not_open(self))
            self.probes.finish(messages.not_open(self))
        return self.expire(now)

    def fork(self) -> object:  # pragma: no cover - in a process of its own, see tests/runtime/test_fork.py
        """Begin anew in a forked child; returns the parent's objects, which the child must not destroy."""
        has_nothing = self.status is Status.NEW or self.is_over()
        status, limit, subscribed = self.status, self.limit, self.effects.subscribed
        inherited = {name: getattr(self, name) for name in INHERITED}
        PoolState.__init__(
            self, self.policy, has_check=self.has_check, has_change=self.has_change, has_ended=self._has_ended
        )
        self._enter(status if has_nothing else Status.FORKED)
        self.resize(limit, 0.0)
        self.listen(subscribed, 0.0)
        return inherited

    def is_over(self) -> bool:
        """Whether the pool is closed and has no resource left."""
        return self.status is Status.CLOSED and not self.generations.total()

    def was_reopened_since(self, generation: int) -> bool:
        """Whether the pool was opened after the `close` that retired this generation."""
        return generation < self._first_generation

    def closed(self, generation: int) -> None:
        """End the `close` that retired this generation; a resource still leased is cleaned when it comes back."""
        if self.status is Status.CLOSING and not self.was_reopened_since(generation):
            self._enter(Status.CLOSED)

    def _enter(self, status: Status) -> None:
        self.status = status
        self.creations.are_allowed = status is OPEN
        self.overload.forget()

    def write_off(self, generation: int, now: float) -> list[LeaseSnapshot]:
        """Stop waiting for leases of this generation and older ones; returns their holders and ages.

        The pool counts them as ended now, and cleans their resources when these come back.
        """
        return self.retirement.write_off(generation, now)

    def wait_gone(self, waiter: Waiter[T], generation: int) -> bool:
        """Wake `waiter` once nothing of this generation or an older one is left; False if nothing is now."""
        if self.generations.is_gone(generation):
            return False
        self.generations.watch(waiter, generation)
        return True

    def forget(self, waiter: Waiter[T]) -> None:
        """No longer wake a waiter for a generation or an outcome."""
        self.generations.forget(waiter)
        self.probes.forget(waiter)

    def abandon(self, now: float) -> None:
        """Give up all calls of hooks: their loop has ended, so none of them will return."""
        for slot in tuple(self.inventory.cleaning):
            self.cleaned(slot, now, failed=True)
        for slot in tuple(self.inventory.checking):
            self.checked(slot, now, healthy=False)
        for slot in tuple(self.inventory.changing):
            self.changed(slot, now, failed=True)
        for creation in tuple(self.inventory.creating):
            self.inventory.creating.remove(creation)
            self.counters.create_failures += 1
            self.retirement.leave(creation.generation)
        self.rebalance(now)

    # --- control while it runs ------------------------------------------------------------------

    def resize(self, limit: int, now: float) -> None:
        """Set a new limit; a resource beyond it is discarded as soon as it is free."""
        self.inventory.resize(limit)
        self.overload.throughput.resize(limit)
        self.inventory.needs_lock = True
        self.rebalance(now)

    def suspend(self) -> None:
        """Make all callers wait until `resume`.

        Raises:
            PoolClosed: If the pool is not open.
        """
        if not self.is_open:
            raise messages.not_open(self)
        self._enter(SUSPENDED)
        self.inventory.needs_lock = True
        self.dispatcher.is_steady = False

    def resume(self, now: float) -> None:
        """Serve callers again, and forget earlier failures of `create`.

        Raises:
            PoolClosed: If the pool is not open.
        """
        if not self.is_open:
            raise messages.not_open(self)
        if self.status is SUSPENDED:
            self._enter(OPEN)
            self.creations.end_outage()
            self._keep_alive(now)
            self.rebalance(now)

    def reserve(self, slot: Slot[T]) -> bool:
        """Take a slot out of use for a moment, so that `retain` can ask about it; False if it is not free."""
        if not self.inventory.pull(slot):
            return False
        self.inventory.checking.add(slot)
        return True

    def unreserve(self, slot: Slot[T], now: float, *, keep: bool) -> None:
        """Put a reserved slot back, or discard it."""
        if slot not in self.inventory.checking:  # abandoned
            return
        self.inventory.checking.remove(slot)
        if not keep:
            self.retirement.discard(slot, "retain")
        elif not self.retirement.discard_if_due(slot, now):
            self.inventory.make_free(slot)
        self.probes.try_next(now)
        self._keep_alive(now)
        self.rebalance(now)

    def listen(self, subscribed: frozenset[str], now: float) -> None:
        """Notify listeners of these events from now on."""
        self.effects.subscribed = subscribed
        self.inventory.notifies_release = "on_release" in subscribed
        self.callers.notifies_leases = not subscribed.isdisjoint(("on_acquire", "on_release"))
        self.inventory.needs_lock = True
        self.rebalance(now)

    def reclaim_leak(self, lease: object, now: float) -> LeaseSnapshot | None:
        """Recover the slot of a lease that is gone without having ended; returns its snapshot."""
        slot = next((slot for slot in list(self.inventory.taken.values()) if slot.lease is lease), None)
        return None if slot is None else self._recover(slot, now)

    def watch_by_hand(self, slot: Slot[T], now: float) -> None:
        """Schedule a check of whether a slot that has just been leased by hand is lost."""
        self.inventory.by_hand.watch(slot, now)
        self.due = min(self.due, self.inventory.by_hand.due_at)

    def _recover(self, slot: Slot[T], now: float) -> LeaseSnapshot | None:
        snapshot = LeaseSnapshot.of(slot, now)
        try:
            self.inventory.end(slot, now)
        except NotLeased:  # another thread has just given it back by its resource
            return None
        self.retirement.discard(slot, "leak")  # the code that lost the lease may still use the resource
        self.rebalance(now)
        return snapshot

    # --- acquire --------------------------------------------------------------------------

    def try_acquire(self, now: float, rank: int = NORMAL) -> Slot[T] | None:
        """Lease out a resource at once; if none is ready, return None and begin to check or create one.

        Raises:
            PoolClosed: If the pool is not open.
        """
        inventory = self.inventory
        if inventory.needs_lock and inventory.free:  # `take` may have put a stale one back, with no decision after it
            self.rebalance(now)
        if self.status is not OPEN and not self.is_open:
            raise self.callers.refusal("closed", messages.not_open(self), rank)
        if self.queue.size or self.status is SUSPENDED:
            return None
        slot = inventory.pop_fresh(now)
        if slot is not None:
            inventory.lease_out(slot, now)
            self.held.schedule(now)
            self.effects.notify("on_acquire", 0.0)
            self.rebalance(now)
            return slot
        self._ready_one(now)
        return None

    def acquire(self, waiter: Waiter[T], timeout: float | None, now: float) -> Slot[T] | None:
        """Lease out a resource at once, or put the waiter into the queue.

        Raises:
            PoolClosed: If the pool is not open.
            ResourceUnavailable: If the back-end is down.
            PoolTimeout: If the caller would have to wait and its timeout is 0.
            WouldDeadlock: If the caller would wait for itself, or close a circle of waiters that wait for each other.
            TooManyWaiting: If the queue is full.
            Overloaded: If the caller would leave or time out before it is done with a resource.
        """
        inventory, queue = self.inventory, self.queue
        if inventory.free or not queue.size:  # else an earlier caller waits, for which nothing was free either
            slot = self.try_acquire(now, waiter.rank)
            if slot is not None:
                return slot
        if self.backoff.failures:
            timeout = self.callers.check_back_end(waiter, timeout, self._hasten_retry(now), now)
        if timeout is not None and timeout <= 0:
            self._note_timeout(0.0, now)
            raise messages.timed_out(self, 0)
        try:
            self.callers.admit(waiter, timeout, now)
        finally:
            self.due = min(self.due, queue.due, self.overload.due_at)
        if self.held.is_unscheduled:
            self.held.schedule(now)
            self.due = min(self.due, self.held.next_check)
        if inventory.free or len(inventory.slots) < inventory.limit:  # else nothing can change: common under load
            self.rebalance(now)
        return None

    def send_to_check(self, slot: Slot[T], now: float) -> None:
        """Undo a lease that was just made, and check its slot before its next use."""
        if self.inventory.taken.pop(slot.key, None) is slot:
            slot.leases -= 1  # the lease has not reached a caller
            self.effects.notify("on_release", 0.0)
            self.checks.begin_if_usable(slot, now)
            self.rebalance(now)

    def cancel(self, waiter: Waiter[T], now: float) -> None:
        """Remove a cancelled caller; a slot that it was just granted goes to the next one."""
        slot = waiter.slot
        if slot is not None:
            waiter.slot = None
            self.inventory.end(slot, now)
            if not self.retirement.discard_if_due(slot, now):  # it may have become due since it was granted
                if self.backoff.failures and self.has_check:
                    slot.fresh_until = LONG_AGO
                self.inventory.make_free(slot)
        elif waiter.waits:
            self.probes.unserved_at = now
            self.queue.leave(waiter)
        else:
            return
        self.callers.withdraw(waiter, now)
        self.rebalance(now)

    def client_gone(self, waiter: Waiter[T], error: Exception, now: float) -> None:
        """Fail a caller whose client has gone away, if it waits; learn from one that went during its lease."""
        if waiter.waits:
            self.probes.unserved_at = now
            self.callers.withdraw(waiter, now)
            self.callers.fail(waiter, error)
            self.rebalance(now)
        elif waiter.slot is not None:
            self.overload.leave_served(waiter, waiter.slot, now)

    def time_out(self, waiter: Waiter[T], now: float) -> None:
        """Fail a caller whose timeout has passed, unless it was granted or failed already."""
        if waiter.waits:
            if self.creations.is_back_end_down(now):  # it has waited for the try that it started
                self.callers.fail_unavailable(waiter, now)
            else:
                waited = now - waiter.asked_at
                self._note_timeout(waited, now)
                self.callers.fail(waiter, messages.timed_out(self, waited))
            self.rebalance(now)

    # --- release: of a slot whose lease was ended by `end` ------------------------------------

    def release(self, slot: Slot[T], now: float) -> None:
        """Change, retire or hand on a slot that came back."""
        if self.has_change and self.retirement.reason(slot, now) is None:
            self.inventory.changing[slot] = None
            self.effects.append((CHANGE, slot))
        else:
            self._come_back(slot, now)

    def wait_changed(self, slot: Slot[T], lease: int, done: Waiter[T]) -> bool:
        """Wake `done` once the change after this lease of the slot is over; False if it is over now."""
        if slot not in self.inventory.changing or slot.leases != lease:
            return False
        self.inventory.changing[slot] = done
        return True

    def changed(self, slot: Slot[T], now: float, *, failed: bool) -> None:
        """Note that `change` is over."""
        done = self.inventory.changing.pop(slot)
        if done is not None:
            self.effects.wake(done)
        if failed:
            self.retirement.discard(slot, "change")
            self.rebalance(now)
        else:
            self._come_back(slot, now)

    def judge(self, slot: Slot[T], verdict: Verdict, now: float) -> None:
        """Note what an error in a lease means: for its resource, or for its whole generation."""
        if verdict == "expire":
            if slot.generation == self.generations.current:  # else an earlier error has expired it
                self.expire(now)
        elif self.inventory.taken.get(slot.key) is slot:  # else it was given back by now
            if verdict == "discard" or not self.has_check:
                slot.verdict = "discard"
            elif slot.verdict is None:
                slot.verdict = verdict

    def expire(self, now: float) -> int:
        """Retire all resources: the free ones at once, each other one when it comes back."""
        self.inventory.needs_lock = True
        retired = self.generations.next()
        self.rebalance(now)
        return retired

    def discard(self, slot: Slot[T], now: float) -> None:
        """Destroy a resource that came back."""
        self.retirement.discard(slot, "discard")
        self.rebalance(now)

    def detach(self, slot: Slot[T], now: float) -> None:
        """Forget a slot: its resource belongs to the caller from now on."""
        self.retirement.remove(slot)
        self.counters.note_detach()
        self.retirement.leave(slot.generation)
        self.rebalance(now)

    def _come_back(self, slot: Slot[T], now: float) -> None:
        if not self.dispatcher.hand_on_fresh(slot, now):
            self.dispatcher.put_to_use(slot, now)
            self.rebalance(now)
        elif self.overload.due_at < self.due:
            self.due = self.overload.due_at

    # --- what the hooks reported --------------------------------------------------------------

    def created(self, creation: Creation, resource: T, now: float) -> None:
        """Add a new resource; the first waiter gets it."""
        inventory = self.inventory
        if inventory.has_seen(resource):
            self.create_failed(creation, messages.same_object(inventory), now)
            return
        inventory.creating.remove(creation)
        self.counters.note_create(now - creation.started)
        self.creations.end_outage()
        slot = Slot(resource, creation.generation, now)
        inventory.slots[slot.key] = slot
        self.maintenance.enter(slot, now)
        if not self.retirement.discard_if_due(slot, now):
            slot.fresh_until = min(now + inventory.fresh_after_check, slot.retire_at)
            if not self.dispatcher.hand_on(slot, now):
                inventory.free.append(slot)
        self.overload.throughput.forget()  # it was not handed on by a caller
        self.probes.succeed(now)
        self.rebalance(now)

    def create_failed(self, creation: Creation, cause: BaseException, now: float) -> None:
        """Try again; fail waiters only once the back-end is down, or the first one at once after a mistake."""
        self.inventory.needs_lock = True
        self.counters.note_create_failure(cause)
        self.creations.fail(creation, cause, now, is_wanted=bool(self.queue or self.probes.openings))
        self.inventory.require_checks()
        # Only the first failed try was for a caller, the later ones were retries; a suspended pool makes all wait.
        if self.queue and self.backoff.is_mistake and self.backoff.failures == 1 and self.status is OPEN:
            self.callers.fail_unavailable(self.queue.head(), now)
        self.probes.finish(messages.unavailable(self, now) if self.creations.is_back_end_down(now) else None)
        self.retirement.leave(creation.generation)
        self.rebalance(now)

    def checked(self, slot: Slot[T], now: float, *, healthy: bool) -> None:
        """Use a slot that passed its check; clean one that failed, and require a check of the others before use."""
        inventory = self.inventory
        inventory.checking.remove(slot)
        slot.checked_at = now
        if not healthy:
            self.retirement.discard(slot, "check")
        elif not self.retirement.discard_if_due(slot, now):
            slot.fresh_until = min(now + inventory.fresh_after_check, slot.retire_at)
            # If no caller waits, the slot stays the least recently used.
            inventory.put_next(slot) if self.queue else inventory.free.appendleft(slot)
        if healthy:
            self.probes.succeed(now)
        else:
            inventory.require_checks()
            self.probes.try_next(now)
        self._keep_alive(now)
        self.rebalance(now)

    def cleaned(self, slot: Slot[T], now: float, *, failed: bool) -> None:
        """Remove a slot whose `clean` is over, whether it raised or not."""
        self.inventory.cleaning.remove(slot)
        self.counters.note_clean(failed=failed)
        self.retirement.leave(slot.generation)
        if self.backoff.failures:  # the back-end may have had no room, and may have some now
            self.backoff.retry_at_once()
        self.rebalance(now)

    # --- the budget -------------------------------------------------------------------------------

    def allow(self, creation: Creation, now: float) -> None:
        """Note that a creation has its token, and begins now."""
        creation.has_token = True
        creation.started = now

    def drop_unneeded(self, creation: Creation, now: float) -> bool:
        """Give up a creation that waits for a token, if no caller needs it any more; True if it is given up."""
        inventory = self.inventory
        if creation not in inventory.creating:  # abandoned
            return True
        needed = len(self.queue) + max(0, inventory.min_free - len(inventory.free))
        is_needed = needed >= inventory.arriving() or self.probes.is_watched() or self.backoff.failures
        is_allowed = self.creations.are_allowed and not inventory.is_above_limit()
        if is_needed and is_allowed and creation.generation == self.generations.current:
            return False
        inventory.creating.remove(creation)
        self.retirement.leave(creation.generation)
        self.rebalance(now)
        return True

    def give_way(self, level: int | None, count: int, floor: int, now: float) -> None:
        """Give up to `count` resources up, since other members of the budget need their tokens.

        Each is one that is unused, beyond `min_free` and `floor`; or, while the pool keeps more than `level`, any
        one: the next that comes back. One that was used a moment ago is not unused: the pool would want it back.
        """
        inventory, retirement = self.inventory, self.retirement
        existing = inventory.in_being() - len(inventory.cleaning)
        unused = sum(now - slot.since >= UNUSED_AFTER for slot in inventory.list_free())
        spare = 0 if self.queue else min(unused, len(inventory.free) - inventory.min_free)
        for _ in range(count):
            keeps = existing - retirement.owed
            is_unused = spare > retirement.owed and keeps > floor
            if not is_unused and (level is None or keeps <= level):
                break
            retirement.owed += 1
            inventory.needs_lock = True
        self.rebalance(now)

    # --- match free slots, waiters and missing resources ------------------------------------------

    def rebalance(self, now: float) -> None:
        """Grant free slots, create missing resources, and fail callers that cannot be served."""
        self.retirement.sweep()
        if self.status is not SUSPENDED:
            self.dispatcher.serve(now)
        self.due = self.next_deadline()

    def _hasten_retry(self, now: float) -> float:
        patience_ends = self.creations.hasten_retry(now)
        self.due = min(self.due, self.creations.retry_at())
        return patience_ends

    def _note_timeout(self, waited: float, now: float) -> None:
        self.probes.unserved_at = now
        self.counters.note_timeout(waited)

    def _ready_one(self, now: float) -> None:
        """Check or create a resource for a caller that does not wait."""
        slot = self.inventory.pop_free() if not self.inventory.checking else None
        if slot is not None:
            self.checks.begin_if_usable(slot, now)
            self.rebalance(now)
        elif self.backoff.failures:
            self._hasten_retry(now)
        elif not self.inventory.arriving() and self.creations.may_begin():
            self.creations.begin(now)

    # --- the back-end -------------------------------------------------------------------------

    def probe(self, watcher: Waiter[T], max_age: float, patience: float, now: float) -> bool | None:
        """Return whether the back-end answers, as far as the pool knows; None if `watcher` will be woken.

        If the pool does not know, it checks a free resource, or creates one if none exists.
        It makes no new try while another one is under way or all resources are in use.
        """
        probes = self.probes
        if self.is_known_down(now):
            return False
        if self.status is SUSPENDED or now - probes.proved_at <= max_age:
            return True
        if not self.backoff.failures:
            if probes.has_taken(patience, now):
                return False
            if probes.ask(watcher, now):
                return None
        return not probes.serves_none(now - max(max_age, patience))

    def is_known_down(self, now: float) -> bool:
        """Whether callers would be refused at once."""
        return not self.is_open or self.creations.is_back_end_down(now)

    def watch_min_free(self, watcher: Waiter[T], now: float) -> bool:
        """Wake `watcher` at the next outcome if `min_free` resources do not exist yet, but may still come."""
        if not self.is_open:
            watcher.error = messages.not_open(self)
        elif self.backoff.is_mistake or (self.policy.open_timeout is None and now >= self.backoff.down_at):
            watcher.error = messages.cannot_open(self)
        elif len(self.inventory.slots) < self.inventory.min_free and self.status is OPEN:
            self.probes.openings.append(watcher)
            self.due = min(self.due, self._notify_at())
            return True
        return False

    # --- time ---------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Do what is due: time out callers, retire and check resources, try `create` again."""
        self.queue.promote(now)
        if unwatched := list(self.queue.unwatched(now)):
            self.effects.append((Effect.WATCH, unwatched))
        for waiter in self.queue.overdue(now):
            self.time_out(waiter, now)
        for slot in self.maintenance.due(now):
            if self.checks.maintain(slot, now):
                self.rebalance(now)
        self._keep_alive(now)
        if now >= self.held.next_check:
            self._check_holds(now)
        if now >= self.inventory.by_hand.due_at:
            lost = [self._recover(slot, now) for slot in self.inventory.by_hand.lost(now)]
            self.effects.extend((Effect.LOST, lease) for lease in lost if lease is not None)
        self.creations.retry_if_due(now)
        self.overload.end_if_due(now)
        if now >= self._notify_at():
            self.probes.wake_openings()
            self.rebalance(now)
        self.due = self.next_deadline()

    def next_deadline(self) -> float:
        """Return when time makes something due; infinity if never."""
        return min(
            *(self.queue.due, self.maintenance.next_deadline(), self.held.next_check),
            *(self.creations.retry_at(), self._notify_at(), self.inventory.by_hand.due_at),
            self.overload.due_at,
        )

    def _notify_at(self) -> float:
        """Return when to fail waiters and `open`, since the back-end is down."""
        if self.probes.openings and self.fails_opening():
            return self.backoff.down_at
        waits = self.queue.size and not self.inventory.slots and self.status is OPEN
        return self.backoff.down_at if waits and not self.creations.is_retry_awaited() else NEVER

    def fails_opening(self) -> bool:
        """Whether `open` is waiting, and raises once the back-end is down."""
        return bool(self.probes.openings) and self.policy.open_timeout is None

    def _keep_alive(self, now: float) -> None:
        if self.status is not SUSPENDED:
            self.checks.keep_alive(now)

    def _check_holds(self, now: float) -> None:
        """Warn once of each lease that has lasted too long; check again while there are others."""
        inventory, held = self.inventory, self.held
        inventory.needs_lock = True  # so that the next acquirer schedules the next check, if this one does not
        leased = list(inventory.taken.values())
        for overdue in held.overdue(leased, now):
            self.effects.append((Effect.WARN, overdue))
        if len(inventory.free) < len(inventory.slots):  # something is leased, or just being leased
            held.schedule_next(leased, now)
        self.dispatcher.set_needs_lock()
