"""Each decision alone: what the state machine answers, and what it asks the pool to do for it.

No pool, no tasks and no clock: callers only remember that they were woken, the test
answers the hooks, and time is a number. What holds after every decision is looked at too.
"""

import weakref
from typing import Any

import pytest

from connectionpools_fastapi import (
    PoolClosed,
    PoolConfigError,
    PoolTimeout,
    ResourceUnavailable,
    TooManyWaiting,
    WouldDeadlock,
)
from connectionpools_fastapi import _report as report
from connectionpools_fastapi._generations import LOST
from connectionpools_fastapi._ledger import Action
from connectionpools_fastapi._slot import Slot
from connectionpools_fastapi.errors import NotLeased
from tests.desk import Desk, Named, desk, down
from tests.support import Caller, Resource

NEVER = float("inf")


# --- acquire ------------------------------------------------------------------------------------


def test_a_new_pool_lets_nobody_in() -> None:
    at = Desk()
    with pytest.raises(PoolClosed, match="never opened"):
        at.come()
    with pytest.raises(PoolClosed):
        at.do(at.state.try_acquire)
    assert at.refusals() == {"closed": 2}
    assert at.state.take(at.now) is None


def test_a_caller_for_whom_there_is_room_gets_what_is_created_for_it() -> None:
    at = desk(limit=2)
    caller = at.come()
    assert (caller.slot, at.count("create"), at.waiting()) == (None, 1, [caller])
    at.now += 3
    slot = at.created()
    assert (caller.slot, caller.woken, at.state.totals.wait.sum) == (slot, 1, 3.0)
    assert not at.waiting()
    assert slot.leases == 1
    assert slot.since == at.now
    stats = report.stats(at.state, at.now)
    assert (stats.wait.sum, stats.create.sum) == (3.0, 3.0)


def test_at_most_the_limit_is_created_and_at_most_max_creating_at_once() -> None:
    at = desk(limit=3, max_creating=2)
    for _ in range(5):
        at.come()
    assert at.count("create") == 2
    at.created()
    assert at.count("create") == 2
    at.created()
    assert at.count("create") == 1
    at.created()
    assert at.count("create") == 0
    assert len(at.waiting()) == 2


def test_one_creation_is_asked_for_each_who_waits_and_no_more() -> None:
    at = desk(limit=5)
    at.come()
    at.come()
    assert at.count("create") == 2


def test_a_free_resource_is_leased_at_once_with_or_without_the_lock() -> None:
    at = desk()
    slot = at.have_free(1)[0]
    at.now += 1
    assert at.come().slot is slot
    assert slot.since == at.now
    at.give_back(slot)
    at.now += 1
    assert at.do(at.state.take) is slot
    assert (slot.leases, slot.since, at.state.taken) == (3, at.now, {slot.key: slot})
    at.give_back(slot)
    assert at.do(at.state.try_acquire) is slot
    assert at.count("create") == 0


def test_where_all_are_leased_none_is_taken() -> None:
    at = desk(limit=1)
    at.lease()
    assert not at.state.gate
    assert at.do(at.state.take) is None


def test_reuse_is_last_in_first_out_unless_it_is_asked_for_otherwise() -> None:
    at = desk(limit=3)
    first, second, third = at.have_free(3)
    assert [at.lease(), at.do(at.state.take), at.lease()] == [third, second, first]
    at = desk(limit=3, reuse="fifo")
    first, second, third = at.have_free(3)
    assert [at.lease(), at.do(at.state.take), at.lease()] == [first, second, third]


def test_nobody_overtakes_who_waits() -> None:
    at = desk(limit=2, has_check=True, check_after=1.0)
    held, other = at.leases(2)
    first, second = at.come(), at.come()
    assert at.do(at.state.try_acquire) is None
    assert at.do(at.state.take) is None
    at.give_back(held)
    assert (first.slot, first.woken, second.woken) == (held, 1, 0)
    assert at.waiting() == [second]
    at.give_back(other)
    assert second.slot is other


def test_what_another_thread_took_and_put_back_meanwhile_is_found_by_the_next_caller() -> None:
    at = desk(limit=1, has_check=True, check_after=1.0)
    slot = at.have_free(1)[0]
    at.now += 2
    at.is_trusted = True  # for a moment it is nowhere
    at.state.free.pop()  # by `take`, in another thread
    first = at.come()
    at.state.free.append(slot)  # it was not fresh
    at.is_trusted = False
    assert at.do(at.state.try_acquire) is None
    assert at.asked[Action.CHECK] == [slot]
    at.checked()
    assert first.slot is slot


def test_what_comes_back_is_handed_straight_to_who_waits_and_the_last_one_lets_the_gate_down() -> None:
    at = desk(limit=1)
    held = at.lease()
    caller, other = at.come(), at.come()
    assert at.state.gate
    at.now += 2
    at.give_back(held)
    assert (caller.slot, at.state.totals.wait.sum) == (held, 2.0)
    assert at.state.gate
    at.give_back(held)
    assert other.slot is held
    assert not at.state.gate


def test_a_timeout_of_0_never_waits_and_a_negative_one_neither() -> None:
    at = desk(limit=1)
    held = at.lease()
    for timeout in (0, -1.0):
        with pytest.raises(PoolTimeout, match="within 0 s"):
            at.come(timeout)
    assert at.state.totals.timeouts == 2
    assert not at.waiting()
    at.give_back(held)
    assert at.come(0).slot is held


def test_a_timeout_of_0_still_has_something_made_ready_for_the_next() -> None:
    at = desk(limit=2)
    with pytest.raises(PoolTimeout):
        at.come(0)
    assert at.count("create") == 1
    with pytest.raises(PoolTimeout):
        at.come(0)
    assert at.count("create") == 1, "one is under way"


def test_to_try_readies_one_where_there_is_room_and_none_is_on_its_way() -> None:
    at = desk(limit=1)
    assert at.do(at.state.try_acquire) is None
    assert at.count("create") == 1
    assert at.do(at.state.try_acquire) is None
    assert at.count("create") == 1
    slot = at.created()
    assert at.do(at.state.try_acquire) is slot
    assert at.do(at.state.try_acquire) is None
    assert at.count("create") == 0, "there is no room"


def test_to_try_has_what_is_not_fresh_checked_one_at_a_time() -> None:
    at = desk(limit=2, has_check=True, check_after=1.0)
    cold, warm = at.have_free(2)
    at.now += 2
    assert at.do(at.state.try_acquire) is None
    assert at.do(at.state.try_acquire) is None
    assert at.asked[Action.CHECK] == [warm]
    assert at.free() == [cold]
    at.checked()
    assert at.do(at.state.try_acquire) is warm


def test_to_try_does_not_create_while_create_fails() -> None:
    at = desk(limit=2)
    held = at.lease()
    at.come()
    at.failed()
    assert at.do(at.state.try_acquire) is None
    assert at.count("create") == 0
    at.give_back(held)


def test_who_waits_is_timed_out_at_its_deadline_and_leaves_the_queue() -> None:
    at = desk(limit=1)
    at.lease()
    caller, other = at.come(2.0), at.come()
    assert at.state.next_deadline() == at.now + 2
    at.later(1.9)
    assert caller.error is None
    at.later(0.1)
    assert isinstance(caller.error, PoolTimeout)
    assert "within 2 s" in str(caller.error)
    assert at.waiting() == [other]
    assert at.state.totals.timeouts == 1
    assert at.state.next_deadline() == NEVER


def test_who_was_granted_or_failed_is_not_timed_out() -> None:
    at = desk(limit=1)
    held = at.lease()
    caller = at.come(2.0)
    at.give_back(held)
    at.do(at.state.time_out, caller)
    assert caller.error is None
    assert at.state.totals.timeouts == 0


def test_as_somebody_is_timed_out_the_gate_goes_down_again() -> None:
    at = desk(limit=1)
    at.lease()
    at.come(1.0)
    at.later(1.0)
    assert not at.state.gate


def test_max_waiting_bounds_those_for_whom_there_is_no_room() -> None:
    at = desk(limit=2, max_waiting=1)
    first, second, third = at.come(), at.come(), at.come()
    with pytest.raises(TooManyWaiting, match="max_waiting=1"):
        at.come()
    assert at.refusals() == {"full": 1}
    assert at.waiting() == [first, second, third]
    at.created()
    with pytest.raises(TooManyWaiting):
        at.come()
    at = desk(limit=1, max_waiting=0)
    at.lease()
    with pytest.raises(TooManyWaiting):
        at.come()


def test_what_is_being_changed_is_no_room() -> None:
    at = desk(limit=1, max_waiting=1, has_change=True)
    at.give_back(at.lease())
    assert at.count("change") == 1
    at.come()
    with pytest.raises(TooManyWaiting):
        at.come()


def test_a_request_that_holds_a_resource_does_not_wait_for_another_one() -> None:
    at = desk(limit=2)
    request = Named("GET /")
    at.lease(owner=request)
    other = at.lease(owner=Named("another"))
    with pytest.raises(WouldDeadlock, match="this request holds"):
        at.come(request=request)
    assert at.refusals() == {"deadlock": 1}
    assert not at.waiting()
    at.come(request=Named("a third"))
    at.give_back(other)


