"""Reports: the lines that a pool writes into the log about its leases, its overload and its end."""

import logging
import traceback
from collections import Counter
from collections.abc import Iterable
from typing import Any

from .._core.held_leases import LeaseSnapshot
from .._core.overload import OverloadSnapshot
from .._core.slot import NEVER
from ..stats import PoolStats
from .holders import describe_held, facts_of, holder_name, named, remedy
from .log import facts, logger

# A line about an overload names this many holders, and one about a close this many.
MOST_NAMED = 3
MOST_AT_CLOSE = 10


class Reports:
    """The log of one pool; none of its methods may be called under the pool's lock."""

    def __init__(self, pool: str) -> None:
        self._pool = pool

    def held_too_long(self, held: LeaseSnapshot, max_hold: float | None) -> None:
        """Say that a lease has lasted for longer than `max_hold`."""
        more = facts("held_too_long", self._pool, max_hold=max_hold, **_facts_of(held))
        self._log(
            "%s, and max_hold is %g s%s%s", describe_held(held), max_hold, remedy([held]), acquired_at(held), **more
        )

    def lease_lost(self, held: LeaseSnapshot, what: str) -> None:
        """Say that a lease will never end."""
        line = "%s and %s; the resource is destroyed. Write `async with pool.lease()`%s"
        more = facts("lease_lost", self._pool, **_facts_of(held))
        self._log(line, describe_held(held), what, acquired_at(held), **more)

    def overloaded(self, overload: OverloadSnapshot) -> None:
        """Say that the pool begins to refuse callers."""
        self._log(
            "overloaded, callers are refused: %d waiting, expected wait: %s, callers leave after: %s; "
            "most resources are held by %s",
            *(overload.waiting, _seconds(overload.expected_wait), _seconds(overload.patience)),
            _most_held(overload.leases),
            **facts("overloaded", self._pool, **_facts_of_overload(overload)),
        )

    def relieved(self, overload: OverloadSnapshot) -> None:
        """Say that the pool no longer refuses callers."""
        self._log(
            "no longer overloaded after %.1f s: %d callers were refused, %d left, %d waited and were served; "
            "most resources are held by %s",
            *(overload.lasted, overload.refused, overload.left, overload.served),
            _most_held(overload.leases),
            **facts("relieved", self._pool, **_facts_of_overload(overload)),
        )

    def create_recovered(self) -> None:
        """Say that an outage is over: at the level of the line that began it, so that an alarm ends."""
        self._log("create works again", **facts("create_recovered", self._pool))

    def created_too_late(self) -> None:
        """Say that no loop is left to clean what `create` has made."""
        self._log("a resource was created too late to be cleaned", **facts("created_too_late", self._pool))

    def create_outlives_close(self, count: int, level: int) -> None:
        """Say that calls of `create` go on after the close."""
        line = "closed, but %d calls of create go on, on threads; what they make is cleaned when it comes"
        self._log(line, count, level=level, **facts("create_outlives_close", self._pool, count=count))

    def closing(self, close_timeout: float, stats: PoolStats, holders: Iterable[str]) -> None:
        """Say what a close waits for."""
        hooks = {"change": stats.changing, "check": stats.checking, "create": stats.creating, "clean": stats.cleaning}
        names = [f"{count} calls of {hook}" for hook, count in hooks.items() if count]
        names += [*holders][:MOST_AT_CLOSE]
        more = f" and {stats.leased - MOST_AT_CLOSE} other holders" if stats.leased > MOST_AT_CLOSE else ""
        numbers = facts("closing", self._pool, leased=stats.leased, **hooks)
        self._log("close waits up to %g s for %s%s", close_timeout, ", ".join(names), more, **numbers)

    def lease_outlives_close(self, held: LeaseSnapshot) -> None:
        """Say that a lease goes on after the close."""
        more = facts("lease_outlives_close", self._pool, **_facts_of(held))
        self._log("closed, but %s; it is cleaned when it comes back%s", describe_held(held), acquired_at(held), **more)

    def _log(self, line: str, *parts: object, level: int = logging.WARNING, **extra: Any) -> None:
        # Each kind of line keeps a text of its own: services that collect logs group by it.
        logger.log(level, "pool %r: " + line, self._pool, *parts, extra=extra)


def acquired_at(held: LeaseSnapshot) -> str:
    """Say where the lease was acquired, if known; begins with a new line."""
    if held.stack is None:
        return ""
    calls = traceback.StackSummary.from_list(held.stack[::-1]).format()
    return f"\nacquired at:\n{''.join(calls).rstrip()}"


def _facts_of(held: LeaseSnapshot) -> dict[str, object]:
    return facts_of(named(held))


def _facts_of_overload(overload: OverloadSnapshot) -> dict[str, object]:
    return {
        "waiting": overload.waiting,
        "expected_wait": overload.expected_wait,
        "patience": None if overload.patience == NEVER else overload.patience,
        "lasted": overload.lasted,
        "refused": overload.refused,
        "left": overload.left,
        "served": overload.served,
    }


def _most_held(leases: Iterable[LeaseSnapshot]) -> str:
    """Name the holders, as routes, that hold the most resources."""
    counts = Counter(holder_name(held.holder, held.lease) for held in leases)
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common(MOST_NAMED)) or "no caller"


def _seconds(duration: float | None) -> str:
    """Write a duration that may be unknown."""
    return "unknown" if duration in (None, NEVER) else f"about {duration:.2g} s"
