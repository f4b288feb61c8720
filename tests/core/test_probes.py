"""Decisions about probes: what the pool knows of its back-end, and when it asks."""

from connectionpools_fastapi import (
    PoolClosed,
)
from connectionpools_fastapi._core.effects import Effect
from tests.state_harness import StateHarness, down, harness, probe


def test_probe_trusts_a_create_or_check_for_max_age() -> None:
    core = harness(has_check=True, check_after=0.0, min_free=1)
    core.created()
    assert probe(core)[0] is True
    core.now += 5
    assert probe(core)[0] is True
    core.now += 0.1
    answer, watcher = probe(core)
    assert answer is None
    assert core.count("check") == 1
    core.now += 1
    core.checked()
    assert (watcher.woken, watcher.error) == (1, None)
    assert probe(core)[0] is True
    core.now += 5
    assert probe(core)[0] is True
    core.lease()
    assert watcher.woken == 1


def test_a_pool_that_is_closed_or_down_does_not_answer() -> None:
    core = down()
    assert probe(core)[0] is False
    assert core.count("create") == 0
    core.close()
    assert probe(core)[0] is False
    core = StateHarness()
    assert probe(core)[0] is False


def test_a_suspended_pool_is_not_asked() -> None:
    core = harness(has_check=True)
    core.have_free(1)
    core.now += 9
    core.ask(core.state.suspend)
    assert probe(core)[0] is True
    assert core.count("check") == 0


def test_probe_of_empty_pool_creates_one_that_stays() -> None:
    core = harness()
    answer, watcher = probe(core)
    assert answer is None
    assert core.count("create") == 1
    second = probe(core)[1]
    assert core.count("create") == 1, "one is under way"
    slot = core.created()
    assert (watcher.woken, second.woken) == (1, 1)
    assert core.free() == [slot]


def test_probe_passes_untested_where_all_are_in_use() -> None:
    core = harness(has_check=True, limit=2)
    core.lease()
    core.now += 9
    assert probe(core)[0] is True
    assert core.count("create") == 0
    core.acquire()
    assert probe(core)[0] is True, "that a creation is slow says nothing while others work"
    assert core.count("create") == 1
    assert core.count("check") == 0


def test_without_a_check_what_is_free_is_taken_to_work() -> None:
    core = harness()
    core.have_free(1)
    core.now += 9
    assert probe(core)[0] is True
    assert len(core.free()) == 1


def test_probe_checks_the_longest_unused_resource() -> None:
    core = harness(has_check=True, limit=2)
    cold, _ = core.have_free(2)
    core.now += 9
    assert probe(core)[0] is None
    assert core.asked[Effect.CHECK] == [cold]


def test_a_probe_waits_for_a_check_that_is_under_way() -> None:
    core = harness(has_check=True, limit=2, check_after=0.0)
    core.have_free(2)
    core.now += 9
    core.acquire()
    assert core.count("check") == 1
    assert probe(core)[0] is None
    assert core.count("check") == 1


def test_probe_passes_while_create_fails_but_one_exists() -> None:
    core = harness(has_check=True, limit=2, check_after=0.0)
    slot = core.lease()
    caller = core.acquire()
    core.failed()
    core.do(core.state.cancel, caller)
    core.release(slot)
    core.now += 9
    assert probe(core)[0] is True
    assert core.count("check") == 0


def test_probe_fails_after_its_patience() -> None:
    core = harness()
    assert probe(core)[0] is None
    core.now += 1
    assert probe(core)[0] is None
    core.now += 0.9
    assert probe(core)[0] is None
    core.now += 0.1
    assert probe(core)[0] is False, "patience is counted from the first one"
    core.created()
    core.now += 9
    core.lease()
    assert probe(core)[0] is True


def test_failed_check_makes_a_probe_try_the_next() -> None:
    core = harness(has_check=True, limit=2)
    core.have_free(2)
    core.now += 9
    watcher = probe(core)[1]
    core.checked(healthy=False)
    assert watcher.woken == 0
    assert core.count("check") == 1
    core.checked(healthy=False)
    assert watcher.woken == 0
    assert core.count("create") == 1
    core.failed()
    assert (watcher.woken, watcher.error) == (1, None), "it may be a flake"
    again = probe(core)
    assert again[0] is True
    core.failed()
    core.advance(1)
    assert probe(core)[0] is False


def test_failed_check_ends_probe_where_rest_is_in_use() -> None:
    core = harness(has_check=True, limit=2)
    core.leases(2)
    free = core.state.inventory.taken
    core.release(next(iter(free.values())))
    core.now += 9
    watcher = probe(core)[1]
    core.checked(healthy=False)
    assert (watcher.woken, watcher.error) == (1, None)
    assert core.count("check") == 0


def test_probe_creates_nothing_while_pool_is_suspended() -> None:
    core = harness(has_check=True)
    core.have_free(1)
    core.now += 9
    watcher = probe(core)[1]
    core.ask(core.state.suspend)
    core.checked(healthy=False)
    assert core.count("create") == 0
    assert (watcher.woken, watcher.error) == (1, None)


def test_failed_check_without_a_probe_tries_no_other() -> None:
    core = harness(has_check=True, limit=2, check_after=0.0)
    core.have_free(2)
    caller = core.acquire()
    core.do(core.state.cancel, caller)
    core.checked(healthy=False)
    assert core.count("check") == 0
    assert core.count("create") == 0


def test_each_probe_has_its_full_patience_again() -> None:
    core = harness(has_check=True, check_after=0.0)
    probe(core)
    core.now += 1
    core.created()
    core.now += 9
    assert probe(core)[0] is None
    core.now += 1.9
    assert probe(core)[0] is None


def test_closing_fails_a_probe_unless_it_was_forgotten() -> None:
    core = harness()
    watcher, gone = probe(core)[1], probe(core)[1]
    core.ask(core.state.forget, gone)
    core.close()
    assert isinstance(watcher.error, PoolClosed)
    assert (watcher.woken, gone.woken) == (1, 0)