def test_who_would_close_a_circle_of_those_who_wait_for_each_other_is_told() -> None:
    at = desk(limit=2)
    one, other = Named("one"), Named("other")
    at.lease(owner=one)
    at.lease(owner=other)
    at.come(owner=one)
    with pytest.raises(WouldDeadlock, match="nobody would ever go on"):
        at.come(owner=other)
    assert at.refusals() == {"deadlock": 1}
    at = desk(limit=1)
    at.lease(owner=one)
    with pytest.raises(WouldDeadlock):
        at.come(owner=one)


def test_there_is_no_circle_while_somebody_who_holds_does_not_wait_or_is_not_known() -> None:
    one, other = Named("one"), Named("other")
    at = desk(limit=2)
    at.lease(owner=one)
    at.lease(owner=other)
    at.come(owner=one)
    at.come(owner=Named("a third"))
    at = desk(limit=2)
    at.lease(owner=one)
    at.lease()
    at.come(owner=one)


def test_there_is_no_circle_while_there_is_room_or_something_is_on_its_way() -> None:
    one = Named("one")
    at = desk(limit=2)
    at.lease(owner=one)
    caller = at.come(owner=one)
    assert at.count("create") == 1
    at.come(owner=one)
    at.created()
    assert caller.slot is not None
    at = desk(limit=2, max_creating=1, has_change=True)
    at.lease(owner=one)
    changing = at.lease(owner=one)
    at.give_back(changing)
    at.come(owner=one)  # what is being changed comes back


def test_there_is_no_circle_while_something_is_being_checked() -> None:
    one = Named("one")
    at = desk(limit=2, has_check=True, check_after=1.0)
    first, second = at.leases(2)
    at.give_back(first)
    at.owned(second, one)
    at.now += 2
    caller = at.come(owner=one)
    assert at.asked[Action.CHECK] == [first]
    at.come(owner=one)
    at.checked()
    assert caller.slot is first


def test_there_is_no_circle_while_create_fails_but_will_be_tried_again() -> None:
    one = Named("one")
    at = desk(limit=2)
    at.lease(owner=one)
    at.come()
    at.failed()
    caller = at.come(owner=one)
    at.later(1)
    assert at.created() is caller.slot


def test_there_is_no_circle_where_nothing_exists_and_nothing_can_be_created() -> None:
    at = desk(limit=1)
    at.ask(at.state.suspend)
    at.come(owner=Named("one"))


def test_a_closed_pool_refuses_before_anything_else() -> None:
    at = desk()
    at.close()
    at.state.closed()
    with pytest.raises(PoolClosed):
        at.come(0)
    assert at.refusals() == {"closed": 1}


# --- withdraw -----------------------------------------------------------------------------------


def test_who_gives_up_waiting_leaves_the_queue_and_what_is_being_made_becomes_free() -> None:
    at = desk().listen("on_withdraw")
    caller = at.come()
    at.now += 2
    at.do(at.state.withdraw, caller)
    assert not at.waiting()
    assert at.told() == [("on_withdraw", 2.0)]
    assert at.state.totals.withdrawals == 1
    assert not at.state.gate
    slot = at.created()
    assert at.free() == [slot]


def test_what_was_granted_to_who_gives_up_goes_to_the_next() -> None:
    at = desk(limit=1)
    held = at.lease()
    first, second = at.come(), at.come()
    at.give_back(held)
    at.do(at.state.withdraw, first)
    assert first.slot is None
    assert second.slot is held
    assert at.state.totals.withdrawals == 1
    at.do(at.state.withdraw, second)
    assert at.free() == [held]


def test_who_was_failed_has_nothing_to_withdraw() -> None:
    at = desk(limit=1).listen()
    at.lease()
    caller = at.come(1.0)
    at.later(1.0)
    at.told()
    at.do(at.state.withdraw, caller)
    assert at.state.totals.withdrawals == 0
    assert at.told() == []


def test_what_was_granted_to_who_gives_up_stays_fresh() -> None:
    at = desk(limit=1, has_check=True, check_after=1.0)
    held = at.lease()
    caller = at.come()
    at.give_back(held)
    at.do(at.state.withdraw, caller)
    assert at.come().slot is held


def test_what_was_granted_while_create_fails_is_checked_before_its_next_use() -> None:
    at = desk(limit=2, has_check=True, check_after=1.0)
    slot = at.lease()
    first, second = at.come(), at.come()
    at.failed()
    assert isinstance(first.error, ResourceUnavailable)
    at.give_back(slot)
    at.checked()
    assert second.slot is slot
    at.do(at.state.withdraw, second)
    assert at.come().slot is None
    assert at.count("check") == 1


def test_what_was_granted_stays_fresh_where_there_is_no_check_also_while_create_fails() -> None:
    at = desk(limit=2)
    slot = at.lease()
    at.come()
    second = at.come()
    at.failed()
    at.give_back(slot)
    assert second.slot is slot
    at.do(at.state.withdraw, second)
    assert at.come().slot is slot


# --- release ------------------------------------------------------------------------------------


def test_a_lease_ends_once() -> None:
    at = desk()
    slot = at.lease()
    slot.holder, slot.lease = "me", weakref.ref(at)
    at.now += 3
    at.state.end(slot, at.now)
    held_by: object = slot.holder or slot.lease
    assert held_by is None
    assert (slot.since, slot.use_sum) == (at.now, 3.0)
    with pytest.raises(NotLeased):
        at.state.end(slot, at.now)
    assert at.state.put_back(slot, at.now)
    with pytest.raises(NotLeased):
        at.state.end(slot, at.now)
    assert sum(slot.use_counts) == 1


def test_the_second_end_of_a_lease_does_not_end_that_of_the_same_object_after_it_was_detached() -> None:
    at = desk(limit=1)
    old = at.lease()
    at.state.end(old, at.now)
    at.do(at.state.detach, old)
    caller = at.come()
    at.do(at.state.created, at.asked[Action.CREATE].pop(), old.resource)
    new = caller.slot
    assert new is not None
    assert new is not old
    with pytest.raises(NotLeased):
        at.state.end(old, at.now)
    assert at.state.taken == {new.key: new}
    at.give_back(new)


def test_what_is_leased_is_found_by_identity() -> None:
    at = desk()
    slot = at.lease()
    assert at.state.leased(slot.resource) is slot
    with pytest.raises(NotLeased, match="not leased from it"):
        at.state.leased(Resource(0))
    at.give_back(slot)
    with pytest.raises(NotLeased):
        at.state.leased(slot.resource)


def test_a_slot_is_the_pool_s_until_it_is_gone_or_was_lost_and_came_back() -> None:
    at = desk()
    slot = at.lease()
    assert at.state.holds(slot)
    assert not at.state.holds(Slot(slot.resource, 0, at.now))
    generation = at.close()
    at.do(at.state.write_off, generation)
    assert at.state.holds(slot), "it is expected back"
    at.give_back(slot)
    assert not at.state.holds(slot)
    at = desk()
    assert at.state.holds(at.have_free(1)[0])


def test_without_change_and_check_what_comes_back_is_free_without_the_lock() -> None:
    at = desk()
    slot = at.lease()
    at.state.end(slot, at.now)
    assert at.state.put_back(slot, at.now)
    assert at.free() == [slot]
    assert slot.fresh_until == NEVER


def test_what_was_used_is_fresh_for_as_long_as_check_after_says() -> None:
    at = desk(has_check=True, check_after=0.5)
    slot = at.lease()
    at.now += 5
    at.state.end(slot, at.now)
    assert at.state.put_back(slot, at.now)
    assert slot.fresh_until == at.now + 0.5
    at.now += 0.5
    assert at.do(at.state.take) is slot
    at.give_back(slot)
    at.now += 0.51
    assert at.do(at.state.take) is None
    assert at.free() == [slot]


def test_where_resources_grow_old_what_comes_back_in_time_is_free_without_the_lock() -> None:
    at = desk(max_uses=2)
    slot = at.lease()
    at.state.end(slot, at.now)
    assert at.state.put_back(slot, at.now)
    assert at.do(at.state.take) is slot
    at.state.end(slot, at.now)
    assert not at.state.put_back(slot, at.now)
    at.do(at.state.release, slot)


def test_with_check_after_0_each_reuse_is_checked() -> None:
    at = desk(has_check=True, check_after=0.0)
    slot = at.lease()
    at.state.end(slot, at.now)
    assert not at.state.put_back(slot, at.now)
    at.do(at.state.release, slot)
    caller = at.come()
    assert at.asked[Action.CHECK] == [slot]
    at.checked()
    assert caller.slot is slot


def test_what_comes_back_is_changed_before_it_is_free_and_who_waits_for_that_is_told() -> None:
    at = desk(has_change=True)
    slot = at.lease()
    done = Caller()
    assert at.give_back(slot, done)
    assert at.asked[Action.CHANGE] == [slot]
    assert not at.free()
    assert done.woken == 0
    at.changed()
    assert (done.woken, done.error) == (1, None)
    assert at.free() == [slot]
    assert at.do(at.state.take) is slot
    assert at.give_back(slot)
    at.changed()


def test_nobody_waits_for_a_change_that_is_over_or_follows_a_later_lease() -> None:
    at = desk(has_change=True)
    slot = at.lease()
    first = slot.leases
    at.give_back(slot)
    at.changed()
    assert not at.ask(at.state.wait_changed, slot, first, Caller())
    assert at.do(at.state.take) is slot
    at.give_back(slot)
    assert not at.ask(at.state.wait_changed, slot, first, Caller())
    assert at.ask(at.state.wait_changed, slot, first + 1, Caller())
    at.changed()


