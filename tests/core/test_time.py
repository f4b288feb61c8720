"""Decisions that time makes due: timeouts, ages, checks of free resources, leases that last too long."""

from connectionpools_fastapi._core.effects import Effect
from connectionpools_fastapi._core.wait_queue import WATCH_AFTER, WATCH_WITH_OTHERS_AFTER
from tests.state_harness import Patient, harness
from tests.support import Caller

NEVER = float("inf")


# --- time ---------------------------------------------------------------------------------------


def test_what_is_too_old_is_cleaned_when_its_time_comes() -> None:
    core = harness(limit=2, min_free=1, max_lifetime=10.0)
    slot = core.created()
    assert core.state.next_deadline() == core.now + 10
    core.advance(9.9)
    assert core.free() == [slot]
    core.advance(0.1)
    assert core.asked[Effect.CLEAN] == [slot]
    assert core.discards() == {"max_lifetime": 1}
    assert core.count("create") == 1, "min_free is kept"


def test_resource_worn_out_in_use_is_cleaned_on_release() -> None:
    """It grew too old or was used up."""
    core = harness(max_lifetime=10.0)
    slot = core.lease()
    core.advance(10)
    assert core.count("clean") == 0
    core.release(slot)
    assert core.discards() == {"max_lifetime": 1}
    core = harness(max_uses=2)
    slot = core.lease()
    core.release(slot)
    assert core.lease() is slot
    core.release(slot)
    assert core.discards() == {"max_uses": 1}


def test_nothing_is_fresh_beyond_its_lifetime() -> None:
    core = harness(max_lifetime=10.0)
    slot = core.lease()
    assert slot.fresh_until == core.now + 10
    core.now += 4
    core.release(slot)
    assert slot.fresh_until == core.now + 6
    core.now += 6.1
    assert core.do(core.state.inventory.take) is None
    core = harness(has_check=True, check_after=4.0, max_lifetime=10.0)
    slot = core.lease()
    core.release(slot)
    assert slot.fresh_until == core.now + 4
    core.now += 9
    assert core.acquire().slot is None
    core.checked()
    assert slot.fresh_until == slot.retire_at == core.now + 1


def test_max_idle_cleans_unused_resources_but_min_free() -> None:
    core = harness(limit=3, min_free=1, max_idle=5.0)
    core.create_all()
    slots = core.leases(2)
    core.create_all()
    for slot in slots:
        core.release(slot)
    core.advance(4.9)
    assert len(core.free()) == 3
    assert core.do(core.state.inventory.take) is slots[1]
    core.release(slots[1])
    core.advance(0.1)
    assert len(core.free()) == 1
    assert core.discards() == {"max_idle": 2}
    assert slots[1] in core.free()
    assert core.state.next_deadline() == core.now + 4.9, "it is looked at again"


def test_too_old_and_idle_resource_goes_as_too_old() -> None:
    core = harness(max_lifetime=5.0, max_idle=5.0)
    core.have_free(1)
    core.advance(5)
    assert core.discards() == {"max_lifetime": 1}


def test_idle_resource_stays_while_min_free_needs_it() -> None:
    core = harness(limit=2, min_free=1, max_idle=5.0)
    slot = core.created()
    core.advance(5)
    assert core.free() == [slot]
    assert core.state.next_deadline() == core.now + 5
    core.advance(5)
    assert core.free() == [slot]
    assert core.discards() == {}


def test_quiet_slots_are_checked_one_by_one_while_free() -> None:
    core = harness(limit=3, has_check=True, check_after=1.0, keepalive=5.0)
    *free, held = core.have_free(3)
    assert core.lease() is held
    core.advance(4.9)
    assert core.count("check") == 0
    core.advance(0.1)
    assert core.count("check") == 1
    assert len(core.free()) == 1
    first = core.checked()
    second = core.checked()
    assert {first, second} == set(free)
    assert core.count("check") == 0
    assert core.state.next_deadline() == core.now + 5
    assert first.checked_at == second.checked_at == core.now


def test_slot_used_since_found_quiet_is_not_checked() -> None:
    core = harness(limit=2, has_check=True, check_after=1.0, keepalive=5.0)
    core.have_free(2)
    core.advance(5)
    assert core.count("check") == 1
    (other,) = core.free()
    other.since = core.now
    core.checked()
    assert core.count("check") == 0
    assert other in core.free()


def test_slot_leased_since_found_quiet_is_not_checked() -> None:
    core = harness(limit=3, has_check=True, check_after=10.0, keepalive=5.0)
    core.have_free(3)
    core.advance(5)
    leased = core.lease()
    leased.since = core.now - 5
    core.checked()
    assert core.count("check") == 1
    core.checked()
    assert core.count("check") == 0
    assert core.state.inventory.taken == {leased.key: leased}


def test_failed_check_of_quiet_slot_checks_the_next() -> None:
    core = harness(limit=2, has_check=True, check_after=1.0, keepalive=5.0)
    slots = core.have_free(2)
    core.advance(5)
    core.checked(healthy=False)
    core.checked()
    assert len(core.free()) == 1
    assert core.free()[0] in slots


def test_client_gone_as_it_is_granted_keeps_the_grant() -> None:
    core = harness(limit=1)
    held = core.lease()
    caller = core.acquire()
    core.release(held)
    core.do(core.state.client_gone, caller, OSError())
    assert (caller.slot, caller.error, caller.woken) == (held, None, 1)
    assert core.state.counters.withdrawals == 0


