"""Decisions of resize, suspend, resume, expire, retain and listen."""

import weakref

import pytest

from connectionpools_fastapi import (
    PoolClosed,
    PoolTimeout,
    TooManyWaiting,
)
from connectionpools_fastapi._core.effects import Effect
from tests.state_harness import StateHarness, down, harness, probe
from tests.support import Caller

NEVER = float("inf")


def test_higher_limit_serves_waiters() -> None:
    core = harness(limit=1)
    core.lease()
    core.acquire()
    core.acquire()
    core.do(core.state.resize, 3)
    assert core.state.limit == 3
    assert core.count("create") == 2


def test_lower_limit_cleans_coldest_now_others_on_return() -> None:
    core = harness(limit=4)
    slots = core.leases(4)
    for slot in slots[2:]:
        core.release(slot)
    core.do(core.state.resize, 3)
    assert core.asked[Effect.CLEAN] == [slots[2]]
    core.do(core.state.resize, 1)
    assert core.asked[Effect.CLEAN] == [slots[2], slots[3]]
    assert core.state.inventory.needs_lock
    core.release(slots[0])
    assert core.discards() == {"resize": 3}
    assert not core.state.inventory.needs_lock
    core.release(slots[1])
    assert core.free() == [slots[1]]


def test_surplus_is_cleaned_unchanged_despite_waiters() -> None:
    core = harness(limit=2, has_change=True)
    first, second = core.leases(2)
    caller = core.acquire()
    core.do(core.state.resize, 1)
    assert not core.release(first)
    assert core.discards() == {"resize": 1}
    assert caller.slot is None
    assert core.release(second)
    core.changed()
    assert caller.slot is second


def test_surplus_is_taken_from_returns_if_none_is_free() -> None:
    core = harness(limit=3)
    first, second, third = core.leases(3)
    core.ask(core.state.suspend)
    core.release(first)
    core.do(core.state.resize, 2)
    assert core.asked[Effect.CLEAN] == [first]
    core.do(core.state.resize, 1)
    core.release(second)
    assert core.asked[Effect.CLEAN] == [first, second]
    core.release(third)
    assert core.free() == [third]


def test_lower_limit_also_bounds_pending_creations() -> None:
    core = harness(limit=2)
    first = core.acquire()
    core.acquire()
    core.do(core.state.resize, 1)
    core.created()
    assert first.slot is None
    assert core.discards() == {"resize": 1}
    assert core.created() is first.slot
    assert len(core.waiting()) == 1
    assert core.count("create") == 0


def test_all_of_the_free_that_are_too_many_go_at_once() -> None:
    core = harness(limit=4)
    slots = core.have_free(4)
    core.do(core.state.resize, 1)
    assert core.asked[Effect.CLEAN] == slots[:3]
    assert core.free() == slots[3:]


def test_min_free_is_kept_as_far_as_the_limit_allows() -> None:
    core = harness(limit=4, min_free=3)
    core.create_all()
    core.do(core.state.resize, 2)
    assert len(core.free()) == 2
    core.do(core.state.resize, 4)
    assert core.count("create") == 1


def test_open_waits_for_no_more_than_the_limit_allows() -> None:
    core = StateHarness(limit=4, min_free=3)
    core.do(core.state.resize, 1)
    core.open()
    core.created()
    assert not core.do(core.state.watch_min_free, Caller())


def test_suspend_makes_all_wait_and_resume_serves_in_order() -> None:
    core = harness(limit=3)
    free, held = core.leases(2)
    core.release(free)
    core.ask(core.state.suspend)
    assert core.status == "suspended"
    assert core.state.is_open
    assert core.state.inventory.take(core.now) is None
    assert core.do(core.state.try_acquire) is None
    first, second, third = core.acquire(), core.acquire(), core.acquire()
    core.release(held)
    assert core.waiting() == [first, second, third]
    assert core.count("create") == 0
    core.do(core.state.resume)
    assert core.status == "open"
    assert {first.slot, second.slot} == {free, held}
    assert core.created() is third.slot


