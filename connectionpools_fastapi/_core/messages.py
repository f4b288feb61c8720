"""Messages: the errors of a pool and their texts. These functions only read."""

from collections.abc import Sized
from enum import Enum
from typing import Protocol

from ..errors import (
    NotLeased,
    Overloaded,
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
    where,
)
from .backoff import Backoff
from .policy import Policy

HOW_TO_OPEN = (
    "Let the application's lifespan open it (install_pools(app, pool) or FastAPI(lifespan=pool_lifespan(pool)); "
    "in tests `with TestClient(app)`; a mounted sub-application's own lifespan never runs), or write `async with pool:`"
)


class Numbers(Protocol):
    """What every error mentions; an inventory has it."""

    policy: Policy
    limit: int

    @property
    def free(self) -> Sized:
        """Resources ready for use."""
        ...

    @property
    def slots(self) -> Sized:
        """Resources that exist."""
        ...

    @property
    def creating(self) -> Sized:
        """Calls of `create` under way."""
        ...

    @property
    def queue(self) -> Sized:
        """Callers that wait."""
        ...

    def awaits_token(self) -> bool:
        """Whether a creation waits for a token of the budget."""
        ...


class Failing(Protocol):
    """What messages read while `create` fails."""

    backoff: Backoff

    @property
    def inventory(self) -> Numbers:
        """How many resources there are."""
        ...


class Described(Failing, Protocol):
    """What messages read of a pool."""

    @property
    def status(self) -> Enum:
        """Where the pool is in its life."""
        ...


def subject(numbers: Numbers) -> str:
    """Name the pool and its numbers, as every error does."""
    free = len(numbers.free)
    taken = max(0, len(numbers.slots) - free)
    return (
        f"pool {numbers.policy.name!r} (limit {numbers.limit}: {free} free, {taken} taken, "
        f"{len(numbers.creating)} creating, {len(numbers.queue)} waiting)"
    )


def not_leased(numbers: Numbers) -> NotLeased:
    """Say that something is not leased from this pool."""
    return NotLeased(
        f"{subject(numbers)}: this is not leased from it. Give back what acquire returned, "
        "once, to the pool that it came from"
    )


def timed_out(state: Described, waited: float) -> PoolTimeout:
    """Say that a caller waited in vain, and whether for other callers or for the back-end."""
    cause = state.backoff.cause
    if state.status.value == "suspended":
        why = "The pool is suspended; pool.resume() lets callers in again"
    elif cause is not None:
        why = f"create failed {_times(state)}, last with {describe(cause)}: see that the back-end is up and has room"
    elif state.inventory.awaits_token():
        why = "The budget has no token left: give resources back sooner, or raise its total"
    elif state.inventory.creating and len(state.inventory.slots) < state.inventory.limit:
        why = "create is under way and has not answered: see that the back-end is up and reachable"
    else:
        why = "Give resources back sooner, or raise limit or timeout"
    error = PoolTimeout(f"{subject(state.inventory)}: no resource came free within {waited:.3g} s. {why}")
    error.__cause__ = cause
    return error


def waits_for_itself(numbers: Numbers) -> WouldDeadlock:
    """Say that this caller would wait for a second lease while it holds a first one."""
    return WouldDeadlock(
        f"{subject(numbers)}: this request holds a resource already and would wait for another one, as "
        "others may do at the same time. Use the one it holds (Leased), or take Pooled instead and lease in one block"
    )


def closes_circle(numbers: Numbers) -> WouldDeadlock:
    """Say that this caller and all holders of resources would wait for each other."""
    return WouldDeadlock(
        f"{subject(numbers)}: each caller that holds a resource waits for another one, and this one would "
        "be the last: none would ever go on. Use the resource of the outer lease, end it first, or raise limit"
    )


def closes_within(numbers: Numbers) -> WouldDeadlock:
    """Say that closing would wait for the lease in which it is called."""
    return WouldDeadlock(
        f"{subject(numbers)}: close is called within a lease of this pool, and would wait for it. "
        "Call it after the block of `async with pool.lease()`"
    )


def full(numbers: Numbers) -> TooManyWaiting:
    """Say that the queue is full."""
    return TooManyWaiting(
        f"{subject(numbers)}: max_waiting={numbers.policy.max_waiting} allows no more of them to wait. "
        "Give resources back sooner, or raise limit or max_waiting"
    )


