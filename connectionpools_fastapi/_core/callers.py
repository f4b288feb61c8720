"""Callers: which of them get a lease, which may wait, and which are refused."""

from typing import Generic, TypeVar

from ..errors import PoolError
from . import messages
from .backoff import Backoff
from .counters import Counters
from .creations import Creations
from .deadlock import closes_circle, is_held_by
from .effects import WAKE, EffectQueue
from .held_leases import HeldLeases
from .inventory import Inventory
from .overload import Overload
from .policy import Policy
from .slot import NEVER, Slot, T
from .terms import NORMAL
from .wait_queue import WaitQueue
from .waiter import Waiter

E = TypeVar("E", bound=PoolError)


class Callers(Generic[T]):
    """Grants slots to waiters, and refuses or fails those that cannot be served."""

    def __init__(
        self,
        policy: Policy,
        *,
        inventory: Inventory[T],
        queue: WaitQueue[T],
        creations: Creations,
        backoff: Backoff,
        held: HeldLeases,
        counters: Counters,
        overload: Overload[T],
        effects: EffectQueue,
    ) -> None:
        self.inventory = inventory
        self.backoff = backoff
        self.notifies_leases = False  # whether listeners subscribe to each lease or its end
        self._max_waiting = policy.max_waiting
        self._queue = queue
        self._creations = creations
        self._held = held
        self._counters = counters
        self._overload = overload
        self._effects = effects

    def refusal(self, reason: str, error: E, rank: int = NORMAL) -> E:
        """Count a caller that is refused, and return the error that it gets."""
        self._counters.note_refusal(reason, rank)
        return error

    def check_back_end(
        self, waiter: Waiter[T], timeout: float | None, patience_ends: float, now: float
    ) -> float | None:
        """Return for how long a caller may wait while `create` fails: up to `patience_ends`, and `timeout` at most.

        Raises:
            ResourceUnavailable: If the back-end is down and no try is worth waiting for.
        """
        patience = patience_ends - now
        if patience <= 0 or (patience < NEVER and timeout is not None and timeout <= 0):
            raise self.refusal("unavailable", messages.unavailable(self, now), waiter.rank)
        return timeout if patience == NEVER else patience if timeout is None else min(timeout, patience)

    def admit(self, waiter: Waiter[T], timeout: float | None, now: float) -> None:
        """Put a caller into the queue, if it may wait.

        Raises:
            WouldDeadlock: If it would wait for itself, or close a circle of waiters that wait for each other.
            TooManyWaiting: If the queue is full.
            Overloaded: If it would leave or time out before it is done with a resource.
        """
        inventory, queue, overload = self.inventory, self._queue, self._overload
        taken, slots = inventory.taken, inventory.slots
        if waiter.request is not None and is_held_by(list(taken.values()), waiter.request):
            raise self.refusal("deadlock", messages.waits_for_itself(inventory), waiter.rank)
        if len(taken) >= len(slots) >= inventory.limit and closes_circle(taken.values(), slots, queue, waiter.owner):
            raise self.refusal("deadlock", messages.closes_circle(inventory), waiter.rank)
        displaced = None
        if self._max_waiting is not None and self._is_full(self._max_waiting):
            displaced = queue.last_behind(waiter.rank)
            if displaced is None:
                raise self.refusal("full", messages.full(inventory), waiter.rank)
        overload.patience.has_newcomer = True
        if now >= overload.look_at or queue.size >= overload.room or waiter.has_own_timeout or waiter.rank != NORMAL:
            overload.check_newcomer(waiter, timeout, now)
        if displaced is not None:  # only now, since a newcomer that is refused displaces no waiter
            self.fail(displaced, self.refusal("full", messages.full(inventory), displaced.rank))
        inventory.needs_lock = True
        waiter.asked_at = now
        waiter.deadline = None if timeout is None else now + timeout
        if not queue.size:
            overload.throughput.begin(now)
        queue.join(waiter)

    def _is_full(self, max_waiting: int) -> bool:
        # Callers that spare capacity will serve do not count.
        inventory = self.inventory
        busy = len(inventory.slots) - len(inventory.free) - len(inventory.checking)
        return len(self._queue) - max(0, inventory.limit - busy) >= max_waiting

    def grant(self, slot: Slot[T], now: float) -> None:
        """Lease a slot out to the first waiter that is likely to stay long enough."""
        queue, overload = self._queue, self._overload
        if overload.patience.lost:  # a lease of a pool that loses no caller does not pay for this
            self._shed(slot, now)
        waiter = queue.next()
        waiter.slot = slot
        slot.since = now  # `lease_out` inlined, as in `take`: it pays for noting the wait below
        slot.leases += 1
        self.inventory.taken[slot.key] = slot
        throughput = overload.throughput
        if throughput.cut_off:
            throughput.skip(now)
        else:
            throughput.handed.append(now - throughput.idle)
        if self._held.is_unscheduled:
            self._held.schedule(now)
        waited = now - waiter.asked_at
        slot.waited = (slot.leases, waited)
        self._counters.wait.record(waited)
        if self.notifies_leases:
            self._effects.notify("on_acquire", waited)
        self._effects.append((WAKE, waiter))

    def _shed(self, slot: Slot[T], now: float) -> None:
        """Refuse waiters that are likely to leave before they are done; note the next one, which gets the slot."""
        queue, overload = self._queue, self._overload
        while queue.size > self.inventory.limit and (error := overload.why_refuse(queue.head(), now)) is not None:
            self.fail(queue.head(), error)
        overload.patience.serve()
        waiter = queue.head()
        if not waiter.has_own_timeout:
            slot.asked = (slot.leases + 1, waiter.asked_at)

    def withdraw(self, waiter: Waiter[T], now: float) -> None:
        """Note a caller that was cancelled, or whose client went away."""
        self._counters.note_withdrawal(now - waiter.asked_at)
        self._overload.leave(waiter, now)

    def fail(self, waiter: Waiter[T], error: Exception) -> None:
        """Remove a waiter from the queue, with an error."""
        self._queue.leave(waiter)
        waiter.error = error
        self._effects.wake(waiter)

    def fail_unavailable(self, waiter: Waiter[T], now: float) -> None:
        """Remove a waiter from the queue, since the back-end is down."""
        self.fail(waiter, self.refusal("unavailable", messages.unavailable(self, now), waiter.rank))
