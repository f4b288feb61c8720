"""Decisions while create fails: retries, back-off, and the callers that wait meanwhile."""

from contextlib import suppress
from pathlib import Path

import pytest

from connectionpools_fastapi import (
    PoolConfigError,
    PoolTimeout,
    ResourceUnavailable,
)
from connectionpools_fastapi._core.effects import Effect
from tests.state_harness import StateHarness, down, harness
from tests.support import Caller, Resource

NEVER = float("inf")


def test_one_failure_of_create_is_seen_by_no_caller() -> None:
    for limit in (1, 2, 9):
        for number in range(min(limit, 4)):
            core = harness(limit=limit)
            callers = [core.acquire() for _ in range(50)]
            for _ in range(number):
                core.created()
            core.failed()
            core.create_all()
            for _ in range(60):
                for slot in list(core.state.inventory.taken.values()):
                    core.release(slot)
                core.create_all()
            assert all(caller.slot is not None for caller in callers)
            assert core.refusals() == {}


def test_first_failure_has_create_tried_again_at_once() -> None:
    core = harness().listen("on_create_failed", "on_refuse")
    caller = core.acquire()
    cause = OSError("down")
    core.failed(cause)
    assert core.count("create") == 1
    assert core.notified() == [("on_create_failed", cause)]
    assert core.created() is caller.slot
    assert core.state.backoff.failures == 0


def test_simultaneous_create_failures_retry_once() -> None:
    core = harness(limit=8)
    callers = [core.acquire() for _ in range(8)]
    for _ in range(8):
        core.failed()
    assert core.count("create") == 1
    assert core.state.backoff.failures == 1
    assert core.waiting() == callers


def test_try_again_does_not_wait_for_others_that_hang() -> None:
    core = harness(limit=3)
    caller, *_ = [core.acquire() for _ in range(3)]
    core.failed()
    assert core.count("create") == 3
    core.advance(0.2)
    retry = core.asked[Effect.CREATE].pop()
    core.do(core.state.created, retry, Resource(7))
    assert caller.slot is not None


def test_callers_fail_together_once_back_end_is_down() -> None:
    core = harness().listen("on_refuse")
    began = core.now
    first, second = core.acquire(), core.acquire(10.0)
    cause = OSError("down")
    while first.error is None:
        assert core.now < began + 1
        while core.count("create"):
            core.failed(cause)
        core.now = core.state.next_deadline()
        core.advance(0)
    assert core.now == began + 1
    for caller in (first, second):
        assert isinstance(caller.error, ResourceUnavailable)
        assert caller.error.__cause__ is cause
    assert core.notified() == [("on_refuse", "unavailable")] * 2
    with pytest.raises(ResourceUnavailable):
        core.acquire()
    assert core.refusals() == {"unavailable": 3}


def test_back_end_is_not_down_after_one_failure_only() -> None:
    core = harness()
    caller = core.acquire()
    core.failed()
    core.advance(9)  # the second try hangs
    assert caller.error is None
    assert core.acquire() in core.waiting()
    core.failed()
    assert isinstance(caller.error, ResourceUnavailable)


def test_timeout_in_hanging_create_names_the_last_cause() -> None:
    core = harness()
    caller = core.acquire(5.0)
    cause = OSError("down")
    core.failed(cause)
    core.advance(5)
    assert isinstance(caller.error, PoolTimeout)
    assert caller.error.__cause__ is cause
    assert "create failed once, last with OSError" in str(caller.error)


def test_callers_stay_in_line_while_any_resource_exists() -> None:
    core = harness(limit=2)
    held = core.lease()
    first, second = core.acquire(), core.acquire()
    for _ in range(20):
        core.advance(0.5)
        if core.count("create"):
            core.failed()
    assert core.state.backoff.failures > 10
    assert core.waiting() == [first, second]
    assert core.acquire() in core.waiting()
    core.release(held)
    assert first.slot is held


def test_emptied_pool_judges_its_back_end_anew() -> None:
    core = harness(limit=2)
    held = core.lease()
    caller = core.acquire()
    core.failed()
    core.failed()
    core.advance(9)
    core.failed()
    assert core.count("create") == 0
    core.state.inventory.end(held, core.now)
    core.do(core.state.discard, held)
    assert core.count("create") == 1, "perhaps there is room now"
    assert caller.error is None
    core.failed()
    assert caller.error is None
    core.advance(0.9)
    core.failed()
    core.advance(0.1)
    assert isinstance(caller.error, ResourceUnavailable)


