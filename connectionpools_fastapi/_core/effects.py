"""Effects: what a decision asks the executor to carry out; and where a pool is in its life."""

from collections import deque
from enum import Enum
from typing import Any

from .waiter import Waiter


class Status(Enum):
    """Where a pool is in its life."""

    NEW = "new"
    OPEN = "open"
    SUSPENDED = "suspended"  # open, but each caller waits
    CLOSING = "closing"
    CLOSED = "closed"
    FORKED = "forked"  # in a child process: all resources are the parent's


class Effect(Enum):
    """What a decision asks the executor to carry out; each comment names the subject."""

    WAKE = "wake"  # a waiter
    DECIDE = "decide"  # something that had to wait for another decision
    WATCH = "watch"  # the clients of some waiters
    NOTIFY = "notify"  # listeners, of an event
    WARN = "warn"  # of a lease that is held for too long
    OVERLOADED = "overloaded"  # an overload that begins
    RELIEVED = "relieved"  # an overload that has ended
    LOST = "lost"  # a lease by hand, which is reported
    CREATE = "create"  # a creation
    CHECK = "check"  # a slot, as in the next two
    CHANGE = "change"
    CLEAN = "clean"
    GIVE_BACK = "give back"  # the tokens of resources that are gone; no subject
    FORGET = "forget"  # the cause of a failure: objects that it keeps alive must not be destroyed under the lock


# Each look-up in an Enum costs as much as a method call.
OPEN, SUSPENDED, WAKE, CHANGE = Status.OPEN, Status.SUSPENDED, Effect.WAKE, Effect.CHANGE


class EffectQueue(deque[tuple[Effect, Any]]):
    """Effects in the order in which they were asked for; any thread may carry them out, without the lock."""

    def __init__(self) -> None:
        super().__init__()
        self.subscribed: frozenset[str] = frozenset()  # the events that listeners subscribe to

    def wake(self, waiter: Waiter[Any]) -> None:
        """Ask for a waiter to be woken."""
        self.append((WAKE, waiter))

    def notify(self, event: str, *facts: object) -> None:
        """Ask for listeners to be notified of an event, if any subscribes to it."""
        if event in self.subscribed:
            self.append((Effect.NOTIFY, (event, facts)))
