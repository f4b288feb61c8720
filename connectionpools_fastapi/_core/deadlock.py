"""Deadlock: whether a caller would wait for itself, alone or together with others; pure functions."""

from collections.abc import Collection, Iterable
from typing import Any

from .generations import LOST
from .held_leases import owner_of
from .slot import Slot
from .wait_queue import WaitQueue


def is_held_by(leased: Iterable[Slot[Any]], *owners: object) -> bool:
    """Whether one of these tasks, threads or requests holds one of these slots in a block."""
    held = (owner_of(slot) for slot in leased)
    return any(owner is not None and any(owner is each for each in owners) for owner in held)


def closes_circle(leased: Iterable[Slot[Any]], slots: Collection[int], queue: WaitQueue[Any], owner: object) -> bool:
    """Whether every slot is held by a task that waits for another one, `owner` among them.

    A thread counts as waiting only while it waits itself: a worker thread that runs one job after
    another, as for `def` dependencies, holds nothing itself.

    Args:
        leased: The slots that are leased, seen live: the fast path may change them meanwhile.
        slots: The slots that exist, also seen live.
        queue: The callers that wait.
        owner: The task that would wait.
    """
    held = 0
    try:
        for slot in leased:
            if slot.generation != LOST:  # else it was written off
                holder = owner_of(slot)
                if holder is None or not (holder is owner or queue.has_one_of(holder)):
                    return False  # most often the very first one
                held += 1
    except RuntimeError:  # another thread has just leased or given back, so that one does not wait
        return False
    return held == len(slots)  # and none was given back meanwhile