def test_what_could_not_be_changed_is_cleaned_and_its_room_goes_to_who_waits() -> None:
    at = desk(limit=1, has_change=True)
    slot = at.lease()
    caller = at.come()
    done = Caller()
    at.give_back(slot, done)
    at.changed(failed=True)
    assert done.woken == 1
    assert at.asked[Action.CLEAN] == [slot]
    assert at.discards() == {"change": 1}
    assert at.created() is caller.slot


def test_what_has_to_go_is_not_changed_before() -> None:
    at = desk(has_change=True)
    slot = at.lease()
    at.do(at.state.expire)
    assert not at.give_back(slot, Caller())
    assert at.count("change") == 0
    assert at.asked[Action.CLEAN] == [slot]


def test_what_had_to_go_while_it_was_changed_is_cleaned() -> None:
    at = desk(has_change=True)
    slot = at.lease()
    at.give_back(slot)
    at.do(at.state.expire)
    at.changed()
    assert at.asked[Action.CLEAN] == [slot]
    assert at.discards() == {"expire": 1}


def test_what_is_discarded_is_cleaned_and_its_room_goes_to_who_waits() -> None:
    at = desk(limit=1)
    slot = at.lease()
    caller = at.come()
    at.state.end(slot, at.now)
    at.do(at.state.discard, slot)
    assert at.asked[Action.CLEAN] == [slot]
    assert at.discards() == {"discard": 1}
    assert at.created() is caller.slot
    at.cleaned()
    assert (at.state.totals.cleans, at.state.totals.clean_failures) == (1, 0)


def test_what_is_detached_is_forgotten_and_its_room_goes_to_who_waits() -> None:
    at = desk(limit=1).listen("on_detach")
    slot = at.lease()
    caller = at.come()
    generation = at.do(at.state.expire)
    drainer = Caller()
    assert at.ask(at.state.wait_gone, drainer, generation)
    at.state.end(slot, at.now)
    at.do(at.state.detach, slot)
    assert at.count("clean") == 0
    assert at.state.totals.detached == 1
    assert at.told() == [("on_detach",)]
    assert drainer.woken == 1
    assert not at.state.has_seen(slot.resource)
    assert at.created() is caller.slot


def test_what_has_been_used_is_not_forgotten_by_the_statistics_as_it_goes() -> None:
    at = desk()
    slot = at.lease()
    at.now += 4
    at.state.end(slot, at.now)
    at.do(at.state.discard, slot)
    at.cleaned()
    stats = report.stats(at.state, at.now)
    assert (stats.acquires, stats.releases, stats.use.sum) == (1, 1, 4.0)


def test_a_clean_that_failed_is_counted_and_nothing_else() -> None:
    at = desk()
    slot = at.have_free(1)[0]
    at.do(at.state.expire)
    assert at.cleaned(failed=True) is slot
    assert (at.state.totals.cleans, at.state.totals.clean_failures) == (1, 1)
    assert at.state.generations.total() == 0


# --- what was created ---------------------------------------------------------------------------


def test_what_was_created_for_nobody_is_free_and_fresh_for_as_long_as_check_after_says() -> None:
    at = desk(has_check=True, check_after=2.0, min_free=1)
    slot = at.created()
    assert at.free() == [slot]
    assert slot.fresh_until == at.now + 2
    assert slot.leases == 0
    assert slot.since == at.now
    at.now += 2
    assert at.come().slot is slot


def test_what_was_created_for_nobody_is_the_next_to_be_used_unless_the_oldest_is() -> None:
    for reuse, place in (("lifo", 1), ("fifo", 0)):
        at = desk(limit=2, reuse=reuse)
        old = at.lease()
        at.do(at.state.withdraw, at.come())
        at.give_back(old)
        new = at.created()
        assert at.come().slot is (old, new)[place]


def test_what_was_created_too_late_is_cleaned() -> None:
    at = desk(limit=1)
    caller = at.come()
    at.do(at.state.expire)
    slot = at.created()
    assert at.asked[Action.CLEAN] == [slot]
    assert at.discards() == {"expire": 1}
    assert at.created() is caller.slot


def test_an_object_that_the_pool_has_is_no_new_resource() -> None:
    at = desk(limit=3)
    leased, free = at.leases(2)
    at.give_back(free)
    leaving = at.lease()
    for slot, place in ((leased, "taken"), (leaving, "slots")):
        assert at.state.has_seen(slot.resource), place
    at.state.end(leaving, at.now)
    at.do(at.state.discard, leaving)
    assert at.state.has_seen(leaving.resource), "it is being cleaned"
    assert not at.state.has_seen(Resource(9))
    caller = at.come()
    at.do(at.state.created, at.asked[Action.CREATE].pop(), leased.resource)
    assert isinstance(caller.error, PoolConfigError)
    assert "already holds" in str(caller.error)
    assert at.state.totals.create_failures == 1
    assert len(at.state.slots) == 1


def test_an_object_that_is_free_is_no_new_resource() -> None:
    at = desk()
    assert at.state.has_seen(at.have_free(1)[0].resource)


def test_an_object_that_was_written_off_and_is_still_out_is_no_new_resource() -> None:
    at = desk()
    slot = at.lease()
    at.do(at.state.write_off, at.close())
    assert slot.key not in at.state.slots
    assert at.state.has_seen(slot.resource)
    at.give_back(slot)
    assert at.state.has_seen(slot.resource)
    at.cleaned()
    assert not at.state.has_seen(slot.resource)


def test_listeners_are_told_how_long_it_took() -> None:
    at = desk(min_free=1).listen()
    at.now += 3
    at.created()
    assert at.told() == [("on_create", 3.0)]


# --- checks -------------------------------------------------------------------------------------


def test_what_is_not_fresh_is_checked_for_who_waits_and_then_is_its_own() -> None:
    at = desk(limit=1, has_check=True, check_after=1.0)
    slot = at.have_free(1)[0]
    at.now += 2
    caller = at.come()
    assert at.asked[Action.CHECK] == [slot]
    assert caller.slot is None
    at.now += 3
    at.checked()
    assert caller.slot is slot
    assert slot.checked_at == at.now
    assert slot.fresh_until == at.now + 1
    assert at.discards() == {}


def test_no_more_are_checked_than_wait() -> None:
    at = desk(limit=3, has_check=True, check_after=1.0)
    cold, _, warm = at.have_free(3)
    at.now += 2
    at.come()
    assert at.asked[Action.CHECK] == [warm]
    at.come()
    assert at.count("check") == 2
    assert at.free() == [cold]


def test_no_more_are_created_and_checked_than_wait() -> None:
    at = desk(limit=9, has_check=True, check_after=1.0)
    at.have_free(2)
    at.now += 2
    for _ in range(4):
        at.come()
    assert (at.count("check"), at.count("create")) == (2, 2)


def test_what_fails_its_check_is_cleaned_and_the_next_is_tried_for_the_same_caller() -> None:
    at = desk(limit=2, has_check=True, check_after=1.0)
    cold, warm = at.have_free(2)
    at.now += 2
    caller = at.come()
    assert at.checked(healthy=False) is warm
    assert at.discards() == {"check": 1}
    assert at.asked[Action.CLEAN] == [warm]
    assert at.asked[Action.CHECK] == [cold]
    assert at.waiting() == [caller]
    at.checked(healthy=False)
    assert at.created() is caller.slot


def test_after_a_failed_check_all_the_others_are_checked_however_fresh() -> None:
    at = desk(limit=3, has_check=True, check_after=1.0)
    cold, fresh, held = at.have_free(3)
    assert at.lease() is held
    at.now += 2
    assert at.come().slot is None
    assert at.asked[Action.CHECK] == [fresh]
    at.give_back(held)  # goes to who waits
    other = at.come()
    at.do(at.state.withdraw, other)
    at.checked(healthy=False)
    assert [slot.fresh_until for slot in at.free()] == [float("-inf")] * len(at.free())
    assert cold in at.free()


def test_after_a_failed_check_each_free_one_is_doubted() -> None:
    at = desk(limit=3, has_check=True, check_after=10.0)
    *free, broken = at.have_free(3)
    at.ask(at.state.borrow, broken)
    at.do(at.state.checked, broken, healthy=False)
    assert [slot.fresh_until for slot in free] == [float("-inf")] * 2


def test_what_nobody_wants_any_more_after_its_check_stays_the_least_recently_used() -> None:
    at = desk(limit=2, has_check=True, check_after=1.0)
    first, second = at.have_free(2)
    at.now += 2
    caller = at.come()
    assert at.asked[Action.CHECK] == [second]
    at.do(at.state.withdraw, caller)
    at.checked()
    assert at.free() == [second, first]
    assert at.come().slot is second, "it is fresh, at whichever end"


def test_what_had_to_go_while_it_was_checked_is_cleaned() -> None:
    at = desk(limit=1, has_check=True, check_after=1.0)
    slot = at.have_free(1)[0]
    at.now += 2
    at.come()
    at.do(at.state.expire)
    at.checked()
    assert at.discards() == {"expire": 1}
    assert at.asked[Action.CLEAN] == [slot]


