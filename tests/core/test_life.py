"""Decisions of open, close, write-off and fork."""

from typing import Any

import pytest

from connectionpools_fastapi import (
    PoolClosed,
    PoolConfigError,
)
from connectionpools_fastapi._core import snapshot
from connectionpools_fastapi._core.effects import Effect
from connectionpools_fastapi._core.generations import LOST
from tests.state_harness import StateHarness, down, harness
from tests.support import Caller


def test_check_not_open_passes_for_new_and_closed_pools() -> None:
    core = StateHarness()
    core.state.check_not_open()
    core.open()
    with pytest.raises(PoolConfigError, match="is open already"):
        core.state.check_not_open()
    core.ask(core.state.suspend)
    with pytest.raises(PoolConfigError, match="is suspended already"):
        core.state.check_not_open()
    core.close()
    with pytest.raises(PoolConfigError, match="is closing already"):
        core.state.check_not_open()
    core.end_close()
    core.state.check_not_open()


def test_close_fails_waiters_and_cleans_free_slots() -> None:
    core = harness(limit=2)
    held, free = core.leases(2)
    core.release(free)
    held_too = core.lease()
    callers = [core.acquire(), core.acquire()]
    core.close()
    assert all(isinstance(caller.error, PoolClosed) and caller.woken == 1 for caller in callers)
    assert not core.waiting()
    with pytest.raises(PoolClosed, match="closing"):
        core.acquire()
    core.release(held)
    core.release(held_too)
    assert core.count("clean") == 2
    assert core.count("create") == 0
    assert not core.free()


def test_close_returns_the_generation_that_has_to_go() -> None:
    """The pool is over once that generation is gone and `closed` was called."""
    core = harness()
    slot = core.have_free(1)[0]
    generation = core.close()
    drainer = Caller()
    assert core.ask(core.state.wait_gone, drainer, generation)
    assert not core.state.is_over()
    assert core.cleaned() is slot
    assert drainer.woken == 1
    assert not core.ask(core.state.wait_gone, Caller(), generation)
    assert not core.state.is_over(), "the pool was not closed"
    core.end_close()
    assert core.status == "closed"
    assert core.state.is_over()
    assert core.do(core.state.inventory.take) is None


def test_closing_a_closed_pool_leaves_it_closed() -> None:
    core = harness()
    core.close()
    core.end_close()
    generation = core.close()
    assert core.status == "closed"
    assert not core.ask(core.state.wait_gone, Caller(), generation)


def test_only_a_pool_that_closes_is_closed() -> None:
    core = harness()
    core.end_close()
    assert core.status == "open"


def test_close_that_ends_late_leaves_the_next_life_alone() -> None:
    core = harness()
    late = core.close()
    core.end_close()
    core.open()
    core.lease()
    core.close()
    core.state.closed(late)
    assert core.status == "closing"
    assert core.ask(core.state.was_reopened_since, late)
    core.end_close()
    assert core.status == "closed"


def test_closed_pool_is_not_over_while_a_lease_is_out() -> None:
    core = harness()
    slot = core.lease()
    core.do(core.state.write_off, core.close())
    core.end_close()
    assert not core.state.is_over()
    core.release(slot)
    core.cleaned()
    assert core.state.is_over()


def test_opening_again_forgets_that_create_failed() -> None:
    core = down(min_free=1)
    core.close()
    core.end_close()
    core.open()
    assert core.count("create") == 1
    assert core.state.backoff.failures == 0


def test_write_off_ends_leases_and_names_their_holders() -> None:
    core = harness(limit=2).listen("on_release")
    slot, other = core.leases(2)
    slot.holder = "GET /items"
    core.now += 3
    generation = core.close()
    drainer = Caller()
    assert core.ask(core.state.wait_gone, drainer, generation)
    core.release(other)
    core.cleaned()
    core.notified()
    assert drainer.woken == 0
    holds = core.do(core.state.write_off, generation)
    assert [(hold.holder, hold.age) for hold in holds] == [("GET /items", 3.0)]
    assert core.notified() == [("on_release", 3.0)]
    assert drainer.woken == 1
    stats = snapshot.stats(core.state, core.now)
    assert (stats.acquires, stats.releases, stats.leased, stats.use.sum) == (2, 2, 0, 6.0)


