"""Priorities: which waiter is served first, kept and refused."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.simulated import Client, Simulation, poisson
from connectionpools_fastapi import Overloaded, PoolTimeout, TooManyWaiting
from connectionpools_fastapi._core.terms import HIGH, LOW, NORMAL, RANKS, Priority
from connectionpools_fastapi._core.wait_queue import PROMOTE_AFTER
from tests.state_harness import StateHarness, harness
from tests.support import Caller

ORDER: list[Priority] = ["low", "normal", "high"]


def full(**options: Any) -> tuple[StateHarness, Any]:
    """Return a pool whose only resource is leased."""
    core = harness(limit=1, **options)
    return core, core.lease()


def served(core: StateHarness, slot: Any, callers: list[Caller]) -> list[int]:
    """Serve all waiters; returns the order, by the callers' numbers."""
    order: list[int] = []
    while len(order) < len(callers):
        core.release(slot)
        (now,) = [number for number, caller in enumerate(callers) if caller.slot is not None and number not in order]
        order.append(now)
    return order


def test_higher_priority_is_served_first_and_fifo_within() -> None:
    core, slot = full()
    callers = [core.acquire(priority=priority) for priority in (*ORDER, *ORDER)]
    assert served(core, slot, callers) == [2, 5, 1, 4, 0, 3]


@given(st.lists(st.sampled_from([*ORDER, "leave", "serve"]), max_size=60), st.randoms())
def test_any_mix_is_served_by_priority_and_arrival(steps: list[Any], chance: random.Random) -> None:
    core, slot = full()
    waiting: list[tuple[int, int, Caller]] = []
    for number, step in enumerate(steps):
        if step in ORDER:
            caller = core.acquire(priority=step)
            waiting.append((caller.rank, number, caller))
        elif waiting and step == "leave":
            core.do(core.state.cancel, waiting.pop(chance.randrange(len(waiting)))[2])
        elif waiting:
            waiting.sort(key=lambda entry: entry[:2])
            core.release(slot)
            assert waiting.pop(0)[2].slot is slot
        assert [caller for *_, caller in sorted(waiting, key=lambda entry: entry[:2])] == list(core.state.queue)
        for rank in (HIGH, NORMAL, LOW):
            assert core.state.queue.ahead_of(rank) == sum(other <= rank for other, *_ in waiting)


def test_low_waiter_counts_as_normal_after_half_its_timeout() -> None:
    core, slot = full()
    first = core.acquire(10, priority="normal")
    old = core.acquire(4, priority="low")
    core.advance(1)
    later, young = core.acquire(10, priority="normal"), core.acquire(10, priority="low")
    core.advance(1)
    assert list(core.state.queue) == [first, old, later, young]
    assert core.state.queue.ahead_of(NORMAL) == 3
    assert served(core, slot, [first, old, later, young]) == [0, 1, 2, 3]


@pytest.mark.parametrize("timeout", [None, 1000])
def test_low_waiter_counts_as_normal_after_a_minute(timeout: float | None) -> None:
    core, _ = full()
    low = core.acquire(timeout, priority="low")
    core.advance(PROMOTE_AFTER - 1)
    assert low.rank == LOW
    core.advance(1)
    later = core.acquire()
    assert list(core.state.queue) == [low, later]


def test_low_waiter_that_left_is_not_promoted() -> None:
    core, slot = full()
    gone, stays = core.acquire(4, priority="low"), core.acquire(6, priority="low")
    core.do(core.state.cancel, gone)
    core.advance(3)
    assert list(core.state.queue) == [stays]
    assert stays.rank == NORMAL
    core.release(slot)
    assert stays.slot is slot


@pytest.mark.parametrize("priority", ORDER)
def test_timeout_ends_the_wait_of_each_priority(priority: Priority) -> None:
    core, _ = full()
    before, caller, after = core.acquire(9), core.acquire(4, priority=priority), core.acquire(9)
    core.advance(2)
    core.advance(1.9)
    assert caller.error is None
    core.advance(0.1)
    assert isinstance(caller.error, PoolTimeout)
    assert (before.error, after.error) == (None, None)