def test_with_fifo_the_fresh_one_at_the_other_end_is_taken_before_one_is_checked() -> None:
    at = desk(limit=2, reuse="fifo", has_check=True, check_after=1.0)
    first, second = at.have_free(2)
    at.now += 0.9
    assert at.lease() is first
    assert at.lease() is second
    at.give_back(second)
    at.now += 0.9
    at.give_back(first)
    at.now += 0.5
    assert at.come().slot is first
    assert at.free() == [second]


def test_what_was_free_but_too_old_is_cleaned_and_not_checked() -> None:
    at = desk(limit=1, has_check=True, check_after=1.0, max_lifetime=5.0)
    slot = at.have_free(1)[0]
    at.now += 5
    caller = at.come()
    assert at.count("check") == 0
    assert at.asked[Action.CLEAN] == [slot]
    assert at.discards() == {"max_lifetime": 1}
    assert at.created() is caller.slot


@pytest.mark.parametrize(
    ("free", "fresh_until", "then"),
    [
        ([105, 107, 109], 106, [105, 106, 107, 109]),
        ([105, 107, 109], 110, [105, 107, 109, 110]),
        ([105, 107, 109], 104, [104, 105, 107, 109]),
        ([101, 102, 105, 109], 103, [101, 102, 103, 105, 109]),
        ([105, 107, 107], 107, [105, 107, 107, 107]),
        ([105, 107, 107], 106, [105, 106, 107, 107]),
        ([109, 104, 108], 103, [109, 103, 104, 108]),  # not beyond the one from which it rises to the left
        ([109, 104, 108], 105, [109, 104, 105, 108]),
    ],
)
def test_fresher_ones_stay_above_what_is_put_back_beneath_them(
    free: list[int], fresh_until: int, then: list[int]
) -> None:
    at = desk(limit=9, has_check=True, check_after=10.0)
    slots = at.have_free(len(free) + 1)
    lent = slots.pop()
    assert at.lease() is lent
    for slot, until in zip([*slots, lent], [*free, fresh_until], strict=True):
        slot.fresh_until = until
    at.state.end(lent, at.now)
    at.state._make_free(lent)
    assert [slot.fresh_until for slot in at.free()] == then


def test_what_is_put_back_stays_above_those_as_fresh() -> None:
    at = desk(limit=2, has_check=True, check_after=10.0)
    first, second = at.leases(2)
    at.give_back(first)
    at.state.end(second, at.now)
    second.fresh_until = first.fresh_until
    at.state._make_free(second)
    at.carry_out()
    assert at.free() == [first, second]


# --- create fails -------------------------------------------------------------------------------


def test_a_first_failure_is_told_to_who_waits_and_with_nothing_else_to_wait_for_to_all() -> None:
    at = desk(limit=2).listen("on_create_failed", "on_refuse")
    first, second, third = at.come(), at.come(), at.come()
    cause = OSError("down")
    at.failed(cause)
    assert isinstance(first.error, ResourceUnavailable)
    assert first.error.__cause__ is cause
    assert (second.error, third.error) == (None, None), "another creation is under way"
    at.failed(cause)
    assert isinstance(second.error, ResourceUnavailable)
    assert isinstance(third.error, ResourceUnavailable)
    assert at.told() == [("on_create_failed", cause)] * 2
    assert at.state.totals.create_failures == 2
    with pytest.raises(ResourceUnavailable):
        at.come()
    assert at.refusals() == {"unavailable": 1}


def test_while_something_exists_a_failure_is_told_to_one_caller_and_the_others_wait_for_it() -> None:
    at = desk(limit=2)
    held = at.lease()
    first, second = at.come(), at.come()
    at.failed()
    assert isinstance(first.error, ResourceUnavailable)
    assert at.waiting() == [second]
    assert at.come() in at.waiting()
    at.give_back(held)
    assert second.slot is held


def test_later_failures_are_told_to_nobody_who_waits() -> None:
    at = desk(limit=2)
    at.lease()
    at.come()
    at.failed()
    waits = at.come()
    at.later(0.1)
    assert at.count("create") == 1
    at.failed()
    assert at.waiting() == [waits]


def test_create_is_tried_again_once_when_the_pause_is_over() -> None:
    at = down()
    assert at.state.next_deadline() == at.now + 0.05
    at.later(0.04)
    assert at.count("create") == 0
    at.now = at.state.next_deadline()
    at.later(0)
    assert at.count("create") == 1
    assert at.state.next_deadline() == NEVER
    at.later(9)
    assert at.count("create") == 1, "one at a time"
    at.failed()
    assert at.state.next_deadline() == at.now + 0.1
    with pytest.raises(ResourceUnavailable, match=r"tries again in 0\.1 s"):
        at.come()


def test_the_first_success_lets_everybody_in_again() -> None:
    at = down(limit=3)
    at.later(1)
    slot = at.created()
    assert at.state.outage.failures == 0
    assert not at.state.gate
    assert at.come().slot is slot
    at.come()
    at.come()
    assert at.count("create") == 2


def test_nothing_but_the_one_try_is_created_while_create_fails() -> None:
    at = desk(limit=4)
    at.lease()
    at.come()
    at.failed()
    at.come()
    at.come()
    assert at.count("create") == 0
    at.later(1)
    assert at.count("create") == 1


def test_there_is_no_try_where_there_is_no_room_for_it() -> None:
    at = desk(limit=2)
    first, second = at.leases(2)
    at.state.end(first, at.now)
    at.do(at.state.discard, first)
    at.come()
    at.failed()
    assert at.state.next_deadline() < NEVER
    at.do(at.state.resize, 1)
    assert at.state.next_deadline() == NEVER
    at.later(9)
    assert at.count("create") == 0
    at.do(at.state.resize, 2)
    assert at.state.next_deadline() <= at.now
    at.give_back(second)


def test_when_create_fails_each_free_resource_is_doubted_where_there_is_a_check() -> None:
    for has_check in (True, False):
        at = desk(limit=3, has_check=has_check, check_after=10.0)
        slots = at.leases(2)
        at.do(at.state.withdraw, at.come())
        for slot in slots:
            at.give_back(slot)
        at.failed()
        assert at.state.take(at.now) is None
        assert (at.come().slot is None) == has_check
        assert at.count("check") == has_check
        assert (at.come().slot is None) == has_check


def test_while_create_fails_use_proves_nothing_where_there_is_a_check() -> None:
    at = desk(limit=2, has_check=True, check_after=10.0)
    slot = at.lease()
    at.come()
    caller = at.come()
    at.failed()
    at.give_back(slot)
    assert caller.slot is None
    assert at.asked[Action.CHECK] == [slot]
    at.checked()
    assert caller.slot is slot


def test_while_create_fails_what_comes_back_goes_on_where_there_is_no_check() -> None:
    at = desk(limit=2)
    slot = at.lease()
    at.come()
    caller = at.come()
    at.failed()
    at.give_back(slot)
    assert caller.slot is slot
    at.give_back(slot)
    assert at.come().slot is slot


def test_a_failed_creation_of_an_older_generation_lets_its_drain_end() -> None:
    at = desk()
    at.come()
    generation = at.do(at.state.expire)
    drainer = Caller()
    assert at.ask(at.state.wait_gone, drainer, generation)
    at.failed()
    assert drainer.woken == 1


def test_a_failure_raises_the_gate_until_create_works_again() -> None:
    at = desk(limit=2)
    slot = at.lease()
    at.come()
    at.failed()
    assert at.state.gate
    at.give_back(slot)
    assert at.state.gate
    at.later(1)
    at.created()
    assert not at.state.gate


# --- min_free -----------------------------------------------------------------------------------


def test_opening_creates_min_free_and_each_lease_is_made_up_for() -> None:
    at = desk(limit=4, min_free=2)
    assert at.count("create") == 2
    at.created()
    at.created()
    assert at.count("create") == 0
    assert at.do(at.state.take) is None, "a lease has to be made up for, which takes the lock"
    at.lease()
    assert at.count("create") == 1
    at.created()
    at.lease()
    at.lease()
    assert at.count("create") == 1, "up to the limit"
    at.created()
    assert len(at.free()) == 1
    assert at.do(at.state.take) is not None, "at the limit there is nothing to make up"


def test_to_try_makes_up_for_what_it_takes() -> None:
    at = desk(limit=2, min_free=1)
    at.created()
    assert at.do(at.state.try_acquire) is not None
    assert at.count("create") == 1


def test_more_than_min_free_are_taken_without_the_lock() -> None:
    at = desk(limit=4, min_free=1)
    at.created()
    at.have_free(2)
    assert len(at.free()) >= 2
    assert at.do(at.state.take) is not None


def test_who_opens_is_woken_at_each_outcome_until_min_free_resources_exist() -> None:
    at = desk(limit=4, min_free=2)
    opener, other = Caller(), Caller()
    assert at.ask(at.state.watch_min_free, opener)
    assert at.ask(at.state.watch_min_free, other)
    at.created()
    assert (opener.woken, other.woken) == (1, 1)
    again = Caller()
    assert at.ask(at.state.watch_min_free, again)
    at.created()
    assert again.woken == 1
    assert not at.ask(at.state.watch_min_free, Caller())
    assert at.state.openers == []


def test_who_opens_is_told_that_it_fails() -> None:
    at = desk(limit=4, min_free=1)
    opener = Caller()
    assert at.ask(at.state.watch_min_free, opener)
    at.failed()
    assert opener.woken == 1
    again = Caller()
    assert not at.ask(at.state.watch_min_free, again)
    assert isinstance(again.error, ResourceUnavailable)
    assert "cannot be opened" in str(again.error)


