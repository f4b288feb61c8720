"""Owner: the task or thread in which a lease began; it names who was given no better name."""

import asyncio
import os
import sys
import threading
import traceback
from dataclasses import dataclass
from itertools import dropwhile, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from .stats import Holder

if TYPE_CHECKING:
    from ._slot import Slot

# The calls that led somewhere, the last one first, as `traceback.StackSummary.from_list` takes them.
Stack = list[tuple[str, int, str, str | None]]

PACKAGE = f"{Path(__file__).parent}{os.sep}"

# The innermost ones: beyond them are the server and the event loop.
MOST_FRAMES = 12

current_thread = threading.current_thread


def current_task() -> object:
    """Return the running task, of asyncio or of trio."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    if task is None and (trio := sys.modules.get("trio")) is not None and trio.lowlevel.in_trio_task():
        return trio.lowlevel.current_task()
    return task


def owner_of(slot: "Slot[Any]") -> object:
    """Return on whose behalf a slot is leased for a block: a task, a thread or a request; None if unknown."""
    lease = slot.lease  # read once: it ends without the pool's lock
    return getattr(lease(), "_owner", None) if lease is not None else None


@dataclass(frozen=True, slots=True)
class Hold:
    """Who holds a lease, for how long and from where; to name them runs users' code, so not under the lock."""

    holder: object
    lease: object
    age: float
    stack: Stack | None

    @classmethod
    def of(cls, slot: "Slot[Any]", now: float) -> Self:
        """Take note of a slot's lease."""
        lease = slot.lease
        return cls(slot.holder, lease() if lease is not None else None, now - slot.since, slot.stack)

    def named(self) -> Holder:
        """Name the holder: as it was told, or after the task or thread in which the lease began."""
        if self.holder is not None:
            return Holder(name=_said(self.holder), age=self.age)
        return Holder(name=name_of(getattr(self.lease, "_owner", self.lease)), age=self.age)

    def __str__(self) -> str:
        """Say it for the log."""
        holder = self.named()
        return f"{holder.name} has held a resource for {holder.age:.3g} s"

    def acquired_at(self) -> str:
        """Say for the log where it was acquired, as far as known; begins with a new line."""
        if self.stack is None:
            return ""
        calls = traceback.StackSummary.from_list(self.stack[::-1]).format()
        return f"\nacquired at:\n{''.join(calls).rstrip()}"


def _said(holder: object) -> str:
    try:
        return str(holder)
    except Exception as error:  # noqa: BLE001 - whatever a holder raises: reports have to go on
        return f"{type(holder).__name__} (its name failed with {type(error).__name__})"


def name_of(owner: object) -> str:
    """Name a task or a thread as its library does."""
    get_name = getattr(owner, "get_name", None)  # asyncio's tasks; threads have both
    return str(get_name() if get_name is not None else getattr(owner, "name", "unnamed"))


def acquiring_stack() -> Stack:
    """Say where the running code acquires a lease: the calls that led there, without this package's own."""
    frames = traceback.walk_stack(sys._getframe())
    outside = dropwhile(lambda found: found[0].f_code.co_filename.startswith(PACKAGE), frames)
    # Only noted here: to look up the lines takes ten times as long, and is for the few that are reported.
    return [
        (frame.f_code.co_filename, line, frame.f_code.co_name, None) for frame, line in islice(outside, MOST_FRAMES)
    ]
