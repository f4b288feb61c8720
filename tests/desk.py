"""What the tests of single decisions share: a state machine whose hooks, callers and time are in their hands."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

from connectionpools_fastapi import ResourceUnavailable
from connectionpools_fastapi._ledger import Action
from connectionpools_fastapi._policy import Policy
from connectionpools_fastapi._slot import Creation, Slot
from connectionpools_fastapi._state import State
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


class Desk:
    """A state, its hooks, its callers and its time, all in the hands of the test."""

    def __init__(self, *, has_check: bool = False, has_change: bool = False, **options: Any) -> None:
        self.state: State[Resource] = State(
            Policy(**options), has_check=has_check, has_change=has_change, chance=lambda: 0.0
        )
        self.now = 100.0
        self.asked: dict[Action, list[Any]] = {action: [] for action in Action}
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
            self.carry_out()

    def carry_out(self) -> None:
        while self.state.todo:
            action, subject = self.state.todo.popleft()
            if action is Action.WAKE:
                subject.wake()
                assert subject.woken == 1, "somebody was woken twice"
            self.asked[action].append(subject)
        if not self.is_trusted:
            self.state.check_invariants(self.now)

    def open(self) -> "Desk":
        self.do(self.state.open)
        return self

    def close(self) -> int:
        return self.do(self.state.close)

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.do(self.state.tick)

    # --- callers --------------------------------------------------------------------------

    def come(self, timeout: float | None = None, *, owner: object = None, request: object = None) -> Caller:
        """Let a caller ask for a lease; `slot` says whether it has one."""
        caller = Caller()
        caller.owner, caller.request = owner, request
        slot = self.do(self.state.acquire, caller, timeout)
        if slot is not None:
            caller.slot = slot
        return caller

    def lease(self, owner: object = None) -> Slot[Resource]:
        """Have a lease, whatever has to be created and checked for it."""
        caller = self.come(owner=owner)
        while caller.slot is None:
            self.checked() if self.asked[Action.CHECK] else self.created()
        return self.owned(caller.slot, owner)

    def owned(self, slot: Slot[Resource], owner: object) -> Slot[Resource]:
        if owner is not None:
            lease = Lease(owner)
            self.kept.append(lease)
            slot.lease = weakref.ref(lease)
        return slot

    def leases(self, number: int) -> list[Slot[Resource]]:
        return [self.lease() for _ in range(number)]

    def give_back(self, slot: Slot[Resource], done: Caller | None = None) -> bool:
        """End a lease and give it back as the pool does; True if it is being changed."""
        self.state.end(slot, self.now)
        if self.state.put_back(slot, self.now):
            self.carry_out()
            return False
        lease = slot.leases
        self.do(self.state.release, slot)
        if done is not None:
            return self.ask(self.state.wait_changed, slot, lease, done)
        return slot in self.state.changing

    def have_free(self, number: int) -> list[Slot[Resource]]:
        """Have so many free ones; the first of them is the least recently used."""
        slots = self.leases(number)
        for slot in slots:
            self.give_back(slot)
        return slots

    @property
    def status(self) -> str:
        return self.state.status.value

    def free(self) -> list[Slot[Resource]]:
        return list(self.state.free)

    def waiting(self) -> list[Any]:
        return list(self.state.queue)

    # --- hooks ------------------------------------------------------------------------------

    def created(self) -> Slot[Resource]:
        creation = self.asked[Action.CREATE].pop(0)
        resource = Resource(self.made)
        self.made += 1
        self.do(self.state.created, creation, resource)
        places: Iterable[Slot[Resource]] = (*self.state.slots.values(), *self.state.cleaning)
        return next(slot for slot in places if slot.resource is resource)

    def create_all(self) -> None:
        while self.asked[Action.CREATE]:
            self.created()

    def failed(self, cause: BaseException | None = None) -> Creation:
        creation: Creation = self.asked[Action.CREATE].pop(0)
        self.do(self.state.create_failed, creation, cause or OSError("down"))
        return creation

    def checked(self, *, healthy: bool = True) -> Slot[Resource]:
        slot: Slot[Resource] = self.asked[Action.CHECK].pop(0)
        self.do(self.state.checked, slot, healthy=healthy)
        return slot

    def changed(self, *, failed: bool = False) -> Slot[Resource]:
        slot: Slot[Resource] = self.asked[Action.CHANGE].pop(0)
        self.do(self.state.changed, slot, failed=failed)
        return slot

    def cleaned(self, *, failed: bool = False) -> Slot[Resource]:
        slot: Slot[Resource] = self.asked[Action.CLEAN].pop(0)
        self.do(self.state.cleaned, slot, failed=failed)
        return slot

    def count(self, hook: str) -> int:
        """How many calls of a hook are under way."""
        return len(self.asked[Action(hook)])

    # --- what was said ----------------------------------------------------------------------

    def listen(self, *events: str) -> "Desk":
        self.do(self.state.listen, frozenset(events or EVENTS))
        return self

    def told(self) -> list[tuple[Any, ...]]:
        """What listeners were told since this was last asked."""
        told = [(event, *facts) for event, facts in self.asked[Action.TELL]]
        self.asked[Action.TELL].clear()
        return told

    def discards(self) -> dict[str, int]:
        return {reason: number for reason, number in self.state.totals.discards.items() if number}

    def refusals(self) -> dict[str, int]:
        return {reason: number for reason, number in self.state.totals.refusals.items() if number}


def desk(*, has_check: bool = False, has_change: bool = False, **options: Any) -> Desk:
    return Desk(has_check=has_check, has_change=has_change, **options).open()


def down(*, has_check: bool = False, **options: Any) -> Desk:
    """Return a pool whose first creation failed, and which has nothing else."""
    at = desk(has_check=has_check, **options)
    caller = at.come()
    at.failed()
    assert isinstance(caller.error, ResourceUnavailable)
    return at
