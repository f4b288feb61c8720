"""Health: a pool's state and a probe of its back-end, as pass, warn or fail."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import anyio

from ..stats import Holder, Observable, ObservedStats, PoolStats

Verdict = Literal["pass", "warn", "fail"]

# Detailed answers name this many leases, the longest held first.
MOST_HOLDERS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolHealth:
    """The health of a pool.

    Attributes:
        verdict: "pass"; "warn" for a pool that serves but is saturated, overloaded or cannot grow, or is suspended;
            "fail" for one that is not open, whose back-end is down, or that no longer serves any caller.
        reason: The verdict in words, without any address; empty for "pass".
        stats: The numbers behind it.
        holders: The holders of leases, the oldest first; None if they are not known.
    """

    verdict: Verdict
    reason: str
    stats: PoolStats | ObservedStats
    holders: tuple[Holder, ...] | None

    def as_dict(self, *, details: bool) -> dict[str, Any]:
        """Return it as a dictionary for JSON.

        Args:
            details: Whether to include the reason and the holders, besides verdict and counts.

        Returns:
            A dictionary of plain values; None for a number that an observed pool does not know.
        """
        stats = self.stats
        own = stats if isinstance(stats, PoolStats) else None
        counts = {
            "status": self.verdict,
            "limit": stats.limit,
            "free": stats.free,
            "taken": stats.taken,
            "creating": own and own.creating,
            "waiting": stats.waiting,
        }
        if not details:
            return counts
        return {
            **counts,
            "reason": self.reason,
            "pool": stats.status,
            "retry_after": own and own.retry_after,
            "holders": None if self.holders is None else [asdict(holder) for holder in self.holders],
        }


async def examine(pool: Observable, *, max_age: float = 5.0, timeout: float = 2.0) -> PoolHealth:
    """Examine one pool; it never queues for a resource.

    Args:
        pool: The pool, open or not; also an observed one.
        max_age: How old the last sign of life of the back-end may be, in seconds, before it is probed.
        timeout: How long to wait for a probe, in seconds.

    Returns:
        The verdict with its reason and numbers.
    """
    answers = await pool.probe(max_age=max_age, timeout=timeout)
    stats = pool.stats()
    verdict, reason = _judge(stats, answers=answers, max_age=max_age, timeout=timeout)
    holders = pool.holders()
    named = None if holders is None else tuple(holders[:MOST_HOLDERS])
    return PoolHealth(verdict=verdict, reason=reason, stats=stats, holders=named)


async def examine_all(pools: Iterable[Observable], *, max_age: float = 5.0, timeout: float = 2.0) -> list[PoolHealth]:
    """Examine several pools at the same time; see `examine`.

    Args:
        pools: The pools.
        max_age: As in `examine`, in seconds.
        timeout: As in `examine`, in seconds.

    Returns:
        One result a pool, in the same order.
    """
    found: dict[int, PoolHealth] = {}

    async def look(index: int, pool: Observable) -> None:
        found[index] = await examine(pool, max_age=max_age, timeout=timeout)

    async with anyio.create_task_group() as group:
        for index, pool in enumerate(pools):
            group.start_soon(look, index, pool)
    return [found[index] for index in sorted(found)]


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of some verdicts; "pass" for none.

    Args:
        verdicts: Any number of verdicts.

    Returns:
        "fail" before "warn" before "pass".
    """
    found = set(verdicts)
    return "fail" if "fail" in found else "warn" if "warn" in found else "pass"


def _judge(stats: PoolStats | ObservedStats, *, answers: bool, max_age: float, timeout: float) -> tuple[Verdict, str]:
    if stats.status == "suspended":
        return "warn", f"suspended: {stats.waiting} waiting"
    if stats.status != "open":
        return "fail", f"the pool is not open ({stats.status})" + (f": {stats.cause}" if stats.cause else "")
    if isinstance(stats, PoolStats) and stats.cause is not None:
        reason = f"create fails with {stats.cause}; next try in {stats.retry_after:.2g} s"
        return ("warn" if answers else "fail"), reason
    if not answers:
        return "fail", _why_no_answer(stats, max_age, timeout)
    budget = stats.budget if isinstance(stats, PoolStats) else None
    reasons = [reason for reason in (_why_busy(stats), budget and budget.trouble) if reason]
    return ("warn" if reasons else "pass"), "; ".join(reasons)


def _why_no_answer(stats: PoolStats | ObservedStats, max_age: float, timeout: float) -> str:
    if isinstance(stats, PoolStats) and stats.taken and not stats.free:
        counts = f"{stats.taken} of {stats.limit} taken, {stats.waiting} waiting"
        return f"nothing was leased or came back within {max_age:g} s: {counts}"
    return "the back-end does not answer" + (f": {stats.cause}" if stats.cause else f" within {timeout:g} s")


def _why_busy(stats: PoolStats | ObservedStats) -> str:
    if isinstance(stats, PoolStats) and stats.overloaded:
        return _why_overloaded(stats)
    if stats.waiting or _is_full(stats):
        waiting = "" if stats.waiting is None else f", {stats.waiting} waiting"
        return f"saturated: {stats.taken} of {stats.limit} taken{waiting}{_why_not_more(stats)}"
    return ""


def _why_not_more(stats: PoolStats | ObservedStats) -> str:
    budget = stats.budget if isinstance(stats, PoolStats) else None
    if budget is None or budget.trouble or budget.used < budget.total:
        return ""
    return f"; the budget {budget.name!r} has no token left: {budget.used} of {budget.total} used, {budget.held} here"


def _why_overloaded(stats: PoolStats) -> str:
    wait = "" if stats.expected_wait is None else f", a new caller for about {stats.expected_wait:.2g} s"
    patience = "" if stats.patience is None else f"; callers leave after about {stats.patience:.2g} s"
    return f"overloaded, callers are refused: {stats.waiting} waiting{wait}{patience}"


def _is_full(stats: PoolStats | ObservedStats) -> bool:
    return stats.limit is not None and stats.taken is not None and stats.taken >= stats.limit and not stats.free