def test_client_of_waiter_is_watched_once_in_time() -> None:
    core = harness(limit=1)
    core.lease()
    caller = Caller()
    caller.client = Patient()
    core.do(core.state.acquire, caller, None)
    core.acquire()  # has no client
    assert core.state.due == core.now + WATCH_AFTER
    for _ in range(2):
        core.advance(WATCH_AFTER)
        assert core.asked[Effect.WATCH] == [[caller]]


def test_clients_that_are_due_soon_are_watched_together() -> None:
    core = harness(limit=1)
    core.lease()
    callers = [Caller() for _ in range(3)]
    for caller, later in zip(callers, (0, 0.9 * (WATCH_AFTER - WATCH_WITH_OTHERS_AFTER), 0.01), strict=True):
        caller.client = Patient()
        core.advance(later)
        core.do(core.state.acquire, caller, None)
    core.advance(WATCH_AFTER - (core.now - callers[0].asked_at))
    assert core.asked[Effect.WATCH] == [callers[:2]]
    assert core.state.due == callers[2].asked_at + WATCH_AFTER


def test_client_gone_leaves_the_queue_and_is_told() -> None:
    core = harness(limit=1).listen("on_withdraw")
    core.lease()
    caller, other = core.acquire(), core.acquire()
    core.now += 2
    gone = OSError()
    core.do(core.state.client_gone, caller, gone)
    assert (caller.error, caller.woken, core.waiting()) == (gone, 1, [other])
    assert (core.notified(), core.state.counters.withdrawals) == ([("on_withdraw", 2.0)], 1)


def test_lease_after_a_wait_is_watched_for_max_hold() -> None:
    """This holds also if an earlier look found nothing leased."""
    core = harness(limit=1, max_hold=5.0)
    caller = core.acquire()
    core.advance(6)
    core.created()
    assert caller.slot is not None
    core.advance(5)
    assert core.count("warn") == 1


def test_try_acquire_replaces_a_resource_too_old() -> None:
    core = harness(limit=1, min_free=1, max_lifetime=5.0)
    core.created()
    core.now += 6
    assert core.do(core.state.try_acquire) is None
    assert (core.count("clean"), core.count("create")) == (1, 1)


def test_several_things_may_be_due_at_once() -> None:
    core = harness(limit=3, max_lifetime=5.0, max_hold=5.0)
    old, *_ = core.leases(3)
    core.release(old)
    held = core.lease()
    assert held is old
    callers = [core.acquire(3.0), core.acquire(2.0), core.acquire(5.0), core.acquire(6.0)]
    assert core.state.next_deadline() == core.now + 2
    core.do(core.state.resize, 4)
    creation = core.asked[Effect.CREATE].pop()
    core.do(core.state.create_failed, creation, OSError())
    core.failed()
    assert core.state.next_deadline() == core.now + 0.1
    core.advance(5)
    assert [caller.error is not None for caller in callers] == [True, True, True, False]
    assert core.count("warn") == 3
    assert core.count("create") == 1
    assert core.state.next_deadline() == core.now + 1


# --- leases that are held for too long -----------------------------------------------------------------------


def test_long_holder_is_warned_of_once_per_lease() -> None:
    core = harness(limit=2, max_hold=5.0)
    slot = core.lease()
    slot.holder = "GET /items"
    assert core.state.next_deadline() == core.now + 5
    core.advance(4.9)
    assert core.count("warn") == 0
    core.advance(0.1)
    (hold,) = core.asked[Effect.WARN]
    assert (hold.holder, hold.age) == ("GET /items", 5.0)
    assert not core.state.inventory.needs_lock
    assert core.state.next_deadline() == core.now + 5
    core.advance(5)
    assert core.count("warn") == 1
    core.release(slot)
    assert core.do(core.state.try_acquire) is slot
    core.advance(5)
    assert core.count("warn") == 2


def test_next_hold_check_is_when_next_lease_gets_too_long() -> None:
    core = harness(limit=3, max_hold=5.0)
    core.lease()
    core.now += 2
    core.lease()
    core.now += 1
    core.lease()
    core.advance(2)
    assert core.count("warn") == 1
    assert core.state.next_deadline() == core.now + 2
    core.advance(2)
    assert core.count("warn") == 2
    assert core.state.next_deadline() == core.now + 1


def test_hold_checks_pause_while_nothing_is_leased() -> None:
    """The next caller takes the lock, which resumes them."""
    core = harness(limit=1, max_hold=5.0)
    slot = core.have_free(1)[0]
    assert not core.state.inventory.needs_lock
    core.advance(5)
    assert core.count("warn") == 0
    assert core.state.next_deadline() == NEVER
    assert core.state.inventory.needs_lock
    assert core.do(core.state.inventory.take) is None
    assert core.do(core.state.try_acquire) is slot
    assert core.state.next_deadline() == core.now + 5
    assert not core.state.inventory.needs_lock


def test_waiter_schedules_the_next_hold_check() -> None:
    core = harness(limit=1, max_hold=5.0)
    core.acquire()
    assert core.state.next_deadline() == core.now + 5
    core.now += 3
    core.created()
    assert core.state.next_deadline() == core.now + 2
    core.advance(2)
    assert core.count("warn") == 0
    assert core.state.next_deadline() == core.now + 3
    core.advance(3)
    assert core.count("warn") == 1


def test_without_max_hold_no_check_is_scheduled() -> None:
    core = harness()
    core.lease()
    assert core.state.next_deadline() == NEVER
    core.advance(1e6)
    assert core.count("warn") == 0
    assert not core.state.inventory.needs_lock
