"""Decisions about new resources, and about checks."""

import pytest

from connectionpools_fastapi import (
    PoolConfigError,
)
from connectionpools_fastapi._core.effects import Effect
from tests.state_harness import harness
from tests.support import Resource

# --- what was created ---------------------------------------------------------------------------


def test_spare_creation_is_free_and_fresh_for_check_after() -> None:
    core = harness(has_check=True, check_after=2.0, min_free=1)
    slot = core.created()
    assert core.free() == [slot]
    assert slot.fresh_until == core.now + 2
    assert slot.leases == 0
    assert slot.since == core.now
    core.now += 2
    assert core.acquire().slot is slot


def test_spare_creation_is_used_next_unless_fifo() -> None:
    for reuse, place in (("lifo", 1), ("fifo", 0)):
        core = harness(limit=2, reuse=reuse)
        old = core.lease()
        core.do(core.state.cancel, core.acquire())
        core.release(old)
        new = core.created()
        assert core.acquire().slot is (old, new)[place]


def test_what_was_created_too_late_is_cleaned() -> None:
    core = harness(limit=1)
    caller = core.acquire()
    core.do(core.state.expire)
    slot = core.created()
    assert core.asked[Effect.CLEAN] == [slot]
    assert core.discards() == {"expire": 1}
    assert core.created() is caller.slot


def test_an_object_that_the_pool_has_is_no_new_resource() -> None:
    core = harness(limit=3)
    leased, free = core.leases(2)
    core.release(free)
    leaving = core.lease()
    for slot, place in ((leased, "taken"), (leaving, "slots")):
        assert core.state.inventory.has_seen(slot.resource), place
    core.state.inventory.end(leaving, core.now)
    core.do(core.state.discard, leaving)
    assert core.state.inventory.has_seen(leaving.resource), "it is being cleaned"
    assert not core.state.inventory.has_seen(Resource(9))
    caller = core.acquire()
    core.do(core.state.created, core.asked[Effect.CREATE].pop(), leased.resource)
    assert isinstance(caller.error, PoolConfigError)
    assert "already holds" in str(caller.error)
    assert core.state.counters.create_failures == 1
    assert len(core.state.inventory.slots) == 1


def test_an_object_that_is_free_is_no_new_resource() -> None:
    core = harness()
    assert core.state.inventory.has_seen(core.have_free(1)[0].resource)


def test_written_off_object_still_out_is_no_new_resource() -> None:
    core = harness()
    slot = core.lease()
    core.do(core.state.write_off, core.close())
    assert slot.key not in core.state.inventory.slots
    assert core.state.inventory.has_seen(slot.resource)
    core.release(slot)
    assert core.state.inventory.has_seen(slot.resource)
    core.cleaned()
    assert not core.state.inventory.has_seen(slot.resource)


def test_listeners_are_told_how_long_it_took() -> None:
    core = harness(min_free=1).listen()
    core.now += 3
    core.created()
    assert core.notified() == [("on_create", 3.0)]


# --- checks -------------------------------------------------------------------------------------


def test_stale_resource_is_checked_and_goes_to_its_waiter() -> None:
    core = harness(limit=1, has_check=True, check_after=1.0)
    slot = core.have_free(1)[0]
    core.now += 2
    caller = core.acquire()
    assert core.asked[Effect.CHECK] == [slot]
    assert caller.slot is None
    core.now += 3
    core.checked()
    assert caller.slot is slot
    assert slot.checked_at == core.now
    assert slot.fresh_until == core.now + 1
    assert core.discards() == {}


def test_no_more_are_checked_than_wait() -> None:
    core = harness(limit=3, has_check=True, check_after=1.0)
    cold, _, warm = core.have_free(3)
    core.now += 2
    core.acquire()
    assert core.asked[Effect.CHECK] == [warm]
    core.acquire()
    assert core.count("check") == 2
    assert core.free() == [cold]


def test_no_more_are_created_and_checked_than_wait() -> None:
    core = harness(limit=9, has_check=True, check_after=1.0)
    core.have_free(2)
    core.now += 2
    for _ in range(4):
        core.acquire()
    assert (core.count("check"), core.count("create")) == (2, 2)


