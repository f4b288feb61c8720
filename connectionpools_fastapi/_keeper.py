"""Keeper: commits the state's decisions under the lock and carries them out after it.

It runs the pool's own tasks (create, check, change, clean), which no caller's
cancellation reaches, and the one timer for whatever is due next.
"""

import ctypes
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from threading import get_ident
from typing import Any, Generic, TypeVar, TypeVarTuple
from weakref import ReferenceType, WeakSet

from ._hooks import Hooks
from ._ledger import CHANGE, WAKE, Action
from ._log import logger
from ._loop import Loop, PrivateLoop, Timer
from ._slot import NEVER, Creation, Slot
from ._state import State
from ._waiters import TaskWaiter, Waiter
from .errors import PoolConfigError, WrongEventLoop, describe, own
from .listener import Listeners
from .manager import T

R = TypeVar("R")
Args = TypeVarTuple("Args")

# What a hook said, to be committed with the time at which it said so; and what calls it.
Outcome = Callable[[float], None]
Job = Callable[[Any], Coroutine[Any, Any, Outcome]]


# How long a lease that was collected may still be given back, in seconds.
GRACE = 1.0

# All there are, for a child process to find.
_KEEPERS: WeakSet["Keeper[Any]"] = WeakSet()


class Keeper(Generic[T]):
    """The one who holds the lock, runs the hooks and watches the clock."""

    def __init__(self, state: State[T], hooks: Hooks[T], clock: Callable[[], float]) -> None:
        self._state = state
        self._hooks = hooks
        self._clock = clock
        self.listeners: Listeners = Listeners(state.policy.name)
        self.loop: Loop | None = None
        # Protects the state (but for its fast path), `loop` and `_due`. While it is held nothing
        # is awaited, called back, logged or woken: decisions only. The garbage collector may run anywhere,
        # and so, in the midst of a decision, the end of a caller that nobody will ever resume. It gets the
        # lock, since its thread has it, finds that a decision is being made, and has to wait its turn.
        self._lock = threading.RLock()
        self._decider: int | None = None  # the thread that is making a decision
        # The threads that decide something while they carry out: that goes on with what follows, one after the other.
        self._carriers: set[int] = set()
        self._due = NEVER  # when the timer is set to ring
        self._timer: Timer | None = None
        self._lost: deque[ReferenceType[Any]] = deque()
        _KEEPERS.add(self)
        self._jobs: dict[Action, Job] = {
            Action.CREATE: self._create,
            Action.CHECK: self._check,
            Action.CHANGE: self._change,
            Action.CLEAN: self._clean,
        }

    def commit(self, decide: Callable[[*Args], R], *args: *Args) -> R:
        """Make one decision of the state, then carry out what it asks for; from any thread."""
        state = self._state
        ring_earlier = False
        me = get_ident()  # before the lock: a call might let the collector in between that and what marks it
        try:
            with self._lock:
                if self._decider is not None:
                    self._postpone(partial(decide, *args))
                    return None  # type: ignore[return-value] # what may be postponed has nothing to say
                self._decider = me
                try:
                    return decide(*args)
                finally:
                    self._decider = None
                    if state.due < self._due:
                        self._due = state.due
                        ring_earlier = True
        finally:
            if ring_earlier:
                self._set_timer()
            if state.todo:
                self._carry_out(me)

    def _postpone(self, decision: partial[Any]) -> None:
        state = self._state
        ends = (
            *(state.withdraw, state.release, state.discard, state.detach),
            *(state.settle, state.forget, state.bring_back),
        )
        if decision.func not in ends:
            msg = (
                f"pool {state.policy.name!r}: a destructor (__del__) called it while the garbage collector ran in the "
                "midst of a decision. Do not use a pool in destructors"
            )
            raise PoolConfigError(msg)
        state.todo.append((Action.DECIDE, decision))

    def move(self, loop: Loop, now: float) -> None:
        """Live in this loop from now on; part of a decision."""
        if self.has_lost_loop():
            self._state.abandon(now)
        elif isinstance(self.loop, PrivateLoop):
            self.loop.stop_soon()
        self.loop = loop
        self._timer = None
        self._due = NEVER
        self._hooks.enter_loop(loop)

    def fork(self) -> None:  # pragma: no cover - in a process of its own, see tests/test_fork.py
        """Begin anew in a forked child, whose only thread is this one."""
        _keep_for_good([self._state.fork(), self.loop, self._timer])
        self._lock = threading.RLock()  # somebody may have held the old one
        self._decider = None
        self._carriers.clear()
        self.loop = None
        self._timer = None
        self._due = NEVER

    def has_lost_loop(self) -> bool:
        """Whether the pool's loop has ended without the pool."""
        return self.loop is not None and self.loop.has_ended()

    def _carry_out(self, me: int) -> None:
        if me == self._decider or me in self._carriers:  # further out it goes on, with this as well
            return
        todo = self._state.todo
        while todo:
            try:
                action, subject = todo.popleft()
            except IndexError:  # another thread was faster
                break
            if action is WAKE:
                self._wake(subject)
            else:
                self._do(action, subject)

    def _meanwhile(self, decide: Callable[[], object]) -> None:
        """Decide something while carrying out: what follows from it is not done within it, however much that is."""
        me = get_ident()
        self._carriers.add(me)
        try:
            decide()
        finally:
            self._carriers.discard(me)

    def _do(self, action: Action, subject: Any) -> None:
        job = self._jobs.get(action)
        if job is not None:
            self._start(action, job, subject)
        elif action is Action.DECIDE:
            self._meanwhile(partial(self.commit, subject))
        elif action is Action.WATCH:
            self._watch(subject)
        elif action is Action.TELL:
            self.listeners.tell(*subject)
        elif action is Action.WARN:
            policy = self._state.policy
            logger.warning(
                "pool %r: %s, and max_hold is %g s%s", policy.name, subject, policy.max_hold, subject.acquired_at()
            )

    def _wake(self, waiter: Waiter[T]) -> None:
        try:
            waiter.wake()
        except RuntimeError:  # its loop has ended, and it with it; so may have the loop of whoever is next
            self._meanwhile(lambda: self.commit(self._state.withdraw, waiter, self._clock()))

    def _watch(self, waiter: TaskWaiter[T]) -> None:
        client = waiter.client
        if client is None:  # it waits no more
            return

        def leave(error: Exception) -> None:
            self.commit(self._state.give_up, waiter, error, self._clock())

        with suppress(RuntimeError):  # its loop has ended, and it with it
            waiter.call_soon(partial(client.watch, waiter, leave))

    def _start(self, action: Action, job: Job, subject: Any) -> None:
        assert self.loop is not None  # noqa: S101 - nothing is to be done before it is open
        if action is CHANGE and self._hooks.changes_in_loop() and self.loop.is_here():
            try:
                rest = self._hooks.begin_change(subject.resource)
            except BaseException as error:
                self._meanwhile(partial(self._report, action, subject, error))
                if isinstance(error, (KeyboardInterrupt, SystemExit)):  # as a task of the pool's own would
                    raise
                return
            if rest is None:
                outcome = self._changed(subject)
                self._meanwhile(lambda: self.commit(outcome, self._clock()))
                return
            job = partial(self._finish_change, rest)
        try:
            self.loop.spawn(partial(self._perform, action, subject, job))
        except RuntimeError:
            self._meanwhile(partial(self._report, action, subject, self.orphaned()))

    # --- the pool's own tasks -------------------------------------------------------------

    async def _perform(self, action: Action, subject: Any, job: Job) -> None:
        """Call a hook, and commit what it said."""
        try:
            outcome = await job(subject)
        except GeneratorExit:  # thrown away with its loop: at any moment, so no lock may be taken
            raise
        except BaseException as error:
            self._report(action, subject, error)
            if not isinstance(error, Exception):
                raise
        else:
            was_failing = self._state.outage.failures > 0
            self.commit(outcome, self._clock())
            if was_failing and not self._state.outage.failures:
                # As loud as the failure was: who was woken by that wants to know.
                logger.warning("pool %r: create works again", self._state.policy.name)
        if self._state.is_over() and isinstance(self.loop, PrivateLoop):
            self.loop.stop_soon()

    async def _create(self, creation: Creation) -> Outcome:
        resource = await self._hooks.create(self._clean_late)
        return partial(self._state.created, creation, resource)

    async def _check(self, slot: Slot[T]) -> Outcome:
        healthy = await self._hooks.check(slot.resource)
        return partial(self._state.checked, slot, healthy=healthy)

    async def _change(self, slot: Slot[T]) -> Outcome:
        await self._hooks.change(slot.resource)
        return self._changed(slot)

    async def _finish_change(self, rest: Callable[[], Awaitable[object]], slot: Slot[T]) -> Outcome:
        await rest()
        return self._changed(slot)

    def _changed(self, slot: Slot[T]) -> Outcome:
        slot.doubted = self._hooks.has_doubts and self._hooks.doubt(slot.resource)
        return partial(self._state.changed, slot, failed=False)

    async def _clean(self, slot: Slot[T]) -> Outcome:
        await self._hooks.clean(slot.resource)
        return partial(self._state.cleaned, slot, failed=False)

    def _report(self, action: Action, subject: Any, error: BaseException) -> None:
        """Log a failed hook, and decide what follows from it."""
        state, now = self._state, self._clock()
        # Said once; health and metrics say that it goes on. Who opens the pool says it himself.
        if action is not Action.CREATE or not (state.outage.failures or state.openers):
            logger.warning("pool %r: %s failed with %s", state.policy.name, action.value, describe(error))
        if action is Action.CREATE:
            self.commit(state.create_failed, subject, error, now)
        elif action is Action.CHECK:
            self.commit(partial(state.checked, healthy=False), subject, now)
        elif action is Action.CHANGE:
            self.commit(partial(state.changed, failed=True), subject, now)
        else:
            self.commit(partial(state.cleaned, failed=True), subject, now)

    def _clean_late(self, resource: T) -> None:
        """Clean what `create` made after its time was over; from the thread that made it."""

        async def clean() -> None:
            try:
                await self._hooks.clean(resource)
            except Exception as error:  # noqa: BLE001 - whatever a hook raises
                logger.warning("pool %r: clean failed with %s", self._state.policy.name, describe(error))

        assert self.loop is not None  # noqa: S101 - in which it was to be created
        try:
            self.loop.spawn(clean)
        except RuntimeError:
            logger.warning("pool %r: a resource was created too late to be cleaned", self._state.policy.name)

    def lose(self, lease: ReferenceType[Any]) -> None:
        """Take note that a lease is gone without having ended.

        The garbage collector says so, anywhere and at any moment, so no lock may be taken here.
        """
        self._lost.append(lease)
        self._call_soon(self._wait_and_recover)

    def _wait_and_recover(self) -> None:
        # The collector tells of a lease before it ends the generator that holds it, which may well give it back.
        assert self.loop is not None  # noqa: S101 - it has just called this
        self.loop.call_later(GRACE, self._recover)

    def _recover(self) -> None:
        while self._lost:
            hold = self.commit(self._state.lose, self._lost.popleft(), self._clock())
            if hold is not None:
                logger.warning(
                    "pool %r: %s and dropped its lease; the resource is destroyed. Write `async with pool.lease()`%s",
                    self._state.policy.name,
                    hold,
                    hold.acquired_at(),
                )

    def orphaned(self) -> WrongEventLoop:
        """Say that the pool's loop has ended without the pool."""
        msg = (
            f"pool {self._state.policy.name!r}: the event loop that opened it has ended. "
            "Close a pool before its loop ends; now write `await pool.close()` in another one, and open it again there"
        )
        return own(WrongEventLoop(msg))

    # --- the timer ------------------------------------------------------------------------

    def _set_timer(self) -> None:
        if self.loop is not None and self.loop.is_here():
            self._wind()
        else:
            self._call_soon(self._wind)

    def _call_soon(self, call: Callable[[], None]) -> None:
        # A loop that has ended calls nobody: tasks of other loops, and threads, watch their own time.
        with suppress(RuntimeError):
            if self.loop is not None:
                self.loop.call_soon(call)

    def _wind(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = self.loop
        if loop is not None and loop.is_here():  # and not the one before
            self._timer = loop.call_later(max(0.0, self._due - self._clock()), self._ring)

    def _ring(self) -> None:
        self._timer = None
        self.commit(self._tick, self._clock())

    def _tick(self, now: float) -> None:
        self._due = NEVER
        self._state.tick(now)


def _keep_for_good(inherited: object) -> None:  # pragma: no cover - as above
    # Drivers say goodbye to their server as they are destroyed, which would end the parent's
    # session: so not even the end of the process may destroy what is the parent's.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


def _fork_all() -> None:  # pragma: no cover - as above
    for keeper in tuple(_KEEPERS):
        keeper.fork()


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows, which does not fork
    os.register_at_fork(after_in_child=_fork_all)
