"""What the tests of single decisions share: a state whose hooks, callers and time a test controls."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

from connectionpools_fastapi import ResourceUnavailable
from connectionpools_fastapi._core.effects import Effect
from connectionpools_fastapi._core.invariants import check_invariants
from connectionpools_fastapi._core.policy import Policy
from connectionpools_fastapi._core.slot import Creation, Slot
from connectionpools_fastapi._core.state import PoolState
from connectionpools_fastapi._core.terms import RANKS, Priority
from connectionpools_fastapi._runtime.caller import has_ended
from connectionpools_fastapi.listener import EVENTS
from tests.support import Caller, Resource

P = ParamSpec("P")
R = TypeVar("R")


class Lease:
    """What a lease is to the state machine: something that knows on whose behalf it is."""

    def __init__(self, owner: object) -> None:
        self._owner = owner


class Named:
    """A task, a thread or a request: something with a name."""

    def __init__(self, name: str) -> None:
        self.name = name


class Patient:
    """A client that does not go away."""

    def watch(self, waiter: object, leave: object) -> None: ...

    def unwatch(self, waiter: object) -> None: ...

    def check(self) -> None: ...


class StateHarness:
    """A state, its hooks, its callers and its time, all controlled by the test."""

    def __init__(self, *, has_check: bool = False, has_change: bool = False, **options: Any) -> None:
        self.state: PoolState[Resource] = PoolState(
            Policy(**options), has_check=has_check, has_change=has_change, has_ended=has_ended, chance=lambda: 0.0
        )
        self.now = 100.0
        self.asked: dict[Effect, list[Any]] = {action: [] for action in Effect}
        self.made = 0
        self.kept: list[object] = []  # what slots refer to only weakly
        self.is_trusted = False  # else what must hold is looked at after each decision

    def do(self, decide: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """Let the state decide at this moment."""
        return self.ask(decide, *args, self.now, **kwargs)

    def ask(self, decide: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Let the state decide, take up what it asks for, and see that it keeps its promises."""
        try:
            return decide(*args, **kwargs)
        finally:
            self.run_effects()

    def run_effects(self) -> None:
        while self.state.effects:
            action, subject = self.state.effects.popleft()
            if action is Effect.WAKE:
                subject.wake()
                assert subject.woken == 1, "a waiter was woken twice"
            self.asked[action].append(subject)
        if not self.is_trusted:
            check_invariants(self.state, self.now)

    def open(self) -> "StateHarness":
        self.do(self.state.open)
        return self

    def close(self) -> int:
        return self.do(self.state.close)

    def end_close(self) -> None:
        self.state.closed(self.state.generations.current)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.do(self.state.tick)

    # --- callers --------------------------------------------------------------------------

    def acquire(
        self,
        timeout: float | None = None,
        *,
        priority: Priority = "normal",
        owner: object = None,
        request: object = None,
    ) -> Caller:
        """Let a caller ask for a lease; `slot` says whether it has one."""
        caller = Caller()
        caller.rank = RANKS[priority]
        caller.owner, caller.request, caller.has_own_timeout = owner, request, timeout is not None
        slot = self.do(self.state.acquire, caller, timeout)
        if slot is not None:
            caller.slot = slot
        return caller

    def lease(self, owner: object = None) -> Slot[Resource]:
        """Have a lease, whatever has to be created and checked for it."""
        caller = self.acquire(owner=owner)
        while caller.slot is None:
            self.checked() if self.asked[Effect.CHECK] else self.created()
        return self.owned(caller.slot, owner)

    def owned(self, slot: Slot[Resource], owner: object) -> Slot[Resource]:
        if owner is not None:
            lease = Lease(owner)
            self.kept.append(lease)
            slot.lease = weakref.ref(lease)
        return slot

    def leases(self, number: int) -> list[Slot[Resource]]:
        return [self.lease() for _ in range(number)]

    def release(self, slot: Slot[Resource], done: Caller | None = None) -> bool:
        """End a lease and give it back as the pool does; True if it is being changed."""
        self.state.inventory.end(slot, self.now)
        if self.state.inventory.put_back(slot, self.now):
            self.run_effects()
            return False
        lease = slot.leases
        self.do(self.state.release, slot)
        if done is not None:
            return self.ask(self.state.wait_changed, slot, lease, done)
        return slot in self.state.inventory.changing

    def have_free(self, number: int) -> list[Slot[Resource]]:
        """Have so many free ones; the first of them is the least recently used."""
        slots = self.leases(number)
        for slot in slots:
            self.release(slot)
        return slots

    @property
    def status(self) -> str:
        return self.state.status.value

    def free(self) -> list[Slot[Resource]]:
        return list(self.state.inventory.free)

    def waiting(self) -> list[Any]:
        return list(self.state.queue)

    # --- hooks ------------------------------------------------------------------------------

    def created(self) -> Slot[Resource]:
        creation = self.asked[Effect.CREATE].pop(0)
        resource = Resource(self.made)
        self.made += 1
        self.do(self.state.created, creation, resource)
        places: Iterable[Slot[Resource]] = (*self.state.inventory.slots.values(), *self.state.inventory.cleaning)
        return next(slot for slot in places if slot.resource is resource)

    def create_all(self) -> None:
        while self.asked[Effect.CREATE]:
            self.created()

    def failed(self, cause: BaseException | None = None) -> Creation:
        creation: Creation = self.asked[Effect.CREATE].pop(0)
        self.do(self.state.create_failed, creation, cause or OSError("down"))
        return creation

    def fail_all(self) -> None:
        """Have each call of `create` fail, and the tries that follow at once."""
        while self.asked[Effect.CREATE]:
            self.failed()

    def checked(self, *, healthy: bool = True) -> Slot[Resource]:
        slot: Slot[Resource] = self.asked[Effect.CHECK].pop(0)
        self.do(self.state.checked, slot, healthy=healthy)
        return slot

    def changed(self, *, failed: bool = False) -> Slot[Resource]:
        slot: Slot[Resource] = self.asked[Effect.CHANGE].pop(0)
        self.do(self.state.changed, slot, failed=failed)
        return slot

    def cleaned(self, *, failed: bool = False) -> Slot[Resource]:
        slot: Slot[Resource] = self.asked[Effect.CLEAN].pop(0)
        self.do(self.state.cleaned, slot, failed=failed)
        return slot

    def count(self, hook: str) -> int:
        """How many calls of a hook are under way."""
        return len(self.asked[Effect(hook)])

    # --- what was said ----------------------------------------------------------------------

    def listen(self, *events: str) -> "StateHarness":
        self.do(self.state.listen, frozenset(events or EVENTS))
        return self

    def notified(self) -> list[tuple[Any, ...]]:
        """What listeners were told since this was last asked."""
        told = [(event, *facts) for event, facts in self.asked[Effect.NOTIFY]]
        self.asked[Effect.NOTIFY].clear()
        return told

    def discards(self) -> dict[str, int]:
        return {reason: number for reason, number in self.state.counters.discards.items() if number}

    def refusals(self) -> dict[str, int]:
        return {reason: number for reason, number in self.state.counters.refusals.items() if number}


def harness(*, has_check: bool = False, has_change: bool = False, **options: Any) -> StateHarness:
    return StateHarness(has_check=has_check, has_change=has_change, **options).open()


def down(*, has_check: bool = False, **options: Any) -> StateHarness:
    """Return a pool that has nothing, and whose third try has just failed, a second after the first one."""
    core = harness(has_check=has_check, **options)
    caller = core.acquire()
    core.fail_all()
    core.advance(1)
    assert isinstance(caller.error, ResourceUnavailable)
    core.fail_all()
    return core


def probe(core: StateHarness, max_age: float = 5.0, patience: float = 2.0) -> tuple[bool | None, Caller]:
    watcher = Caller()
    return core.do(core.state.probe, watcher, max_age, patience), watcher