def test_who_opens_is_told_that_the_pool_is_closed_meanwhile() -> None:
    at = desk(limit=4, min_free=1)
    opener, again = Caller(), Caller()
    assert at.ask(at.state.watch_min_free, opener)
    at.close()
    assert opener.woken == 1
    assert not at.ask(at.state.watch_min_free, again)
    assert isinstance(again.error, PoolClosed)


def test_who_opens_does_not_wait_while_the_pool_is_suspended() -> None:
    at = desk(limit=4, min_free=1)
    at.ask(at.state.suspend)
    caller = Caller()
    assert not at.ask(at.state.watch_min_free, caller)
    assert caller.error is None


def test_who_opens_no_more_is_not_woken() -> None:
    at = desk(limit=4, min_free=1)
    one, other = Caller(), Caller()
    at.ask(at.state.watch_min_free, one)
    at.ask(at.state.watch_min_free, other)
    at.ask(at.state.forget, one)
    at.created()
    assert (one.woken, other.woken) == (0, 1)


# --- probes -------------------------------------------------------------------------------------


def probe(at: Desk, max_age: float = 5.0, patience: float = 2.0) -> tuple[bool | None, Caller]:
    watcher = Caller()
    return at.do(at.state.probe, watcher, max_age, patience), watcher


def test_a_back_end_is_known_to_answer_for_so_long_after_a_create_or_a_check() -> None:
    at = desk(has_check=True, check_after=0.0, min_free=1)
    at.created()
    assert probe(at)[0] is True
    at.now += 5
    assert probe(at)[0] is True
    at.now += 0.1
    answer, watcher = probe(at)
    assert answer is None
    assert at.count("check") == 1
    at.now += 1
    at.checked()
    assert (watcher.woken, watcher.error) == (1, None)
    assert probe(at)[0] is True
    at.now += 5
    assert probe(at)[0] is True
    at.lease()
    assert watcher.woken == 1


def test_a_pool_that_is_closed_or_down_does_not_answer() -> None:
    at = down()
    assert probe(at)[0] is False
    assert at.count("create") == 0
    at.close()
    assert probe(at)[0] is False
    at = Desk()
    assert probe(at)[0] is False


def test_a_suspended_pool_is_not_asked() -> None:
    at = desk(has_check=True)
    at.have_free(1)
    at.now += 9
    at.ask(at.state.suspend)
    assert probe(at)[0] is True
    assert at.count("check") == 0


def test_where_nothing_exists_a_probe_creates_one_that_stays() -> None:
    at = desk()
    answer, watcher = probe(at)
    assert answer is None
    assert at.count("create") == 1
    second = probe(at)[1]
    assert at.count("create") == 1, "one is under way"
    slot = at.created()
    assert (watcher.woken, second.woken) == (1, 1)
    assert at.free() == [slot]


def test_where_all_are_in_use_a_probe_learns_nothing_and_is_content() -> None:
    at = desk(has_check=True, limit=2)
    at.lease()
    at.now += 9
    assert probe(at)[0] is True
    assert at.count("create") == 0
    at.come()
    assert probe(at)[0] is True, "that a creation is slow says nothing while others work"
    assert at.count("create") == 1
    assert at.count("check") == 0


def test_without_a_check_what_is_free_is_taken_to_work() -> None:
    at = desk()
    at.have_free(1)
    at.now += 9
    assert probe(at)[0] is True
    assert len(at.free()) == 1


def test_a_probe_checks_the_one_that_was_unused_for_the_longest() -> None:
    at = desk(has_check=True, limit=2)
    cold, _ = at.have_free(2)
    at.now += 9
    assert probe(at)[0] is None
    assert at.asked[Action.CHECK] == [cold]


def test_a_probe_waits_for_a_check_that_is_under_way() -> None:
    at = desk(has_check=True, limit=2, check_after=0.0)
    at.have_free(2)
    at.now += 9
    at.come()
    assert at.count("check") == 1
    assert probe(at)[0] is None
    assert at.count("check") == 1


def test_while_create_fails_and_something_exists_a_probe_is_content() -> None:
    at = desk(has_check=True, limit=2, check_after=0.0)
    slot = at.lease()
    at.come()
    at.failed()
    at.give_back(slot)
    at.now += 9
    assert probe(at)[0] is True
    assert at.count("check") == 0


def test_who_probes_in_vain_for_too_long_is_told_that_nothing_answers() -> None:
    at = desk()
    assert probe(at)[0] is None
    at.now += 1
    assert probe(at)[0] is None
    at.now += 0.9
    assert probe(at)[0] is None
    at.now += 0.1
    assert probe(at)[0] is False, "patience is counted from the first one"
    at.created()
    at.now += 9
    at.lease()
    assert probe(at)[0] is True


def test_a_failed_check_has_the_next_tried_for_who_probes() -> None:
    at = desk(has_check=True, limit=2)
    at.have_free(2)
    at.now += 9
    watcher = probe(at)[1]
    at.checked(healthy=False)
    assert watcher.woken == 0
    assert at.count("check") == 1
    at.checked(healthy=False)
    assert watcher.woken == 0
    assert at.count("create") == 1
    at.failed()
    assert watcher.woken == 1
    assert isinstance(watcher.error, ResourceUnavailable)


def test_where_a_failed_check_leaves_only_what_is_in_use_who_probes_is_let_go() -> None:
    at = desk(has_check=True, limit=2)
    at.leases(2)
    free = at.state.taken
    at.give_back(next(iter(free.values())))
    at.now += 9
    watcher = probe(at)[1]
    at.checked(healthy=False)
    assert (watcher.woken, watcher.error) == (1, None)
    assert at.count("check") == 0


def test_nothing_is_created_for_who_probes_while_the_pool_is_suspended() -> None:
    at = desk(has_check=True)
    at.have_free(1)
    at.now += 9
    watcher = probe(at)[1]
    at.ask(at.state.suspend)
    at.checked(healthy=False)
    assert at.count("create") == 0
    assert (watcher.woken, watcher.error) == (1, None)


def test_a_failed_check_with_nobody_who_probes_has_no_other_one_tried() -> None:
    at = desk(has_check=True, limit=2, check_after=0.0)
    at.have_free(2)
    caller = at.come()
    at.do(at.state.withdraw, caller)
    at.checked(healthy=False)
    assert at.count("check") == 0
    assert at.count("create") == 0


def test_after_a_probe_the_next_one_has_all_the_patience_again() -> None:
    at = desk(has_check=True, check_after=0.0)
    probe(at)
    at.now += 1
    at.created()
    at.now += 9
    assert probe(at)[0] is None
    at.now += 1.9
    assert probe(at)[0] is None


def test_who_probes_is_told_that_the_pool_closes_or_is_forgotten() -> None:
    at = desk()
    watcher, gone = probe(at)[1], probe(at)[1]
    at.ask(at.state.forget, gone)
    at.close()
    assert isinstance(watcher.error, PoolClosed)
    assert (watcher.woken, gone.woken) == (1, 0)


# --- life ---------------------------------------------------------------------------------------


def test_a_pool_can_be_opened_unless_it_is_open_or_not_closed_yet() -> None:
    at = Desk()
    at.state.check_not_open()
    at.open()
    with pytest.raises(PoolConfigError, match="is open already"):
        at.state.check_not_open()
    at.ask(at.state.suspend)
    with pytest.raises(PoolConfigError, match="is suspended already"):
        at.state.check_not_open()
    at.close()
    with pytest.raises(PoolConfigError, match="is closing already"):
        at.state.check_not_open()
    at.state.closed()
    at.state.check_not_open()


def test_closing_fails_who_waits_and_cleans_what_is_free() -> None:
    at = desk(limit=2)
    held, free = at.leases(2)
    at.give_back(free)
    held_too = at.lease()
    callers = [at.come(), at.come()]
    at.close()
    assert all(isinstance(caller.error, PoolClosed) and caller.woken == 1 for caller in callers)
    assert not at.waiting()
    with pytest.raises(PoolClosed, match="closing"):
        at.come()
    at.give_back(held)
    at.give_back(held_too)
    assert at.count("clean") == 2
    assert at.count("create") == 0
    assert not at.free()


def test_closing_says_which_generation_has_to_go_and_is_over_when_it_has() -> None:
    at = desk()
    slot = at.have_free(1)[0]
    generation = at.close()
    drainer = Caller()
    assert at.ask(at.state.wait_gone, drainer, generation)
    assert not at.state.is_over()
    assert at.cleaned() is slot
    assert drainer.woken == 1
    assert not at.ask(at.state.wait_gone, Caller(), generation)
    assert not at.state.is_over(), "nobody said so"
    at.state.closed()
    assert at.status == "closed"
    assert at.state.is_over()
    assert at.do(at.state.take) is None


def test_closing_a_closed_pool_leaves_it_closed() -> None:
    at = desk()
    at.close()
    at.state.closed()
    generation = at.close()
    assert at.status == "closed"
    assert not at.ask(at.state.wait_gone, Caller(), generation)


def test_only_a_pool_that_closes_is_closed() -> None:
    at = desk()
    at.state.closed()
    assert at.status == "open"


def test_a_pool_that_is_closed_is_not_over_while_something_is_out() -> None:
    at = desk()
    slot = at.lease()
    at.do(at.state.write_off, at.close())
    at.state.closed()
    assert not at.state.is_over()
    at.give_back(slot)
    at.cleaned()
    assert at.state.is_over()