def test_failed_check_cleans_and_tries_next_for_the_caller() -> None:
    core = harness(limit=2, has_check=True, check_after=1.0)
    cold, warm = core.have_free(2)
    core.now += 2
    caller = core.acquire()
    assert core.checked(healthy=False) is warm
    assert core.discards() == {"check": 1}
    assert core.asked[Effect.CLEAN] == [warm]
    assert core.asked[Effect.CHECK] == [cold]
    assert core.waiting() == [caller]
    core.checked(healthy=False)
    assert core.created() is caller.slot


def test_failed_check_requires_checks_of_fresh_ones_too() -> None:
    core = harness(limit=3, has_check=True, check_after=1.0)
    cold, fresh, held = core.have_free(3)
    assert core.lease() is held
    core.now += 2
    assert core.acquire().slot is None
    assert core.asked[Effect.CHECK] == [fresh]
    core.release(held)  # goes to the waiter
    other = core.acquire()
    core.do(core.state.cancel, other)
    core.checked(healthy=False)
    assert [slot.fresh_until for slot in core.free()] == [float("-inf")] * len(core.free())
    assert cold in core.free()


def test_after_a_failed_check_each_free_one_is_doubted() -> None:
    core = harness(limit=3, has_check=True, check_after=10.0)
    *free, broken = core.have_free(3)
    core.ask(core.state.reserve, broken)
    core.do(core.state.checked, broken, healthy=False)
    assert [slot.fresh_until for slot in free] == [float("-inf")] * 2


def test_unwanted_check_keeps_slot_least_recently_used() -> None:
    core = harness(limit=2, has_check=True, check_after=1.0)
    first, second = core.have_free(2)
    core.now += 2
    caller = core.acquire()
    assert core.asked[Effect.CHECK] == [second]
    core.do(core.state.cancel, caller)
    core.checked()
    assert core.free() == [second, first]
    assert core.acquire().slot is second, "it is fresh, at whichever end"


def test_what_had_to_go_while_it_was_checked_is_cleaned() -> None:
    core = harness(limit=1, has_check=True, check_after=1.0)
    slot = core.have_free(1)[0]
    core.now += 2
    core.acquire()
    core.do(core.state.expire)
    core.checked()
    assert core.discards() == {"expire": 1}
    assert core.asked[Effect.CLEAN] == [slot]


@pytest.mark.parametrize("has_check", [True, False])
def test_fifo_spreads_leases_over_all_resources(*, has_check: bool) -> None:
    core = harness(limit=10, reuse="fifo", has_check=has_check, check_after=1.0)
    slots = core.have_free(10)
    for _ in range(20):
        core.advance(0.15)
        core.release(core.lease())
    assert [slot.leases for slot in slots] == [3] * 10


def test_fifo_caller_in_hanging_check_takes_released_one() -> None:
    core = harness(limit=2, reuse="fifo", has_check=True, check_after=1.0, max_lifetime=100.0)
    stale, busy = core.have_free(2)
    assert [core.lease(), core.lease()] == [stale, busy]
    core.release(stale)
    core.advance(2)
    caller = core.acquire()
    assert core.asked[Effect.CHECK] == [stale]
    core.release(busy)
    assert caller.slot is busy


def test_free_resource_too_old_is_cleaned_unchecked() -> None:
    core = harness(limit=1, has_check=True, check_after=1.0, max_lifetime=5.0)
    slot = core.have_free(1)[0]
    core.now += 5
    caller = core.acquire()
    assert core.count("check") == 0
    assert core.asked[Effect.CLEAN] == [slot]
    assert core.discards() == {"max_lifetime": 1}
    assert core.created() is caller.slot


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
def test_fresher_slots_stay_above_a_slot_put_back(free: list[int], fresh_until: int, then: list[int]) -> None:
    core = harness(limit=9, has_check=True, check_after=10.0)
    slots = core.have_free(len(free) + 1)
    lent = slots.pop()
    assert core.lease() is lent
    for slot, until in zip([*slots, lent], [*free, fresh_until], strict=True):
        slot.fresh_until = until
    core.state.inventory.end(lent, core.now)
    core.state.inventory.make_free(lent)
    assert [slot.fresh_until for slot in core.free()] == then


def test_what_is_put_back_stays_above_those_as_fresh() -> None:
    core = harness(limit=2, has_check=True, check_after=10.0)
    first, second = core.leases(2)
    core.release(first)
    core.state.inventory.end(second, core.now)
    second.fresh_until = first.fresh_until
    core.state.inventory.make_free(second)
    core.run_effects()
    assert core.free() == [first, second]
