"""Loop: the event loop that a pool's own tasks run in, asyncio's or trio's.

Both offer the same few operations: start a task, wait in one, set a timer. All modules above
this one are the same for both.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any, Protocol

Job = Callable[[], Coroutine[Any, Any, None]]


class TimedBlock(AbstractContextManager[object, bool | None], Protocol):
    """A block with a time limit."""

    def cancel(self) -> None:
        """Cut the block off now; from its loop."""


# Limits the time of a block: `with time_limit(): ...`.
TimeLimit = Callable[[], TimedBlock]


class Timer(Protocol):
    """A call that will be made unless it is cancelled."""

    def cancel(self) -> None:
        """Cancel the call."""


class LoopEnded(RuntimeError):  # noqa: N818 - reads as what happened
    """The loop ended before it had run the job."""


class Loop(ABC):
    """One event loop. `spawn` and `call_soon` raise RuntimeError once it has ended."""

    native: object  # the object of its library, as in `TaskWaiter.loop`

    @abstractmethod
    def is_here(self) -> bool:
        """Whether the calling code runs in this loop."""

    @abstractmethod
    def has_ended(self) -> bool:
        """Whether nothing can run in this loop any more."""

    @abstractmethod
    def spawn(self, job: Job) -> None:
        """Start a task of the pool's own, without the caller's context; from any thread."""

    @abstractmethod
    def call_soon(self, call: Callable[[], None]) -> None:
        """Call a function in this loop; from any thread."""

    @abstractmethod
    def run(self, job: Job) -> None:
        """Run a task in this loop and wait for it; from a thread that is not the loop's own.

        Raises:
            LoopEnded: If the loop ends first, or has ended.
        """

    @abstractmethod
    def time_limit(self, seconds: float) -> TimeLimit:
        """Return a time limit for blocks of this loop's tasks.

        A block that takes longer is cancelled, once, and left without an exception.
        """

    @abstractmethod
    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        """Call a function after `delay` seconds; from this loop only."""