def test_opening_again_forgets_that_create_failed() -> None:
    at = down(min_free=1)
    at.close()
    at.state.closed()
    at.open()
    assert at.count("create") == 1
    assert at.state.outage.failures == 0


def test_what_is_written_off_counts_as_ended_and_its_holder_is_named() -> None:
    at = desk(limit=2).listen("on_release")
    slot, other = at.leases(2)
    slot.holder = "GET /items"
    at.now += 3
    generation = at.close()
    drainer = Caller()
    assert at.ask(at.state.wait_gone, drainer, generation)
    at.give_back(other)
    at.cleaned()
    at.told()
    assert drainer.woken == 0
    holds = at.do(at.state.write_off, generation)
    assert [(hold.holder, hold.age) for hold in holds] == [("GET /items", 3.0)]
    assert at.told() == [("on_release", 3.0)]
    assert drainer.woken == 1
    stats = report.stats(at.state, at.now)
    assert (stats.acquires, stats.releases, stats.leased, stats.use.sum) == (2, 2, 0, 6.0)


def test_all_that_is_out_is_written_off() -> None:
    at = desk()
    slots = at.leases(2)
    assert len(at.do(at.state.write_off, at.close())) == 2
    assert [slot.generation for slot in slots] == [LOST, LOST]
    assert not at.state.slots


def test_what_was_written_off_is_cleaned_when_it_comes_back_and_not_told_again() -> None:
    at = desk().listen("on_release", "on_discard", "on_clean")
    slot = at.lease()
    at.do(at.state.write_off, at.close())
    at.state.closed()
    at.open()
    at.told()
    at.give_back(slot)
    assert at.asked[Action.CLEAN] == [slot]
    assert at.told() == [("on_discard", "expire")]
    at.cleaned()
    assert at.told() == [("on_clean",)]
    assert at.state.totals.cleans == 1


def test_what_was_written_off_takes_no_room_and_comes_back_through_the_lock() -> None:
    at = desk(limit=1)
    slot = at.lease()
    at.do(at.state.write_off, at.close())
    at.state.closed()
    at.open()
    assert at.lease() is not slot
    assert at.state.gate
    at.give_back(slot)
    at.cleaned()
    assert not at.state.gate


def test_only_what_is_as_old_as_said_is_written_off() -> None:
    at = desk(limit=2)
    old = at.lease()
    generation = at.do(at.state.expire)
    new = at.lease()
    holds = at.do(at.state.write_off, generation)
    assert len(holds) == 1
    assert old.generation == LOST
    assert new.generation != LOST


def test_to_expire_cleans_the_free_ones_at_once_and_the_others_as_they_come_back() -> None:
    at = desk(limit=4, min_free=1, has_change=True)
    at.created()
    held, changing, free = at.leases(3)
    at.give_back(free)
    at.changed()
    at.give_back(changing)
    at.create_all()
    before = len(at.free())
    at.do(at.state.expire)
    assert at.count("clean") == before == at.discards()["expire"]
    at.changed()
    at.give_back(held)
    assert at.discards()["expire"] == before + 2
    assert at.count("create") > 0, "min_free is made anew"


def test_while_older_ones_are_left_what_comes_back_takes_the_lock() -> None:
    at = desk(limit=2)
    old, other = at.leases(2)
    at.give_back(other)
    at.do(at.state.expire)
    new = at.lease()
    at.state.end(new, at.now)
    assert not at.state.put_back(new, at.now)
    at.do(at.state.release, new)
    at.give_back(old)
    at.cleaned()
    assert at.state.gate
    at.cleaned()
    assert not at.state.gate
    assert at.free() == [new]


def test_a_drain_waits_for_all_that_existed_and_for_nothing_newer() -> None:
    at = desk(limit=3)
    held = at.lease()
    caller = at.come()
    generation = at.do(at.state.expire)
    drainer = Caller()
    assert at.ask(at.state.wait_gone, drainer, generation)
    at.give_back(held)
    at.cleaned()
    assert drainer.woken == 0, "something is being created still"
    late = at.created()
    assert at.created() is caller.slot
    assert drainer.woken == 0, "and now cleaned"
    assert at.cleaned() is late
    assert drainer.woken == 1


def test_a_drainer_that_gave_up_is_not_woken() -> None:
    at = desk()
    at.have_free(1)
    gone, stays, stays_too = Caller(), Caller(), Caller()
    generation = at.do(at.state.expire)
    for drainer in (gone, stays, stays_too):
        at.ask(at.state.wait_gone, drainer, generation)
    at.ask(at.state.forget, gone)
    at.cleaned()
    assert (gone.woken, stays.woken, stays_too.woken) == (0, 1, 1)


def test_a_forked_child_begins_anew_with_the_same_settings() -> None:
    at = desk(limit=3, min_free=2, has_check=True, has_change=True).listen("on_create", "on_acquire")
    slot = at.lease()
    at.do(at.state.resize, 2)
    at.asked[Action.TELL].clear()
    inherited = at.state.fork()
    assert at.status == "forked"
    assert slot in vars_of(inherited)["taken"].values()
    assert (at.state.limit, at.state.policy.limit) == (2, 3)
    assert (at.state.has_check, at.state.has_change) == (True, True)
    assert not at.state.slots
    assert not at.state.creating
    assert not at.state.todo
    with pytest.raises(PoolClosed, match="forked from"):
        at.come()
    at.asked[Action.CREATE].clear()
    at.state.check_not_open()
    at.open()
    assert at.count("create") == 2
    at.created()
    at.lease()
    assert [event for event, *_ in at.told()].count("on_acquire") == 1
    assert at.state.gate, "each lease is told"


def vars_of(inherited: object) -> dict[str, Any]:
    assert isinstance(inherited, dict)
    return inherited


def test_a_pool_that_has_nothing_of_the_parent_s_is_in_a_forked_child_what_it_was() -> None:
    at = Desk()
    at.state.fork()
    assert at.status == "new"
    at.open()
    at.give_back(at.lease())
    at.close()
    at.cleaned()
    at.state.closed()
    at.state.fork()
    assert at.status == "closed"
    assert at.state.totals.create.count() == 0, "what its parent has counted is its parent's"


def test_a_forked_child_creates_as_if_nothing_had_happened() -> None:
    at = desk(limit=2)
    for _ in range(2):
        at.come()
    at.state.fork()
    at.asked[Action.CREATE].clear()
    at.open()
    at.come()
    assert at.count("create") == 1


def test_all_calls_that_will_never_end_are_given_up_at_once() -> None:
    at = desk(limit=8, has_check=True, has_change=True)
    slots = at.leases(6)
    for slot in slots[:4]:
        at.give_back(slot)
        at.changed()
    for slot in slots[4:]:
        at.give_back(slot)
    for slot in slots[:2]:
        at.ask(at.state.borrow, slot)
    at.do(at.state.expire)
    assert (len(at.state.checking), len(at.state.changing), len(at.state.cleaning)) == (2, 2, 2)
    at.close()
    at.do(at.state.abandon)
    assert (len(at.state.checking), len(at.state.changing), len(at.state.cleaning)) == (0, 0, 4)
    assert at.discards() == {"expire": 2, "check": 2, "change": 2}
    assert at.state.totals.clean_failures == 2


def test_a_change_that_will_never_end_is_told_to_who_waits_for_it_and_its_resource_cleaned() -> None:
    at = desk(has_change=True)
    done = Caller()
    at.give_back(at.lease(), done)
    at.close()
    at.do(at.state.abandon)
    assert done.woken == 1
    assert at.discards() == {"change": 1}
    assert at.count("clean") == 1
    at.cleaned()
    assert at.state.generations.total() == 0


def test_creations_that_will_never_end_are_counted_as_failed_and_made_anew_where_somebody_waits() -> None:
    at = desk(limit=2)
    at.come()
    at.come()
    generation = at.do(at.state.expire)
    drainer = Caller()
    assert at.ask(at.state.wait_gone, drainer, generation)
    at.asked[Action.CREATE].clear()
    at.do(at.state.abandon)
    assert at.state.totals.create_failures == 2
    assert drainer.woken == 1
    assert at.count("create") == 2
    assert at.state.outage.failures == 0


# --- control while it runs ----------------------------------------------------------------------


def test_a_higher_limit_serves_who_waits() -> None:
    at = desk(limit=1)
    at.lease()
    at.come()
    at.come()
    at.do(at.state.resize, 3)
    assert at.state.limit == 3
    assert at.count("create") == 2


def test_a_lower_limit_takes_the_coldest_of_the_free_at_once_and_others_as_they_come_back() -> None:
    at = desk(limit=4)
    slots = at.leases(4)
    for slot in slots[2:]:
        at.give_back(slot)
    at.do(at.state.resize, 3)
    assert at.asked[Action.CLEAN] == [slots[2]]
    at.do(at.state.resize, 1)
    assert at.asked[Action.CLEAN] == [slots[2], slots[3]]
    assert at.state.gate
    at.give_back(slots[0])
    assert at.discards() == {"resize": 3}
    assert not at.state.gate
    at.give_back(slots[1])
    assert at.free() == [slots[1]]


