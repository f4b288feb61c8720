"""Pictures: all workers as one, what has changed of late, and a diagnosis for each pool."""

from copy import deepcopy
from dataclasses import asdict
from typing import Any

import pytest

from connectionpools_fastapi._monitoring.diagnosis import Diagnosis, Seen, diagnose, seconds
from connectionpools_fastapi._monitoring.merge import merge_stats
from connectionpools_fastapi._monitoring.picture import Pictures
from connectionpools_fastapi._monitoring.quantiles import quantile, quantiles
from connectionpools_fastapi.stats import ObservedStats
from tests.web import things

BASE = asdict(things(limit=4).stats())
IDLE = {**BASE, "status": "open", "free": 4}
BUSY = {**IDLE, "free": 0, "taken": 4, "waiting": 3, "oldest_wait": 2.0}


def used(stats: dict[str, Any], place: int, times: int) -> dict[str, Any]:
    """Return stats with more leases whose use fell into one interval of the histogram."""
    stats = deepcopy(stats)
    counts = list(stats["use"]["counts"])
    counts[place] += times
    stats["use"]["counts"] = counts
    return {**stats, "acquires": stats["acquires"] + times, "releases": stats["releases"] + times}


QUICK, SLOW = 2, 9  # the intervals up to 5 ms and up to 1 s


def recent(**changes: Any) -> dict[str, Any]:
    return {**deepcopy(BASE), **changes}


def seen(stats: dict[str, Any], *, health: str = "pass", why: str = "", now: Any = None, ages: Any = ()) -> Diagnosis:
    leases = [{"holder": "GET /slow", "age": age} for age in ages]
    return diagnose(Seen(health, why, stats, now or {}, leases))


# --- durations ------------------------------------------------------------------------------------


def test_quantile_lies_within_its_interval() -> None:
    histogram = {"bounds": [1.0, 2.0, 4.0], "counts": [50, 40, 10, 0], "sum": 0.0}
    assert [quantile(histogram, share) for share in (0.5, 0.7, 0.95, 1.0)] == [1.0, 1.5, 3.0, 4.0]
    assert quantile({**histogram, "counts": [0, 0, 0, 3]}, 0.5) == 4.0
    assert quantiles({**histogram, "counts": [0, 0, 0, 0]}) == {"p50": None, "p95": None, "p99": None}


@pytest.mark.parametrize(
    ("duration", "said"), [(0.0012, "1.2 ms"), (0.25, "250 ms"), (3.21, "3.2 s"), (60.0, "60 s"), (300, "5 min")]
)
def test_seconds_are_said_as_a_person_does(duration: float, said: str) -> None:
    assert seconds(duration) == said


# --- diagnosis ------------------------------------------------------------------------------------


def test_pool_with_room_is_fine() -> None:
    assert seen(IDLE) == Diagnosis("fine", "Fine", "4 of 4 resources are left to lease.")


def test_queue_that_moves_is_fine() -> None:
    assert seen({**BUSY, "oldest_wait": 0.01}, health="warn", why="saturated").kind == "fine"


def test_back_end_that_is_down_is_told_with_its_cause() -> None:
    down = {**IDLE, "free": 0, "failing": True, "down": True}
    why = "create fails with ConnectionRefusedError; next try in 0.5 s"
    now = recent(refusals={**BASE["refusals"], "unavailable": 7})
    found = seen(down, health="fail", why=why, now=now)
    assert (found.kind, found.title) == ("down", "Back-end down")
    assert found.reason == f"C{why[1:]}. 7 callers were refused in the last seconds."


def test_probe_without_an_answer_means_down() -> None:
    assert seen(IDLE, health="fail", why="the back-end does not answer within 1 s").kind == "down"


def test_create_that_fails_beside_resources_cannot_grow() -> None:
    found = seen({**IDLE, "failing": True}, health="warn", why="create fails with OSError; next try in 1 s")
    assert (found.kind, found.reason) == (
        "failing",
        "Create fails with OSError; next try in 1 s. 4 resources still serve.",
    )


