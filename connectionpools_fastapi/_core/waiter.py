"""Waiter: one parked caller, granted or failed once, from any thread.

A decision sets `slot` or `error` (or neither, for a waiter that only has to go on) under the
pool's lock, and the executor calls `wake` once, after it has released the lock.
"""

from collections.abc import Callable
from typing import Any, Generic, Protocol

from .slot import Slot, T
from .terms import NORMAL


class Client(Protocol):
    """The client that a waiter waits for; it may go away meanwhile."""

    def watch(self, waiter: Any, leave: Callable[[Exception], None], /) -> None:
        """Call `leave` if the client goes away while the waiter waits, or uses what it got; from the waiter's loop."""

    def unwatch(self, waiter: Any, /) -> None:
        """Note that a waiter, watched or not, waits no more; from its loop."""

    def check(self) -> None:
        """Raise an error if the client is known to have gone away."""


class Waiter(Generic[T]):
    """What the pool knows of a parked caller."""

    __slots__ = (
        *("asked_at", "client", "deadline", "error", "has_own_timeout", "is_noted", "owner", "rank", "request", "slot"),
        "waits",
    )

    def __init__(self, owner: object = None) -> None:
        self.asked_at = 0.0
        self.deadline: float | None = None
        self.has_own_timeout = False  # not the pool's: it neither teaches patience nor is judged by that of others
        self.rank = NORMAL  # by its priority
        self.owner = owner  # the task that waits
        self.request: object = None  # the request that it waits for, if known
        self.client: Client | None = None  # of that request, if it may go away
        self.slot: Slot[T] | None = None
        self.error: Exception | None = None
        # For the queue: whether it is in there, and whether its deadline was noted.
        self.waits = False
        self.is_noted = False

    def wake(self) -> None:
        """Let the caller go on; from any thread, without the pool's lock."""
        raise NotImplementedError
