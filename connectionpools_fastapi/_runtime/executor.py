"""Executor: applies the decisions of the state under the lock, and runs their effects after it.

It runs the pool's own tasks (create, check, change, clean), which no caller's
cancellation reaches, and the one timer for the next deadline.
"""

import ctypes
import logging
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from threading import get_ident
from typing import Any, Generic, TypeVar, TypeVarTuple
from weakref import ReferenceType, WeakMethod, WeakSet

from .._core.backoff import MISTAKES
from .._core.effects import CHANGE, WAKE, Effect, Status
from .._core.slot import NEVER, Creation, Slot, T
from .._core.state import PoolState
from .._core.waiter import Waiter
from ..errors import PoolConfigError, WrongEventLoop, own, where
from .caller import current_task
from .hooks import Hooks
from .listeners import Listeners
from .loop import Loop, Timer
from .on_asyncio import PrivateLoop
from .reports import Reports
from .tokens import Tokens
from .waiters import TaskWaiter

R = TypeVar("R")
Args = TypeVarTuple("Args")

# The decision about a hook's result, to be applied with the current time; and the call of the hook.
Outcome = Callable[[float], None]
Job = Callable[[Any], Awaitable[object]]

# How long a collected lease may still be given back, in seconds.
GRACE = 1.0

# All executors, so that a forked child finds them.
_EXECUTORS: WeakSet["Executor[Any]"] = WeakSet()