def test_finished_clean_has_create_tried_at_once() -> None:
    core = harness(limit=3)
    first, _ = core.leases(2)
    caller = core.acquire()
    for _ in range(4):
        core.failed()
        core.advance(0.5)
    core.failed()
    core.state.inventory.end(first, core.now)
    core.do(core.state.discard, first)
    assert core.count("create") == 0
    core.cleaned()
    assert core.count("create") == 1
    assert core.created() is caller.slot


@pytest.mark.parametrize(
    "mistake", [TypeError, AttributeError, UnboundLocalError, ModuleNotFoundError, PoolConfigError]
)
def test_mistake_in_create_is_told_at_once_and_where(mistake: type[Exception]) -> None:
    def connect() -> None:
        raise mistake

    core = harness(limit=3)
    callers = [core.acquire(), core.acquire()]
    with pytest.raises(mistake) as caught:
        connect()
    core.failed(caught.value)
    for caller in callers:
        assert isinstance(caller.error, ResourceUnavailable)
        assert caller.error.__cause__ is caught.value
        assert f"{mistake.__name__} in {connect.__qualname__} ({Path(__file__).name}, line" in str(caller.error)
        assert "a mistake in create or in its arguments, not an outage" in str(caller.error)
    with pytest.raises(ResourceUnavailable, match="mistake"):
        core.acquire()


def test_mistake_with_a_resource_left_fails_one_caller() -> None:
    core = harness(limit=2)
    held = core.lease()
    first, second = core.acquire(), core.acquire()
    core.failed(TypeError())
    assert isinstance(first.error, ResourceUnavailable)
    core.failed(TypeError())
    assert core.waiting() == [second]
    core.release(held)
    assert second.slot is held


def test_pauses_between_tries_grow_to_half_a_second() -> None:
    core = harness(limit=2)
    core.lease()
    core.acquire()
    pauses = []
    for _ in range(7):
        core.failed()
        began = core.now
        if not core.count("create"):
            core.now = core.state.next_deadline()
            core.advance(0)
        pauses.append(round(core.now - began, 6))
    assert pauses == [0, 0.1, 0.2, 0.4, 0.5, 0.5, 0.5]


def test_there_are_no_more_than_40_tries_in_10_seconds() -> None:
    core = harness(limit=20)
    core.state.backoff._chance = lambda: 1.0  # the shortest pauses
    began = core.now
    for _ in range(50):
        core.acquire(60.0)
    while core.now < began + 10:
        core.fail_all()
        core.now = min(core.state.next_deadline(), core.now + 0.05)
        core.advance(0)
        with suppress(ResourceUnavailable):
            core.acquire(60.0)
    assert 20 < core.state.counters.create_failures <= 40


def test_pauses_last_for_seconds_while_no_caller_comes() -> None:
    core = down()
    for _ in range(9):
        core.now = core.state.next_deadline()
        core.advance(0)
        core.failed()
    assert core.state.next_deadline() == core.now + 4


def test_refused_caller_has_create_tried_soon() -> None:
    core = down()
    for _ in range(9):
        core.now = core.state.next_deadline()
        core.advance(0)
        core.failed()
    core.advance(0.1)
    with pytest.raises(ResourceUnavailable, match=r"tries again in 0\.4 s"):
        core.acquire()
    assert core.state.due <= core.state.next_deadline() == pytest.approx(core.now + 0.4)


def idle() -> StateHarness:
    """Return a pool that is down; its last try is two seconds old."""
    core = down()
    for _ in range(9):
        core.now = core.state.next_deadline()
        core.advance(0)
        core.failed()
    core.advance(2)
    assert core.count("create") == 0
    return core


def test_caller_after_an_old_try_starts_one_and_waits() -> None:
    core = idle()
    caller = core.acquire()
    assert core.count("create") == 1
    other = core.acquire()
    assert core.waiting() == [caller, other]
    assert core.created() is caller.slot
    assert core.created() is other.slot


def test_caller_that_started_a_try_is_told_when_it_fails() -> None:
    core = idle()
    caller = core.acquire()
    core.failed()
    assert isinstance(caller.error, ResourceUnavailable)
    with pytest.raises(ResourceUnavailable):
        core.acquire()


