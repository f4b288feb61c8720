"""Decisions that keep min_free resources ready, and about a pool that opens with them."""

from connectionpools_fastapi import (
    PoolClosed,
    ResourceUnavailable,
)
from tests.state_harness import harness
from tests.support import Caller

NEVER = float("inf")


def test_open_creates_min_free_and_makes_up_each_lease() -> None:
    core = harness(limit=4, min_free=2)
    assert core.count("create") == 2
    core.created()
    core.created()
    assert core.count("create") == 0
    assert core.do(core.state.inventory.take) is None, "a lease has to be made up for, which takes the lock"
    core.lease()
    assert core.count("create") == 1
    core.created()
    core.lease()
    core.lease()
    assert core.count("create") == 1, "up to the limit"
    core.created()
    assert len(core.free()) == 1
    assert core.do(core.state.inventory.take) is not None, "at the limit there is nothing to make up"


def test_to_try_makes_up_for_what_it_takes() -> None:
    core = harness(limit=2, min_free=1)
    core.created()
    assert core.do(core.state.try_acquire) is not None
    assert core.count("create") == 1


def test_more_than_min_free_are_taken_without_the_lock() -> None:
    core = harness(limit=4, min_free=1)
    core.created()
    core.have_free(2)
    assert len(core.free()) >= 2
    assert core.do(core.state.inventory.take) is not None


def test_opener_is_woken_at_each_outcome_until_min_free() -> None:
    core = harness(limit=4, min_free=2)
    opener, other = Caller(), Caller()
    assert core.do(core.state.watch_min_free, opener)
    assert core.do(core.state.watch_min_free, other)
    core.created()
    assert (opener.woken, other.woken) == (1, 1)
    again = Caller()
    assert core.do(core.state.watch_min_free, again)
    core.created()
    assert again.woken == 1
    assert not core.do(core.state.watch_min_free, Caller())
    assert core.state.probes.openings == []


def test_opener_is_told_once_the_back_end_is_down() -> None:
    for kept in (0, 1):  # also where one exists: without end it would wait for the other
        core = harness(limit=4, min_free=kept + 1, max_creating=1)
        for _ in range(kept):
            core.created()
        assert core.do(core.state.watch_min_free, Caller())
        core.failed()
        again = Caller()
        assert core.do(core.state.watch_min_free, again)
        core.failed()
        assert again.woken == 1
        third, fourth = Caller(), Caller()
        assert core.do(core.state.watch_min_free, third)
        core.advance(1)
        assert third.woken == 1, "also while a try hangs"
        assert not core.do(core.state.watch_min_free, fourth)
        assert isinstance(fourth.error, ResourceUnavailable)
        assert "cannot be opened: create failed 2 times" in str(fourth.error)


def test_opener_with_open_timeout_is_not_told() -> None:
    core = harness(limit=4, min_free=1, open_timeout=60.0)
    core.failed()
    core.failed()
    opener = Caller()
    assert core.do(core.state.watch_min_free, opener)
    core.advance(9)
    assert opener.woken == 0
    assert core.state.next_deadline() == NEVER, "a try is under way"
    core.failed()
    assert opener.woken == 1
    assert core.do(core.state.watch_min_free, Caller())


def test_opener_is_told_of_a_mistake_at_once() -> None:
    core = harness(limit=4, min_free=1, open_timeout=60.0)
    core.failed(TypeError())
    opener = Caller()
    assert not core.do(core.state.watch_min_free, opener)
    assert "TypeError" in str(opener.error)


def test_opener_is_told_that_the_pool_was_closed() -> None:
    core = harness(limit=4, min_free=1)
    opener, again = Caller(), Caller()
    assert core.do(core.state.watch_min_free, opener)
    core.close()
    assert opener.woken == 1
    assert not core.do(core.state.watch_min_free, again)
    assert isinstance(again.error, PoolClosed)


def test_opener_does_not_wait_while_pool_is_suspended() -> None:
    core = harness(limit=4, min_free=1)
    core.ask(core.state.suspend)
    caller = Caller()
    assert not core.do(core.state.watch_min_free, caller)
    assert caller.error is None


def test_cancelled_open_is_not_woken() -> None:
    core = harness(limit=4, min_free=1)
    one, other = Caller(), Caller()
    core.do(core.state.watch_min_free, one)
    core.do(core.state.watch_min_free, other)
    core.ask(core.state.forget, one)
    core.created()
    assert (one.woken, other.woken) == (0, 1)
