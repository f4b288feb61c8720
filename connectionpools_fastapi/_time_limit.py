"""AsyncioTimeLimit: cuts off what takes too long, in tasks of asyncio."""

import asyncio
import contextvars
from collections import deque
from types import TracebackType


class AsyncioTimeLimit:
    """Gives all blocks the same time, so that they are due in the order in which they begin: one timer is enough.

    `asyncio.timeout` sets a timer for each, which costs more than all else that a pool does for a lease.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.loop = loop
        self.seconds = seconds
        self.blocks: deque[_Block] = deque()  # in the order of their beginnings; the first has not ended
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> "_Block":
        """Return a block to enter at once."""
        return _Block(self)

    def set_timer(self) -> None:
        """See to it that the first block is cut off in time."""
        if self._timer is None and self.blocks:
            self._timer = self.loop.call_at(self.blocks[0].due, self._ring, context=contextvars.Context())

    def _ring(self) -> None:
        self._timer = None
        now = self.loop.time()
        while self.blocks and self.blocks[0].due <= now:
            self.blocks.popleft().cut_off()
        self.set_timer()


class _Block:
    """One block. Its task is cancelled once, as by `asyncio.timeout`: anyio would do so again and again."""

    __slots__ = ("_cancelled_before", "_is_cut_off", "_limit", "due", "task")

    due: float  # known once it has begun

    def __init__(self, limit: AsyncioTimeLimit) -> None:
        self._limit = limit
        self._is_cut_off = False
        self.task: asyncio.Task[object] | None = None  # while it runs

    def __enter__(self) -> None:
        limit = self._limit
        task = asyncio.current_task(limit.loop)
        if task is None:  # what the pool left to be done in another loop, before it was opened in this one
            self._limit = limit = AsyncioTimeLimit(asyncio.get_running_loop(), limit.seconds)
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - it is a task that runs this
        self.task = task
        self._cancelled_before = task.cancelling()
        self.due = limit.loop.time() + limit.seconds
        limit.blocks.append(self)
        limit.set_timer()

    def cut_off(self) -> None:
        """Cancel it, unless it has ended."""
        if self.task is not None:
            self._is_cut_off = True
            self.task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        task, self.task = self.task, None
        blocks = self._limit.blocks
        while blocks and blocks[0].task is None:
            blocks.popleft()
        if not self._is_cut_off:
            return False
        assert task is not None  # noqa: S101 - it was cancelled
        is_only_ours = task.uncancel() <= self._cancelled_before
        return isinstance(error, TimeoutError) or (is_only_ours and isinstance(error, asyncio.CancelledError))
