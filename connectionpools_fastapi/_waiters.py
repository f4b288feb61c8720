"""Waiter: one parked caller, granted or failed once, from any thread.

A decision of the pool sets `slot` or `error` (or neither, where there is nothing to say)
under the pool's lock, and `wake` is called once after the lock is released.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Protocol

from .manager import T

if TYPE_CHECKING:
    from ._slot import Slot


class Client(Protocol):
    """Who a waiter waits for, and who may go away meanwhile."""

    def watch(self, waiter: "TaskWaiter[Any]", leave: Callable[[Exception], None]) -> None:
        """Call `leave` if it goes away while the waiter waits; from the waiter's loop."""

    def unwatch(self, waiter: "TaskWaiter[Any]") -> None:
        """Take note that a waiter, watched or not, waits no more; from its loop."""


class Waiter(Generic[T]):
    """What the pool knows of a parked caller."""

    __slots__ = ("asked_at", "client", "deadline", "error", "is_noted", "owner", "request", "slot", "waits")

    def __init__(self, owner: object = None) -> None:
        self.asked_at = 0.0
        self.deadline: float | None = None
        self.owner = owner  # the task that waits
        self.request: object = None  # on whose behalf it waits, where that is known
        self.client: Client | None = None  # for whom, if it may go away
        self.slot: Slot[T] | None = None
        self.error: Exception | None = None
        # The queue's notes: whether it is in there, and whether its deadline was looked at.
        self.waits = False
        self.is_noted = False

    def wake(self) -> None:
        """Let the caller go on; may be called from any thread, without the pool's lock."""
        raise NotImplementedError


class TaskWaiter(Waiter[T]):
    """A parked task of any event loop: it awaits `parked`, and is the owner."""

    __slots__ = ("loop", "parked")

    loop: Any  # of asyncio, or the token of a run of trio
    # To be awaited, until `wake`; may be cancelled, then `slot` says whether a grant was faster.
    parked: Any

    def call_soon(self, call: Callable[[], object]) -> None:
        """Call something in its loop; from any thread."""
        raise NotImplementedError


class AsyncioWaiter(TaskWaiter[T]):
    """A task of asyncio: a bare future, the fastest there is (measured, see the benchmarks)."""

    __slots__ = ()

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop, task: object = None) -> "AsyncioWaiter[T]":
        """Return a waiter for a task of this loop."""
        waiter: AsyncioWaiter[T] = cls(task)
        waiter.loop = loop
        waiter.parked = loop.create_future()
        return waiter

    def wake(self) -> None:
        if asyncio._get_running_loop() is not self.loop:
            self.loop.call_soon_threadsafe(self._resolve)
        elif not self.parked.done():  # a cancelled caller finds its grant in `slot`
            self.parked.set_result(None)

    def call_soon(self, call: Callable[[], object]) -> None:
        self.loop.call_soon_threadsafe(call)

    def _resolve(self) -> None:
        if not self.parked.done():
            self.parked.set_result(None)


class ThreadWaiter(Waiter[T]):
    """A plain thread: a lock held from the start is the cheapest event that has a timeout."""

    __slots__ = ("_parked",)

    def __init__(self) -> None:
        super().__init__()
        self._parked = threading.Lock()
        self._parked.acquire()

    def wait(self, timeout: float | None) -> bool:
        """Park until `wake`, or for `timeout` seconds; False if these went by."""
        return self._parked.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))

    def wake(self) -> None:
        self._parked.release()