def test_resume_checks_all_that_is_wanted_at_once() -> None:
    core = harness(limit=3, has_check=True, check_after=1.0)
    core.have_free(3)
    core.now += 2
    core.ask(core.state.suspend)
    core.acquire()
    core.acquire()
    core.do(core.state.resume)
    assert core.count("check") == 2


def test_waiter_of_suspended_pool_times_out_with_reason() -> None:
    core = harness()
    core.ask(core.state.suspend)
    caller = core.acquire(1.0)
    core.advance(1.0)
    assert isinstance(caller.error, PoolTimeout)
    assert "suspended" in str(caller.error)


def test_suspended_pool_keeps_released_one_without_grant() -> None:
    core = harness(limit=1)
    held = core.lease()
    caller = core.acquire()
    core.ask(core.state.suspend)
    core.release(held)
    assert caller.slot is None
    assert core.free() == [held]
    core.do(core.state.resume)
    assert caller.slot is held


def test_suspended_pool_that_was_down_retries_on_resume() -> None:
    """Callers wait until then."""
    core = down()
    core.ask(core.state.suspend)
    assert core.state.next_deadline() == NEVER
    core.advance(9)
    assert core.count("create") == 0
    caller = core.acquire()
    assert caller.error is None
    core.do(core.state.resume)
    assert core.state.backoff.failures == 0
    assert core.created() is caller.slot


@pytest.mark.parametrize("cause", [OSError("down"), TypeError("mistake")])
def test_create_failure_while_suspended_fails_no_caller(cause: Exception) -> None:
    core = harness()
    caller = core.acquire()
    core.ask(core.state.suspend)
    core.failed(cause)
    core.advance(9)
    assert core.waiting() == [caller]
    assert core.count("create") == 0
    assert core.state.inventory.needs_lock
    core.do(core.state.resume)
    assert core.created() is caller.slot


def test_listen_while_suspended_serves_no_caller() -> None:
    core = harness()
    core.have_free(1)
    core.ask(core.state.suspend)
    caller = core.acquire()
    core.listen("on_discard")
    assert core.waiting() == [caller]
    assert core.state.inventory.take(core.now) is None
    core.do(core.state.resume)
    assert caller.slot is not None
    core.release(caller.slot)
    assert core.state.inventory.take(core.now) is caller.slot


def test_only_an_open_pool_is_suspended_and_resumed() -> None:
    core = harness()
    core.do(core.state.resume)
    assert core.status == "open"
    core.ask(core.state.suspend)
    core.ask(core.state.suspend)
    assert core.status == "suspended"
    core.close()
    with pytest.raises(PoolClosed):
        core.ask(core.state.suspend)
    with pytest.raises(PoolClosed):
        core.do(core.state.resume)
    assert core.status == "closing"


def test_to_resume_what_is_not_suspended_forgets_no_failure() -> None:
    core = down()
    core.do(core.state.resume)
    assert core.state.backoff.failures == 3
    assert core.count("create") == 0


def test_what_is_borrowed_is_out_of_use_and_comes_back() -> None:
    core = harness(limit=2)
    first, second = core.have_free(2)
    assert core.ask(core.state.reserve, second)
    assert not core.ask(core.state.reserve, second)
    assert core.acquire().slot is first
    caller = core.acquire()
    assert caller.slot is None
    core.do(core.state.unreserve, second, keep=True)
    assert caller.slot is second


def test_unreserve_cleans_what_is_not_kept_or_had_to_go() -> None:
    core = harness(limit=2)
    first, second = core.have_free(2)
    core.ask(core.state.reserve, first)
    core.do(core.state.unreserve, first, keep=False)
    assert core.discards() == {"retain": 1}
    core.ask(core.state.reserve, second)
    core.do(core.state.expire)
    core.do(core.state.unreserve, second, keep=True)
    assert core.discards() == {"retain": 1, "expire": 1}
    assert core.count("clean") == 2