def test_long_wait_means_exhausted() -> None:
    found = seen(BUSY, health="warn", why="saturated")
    assert found.kind == "exhausted"
    assert found.reason == "4 of 4 resources are taken, 3 callers wait, the longest for 2 s."


def test_exhausted_by_load_asks_for_room_and_by_slow_leases_does_not() -> None:
    by_load = seen(used(BUSY, QUICK, 100), now=recent(timeouts=1))
    assert "raise the limit" in by_load.remedy
    assert by_load.reason.endswith("1 caller was turned away in the last seconds.")
    by_leases = seen(used(BUSY, QUICK, 100), ages=[3.0, 3.0, 2.0])
    assert "slow queries" in by_leases.remedy
    assert by_leases.reason.endswith("Leases last 3 s, usually 3.8 ms.")


def test_pool_in_which_nothing_moves_is_exhausted() -> None:
    why = "nothing was leased or came back within 5 s: 4 of 4 taken, 3 waiting"
    found = seen(BUSY, health="fail", why=why)
    assert (found.kind, "nothing has come back" in found.reason) == ("exhausted", True)


def test_leases_that_do_not_end_are_a_leak_while_callers_wait() -> None:
    found = seen(used(BUSY, QUICK, 100), ages=[240, 200, 1, 1])
    assert found.kind == "leak"
    assert "2 of 4 resources have not come back for 3.3 min" in found.reason
    assert "GET /slow, for 4 min" in found.reason
    assert seen(used({**BUSY, "waiting": 0}, QUICK, 100), ages=[240, 200]).kind != "leak"
    assert seen(used(BUSY, QUICK, 100), ages=[240, 1, 1, 1]).kind == "exhausted"


def test_lost_lease_is_a_leak() -> None:
    assert seen(IDLE, now=recent(discards={**BASE["discards"], "leak": 2})).kind == "leak"


def test_overload_is_told_with_the_patience_of_callers() -> None:
    shedding = {**BUSY, "overloaded": True, "expected_wait": 3.0, "patience": 2.0}
    found = seen(shedding, now=recent(refusals={**BASE["refusals"], "overloaded": 9}))
    assert found.kind == "shedding"
    assert found.reason.startswith("9 callers were refused")
    assert "would wait 3 s. Callers leave after 2 s." in found.reason


def test_leases_that_last_longer_than_usual_are_slow() -> None:
    now = used(recent(), SLOW, 10)
    stats = used(used({**IDLE, "taken": 3, "free": 1}, QUICK, 100), SLOW, 10)
    found = seen(stats, now=now, ages=[0.5])
    assert (found.kind, found.reason) == (
        "slow",
        "Leases last 750 ms, usually 3.8 ms. The longest: GET /slow, for 500 ms.",
    )
    assert seen(stats).kind == "fine"  # what is over is told by nothing recent


@pytest.mark.parametrize("status", ["new", "closing", "closed"])
def test_pool_that_is_not_open_says_so(status: str) -> None:
    assert seen({**IDLE, "status": status}, health="fail").kind == "closed"


def test_suspended_pool_says_how_many_wait() -> None:
    found = seen({**IDLE, "status": "suspended", "waiting": 2})
    assert (found.kind, found.reason) == ("suspended", "2 callers wait until the pool is resumed.")


@pytest.mark.parametrize(
    ("health", "waiting", "kind"), [("pass", 0, "fine"), ("warn", 2, "exhausted"), ("fail", 0, "down")]
)
def test_observed_pool_is_judged_by_its_health(health: str, waiting: int, kind: str) -> None:
    assert seen(asdict(ObservedStats(name="db", status="open", waiting=waiting)), health=health, why="w").kind == kind


# --- several workers, and time --------------------------------------------------------------------


def part(stats: dict[str, Any], *, health: str = "pass") -> dict[str, Any]:
    return {"db": {"health": health, "why": "why", "stats": stats, "leases": []}}