class Executor(Generic[T]):
    """Applies decisions under the lock, runs their effects after it, and keeps the timer."""

    def __init__(
        self, state: PoolState[T], hooks: Hooks[T], clock: Callable[[], float], forked: WeakMethod[Callable[[], None]]
    ) -> None:
        self._state = state
        self._hooks = hooks
        self._clock = clock
        self._forked = forked  # called in a forked child, after the state is renewed
        self.listeners: Listeners = Listeners(state.policy.name, hooks.failures)
        self.reports = Reports(state.policy.name)
        self.loop: Loop | None = None
        # Slots whose use a client or a cancellation has cut off, while they are changed; each operation is atomic.
        self.cut_off: set[Slot[T]] = set()
        # Protects the state (but for its fast path), `loop` and `_due`. Under the lock the executor only
        # decides: it does not await, call back, log or wake. The garbage collector may run anywhere, so it may
        # end an abandoned caller in the middle of a decision. That caller's thread has the lock already: it
        # gets it again, sees that a decision is being made, and its own decision is postponed.
        self._lock = threading.RLock()
        self._decider: int | None = None  # the thread that is making a decision
        # The threads that decide while they run an effect: the outer loop then runs the new effects, one by one.
        self._carriers: set[int] = set()
        self._due = NEVER  # when the timer will ring
        self._timer: Timer | None = None
        self._lost: deque[ReferenceType[Any]] = deque()
        _EXECUTORS.add(self)
        budget = state.policy.budget
        self.tokens = None if budget is None else Tokens(budget, state, self.apply, clock)
        self._jobs: dict[Effect, Job] = {
            Effect.CREATE: self._create,
            Effect.CHECK: self._check,
            Effect.CLEAN: self._clean,
        }

    def apply(self, decide: Callable[[*Args], R], *args: *Args) -> R:
        """Make one decision of the state, then run its effects; from any thread."""
        state = self._state
        ring_earlier = False
        me = get_ident()  # before the lock: during this call the collector might run, before `_decider` is set
        try:
            with self._lock:
                if self._decider is not None:
                    self._postpone(partial(decide, *args))
                    return None  # type: ignore[return-value] # decisions that may be postponed return nothing
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
            if state.effects:
                self._run_effects(me)

    def _postpone(self, decision: partial[Any]) -> None:
        state = self._state
        ends = (
            *(state.cancel, state.release, state.discard, state.detach),
            *(state.rebalance, state.forget, state.unreserve, state.watch_by_hand),
            state.overload.cut_off,
        )
        if decision.func not in ends:
            msg = (
                f"pool {state.policy.name!r}: a destructor (__del__) called it while the garbage collector ran in the "
                "midst of a decision. Do not use a pool in destructors"
            )
            raise PoolConfigError(msg)
        state.effects.append((Effect.DECIDE, decision))

    def move(self, loop: Loop, now: float) -> None:
        """Use this loop from now on; part of a decision."""
        if self.has_lost_loop():
            self._state.abandon(now)
        elif isinstance(self.loop, PrivateLoop):
            self.loop.stop_soon()
        self.loop = loop
        self._timer = None
        self._due = NEVER
        self._hooks.enter_loop(loop)
        if self.tokens is not None:
            self.tokens.enter_loop(loop)

    def is_live(self) -> bool:
        """Whether the pool is open, in a loop that runs."""
        return self._state.is_open and self.loop is not None and not self.loop.has_ended()

    def end_soon(self) -> None:
        """Close a pool that is gone, and so without waiting; takes no lock."""
        self._call_soon(self._end)

    def _end(self) -> None:
        generation = self.apply(self._state.close, self._clock())
        self.give_up_creations()
        self.apply(self._state.closed, generation)
        self.give_back_tokens()
        if self._state.is_over() and isinstance(self.loop, PrivateLoop):
            self.loop.stop_soon()

    def fork(self) -> None:  # pragma: no cover - in a process of its own, see tests/runtime/test_fork.py
        """Begin anew in a forked child, whose only thread is this one."""
        membership = None if self.tokens is None else self.tokens.fork()
        _keep_for_good([self._state.fork(), self.loop, self._timer, membership])
        self._lock = threading.RLock()  # another thread of the parent may have held the old one
        self._decider = None
        self._carriers.clear()
        self._hooks.failures.fork()
        self.loop = None
        self._timer = None
        self._due = NEVER
        if (forked := self._forked()) is not None:
            forked()

    def give_up_creations(self) -> None:
        """Cancel each `create`, since its resource would have no user; from any thread."""
        if self.is_here():
            self._give_up_creations()
        else:
            self._call_soon(self._give_up_creations)

    def _give_up_creations(self) -> None:
        self._hooks.give_up_creations()
        if self.tokens is not None:
            self.tokens.look_again()

    def give_back_tokens(self) -> None:
        """Give the tokens of resources that are gone back to the budget, and leave it if the pool is closed."""
        if self.tokens is not None:
            self.tokens.give_back()

    def abandon_creations(self, level: int) -> None:
        """Stop waiting for `create`; a resource that a thread still makes is cleaned as it comes. From any thread."""
        if self.is_here():
            self._abandon_creations(level)
        else:
            self._call_soon(partial(self._abandon_creations, level))

    def _abandon_creations(self, level: int) -> None:
        count = self._hooks.abandon_creations()
        if count:
            self.reports.create_outlives_close(count, level)

    def is_here(self) -> bool:
        """Whether the calling code runs in the pool's own loop."""
        return self.loop is not None and self.loop.is_here()

    def has_lost_loop(self) -> bool:
        """Whether the pool's loop has ended without the pool."""
        return self.loop is not None and self.loop.has_ended()

    def _run_effects(self, me: int) -> None:
        if me == self._decider or me in self._carriers:  # the outer call runs these effects too
            return
        effects = self._state.effects
        while effects:
            try:
                action, subject = effects.popleft()
            except IndexError:  # another thread was faster
                break
            if action is WAKE:
                self._wake(subject)
            elif action is CHANGE:
                self._start_change(subject)
            else:
                self._run_effect(action, subject)

    def _meanwhile(self, decide: Callable[[], R]) -> R:
        """Decide something while running an effect; the outer call then runs the new effects, so calls do not nest."""
        me = get_ident()
        self._carriers.add(me)
        try:
            return decide()
        finally:
            self._carriers.discard(me)

    def _run_effect(self, action: Effect, subject: Any) -> None:
        job = self._jobs.get(action)
        if job is not None:
            self._start(action, subject, job)
        elif action is Effect.DECIDE:
            self._meanwhile(partial(self.apply, subject))
        elif action is Effect.WATCH:
            self._watch(subject)
        elif action is Effect.NOTIFY:
            self.listeners.notify(*subject)
        elif action is Effect.WARN:
            self.reports.held_too_long(subject, self._state.policy.max_hold)
        elif action is Effect.OVERLOADED:
            self.reports.overloaded(subject)
        elif action is Effect.RELIEVED:
            self.reports.relieved(subject)
        elif action is Effect.GIVE_BACK:
            self._meanwhile(self.give_back_tokens)
        elif action is Effect.LOST:
            self.reports.lease_lost(subject, "ended without giving it back")

    def _wake(self, waiter: Waiter[T]) -> None:
        try:
            waiter.wake()
        except RuntimeError:  # the waiter ended with its loop; the loop of the next waiter may have ended too
            self._meanwhile(partial(self._decide, partial(self._state.cancel, waiter)))

    def _decide(self, outcome: Outcome) -> None:
        self.apply(outcome, self._clock())

    def _watch(self, waiters: list[TaskWaiter[T]]) -> None:
        for waiter in waiters:
            waiter.call(partial(self._watch_client, waiter))

    def _watch_client(self, waiter: TaskWaiter[T]) -> None:
        client = waiter.client
        if client is not None and waiter.waits:
            client.watch(waiter, partial(self._client_gone, waiter))

    def _client_gone(self, waiter: TaskWaiter[T], error: Exception) -> None:
        self.apply(self._state.client_gone, waiter, error, self._clock())

    def _start_change(self, slot: Slot[T]) -> None:
        job: Job = self._change
        if self._hooks.steps_change and self.is_here():
            step = partial(self._hooks.step_change, slot.resource, partial(self._end_change, slot))
            if self._meanwhile(step):
                return
        if self._hooks.changes_in_loop() and self.is_here():
            try:
                rest = self._hooks.begin_change(slot.resource)
            except BaseException as error:
                self._meanwhile(partial(self._report, CHANGE, slot, error))
                if isinstance(error, (KeyboardInterrupt, SystemExit)):  # as a task of the pool's own would
                    raise
                return
            if rest is None:
                self._meanwhile(partial(self._decide, self._changed(slot)))
                return
            job = partial(self._finish_change, rest)
        self._start(CHANGE, slot, job)

    def _start(self, action: Effect, subject: Any, job: Job) -> None:
        assert self.loop is not None  # noqa: S101 - there is nothing to do before the pool is open
        try:
            self.loop.spawn(partial(self._perform, action, subject, job))
        except RuntimeError:
            self._meanwhile(partial(self._report, action, subject, self.orphaned()))

    # --- the pool's own tasks -------------------------------------------------------------

    async def _perform(self, action: Effect, subject: Any, job: Job) -> None:
        """Call a hook, and apply the decision about its result."""
        task = current_task()
        try:
            outcome = self._outcome(action, subject, await job(subject))
        except BaseException as error:
            is_thrown_away = isinstance(error, GeneratorExit) and current_task() is not task
            if is_thrown_away:  # together with its loop, at any moment: no lock may be taken
                raise
            self._report(action, subject, error)
            if not isinstance(error, (Exception, GeneratorExit)):
                raise
        else:
            was_failing = self._state.backoff.failures > 0
            self._decide(outcome)
            if was_failing and not self._state.backoff.failures:
                self.reports.create_recovered()
        if self._state.is_over() and isinstance(self.loop, PrivateLoop):
            self.loop.stop_soon()

    def _outcome(self, action: Effect, subject: Any, result: Any) -> Outcome:
        if action is CHANGE:
            return self._changed(subject)
        if action is Effect.CHECK:
            return partial(self._state.checked, subject, healthy=result)
        if action is Effect.CLEAN:
            return partial(self._state.cleaned, subject, failed=False)
        return _nothing if result is None else partial(self._state.created, subject, result)

    def _changed(self, slot: Slot[T]) -> Outcome:
        self.cut_off.discard(slot)
        if self._hooks.has_doubts and slot.verdict is None and self._hooks.doubt(slot.resource):
            slot.verdict = "check"
        return partial(self._state.changed, slot, failed=False)

    async def _create(self, creation: Creation) -> T | None:
        """Make a resource; None if the budget has no token for it any more."""
        if self.tokens is not None and not await self.tokens.take(creation):
            return None
        return await self._hooks.create(self._clean_late)

    def _check(self, slot: Slot[T]) -> Awaitable[bool]:
        return self._hooks.check(slot.resource)

    def _change(self, slot: Slot[T]) -> Awaitable[object]:
        return self._hooks.change(slot.resource)

    def _finish_change(self, rest: Awaitable[object], _: Slot[T]) -> Awaitable[object]:
        return self._hooks.finish_change(rest)

    def _end_change(self, slot: Slot[T], error: BaseException | None, is_cut_off: bool) -> None:  # noqa: FBT001 - as it is called
        if error is None:
            self._decide(self._changed(slot))
        else:
            self._report(CHANGE, slot, self._hooks.too_long("change") if is_cut_off else error)

    def _clean(self, slot: Slot[T]) -> Awaitable[None]:
        return self._hooks.clean(slot.resource)

    def _report(self, action: Effect, subject: Any, error: BaseException) -> None:
        """Log a failed hook, and decide what follows."""
        state, now = self._state, self._clock()
        if action is not Effect.CREATE or self._is_news():
            place = where(error) if isinstance(error, MISTAKES) else ""
            # No warning: any client can cut off a query by closing its stream, as often as it likes.
            level = logging.INFO if subject in self.cut_off else logging.WARNING
            self._tell_failed(action.value, error, level, place)
        self.cut_off.discard(subject)
        if action is Effect.CREATE:
            self.apply(state.create_failed, subject, error, now)
        elif action is Effect.CHECK:
            self.apply(partial(state.checked, healthy=False), subject, now)
        elif action is Effect.CHANGE:
            self.apply(partial(state.changed, failed=True), subject, now)
        else:
            self.apply(partial(state.cleaned, failed=True), subject, now)

    def _is_news(self) -> bool:
        """Whether to log a failure of `create`: only the first, since health and metrics show the others."""
        state = self._state
        is_raised = state.fails_opening()  # by `open`, within about a second
        return state.is_open and not state.backoff.failures and not is_raised

    def _clean_late(self, resource: T) -> None:
        """Clean a resource that `create` made too late; from the thread that made it, or in the loop."""
        loop = self.loop
        assert loop is not None  # noqa: S101 - `create` was called for it
        rest: Callable[[], Awaitable[object]] | None = partial(self._hooks.clean, resource)

        async def clean() -> None:
            assert rest is not None  # noqa: S101 - as below
            try:
                await rest()
            except Exception as error:  # noqa: BLE001 - whatever a hook raises
                self._tell_failed("clean", error)
            finally:
                self._note_late(-1)

        self._note_late(1)
        if self._hooks.cleans_on_threads() and not loop.is_here():
            try:  # at once: the loop may have ended, or be about to end
                rest = self._hooks.begin_clean(resource)
            except Exception as error:  # noqa: BLE001 - whatever a hook raises
                self._tell_failed("clean", error)
                rest = None
            if rest is None:
                self._note_late(-1)
                return
        try:
            loop.spawn(clean)
        except RuntimeError:
            self.reports.created_too_late()

    def _note_late(self, change: int) -> None:
        """Count a resource that was created too late: until it is cleaned, it needs a token."""
        if self.tokens is not None:
            self.apply(self.tokens.note_late, change)
            self.tokens.give_back()

    def _tell_failed(self, hook: str, error: BaseException, level: int = logging.WARNING, place: str = "") -> None:
        failures = self._hooks.failures
        failures.note(hook, error, level=level, place=place)
        if self._state.status is Status.CLOSED:  # no later event may come that logs the counted ones
            failures.end()

    def reclaim_leak(self, lease: ReferenceType[Any]) -> None:
        """Note that a lease is gone without having ended.

        The garbage collector calls this, anywhere and at any moment, so no lock may be taken here.
        """
        self._lost.append(lease)
        self._call_soon(self._wait_and_recover)

    def _wait_and_recover(self) -> None:
        # The collector reports a lease before it ends the generator that holds it, which may still give it back.
        assert self.loop is not None  # noqa: S101 - it has just called this
        self.loop.call_later(GRACE, self._recover)

    def _recover(self) -> None:
        while self._lost:
            hold = self.apply(self._state.reclaim_leak, self._lost.popleft(), self._clock())
            if hold is not None:
                self.reports.lease_lost(hold, "dropped its lease")

    def orphaned(self) -> WrongEventLoop:
        """Say that the pool's loop has ended without the pool."""
        msg = (
            f"pool {self._state.policy.name!r}: the event loop that opened it has ended. "
            "Close a pool before its loop ends; now write `await pool.close()` in another, and open it again there. "
            "A test opens the pool in its own loop, as the fixture `started_app` does"
        )
        return own(WrongEventLoop(msg))

    # --- the timer ------------------------------------------------------------------------

    def _set_timer(self) -> None:
        if self.is_here():
            self._wind()
        else:
            self._call_soon(self._wind)

    def _call_soon(self, call: Callable[[], None]) -> None:
        # A loop that has ended makes no calls: tasks of other loops, and threads, watch their own timeouts.
        with suppress(RuntimeError):
            if self.loop is not None:
                self.loop.call_soon(call)

    def _wind(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = self.loop
        if loop is not None and loop.is_here():  # and not the previous loop
            self._timer = loop.call_later(max(0.0, self._due - self._clock()), self._ring)

    def _ring(self) -> None:
        self._timer = None
        self.apply(self._tick, self._clock())

    def _tick(self, now: float) -> None:
        self._due = NEVER
        self._state.tick(now)


def _nothing(_: float) -> None:
    """Decide nothing: it was decided before."""


def _keep_for_good(inherited: object) -> None:  # pragma: no cover - as above
    # A driver's connection that is destroyed ends its session at the server, which would be the parent's
    # session. So not even the end of the process may destroy the parent's objects.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


def _fork_all() -> None:  # pragma: no cover - as above
    for executor in tuple(_EXECUTORS):
        executor.fork()


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows, which does not fork
    os.register_at_fork(after_in_child=_fork_all)
