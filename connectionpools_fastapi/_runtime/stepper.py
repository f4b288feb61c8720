"""Stepper: runs a coroutine that awaits only futures of asyncio, by their callbacks, without a task."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from ..errors import PoolConfigError, own
from .hook_context import HOOK_CONTEXT
from .time_limit import AsyncioTimeLimit

NO_FUTURE = "it awaits more than futures of asyncio, as asyncio.sleep(0) does, so that it needs a task: remove its mark"


class Stepper:
    """Runs a coroutine, at once up to its first future, within a time limit.

    Nothing in the coroutine may ask for its task, as `asyncio.timeout` does. A task of its own costs more.
    """

    __slots__ = ("_awaited", "_context", "_coroutine", "_is_cut_off", "_limit", "_must_cancel", "_on_end", "due")

    def __init__(
        self,
        coroutine: Coroutine[Any, None, object],
        limit: AsyncioTimeLimit,
        on_end: Callable[[BaseException | None, bool], None],
    ) -> None:
        """Begin.

        Args:
            coroutine: What to run.
            limit: How long it may take.
            on_end: Called once, with the error that it raises, or None, and whether it was cut off.
        """
        self._coroutine = coroutine
        self._limit = limit
        self._on_end = on_end
        self._awaited: asyncio.Future[Any] | None = None
        self._is_cut_off = False
        self._must_cancel = False  # whether it was cut off when its future was done, and its next step had not come yet
        self._context = HOOK_CONTEXT.copy()  # as in a task of the pool's own
        self.due = limit.loop.time() + limit.seconds
        limit.blocks[self] = None
        limit.set_timer()
        self._context.run(self._step)

    def cancel(self) -> None:
        """Cut it off."""
        self._is_cut_off = True
        assert self._awaited is not None  # noqa: S101 - the loop calls this, while the coroutine waits
        self._must_cancel = not self._awaited.cancel()

    def _step(self, _: object = None) -> None:
        try:
            if self._must_cancel:
                self._must_cancel = False
                awaited = self._coroutine.throw(asyncio.CancelledError())
            else:
                awaited = self._coroutine.send(None)
            while not isinstance(awaited, asyncio.Future):
                awaited = self._coroutine.throw(own(PoolConfigError(NO_FUTURE)))
        except StopIteration:
            self._end(None)
        except BaseException as error:
            self._end(error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):  # as a task does
                raise
        else:
            awaited._asyncio_future_blocking = False  # noqa: SLF001 - as a task does with what it awaits
            awaited.add_done_callback(self._step, context=self._context)
            self._awaited = awaited

    def _end(self, error: BaseException | None) -> None:
        self._limit.blocks.pop(self, None)
        self._on_end(error, self._is_cut_off and isinstance(error, asyncio.CancelledError))
