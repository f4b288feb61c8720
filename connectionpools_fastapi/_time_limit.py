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
        self._loop = loop
        self._seconds = seconds
        self._blocks: deque[_Block] = deque()  # in the order of their beginnings; the first has not ended
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> "_Block":
        """Return a block to enter at once."""
        return _Block(self)

    def begin(self, block: "_Block") -> asyncio.Task[object]:
        """Let the running task's block begin; return the task."""
        task = asyncio.current_task(self._loop)
        if task is None:  # what the pool left to be done in another loop, before it was opened in this one
            block.limit = AsyncioTimeLimit(asyncio.get_running_loop(), self._seconds)
            return block.limit.begin(block)
        block.due = self._loop.time() + self._seconds
        self._blocks.append(block)
        self._set_timer()
        return task

    def end(self) -> None:
        """Forget the first ones that have ended."""
        while self._blocks and self._blocks[0].task is None:
            self._blocks.popleft()

    def _set_timer(self) -> None:
        if self._timer is None and self._blocks:
            self._timer = self._loop.call_at(self._blocks[0].due, self._ring, context=contextvars.Context())

    def _ring(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._blocks and self._blocks[0].due <= now:
            self._blocks.popleft().cut_off()
        self._set_timer()


class _Block:
    """One block. Its task is cancelled once, as by `asyncio.timeout`: anyio would do so again and again."""

    __slots__ = ("_cancelled_before", "_is_cut_off", "due", "limit", "task")

    due: float  # known once it has begun

    def __init__(self, limit: AsyncioTimeLimit) -> None:
        self.limit = limit
        self._is_cut_off = False
        self.task: asyncio.Task[object] | None = None  # while it runs

    def __enter__(self) -> None:
        self.task = self.limit.begin(self)
        self._cancelled_before = self.task.cancelling()

    def cut_off(self) -> None:
        """Cancel it, unless it has ended."""
        if self.task is not None:
            self._is_cut_off = True
            self.task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        task, self.task = self.task, None
        self.limit.end()
        if not self._is_cut_off:
            return False
        assert task is not None  # noqa: S101 - it was cancelled
        is_only_ours = task.uncancel() <= self._cancelled_before
        return isinstance(error, TimeoutError) or (is_only_ours and isinstance(error, asyncio.CancelledError))
