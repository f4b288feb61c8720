"""Decisions of release: a slot goes to the next waiter, becomes free, is changed or retired."""

import weakref

import pytest

from connectionpools_fastapi._core import snapshot
from connectionpools_fastapi._core.effects import Effect
from connectionpools_fastapi._core.slot import Slot
from connectionpools_fastapi.errors import NotLeased
from tests.state_harness import harness
from tests.support import Caller, Resource

NEVER = float("inf")


def test_a_lease_ends_once() -> None:
    core = harness()
    slot = core.lease()
    slot.holder, slot.lease = "me", weakref.ref(core)
    core.now += 3
    core.state.inventory.end(slot, core.now)
    held_by: object = slot.holder or slot.lease
    assert held_by is None
    assert (slot.since, slot.use_sum) == (core.now, 3.0)
    with pytest.raises(NotLeased):
        core.state.inventory.end(slot, core.now)
    assert core.state.inventory.put_back(slot, core.now)
    with pytest.raises(NotLeased):
        core.state.inventory.end(slot, core.now)
    assert sum(slot.use_counts) == 1


def test_second_end_of_lease_spares_a_later_lease() -> None:
    """In between, the same object was detached and leased anew."""
    core = harness(limit=1)
    old = core.lease()
    core.state.inventory.end(old, core.now)
    core.do(core.state.detach, old)
    caller = core.acquire()
    core.do(core.state.created, core.asked[Effect.CREATE].pop(), old.resource)
    new = caller.slot
    assert new is not None
    assert new is not old
    with pytest.raises(NotLeased):
        core.state.inventory.end(old, core.now)
    assert core.state.inventory.taken == {new.key: new}
    core.release(new)


def test_what_is_leased_is_found_by_identity() -> None:
    core = harness()
    slot = core.lease()
    assert core.state.inventory.leased(slot.resource) is slot
    with pytest.raises(NotLeased, match="not leased from it"):
        core.state.inventory.leased(Resource(0))
    core.release(slot)
    with pytest.raises(NotLeased):
        core.state.inventory.leased(slot.resource)


def test_pool_holds_slot_until_gone_or_lost_and_returned() -> None:
    core = harness()
    slot = core.lease()
    assert core.state.inventory.holds(slot)
    assert not core.state.inventory.holds(Slot(slot.resource, 0, core.now))
    generation = core.close()
    core.do(core.state.write_off, generation)
    assert core.state.inventory.holds(slot), "it is expected back"
    core.release(slot)
    assert not core.state.inventory.holds(slot)
    core = harness()
    assert core.state.inventory.holds(core.have_free(1)[0])


def test_put_back_needs_no_lock_without_change_and_check() -> None:
    core = harness()
    slot = core.lease()
    core.state.inventory.end(slot, core.now)
    assert core.state.inventory.put_back(slot, core.now)
    assert core.free() == [slot]
    assert slot.fresh_until == NEVER


def test_used_resource_is_fresh_for_check_after() -> None:
    core = harness(has_check=True, check_after=0.5)
    slot = core.lease()
    core.now += 5
    core.state.inventory.end(slot, core.now)
    assert core.state.inventory.put_back(slot, core.now)
    assert slot.fresh_until == core.now + 0.5
    core.now += 0.5
    assert core.do(core.state.inventory.take) is slot
    core.release(slot)
    core.now += 0.51
    assert core.do(core.state.inventory.take) is None
    assert core.free() == [slot]


def test_put_back_needs_no_lock_before_max_uses() -> None:
    core = harness(max_uses=2)
    slot = core.lease()
    core.state.inventory.end(slot, core.now)
    assert core.state.inventory.put_back(slot, core.now)
    assert core.do(core.state.inventory.take) is slot
    core.state.inventory.end(slot, core.now)
    assert not core.state.inventory.put_back(slot, core.now)
    core.do(core.state.release, slot)


def test_with_check_after_0_each_reuse_is_checked() -> None:
    core = harness(has_check=True, check_after=0.0)
    slot = core.lease()
    core.state.inventory.end(slot, core.now)
    assert not core.state.inventory.put_back(slot, core.now)
    core.do(core.state.release, slot)
    caller = core.acquire()
    assert core.asked[Effect.CHECK] == [slot]
    core.checked()
    assert caller.slot is slot