def test_timeouts_of_normal_waiters_around_a_promoted_one() -> None:
    core, _ = full()
    low = core.acquire(8, priority="low")
    core.now += 1
    early = core.acquire(5)
    core.advance(3)  # the low one is promoted, before a normal one that came later
    assert list(core.state.queue) == [low, early]
    late = core.acquire(1.5)
    core.advance(1.5)
    assert isinstance(late.error, PoolTimeout)
    core.advance(0.5)
    assert isinstance(early.error, PoolTimeout)
    core.advance(2)
    assert isinstance(low.error, PoolTimeout)


def test_full_queue_refuses_the_last_of_the_lowest_priority() -> None:
    core, _ = full(max_waiting=3)
    low, lower, normal = core.acquire(priority="low"), core.acquire(priority="low"), core.acquire()
    high = core.acquire(priority="high")
    assert isinstance(lower.error, TooManyWaiting)
    assert [caller.error for caller in (low, normal, high)] == [None] * 3
    core.acquire()
    assert isinstance(low.error, TooManyWaiting)
    for priority in ("normal", "low"):
        with pytest.raises(TooManyWaiting):
            core.acquire(priority=priority)
    core.acquire(priority="high")
    assert core.refusals() == {"full": 5}
    assert core.state.counters.refusals_by_rank == [0, 2, 3]  # the ranks of those that were refused


def test_low_newcomer_cannot_displace_one_of_its_own() -> None:
    core, _ = full(max_waiting=1)
    low = core.acquire(priority="low")
    with pytest.raises(TooManyWaiting):
        core.acquire(priority="low")
    assert low.error is None


def busy(**options: Any) -> tuple[StateHarness, Any]:
    """Return a pool of one with a lease a second, behind which ten normal callers wait."""
    core, slot = full(timeout=None, **options)
    for _ in range(35):
        core.acquire()
    for _ in range(25):
        core.advance(1)
        core.release(slot)
    return core, slot


def test_expected_wait_counts_only_callers_that_are_served_before() -> None:
    core, _ = busy()
    overload = core.state.overload
    core.acquire(priority="low"), core.acquire(priority="high")
    expected = [overload.expected_wait(core.now, rank) for rank in (HIGH, NORMAL, LOW)]
    assert expected == [pytest.approx(each) for each in (2, 12, 13)]
    core.acquire(3, priority="high")
    for priority in ("normal", "low"):
        with pytest.raises(Overloaded):
            core.acquire(3, priority=priority)
    assert core.state.counters.refusals_by_rank == [0, 1, 1]


def test_refused_newcomer_displaces_no_waiter() -> None:
    core, _ = busy(max_waiting=35)
    low = [core.acquire(priority="low") for _ in range(25)]
    with pytest.raises(Overloaded):
        core.acquire(3)
    assert [caller.error for caller in low] == [None] * 25
    assert core.refusals() == {"overloaded": 1}
    core.acquire()
    assert isinstance(low[-1].error, TooManyWaiting)


def test_high_callers_are_served_within_two_holds_at_3x() -> None:
    limit, hold, seconds = 10, 0.02, 6.0

    def client(at: float, chance: random.Random) -> Client:
        is_high = chance.random() < 0.1
        client = Client(at, 1.0, "high" if is_high else "normal")
        client.rank = RANKS["high" if is_high else "normal"]
        return client

    outcomes = Simulation(limit, lambda: hold).run(poisson(3 * limit / hold, seconds, client, seed=7), seconds)
    waits = [wait for kind, wait in outcomes.waits if kind == "high"]
    lost = sum(number for (kind, end), number in outcomes.ends.items() if kind == "high" and end != "served")
    assert len(waits) > 500
    assert sum(wait <= 2 * hold for wait in waits) >= 0.99 * (len(waits) + lost)
    assert outcomes.goodput >= 0.95


def test_low_callers_are_refused_first_at_2x() -> None:
    """The normal ones alone would leave a quarter of the pool to the low ones."""
    limit, hold, seconds = 10, 0.02, 6.0

    def client(at: float, chance: random.Random) -> Client:
        priority: Priority = "normal" if chance.random() < 3 / 8 else "low"
        client = Client(at, 1.0, priority)
        client.rank = RANKS[priority]
        return client

    outcomes = Simulation(limit, lambda: hold).run(poisson(2 * limit / hold, seconds, client, seed=7), seconds)
    normal = [number for (kind, end), number in outcomes.ends.items() if kind == "normal" and end != "served"]
    assert sum(normal) <= 0.01 * outcomes.count("served", "normal")
    assert outcomes.count("refused", "low") > 1000
    assert outcomes.goodput >= 0.95
