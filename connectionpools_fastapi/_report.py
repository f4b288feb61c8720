"""Reports: what a state looks like from outside, in words and in numbers. They only read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._owner import Hold
from .errors import (
    NotLeased,
    PoolClosed,
    PoolConfigError,
    PoolError,
    PoolTimeout,
    ResourceUnavailable,
    TooManyWaiting,
    WouldDeadlock,
    WrongEventLoop,
    describe,
    own,
)
from .stats import USE_BOUNDS, PoolStats, Recorder

if TYPE_CHECKING:
    from ._ledger import Ledger


HOW_TO_OPEN = (
    "Let the application's lifespan open it (install_pools(app, pool) or FastAPI(lifespan=pool_lifespan(pool)); "
    "in tests `with TestClient(app)`; a mounted sub-application's own lifespan never runs), or write `async with pool:`"
)


def subject(ledger: Ledger[Any]) -> str:
    """Name the pool and its numbers, as every error does."""
    free = len(ledger.free)
    taken = max(0, len(ledger.slots) - free)
    return (
        f"pool {ledger.policy.name!r} (limit {ledger.limit}: {free} free, {taken} taken, "
        f"{len(ledger.creating)} creating, {len(ledger.queue)} waiting)"
    )


def not_leased(ledger: Ledger[Any]) -> NotLeased:
    """Say that something is not leased from this pool."""
    return NotLeased(
        f"{subject(ledger)}: this is not leased from it. Give back what acquire returned, "
        "once, to the pool that it came from"
    )


def timed_out(ledger: Ledger[Any], waited: float) -> PoolTimeout:
    """Say that a caller waited in vain, and whether for other callers or for the back-end."""
    if ledger.status.value == "suspended":
        why = "The pool is suspended; pool.resume() lets callers in again"
    elif ledger.creating and len(ledger.slots) < ledger.limit:
        why = "create is under way and has not answered: see that the back-end is up and reachable"
    else:
        why = "Give resources back sooner, or raise limit or timeout; pool.holders() says who has them"
    return PoolTimeout(f"{subject(ledger)}: no resource came free within {waited:.3g} s. {why}")


def waits_for_itself(ledger: Ledger[Any]) -> WouldDeadlock:
    """Say that a second lease would have to be waited for while a first one is held."""
    return WouldDeadlock(
        f"{subject(ledger)}: this request holds a resource already and would wait for another one, as others may "
        "do at the same time. Use the one it holds (Leased), or take Pooled instead and lease in one block"
    )


def closes_circle(ledger: Ledger[Any]) -> WouldDeadlock:
    """Say that nobody would ever go on."""
    return WouldDeadlock(
        f"{subject(ledger)}: whoever holds a resource waits for another one, and this caller would be the last of "
        "them: nobody would ever go on. Use the resource of the outer lease, end it first, or raise limit"
    )


def full(ledger: Ledger[Any]) -> TooManyWaiting:
    """Say that the queue is full."""
    return TooManyWaiting(
        f"{subject(ledger)}: max_waiting={ledger.policy.max_waiting} allows no more of them to wait. "
        "Give resources back sooner, or raise limit or max_waiting"
    )


def not_open(ledger: Ledger[Any]) -> PoolClosed:
    """Say that the pool is not open, and how to open it."""
    if ledger.status.value == "new":
        return PoolClosed(f"{subject(ledger)} was never opened. {HOW_TO_OPEN}")
    if ledger.status.value == "forked":
        return PoolClosed(
            f"{subject(ledger)} was opened by the process that this one was forked from, and its resources cannot be "
            "shared. Open it in each process, after the fork: by the application's lifespan, `with pool:` or "
            "ProcessPoolExecutor(initializer=pool.open_sync)"
        )
    return PoolClosed(f"{subject(ledger)} is {ledger.status.value}; it can be opened again. {HOW_TO_OPEN}")


def open_already(ledger: Ledger[Any]) -> PoolConfigError:
    """Say that a pool is opened a second time."""
    return PoolConfigError(
        f"{subject(ledger)} is {ledger.status.value} already. Open it in one place only, "
        "and again only after it was closed"
    )


def same_object(ledger: Ledger[Any]) -> PoolConfigError:
    """Say that `create` returned something twice."""
    return own(
        PoolConfigError(
            f"{subject(ledger)}: create returned an object that the pool already holds. Return a new one at each call"
        )
    )


def unavailable(ledger: Ledger[Any], now: float) -> PoolError:
    """Say that `create` fails, and when it is tried again."""
    wait = ledger.outage.retry_after(now)
    times = "once" if ledger.outage.failures == 1 else f"{ledger.outage.failures} times"
    return _create_fails(ledger, f"create failed {times}", f"the pool tries again in {wait:.2g} s", wait)


def cannot_open(ledger: Ledger[Any]) -> PoolError:
    """Say that `create` fails while the pool is being opened."""
    return _create_fails(ledger, "cannot be opened: create failed", "min_free=0 would start without it", 1.0)


def _create_fails(ledger: Ledger[Any], what: str, and_then: str, retry_after: float) -> PoolError:
    cause = ledger.outage.cause
    if isinstance(cause, (PoolConfigError, WrongEventLoop)) and cause.is_own:
        # A mistake in the hook is told as what it is; an adapter does not know its pool's name.
        told = str(cause)
        return type(cause)(told if told.startswith("pool ") else f"{subject(ledger)}: {told}")
    kind = describe(cause) if cause is not None else "nothing"
    error = ResourceUnavailable(
        f"{subject(ledger)}: {what}, last with {kind}. See that the back-end is up and that create connects to "
        f"the right one; {and_then}",
        retry_after,
    )
    error.__cause__ = cause
    return error


def holders(ledger: Ledger[Any], now: float) -> list[Hold]:
    """Say who holds a lease and for how long, the longest first."""
    return [Hold.of(slot, now) for slot in sorted(ledger.taken.values(), key=lambda slot: slot.since)]


def stats(ledger: Ledger[Any], now: float) -> PoolStats:
    """Take a snapshot whose states add up, also while the fast path takes and puts back.

    So that no total ever goes back, a slot itself is asked whether it is leased: it is
    if it was leased out more often than its leases have ended, in this order of reading.
    """
    totals = ledger.totals
    use = Recorder(USE_BOUNDS)
    use.add(totals.past_use.counts, totals.past_use.sum)
    leased = 0
    for slot in ledger.slots.values():
        ended = tuple(slot.use_counts)
        leased += slot.leases > sum(ended)
        use.add(ended, slot.use_sum)
    releases = use.count()
    acquires = releases + leased
    taken = leased + len(ledger.checking) + len(ledger.changing)
    create = totals.create.snapshot()
    cause = ledger.outage.cause
    failing = cause is not None
    return PoolStats(
        name=ledger.policy.name,
        status=ledger.status.value,
        limit=ledger.limit,
        free=len(ledger.slots) - taken,
        taken=taken,
        checking=len(ledger.checking),
        changing=len(ledger.changing),
        creating=len(ledger.creating),
        cleaning=len(ledger.cleaning),
        waiting=len(ledger.queue),
        failing=failing,
        cause=None if cause is None else describe(cause),
        retry_after=ledger.outage.retry_after(now) if failing else None,
        acquires=acquires,
        releases=releases,
        timeouts=totals.timeouts,
        withdrawals=totals.withdrawals,
        refusals=dict(totals.refusals),
        creates=create.count,
        create_failures=totals.create_failures,
        cleans=totals.cleans,
        clean_failures=totals.clean_failures,
        detached=totals.detached,
        discards=dict(totals.discards),
        wait=totals.wait_of(acquires),
        use=use.snapshot(),
        create=create,
    )
