"""Reports: what a state looks like from outside, in words and in numbers. They only read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    NotLeased,
    PoolClosed,
    PoolConfigError,
    PoolError,
    PoolTimeout,
    ResourceUnavailable,
    TooManyWaiting,
    describe,
)
from .stats import Holder, PoolStats

if TYPE_CHECKING:
    from ._state import State


def subject(state: State[Any]) -> str:
    """Name the pool and its numbers, as every error does."""
    free = len(state.free)
    taken = max(0, len(state.slots) - free)
    return (
        f"pool {state.policy.name!r} (limit {state.limit}: {free} free, {taken} taken, "
        f"{len(state.creating)} creating, {len(state.queue)} waiting)"
    )


def not_leased(state: State[Any]) -> NotLeased:
    """Say that something is not leased from this pool."""
    return NotLeased(
        f"{subject(state)}: this is not leased from it. Give back what acquire returned, "
        "once, to the pool that it came from"
    )


def timed_out(state: State[Any], waited: float) -> PoolTimeout:
    """Say that a caller waited in vain."""
    return PoolTimeout(
        f"{subject(state)}: no resource came free within {waited:.3g} s. "
        "Give resources back sooner, or raise limit or timeout"
    )


def full(state: State[Any]) -> TooManyWaiting:
    """Say that the queue is full."""
    return TooManyWaiting(
        f"{subject(state)}: max_waiting={state.policy.max_waiting} callers wait already. "
        "Give resources back sooner, or raise limit or max_waiting"
    )


def not_open(state: State[Any]) -> PoolClosed:
    """Say that the pool is not open, and how to open it."""
    if state.status.value == "new":
        return PoolClosed(
            f"{subject(state)} was never opened. Let the application's lifespan open it "
            "(install_pools(app, pool) or FastAPI(lifespan=pool_lifespan(pool)); in tests `with TestClient(app)`; "
            "a mounted sub-application's own lifespan never runs), or write `async with pool:`"
        )
    return PoolClosed(f"{subject(state)} is {state.status.value}. Nothing can be leased until it is opened again")


def open_already(state: State[Any]) -> PoolConfigError:
    """Say that a pool is opened a second time."""
    return PoolConfigError(
        f"{subject(state)} is {state.status.value} already. Open it in one place only, "
        "and again only after it was closed"
    )


def same_object(state: State[Any]) -> PoolConfigError:
    """Say that `create` returned something twice."""
    return PoolConfigError(
        f"{subject(state)}: create returned an object that the pool already holds. Return a new one at each call"
    )


def unavailable(state: State[Any], now: float) -> PoolError:
    """Say that `create` fails; a mistake in the hook itself is told as what it is."""
    cause = state.outage.cause
    if isinstance(cause, PoolConfigError):
        return PoolConfigError(str(cause))
    wait = state.outage.retry_after(now)
    times = "once" if state.outage.failures == 1 else f"{state.outage.failures} times"
    kind = describe(cause) if cause is not None else "nothing"
    error = ResourceUnavailable(
        f"{subject(state)}: create failed {times}, last with {kind}. The pool tries again in {wait:.2g} s; "
        "see that the back-end is up and that create connects to the right one",
        wait,
    )
    error.__cause__ = cause
    return error


def holders(state: State[Any], now: float) -> list[Holder]:
    """Say who holds a lease, the longest first."""
    slots = sorted(state.taken.values(), key=lambda slot: slot.since)
    return [Holder(name=str(slot.holder or "unnamed"), age=now - slot.since) for slot in slots]


def stats(state: State[Any], now: float) -> PoolStats:
    """Take a snapshot whose states add up, also while the fast path takes and puts back."""
    totals = state.totals
    slots = tuple(state.slots.values())
    free = min(len(state.free), len(slots))
    taken = len(slots) - free
    use = totals.use_by(slot.use for slot in slots)
    acquires = use.count + taken - len(state.checking) - len(state.changing)
    create = totals.create.snapshot()
    cause = state.outage.cause
    failing = cause is not None
    return PoolStats(
        name=state.policy.name,
        status=state.status.value,
        limit=state.limit,
        free=free,
        taken=taken,
        checking=len(state.checking),
        changing=len(state.changing),
        creating=len(state.creating),
        cleaning=len(state.cleaning),
        waiting=len(state.queue),
        failing=failing,
        cause=None if cause is None else describe(cause),
        retry_after=state.outage.retry_after(now) if failing else None,
        acquires=acquires,
        releases=use.count,
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
        use=use,
        create=create,
    )