def test_caller_waits_for_the_try_it_started_for_a_second() -> None:
    core = idle()
    ends = core.now + 1
    caller, brief = core.acquire(5.0), core.acquire(0.3)
    core.advance(0.3)
    assert isinstance(brief.error, ResourceUnavailable)
    core.advance(0.6)
    assert caller.error is None
    core.now = ends
    core.advance(0)
    assert isinstance(caller.error, ResourceUnavailable)
    assert core.state.counters.timeouts == 0
    with pytest.raises(ResourceUnavailable):
        core.acquire()
    assert core.count("create") == 1, "one at a time"
    assert core.state.next_deadline() == NEVER


def test_caller_that_cannot_wait_starts_a_try_all_the_same() -> None:
    core = idle()
    with pytest.raises(ResourceUnavailable):
        core.acquire(0)
    assert core.count("create") == 1
    core = idle()
    assert core.do(core.state.try_acquire) is None
    assert core.count("create") == 1


def test_create_is_tried_again_once_when_the_pause_is_over() -> None:
    core = down()
    assert core.state.next_deadline() == core.now + 0.2
    core.advance(0.19)
    assert core.count("create") == 0
    core.now = core.state.next_deadline()
    core.advance(0)
    assert core.count("create") == 1
    assert core.state.next_deadline() == NEVER
    core.advance(9)
    assert core.count("create") == 1, "one at a time"
    core.failed()
    assert core.state.next_deadline() == core.now + 0.4
    with pytest.raises(ResourceUnavailable, match=r"failed 4 times.*tries again in 0\.4 s"):
        core.acquire()


def test_the_first_success_lets_everybody_in_again() -> None:
    core = down(limit=3)
    core.advance(1)
    slot = core.created()
    assert core.state.backoff.failures == 0
    assert not core.state.inventory.needs_lock
    assert core.acquire().slot is slot
    core.acquire()
    core.acquire()
    assert core.count("create") == 2


def test_failing_create_allows_one_try_at_a_time() -> None:
    core = harness(limit=4)
    core.lease()
    core.acquire()
    core.failed()
    core.acquire()
    core.acquire()
    assert core.count("create") == 1
    core.advance(1)
    assert core.count("create") == 1


def test_there_is_no_try_where_there_is_no_room_for_it() -> None:
    core = harness(limit=2)
    first, second = core.leases(2)
    core.state.inventory.end(first, core.now)
    core.do(core.state.discard, first)
    core.acquire()
    core.failed()
    core.failed()
    assert core.state.next_deadline() < NEVER
    core.do(core.state.resize, 1)
    assert core.state.next_deadline() == NEVER
    core.advance(9)
    assert core.count("create") == 0
    core.do(core.state.resize, 2)
    assert core.count("create") == 1
    core.release(second)


def test_failing_create_requires_checks_of_free_ones() -> None:
    """This holds only where there is a check."""
    for has_check in (True, False):
        core = harness(limit=3, has_check=has_check, check_after=10.0)
        slots = core.leases(2)
        core.do(core.state.cancel, core.acquire())
        for slot in slots:
            core.release(slot)
        core.failed()
        assert core.state.inventory.take(core.now) is None
        assert (core.acquire().slot is None) == has_check
        assert core.count("check") == has_check
        assert (core.acquire().slot is None) == has_check


def test_use_proves_nothing_while_create_fails() -> None:
    """This holds only where there is a check."""
    core = harness(limit=2, has_check=True, check_after=10.0)
    slot = core.lease()
    caller = core.acquire()
    core.failed()
    core.release(slot)
    assert caller.slot is None
    assert core.asked[Effect.CHECK] == [slot]
    core.checked()
    assert caller.slot is slot


def test_failing_create_without_check_keeps_reuse_going() -> None:
    core = harness(limit=2)
    slot = core.lease()
    caller = core.acquire()
    core.failed()
    core.release(slot)
    assert caller.slot is slot
    core.release(slot)
    assert core.acquire().slot is slot


def test_failed_create_of_older_generation_ends_drain() -> None:
    core = harness()
    core.acquire()
    generation = core.do(core.state.expire)
    drainer = Caller()
    assert core.ask(core.state.wait_gone, drainer, generation)
    core.failed()
    assert drainer.woken == 1


def test_failure_closes_fast_path_until_create_works() -> None:
    core = harness(limit=2)
    slot = core.lease()
    core.acquire()
    core.failed()
    assert core.state.inventory.needs_lock
    core.release(slot)
    assert core.state.inventory.needs_lock
    core.advance(1)
    core.created()
    assert not core.state.inventory.needs_lock
