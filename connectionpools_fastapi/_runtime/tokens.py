"""Tokens: a pool's share of its budget, kept equal to the number of its resources."""

from collections.abc import Callable
from typing import Any

import anyio

from .._core.slot import Creation
from .._core.state import PoolState
from ..budget import Budget, Membership
from ..stats import BudgetStats
from .loop import Job, Loop

# While a creation waits for a token, the pool looks this often whether a caller still needs it, in seconds.
LOOK_EVERY = 0.25


class Tokens:
    """Takes a token for each creation, and gives back those of resources that are gone."""

    def __init__(
        self,
        budget: Budget,
        state: PoolState[Any],
        apply: Callable[..., Any],
        clock: Callable[[], float],
    ) -> None:
        self.pool = state.policy.name
        self._budget = budget
        self._state = state
        self._apply = apply
        self._clock = clock
        # The pool's lock protects these two.
        self._held = 0
        self._late = 0  # resources that were created too late, and are being cleaned
        self._membership: Membership | None = None
        self._has_joined: anyio.Event
        self._waits: set[anyio.CancelScope] = set()
        self._loop: Loop

    # --- a member, as the budget sees it ----------------------------------------------------

    def spawn(self, job: Job) -> None:
        """Run a task in the pool's loop; see `Member`."""
        self._loop.spawn(job)

    def give_way(self, level: int | None, count: int = 1) -> None:
        """Give tokens back for other members; see `Member`."""
        self._apply(self._state.give_way, level, count, self._budget.floor, self._clock())

    # --- its life -----------------------------------------------------------------------------

    def enter_loop(self, loop: Loop) -> None:
        """Prepare for the loop in which the pool is being opened."""
        self._loop = loop
        self._has_joined = anyio.Event()

    async def join(self) -> None:
        """Become a member of the budget; creations wait for it."""
        self.leave()  # an earlier life may have left a lease behind, or have lost its loop
        self._held = 0
        self._membership = await self._budget.join(self)
        self._has_joined.set()

    def leave(self) -> None:
        """Give everything back."""
        if self._membership is not None:
            membership, self._membership = self._membership, None
            membership.leave()

    def stats(self) -> BudgetStats | None:
        """Return how the budget is used; None if the pool is no member."""
        return None if self._membership is None else self._membership.stats()

    # --- tokens -------------------------------------------------------------------------------

    async def take(self, creation: Creation) -> bool:
        """Wait for a token for as long as a caller needs it; False if the creation was given up."""
        while True:
            with anyio.CancelScope(deadline=anyio.current_time() + LOOK_EVERY) as wait:
                self._waits.add(wait)
                try:
                    await self._has_joined.wait()
                    assert self._membership is not None  # noqa: S101 - it has joined
                    await self._membership.take()
                finally:
                    self._waits.discard(wait)
                self._apply(self._allow, creation, self._clock())
                return True
            if self._apply(self._state.drop_unneeded, creation, self._clock()):
                return False

    def _allow(self, creation: Creation, now: float) -> None:
        self._held += 1
        self._state.allow(creation, now)

    def look_again(self) -> None:
        """Look now whether the creations that wait for a token are still needed. From the pool's loop."""
        for wait in tuple(self._waits):
            wait.cancel()

    def give_back(self) -> None:
        """Give back the tokens of resources that are gone. From any thread."""
        membership = self._membership
        if membership is not None:
            for _ in range(self._apply(self._take_surplus)):
                membership.give_back()
            if self._state.is_over() and not self._held:
                self.leave()

    def note_late(self, change: int) -> None:
        """Count resources that were created too late, and are not yet cleaned; part of a decision."""
        self._late += change

    def fork(self) -> Membership | None:  # pragma: no cover - in a process of its own
        """Begin anew in a forked child; returns what is the parent's."""
        membership, self._membership = self._membership, None
        self._held = self._late = 0
        return membership

    def _take_surplus(self) -> int:
        surplus = max(0, self._held - self._state.inventory.in_being() - self._late)
        self._held -= surplus
        return surplus
