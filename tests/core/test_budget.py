"""The budget: when a pool gives a resource up for another member, and which creations still wait for a token."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectionpools_fastapi import PoolTimeout
from connectionpools_fastapi._core.slot import Creation
from connectionpools_fastapi._core.state import UNUSED_AFTER
from tests.state_harness import StateHarness, harness


class Unlimited:
    """A budget that the state only knows to exist."""

    floor = 1

    async def join(self, member: object) -> Any: ...


def member(**options: Any) -> StateHarness:
    return harness(budget=Unlimited(), **options)


def give_way(core: StateHarness, level: int | None = None, floor: int = 1, count: int = 1) -> int:
    """Ask for tokens; returns how many resources are being given up at once."""
    core.advance(UNUSED_AFTER)
    before = core.count("clean")
    core.do(core.state.give_way, level, count, floor)
    return core.count("clean") - before


def only_creation(core: StateHarness) -> Creation:
    (creation,) = core.state.inventory.creating
    return creation


# --- give way ---------------------------------------------------------------------------------


def test_give_way_discards_the_coldest_unused_one() -> None:
    core = member(limit=3)
    coldest, *others = core.have_free(3)
    assert give_way(core) == 1
    assert core.cleaned() is coldest
    assert core.free() == others
    assert core.discards() == {"budget": 1}


def test_give_way_keeps_what_was_used_a_moment_ago() -> None:
    core = member(limit=2)
    core.have_free(2)
    core.do(core.state.give_way, None, 2, 1)
    assert core.count("clean") == 0
    core.do(core.state.give_way, 1, 2, 1)  # unless it is above the level
    assert core.count("clean") == 1


def test_give_way_keeps_the_floor() -> None:
    core = member(limit=3)
    core.have_free(3)
    assert [give_way(core, floor=2) for _ in range(3)] == [1, 0, 0]
    core.have_free(3)
    assert give_way(core, floor=1, count=5) == 2


def test_give_way_keeps_unused_ones_of_min_free() -> None:
    core = member(limit=5, min_free=2)
    core.create_all()
    core.have_free(4)
    assert [give_way(core) for _ in range(3)] == [1, 1, 0]


def test_richer_member_gives_up_the_next_that_returns() -> None:
    core = member(limit=3)
    slots = core.leases(3)
    assert give_way(core, level=2) == 0
    waiter = core.acquire()
    core.release(slots[0])
    assert core.cleaned() is slots[0]
    core.release(slots[1])
    assert waiter.slot is slots[1]


@pytest.mark.parametrize("times", [1, 5])
@pytest.mark.parametrize(("level", "given"), [(None, 0), (0, 3), (1, 2), (2, 1), (3, 0)])
def test_busy_member_gives_up_what_is_above_the_level(level: int | None, given: int, times: int) -> None:
    core = member(limit=3)
    slots = core.leases(3)
    for _ in range(times):
        give_way(core, level=level, count=6 - times)
    for slot in slots:
        core.release(slot)
    assert core.count("clean") == given


def test_resource_that_goes_for_another_reason_counts() -> None:
    core = member(limit=3)
    slots = core.leases(3)
    give_way(core, level=2)
    core.state.inventory.end(slots[0], core.now)
    core.do(core.state.discard, slots[0])
    core.release(slots[1])
    assert core.free() == [slots[1]]


def test_returned_resource_is_not_changed_in_vain() -> None:
    core = member(limit=2, has_change=True)
    slots = core.leases(2)
    give_way(core, level=1)
    core.release(slots[0])
    assert (core.count("change"), core.count("clean")) == (0, 1)


def test_fast_path_is_used_again_once_a_resource_is_given_up() -> None:
    core = member(limit=2)
    slots = core.leases(2)
    give_way(core, level=1)
    assert core.state.inventory.needs_lock
    for slot in slots:
        core.release(slot)
    assert not core.state.inventory.needs_lock


def test_reopened_pool_owes_nothing() -> None:
    core = member(limit=2)
    core.leases(2)
    give_way(core, level=1)
    core.close()
    core.end_close()
    core.open()
    assert not core.state.retirement.owed


@given(st.tuples(st.integers(0, 20), st.integers(0, 20)))
def test_two_busy_members_never_give_way_in_turn(tokens: tuple[int, int]) -> None:
    """Each asks the other again and again: the tokens end even, and then stay."""
    pools = [member(limit=40) for _ in tokens]
    slots = [pool.leases(number) for pool, number in zip(pools, tokens, strict=True)]
    moved = 0
    for turn in range(60):
        asking, asked = turn % 2, 1 - turn % 2
        if not slots[asked]:
            continue
        give_way(pools[asked], level=len(slots[asking]) + 1, floor=0)
        pools[asked].release(slots[asked].pop())
        is_given = pools[asked].count("clean") > 0
        if is_given:
            pools[asked].cleaned()
            moved += 1
        slots[asking if is_given else asked].append(pools[asking if is_given else asked].lease())
    assert moved == abs(tokens[0] - tokens[1]) // 2
    assert abs(len(slots[0]) - len(slots[1])) <= 1


# --- creations that wait for a token ----------------------------------------------------------


def test_creation_is_needed_while_its_caller_waits() -> None:
    core = member(limit=2)
    caller = core.acquire()
    assert not core.do(core.state.drop_unneeded, only_creation(core))
    core.do(core.state.cancel, caller)
    assert core.do(core.state.drop_unneeded, only_creation(core))
    assert not core.state.inventory.creating
    assert core.state.is_open


def test_dropped_creation_is_no_failure_and_gives_its_place_back() -> None:
    core = member(limit=1)
    caller = core.acquire()
    core.do(core.state.cancel, caller)
    core.do(core.state.drop_unneeded, only_creation(core))
    assert core.state.counters.create_failures == 0
    core.acquire()
    assert core.state.inventory.creating


def test_creation_of_min_free_and_of_a_probe_is_needed() -> None:
    assert not (core := member(limit=2, min_free=1)).do(core.state.drop_unneeded, only_creation(core))
    core = member(limit=2)
    core.do(core.state.probe, core.acquire(), 5.0, 2.0)
    assert not core.do(core.state.drop_unneeded, only_creation(core))


@pytest.mark.parametrize("what", ["close", "suspend", "expire"])
def test_creation_is_dropped_if_the_pool_has_no_use_for_it(what: str) -> None:
    core = member(limit=2)
    core.acquire()
    creation = only_creation(core)
    if what == "suspend":
        core.ask(core.state.suspend)
    else:
        core.do(getattr(core.state, what))
    assert core.do(core.state.drop_unneeded, creation)
    assert creation not in core.state.inventory.creating
    assert bool(core.state.inventory.creating) == (what == "expire")  # anew, since its caller waits


def test_creation_of_a_loop_that_has_ended_is_gone() -> None:
    core = member(limit=1)
    core.acquire()
    creation = only_creation(core)
    core.do(core.state.abandon)
    assert core.do(core.state.drop_unneeded, creation)


def test_creation_begins_when_it_has_its_token() -> None:
    core = member(limit=1)
    core.acquire()
    core.advance(4)
    core.do(core.state.allow, only_creation(core))
    core.advance(1)
    core.created()
    assert core.state.counters.create.sum == 1


def test_timeout_says_that_the_budget_has_no_token() -> None:
    core = member(limit=1)
    waiter = core.acquire(timeout=1)
    core.advance(1)
    assert isinstance(waiter.error, PoolTimeout)
    assert "The budget has no token left" in str(waiter.error)


def test_tokens_are_needed_from_creation_to_the_end_of_clean() -> None:
    core = member(limit=2)
    needed = core.state.inventory.in_being
    core.acquire()
    assert needed() == 0
    core.do(core.state.allow, only_creation(core))
    assert needed() == 1
    slot = core.created()
    assert needed() == 1
    generation = core.close()
    core.do(core.state.write_off, generation)
    assert needed() == 1
    core.release(slot)
    assert (needed(), core.count("clean")) == (1, 1)
    core.cleaned()
    assert needed() == 0
