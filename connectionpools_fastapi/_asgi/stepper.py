"""Stepper: runs a coroutine in asyncio without a task, which would cost several times as much as what it awaits."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from types import MethodType
from typing import Any

# Where servers define the `receive` of an HTTP request that awaits futures of asyncio and asks for no task: uvicorn's,
# and that of hypercorn, which is the `get` of a queue.
SERVERS = frozenset({"uvicorn.protocols.http.h11_impl", "uvicorn.protocols.http.httptools_impl", "asyncio.queues"})


def needs_no_task(call: Callable[..., object]) -> bool:
    """Whether a coroutine of this function can be run by a stepper.

    Most functions can, but there is no way to see it: a middleware's may open a cancel scope, which belongs to a task.
    """
    return isinstance(call, MethodType) and type(call.__self__).__module__ in SERVERS


class Stepper:
    """Runs a coroutine within a context, from one future that it awaits to the next."""

    __slots__ = ("_context", "_coroutine")

    def __init__(self, context: contextvars.Context) -> None:
        self._context = context
        self._coroutine: Coroutine[Any, Any, None] | None = None

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine; it goes on at once, up to the first future that is not done."""
        self._coroutine = coroutine
        self._context.run(self._step)

    def cancel(self) -> None:
        """End the coroutine where it is."""
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            coroutine.close()

    def _step(self, _: object = None) -> None:
        if self._coroutine is None:  # cancelled while the future was done already
            return
        try:
            awaited = self._coroutine.send(None)
        except (StopIteration, asyncio.CancelledError):
            self._coroutine = None
        else:
            if awaited is None:  # as from asyncio.sleep(0)
                asyncio.get_running_loop().call_soon(self._step, context=self._context)
            else:
                awaited.add_done_callback(self._step, context=self._context)
