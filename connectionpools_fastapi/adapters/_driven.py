"""Driven: a coroutine that is awaited as a future, without a task of its own. Needs no driver."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Driven(asyncio.Future[T]):
    """Runs a coroutine that awaits futures only, at once up to the first of them; it is done when the coroutine is.

    Such a coroutine needs no task: nothing in it asks which task runs it, as `asyncio.timeout` does.
    """

    _awaited: asyncio.Future[Any] | None = None

    def __init__(self, coroutine: Coroutine[asyncio.Future[Any], None, T]) -> None:
        """Begin.

        Args:
            coroutine: What it returns or raises becomes the result of this future.
        """
        super().__init__(loop=asyncio.get_running_loop())
        self._coroutine = coroutine
        self._step()

    def cancel(self, msg: str | None = None) -> bool:
        """Cancel what it awaits, as a task does.

        Args:
            msg: As in `asyncio.Future.cancel`.

        Returns:
            Whether there was something to cancel.
        """
        return self._awaited is not None and self._awaited.cancel(msg)

    def _step(self, _: object = None) -> None:
        self._awaited = None
        try:
            awaited = self._coroutine.send(None)
        except StopIteration as end:
            self.set_result(end.value)
        except asyncio.CancelledError:
            super().cancel()
        except Exception as error:  # noqa: BLE001 - as a task
            self.set_exception(error)
        else:
            if awaited is None:  # as `asyncio.sleep(0)`
                self.get_loop().call_soon(self._step)
                return
            awaited._asyncio_future_blocking = False  # noqa: SLF001 - as a task does with what it awaits
            self._awaited = awaited
            awaited.add_done_callback(self._step)
