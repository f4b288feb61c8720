"""Diagnosis: what is wrong with a pool, why, and what to do, in words for a person on call at night."""

from dataclasses import dataclass
from typing import Any, Literal

from .quantiles import quantile

Kind = Literal["down", "leak", "exhausted", "shedding", "slow", "failing", "closed", "suspended", "fine"]

# The worst first: what a pool with several workers shows.
WORST_FIRST: tuple[Kind, ...] = (
    "down",
    "leak",
    "exhausted",
    "shedding",
    "slow",
    "failing",
    "closed",
    "suspended",
    "fine",
)

# A queue that moves is no trouble: a caller that has waited for so many seconds is.
LONG_WAIT = 0.5

# Leases are slow from so many times the usual duration on, and never below so many seconds.
SLOW_FACTOR, SLOW_FROM = 4.0, 0.25

# A lease of so many seconds, and of so many times the usual duration, does not seem to end.
ENDLESS_FACTOR, ENDLESS_FROM = 20.0, 30.0

# Fewer leases do not tell what is usual, or how it is now.
ENOUGH, SOME = 20, 5

# Below so many of a unit, a duration is shown with two digits.
FEW = 10

LOOK_AT_LEASES = (
    "Look at the longest leases below, and at the back-end for slow queries and locks. "
    "A higher limit would only move the queue into the back-end."
)
RAISE_BUDGET = (
    "Other pools and processes hold the rest of the budget. Look at the longest leases below; raise the total if the "
    "back-end has room, or lower the limit of those that need less."
)
ADD_ROOM = (
    "Leases last no longer than usual, so more callers come than the resources serve. Reduce the load, or raise the "
    "limit or add workers, if the back-end has room."
)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong with a pool, the reason, and what to do about it."""

    kind: Kind
    title: str
    reason: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a pool in one worker, as plain values.

    Attributes:
        health: "pass", "warn" or "fail".
        why: The reason of the health.
        stats: The stats of the pool.
        recent: What its totals have grown by in the last seconds; empty if that is not known yet.
        leases: The leases with `holder` and `age`, the longest first.
    """

    health: str
    why: str
    stats: dict[str, Any]
    recent: dict[str, Any]
    leases: list[dict[str, Any]]

    @property
    def usual_use(self) -> float | None:
        """How long the middle one of the earlier leases lasted, in seconds; None if there were too few."""
        use = self.stats["use"]
        counts = use["counts"]
        if self.recent:
            counts = [all_ - new for all_, new in zip(counts, self.recent["use"]["counts"], strict=True)]
        return quantile({**use, "counts": counts}, 0.5) if sum(counts) >= ENOUGH else None

    @property
    def slow_use(self) -> float | None:
        """How long leases last now, in seconds, if that is much longer than usual."""
        usual = self.usual_use
        if usual is None:
            return None
        ended = quantile(self.recent["use"], 0.5) if self.recent and sum(self.recent["use"]["counts"]) >= SOME else None
        ages = [lease["age"] for lease in self.leases]
        middle = ages[len(ages) // 2] if 2 * len(ages) >= self.stats["limit"] else 0.0  # those that have not ended
        now = max(ended or 0.0, middle)
        return now if now >= max(SLOW_FACTOR * usual, SLOW_FROM) else None

    @property
    def turned_away(self) -> int:
        """How many callers timed out or were refused in the last seconds."""
        return self.recent["timeouts"] + sum(self.recent["refusals"].values()) if self.recent else 0


def diagnose(seen: Seen) -> Diagnosis:
    """Say what is wrong with a pool in one worker."""
    if seen.stats["status"] == "suspended":
        waiting = _callers(seen.stats["waiting"], "waits", "wait")
        return Diagnosis("suspended", "Suspended", f"{waiting} until the pool is resumed.", "Resume it to go on.")
    if seen.stats["status"] != "open":
        remedy = "Look into the log: nothing has opened it yet, its start failed, or the service is shutting down."
        return Diagnosis("closed", "Not open", f"The pool is {seen.stats['status']}.", remedy)
    if "acquires" not in seen.stats:
        return _of_observed(seen)
    steps = (_down, _leak, _shedding, _exhausted, _failing, _slow)
    return next((found for step in steps if (found := step(seen)) is not None), fine(seen.stats))


def _of_observed(seen: Seen) -> Diagnosis:
    if seen.health == "fail":
        return Diagnosis("down", "Back-end down", _sentence(seen.why), "Look at the back-end, and the network to it.")
    if seen.stats["waiting"]:
        return Diagnosis("exhausted", "Exhausted", _sentence(seen.why), "Look at the back-end for slow queries.")
    return Diagnosis("fine", "Fine", _sentence(seen.why) if seen.why else "The back-end answers.")


def _down(seen: Seen) -> Diagnosis | None:
    stats = seen.stats
    is_stuck = stats["taken"] and not stats["free"]  # health fails too where nothing comes back, see below
    if not stats["down"] and (seen.health != "fail" or (is_stuck and not stats["failing"])):
        return None
    refused = seen.recent["refusals"]["unavailable"] if seen.recent else 0
    lost = f" {_callers(refused, 'was', 'were')} refused in the last seconds." if refused else ""
    return Diagnosis(
        "down",
        "Back-end down",
        _sentence(seen.why) + lost,
        "Look at the back-end, its credentials and the network to it. The pool tries again by itself, and serves as "
        "soon as one try succeeds.",
    )


def _leak(seen: Seen) -> Diagnosis | None:
    lost = seen.recent["discards"]["leak"] if seen.recent else 0
    if lost:
        return Diagnosis(
            "leak",
            "Leak",
            f"{lost} lease{'s' if lost > 1 else ''} of the last seconds never ended: the caller dropped the resource.",
            "Find in the log where it began, and lease in a block there. Each costs a new resource.",
        )
    endless_from = max(ENDLESS_FROM, ENDLESS_FACTOR * (seen.usual_use or 0.0))
    endless = [lease for lease in seen.leases if lease["age"] >= endless_from]
    if 2 * len(endless) < seen.stats["limit"] or not (seen.stats["waiting"] or seen.turned_away):
        return None
    return Diagnosis(
        "leak",
        "Leak",
        f"{len(endless)} of {seen.stats['limit']} resources have not come back for {seconds(endless[-1]['age'])} or "
        f"longer, while callers wait. {_longest(seen)}",
        "Find out what these routes wait for: a lock, another service, a release that never comes. The setting "
        "max_hold logs where such a lease began; a restart frees them.",
    )


def _shedding(seen: Seen) -> Diagnosis | None:
    stats = seen.stats
    refused = seen.recent["refusals"]["overloaded"] if seen.recent else 0
    if not (stats["overloaded"] or refused):
        return None
    wait = "" if stats["expected_wait"] is None else f" A new caller would wait {seconds(stats['expected_wait'])}."
    patience = "" if stats["patience"] is None else f" Callers leave after {seconds(stats['patience'])}."
    return Diagnosis(
        "shedding",
        "Shedding load",
        f"{refused or 'Some'} callers were refused in the last seconds, so that the others are served."
        f"{wait}{patience}{_how_slow(seen)}",
        _what_to_do(seen),
    )


def _exhausted(seen: Seen) -> Diagnosis | None:
    stats = seen.stats
    timeouts = seen.recent["timeouts"] + seen.recent["refusals"]["full"] if seen.recent else 0
    waits_long = stats["waiting"] and stats["oldest_wait"] >= LONG_WAIT and not stats["free"]
    if not waits_long and not timeouts and seen.health != "fail":
        return None
    waiting = _callers(stats["waiting"], "waits", "wait")
    longest = f", the longest for {seconds(stats['oldest_wait'])}" if stats["waiting"] else ""
    lost = f" {_callers(timeouts, 'was', 'were')} turned away in the last seconds." if timeouts else ""
    budget = f" The budget {stats['budget']['name']} has no token left." if _lacks_tokens(seen) else ""
    stuck = " For seconds nothing has come back." if seen.health == "fail" else ""
    return Diagnosis(
        "exhausted",
        "Exhausted",
        f"{stats['taken']} of {stats['limit']} resources are taken, {waiting}{longest}.{budget}{lost}{stuck}"
        f"{_how_slow(seen)}",
        _what_to_do(seen),
    )


def _failing(seen: Seen) -> Diagnosis | None:
    if not seen.stats["failing"]:
        return None
    left = seen.stats["free"] + seen.stats["taken"]
    return Diagnosis(
        "failing",
        "Cannot grow",
        f"{_sentence(seen.why)} {f'{left} resources still serve.' if left else 'Callers wait for it.'}",
        "Look at how many connections the back-end allows, at its credentials and the network to it.",
    )


def _slow(seen: Seen) -> Diagnosis | None:
    if seen.slow_use is None:
        return None
    return Diagnosis("slow", "Slow", f"{_how_slow(seen).strip()} {_longest(seen)}".strip(), LOOK_AT_LEASES)


def fine(stats: dict[str, Any]) -> Diagnosis:
    """Say how much of a pool without trouble is left, in one worker or in all together."""
    if stats["waiting"]:
        reason = f"{stats['taken']} of {stats['limit']} resources are in use, and the queue moves."
    else:
        room, budget = stats["limit"] - stats["taken"], stats.get("budget")
        if budget is not None:
            room = min(room, stats["free"] + budget["total"] - budget["used"])
        reason = f"{room} of {stats['limit']} resources are left to lease."
    return Diagnosis("fine", "Fine", reason)


def _what_to_do(seen: Seen) -> str:
    if _lacks_tokens(seen):
        return RAISE_BUDGET
    usual = seen.usual_use
    return ADD_ROOM if usual is not None and seen.slow_use is None else LOOK_AT_LEASES


def _lacks_tokens(seen: Seen) -> bool:
    budget = seen.stats.get("budget")
    return budget is not None and budget["used"] >= budget["total"] and seen.stats["taken"] < seen.stats["limit"]


def _how_slow(seen: Seen) -> str:
    if seen.slow_use is None or seen.usual_use is None:
        return ""
    return f" Leases last {seconds(seen.slow_use)}, usually {seconds(seen.usual_use)}."


def _longest(seen: Seen) -> str:
    if not seen.leases:
        return ""
    lease = seen.leases[0]
    return f"The longest: {lease['holder']}, for {seconds(lease['age'])}."


def _callers(count: int, one: str, many: str) -> str:
    return f"{count or 'no'} caller{'' if count == 1 else 's'} {one if count == 1 else many}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def seconds(duration: float) -> str:
    """Return a duration as a person says it."""
    for unit, size, most in (("ms", 0.001, 1.0), ("s", 1.0, 120.0), ("min", 60.0, 7200.0)):
        if duration < most:
            return f"{duration / size:.2g} {unit}" if duration / size < FEW else f"{duration / size:.0f} {unit}"
    return f"{duration / 3600:.0f} h"