def test_stats_of_workers_add_up() -> None:
    other = {**BUSY, "patience": 2.0, "expected_wait": 1.0, "down": True, "cause": "OSError", "status": "suspended"}
    merged = merge_stats([{**BUSY, "patience": 3.0}, other])
    assert (merged["limit"], merged["taken"], merged["waiting"], merged["oldest_wait"]) == (8, 8, 6, 2.0)
    assert (merged["patience"], merged["expected_wait"], merged["down"]) == (2.0, 1.0, True)
    assert (merged["cause"], merged["status"], merged["name"]) == ("OSError", "open, suspended", "db")
    assert merge_stats([used(IDLE, 3, 2), used(IDLE, 3, 1)])["use"]["counts"][3] == 3


def test_budget_is_shared_by_the_workers_that_hold_its_tokens() -> None:
    budget = {"name": "pg", "total": 6, "used": 6, "held": 2, "members": {"db": 6}}
    merged = merge_stats([{**BUSY, "budget": budget}, {**BUSY, "budget": {**budget, "held": 3}}])
    assert merged["budget"] == {**budget, "held": 5}
    assert merged["discards"]["budget"] == 0


def test_pool_whose_budget_is_spent_says_so() -> None:
    budget = {"name": "pg", "total": 6, "used": 6, "held": 3, "members": {}}
    found = seen({**BUSY, "taken": 3, "budget": budget})
    assert (found.kind, "The budget pg has no token left." in found.reason) == ("exhausted", True)
    assert "raise the total" in found.remedy
    assert seen({**IDLE, "free": 1, "budget": budget}).reason == "1 of 4 resources are left to lease."


def test_number_that_one_worker_does_not_know_is_unknown() -> None:
    known, unknown = (asdict(ObservedStats(name="db", status="open", free=free)) for free in (1, None))
    assert merge_stats([known, unknown])["free"] is None


def test_worst_worker_decides_and_a_hanging_one_is_named() -> None:
    answers = {0: part(IDLE), 1: part(BUSY), 2: None}
    picture = Pictures().picture(answers, 0.0)
    (pool,) = picture["pools"]
    assert (picture["workers"], picture["hanging"], pool["kind"]) == (3, [2], "exhausted")
    assert pool["reason"].startswith("Worker 1: 4 of 4")
    assert pool["reason"].endswith("So it is in 1 of 2 workers.")
    assert pool["stats"]["limit"] == 8


def test_workers_that_are_fine_say_one_sentence() -> None:
    (pool,) = Pictures().picture({0: part(IDLE), 1: part(IDLE)}, 0.0)["pools"]
    assert pool["reason"] == "8 of 8 resources are left to lease."


def test_changes_of_the_last_minute_are_told() -> None:
    pictures, totals = Pictures(), IDLE
    for now in range(100):
        totals = used({**totals, "timeouts": now}, QUICK, 5)
        (pool,) = pictures.picture({0: part(totals)}, now)["pools"]
        if now == 0:
            assert (pool["minute"], pool["per_second"]) == (None, None)
            assert pool["durations"]["use"] == {"p50": None, "p95": None, "p99": None, "usual": 0.00375}
    assert (pool["minute_seconds"], pool["minute"]["acquires"], pool["minute"]["timeouts"]) == (60, 300, 60)
    assert pool["per_second"] == 5.0
    assert pool["durations"]["use"]["p95"] == pytest.approx(0.004875)
    assert len(pictures._past) <= 62


def test_worker_that_was_replaced_begins_anew() -> None:
    pictures = Pictures()
    pictures.picture({0: part(used(IDLE, QUICK, 100))}, 0.0)
    (pool,) = pictures.picture({0: part(used(IDLE, QUICK, 5))}, 1.0)["pools"]
    assert (pool["minute"], pool["per_second"]) == (None, None)


def test_observed_pool_has_what_is_known() -> None:
    pictures = Pictures()
    for now in (0.0, 1.0):
        (pool,) = pictures.picture({0: part(asdict(ObservedStats(name="db", status="open", taken=1)))}, now)["pools"]
    assert (pool["kind"], pool["durations"], pool["minute"], pool["stats"]["limit"]) == ("fine", {}, None, None)
