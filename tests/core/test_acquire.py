"""Decisions of acquire: a lease at once, a place in the queue, or a refusal; and of callers that leave the queue."""

import pytest

from connectionpools_fastapi import (
    PoolClosed,
    PoolTimeout,
    TooManyWaiting,
    WouldDeadlock,
)
from connectionpools_fastapi._core import snapshot
from connectionpools_fastapi._core.effects import Effect
from tests.state_harness import Named, StateHarness, harness

NEVER = float("inf")


# --- acquire ------------------------------------------------------------------------------------


def test_new_pool_admits_no_caller() -> None:
    core = StateHarness()
    with pytest.raises(PoolClosed, match="never opened"):
        core.acquire()
    with pytest.raises(PoolClosed):
        core.do(core.state.try_acquire)
    assert core.refusals() == {"closed": 2}
    assert core.state.inventory.take(core.now) is None


def test_caller_with_room_gets_what_is_created_for_it() -> None:
    core = harness(limit=2)
    caller = core.acquire()
    assert (caller.slot, core.count("create"), core.waiting()) == (None, 1, [caller])
    core.now += 3
    slot = core.created()
    assert (caller.slot, caller.woken, core.state.counters.wait.sum) == (slot, 1, 3.0)
    assert not core.waiting()
    assert slot.leases == 1
    assert slot.since == core.now
    stats = snapshot.stats(core.state, core.now)
    assert (stats.wait.sum, stats.create.sum) == (3.0, 3.0)


def test_creations_stay_within_limit_and_max_creating() -> None:
    core = harness(limit=3, max_creating=2)
    for _ in range(5):
        core.acquire()
    assert core.count("create") == 2
    core.created()
    assert core.count("create") == 2
    core.created()
    assert core.count("create") == 1
    core.created()
    assert core.count("create") == 0
    assert len(core.waiting()) == 2


def test_each_waiter_asks_for_one_creation_and_no_more() -> None:
    core = harness(limit=5)
    core.acquire()
    core.acquire()
    assert core.count("create") == 2


def test_free_resource_is_leased_with_or_without_lock() -> None:
    core = harness()
    slot = core.have_free(1)[0]
    core.now += 1
    assert core.acquire().slot is slot
    assert slot.since == core.now
    core.release(slot)
    core.now += 1
    assert core.do(core.state.inventory.take) is slot
    assert (slot.leases, slot.since, core.state.inventory.taken) == (3, core.now, {slot.key: slot})
    core.release(slot)
    assert core.do(core.state.try_acquire) is slot
    assert core.count("create") == 0


def test_where_all_are_leased_none_is_taken() -> None:
    core = harness(limit=1)
    core.lease()
    assert not core.state.inventory.needs_lock
    assert core.do(core.state.inventory.take) is None


def test_reuse_is_lifo_unless_fifo_is_set() -> None:
    core = harness(limit=3)
    first, second, third = core.have_free(3)
    assert [core.lease(), core.do(core.state.inventory.take), core.lease()] == [third, second, first]
    core = harness(limit=3, reuse="fifo")
    first, second, third = core.have_free(3)
    assert [core.lease(), core.do(core.state.inventory.take), core.lease()] == [first, second, third]


def test_no_newcomer_overtakes_a_waiter() -> None:
    core = harness(limit=2, has_check=True, check_after=1.0)
    held, other = core.leases(2)
    first, second = core.acquire(), core.acquire()
    assert core.do(core.state.try_acquire) is None
    assert core.do(core.state.inventory.take) is None
    core.release(held)
    assert (first.slot, first.woken, second.woken) == (held, 1, 0)
    assert core.waiting() == [second]
    core.release(other)
    assert second.slot is other


def test_slot_put_back_by_another_thread_is_found() -> None:
    """The other thread took it and put it back during `acquire`; the next caller finds it."""
    core = harness(limit=1, has_check=True, check_after=1.0)
    slot = core.have_free(1)[0]
    core.now += 2
    core.is_trusted = True  # for a moment it is nowhere
    core.state.inventory.free.pop()  # by `take`, in another thread
    first = core.acquire()
    core.state.inventory.free.append(slot)  # it was not fresh
    core.is_trusted = False
    assert core.do(core.state.try_acquire) is None
    assert core.asked[Effect.CHECK] == [slot]
    core.checked()
    assert first.slot is slot


def test_release_hands_resource_straight_to_waiter() -> None:
    """The lock is needed until the last waiter is served."""
    core = harness(limit=1)
    held = core.lease()
    caller, other = core.acquire(), core.acquire()
    assert core.state.inventory.needs_lock
    core.now += 2
    core.release(held)
    assert (caller.slot, core.state.counters.wait.sum) == (held, 2.0)
    assert core.state.inventory.needs_lock
    core.release(held)
    assert other.slot is held
    assert not core.state.inventory.needs_lock


