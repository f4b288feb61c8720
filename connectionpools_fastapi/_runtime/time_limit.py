"""AsyncioTimeLimit: cuts off blocks that take too long, in tasks of asyncio."""

import asyncio
import contextvars
from collections import OrderedDict
from types import TracebackType
from typing import Any

from .caller import current_task


class AsyncioTimeLimit:
    """Gives all blocks the same time. They are due in the order in which they begin, so one timer is enough.

    `asyncio.timeout` sets a timer for each, which costs more than the rest of a lease.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.loop = loop
        self.seconds = seconds
        # Blocks under way, in the order of their start. An OrderedDict, since the first key of a dict is slow to find.
        self.blocks: OrderedDict[Any, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> "_Block":
        """Return a block to enter at once."""
        return _Block(self)

    def set_timer(self) -> None:
        """Set the timer for the first block, unless it is set."""
        if self._timer is None and self.blocks:
            self._timer = self.loop.call_at(next(iter(self.blocks)).due, self._ring, context=contextvars.Context())

    def _ring(self) -> None:
        self._timer = None
        now = self.loop.time()
        while self.blocks and next(iter(self.blocks)).due <= now:
            block, _ = self.blocks.popitem(last=False)
            block.cancel()
        self.set_timer()


class _Block:
    """One block. Its task is cancelled once, as by `asyncio.timeout`: anyio would do so again and again."""

    __slots__ = ("_cancelled_before", "_is_cut_off", "_limit", "_task", "due")

    due: float  # set when the block begins

    def __init__(self, limit: AsyncioTimeLimit) -> None:
        self._limit = limit
        self._is_cut_off = False

    def __enter__(self) -> None:
        limit = self._limit
        task: asyncio.Task[object] = current_task()  # type: ignore[assignment] # a task of asyncio runs this
        loop = task.get_loop()
        if loop is not limit.loop:  # a task left over from another loop, in which the pool was open before
            self._limit = limit = AsyncioTimeLimit(loop, limit.seconds)
        self._task = task
        self._cancelled_before = task.cancelling()
        self.due = loop.time() + limit.seconds
        limit.blocks[self] = None
        limit.set_timer()

    def cancel(self) -> None:
        """Cut the block off while it runs."""
        if not self._is_cut_off:
            self._is_cut_off = True
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._limit.blocks.pop(self, None)
        if not self._is_cut_off:
            return False
        is_only_ours = self._task.uncancel() <= self._cancelled_before
        return isinstance(error, TimeoutError) or (is_only_ours and isinstance(error, asyncio.CancelledError))
