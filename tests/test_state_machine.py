"""The state machine alone: what holds after every decision, whatever comes in which order."""

from collections import Counter
from typing import Any
from weakref import ref

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from connectionpools_fastapi import PoolClosed, PoolConfigError, PoolTimeout, ResourceUnavailable, TooManyWaiting
from connectionpools_fastapi._generations import LOST
from connectionpools_fastapi._ledger import Action, Status
from connectionpools_fastapi._owner import Hold
from connectionpools_fastapi._policy import Policy
from connectionpools_fastapi._slot import Creation, Slot
from connectionpools_fastapi._state import State
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
        self.state: State[Resource] = State(Policy(**options), **hooks, chance=lambda: 0.5)
        self.now = 100.0
        self.line: list[Caller] = []  # who waits, in order of arrival
        self.granted: list[Caller] = []  # was granted a lease, and has not looked yet
        self.watchers: list[Caller] = []
        self.leased: list[Slot[Resource]] = []
        self.borrowed: list[Slot[Resource]] = []
        self.told: Counter[str] = Counter()
        self.warned: list[Hold] = []
        self.most = self.state.limit  # that may exist: the limit, or what there was when it fell
        self.hooks: dict[Action, list[Any]] = {action: [] for action in Action}
        self.made: list[Resource] = []
        self.cleaned: list[Resource] = []
        self.detached: list[Resource] = []
        self.state.open(self.now)
        self.carry_out()

    # --- carrying out -----------------------------------------------------------------------

    def carry_out(self) -> None:
        """Do what the pool does after each decision; hooks wait for their own rules."""
        grants = []
        while self.state.todo:
            action, subject = self.state.todo.popleft()
            if action is Action.TELL:
                self.told[subject[0]] += 1
                continue
            if action is Action.WARN:
                assert subject.age >= self.state.policy.max_hold
                self.warned.append(subject)
                continue
            if action is not Action.WAKE:
                self.hooks[action].append(subject)
                continue
            subject.wake()
            assert subject.woken == 1, "somebody was woken twice"
            if subject in self.line:
                if subject.slot is not None:
                    grants.append(subject)
                else:
                    assert subject.error is not None, "a caller was woken for nothing"
                    self.line.remove(subject)
            elif subject in self.watchers:
                self.watchers.remove(subject)
        for caller in grants:
            assert self.line[0] is caller, "somebody was overtaken"
            self.line.pop(0)
            self.granted.append(caller)

    def some(self, found: list[Any], number: int) -> Any:
        return found[number % len(found)]

    # --- callers ------------------------------------------------------------------------------

    @rule(timeout=st.none() | st.sampled_from([0.0, 0.5, 3.0]))
    def acquire(self, timeout: float | None) -> None:
        nobody_waited, was_open = not self.line, self.state.is_open
        caller = Caller()
        try:
            slot = self.state.acquire(caller, timeout, self.now)
        except PoolClosed:
            assert not was_open
        except PoolTimeout:
            assert timeout == 0
        except TooManyWaiting:
            assert self.state.policy.max_waiting is not None
        except (ResourceUnavailable, PoolConfigError):  # down, whatever the cause
            assert not self.state.slots
        else:
            assert was_open
            if slot is None:
                self.line.append(caller)
            else:
                assert nobody_waited, "a newcomer overtook who waits"
                self.lease_begins(slot)
        self.carry_out()

    def lease_begins(self, slot: Slot[Resource]) -> None:
        assert self.state.status is Status.OPEN
        assert slot.retire_at >= self.now, "a lease begins after the end of a lifetime"
        self.leased.append(slot)

    @rule()
    def try_acquire(self) -> None:
        nobody_waited = not self.line
        try:
            slot = self.state.try_acquire(self.now)
        except PoolClosed:
            slot = None
        if slot is not None:
            assert nobody_waited, "a newcomer overtook who waits"
            self.lease_begins(slot)
        self.carry_out()

    @rule()
    def take(self) -> None:
        slot = self.state.take(self.now)
        if slot is not None:
            assert not self.line, "a newcomer overtook who waits"
            self.lease_begins(slot)

    @precondition(lambda self: self.state.has_check)
    @rule()
    def mistrust(self) -> None:
        slot = self.state.take(self.now)
        if slot is not None:
            self.state.mistrust(slot, self.now)
            assert slot in self.state.checking or slot in self.state.cleaning
            self.carry_out()

    @precondition(lambda self: self.leased)
    @rule(number=index())
    def give_back(self, number: int) -> None:
        slot = self.leased.pop(number % len(self.leased))
        self.state.end(slot, self.now)
        if not self.state.put_back(slot, self.now):
            self.state.release(slot, self.now)
            assert self.state.wait_changed(slot, slot.leases, Caller()) == (slot in self.state.changing)
        self.carry_out()

    @precondition(lambda self: self.leased)
    @rule(number=index())
    def discard(self, number: int) -> None:
        slot = self.leased.pop(number % len(self.leased))
        self.state.end(slot, self.now)
        self.state.discard(slot, self.now)
        self.carry_out()

    @precondition(lambda self: self.leased)
    @rule(number=index())
    def detach(self, number: int) -> None:
        slot = self.leased.pop(number % len(self.leased))
        self.state.end(slot, self.now)
        self.state.detach(slot, self.now)
        self.detached.append(slot.resource)
        self.carry_out()

    @precondition(lambda self: self.line)
    @rule(number=index())
    def withdraw(self, number: int) -> None:
        caller = self.line.pop(number % len(self.line))
        self.state.withdraw(caller, self.now)
        self.carry_out()

    @precondition(lambda self: self.granted)
    @rule(number=index())
    def withdraw_at_the_moment_of_the_grant(self, number: int) -> None:
        caller = self.granted.pop(number % len(self.granted))
        self.state.withdraw(caller, self.now)
        assert caller.slot is None
        self.carry_out()

    @precondition(lambda self: self.granted)
    @rule(number=index())
    def look_at_the_grant(self, number: int) -> None:
        slot = self.granted.pop(number % len(self.granted)).slot
        assert slot is not None
        self.leased.append(slot)

    # --- hooks ----------------------------------------------------------------------------------

    @precondition(lambda self: self.hooks[Action.CREATE])
    @rule(number=index(), again=st.booleans())
    def created(self, number: int, *, again: bool) -> None:
        creation: Creation = self.hooks[Action.CREATE].pop(number % len(self.hooks[Action.CREATE]))
        # Once in a while it is something that was detached: an old object, welcome again.
        resource = self.detached.pop() if again and self.detached else Resource(len(self.made))
        self.made.append(resource)
        self.state.created(creation, resource, self.now)
        self.carry_out()

    @precondition(lambda self: self.hooks[Action.CREATE] and self.state.slots)
    @rule(number=index())
    def created_what_is_there_already(self, number: int) -> None:
        creation: Creation = self.hooks[Action.CREATE].pop(number % len(self.hooks[Action.CREATE]))
        resource = next(iter(self.state.slots.values())).resource
        self.state.created(creation, resource, self.now)
        self.carry_out()

    @precondition(lambda self: self.hooks[Action.CREATE])
    @rule(number=index())
    def create_failed(self, number: int) -> None:
        creation: Creation = self.hooks[Action.CREATE].pop(number % len(self.hooks[Action.CREATE]))
        self.state.create_failed(creation, OSError("down"), self.now)
        self.carry_out()

    @precondition(lambda self: self.hooks[Action.CHECK])
    @rule(number=index(), healthy=st.booleans())
    def checked(self, number: int, *, healthy: bool) -> None:
        slot = self.hooks[Action.CHECK].pop(number % len(self.hooks[Action.CHECK]))
        self.state.checked(slot, self.now, healthy=healthy)
        self.carry_out()

    @precondition(lambda self: self.hooks[Action.CHANGE])
    @rule(number=index(), failed=st.booleans())
    def changed(self, number: int, *, failed: bool) -> None:
        slot = self.hooks[Action.CHANGE].pop(number % len(self.hooks[Action.CHANGE]))
        done: Any = self.state.changing[slot]
        self.state.changed(slot, self.now, failed=failed)
        self.carry_out()
        assert done is None or done.woken == 1

    @precondition(lambda self: self.hooks[Action.CLEAN])
    @rule(number=index(), failed=st.booleans())
    def clean(self, number: int, *, failed: bool) -> None:
        slot = self.hooks[Action.CLEAN].pop(number % len(self.hooks[Action.CLEAN]))
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
        assert not any(slot.retire_at <= self.now for slot in self.state.free), "what is too old is free"
        assert self.state.next_deadline() > self.now, "it is due again at once"

    @rule(limit=st.integers(1, 5))
    def resize(self, limit: int) -> None:
        self.most = max(limit, len(self.state.slots) + len(self.state.creating))
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

    @precondition(lambda self: self.state.free)
    @rule(number=index())
    def borrow(self, number: int) -> None:
        slot = self.some(list(self.state.free), number)
        assert self.state.borrow(slot)
        assert not self.state.borrow(slot), "it is not free any more"
        self.borrowed.append(slot)
        self.carry_out()

    @precondition(lambda self: self.borrowed)
    @rule(number=index(), keep=st.booleans())
    def bring_back(self, number: int, *, keep: bool) -> None:
        self.state.bring_back(self.borrowed.pop(number % len(self.borrowed)), self.now, keep=keep)
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
        assert self.state.lose(lost, self.now) is not None
        assert self.state.lose(lost, self.now) is None
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
        if self.state.watch_min_free(watcher):
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
        assert not self.line, "somebody waits for a pool that closes"

    @precondition(lambda self: self.state.status is Status.CLOSING)
    @rule()
    def write_off(self) -> None:
        self.state.write_off(self.closing, self.now)
        self.state.closed()
        self.carry_out()

    @precondition(lambda self: self.state.status is Status.CLOSED)
    @rule(lost=st.booleans())
    def open_again(self, *, lost: bool) -> None:
        if lost:  # the loop that was to call the hooks has ended
            for action in (Action.CREATE, Action.CHECK, Action.CHANGE):
                self.hooks[action].clear()
            gone, self.borrowed = self.borrowed, []
            self.cleaned += [slot.resource for slot in self.hooks[Action.CLEAN]]
            self.hooks[Action.CLEAN].clear()
            self.state.abandon(self.now)
            for slot in gone:
                self.state.bring_back(slot, self.now, keep=True)
            assert not self.state.creating
            assert not self.state.checking | set(self.state.changing)
        self.state.open(self.now)
        self.carry_out()

    # --- what always holds ------------------------------------------------------------------------

    @invariant()
    def the_state_keeps_its_promises(self) -> None:
        self.state.check_invariants(self.now)

    @invariant()
    def both_see_the_same(self) -> None:
        state = self.state
        assert list(state.queue) == self.line
        leased = [*self.leased, *(caller.slot for caller in self.granted)]
        assert {id(slot) for slot in leased} == {id(slot) for slot in state.taken.values()}
        assert set(self.hooks[Action.CREATE]) == state.creating
        assert {*self.hooks[Action.CHECK], *self.borrowed} == state.checking
        assert len(state.slots) + len(state.creating) <= self.most
        self.most = max(state.limit, len(state.slots) + len(state.creating))  # what came down stays down
        assert set(self.hooks[Action.CHANGE]) == set(state.changing)
        assert set(self.hooks[Action.CLEAN]) == state.cleaning
        gone = len(self.cleaned) + state.totals.detached
        lost = sum(slot.generation == LOST for slot in state.taken.values())
        assert len(self.made) == gone + len(state.slots) + len(state.cleaning) + lost

    @invariant()
    def whoever_watches_something_will_be_told(self) -> None:
        if not (self.leased or self.granted or self.borrowed or any(self.hooks.values())):
            assert not self.watchers, "nothing is under way that could wake who watches"

    @invariant()
    def no_time_is_overlooked(self) -> None:
        due = self.state.next_deadline()
        assert all(caller.deadline is None or caller.deadline >= due for caller in self.line)
        state = self.state
        has_room = len(state.slots) + len(state.creating) < state.limit
        if state.status is Status.OPEN and state.outage.failures and not self.hooks[Action.CREATE] and has_room:
            assert due < float("inf"), "nobody will ever try to create again"
        for slot in state.free:
            assert slot.retire_at >= due, "nobody will retire it in time"
            if state.policy.max_idle is not None and len(state.free) > state.policy.min_free:
                assert slot.look_at < float("inf"), "nobody will see that it is idle"

    # --- the end: everybody gets an answer ------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "state"):
            return
        if self.state.status is Status.SUSPENDED:
            self.state.resume(self.now)
            self.carry_out()
        waited = list(self.line)
        self.finish()
        assert not self.line, "somebody is stranded"
        assert all(caller.slot is not None or caller.error is not None for caller in waited)
        self.state.close(self.now)
        self.carry_out()
        self.finish()
        assert not self.state.slots
        assert not self.watchers, "a drain never ends"
        assert not self.state.generations.total()
        assert len(self.made) == len(self.cleaned) + self.state.totals.detached
        self.state.check_invariants(self.now)

    def finish(self) -> None:
        """Answer all hooks and give back all leases, in the order in which they came; no time goes by."""
        for _ in range(1000):
            if self.hooks[Action.CREATE]:
                self.created(0, again=False)
            elif self.borrowed:
                self.bring_back(0, keep=True)
            elif self.hooks[Action.CHECK]:
                self.checked(0, healthy=True)
            elif self.hooks[Action.CHANGE]:
                self.changed(0, failed=False)
            elif self.granted:
                self.look_at_the_grant(0)
            elif self.leased:
                self.give_back(0)
            elif self.hooks[Action.CLEAN]:
                self.clean(0, failed=False)
            else:
                return
            self.state.check_invariants(self.now)
        raise AssertionError("it never comes to rest")


PoolMachine.TestCase.settings = settings(
    max_examples=120, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow]
)
test_every_promise_holds_whatever_comes_in_which_order = PoolMachine.TestCase
