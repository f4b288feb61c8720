"""Keeper: commits the state's decisions under the lock and carries them out after it.

It runs the pool's own tasks (create, check, change, clean), which no caller's
cancellation reaches, and the one timer for whatever is due next.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

from ._hooks import Hooks
from ._loop import Loop, Timer
from ._slot import Creation, Slot
from ._state import Action, State
from ._waiters import Waiter
from .errors import WrongEventLoop, describe
from .manager import T

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("connectionpools_fastapi")


class Keeper(Generic[T]):
    """The one who holds the lock, runs the hooks and watches the clock."""

    def __init__(self, state: State[T], hooks: Hooks[T], clock: Callable[[], float]) -> None:
        self._state = state
        self._hooks = hooks
        self._clock = clock
        self.loop: Loop | None = None
        # Protects the state (but for its fast path) and `_due`. While it is held nothing is
        # awaited, called back, logged or woken: decisions only.
        self._lock = threading.Lock()
        self._due = float("inf")  # when the timer is set to ring
        self._timer: Timer | None = None

    def commit(self, decide: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Make one decision of the state, then carry out what it asks for; from any thread."""
        ring_earlier = False
        try:
            with self._lock:
                try:
                    return decide(*args, **kwargs)
                finally:
                    due = self._state.next_deadline()
                    if due < self._due:
                        self._due = due
                        ring_earlier = True
        finally:
            self._carry_out()
            if ring_earlier:
                self._set_timer()

    def _carry_out(self) -> None:
        todo = self._state.todo
        while todo:
            try:
                action, subject = todo.popleft()
            except IndexError:  # another thread was faster
                return
            if action is Action.WAKE:
                self._wake(subject)
            else:
                self._start(action, subject)

    def _wake(self, waiter: Waiter[T]) -> None:
        try:
            waiter.wake()
        except RuntimeError:  # its loop has ended, and it with it
            self.commit(self._state.withdraw, waiter, self._clock())

    def _start(self, action: Action, subject: Slot[T] | Creation) -> None:
        job = getattr(self, f"_{action.value}")
        try:
            if self.loop is None:
                raise RuntimeError
            self.loop.spawn(partial(job, subject))
        except RuntimeError:
            self._report(action, subject, self.orphaned())

    # --- the pool's own tasks -------------------------------------------------------------

    async def _create(self, creation: Creation) -> None:
        failing = self._state.outage.failures > 0
        try:
            resource = await self._hooks.create(self._clean_late)
        except BaseException as error:
            self._report(Action.CREATE, creation, error)
            if not isinstance(error, Exception):
                raise
        else:
            self.commit(self._state.created, creation, resource, self._clock())
            if failing:
                logger.info("pool %r: create works again", self._state.policy.name)

    async def _check(self, slot: Slot[T]) -> None:
        try:
            healthy = await self._hooks.check(slot.resource)
        except BaseException as error:
            self._report(Action.CHECK, slot, error)
            if not isinstance(error, Exception):
                raise
        else:
            self.commit(self._state.checked, slot, self._clock(), healthy=healthy)

    async def _change(self, slot: Slot[T]) -> None:
        try:
            await self._hooks.change(slot.resource)
        except BaseException as error:
            self._report(Action.CHANGE, slot, error)
            if not isinstance(error, Exception):
                raise
        else:
            self.commit(self._state.changed, slot, self._clock(), failed=False)

    async def _clean(self, slot: Slot[T]) -> None:
        try:
            await self._hooks.clean(slot.resource)
        except BaseException as error:
            self._report(Action.CLEAN, slot, error)
            if not isinstance(error, Exception):
                raise
        else:
            self.commit(self._state.cleaned, slot, failed=False)

    def _report(self, action: Action, subject: Any, error: BaseException) -> None:
        """Commit that a hook failed."""
        state, now = self._state, self._clock()
        if action is Action.CREATE:
            self.commit(state.create_failed, subject, error, now)
            if state.outage.failures > 1:
                return  # said once; health and metrics say that it goes on
        elif action is Action.CHECK:
            self.commit(state.checked, subject, now, healthy=False)
        elif action is Action.CHANGE:
            self.commit(state.changed, subject, now, failed=True)
        else:
            self.commit(state.cleaned, subject, failed=True)
        logger.warning("pool %r: %s failed with %s", state.policy.name, action.value, describe(error))

    def _clean_late(self, resource: T) -> None:
        """Clean what `create` made after its time was over; from the thread that made it."""

        async def clean() -> None:
            try:
                await self._hooks.clean(resource)
            except Exception as error:  # noqa: BLE001 - whatever a hook raises
                logger.warning("pool %r: clean failed with %s", self._state.policy.name, describe(error))

        try:
            if self.loop is not None:
                self.loop.spawn(clean)
        except RuntimeError:
            logger.warning("pool %r: a resource was created too late to be cleaned", self._state.policy.name)

    def orphaned(self) -> WrongEventLoop:
        msg = (
            f"pool {self._state.policy.name!r}: the event loop that opened it has ended. "
            "Close the pool before its loop ends, and open it again in the new one"
        )
        return WrongEventLoop(msg)

    # --- the timer ------------------------------------------------------------------------

    def _set_timer(self) -> None:
        try:
            if self.loop is None:
                return
            if self.loop.is_here():
                self._wind()
            else:
                self.loop.call_soon(self._wind)
        except RuntimeError:
            return  # the loop has ended, and with it all tasks that could wait for the timer

    def _wind(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = self.loop
        if loop is not None:
            self._timer = loop.call_later(max(0.0, self._due - self._clock()), self._ring)

    def _ring(self) -> None:
        self._timer = None
        self.commit(self._tick)

    def _tick(self) -> None:
        self._due = float("inf")
        self._state.tick(self._clock())