def would_leave(numbers: Numbers, expected: float, patience: float) -> Overloaded:
    """Say that a newcomer would wait for longer than callers have waited here before they left."""
    why = f"a new caller would wait for about {expected:.2g} s, and callers leave after about {patience:.2g} s"
    return _overloaded(numbers, why, expected)


def will_leave(numbers: Numbers, age: float, expected: float, patience: float) -> Overloaded:
    """Say that a waiter whose turn it is has waited for so long that it is likely to leave soon."""
    why = f"this caller has waited for {age:.2g} s, and callers leave after about {patience:.2g} s"
    return _overloaded(numbers, why, expected)


def would_time_out(numbers: Numbers, expected: float, timeout: float) -> Overloaded:
    """Say that a newcomer would wait beyond its timeout."""
    why = f"a new caller would wait for about {expected:.2g} s, and its timeout is {timeout:.3g} s"
    return _overloaded(numbers, why, expected)


def _overloaded(numbers: Numbers, why: str, expected: float) -> Overloaded:
    remedy = 'Give resources back sooner, or raise limit; with overload="queue" each caller waits for its timeout'
    return Overloaded(f"{subject(numbers)} is overloaded: {why}. {remedy}", expected)


def not_open(state: Described) -> PoolClosed:
    """Say that the pool is not open, and how to open it."""
    if state.status.value == "new":
        return PoolClosed(f"{subject(state.inventory)} was never opened. {HOW_TO_OPEN}")
    if state.status.value == "forked":
        return PoolClosed(
            f"{subject(state.inventory)} was opened by the process that this one was forked from, and its resources "
            "cannot be shared. Open it in each process, after the fork: by the application's lifespan, `with pool:` or "
            "ProcessPoolExecutor(initializer=pool.open_sync)"
        )
    return PoolClosed(f"{subject(state.inventory)} is {state.status.value}; it can be opened again. {HOW_TO_OPEN}")


def open_already(state: Described) -> PoolConfigError:
    """Say that a pool is opened a second time."""
    return PoolConfigError(
        f"{subject(state.inventory)} is {state.status.value} already. Open it in one place only, "
        "and again only after it was closed"
    )


def same_object(numbers: Numbers) -> PoolConfigError:
    """Say that `create` returned the same object twice."""
    return own(
        PoolConfigError(
            f"{subject(numbers)}: create returned an object that the pool already holds. Return a new one at each call"
        )
    )


def unavailable(state: Failing, now: float) -> PoolError:
    """Say that `create` fails, and when it is tried again."""
    wait = state.backoff.retry_after(now)
    return _create_fails(state, f"create failed {_times(state)}", f"the pool tries again in {wait:.2g} s", wait)


def cannot_open(state: Failing) -> PoolError:
    """Say that `create` fails, or does not answer, while the pool is being opened."""
    what = f"failed {_times(state)}" if state.backoff.failures else "has not answered in time"
    remedy = "open_timeout=60 would wait longer for it, and open_timeout=0 or min_free=0 start without it"
    return _create_fails(state, f"cannot be opened: create {what}", remedy, 1.0)


def _times(state: Failing) -> str:
    return "once" if state.backoff.failures == 1 else f"{state.backoff.failures} times"


def _create_fails(state: Failing, what: str, and_then: str, retry_after: float) -> PoolError:
    cause = state.backoff.cause
    if isinstance(cause, (PoolConfigError, WrongEventLoop)) and cause.is_own:
        # A mistake in the hook keeps its type; an adapter does not know the pool's name, so it is added here.
        text = str(cause)
        return type(cause)(text if text.startswith("pool ") else f"{subject(state.inventory)}: {text}")
    last = "" if cause is None else f", last with {describe(cause)}"
    if cause is not None and state.backoff.is_mistake:
        remedy = f"{where(cause)}. It is a mistake in create or in its arguments, not an outage"
    else:
        remedy = ". See that the back-end is up and that create connects to the right one"
    error = ResourceUnavailable(f"{subject(state.inventory)}: {what}{last}{remedy}; {and_then}", retry_after)
    error.__cause__ = cause
    return error
