"""AsyncioTimeLimit: cuts off what takes too long, in tasks of asyncio."""

import asyncio
import contextvars
from collections import OrderedDict
from types import TracebackType


class AsyncioTimeLimit:
    """Gives all blocks the same time, so that they are due in the order in which they begin: one timer is enough.

    `asyncio.timeout` sets a timer for each, which costs more than all else that a pool does for a lease.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.loop = loop
        self.seconds = seconds
        # Those under way, in the order of their beginnings; OrderedDict, as the first of a dict is slow to find.
        self.blocks: OrderedDict[_Block, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> "_Block":
        """Return a block to enter at once."""
        return _Block(self)

    def set_timer(self) -> None:
        """See to it that the first block is cut off in time."""
        if self._timer is None and self.blocks:
            self._timer = self.loop.call_at(next(iter(self.blocks)).due, self._ring, context=contextvars.Context())

    def _ring(self) -> None:
        self._timer = None
        now = self.loop.time()
        while self.blocks and next(iter(self.blocks)).due <= now:
            block, _ = self.blocks.popitem(last=False)
            block.cut_off()
        self.set_timer()


class _Block:
    """One block. Its task is cancelled once, as by `asyncio.timeout`: anyio would do so again and again."""

    __slots__ = ("_cancelled_before", "_is_cut_off", "_limit", "_task", "due")

    due: float  # known once it has begun

    def __init__(self, limit: AsyncioTimeLimit) -> None:
        self._limit = limit
        self._is_cut_off = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - it is a task that runs this
        limit = self._limit
        loop = task.get_loop()
        if loop is not limit.loop:  # what the pool left to be done in another loop, before it was opened in this one
            self._limit = limit = AsyncioTimeLimit(loop, limit.seconds)
        self._task = task
        self._cancelled_before = task.cancelling()
        self.due = loop.time() + limit.seconds
        limit.blocks[self] = None
        limit.set_timer()

    def cut_off(self) -> None:
        """Cancel it, while it runs."""
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
