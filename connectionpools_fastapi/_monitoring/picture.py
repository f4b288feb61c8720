"""Picture: all pools in all workers at one moment, what has changed of late, and what is wrong with each."""

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from ..stats import Observable
from .diagnosis import WORST_FIRST, Diagnosis, Seen, diagnose, fine
from .health import examine_all
from .merge import Answers, longest, merge_stats
from .quantiles import quantile, quantiles

# A picture tells what has changed within so many seconds; a diagnosis looks at the last few.
LONG, SHORT = 60.0, 10.0

MOST_LEASES = 10

# What only grows.
TOTALS = (
    "acquires",
    "releases",
    "timeouts",
    "withdrawals",
    "refusals",
    "creates",
    "create_failures",
    "discards",
    "detached",
    "wait",
    "use",
    "create",
)

# What the page has no room for.
LEFT_OUT = ("priorities", "routes")


async def own_part(pools: Iterable[Observable], *, max_age: float, timeout: float) -> dict[str, Any]:
    """Return what this worker knows of its pools, as plain values by name; see `examine_all`."""
    return {
        found.stats.name: {
            "health": found.verdict,
            "why": found.reason,
            "stats": {key: value for key, value in asdict(found.stats).items() if key not in LEFT_OUT},
            "leases": [{"holder": holder.name, "age": holder.age} for holder in found.holders or ()],
        }
        for found in await examine_all(pools, max_age=max_age, timeout=timeout)
    }


class Pictures:
    """Makes pictures, and remembers for the next ones what the workers said in the last minute."""

    def __init__(self) -> None:
        self._past: deque[tuple[float, Answers]] = deque()

    def picture(self, answers: Answers, now: float) -> dict[str, Any]:
        """Put the answers of all workers together.

        Args:
            answers: What `own_part` has returned in each worker, by its number; None for one that hangs.
            now: The time, as of a clock that never goes backwards, in seconds.

        Returns:
            Plain values.
        """
        alive = {number: parts for number, parts in answers.items() if parts is not None}
        short, long = self._before(now - SHORT), self._before(now - LONG)
        self._past.append((now, alive))
        names = dict.fromkeys(name for parts in alive.values() for name in parts)
        return {
            "at": time.time(),
            "workers": len(answers),
            "hanging": [number for number in answers if number not in alive],
            "pools": [
                self._pool({number: parts[name] for number, parts in alive.items() if name in parts}, now, short, long)
                for name in names
            ],
        }

    def _before(self, moment: float) -> tuple[float, Answers]:
        """Return the newest answers that are not younger than a moment, else the oldest."""
        past = self._past
        while len(past) > 1 and past[1][0] <= past[-1][0] - LONG:
            past.popleft()
        return next((each for each in reversed(past) if each[0] <= moment), past[0] if past else (moment, {}))

    def _pool(
        self, parts: dict[int, Any], now: float, short: tuple[float, Answers], long: tuple[float, Answers]
    ) -> dict[str, Any]:
        name = next(iter(parts.values()))["stats"]["name"]
        recent = {number: _growth(part, short[1], number) for number, part in parts.items()}
        grown = [growth for number, part in parts.items() if (growth := _growth(part, long[1], number))]
        stats = merge_stats([part["stats"] for part in parts.values()])
        leases = longest({number: part["leases"] for number, part in parts.items()})[:MOST_LEASES]
        found = {
            number: diagnose(Seen(part["health"], part["why"], part["stats"], recent[number], part["leases"]))
            for number, part in parts.items()
        }
        durations = {key: stats.pop(key) for key in ("wait", "use", "create") if key in stats}
        minute = merge_stats(grown) if grown else None
        moved = [growth for growth in recent.values() if growth]
        return {
            "name": name,
            **_together(found, stats),
            "stats": stats,
            "leases": leases,
            "per_second": _rate(moved, now - short[0]),
            "minute": minute and {key: minute[key] for key in TOTALS if key not in durations},
            "minute_seconds": now - long[0],
            "durations": {
                key: {**quantiles(minute and minute[key]), "usual": quantile(every, 0.5)}
                for key, every in durations.items()
            },
        }


def _rate(moved: list[dict[str, Any]], lasted: float) -> float | None:
    return sum(growth["acquires"] for growth in moved) / lasted if moved and lasted > 0 else None


def _growth(part: dict[str, Any], before: Answers, number: int) -> dict[str, Any]:
    """Return what the totals of a pool in a worker have grown by; nothing if that is not known."""
    now, then = part["stats"], ((before.get(number) or {}).get(part["stats"]["name"]) or {}).get("stats")
    if then is None or "acquires" not in now or "acquires" not in then or now["acquires"] < then["acquires"]:
        return {}  # no pool of ours, or another process has taken the number of this worker
    return {key: _minus(now[key], then[key]) for key in TOTALS}


def _minus(now: Any, then: Any) -> Any:
    if isinstance(now, dict):
        return {key: now[key] if key == "bounds" else _minus(now[key], then[key]) for key in now}
    if isinstance(now, (list, tuple)):
        return [new - old for new, old in zip(now, then, strict=True)]
    return now - then


def _together(found: dict[int, Diagnosis], stats: dict[str, Any]) -> dict[str, Any]:
    """Return the worst diagnosis of some workers, and in how many of them it holds."""
    number, worst = min(found.items(), key=lambda each: WORST_FIRST.index(each[1].kind))
    if len(found) > 1:
        if worst.kind == "fine" and "acquires" in stats:
            worst = fine(stats)
        elif worst.kind != "fine":
            same = sum(each.kind == worst.kind for each in found.values())
            where = "in each worker" if same == len(found) else f"in {same} of {len(found)} workers"
            worst = replace(worst, reason=f"Worker {number}: {worst.reason} So it is {where}.")
    return asdict(worst)
