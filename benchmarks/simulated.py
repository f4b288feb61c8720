"""A load in virtual time on the state of a pool: clients that arrive, wait, hold a resource, and leave.

`python -m benchmarks.simulated` draws goodput against offered load into docs/guide/overload.svg.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.plot import curves
from connectionpools_fastapi._core.effects import Effect
from connectionpools_fastapi._core.policy import OnOverload, Policy
from connectionpools_fastapi._core.slot import Slot
from connectionpools_fastapi._core.state import PoolState
from connectionpools_fastapi._core.waiter import Waiter
from connectionpools_fastapi.errors import Overloaded, PoolTimeout

FOREVER = 1e9


PICTURE = Path(__file__).parents[1] / "docs" / "guide" / "overload.svg"
# What the picture shows: times the capacity, and the pool.
LOADS = (0.5, 0.8, 0.9, 1.0, 1.1, 1.3, 1.6, 2.0, 2.5, 3.0, 4.0, 5.0)
LIMIT, HOLD, PATIENCE, SECONDS = 10, 0.02, 1.0, 10.0


class Client(Waiter[object]):
    """A client that leaves once its patience is over."""

    def __init__(self, at: float, patience: float = FOREVER, kind: str = "", timeout: float | None = None) -> None:
        super().__init__(self)
        self.at = at
        self.patience = patience
        self.kind = kind
        self.timeout = timeout  # its own
        self.has_own_timeout = timeout is not None
        self.expected: float | None = None  # how long it would wait, as the pool saw it when it came
        self.outcome: str | None = None
        self.has_left = False
        self.woken = False

    def wake(self) -> None:
        self.woken = True


@dataclass
class Outcomes:
    """What became of all clients."""

    goodput: float = 0.0  # the share of the capacity that served clients that stayed
    ends: Counter[tuple[str, str]] = field(default_factory=Counter)  # by kind and outcome
    waits: list[tuple[str, float]] = field(default_factory=list)  # of the served, by kind
    log: list[tuple[float, Effect]] = field(default_factory=list)
    errors: list[tuple[float, Client, Exception]] = field(default_factory=list)
    expected: list[tuple[float, float]] = field(default_factory=list)  # what was expected, and what was so

    def count(self, outcome: str, kind: str = "") -> int:
        return self.ends[kind, outcome]


class Simulation:
    """One pool whose resources are made at once, its clients, and a clock that jumps."""

    def __init__(self, limit: int, hold: Callable[[], float], *, leases_tell: bool = True, **options: Any) -> None:
        self.state: PoolState[object] = PoolState(
            Policy(limit=limit, **options), has_check=False, has_change=False, has_ended=lambda _: False
        )
        self.now = 0.0
        self.outcomes = Outcomes()
        self._hold = hold
        self._leases_tell = leases_tell  # whether a client that leaves during its lease is noticed
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = count()
        self._ticks_at = FOREVER
        self._useful = 0.0
        self._decide(self.state.open)

    def run(self, clients: Iterator[Client] | list[Client], seconds: float) -> Outcomes:
        """Let all clients come; the goodput is that of this time, and what happens later does not count."""
        for client in clients:
            self.at(client.at, self._arrive, client)
        while self._events and self._events[0][0] <= seconds:
            self.now, _, call, args = heapq.heappop(self._events)
            call(*args)
        self.outcomes.goodput = self._useful / (seconds * self.state.limit)
        return self.outcomes

    def at(self, when: float, call: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._events, (when, next(self._order), call, args))

    def _decide(self, decide: Callable[..., Any], *args: Any) -> Any:
        try:
            return decide(*args, self.now)
        finally:
            if self.state.due < self._ticks_at:
                self._ticks_at = self.state.due
                self.at(self._ticks_at, self._tick, self._ticks_at)
            while self.state.effects:
                self._carry_out(*self.state.effects.popleft())

    def _carry_out(self, effect: Effect, subject: Any) -> None:
        if effect is Effect.CREATE:
            self._decide(self.state.created, subject, object())
        elif effect is Effect.WAKE:
            if subject.slot is not None:
                self._serve(subject, subject.slot)
            else:
                self._fail(subject, subject.error)
        else:
            self.outcomes.log.append((self.now, effect))

    def _tick(self, when: float) -> None:
        if when == self._ticks_at:
            self._ticks_at = FOREVER
            self._decide(self.state.tick)

    def _arrive(self, client: Client) -> None:
        slot = self.state.inventory.take(self.now)
        if slot is None:
            timeout = client.timeout if client.has_own_timeout else self.state.policy.timeout
            client.expected = self.state.overload.expected_wait(self.now)
            try:
                slot = self._decide(self.state.acquire, client, timeout)
            except Overloaded as error:
                self._fail(client, error)
                return
        if client.patience < FOREVER:
            self.at(self.now + client.patience, self._leave, client)
        if slot is not None:
            self._serve(client, slot)

    def _serve(self, client: Client, slot: Slot[object]) -> None:
        client.slot = slot
        self.outcomes.waits.append((client.kind, self.now - client.at))
        if client.expected is not None:
            self.outcomes.expected.append((client.expected, self.now - client.at))
        hold = self._hold()
        self.at(self.now + hold, self._give_back, client, slot, hold)

    def _give_back(self, client: Client, slot: Slot[object], hold: float) -> None:
        if client.has_left:
            self._end(client, "served in vain")
        else:
            self._useful += hold
            self._end(client, "served")
        self.state.inventory.end(slot, self.now)
        if not self.state.inventory.put_back(slot, self.now):
            self._decide(self.state.release, slot)

    def _leave(self, client: Client) -> None:
        if client.outcome is not None:
            return
        if client.waits:
            self._end(client, "left")
            self._decide(self.state.cancel, client)
        else:
            client.has_left = True
            if self._leases_tell and client.slot is not None:
                self._decide(self.state.overload.leave_during_lease, client.slot)

    def _fail(self, client: Client, error: Exception) -> None:
        self.outcomes.errors.append((self.now, client, error))
        kind = "refused" if isinstance(error, Overloaded) else "timed out" if isinstance(error, PoolTimeout) else "?"
        self._end(client, kind)

    def _end(self, client: Client, outcome: str) -> None:
        client.outcome = outcome
        self.outcomes.ends[client.kind, outcome] += 1


def poisson(
    rate: float, seconds: float, client: Callable[[float, random.Random], Client], seed: int = 1
) -> list[Client]:
    """Make clients that do not wait for each other."""
    chance, now, clients = random.Random(seed), 0.0, []  # noqa: S311 - no secret
    while (now := now + chance.expovariate(rate)) < seconds:
        clients.append(client(now, chance))
    return clients


def goodput_of(load: float, overload: OnOverload) -> float:
    """Return the goodput of a pool at a load of so many times its capacity, once that has lasted for a while."""
    clients = poisson(load * LIMIT / HOLD, SECONDS, lambda at, _: Client(at, PATIENCE))
    return Simulation(LIMIT, lambda: HOLD, overload=overload).run(clients, SECONDS).goodput


if __name__ == "__main__":
    lines = {
        "this pool": [(load, goodput_of(load, "shed")) for load in LOADS],
        "first come, first served": [(load, goodput_of(load, "queue")) for load in LOADS],
    }
    below = (
        f"simulated: {LIMIT} resources, holds of {HOLD * 1000:g} ms, clients leave after {PATIENCE:g} s, {SECONDS:g} s"
    )
    PICTURE.write_text(curves("Goodput against offered load", "times the capacity", lines, below), encoding="utf-8")