def test_release_changes_resource_before_it_is_free() -> None:
    """The caller that waits for the change is woken after it."""
    core = harness(has_change=True)
    slot = core.lease()
    done = Caller()
    assert core.release(slot, done)
    assert core.asked[Effect.CHANGE] == [slot]
    assert not core.free()
    assert done.woken == 0
    core.changed()
    assert (done.woken, done.error) == (1, None)
    assert core.free() == [slot]
    assert core.do(core.state.inventory.take) is slot
    assert core.release(slot)
    core.changed()


def test_wait_changed_waits_only_for_its_own_lease() -> None:
    """A change that is over or that follows a later lease is not waited for."""
    core = harness(has_change=True)
    slot = core.lease()
    first = slot.leases
    core.release(slot)
    core.changed()
    assert not core.ask(core.state.wait_changed, slot, first, Caller())
    assert core.do(core.state.inventory.take) is slot
    core.release(slot)
    assert not core.ask(core.state.wait_changed, slot, first, Caller())
    assert core.ask(core.state.wait_changed, slot, first + 1, Caller())
    core.changed()


def test_failed_change_cleans_and_gives_room_to_waiter() -> None:
    core = harness(limit=1, has_change=True)
    slot = core.lease()
    caller = core.acquire()
    done = Caller()
    core.release(slot, done)
    core.changed(failed=True)
    assert done.woken == 1
    assert core.asked[Effect.CLEAN] == [slot]
    assert core.discards() == {"change": 1}
    assert core.created() is caller.slot


def test_what_has_to_go_is_not_changed_before() -> None:
    core = harness(has_change=True)
    slot = core.lease()
    core.do(core.state.expire)
    assert not core.release(slot, Caller())
    assert core.count("change") == 0
    assert core.asked[Effect.CLEAN] == [slot]


def test_what_had_to_go_while_it_was_changed_is_cleaned() -> None:
    core = harness(has_change=True)
    slot = core.lease()
    core.release(slot)
    core.do(core.state.expire)
    core.changed()
    assert core.asked[Effect.CLEAN] == [slot]
    assert core.discards() == {"expire": 1}


def test_discard_cleans_and_gives_room_to_waiter() -> None:
    core = harness(limit=1)
    slot = core.lease()
    caller = core.acquire()
    core.state.inventory.end(slot, core.now)
    core.do(core.state.discard, slot)
    assert core.asked[Effect.CLEAN] == [slot]
    assert core.discards() == {"discard": 1}
    assert core.created() is caller.slot
    core.cleaned()
    assert (core.state.counters.cleans, core.state.counters.clean_failures) == (1, 0)


def test_detach_forgets_and_gives_room_to_waiter() -> None:
    core = harness(limit=1).listen("on_detach")
    slot = core.lease()
    caller = core.acquire()
    generation = core.do(core.state.expire)
    drainer = Caller()
    assert core.ask(core.state.wait_gone, drainer, generation)
    core.state.inventory.end(slot, core.now)
    core.do(core.state.detach, slot)
    assert core.count("clean") == 0
    assert core.state.counters.detached == 1
    assert core.notified() == [("on_detach",)]
    assert drainer.woken == 1
    assert not core.state.inventory.has_seen(slot.resource)
    assert core.created() is caller.slot


def test_statistics_keep_the_use_of_a_discarded_resource() -> None:
    core = harness()
    slot = core.lease()
    core.now += 4
    core.state.inventory.end(slot, core.now)
    core.do(core.state.discard, slot)
    core.cleaned()
    stats = snapshot.stats(core.state, core.now)
    assert (stats.acquires, stats.releases, stats.use.sum) == (1, 1, 4.0)


def test_a_clean_that_failed_is_counted_and_nothing_else() -> None:
    core = harness()
    slot = core.have_free(1)[0]
    core.do(core.state.expire)
    assert core.cleaned(failed=True) is slot
    assert (core.state.counters.cleans, core.state.counters.clean_failures) == (1, 1)
    assert core.state.generations.total() == 0