def test_what_was_borrowed_and_given_up_is_not_brought_back() -> None:
    core = harness()
    slot = core.have_free(1)[0]
    core.ask(core.state.reserve, slot)
    core.do(core.state.abandon)
    assert core.discards() == {"check": 1}
    core.do(core.state.unreserve, slot, keep=True)
    assert not core.free()
    assert core.count("clean") == 1


def test_probe_goes_on_when_reserved_slot_comes_back() -> None:
    core = harness(limit=1, has_check=True)
    slot = core.have_free(1)[0]
    core.now += 9
    core.ask(core.state.reserve, slot)
    watcher = probe(core)[1]
    core.do(core.state.unreserve, slot, keep=True)
    assert watcher.woken == 0
    assert core.asked[Effect.CHECK] == [slot]
    core.checked()
    assert watcher.woken == 1


def test_quiet_slot_is_checked_as_reserved_one_comes_back() -> None:
    core = harness(limit=2, has_check=True, keepalive=3.0)
    first, second = core.have_free(2)
    core.ask(core.state.reserve, first)
    core.advance(3)
    assert core.count("check") == 0
    core.do(core.state.unreserve, first, keep=True)
    assert core.count("check") == 1
    assert {core.checked(), core.checked()} == {first, second}


def test_lease_listener_hears_each_lease_through_the_lock() -> None:
    core = harness(limit=1)
    slot = core.have_free(1)[0]
    for event in ("on_acquire", "on_release"):
        core.listen(event)
        assert core.state.inventory.needs_lock
        core.do(core.state.listen, frozenset())
        assert not core.state.inventory.needs_lock
    core.listen("on_acquire", "on_release")
    core.notified()
    assert core.do(core.state.try_acquire) is slot
    waits = core.acquire()
    core.now += 2
    core.release(slot)
    assert waits.slot is slot
    core.now += 1
    core.release(slot)
    assert core.notified() == [("on_acquire", 0.0), ("on_release", 2.0), ("on_acquire", 2.0), ("on_release", 1.0)]


def test_other_listeners_leave_the_fast_path_open() -> None:
    core = harness().listen("on_discard")
    core.have_free(1)
    assert not core.state.inventory.needs_lock
    assert core.notified() == []


def test_listener_hears_refusals_timeouts_and_discards() -> None:
    core = harness(limit=1, max_waiting=0).listen()
    slot = core.lease()
    for _ in range(2):
        with pytest.raises(TooManyWaiting):
            core.acquire()
    core.do(core.state.resize, 2)
    core.acquire(2.0)
    core.advance(2.0)
    assert core.notified() == [
        ("on_create", 0.0),
        ("on_acquire", 0.0),
        ("on_refuse", "full"),
        ("on_refuse", "full"),
        ("on_timeout", 2.0),
    ]
    with pytest.raises(PoolTimeout):
        core.acquire(0)
    core.state.inventory.end(slot, core.now)
    core.do(core.state.discard, slot)
    assert core.notified() == [("on_timeout", 0.0), ("on_release", 2.0), ("on_discard", "discard")]


def test_leaked_lease_is_reclaimed_and_resource_destroyed() -> None:
    core = harness(limit=2)
    other, slot = core.leases(2)
    slot.lease = lost = weakref.ref(core)
    slot.holder = "GET /items"
    caller = core.acquire()
    core.now += 3
    hold = core.do(core.state.reclaim_leak, lost)
    assert hold is not None
    assert (hold.holder, hold.age) == ("GET /items", 3.0)
    assert core.asked[Effect.CLEAN] == [slot]
    assert core.discards() == {"leak": 1}
    assert core.created() is caller.slot
    assert core.do(core.state.reclaim_leak, lost) is None
    core.release(other)
