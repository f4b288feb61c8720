"""Snapshot: the numbers and leases of a state at one moment. These functions only read, but for the peaks."""

from collections.abc import Mapping
from typing import Any

from ..errors import describe
from ..stats import USE_BOUNDS, PoolStats, PriorityStats, RouteStats
from .held_leases import LeaseSnapshot
from .recorder import Recorder
from .slot import NEVER
from .state import PoolState
from .terms import RANKS


def stats(state: PoolState[Any], now: float, routes: Mapping[str, RouteStats] = {}) -> PoolStats:
    """Take a snapshot whose numbers add up, also while the fast path takes and puts back.

    A slot is leased if it was leased out more often than its leases have ended. The ends are
    read first, so that no total ever goes down.
    """
    counters, inventory = state.counters, state.inventory
    use = Recorder(USE_BOUNDS)
    use.add(counters.past_use.counts, counters.past_use.sum)
    leased = used = 0
    longest_lease = 0.0
    for slot in inventory.slots.values():
        ended = tuple(slot.use_counts)
        since = slot.since
        if slot.leases > sum(ended):
            leased += 1
            longest_lease = max(longest_lease, now - since)
        elif slot.leases and since >= state.peaks.began_at:
            used += 1
        use.add(ended, slot.use_sum)
    releases = use.count()
    acquires = releases + leased
    taken = leased + len(inventory.checking) + len(inventory.changing)
    peak_taken, peak_waiting = _peaks(state, taken, leased + used, now)
    create = counters.create.snapshot()
    backoff = state.backoff
    patience = state.overload.patience.estimate(now)
    cause = backoff.cause
    failing = cause is not None
    return PoolStats(
        name=state.policy.name,
        status=state.status.value,
        limit=state.limit,
        min_free=inventory.min_free,
        free=len(inventory.slots) - taken,
        taken=taken,
        checking=len(inventory.checking),
        changing=len(inventory.changing),
        creating=len(inventory.creating),
        cleaning=len(inventory.cleaning),
        waiting=len(state.queue),
        failing=failing,
        down=failing and now >= backoff.down_at and not inventory.slots,
        cause=None if cause is None else describe(cause),
        retry_after=backoff.retry_after(now) if failing else None,
        acquires=acquires,
        releases=releases,
        timeouts=counters.timeouts,
        withdrawals=counters.withdrawals,
        refusals=dict(counters.refusals),
        overloaded=state.overload.is_on,
        patience=None if patience == NEVER else patience,
        expected_wait=0.0 if inventory.free and not state.queue else state.overload.expected_wait(now),
        oldest_wait=now - state.queue.oldest().asked_at if state.queue else 0.0,
        longest_lease=longest_lease,
        peak_taken=None if inventory.is_fifo else peak_taken,
        peak_waiting=peak_waiting,
        creates=create.count,
        create_failures=counters.create_failures,
        cleans=counters.cleans,
        clean_failures=counters.clean_failures,
        detached=counters.detached,
        discards=dict(counters.discards),
        wait=counters.wait_of(acquires),
        use=use.snapshot(),
        create=create,
        priorities={priority: _priority(state, rank, now) for priority, rank in RANKS.items()},
        routes=routes,
    )


def _priority(state: PoolState[Any], rank: int, now: float) -> PriorityStats:
    oldest = state.queue.oldest_of(rank)
    return PriorityStats(
        waiting=state.queue.waiting_of(rank),
        oldest_wait=0.0 if oldest is None else now - oldest.asked_at,
        refusals=state.counters.refusals_by_rank[rank],
    )


def _peaks(state: PoolState[Any], taken: int, used: int, now: float) -> tuple[int, int]:
    """Return the most that were taken, and the most that waited, in the last minute.

    The resource that came back last is used first. So those that were used at all since a moment are as many as
    were taken at once, and the fast path has to count nothing.
    """
    queue, peaks = state.queue, state.peaks
    current = max(taken, used), queue.peak
    if peaks.end_piece(*current, now):
        queue.peak = queue.size
    return peaks.of(*current)


def holders(state: PoolState[Any], now: float) -> list[LeaseSnapshot]:
    """Return what is leased out, the longest held first."""
    return [LeaseSnapshot.of(slot, now) for slot in sorted(state.inventory.taken.values(), key=lambda slot: slot.since)]