def test_timeout_of_0_or_less_never_waits() -> None:
    core = harness(limit=1)
    held = core.lease()
    for timeout in (0, -1.0):
        with pytest.raises(PoolTimeout, match="within 0 s"):
            core.acquire(timeout)
    assert core.state.counters.timeouts == 2
    assert not core.waiting()
    core.release(held)
    assert core.acquire(0).slot is held


def test_timeout_of_0_readies_one_for_the_next_caller() -> None:
    core = harness(limit=2)
    with pytest.raises(PoolTimeout):
        core.acquire(0)
    assert core.count("create") == 1
    with pytest.raises(PoolTimeout):
        core.acquire(0)
    assert core.count("create") == 1, "one is under way"


def test_try_acquire_creates_one_if_room_and_none_pending() -> None:
    core = harness(limit=1)
    assert core.do(core.state.try_acquire) is None
    assert core.count("create") == 1
    assert core.do(core.state.try_acquire) is None
    assert core.count("create") == 1
    slot = core.created()
    assert core.do(core.state.try_acquire) is slot
    assert core.do(core.state.try_acquire) is None
    assert core.count("create") == 0, "there is no room"


def test_to_try_has_what_is_not_fresh_checked_one_at_a_time() -> None:
    core = harness(limit=2, has_check=True, check_after=1.0)
    cold, warm = core.have_free(2)
    core.now += 2
    assert core.do(core.state.try_acquire) is None
    assert core.do(core.state.try_acquire) is None
    assert core.asked[Effect.CHECK] == [warm]
    assert core.free() == [cold]
    core.checked()
    assert core.do(core.state.try_acquire) is warm


def test_to_try_does_not_create_while_create_fails() -> None:
    core = harness(limit=2)
    held = core.lease()
    core.acquire()
    core.failed()
    assert core.do(core.state.try_acquire) is None
    assert core.count("create") == 1, "the one try again"
    core.release(held)


def test_waiter_times_out_at_its_deadline_and_leaves_queue() -> None:
    core = harness(limit=1)
    core.lease()
    caller, other = core.acquire(2.0), core.acquire()
    assert core.state.next_deadline() == core.now + 2
    core.advance(1.9)
    assert caller.error is None
    core.advance(0.1)
    assert isinstance(caller.error, PoolTimeout)
    assert "within 2 s" in str(caller.error)
    assert core.waiting() == [other]
    assert core.state.counters.timeouts == 1
    assert core.state.next_deadline() == NEVER


def test_granted_or_failed_caller_is_not_timed_out() -> None:
    core = harness(limit=1)
    held = core.lease()
    caller = core.acquire(2.0)
    core.release(held)
    core.do(core.state.time_out, caller)
    assert caller.error is None
    assert core.state.counters.timeouts == 0


def test_timeout_of_last_waiter_reopens_the_fast_path() -> None:
    core = harness(limit=1)
    core.lease()
    core.acquire(1.0)
    core.advance(1.0)
    assert not core.state.inventory.needs_lock


def test_max_waiting_bounds_waiters_without_room() -> None:
    core = harness(limit=2, max_waiting=1)
    first, second, third = core.acquire(), core.acquire(), core.acquire()
    with pytest.raises(TooManyWaiting, match="max_waiting=1"):
        core.acquire()
    assert core.refusals() == {"full": 1}
    assert core.waiting() == [first, second, third]
    core.created()
    with pytest.raises(TooManyWaiting):
        core.acquire()
    core = harness(limit=1, max_waiting=0)
    core.lease()
    with pytest.raises(TooManyWaiting):
        core.acquire()


def test_what_is_being_changed_is_no_room() -> None:
    core = harness(limit=1, max_waiting=1, has_change=True)
    core.release(core.lease())
    assert core.count("change") == 1
    core.acquire()
    with pytest.raises(TooManyWaiting):
        core.acquire()


def test_request_holding_a_resource_waits_for_no_other() -> None:
    core = harness(limit=2)
    request = Named("GET /")
    core.lease(owner=request)
    other = core.lease(owner=Named("another"))
    with pytest.raises(WouldDeadlock, match="this request holds"):
        core.acquire(request=request)
    assert core.refusals() == {"deadlock": 1}
    assert not core.waiting()
    core.acquire(request=Named("a third"))
    core.release(other)


def test_acquire_that_closes_a_circle_is_refused() -> None:
    """In a circle each holder waits for a resource that another one holds."""
    core = harness(limit=2)
    one, other = Named("one"), Named("other")
    core.lease(owner=one)
    core.lease(owner=other)
    core.acquire(owner=one)
    with pytest.raises(WouldDeadlock, match="none would ever go on"):
        core.acquire(owner=other)
    assert core.refusals() == {"deadlock": 1}
    core = harness(limit=1)
    core.lease(owner=one)
    with pytest.raises(WouldDeadlock):
        core.acquire(owner=one)


def test_no_deadlock_with_unknown_or_not_waiting_holder() -> None:
    one, other = Named("one"), Named("other")
    core = harness(limit=2)
    core.lease(owner=one)
    core.lease(owner=other)
    core.acquire(owner=one)
    core.acquire(owner=Named("a third"))
    core = harness(limit=2)
    core.lease(owner=one)
    core.lease()
    core.acquire(owner=one)


