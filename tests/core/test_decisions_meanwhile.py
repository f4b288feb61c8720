"""Each decision while another thread is on the fast path, which needs no lock: it may come in between any two lines.

The threads are played by one, which traces the decision and steps in: so each of the
moments is met, every time, and none is left to chance.
"""

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from types import FrameType
from typing import Any

import pytest

from connectionpools_fastapi import WouldDeadlock, _core
from connectionpools_fastapi._core.effects import Effect
from tests.state_harness import Named, StateHarness
from tests.support import Caller

pytestmark = pytest.mark.needs_python  # it steps through lines

NEVER = float("inf")
OWNER = Named("the holder of everything")
CORE = _core.__path__[0]  # the state and its collaborators


# What another thread does, in three parts: before the decision, within it, and after it, with the lock.
Meanwhile = Callable[[StateHarness], Generator[None]]


def gives_back(core: StateHarness) -> Generator[None]:
    (slot,) = core.state.inventory.taken.values()
    yield
    core.state.inventory.end(slot, core.now)
    is_back, needs_lock = core.state.inventory.put_back(slot, core.now), core.state.inventory.needs_lock
    yield
    if not is_back:
        core.state.release(slot, core.now)
    elif needs_lock:
        core.state.rebalance(core.now)


def gives_back_after_it_saw_the_gate_open(core: StateHarness) -> Generator[None]:
    (slot,) = core.state.inventory.taken.values()
    core.state.inventory.end(slot, core.now)
    yield
    slot.fresh_until = core.now + 100
    core.state.inventory.free.append(slot)
    needs_lock = core.state.inventory.needs_lock
    yield
    if needs_lock:
        core.state.rebalance(core.now)


def takes(core: StateHarness) -> Generator[None]:
    yield
    core.state.inventory.take(core.now)
    yield


def takes_after_it_saw_the_gate_open(core: StateHarness) -> Generator[None]:
    yield
    slot = core.state.inventory.pop_fresh(core.now)
    if slot is not None:
        core.state.inventory.lease_out(slot, core.now)
    yield


def takes_slowly(core: StateHarness) -> Generator[None]:
    slot = core.state.inventory.pop_fresh(core.now)
    yield
    if slot is not None:
        core.state.inventory.lease_out(slot, core.now)
    yield


def at_work(*, leased: bool, free: int, busy: bool) -> StateHarness:
    """Return a pool of which the lock knows nothing to do; a busy one creates one and checks one."""
    core = StateHarness(limit=leased + free + 2 * busy, has_check=True, check_after=100.0, max_hold=50.0, max_waiting=9)
    core.is_trusted = True
    core.open()
    slots = [core.lease(owner=OWNER) for _ in range(leased + free + busy)]
    if busy:
        core.do(core.state.cancel, core.acquire())
    for slot in slots[leased:]:
        core.release(slot)
    if busy:
        core.ask(core.state.reserve, slots[-1])
        core.asked[Effect.CHECK].append(slots[-1])
    assert not core.state.inventory.needs_lock
    assert (len(core.state.inventory.taken), len(core.free())) == (leased, free)
    assert (core.count("create"), core.count("check")) == (busy, busy)
    core.is_trusted = False
    return core


def newcomer() -> Caller:
    caller = Caller()
    caller.owner = caller.request = caller
    return caller


def acquires(core: StateHarness) -> None:
    core.state.acquire(newcomer(), None, core.now)


def acquires_after_another_one(core: StateHarness) -> None:
    first = newcomer()
    if core.state.acquire(first, None, core.now) is None and core.state.acquire(newcomer(), None, core.now) is not None:
        assert first.slot is not None, "a caller was overtaken"


def acquires_as_the_holder(core: StateHarness) -> None:
    caller = newcomer()
    caller.owner = OWNER
    with suppress(WouldDeadlock):
        core.state.acquire(caller, None, core.now)


def create_fails(core: StateHarness) -> None:
    core.state.create_failed(core.asked[Effect.CREATE].pop(), OSError(), core.now)


def looks_at_leases(core: StateHarness) -> None:
    core.now += 50
    core.state.tick(core.now)


def moments(
    decide: Callable[[StateHarness], object], meanwhile: Meanwhile, *, leased: bool, free: int, busy: bool = True
) -> Iterator[StateHarness]:
    """Yield what became of it where another thread came in before the first line of a decision, the second, ..."""
    for line in count():
        core = at_work(leased=leased, free=free, busy=busy)
        other = meanwhile(core)
        next(other)
        if not comes_in_between(partial(decide, core), line, partial(next, other)):
            assert line > 0
            return
        next(other, None)
        core.run_effects()
        assert not core.state.inventory.taken or core.state.next_deadline() < NEVER, "no check of holds is scheduled"
        yield core


def walk(
    decide: Callable[[StateHarness], object], meanwhile: Meanwhile, *, leased: bool, free: int, busy: bool = True
) -> None:
    """See that what always holds does so at each of these moments."""
    for _ in moments(decide, meanwhile, leased=leased, free=free, busy=busy):
        pass


def comes_in_between(decide: Callable[[], object], line: int, interrupt: Callable[[], object]) -> bool:
    """Let something happen as this line of a decision is about to run; False if it has fewer."""

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal line
        if not frame.f_code.co_filename.startswith(CORE):
            return None
        if event == "line":
            line -= 1
            if line == -1:
                sys.settrace(None)
                interrupt()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        decide()
    finally:
        sys.settrace(before)
    return line < 0


GIVE = [gives_back, gives_back_after_it_saw_the_gate_open]
TAKE = [takes, takes_after_it_saw_the_gate_open, takes_slowly]
DECISIONS: dict[str, Callable[[StateHarness], object]] = {
    "acquire": acquires,
    "acquire twice": acquires_after_another_one,
    "expire": lambda core: core.state.expire(core.now),
    "resize": lambda core: core.state.resize(1, core.now),
    "suspend": lambda core: core.state.suspend(),
    "create_failed": create_fails,
    "close": lambda core: core.state.close(core.now),
    "write_off": lambda core: core.state.write_off(core.state.close(core.now), core.now),
    "lose": lambda core: core.state.reclaim_leak(object(), core.now),
    "tick": looks_at_leases,
}


@pytest.mark.parametrize("meanwhile", GIVE + TAKE)
@pytest.mark.parametrize("decide", DECISIONS.values(), ids=DECISIONS)
def test_another_thread_may_interrupt_any_decision(
    decide: Callable[[StateHarness], object], meanwhile: Meanwhile
) -> None:
    """It comes in between any two lines."""
    walk(decide, meanwhile, leased=True, free=meanwhile in TAKE)
    if meanwhile in TAKE:
        walk(decide, meanwhile, leased=False, free=1)


# A caller may see `needs_lock` unset and take after the look; its lease is looked at together with the next one.
@pytest.mark.parametrize("meanwhile", [takes, takes_slowly])
def test_another_thread_may_take_as_no_lease_is_found(meanwhile: Meanwhile) -> None:
    walk(looks_at_leases, meanwhile, leased=False, free=1, busy=False)


def test_give_back_as_create_fails_is_checked_on_reuse() -> None:
    for core in moments(create_fails, gives_back, leased=True, free=1):
        assert core.state.inventory.take(core.now) is None
        assert core.do(core.state.try_acquire) is None


@pytest.mark.parametrize("meanwhile", GIVE)
def test_another_thread_may_give_back_in_deadlock_search(meanwhile: Meanwhile) -> None:
    for decide in (acquires, acquires_after_another_one, acquires_as_the_holder):
        walk(decide, meanwhile, leased=True, free=0, busy=False)
