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

from connectionpools_fastapi import WouldDeadlock
from connectionpools_fastapi._ledger import Action
from connectionpools_fastapi._state import State
from tests.desk import Desk, Named
from tests.support import Caller

NEVER = float("inf")
OWNER = Named("who holds everything")


# What another thread does, in three parts: before the decision, within it, and after it, with the lock.
Meanwhile = Callable[[Desk], Generator[None]]


def gives_back(at: Desk) -> Generator[None]:
    (slot,) = at.state.taken.values()
    yield
    at.state.end(slot, at.now)
    is_back, gate = at.state.put_back(slot, at.now), at.state.gate
    yield
    if not is_back:
        at.state.release(slot, at.now)
    elif gate:
        at.state.settle(at.now)


def gives_back_after_it_saw_the_gate_open(at: Desk) -> Generator[None]:
    (slot,) = at.state.taken.values()
    at.state.end(slot, at.now)
    yield
    slot.fresh_until = at.now + 100
    at.state.free.append(slot)
    gate = at.state.gate
    yield
    if gate:
        at.state.settle(at.now)


def takes(at: Desk) -> Generator[None]:
    yield
    at.state.take(at.now)
    yield


def takes_after_it_saw_the_gate_open(at: Desk) -> Generator[None]:
    yield
    slot = at.state._pop_fresh(at.now)
    if slot is not None:
        at.state._lease_out(slot, at.now)
    yield


def takes_slowly(at: Desk) -> Generator[None]:
    slot = at.state._pop_fresh(at.now)
    yield
    if slot is not None:
        at.state._lease_out(slot, at.now)
    yield


def at_work(*, leased: bool, free: int, busy: bool) -> Desk:
    """Return a pool of which the lock knows nothing to do; a busy one creates one and checks one."""
    at = Desk(limit=leased + free + 2 * busy, has_check=True, check_after=100.0, max_hold=50.0, max_waiting=9)
    at.is_trusted = True
    at.open()
    slots = [at.lease(owner=OWNER) for _ in range(leased + free + busy)]
    if busy:
        at.do(at.state.withdraw, at.come())
    for slot in slots[leased:]:
        at.give_back(slot)
    if busy:
        at.ask(at.state.borrow, slots[-1])
        at.asked[Action.CHECK].append(slots[-1])
    assert not at.state.gate
    assert (len(at.state.taken), len(at.free())) == (leased, free)
    assert (at.count("create"), at.count("check")) == (busy, busy)
    at.is_trusted = False
    return at


def newcomer() -> Caller:
    caller = Caller()
    caller.owner = caller.request = caller
    return caller


def acquires(at: Desk) -> None:
    at.state.acquire(newcomer(), None, at.now)


def acquires_after_another_one(at: Desk) -> None:
    first = newcomer()
    if at.state.acquire(first, None, at.now) is None and at.state.acquire(newcomer(), None, at.now) is not None:
        assert first.slot is not None, "somebody was overtaken"


def acquires_as_the_one_who_holds(at: Desk) -> None:
    caller = newcomer()
    caller.owner = OWNER
    with suppress(WouldDeadlock):
        at.state.acquire(caller, None, at.now)


def create_fails(at: Desk) -> None:
    at.state.create_failed(at.asked[Action.CREATE].pop(), OSError(), at.now)


def looks_at_leases(at: Desk) -> None:
    at.now += 50
    at.state.tick(at.now)


def moments(
    decide: Callable[[Desk], object], meanwhile: Meanwhile, *, leased: bool, free: int, busy: bool = True
) -> Iterator[Desk]:
    """Yield what became of it where another thread came in before the first line of a decision, the second, ..."""
    for line in count():
        at = at_work(leased=leased, free=free, busy=busy)
        other = meanwhile(at)
        next(other)
        if not comes_in_between(partial(decide, at), line, partial(next, other)):
            assert line > 0
            return
        next(other, None)
        at.carry_out()
        assert not at.state.taken or at.state.next_deadline() < NEVER, "nobody looks who holds for too long"
        yield at


def walk(decide: Callable[[Desk], object], meanwhile: Meanwhile, *, leased: bool, free: int, busy: bool = True) -> None:
    """See that what always holds does so at each of these moments."""
    for _ in moments(decide, meanwhile, leased=leased, free=free, busy=busy):
        pass


def comes_in_between(decide: Callable[[], object], line: int, interrupt: Callable[[], object]) -> bool:
    """Let something happen as this line of a decision is about to run; False if it has fewer."""
    files = {sys.modules[base.__module__].__file__ for base in State.__mro__[:3]}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal line
        if frame.f_code.co_filename not in files:
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
DECISIONS: dict[str, Callable[[Desk], object]] = {
    "acquire": acquires,
    "acquire twice": acquires_after_another_one,
    "expire": lambda at: at.state.expire(at.now),
    "resize": lambda at: at.state.resize(1, at.now),
    "suspend": lambda at: at.state.suspend(),
    "create_failed": create_fails,
    "close": lambda at: at.state.close(at.now),
    "write_off": lambda at: at.state.write_off(at.state.close(at.now), at.now),
    "lose": lambda at: at.state.lose(object(), at.now),
    "tick": looks_at_leases,
}


@pytest.mark.parametrize("meanwhile", GIVE + TAKE)
@pytest.mark.parametrize("decide", DECISIONS.values(), ids=DECISIONS)
def test_another_thread_may_come_in_between_any_two_lines_of_a_decision(
    decide: Callable[[Desk], object], meanwhile: Meanwhile
) -> None:
    walk(decide, meanwhile, leased=True, free=meanwhile in TAKE)
    if meanwhile in TAKE:
        walk(decide, meanwhile, leased=False, free=1)


# Who has seen the gate open, and then takes it after all was looked at, is looked at with the next one who leases.
@pytest.mark.parametrize("meanwhile", [takes, takes_slowly])
def test_another_thread_may_take_as_somebody_finds_that_nobody_holds_anything(meanwhile: Meanwhile) -> None:
    walk(looks_at_leases, meanwhile, leased=False, free=1, busy=False)


def test_what_another_thread_gives_back_as_create_fails_is_checked_before_its_next_use() -> None:
    for at in moments(create_fails, gives_back, leased=True, free=1):
        assert at.state.take(at.now) is None
        assert at.do(at.state.try_acquire) is None


@pytest.mark.parametrize("meanwhile", GIVE)
def test_another_thread_may_give_back_as_somebody_looks_whether_all_wait_for_each_other(meanwhile: Meanwhile) -> None:
    for decide in (acquires, acquires_after_another_one, acquires_as_the_one_who_holds):
        walk(decide, meanwhile, leased=True, free=0, busy=False)
