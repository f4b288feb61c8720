"""Health: a pool's state and a probe of its back-end, as pass, warn or fail."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import anyio

from .pool import ConnectionPool
from .stats import Holder, PoolStats

Verdict = Literal["pass", "warn", "fail"]

# Detailed answers name this many leases, the longest held first.
MOST_HOLDERS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolHealth:
    """What can be said of a pool's health.

    Attributes:
        verdict: "pass"; "warn" for a pool that serves but is saturated or cannot grow, or is suspended;
            "fail" for one that is not open or whose back-end is down.
        reason: The verdict in words, without any address; empty for "pass".
        stats: The numbers behind it.
        holders: Who holds a lease, the longest first.
    """

    verdict: Verdict
    reason: str
    stats: PoolStats
    holders: tuple[Holder, ...]

    def as_dict(self, *, details: bool) -> dict[str, Any]:
        """Return it ready for JSON.

        Args:
            details: Whether to say why, and who holds what, besides verdict and counts.

        Returns:
            A dictionary of plain values.
        """
        stats = self.stats
        counts = {
            "status": self.verdict,
            "limit": stats.limit,
            "free": stats.free,
            "taken": stats.taken,
            "creating": stats.creating,
            "waiting": stats.waiting,
        }
        if not details:
            return counts
        return {
            **counts,
            "reason": self.reason,
            "pool": stats.status,
            "retry_after": stats.retry_after,
            "holders": [asdict(holder) for holder in self.holders],
        }


async def examine(pool: ConnectionPool[Any], *, max_age: float = 5.0, timeout: float = 2.0) -> PoolHealth:
    """Examine one pool; it never queues for a resource.

    Args:
        pool: The pool, open or not.
        max_age: How old the last sign of life of the back-end may be, in seconds, before it is probed.
        timeout: How long to wait for a probe, in seconds.

    Returns:
        The verdict with its reason and numbers.
    """
    answers = await pool.probe(max_age=max_age, timeout=timeout)
    stats = pool.stats()
    verdict, reason = _judge(stats, answers=answers, timeout=timeout)
    return PoolHealth(verdict=verdict, reason=reason, stats=stats, holders=tuple(pool.holders()[:MOST_HOLDERS]))


async def examine_all(
    pools: Iterable[ConnectionPool[Any]], *, max_age: float = 5.0, timeout: float = 2.0
) -> list[PoolHealth]:
    """Examine several pools at the same time; see `examine`.

    Args:
        pools: The pools.
        max_age: As in `examine`, in seconds.
        timeout: As in `examine`, in seconds.

    Returns:
        One result a pool, in the same order.
    """
    found: dict[int, PoolHealth] = {}

    async def look(index: int, pool: ConnectionPool[Any]) -> None:
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


def _judge(stats: PoolStats, *, answers: bool, timeout: float) -> tuple[Verdict, str]:
    if stats.status == "suspended":
        return "warn", f"suspended: {stats.waiting} waiting"
    if stats.status != "open":
        return "fail", f"the pool is not open ({stats.status})"
    if stats.cause is not None:
        reason = f"create fails with {stats.cause}; next try in {stats.retry_after:.2g} s"
        return ("warn" if stats.free + stats.taken else "fail"), reason
    if not answers:
        return "fail", f"the back-end does not answer within {timeout:g} s"
    if stats.waiting or (stats.taken >= stats.limit and not stats.free):
        return "warn", f"saturated: {stats.taken} of {stats.limit} taken, {stats.waiting} waiting"
    return "pass", ""
