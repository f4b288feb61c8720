"""The state machine alone: what holds after every decision, whatever comes in which order."""

from collections import Counter
from typing import Any
from weakref import ref

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from connectionpools_fastapi import (
    Loan,
    Overloaded,
    PoolClosed,
    PoolConfigError,
    PoolTimeout,
    ResourceUnavailable,
    TooManyWaiting,
    Verdict,
)
from connectionpools_fastapi._core.effects import Effect, Status
from connectionpools_fastapi._core.generations import LOST
from connectionpools_fastapi._core.held_leases import LeaseSnapshot
from connectionpools_fastapi._core.invariants import check_invariants
from connectionpools_fastapi._core.policy import Policy
from connectionpools_fastapi._core.slot import Creation, Slot
from connectionpools_fastapi._core.state import PoolState
from tests.support import Caller, Resource


def index() -> st.SearchStrategy[int]:
    return st.integers(min_value=0, max_value=99)


class PoolMachine(RuleBasedStateMachine):
    """All that callers, hooks and time may do to a pool, in any order."""

    @initialize(
        limit=st.integers(1, 4),
        min_free=st.integers(0, 2),
        max_waiting=st.none() | st.integers(0, 3),
        max_creating=st.integers(1, 3),
        check_after=st.sampled_from([0.0, 1.0]),
        reuse=st.sampled_from(["lifo", "fifo"]),
        max_lifetime=st.sampled_from([None, None, 3.0]),
        max_idle=st.sampled_from([None, None, 1.0]),
        max_uses=st.sampled_from([None, None, 2]),
        max_hold=st.sampled_from([None, 1.0]),
        keepalive=st.sampled_from([None, 0.6]),
        has_check=st.booleans(),
        has_change=st.booleans(),
    )
    def describe(self, **options: Any) -> None:
        hooks = {name: options.pop(name) for name in ("has_check", "has_change")}
        options["min_free"] = min(options["min_free"], options["limit"])
        if not hooks["has_check"]:
            options["keepalive"] = None
        self.state: PoolState[Resource] = PoolState(Policy(**options), **hooks, has_ended=bool, chance=lambda: 0.5)
        self.now = 100.0
        self.line: list[Caller] = []  # the waiters, in order of arrival
        self.granted: list[Caller] = []  # was granted a lease, and has not looked yet
        self.watchers: list[Caller] = []
        self.leased: list[Slot[Resource]] = []
        self.borrowed: list[Slot[Resource]] = []
        self.told: Counter[str] = Counter()
        self.warned: list[LeaseSnapshot] = []
        self.most = self.state.limit  # that may exist: the limit, or what there was when it fell
        self.hooks: dict[Effect, list[Any]] = {action: [] for action in Effect}
        self.made: list[Resource] = []
        self.cleaned: list[Resource] = []
        self.detached: list[Resource] = []
        self.state.open(self.now)
        self.carry_out()

    # --- carrying out -----------------------------------------------------------------------

    def carry_out(self) -> None:
        """Do what the pool does after each decision; hooks wait for their own rules."""
        grants = []
        while self.state.effects:
            action, subject = self.state.effects.popleft()
            if action is Effect.NOTIFY:
                self.told[subject[0]] += 1
                continue
            if action is Effect.WARN:
                assert subject.age >= self.state.policy.max_hold
                self.warned.append(subject)
                continue
            if action is not Effect.WAKE:
                self.hooks[action].append(subject)
                continue
            subject.wake()
            assert subject.woken == 1, "a caller was woken twice"
            if subject in self.line:
                if subject.slot is not None:
                    grants.append(subject)
                else:
                    assert subject.error is not None, "a caller was woken for nothing"
                    self.line.remove(subject)
            elif subject in self.watchers:
                self.watchers.remove(subject)
        for caller in grants:
            assert self.line[0] is caller, "a caller was overtaken"
            self.line.pop(0)
            self.granted.append(caller)

    def some(self, found: list[Any], number: int) -> Any:
        return found[number % len(found)]

    # --- callers ------------------------------------------------------------------------------

    @rule(timeout=st.none() | st.sampled_from([0.0, 0.5, 3.0]))
    def acquire(self, timeout: float | None) -> None:
        none_waited, was_open = not self.line, self.state.is_open
        caller = Caller()
        caller.has_own_timeout = timeout is not None
        try:
            slot = self.state.acquire(caller, timeout, self.now)
        except PoolClosed:
            assert not was_open
        except PoolTimeout:
            assert timeout == 0
        except Overloaded:
            assert len(self.line) >= self.state.limit
            assert not any(slot.fresh_until >= self.now for slot in self.state.inventory.free)
        except TooManyWaiting:
            assert self.state.policy.max_waiting is not None
        except (ResourceUnavailable, PoolConfigError):  # down, whatever the cause
            assert not self.state.inventory.slots
        else:
            assert was_open
            if slot is None:
                self.line.append(caller)
            else:
                assert none_waited, "a newcomer overtook a waiter"
                self.lease_begins(slot)
        self.carry_out()

    def lease_begins(self, slot: Slot[Resource]) -> None:
        assert self.state.status is Status.OPEN
        assert slot.retire_at >= self.now, "a lease begins after the end of a lifetime"
        self.leased.append(slot)

    @rule()
    def try_acquire(self) -> None:
        none_waited = not self.line
        try:
            slot = self.state.try_acquire(self.now)
        except PoolClosed:
            slot = None
        if slot is not None:
            assert none_waited, "a newcomer overtook a waiter"
            self.lease_begins(slot)
        self.carry_out()

    @rule()
    def take(self) -> None:
        slot = self.state.inventory.take(self.now)
        if slot is not None:
            assert not self.line, "a newcomer overtook a waiter"
            self.lease_begins(slot)

    @precondition(lambda self: self.state.has_check)
    @rule()
    def mistrust(self) -> None:
        slot = self.state.inventory.take(self.now)
        if slot is not None:
            self.state.send_to_check(slot, self.now)
            assert slot in self.state.inventory.checking or slot in self.state.inventory.cleaning
            self.carry_out()

    @precondition(lambda self: self.leased)
    @rule(number=index())
    def give_back(self, number: int) -> None:
        slot = self.leased.pop(number % len(self.leased))
        self.state.inventory.end(slot, self.now)
        if not self.state.inventory.put_back(slot, self.now):
            self.state.release(slot, self.now)
            assert self.state.wait_changed(slot, slot.leases, Caller()) == (slot in self.state.inventory.changing)
        self.carry_out()

    @precondition(lambda self: self.leased)
    @rule(number=index())
    def lend(self, number: int) -> None:
        slot = self.some(self.leased, number)
        if self.state.inventory.loan_of(slot) is None:
            self.state.inventory.lend(slot, Loan("db", slot, None), Resource(-1))
        assert self.state.inventory.leased(self.state.inventory.lent_of(slot)) is slot

    @precondition(lambda self: self.leased)
    @rule(number=index(), verdict=st.sampled_from(["check", "discard", "expire"]))
    def judge(self, number: int, verdict: Verdict) -> None:
        slot = self.some(self.leased, number)
        self.state.judge(slot, verdict, self.now)
        assert verdict == "check" or slot.verdict == "discard" or slot.generation != self.state.generations.current
        self.carry_out()

    @precondition(lambda self: self.leased)
    @rule(number=index())
    def discard(self, number: int) -> None:
        slot = self.leased.pop(number % len(self.leased))
        self.state.inventory.end(slot, self.now)
        self.state.discard(slot, self.now)
        self.carry_out()

    @precondition(lambda self: self.leased)
    @rule(number=index())
    def detach(self, number: int) -> None:
        slot = self.leased.pop(number % len(self.leased))
        self.state.inventory.end(slot, self.now)
        self.state.detach(slot, self.now)
        self.detached.append(slot.resource)
        self.carry_out()

    @precondition(lambda self: self.line)
    @rule(number=index())
    def withdraw(self, number: int) -> None:
        caller = self.line.pop(number % len(self.line))
        self.state.cancel(caller, self.now)
        self.carry_out()

    @precondition(lambda self: self.granted)
    @rule(number=index())
    def withdraw_at_the_moment_of_the_grant(self, number: int) -> None:
        caller = self.granted.pop(number % len(self.granted))
        self.state.cancel(caller, self.now)
        assert caller.slot is None
        self.carry_out()

    @precondition(lambda self: self.granted)
    @rule(number=index())
    def look_at_the_grant(self, number: int) -> None:
        slot = self.granted.pop(number % len(self.granted)).slot
        assert slot is not None
        self.leased.append(slot)

    # --- hooks ----------------------------------------------------------------------------------

    @precondition(lambda self: self.hooks[Effect.CREATE])
    @rule(number=index(), again=st.booleans())
    def created(self, number: int, *, again: bool) -> None:
        creation: Creation = self.hooks[Effect.CREATE].pop(number % len(self.hooks[Effect.CREATE]))
        # Once in a while it is something that was detached: an old object, welcome again.
        resource = self.detached.pop() if again and self.detached else Resource(len(self.made))
        self.made.append(resource)
        self.state.created(creation, resource, self.now)
        self.carry_out()

    @precondition(lambda self: self.hooks[Effect.CREATE] and self.state.inventory.slots)
    @rule(number=index())
    def created_what_is_there_already(self, number: int) -> None:
        creation: Creation = self.hooks[Effect.CREATE].pop(number % len(self.hooks[Effect.CREATE]))
        resource = next(iter(self.state.inventory.slots.values())).resource
        self.state.created(creation, resource, self.now)
        self.carry_out()

    @precondition(lambda self: self.hooks[Effect.CREATE])
    @rule(number=index())
    def create_failed(self, number: int) -> None:
        creation: Creation = self.hooks[Effect.CREATE].pop(number % len(self.hooks[Effect.CREATE]))
        self.state.create_failed(creation, OSError("down"), self.now)
        self.carry_out()

    @precondition(lambda self: self.hooks[Effect.CHECK])
    @rule(number=index(), healthy=st.booleans())
    def checked(self, number: int, *, healthy: bool) -> None:
        slot = self.hooks[Effect.CHECK].pop(number % len(self.hooks[Effect.CHECK]))
        self.state.checked(slot, self.now, healthy=healthy)
        self.carry_out()

    @precondition(lambda self: self.hooks[Effect.CHANGE])
    @rule(number=index(), failed=st.booleans())
    def changed(self, number: int, *, failed: bool) -> None:
        slot = self.hooks[Effect.CHANGE].pop(number % len(self.hooks[Effect.CHANGE]))
        done: Any = self.state.inventory.changing[slot]
        self.state.changed(slot, self.now, failed=failed)
        self.carry_out()
        assert done is None or done.woken == 1

    @precondition(lambda self: self.hooks[Effect.CLEAN])
    @rule(number=index(), failed=st.booleans())
    def clean(self, number: int, *, failed: bool) -> None:
        slot = self.hooks[Effect.CLEAN].pop(number % len(self.hooks[Effect.CLEAN]))
        self.cleaned.append(slot.resource)
        self.state.cleaned(slot, self.now, failed=failed)
        self.carry_out()

    # --- life and time ----------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.4, 2.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds
        self.state.tick(self.now)
        self.carry_out()
        assert all(caller.deadline is None or caller.deadline > self.now for caller in self.line)
        assert not any(slot.retire_at <= self.now for slot in self.state.inventory.free), "what is too old is free"
        assert self.state.next_deadline() > self.now, "it is due again at once"

    @rule(limit=st.integers(1, 5))
    def resize(self, limit: int) -> None:
        self.most = max(limit, len(self.state.inventory.slots) + len(self.state.inventory.creating))
        self.state.resize(limit, self.now)
        self.carry_out()

    @precondition(lambda self: self.state.is_open)
    @rule()
    def suspend(self) -> None:
        self.state.suspend()
        self.carry_out()

    @precondition(lambda self: self.state.is_open)
    @rule()
    def resume(self) -> None:
        self.state.resume(self.now)
        self.carry_out()

    @precondition(lambda self: self.state.inventory.free)
    @rule(number=index())
    def borrow(self, number: int) -> None:
        slot = self.some(list(self.state.inventory.free), number)
        assert self.state.reserve(slot)
        assert not self.state.reserve(slot), "it is not free any more"
        self.borrowed.append(slot)
        self.carry_out()

    @precondition(lambda self: self.borrowed)
    @rule(number=index(), keep=st.booleans())
    def bring_back(self, number: int, *, keep: bool) -> None:
        self.state.unreserve(self.borrowed.pop(number % len(self.borrowed)), self.now, keep=keep)
        self.carry_out()

    @rule(heard=st.sampled_from([frozenset(), frozenset(["on_discard"]), frozenset(["on_release", "on_clean"])]))
    def listen(self, heard: frozenset[str]) -> None:
        self.state.listen(heard, self.now)
        self.carry_out()

    @precondition(lambda self: self.leased)
    @rule(number=index())
    def lose(self, number: int) -> None:
        slot = self.leased.pop(number % len(self.leased))
        lease = Caller()  # whatever can be referred to weakly
        slot.lease = lost = ref(lease)
        assert self.state.reclaim_leak(lost, self.now) is not None
        assert self.state.reclaim_leak(lost, self.now) is None
        self.carry_out()

    @rule()
    def expire(self) -> None:
        generation = self.state.expire(self.now)
        drainer = Caller()
        if self.state.wait_gone(drainer, generation):
            self.watchers.append(drainer)
        self.carry_out()

    @rule(max_age=st.sampled_from([0.0, 5.0]))
    def probe(self, max_age: float) -> None:
        watcher = Caller()
        if self.state.probe(watcher, max_age, 2.0, self.now) is None:
            self.watchers.append(watcher)
        self.carry_out()

    @rule()
    def watch_min_free(self) -> None:
        watcher = Caller()
        if self.state.watch_min_free(watcher, self.now):
            self.watchers.append(watcher)
        self.carry_out()

    @precondition(lambda self: self.watchers)
    @rule(number=index())
    def forget(self, number: int) -> None:
        self.state.forget(self.watchers.pop(number % len(self.watchers)))

    @rule()
    def close(self) -> None:
        self.closing = self.state.close(self.now)
        self.carry_out()
        assert not self.line, "a caller waits for a pool that closes"

    @precondition(lambda self: self.state.status is Status.CLOSING)
    @rule()
    def write_off(self) -> None:
        self.state.write_off(self.closing, self.now)
        self.state.closed(self.state.generations.current)
        self.carry_out()

    @precondition(lambda self: self.state.status is Status.CLOSED)
    @rule(lost=st.booleans())
    def open_again(self, *, lost: bool) -> None:
        if lost:  # the loop that was to call the hooks has ended
            for action in (Effect.CREATE, Effect.CHECK, Effect.CHANGE):
                self.hooks[action].clear()
            gone, self.borrowed = self.borrowed, []
            self.cleaned += [slot.resource for slot in self.hooks[Effect.CLEAN]]
            self.hooks[Effect.CLEAN].clear()
            self.state.abandon(self.now)
            for slot in gone:
                self.state.unreserve(slot, self.now, keep=True)
            assert not self.state.inventory.creating
            assert not self.state.inventory.checking | set(self.state.inventory.changing)
        self.state.open(self.now)
        self.carry_out()

    # --- what always holds ------------------------------------------------------------------------

    @invariant()
    def the_state_keeps_its_promises(self) -> None:
        check_invariants(self.state, self.now)

    @invariant()
    def both_see_the_same(self) -> None:
        state = self.state
        assert list(state.queue) == self.line
        leased = [*self.leased, *(caller.slot for caller in self.granted)]
        assert {id(slot) for slot in leased} == {id(slot) for slot in state.inventory.taken.values()}
        assert set(self.hooks[Effect.CREATE]) == state.inventory.creating
        assert {*self.hooks[Effect.CHECK], *self.borrowed} == state.inventory.checking
        assert len(state.inventory.slots) + len(state.inventory.creating) <= self.most
        self.most = max(
            state.limit, len(state.inventory.slots) + len(state.inventory.creating)
        )  # what came down stays down
        assert set(self.hooks[Effect.CHANGE]) == set(state.inventory.changing)
        assert set(self.hooks[Effect.CLEAN]) == state.inventory.cleaning
        gone = len(self.cleaned) + state.counters.detached
        lost = sum(slot.generation == LOST for slot in state.inventory.taken.values())
        assert len(self.made) == gone + len(state.inventory.slots) + len(state.inventory.cleaning) + lost

    @invariant()
    def each_watcher_will_be_woken(self) -> None:
        if not (self.leased or self.granted or self.borrowed or any(self.hooks.values())):
            assert not self.watchers, "nothing is under way that could wake a watcher"

    @invariant()
    def no_time_is_overlooked(self) -> None:
        due = self.state.next_deadline()
        assert all(caller.deadline is None or caller.deadline >= due for caller in self.line)
        state = self.state
        has_room = len(state.inventory.slots) + len(state.inventory.creating) < state.limit
        if state.status is Status.OPEN and state.backoff.failures and not self.hooks[Effect.CREATE] and has_room:
            assert due < float("inf"), "create is never tried again"
        for slot in state.inventory.free:
            assert slot.retire_at >= due, "it is not retired in time"
            if state.policy.max_idle is not None and len(state.inventory.free) > state.policy.min_free:
                assert slot.due_at < float("inf"), "no look will see that it is idle"

    # --- the end: everybody gets an answer ------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "state"):
            return
        if self.state.status is Status.SUSPENDED:
            self.state.resume(self.now)
            self.carry_out()
        waited = list(self.line)
        self.finish()
        assert not self.line, "a caller is stranded"
        assert all(caller.slot is not None or caller.error is not None for caller in waited)
        self.state.close(self.now)
        self.carry_out()
        self.finish()
        assert not self.state.inventory.slots
        assert not self.watchers, "a drain never ends"
        assert not self.state.generations.total()
        assert len(self.made) == len(self.cleaned) + self.state.counters.detached
        check_invariants(self.state, self.now)

    def finish(self) -> None:
        """Answer all hooks and give back all leases, in the order in which they came; time goes by for retries only."""
        for _ in range(1000):
            if self.hooks[Effect.CREATE]:
                self.created(0, again=False)
            elif self.borrowed:
                self.bring_back(0, keep=True)
            elif self.hooks[Effect.CHECK]:
                self.checked(0, healthy=True)
            elif self.hooks[Effect.CHANGE]:
                self.changed(0, failed=False)
            elif self.granted:
                self.look_at_the_grant(0)
            elif self.leased:
                self.give_back(0)
            elif self.hooks[Effect.CLEAN]:
                self.clean(0, failed=False)
            elif self.line and self.state.backoff.failures:
                self.let_time_pass(0.4)
            else:
                return
            check_invariants(self.state, self.now)
        raise AssertionError("it never comes to rest")


PoolMachine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow]
)
test_every_promise_holds_whatever_comes_in_which_order = PoolMachine.TestCase
