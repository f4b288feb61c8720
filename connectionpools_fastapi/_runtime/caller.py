"""Caller: the task or thread that runs the calling code, and the calls that led there."""

import asyncio
import sys
import threading
import traceback
from collections.abc import Callable
from itertools import dropwhile, islice

from .._acceleration import is_own
from .._core.slot import Stack

# Only the innermost calls: beyond them are the server and the event loop.
MOST_FRAMES = 12

current_thread = threading.current_thread

_task_of: Callable[[asyncio.AbstractEventLoop], object]
if sys.version_info >= (3, 12):  # pragma: no cover - coverage is that of 3.11
    _task_of = asyncio.current_task
else:  # that one is a function of Python there, and takes a tenth of a lease
    _task_of = vars(asyncio.tasks)["_current_tasks"].get


def current_task() -> object:
    """Return the running task, of asyncio or of trio."""
    loop = asyncio._get_running_loop()  # noqa: SLF001 - its documented form raises where none runs
    task = None if loop is None else _task_of(loop)
    if task is None and (trio := sys.modules.get("trio")) is not None and trio.lowlevel.in_trio_task():
        return trio.lowlevel.current_task()
    return task


def has_ended(owner: object) -> bool:
    """Whether a task or thread has ended; None stands for one that is gone."""
    if isinstance(owner, threading.Thread):
        return not owner.is_alive()
    if isinstance(owner, asyncio.Future):
        return owner.done()
    return owner is None or getattr(getattr(owner, "coro", None), "cr_frame", owner) is None  # a task of trio


def acquiring_stack() -> Stack:
    """Return the calls that led to the acquire of a lease, without this package's own."""
    frames = traceback.walk_stack(sys._getframe())  # noqa: SLF001 - the fast way, which `inspect` uses too
    outside = dropwhile(lambda found: is_own(found[0].f_code.co_filename), frames)
    # The lines of source are looked up only for a report: that takes ten times as long.
    return [
        (frame.f_code.co_filename, line, frame.f_code.co_name, None) for frame, line in islice(outside, MOST_FRAMES)
    ]