def test_no_deadlock_with_room_or_a_resource_on_its_way() -> None:
    one = Named("one")
    core = harness(limit=2)
    core.lease(owner=one)
    caller = core.acquire(owner=one)
    assert core.count("create") == 1
    core.acquire(owner=one)
    core.created()
    assert caller.slot is not None
    core = harness(limit=2, max_creating=1, has_change=True)
    core.lease(owner=one)
    changing = core.lease(owner=one)
    core.release(changing)
    core.acquire(owner=one)  # what is being changed comes back


def test_no_deadlock_while_a_resource_is_checked() -> None:
    one = Named("one")
    core = harness(limit=2, has_check=True, check_after=1.0)
    first, second = core.leases(2)
    core.release(first)
    core.owned(second, one)
    core.now += 2
    caller = core.acquire(owner=one)
    assert core.asked[Effect.CHECK] == [first]
    core.acquire(owner=one)
    core.checked()
    assert caller.slot is first


def test_no_deadlock_while_failed_create_has_a_retry_due() -> None:
    one = Named("one")
    core = harness(limit=2)
    core.lease(owner=one)
    other = core.acquire()
    core.fail_all()
    core.do(core.state.cancel, other)
    caller = core.acquire(owner=one)
    assert core.count("create") == 0
    core.advance(1)
    assert core.created() is caller.slot


def test_no_deadlock_in_empty_pool_that_cannot_create() -> None:
    core = harness(limit=1)
    core.ask(core.state.suspend)
    core.acquire(owner=Named("one"))


def test_a_closed_pool_refuses_before_anything_else() -> None:
    core = harness()
    core.close()
    core.end_close()
    with pytest.raises(PoolClosed):
        core.acquire(0)
    assert core.refusals() == {"closed": 1}


# --- cancel ---------------------------------------------------------------------------------------


def test_cancelled_waiter_leaves_the_queue() -> None:
    """The resource that is being created for it becomes free."""
    core = harness().listen("on_withdraw")
    caller = core.acquire()
    core.now += 2
    core.do(core.state.cancel, caller)
    assert not core.waiting()
    assert core.notified() == [("on_withdraw", 2.0)]
    assert core.state.counters.withdrawals == 1
    assert not core.state.inventory.needs_lock
    slot = core.created()
    assert core.free() == [slot]


def test_slot_of_a_cancelled_caller_goes_to_the_next() -> None:
    core = harness(limit=1)
    held = core.lease()
    first, second = core.acquire(), core.acquire()
    core.release(held)
    core.do(core.state.cancel, first)
    assert first.slot is None
    assert second.slot is held
    assert core.state.counters.withdrawals == 1
    core.do(core.state.cancel, second)
    assert core.free() == [held]


def test_failed_caller_cannot_be_cancelled() -> None:
    core = harness(limit=1).listen()
    core.lease()
    caller = core.acquire(1.0)
    core.advance(1.0)
    core.notified()
    core.do(core.state.cancel, caller)
    assert core.state.counters.withdrawals == 0
    assert core.notified() == []


def test_slot_of_a_cancelled_caller_stays_fresh() -> None:
    core = harness(limit=1, has_check=True, check_after=1.0)
    held = core.lease()
    caller = core.acquire()
    core.release(held)
    core.do(core.state.cancel, caller)
    assert core.acquire().slot is held


def test_cancelled_grant_is_checked_while_create_fails() -> None:
    core = harness(limit=2, has_check=True, check_after=1.0)
    slot = core.lease()
    caller = core.acquire()
    core.failed()
    core.release(slot)
    core.checked()
    assert caller.slot is slot
    core.do(core.state.cancel, caller)
    assert core.acquire().slot is None
    assert core.count("check") == 1


def test_grant_withdrawn_after_max_lifetime_is_retired() -> None:
    core = harness(limit=1, max_lifetime=3.0)
    slot = core.lease()
    caller = core.acquire()
    core.now += 2.9
    core.state.inventory.end(slot, core.now)
    core.do(core.state.release, slot)
    assert caller.slot is slot
    core.advance(0.2)
    core.do(core.state.cancel, caller)
    assert core.asked[Effect.CLEAN] == [slot]
    assert core.discards() == {"max_lifetime": 1}


def test_cancelled_grant_stays_fresh_without_a_check() -> None:
    """This holds while create fails, too."""
    core = harness(limit=2)
    slot = core.lease()
    caller = core.acquire()
    core.failed()
    core.release(slot)
    assert caller.slot is slot
    core.do(core.state.cancel, caller)
    assert core.acquire().slot is slot


def test_client_of_a_caller_that_was_refused_leaves_unnoticed() -> None:
    core = harness(limit=1)
    core.lease()
    caller = core.acquire(timeout=1)
    core.advance(1)
    refused = caller.error
    core.do(core.state.client_gone, caller, RuntimeError("gone"))
    assert caller.error is refused
    assert core.state.counters.withdrawals == 0