def test_all_that_is_out_is_written_off() -> None:
    core = harness()
    slots = core.leases(2)
    assert len(core.do(core.state.write_off, core.close())) == 2
    assert [slot.generation for slot in slots] == [LOST, LOST]
    assert not core.state.inventory.slots


def test_written_off_resource_is_cleaned_on_return() -> None:
    """Listeners heard of its release at the write-off and hear of it only once."""
    core = harness().listen("on_release", "on_discard", "on_clean")
    slot = core.lease()
    core.do(core.state.write_off, core.close())
    core.end_close()
    core.open()
    core.notified()
    core.release(slot)
    assert core.asked[Effect.CLEAN] == [slot]
    assert core.notified() == [("on_discard", "expire")]
    core.cleaned()
    assert core.notified() == [("on_clean",)]
    assert core.state.counters.cleans == 1


def test_written_off_resource_takes_no_room() -> None:
    """It comes back through the lock."""
    core = harness(limit=1)
    slot = core.lease()
    core.do(core.state.write_off, core.close())
    core.end_close()
    core.open()
    assert core.lease() is not slot
    assert core.state.inventory.needs_lock
    core.release(slot)
    core.cleaned()
    assert not core.state.inventory.needs_lock


def test_only_what_is_as_old_as_said_is_written_off() -> None:
    core = harness(limit=2)
    old = core.lease()
    generation = core.do(core.state.expire)
    new = core.lease()
    holds = core.do(core.state.write_off, generation)
    assert len(holds) == 1
    assert old.generation == LOST
    assert new.generation != LOST


def test_expire_cleans_free_ones_now_and_others_on_return() -> None:
    core = harness(limit=4, min_free=1, has_change=True)
    core.created()
    held, changing, free = core.leases(3)
    core.release(free)
    core.changed()
    core.release(changing)
    core.create_all()
    before = len(core.free())
    core.do(core.state.expire)
    assert core.count("clean") == before == core.discards()["expire"]
    core.changed()
    core.release(held)
    assert core.discards()["expire"] == before + 2
    assert core.count("create") > 0, "min_free is made anew"


def test_put_back_takes_the_lock_while_older_ones_are_left() -> None:
    core = harness(limit=2)
    old, other = core.leases(2)
    core.release(other)
    core.do(core.state.expire)
    new = core.lease()
    core.state.inventory.end(new, core.now)
    assert not core.state.inventory.put_back(new, core.now)
    core.do(core.state.release, new)
    core.release(old)
    core.cleaned()
    assert core.state.inventory.needs_lock
    core.cleaned()
    assert not core.state.inventory.needs_lock
    assert core.free() == [new]


def test_drain_waits_for_all_that_existed_and_none_newer() -> None:
    core = harness(limit=3)
    held = core.lease()
    caller = core.acquire()
    generation = core.do(core.state.expire)
    drainer = Caller()
    assert core.ask(core.state.wait_gone, drainer, generation)
    core.release(held)
    core.cleaned()
    assert drainer.woken == 0, "something is being created still"
    late = core.created()
    assert core.created() is caller.slot
    assert drainer.woken == 0, "and now cleaned"
    assert core.cleaned() is late
    assert drainer.woken == 1


def test_a_drainer_that_gave_up_is_not_woken() -> None:
    core = harness()
    core.have_free(1)
    gone, stays, stays_too = Caller(), Caller(), Caller()
    generation = core.do(core.state.expire)
    for drainer in (gone, stays, stays_too):
        core.ask(core.state.wait_gone, drainer, generation)
    core.ask(core.state.forget, gone)
    core.cleaned()
    assert (gone.woken, stays.woken, stays_too.woken) == (0, 1, 1)


