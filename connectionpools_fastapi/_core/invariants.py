"""Invariants: what holds of a state after each decision; for tests."""

# These functions read everything in the state, so that it needs no members just for tests.

from itertools import chain
from typing import Any

from . import messages, snapshot
from .effects import Status
from .generations import LOST
from .slot import NEVER
from .state import PoolState


def check_invariants(state: PoolState[Any], now: float) -> None:
    """Assert what holds after each decision while no thread is within the fast path; for tests.

    Raises:
        AssertionError: If something does not hold; the text names it.
    """
    inventory = state.inventory
    free, slots, waiting = list(inventory.free), list(inventory.slots.values()), list(state.queue)
    lost = [slot for slot in inventory.taken.values() if slot.generation == LOST]
    taken = [slot for slot in inventory.taken.values() if slot.generation != LOST]
    places = [free, taken, list(inventory.checking), list(inventory.changing)]
    generations = [each.generation for each in (*slots, *lost, *inventory.cleaning)]
    generations += [creation.generation for creation in inventory.creating]
    is_open = state.status is Status.OPEN
    counters = state.counters
    promises = {
        "each slot is in one place": sorted(map(id, chain(*places))) == sorted(map(id, slots))
        and not inventory.cleaning.intersection(slots),
        "slots are found by the identity of their resource": all(
            key == slot.key == id(slot.resource)
            for key, slot in chain(inventory.slots.items(), inventory.taken.items())
        ),
        "no more exist than the limit, or none of them is free": not inventory.is_above_limit() or not free,
        "there are no more calls of create than allowed": len(inventory.creating) <= state.policy.max_creating,
        "a steady pool is open, within its limit, of one generation and does not fail": not state.dispatcher.is_steady
        or (
            is_open
            and not state.backoff.failures
            and not state.generations.are_turning_over()
            and not inventory.is_above_limit()
        ),
        "needs_lock is set while a caller waits": inventory.needs_lock or not waiting,
        "needs_lock is set unless the pool is open": inventory.needs_lock or is_open,
        "needs_lock is set while create fails": inventory.needs_lock or not state.backoff.failures,
        "needs_lock is set while older generations are left": inventory.needs_lock
        or not state.generations.are_turning_over(),
        "needs_lock is set while there are more than the limit": inventory.needs_lock or not inventory.is_above_limit(),
        "needs_lock is set while no check of held leases is scheduled": inventory.needs_lock
        or state.held.next_check < NEVER
        or state.held.max_hold == NEVER,
        "no caller waits while a fresh resource is free": not waiting
        or not is_open
        or not any(slot.fresh_until >= now for slot in free)
        or (inventory.is_fifo and len(waiting) <= len(inventory.checking)),
        "nothing is fresh beyond its lifetime": all(slot.fresh_until <= slot.retire_at for slot in free),
        "whatever a caller waits for exists, is being created or will be tried again": not waiting
        or not is_open
        or bool(slots or inventory.creating)
        or (bool(state.backoff.failures) and state.next_deadline() < NEVER),
        "what is missing is being made": not is_open
        or bool(state.backoff.failures)
        or len(waiting) + max(0, inventory.min_free - len(free)) <= len(inventory.creating) + len(inventory.checking)
        or len(slots) + len(inventory.creating) >= state.limit
        or len(inventory.creating) == state.policy.max_creating,
        "no caller waits, and nothing is free, unless the pool is open": state.is_open or not (waiting or free),
        "no caller waits that was granted or failed": all(
            waiter.slot is None and waiter.error is None for waiter in waiting
        ),
        "what is free is of the current generation": all(slot.generation == state.generations.current for slot in free),
        "what is lent is leased, and found by what the caller has": all(
            key == id(inventory.lent_of(slot)) and not inventory.loans[slot.key].is_over
            for key, slot in inventory.lent.items()
        )
        and len(inventory.lent) == len(inventory.loans)
        and inventory.loans.keys() <= inventory.taken.keys(),
        "nothing is free of which its manager has said that it is broken": all(slot.verdict is None for slot in free),
        "every generation is counted right": all(
            state.generations.population(generation) == generations.count(generation) for generation in set(generations)
        )
        and state.generations.total() == len(generations),
        "created is cleaned, detached or still held": counters.create.count()
        == counters.cleans + counters.detached + len(slots) + len(lost) + len(inventory.cleaning),
        "each one that is leased was leased out once more than given back": all(
            slot.leases - sum(slot.use_counts) == (slot.key in inventory.taken) for slot in slots
        ),
        "the timer is set no later than the next deadline": state.due <= state.next_deadline(),
        "the states of the statistics add up": _adds_up(state, now, len(taken)),
    }
    broken = [promise for promise, kept in promises.items() if not kept]
    if broken:
        raise AssertionError(f"{messages.subject(inventory)}, {state.status}: broken: {'; '.join(broken)}")


def _adds_up(state: PoolState[Any], now: float, leased: int) -> bool:
    stats = snapshot.stats(state, now)
    counts = (stats.free, stats.taken, stats.leased, stats.acquires, stats.releases, *stats.wait.counts)
    return (
        min(counts) >= 0
        and stats.free == len(state.inventory.free)
        and stats.leased == leased
        and stats.free + stats.taken == len(state.inventory.slots)
        and stats.acquires == stats.releases + stats.leased == stats.wait.count
    )
