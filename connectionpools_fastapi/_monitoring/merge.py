"""Merge: the answers of all workers about health, leases and stats as one."""

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from .health import MOST_HOLDERS, Verdict

COUNTS = ("limit", "free", "taken", "creating", "waiting")
HANGS = "the worker does not answer"

# The answer of each worker by its number; None for one that hangs.
Answers = Mapping[int, dict[str, Any] | None]


def merge_health(answers: Answers) -> dict[str, Any]:
    """Return the health of a service from that of its workers: it fails only if all workers fail.

    Args:
        answers: What each worker says of itself, with its `pools` by name.

    Returns:
        The same for the service, and the status of each worker.
    """
    alive = {number: answer for number, answer in answers.items() if answer is not None}
    names = dict.fromkeys(name for answer in alive.values() for name in answer["pools"])
    each = {name: merge_pool({number: answer["pools"].get(name) for number, answer in alive.items()}) for name in names}
    statuses: list[Verdict] = ["fail" if answer is None else answer["status"] for answer in answers.values()]
    workers = {
        str(number): {"status": "fail", "reason": HANGS} if answer is None else {"status": answer["status"]}
        for number, answer in answers.items()
    }
    return {"pools": each, "workers": workers, "status": verdict_of(statuses)}


def merge_pool(answers: Answers) -> dict[str, Any]:
    """Return the health of one pool in all workers; those that do not have it are left out."""
    found = {number: answer for number, answer in answers.items() if answer is not None}
    first = next(iter(found.values()))
    merged: dict[str, Any] = {"status": verdict_of([answer["status"] for answer in found.values()])}
    for count in COUNTS:
        numbers = [answer[count] for answer in found.values()]
        merged[count] = None if None in numbers else sum(numbers)
    if "reason" in first:  # with details
        merged["reason"] = "; ".join(
            f"worker {number}: {answer['reason']}" for number, answer in found.items() if answer["reason"]
        )
        states = {answer["pool"] for answer in found.values()}
        merged["pool"] = ", ".join(sorted(states))
        merged["retry_after"] = min(
            (answer["retry_after"] for answer in found.values() if answer["retry_after"] is not None), default=None
        )
        merged["holders"] = longest(
            {number: answer["holders"] for number, answer in found.items() if answer["holders"] is not None}
        )[:MOST_HOLDERS]
    return merged


def longest(leases: Mapping[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the leases of all workers, the longest first, each with its worker."""
    every = [{**lease, "worker": number} for number, held in leases.items() for lease in held]
    return sorted(every, key=lambda lease: -lease["age"])


def verdict_of(statuses: list[Verdict]) -> Verdict:
    """Return "fail" if all fail, "pass" if all pass, else "warn"."""
    found = set(statuses)
    return found.pop() if len(found) == 1 else "warn"


def merge_stats(every: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the stats of one pool in several workers as one, all as plain values."""
    return {key: _merge(key, [stats[key] for stats in every if key in stats]) for key in every[0]}


def _merge(key: str, values: list[Any]) -> Any:
    known = [value for value in values if value is not None]
    if not known:
        return None
    merge = BY_NAME.get(key) or BY_TYPE.get(type(known[0]))
    if merge is not None:
        return merge(known)
    return sum(known) if len(known) == len(values) else None  # a sum of some would be wrong


def _join(texts: list[str]) -> str:
    return ", ".join(sorted(set(texts)))


def _add(counts: list[Sequence[int]]) -> list[int]:
    return [sum(each) for each in zip(*counts, strict=True)]


# How the values of several workers become one; all others are added.
BY_NAME: dict[str, Callable[[list[Any]], Any]] = {
    "name": itemgetter(0),
    "bounds": itemgetter(0),
    "total": itemgetter(0),  # this one, `used` and `members` are of the budget, which all workers share
    "used": itemgetter(0),
    "members": itemgetter(0),
    "expected_wait": max,
    "longest_lease": max,
    "oldest_wait": max,
    "peak_taken": max,
    "peak_waiting": max,
    "patience": min,
    "retry_after": min,
}
BY_TYPE: dict[type, Callable[[list[Any]], Any]] = {bool: any, str: _join, dict: merge_stats, list: _add, tuple: _add}
