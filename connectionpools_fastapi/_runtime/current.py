"""Current: the loop that runs the calling code, asyncio's or trio's, and a waiter for its task."""

import asyncio
import os
import sys
from typing import Any

from .caller import current_task
from .loop import Loop
from .on_asyncio import AsyncioLoop
from .waiters import AsyncioWaiter, TaskWaiter


def in_trio() -> bool:
    # Looked up, not imported: if trio was not imported, no task of it runs.
    trio = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_task() and trio.lowlevel.current_trio_token() not in _ENDED


# Runs of trio that a forked child still seems to be in, although they go on only in the parent.
_ENDED: list[object] = []


def _fork() -> None:  # pragma: no cover - in a process of its own, see tests/runtime/test_fork.py
    if in_trio():
        _ENDED.append(sys.modules["trio"].lowlevel.current_trio_token())


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows, which does not fork
    os.register_at_fork(after_in_child=_fork)


def current_loop() -> Loop | None:
    """Return the loop that runs the calling code; None in a plain thread."""
    if in_trio():
        from .on_trio import TrioLoop  # noqa: PLC0415 - trio is not a dependency

        return TrioLoop()
    running = asyncio._get_running_loop()  # noqa: SLF001 - its documented form raises where none runs
    return None if running is None else AsyncioLoop(running)


def task_waiter(task: object = None) -> TaskWaiter[Any]:
    """Return a new waiter for the running task of either library; pass it as `task` if it is known."""
    if task is None:
        task = current_task()
    try:
        loop: asyncio.AbstractEventLoop = task.get_loop()  # type: ignore[attr-defined] # if it is asyncio's
    except AttributeError:
        if not in_trio():
            return AsyncioWaiter.of(asyncio.get_running_loop())
        from .on_trio import TrioWaiter  # noqa: PLC0415 - trio is not a dependency

        return TrioWaiter(task)
    return AsyncioWaiter.of(loop, task)