def test_what_is_too_many_is_cleaned_also_where_somebody_waits_for_it_and_is_not_changed_before() -> None:
    at = desk(limit=2, has_change=True)
    first, second = at.leases(2)
    caller = at.come()
    at.do(at.state.resize, 1)
    assert not at.give_back(first)
    assert at.discards() == {"resize": 1}
    assert caller.slot is None
    assert at.give_back(second)
    at.changed()
    assert caller.slot is second


def test_what_comes_back_is_what_is_too_many_where_nothing_else_is_free() -> None:
    at = desk(limit=3)
    first, second, third = at.leases(3)
    at.ask(at.state.suspend)
    at.give_back(first)
    at.do(at.state.resize, 2)
    assert at.asked[Action.CLEAN] == [first]
    at.do(at.state.resize, 1)
    at.give_back(second)
    assert at.asked[Action.CLEAN] == [first, second]
    at.give_back(third)
    assert at.free() == [third]


def test_a_lower_limit_is_not_exceeded_by_what_is_being_created() -> None:
    at = desk(limit=2)
    first = at.come()
    at.come()
    at.do(at.state.resize, 1)
    at.created()
    assert first.slot is None
    assert at.discards() == {"resize": 1}
    assert at.created() is first.slot
    assert len(at.waiting()) == 1
    assert at.count("create") == 0


def test_all_of_the_free_that_are_too_many_go_at_once() -> None:
    at = desk(limit=4)
    slots = at.have_free(4)
    at.do(at.state.resize, 1)
    assert at.asked[Action.CLEAN] == slots[:3]
    assert at.free() == slots[3:]


def test_min_free_is_kept_as_far_as_the_limit_allows() -> None:
    at = desk(limit=4, min_free=3)
    at.create_all()
    at.do(at.state.resize, 2)
    assert len(at.free()) == 2
    at.do(at.state.resize, 4)
    assert at.count("create") == 1


def test_who_opens_waits_for_no_more_than_the_limit_allows() -> None:
    at = Desk(limit=4, min_free=3)
    at.do(at.state.resize, 1)
    at.open()
    at.created()
    assert not at.ask(at.state.watch_min_free, Caller())


def test_all_wait_while_the_pool_is_suspended_and_are_served_in_order_afterwards() -> None:
    at = desk(limit=3)
    free, held = at.leases(2)
    at.give_back(free)
    at.ask(at.state.suspend)
    assert at.status == "suspended"
    assert at.state.is_open
    assert at.state.take(at.now) is None
    assert at.do(at.state.try_acquire) is None
    first, second, third = at.come(), at.come(), at.come()
    at.give_back(held)
    assert at.waiting() == [first, second, third]
    assert at.count("create") == 0
    at.do(at.state.resume)
    assert at.status == "open"
    assert {first.slot, second.slot} == {free, held}
    assert at.created() is third.slot


def test_after_a_suspension_all_that_is_wanted_is_checked_at_once() -> None:
    at = desk(limit=3, has_check=True, check_after=1.0)
    at.have_free(3)
    at.now += 2
    at.ask(at.state.suspend)
    at.come()
    at.come()
    at.do(at.state.resume)
    assert at.count("check") == 2


def test_who_waits_for_a_suspended_pool_is_timed_out_with_that_reason() -> None:
    at = desk()
    at.ask(at.state.suspend)
    caller = at.come(1.0)
    at.later(1.0)
    assert isinstance(caller.error, PoolTimeout)
    assert "suspended" in str(caller.error)


def test_what_comes_back_to_a_suspended_pool_is_kept_without_a_grant() -> None:
    at = desk(limit=1)
    held = at.lease()
    caller = at.come()
    at.ask(at.state.suspend)
    at.give_back(held)
    assert caller.slot is None
    assert at.free() == [held]
    at.do(at.state.resume)
    assert caller.slot is held


def test_a_suspended_pool_that_was_down_lets_callers_wait_and_tries_anew_afterwards() -> None:
    at = down()
    at.ask(at.state.suspend)
    assert at.state.next_deadline() == NEVER
    at.later(9)
    assert at.count("create") == 0
    caller = at.come()
    assert caller.error is None
    at.do(at.state.resume)
    assert at.state.outage.failures == 0
    assert at.created() is caller.slot


def test_only_an_open_pool_is_suspended_and_resumed() -> None:
    at = desk()
    at.do(at.state.resume)
    assert at.status == "open"
    at.ask(at.state.suspend)
    at.ask(at.state.suspend)
    assert at.status == "suspended"
    at.close()
    with pytest.raises(PoolClosed):
        at.ask(at.state.suspend)
    with pytest.raises(PoolClosed):
        at.do(at.state.resume)
    assert at.status == "closing"


def test_to_resume_what_is_not_suspended_forgets_no_failure() -> None:
    at = down()
    at.do(at.state.resume)
    assert at.state.outage.failures == 1
    assert at.count("create") == 0


def test_what_is_borrowed_is_out_of_use_and_comes_back() -> None:
    at = desk(limit=2)
    first, second = at.have_free(2)
    assert at.ask(at.state.borrow, second)
    assert not at.ask(at.state.borrow, second)
    assert at.come().slot is first
    caller = at.come()
    assert caller.slot is None
    at.do(at.state.bring_back, second, keep=True)
    assert caller.slot is second


def test_what_is_not_kept_is_cleaned_and_what_had_to_go_meanwhile_too() -> None:
    at = desk(limit=2)
    first, second = at.have_free(2)
    at.ask(at.state.borrow, first)
    at.do(at.state.bring_back, first, keep=False)
    assert at.discards() == {"retain": 1}
    at.ask(at.state.borrow, second)
    at.do(at.state.expire)
    at.do(at.state.bring_back, second, keep=True)
    assert at.discards() == {"retain": 1, "expire": 1}
    assert at.count("clean") == 2


def test_what_was_borrowed_and_given_up_is_not_brought_back() -> None:
    at = desk()
    slot = at.have_free(1)[0]
    at.ask(at.state.borrow, slot)
    at.do(at.state.abandon)
    assert at.discards() == {"check": 1}
    at.do(at.state.bring_back, slot, keep=True)
    assert not at.free()
    assert at.count("clean") == 1


def test_who_probes_goes_on_when_what_was_borrowed_comes_back() -> None:
    at = desk(limit=1, has_check=True)
    slot = at.have_free(1)[0]
    at.now += 9
    at.ask(at.state.borrow, slot)
    watcher = probe(at)[1]
    at.do(at.state.bring_back, slot, keep=True)
    assert watcher.woken == 0
    assert at.asked[Action.CHECK] == [slot]
    at.checked()
    assert watcher.woken == 1


def test_what_is_quiet_is_checked_when_what_was_borrowed_comes_back() -> None:
    at = desk(limit=2, has_check=True, keepalive=3.0)
    first, second = at.have_free(2)
    at.ask(at.state.borrow, first)
    at.later(3)
    assert at.count("check") == 0
    at.do(at.state.bring_back, first, keep=True)
    assert at.count("check") == 1
    assert {at.checked(), at.checked()} == {first, second}


def test_who_listens_for_leases_hears_of_each_and_the_fast_path_is_shut_for_it() -> None:
    at = desk(limit=1)
    slot = at.have_free(1)[0]
    for event in ("on_acquire", "on_release"):
        at.listen(event)
        assert at.state.gate
        at.do(at.state.listen, frozenset())
        assert not at.state.gate
    at.listen("on_acquire", "on_release")
    at.told()
    assert at.do(at.state.try_acquire) is slot
    waits = at.come()
    at.now += 2
    at.give_back(slot)
    assert waits.slot is slot
    at.now += 1
    at.give_back(slot)
    assert at.told() == [("on_acquire", 0.0), ("on_release", 2.0), ("on_acquire", 2.0), ("on_release", 1.0)]


def test_who_listens_for_other_things_leaves_the_fast_path_open() -> None:
    at = desk().listen("on_discard")
    at.have_free(1)
    assert not at.state.gate
    assert at.told() == []


def test_who_listens_hears_of_refusals_timeouts_and_discards() -> None:
    at = desk(limit=1, max_waiting=0).listen()
    slot = at.lease()
    for _ in range(2):
        with pytest.raises(TooManyWaiting):
            at.come()
    at.do(at.state.resize, 2)
    at.come(2.0)
    at.later(2.0)
    assert at.told() == [
        ("on_create", 0.0),
        ("on_acquire", 0.0),
        ("on_refuse", "full"),
        ("on_refuse", "full"),
        ("on_timeout", 2.0),
    ]
    with pytest.raises(PoolTimeout):
        at.come(0)
    at.state.end(slot, at.now)
    at.do(at.state.discard, slot)
    assert at.told() == [("on_timeout", 0.0), ("on_release", 2.0), ("on_discard", "discard")]


def test_a_lease_that_is_gone_without_having_ended_is_recovered_and_its_resource_destroyed() -> None:
    at = desk(limit=2)
    other, slot = at.leases(2)
    slot.lease = lost = weakref.ref(at)
    slot.holder = "GET /items"
    caller = at.come()
    at.now += 3
    hold = at.do(at.state.lose, lost)
    assert hold is not None
    assert (hold.holder, hold.age) == ("GET /items", 3.0)
    assert at.asked[Action.CLEAN] == [slot]
    assert at.discards() == {"leak": 1}
    assert at.created() is caller.slot
    assert at.do(at.state.lose, lost) is None
    at.give_back(other)


# --- time ---------------------------------------------------------------------------------------


