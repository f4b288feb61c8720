"""Merge: the answers of several workers as one."""

from typing import Any

import pytest

from connectionpools_fastapi._monitoring.merge import HANGS, longest, merge_health


def pool(status: str, **details: Any) -> dict[str, Any]:
    return {"status": status, "limit": 5, "free": 1, "taken": 2, "creating": 1, "waiting": 3, **details}


def health(status: str, **details: Any) -> dict[str, Any]:
    return {"status": status, "pools": {"db": pool(status, **details)}}


@pytest.mark.parametrize(
    ("statuses", "merged"),
    [
        (("pass", "pass"), "pass"),
        (("pass", "warn"), "warn"),
        (("pass", "fail"), "warn"),
        (("warn", "fail"), "warn"),
        (("fail", "fail"), "fail"),
    ],
)
def test_service_fails_only_if_all_workers_fail(statuses: tuple[str, str], merged: str) -> None:
    found = merge_health({number: health(status) for number, status in enumerate(statuses)})
    assert found == {
        "pools": {
            "db": {"status": merged, "limit": 10, "free": 2, "taken": 4, "creating": 2, "waiting": 6},
        },
        "workers": {"0": {"status": statuses[0]}, "1": {"status": statuses[1]}},
        "status": merged,
    }


def test_worker_that_hangs_is_named_and_counts_as_failed() -> None:
    found = merge_health({0: health("pass"), 2: None})
    assert found["workers"]["2"] == {"status": "fail", "reason": HANGS}
    assert (found["status"], found["pools"]["db"]["status"], found["pools"]["db"]["limit"]) == ("warn", "pass", 5)


def test_details_name_the_worker_of_each_reason_and_holder() -> None:
    calm = {"reason": "", "pool": "open", "retry_after": None, "holders": [{"name": "GET /a", "age": 1.0}]}
    down = {"reason": "create fails", "pool": "suspended", "retry_after": 0.5, "holders": None}
    busy = {"reason": "saturated", "pool": "open", "retry_after": 2.0, "holders": [{"name": "GET /b", "age": 3.0}]}
    answers = {0: health("pass", **calm), 1: health("fail", **down), 3: health("warn", **busy)}
    found = merge_health(answers)["pools"]["db"]
    assert found["reason"] == "worker 1: create fails; worker 3: saturated"
    assert (found["pool"], found["retry_after"]) == ("open, suspended", 0.5)
    assert found["holders"] == [
        {"name": "GET /b", "age": 3.0, "worker": 3},
        {"name": "GET /a", "age": 1.0, "worker": 0},
    ]


def test_number_that_one_worker_does_not_know_is_not_known() -> None:
    observed = health("pass")
    observed["pools"]["db"]["waiting"] = None
    assert merge_health({0: health("pass"), 1: observed})["pools"]["db"]["waiting"] is None


def test_pool_of_some_workers_only_is_merged_from_those() -> None:
    other = {"status": "pass", "pools": {"late": pool("warn")}}
    found = merge_health({0: health("pass"), 1: other})["pools"]
    assert {name: (each["status"], each["limit"]) for name, each in found.items()} == {
        "db": ("pass", 5),
        "late": ("warn", 5),
    }


def test_leases_of_all_workers_are_sorted_by_age() -> None:
    assert longest({0: [{"age": 1.0}, {"age": 0.5}], 1: [{"age": 0.7}]}) == [
        {"age": 1.0, "worker": 0},
        {"age": 0.7, "worker": 1},
        {"age": 0.5, "worker": 0},
    ]