def test_a_forked_child_begins_anew_with_the_same_settings() -> None:
    core = harness(limit=3, min_free=2, has_check=True, has_change=True).listen("on_create", "on_acquire")
    slot = core.lease()
    core.do(core.state.resize, 2)
    core.asked[Effect.NOTIFY].clear()
    inherited = core.state.fork()
    assert core.status == "forked"
    assert slot in vars_of(inherited)["inventory"].taken.values()
    assert (core.state.limit, core.state.policy.limit) == (2, 3)
    assert (core.state.has_check, core.state.has_change) == (True, True)
    assert not core.state.inventory.slots
    assert not core.state.inventory.creating
    assert not core.state.effects
    with pytest.raises(PoolClosed, match="forked from"):
        core.acquire()
    core.asked[Effect.CREATE].clear()
    core.state.check_not_open()
    core.open()
    assert core.count("create") == 2
    core.created()
    core.lease()
    assert [event for event, *_ in core.notified()].count("on_acquire") == 1
    assert core.state.inventory.needs_lock, "each lease is told"


def vars_of(inherited: object) -> dict[str, Any]:
    assert isinstance(inherited, dict)
    return inherited


def test_forked_pool_without_resources_keeps_its_status() -> None:
    core = StateHarness()
    core.state.fork()
    assert core.status == "new"
    core.open()
    core.release(core.lease())
    core.close()
    core.cleaned()
    core.end_close()
    core.state.fork()
    assert core.status == "closed"
    assert core.state.counters.create.count() == 0, "what its parent has counted is its parent's"


def test_a_forked_child_creates_as_if_nothing_had_happened() -> None:
    core = harness(limit=2)
    for _ in range(2):
        core.acquire()
    core.state.fork()
    core.asked[Effect.CREATE].clear()
    core.open()
    core.acquire()
    assert core.count("create") == 1


def test_all_calls_that_will_never_end_are_given_up_at_once() -> None:
    core = harness(limit=8, has_check=True, has_change=True)
    slots = core.leases(6)
    for slot in slots[:4]:
        core.release(slot)
        core.changed()
    for slot in slots[4:]:
        core.release(slot)
    for slot in slots[:2]:
        core.ask(core.state.reserve, slot)
    core.do(core.state.expire)
    assert (
        len(core.state.inventory.checking),
        len(core.state.inventory.changing),
        len(core.state.inventory.cleaning),
    ) == (
        2,
        2,
        2,
    )
    core.close()
    core.do(core.state.abandon)
    assert (
        len(core.state.inventory.checking),
        len(core.state.inventory.changing),
        len(core.state.inventory.cleaning),
    ) == (
        0,
        0,
        4,
    )
    assert core.discards() == {"expire": 2, "check": 2, "change": 2}
    assert core.state.counters.clean_failures == 2


def test_abandoned_change_wakes_caller_and_cleans() -> None:
    core = harness(has_change=True)
    done = Caller()
    core.release(core.lease(), done)
    core.close()
    core.do(core.state.abandon)
    assert done.woken == 1
    assert core.discards() == {"change": 1}
    assert core.count("clean") == 1
    core.cleaned()
    assert core.state.generations.total() == 0


def test_abandoned_creations_fail_and_restart_for_waiters() -> None:
    core = harness(limit=2)
    core.acquire()
    core.acquire()
    generation = core.do(core.state.expire)
    drainer = Caller()
    assert core.ask(core.state.wait_gone, drainer, generation)
    core.asked[Effect.CREATE].clear()
    core.do(core.state.abandon)
    assert core.state.counters.create_failures == 2
    assert drainer.woken == 1
    assert core.count("create") == 2
    assert core.state.backoff.failures == 0