def test_what_is_too_old_is_cleaned_when_its_time_comes() -> None:
    at = desk(limit=2, min_free=1, max_lifetime=10.0)
    slot = at.created()
    assert at.state.next_deadline() == at.now + 10
    at.later(9.9)
    assert at.free() == [slot]
    at.later(0.1)
    assert at.asked[Action.CLEAN] == [slot]
    assert at.discards() == {"max_lifetime": 1}
    assert at.count("create") == 1, "min_free is kept"


def test_what_grows_too_old_or_is_used_up_in_use_is_cleaned_when_it_comes_back() -> None:
    at = desk(max_lifetime=10.0)
    slot = at.lease()
    at.later(10)
    assert at.count("clean") == 0
    at.give_back(slot)
    assert at.discards() == {"max_lifetime": 1}
    at = desk(max_uses=2)
    slot = at.lease()
    at.give_back(slot)
    assert at.lease() is slot
    at.give_back(slot)
    assert at.discards() == {"max_uses": 1}


def test_nothing_is_fresh_beyond_its_lifetime() -> None:
    at = desk(max_lifetime=10.0)
    slot = at.lease()
    assert slot.fresh_until == at.now + 10
    at.now += 4
    at.give_back(slot)
    assert slot.fresh_until == at.now + 6
    at.now += 6.1
    assert at.do(at.state.take) is None
    at = desk(has_check=True, check_after=4.0, max_lifetime=10.0)
    slot = at.lease()
    at.give_back(slot)
    assert slot.fresh_until == at.now + 4
    at.now += 9
    assert at.come().slot is None
    at.checked()
    assert slot.fresh_until == slot.retire_at == at.now + 1


def test_what_nobody_uses_is_cleaned_after_max_idle_but_for_min_free() -> None:
    at = desk(limit=3, min_free=1, max_idle=5.0)
    at.create_all()
    slots = at.leases(2)
    at.create_all()
    for slot in slots:
        at.give_back(slot)
    at.later(4.9)
    assert len(at.free()) == 3
    assert at.do(at.state.take) is slots[1]
    at.give_back(slots[1])
    at.later(0.1)
    assert len(at.free()) == 1
    assert at.discards() == {"max_idle": 2}
    assert slots[1] in at.free()
    assert at.state.next_deadline() == at.now + 4.9, "it is looked at again"


def test_what_is_too_old_goes_for_that_reason_also_where_it_is_idle() -> None:
    at = desk(max_lifetime=5.0, max_idle=5.0)
    at.have_free(1)
    at.later(5)
    assert at.discards() == {"max_lifetime": 1}


def test_what_is_idle_is_cleaned_as_soon_as_min_free_allows_it() -> None:
    at = desk(limit=2, min_free=1, max_idle=5.0)
    slot = at.created()
    at.later(5)
    assert at.free() == [slot]
    assert at.state.next_deadline() == at.now + 5
    at.later(5)
    assert at.free() == [slot]
    assert at.discards() == {}


def test_what_is_quiet_is_checked_one_at_a_time_and_only_while_it_is_free() -> None:
    at = desk(limit=3, has_check=True, check_after=1.0, keepalive=5.0)
    *free, held = at.have_free(3)
    assert at.lease() is held
    at.later(4.9)
    assert at.count("check") == 0
    at.later(0.1)
    assert at.count("check") == 1
    assert len(at.free()) == 1
    first = at.checked()
    second = at.checked()
    assert {first, second} == set(free)
    assert at.count("check") == 0
    assert at.state.next_deadline() == at.now + 5
    assert first.checked_at == second.checked_at == at.now


def test_what_was_used_since_it_was_found_quiet_is_not_checked() -> None:
    at = desk(limit=2, has_check=True, check_after=1.0, keepalive=5.0)
    at.have_free(2)
    at.later(5)
    assert at.count("check") == 1
    (other,) = at.free()
    other.since = at.now
    at.checked()
    assert at.count("check") == 0
    assert other in at.free()


def test_what_was_leased_since_it_was_found_quiet_is_not_checked() -> None:
    at = desk(limit=3, has_check=True, check_after=10.0, keepalive=5.0)
    at.have_free(3)
    at.later(5)
    leased = at.lease()
    leased.since = at.now - 5
    at.checked()
    assert at.count("check") == 1
    at.checked()
    assert at.count("check") == 0
    assert at.state.taken == {leased.key: leased}


def test_a_failed_check_of_what_was_quiet_has_the_next_checked() -> None:
    at = desk(limit=2, has_check=True, check_after=1.0, keepalive=5.0)
    slots = at.have_free(2)
    at.later(5)
    at.checked(healthy=False)
    at.checked()
    assert len(at.free()) == 1
    assert at.free()[0] in slots


def test_whose_client_goes_away_as_it_is_granted_a_resource_has_it_all_the_same() -> None:
    at = desk(limit=1)
    held = at.lease()
    caller = at.come()
    at.give_back(held)
    at.do(at.state.give_up, caller, OSError())
    assert (caller.slot, caller.error, caller.woken) == (held, None, 1)
    assert at.state.totals.withdrawals == 0


def test_whose_client_goes_away_leaves_the_queue_and_is_told() -> None:
    at = desk(limit=1).listen("on_withdraw")
    at.lease()
    caller, other = at.come(), at.come()
    at.now += 2
    gone = OSError()
    at.do(at.state.give_up, caller, gone)
    assert (caller.error, caller.woken, at.waiting()) == (gone, 1, [other])
    assert (at.told(), at.state.totals.withdrawals) == ([("on_withdraw", 2.0)], 1)


def test_a_lease_that_was_waited_for_is_watched_also_if_nothing_was_leased_as_somebody_looked() -> None:
    at = desk(limit=1, max_hold=5.0)
    caller = at.come()
    at.later(6)
    at.created()
    assert caller.slot is not None
    at.later(5)
    assert at.count("warn") == 1


def test_what_is_too_old_is_replaced_also_if_it_was_wanted_at_once_or_not_at_all() -> None:
    at = desk(limit=1, min_free=1, max_lifetime=5.0)
    at.created()
    at.now += 6
    assert at.do(at.state.try_acquire) is None
    assert (at.count("clean"), at.count("create")) == (1, 1)


def test_several_things_may_be_due_at_once() -> None:
    at = desk(limit=3, max_lifetime=5.0, max_hold=5.0)
    old, *_ = at.leases(3)
    at.give_back(old)
    held = at.lease()
    assert held is old
    callers = [at.come(3.0), at.come(2.0), at.come(5.0), at.come(6.0)]
    assert at.state.next_deadline() == at.now + 2
    at.do(at.state.resize, 4)
    creation = at.asked[Action.CREATE].pop()
    at.do(at.state.create_failed, creation, OSError())
    assert at.state.next_deadline() == at.now + 0.05
    at.later(5)
    assert [caller.error is not None for caller in callers] == [True, True, True, False]
    assert at.count("warn") == 3
    assert at.count("create") == 1
    assert at.state.next_deadline() == at.now + 1


# --- who holds for too long -----------------------------------------------------------------------


def test_who_holds_for_too_long_is_warned_of_once_for_each_lease() -> None:
    at = desk(limit=2, max_hold=5.0)
    slot = at.lease()
    slot.holder = "GET /items"
    assert at.state.next_deadline() == at.now + 5
    at.later(4.9)
    assert at.count("warn") == 0
    at.later(0.1)
    (hold,) = at.asked[Action.WARN]
    assert (hold.holder, hold.age) == ("GET /items", 5.0)
    assert not at.state.gate
    assert at.state.next_deadline() == at.now + 5
    at.later(5)
    assert at.count("warn") == 1
    at.give_back(slot)
    assert at.do(at.state.try_acquire) is slot
    at.later(5)
    assert at.count("warn") == 2


def test_the_next_look_at_leases_is_when_the_next_of_them_has_lasted_too_long() -> None:
    at = desk(limit=3, max_hold=5.0)
    at.lease()
    at.now += 2
    at.lease()
    at.now += 1
    at.lease()
    at.later(2)
    assert at.count("warn") == 1
    assert at.state.next_deadline() == at.now + 2
    at.later(2)
    assert at.count("warn") == 2
    assert at.state.next_deadline() == at.now + 1


def test_while_nothing_is_leased_nobody_looks_and_the_gate_is_up_for_whoever_comes() -> None:
    at = desk(limit=1, max_hold=5.0)
    slot = at.have_free(1)[0]
    assert not at.state.gate
    at.later(5)
    assert at.count("warn") == 0
    assert at.state.next_deadline() == NEVER
    assert at.state.gate
    assert at.do(at.state.take) is None
    assert at.do(at.state.try_acquire) is slot
    assert at.state.next_deadline() == at.now + 5
    assert not at.state.gate


def test_who_waits_for_what_others_hold_sees_to_it_that_somebody_looks() -> None:
    at = desk(limit=1, max_hold=5.0)
    at.come()
    assert at.state.next_deadline() == at.now + 5
    at.now += 3
    at.created()
    assert at.state.next_deadline() == at.now + 2
    at.later(2)
    assert at.count("warn") == 0
    assert at.state.next_deadline() == at.now + 3
    at.later(3)
    assert at.count("warn") == 1


def test_without_max_hold_nobody_looks() -> None:
    at = desk()
    at.lease()
    assert at.state.next_deadline() == NEVER
    at.later(1e6)
    assert at.count("warn") == 0
    assert not at.state.gate
