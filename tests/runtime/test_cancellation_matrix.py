"""Cancellation is safe at every await, whatever happens at the same time.

The product of all points at which a caller waits, all outcomes of the hook that it waits for, all moments at which
it may be cancelled, all ways to cancel it, and all event loops. Each test is one point, loop and way to cancel; it
goes through the rest, and names the case that fails. `test_cancellation` tells the promises one by one.
"""

import asyncio
import heapq
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from contextvars import Context
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import count
from typing import Any

import anyio
import pytest
import trio
import trio._core._run
import trio.lowlevel
import uvloop
from anyio import get_cancelled_exc_class, sleep_forever
from trio.testing import MockClock, wait_all_tasks_blocked

from connectionpools_fastapi import Overloaded, PoolError, ResourceUnavailable
from connectionpools_fastapi._runtime.log import logger
from connectionpools_fastapi.lease import Lease
from tests.support import (
    Backend,
    JumpingLoop,
    Resource,
    assert_nothing_is_lost,
    check,
    jumping,
    outcome_of,
    same,
)

HOOK_TIMEOUT = 100.0
PATIENCE = 1.0  # of a caller that a time limit cuts off; nothing else is due so soon
PAUSE = 2.0  # after which a pool has tried again to create what failed
FOR_EVER = 1e6  # longer than all that goes by in a case
MOST_TURNS = 16  # of the loop until everything is done that can be done
IS_COMPLETE = "COMPLETE_MATRIX" in os.environ  # several minutes instead of seconds
TURNS = 4  # of the loop, in which what was decided has long reached everybody


# --- axis: the event loop ----------------------------------------------------------------------


class WoundLoop(uvloop.Loop):
    """A loop of uvloop whose time goes by when it is told to, and only then."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1000.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = count()

    def time(self) -> float:
        return self._now

    def call_later(  # type: ignore[override] # the same, said in fewer words
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override] # as above
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def _timer_handle_cancelled(self, timer: asyncio.TimerHandle) -> None:
        """Drop it when it is due."""

    def go_to(self, when: float) -> None:
        self._now = max(self._now, when)
        while self._timers and self._timers[0][0] <= self._now:
            timer = heapq.heappop(self._timers)[2]
            self.call_soon(lambda timer=timer: timer.cancelled() or timer._run())

    async def settle(self) -> None:
        for _ in range(MOST_TURNS):  # which nothing tells, public or not
            await asyncio.sleep(0)


class PlainLoop(JumpingLoop):
    """A loop of asyncio whose time goes by when it is told to, or has nothing else to do."""

    def go_to(self, when: float) -> None:
        self._jumping.now = max(self._jumping.now, when)

    async def settle(self) -> None:
        await asyncio.sleep(0)
        # Nothing public tells whether there is anything left to do.
        while self._ready:  # type: ignore[attr-defined] # noqa: ASYNC110
            await asyncio.sleep(0)


class EagerLoop(PlainLoop):
    """As `PlainLoop`; its tasks begin within `create_task`."""

    def __init__(self) -> None:
        super().__init__()
        if sys.version_info >= (3, 12):
            self.set_task_factory(asyncio.eager_task_factory)


LOOPS: dict[str, Callable[[], tuple[str, dict[str, Any]]]] = {
    "asyncio": lambda: ("asyncio", {"loop_factory": PlainLoop}),
    "uvloop": lambda: ("asyncio", {"loop_factory": WoundLoop}),
    "trio": lambda: jumping("trio"),
}
if sys.version_info >= (3, 12):
    LOOPS["eager"] = lambda: ("asyncio", {"loop_factory": EagerLoop})


def in_trio() -> bool:
    return trio.lowlevel.in_trio_run()


def own_loop() -> PlainLoop | WoundLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, PlainLoop | WoundLoop)
    return loop


def now() -> float:
    return trio.current_time() if in_trio() else asyncio.get_running_loop().time()


def go_to(when: float) -> None:
    """Set the clock forward; what is due then is called in the next turn, in the order in which it was due."""
    if in_trio():
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, MockClock)
        clock.jump(max(0.0, when - clock.current_time()))
    else:
        own_loop().go_to(when)


async def settle() -> None:
    """Let everything happen that can happen without time going by: as `settled`, in as few turns as that takes."""
    if in_trio():
        await wait_all_tasks_blocked()
    else:
        await own_loop().settle()


def in_turns(turns: int, call: Callable[[], None]) -> None:
    """Call something so many turns of the loop later: before whatever is scheduled after this."""
    if turns == 0:
        call()
    elif in_trio():
        trio.lowlevel.current_trio_token().run_sync_soon(in_turns, turns - 1, call)
    else:
        asyncio.get_running_loop().call_soon(in_turns, turns - 1, call)


def start(call: Callable[[], Awaitable[None]]) -> None:
    """Start a task on its own: a task group of anyio starts none eagerly."""
    if in_trio():
        trio.lowlevel.spawn_system_task(call)
    else:
        TASKS.add(task := asyncio.ensure_future(call()))
        task.add_done_callback(TASKS.discard)


TASKS: set[asyncio.Future[None]] = set()  # asyncio itself would forget them


# --- axis: how a caller is cancelled -------------------------------------------------------------


class Style:
    """Runs a call so that each `strike` cancels it once more."""

    def __init__(self, patience: list[float]) -> None:
        self._patience = patience  # how long each layer of time limits waits, if these are what cancels
        self._strikes = 0

    async def run(self, call: Callable[[], Awaitable[None]], *, cancelled: bool) -> None:
        """Await a call that can be cancelled, or is so from the start."""
        raise NotImplementedError

    def strike(self) -> None:
        self._strike(self._strikes)
        self._strikes += 1

    def _strike(self, layer: int) -> None:
        raise NotImplementedError

    def was_cancelled(self, end: BaseException | None) -> bool:
        """Whether the caller saw its own cancellation, judged by how `run` ended."""
        raise NotImplementedError


class Native(Style):
    """`task.cancel()`."""

    _task: asyncio.Task[None] | None

    async def run(self, call: Callable[[], Awaitable[None]], *, cancelled: bool) -> None:
        self._task = asyncio.current_task()
        if cancelled:
            self.strike()
        await call()

    def _strike(self, layer: int) -> None:
        assert self._task is not None
        self._task.cancel()

    def was_cancelled(self, end: BaseException | None) -> bool:
        return isinstance(end, asyncio.CancelledError)


class Scope(Style):
    """`anyio.CancelScope.cancel()`."""

    def __init__(self, patience: list[float]) -> None:
        super().__init__(patience)
        self._scopes = [anyio.CancelScope() for _ in patience]

    async def run(self, call: Callable[[], Awaitable[None]], *, cancelled: bool) -> None:
        with ExitStack() as stack:
            for scope in reversed(self._scopes):
                stack.enter_context(scope)
            if cancelled:
                self.strike()
            await call()

    def _strike(self, layer: int) -> None:
        self._scopes[layer].cancel()

    def was_cancelled(self, end: BaseException | None) -> bool:
        return end is None and any(scope.cancelled_caught for scope in self._scopes)


class Limit(Style):
    """What ends when its time is over: to cancel it is to set the clock."""

    def __init__(self, patience: list[float]) -> None:
        super().__init__(patience)
        self._began_at = now()

    def _strike(self, layer: int) -> None:
        go_to(self._began_at + self._patience[layer])

    def was_cancelled(self, end: BaseException | None) -> bool:
        return type(end) is TimeoutError


class Timeout(Limit):
    """`asyncio.timeout`."""

    async def run(self, call: Callable[[], Awaitable[None]], *, cancelled: bool) -> None:
        async with AsyncExitStack() as stack:
            for seconds in reversed(self._patience):
                await stack.enter_async_context(asyncio.timeout(0 if cancelled else seconds))
            await call()


class WaitFor(Limit):
    """`asyncio.wait_for`."""

    async def run(self, call: Callable[[], Awaitable[None]], *, cancelled: bool) -> None:
        for seconds in self._patience[:-1]:
            call = self._within(call, 0 if cancelled else seconds)
        await asyncio.wait_for(call(), 0 if cancelled else self._patience[-1])

    @staticmethod
    def _within(call: Callable[[], Awaitable[None]], seconds: float) -> Callable[[], Awaitable[None]]:
        return lambda: asyncio.wait_for(call(), seconds)


STYLES: dict[str, type[Style]] = {"cancel": Native, "scope": Scope, "timeout": Timeout, "wait_for": WaitFor}


# --- axis: what the hook does ----------------------------------------------------------------------


class Outcome(Enum):
    OK = "is ok"
    REFUSES = "says no"  # of check alone
    RAISES = "raises"
    HANGS = "hangs"
    CUT = "is cancelled itself"  # as by a driver that cancels all tasks; trio does not allow that


FAILURES = (Outcome.RAISES, Outcome.HANGS, Outcome.CUT)


class Watched(Backend):
    """Also notes which hooks were cut off, and in which task each was called last."""

    def __init__(self) -> None:
        super().__init__()
        self.cut: list[str] = []
        self.tasks: dict[str, asyncio.Task[Any] | None] = {}

    async def _watch(self, hook: str, call: Awaitable[Any]) -> Any:
        self.tasks[hook] = None if in_trio() else asyncio.current_task()
        try:
            return await call
        except get_cancelled_exc_class():
            self.cut.append(hook)
            raise

    async def create(self) -> Resource:
        resource: Resource = await self._watch("create", super().create())
        return resource

    async def check(self, resource: Resource) -> Any:
        return await self._watch("check", super().check(resource))

    async def change(self, resource: Resource) -> None:
        await self._watch("change", super().change(resource))

    async def clean(self, resource: Resource) -> None:
        try:
            await self._watch("clean", super().clean(resource))
        except get_cancelled_exc_class():
            self.cleaned.append(resource)  # as well as could be
            raise


# --- axis: where a caller waits --------------------------------------------------------------------


class Point:
    """Where a caller waits: how it gets there, and what decides how it goes on."""

    hook: str  # whose outcome that is
    hooks: tuple[str, ...] = ()  # of the pool, besides create and clean
    options: dict[str, Any] = {}  # noqa: RUF012 - only read
    outcomes: tuple[Outcome, ...] = (Outcome.OK, *FAILURES)
    is_opened = True  # before the caller comes
    fails_with_the_hook = False
    error: type[PoolError] = ResourceUnavailable  # what its caller may be told
    ends_what_it_began = False  # and only then lets a cancelled caller go
    cancels_what_it_began = False  # if its caller is cancelled
    company_may_fail = False
    most = 1  # that have to be created if the hook is ok
    is_begun = False

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.backend = Watched()
        self.gate = self.backend[self.hook]
        self.calls_before = 0  # of the hook, until its outcome mattered
        self.cancelled: list[asyncio.Task[Any]] = []
        options = {"limit": 1, "check_after": 0, "hook_timeout": HOOK_TIMEOUT, "close_timeout": FOR_EVER}
        self.pool = self.backend.pool(*self.hooks, **{**options, **self.options})

    async def prepare(self) -> None:
        """Set the stage: the next call of the hook stops at its gate."""
        self.calls_before = self.backend.count(self.hook)
        self.gate.shut()

    async def call(self) -> None:
        """Do what is to be cancelled."""
        async with self.pool.lease(timeout=FOR_EVER):
            await sleep_forever()

    async def keep_company(self) -> None:
        """Act as another caller at the same time, which must notice nothing."""
        async with self.pool.lease(timeout=FOR_EVER):
            pass

    def decide(self) -> None:
        """Let the caller's wait be over."""
        self.conclude()

    def conclude(self) -> None:
        """Let the hook that stopped at its gate come to its outcome."""
        match self.outcome:
            case Outcome.HANGS:
                go_to(now() + HOOK_TIMEOUT)
            case Outcome.CUT:
                task = self.backend.tasks.get(self.hook)
                if task is not None and task.cancel():
                    self.cancelled.append(task)
            case Outcome.RAISES:
                self.backend.fail(self.hook)
                self.gate.open()
            case Outcome.REFUSES:
                for resource in self.backend.created:
                    resource.is_healthy = False
                self.gate.open()
            case Outcome.OK:
                self.gate.open()

    def tells(self) -> bool:
        """Whether its caller may be told an error, if that is faster than the cancellation."""
        return self.fails_with_the_hook and self.outcome in FAILURES

    async def end(self) -> None:
        """Let the back-end work again, and all go on that still wait for it."""
        if self.outcome in (Outcome.HANGS, Outcome.CUT):
            self.gate.open()
        self.backend.work(self.hook)
        await settle()
        go_to(now() + PAUSE)
        await settle()

    def see_that_it_was_carried_out(self) -> None:
        """Assert that what the caller asked for has happened all the same; here, that nothing was made in vain."""
        if self.outcome is Outcome.OK:
            assert len(self.backend.created) <= self.most, f"made in vain: {self.backend.created}"

    async def lease_one(self) -> Lease[Resource]:
        lease = self.pool.lease()
        await lease.__aenter__()
        return lease

    async def make_one_free(self) -> None:
        await (await self.lease_one()).__aexit__(None, None, None)


class LatePoint(Point):
    """The hook is called only when the wait is over, or nearly: it stops at its gate only if it is to stay there."""

    async def prepare(self) -> None:
        self.calls_before = self.backend.count(self.hook)
        if self.outcome in (Outcome.HANGS, Outcome.CUT):
            self.gate.shut()
        elif self.outcome is Outcome.RAISES:
            self.backend.fail(self.hook)

    async def end(self) -> None:
        if self.outcome in (Outcome.HANGS, Outcome.CUT):
            self.conclude()
            await settle()
        await super().end()


class Waiting(Point):
    """In the queue, for what is being changed for its next user."""

    hook = "change"
    hooks = ("change",)

    async def prepare(self) -> None:
        lease = await self.lease_one()
        await super().prepare()
        lease.release_nowait()


class HandOver(LatePoint):
    """In the queue, for a resource that another caller gives back, or finds to be broken."""

    hook = "clean"

    async def prepare(self) -> None:
        self.lease = await self.lease_one()
        await super().prepare()

    def decide(self) -> None:
        if self.outcome is Outcome.OK:
            self.lease.release_nowait()
        else:
            self.lease.discard()


class HandOverByHand(HandOver):
    """As before, without a block."""

    async def call(self) -> None:
        resource = await self.pool.acquire(timeout=FOR_EVER)
        try:
            await sleep_forever()
        finally:
            await self.pool.release(resource)


class Refused(HandOver):
    """In the queue, for a hand-over at which it is refused, since it is likely to leave soon; alone it is served."""

    options = {"timeout": FOR_EVER}  # noqa: RUF012 - only read
    error = Overloaded

    async def prepare(self) -> None:
        await super().prepare()
        overload = self.pool._engine.state.overload  # which would learn this from dozens of callers
        for _ in range(10):
            overload.patience.has_newcomer = True
            overload.patience.leave(1.0, now())
        overload.throughput.handed.extend(now() - second for second in range(20, -1, -1))

    async def call(self) -> None:
        async with self.pool.lease():
            await sleep_forever()

    def tells(self) -> bool:
        return True


class Create(Point):
    """In the queue, for what is being created."""

    hook = "create"
    fails_with_the_hook = True
    company_may_fail = True


class Suspended(LatePoint):
    """In the queue, for `resume`, and for what is created then."""

    hook = "create"
    fails_with_the_hook = True
    company_may_fail = True

    async def prepare(self) -> None:
        await super().prepare()
        self.pool.suspend()

    def decide(self) -> None:
        self.pool.resume()


class Resized(Suspended):
    """In the queue, for a higher limit, and for what is created then."""

    most = 2

    async def prepare(self) -> None:
        self.lease = await self.lease_one()
        await LatePoint.prepare(self)

    def decide(self) -> None:
        self.pool.resize(2)

    async def end(self) -> None:
        self.lease.release_nowait()
        await super().end()


class Check(Point):
    """In the queue, for what is being checked."""

    hook = "check"
    hooks = ("check",)
    outcomes = (*Point.outcomes, Outcome.REFUSES)

    async def prepare(self) -> None:
        await self.make_one_free()
        await super().prepare()


class Change(Point):
    """In `release`, for the end of change."""

    hook = "change"
    hooks = ("change",)

    async def prepare(self) -> None:
        self.resource = await self.pool.acquire()
        await super().prepare()

    async def call(self) -> None:
        self.is_begun = True
        await self.pool.release(self.resource)

    async def end(self) -> None:
        if not self.is_begun:  # `wait_for` can end before it begins
            start(lambda: self.pool.release(self.resource))
        await super().end()

    def see_that_it_was_carried_out(self) -> None:
        super().see_that_it_was_carried_out()
        if self.outcome is Outcome.OK:
            assert self.resource.uses, "it was not changed"


class ChangeAfterBlock(Point):
    """At the end of a block, for the end of change."""

    hook = "change"
    hooks = ("change",)

    async def prepare(self) -> None:
        await self.make_one_free()
        await super().prepare()

    async def call(self) -> None:
        async with self.pool.lease():
            pass


class Drain(LatePoint):
    """In `drain`, for what is leased out."""

    hook = "clean"
    options = {"limit": 2}  # noqa: RUF012 - only read

    async def prepare(self) -> None:
        self.lease = await self.lease_one()
        await super().prepare()

    async def call(self) -> None:
        self.is_begun = True
        await self.pool.drain()

    async def keep_company(self) -> None:
        await self.pool.drain()

    def decide(self) -> None:
        self.lease.release_nowait()

    def see_that_it_was_carried_out(self) -> None:
        if self.is_begun:
            assert same(self.backend.created, self.backend.cleaned), "it was not cleaned"


class DrainOfFree(Point):
    """In `drain`, for the end of clean."""

    hook = "clean"

    async def prepare(self) -> None:
        await self.make_one_free()
        await super().prepare()

    async def call(self) -> None:
        self.is_begun = True
        await self.pool.drain()

    def see_that_it_was_carried_out(self) -> None:
        if self.is_begun:
            assert self.backend.created[0] in self.backend.cleaned, "it was not cleaned"


class Close(Drain):
    """In `close`, for what is leased out."""

    async def call(self) -> None:
        self.is_begun = True
        await self.pool.close()

    async def keep_company(self) -> None:
        await self.pool.close()

    def see_that_it_was_carried_out(self) -> None:
        super().see_that_it_was_carried_out()
        if self.is_begun:
            assert self.pool.status == "closed"


class CloseOfFree(Close):
    """In `close`, for the end of clean."""

    ends_what_it_began = True

    async def prepare(self) -> None:
        await self.make_one_free()
        await Point.prepare(self)

    def decide(self) -> None:
        self.conclude()

    async def end(self) -> None:
        await Point.end(self)


class Open(Point):
    """In `open`, for the first resources."""

    hook = "create"
    options = {"limit": 2, "min_free": 2}  # noqa: RUF012 - only read
    is_opened = False
    fails_with_the_hook = True
    cancels_what_it_began = True
    company_may_fail = True
    is_over = False

    async def call(self) -> None:
        self.is_begun = True
        await self.pool.open()
        self.is_over = True

    def see_that_it_was_carried_out(self) -> None:
        if self.is_begun:
            assert self.pool.status == ("open" if self.is_over else "closed")


class Probe(Check):
    """In `probe`, for what the check says."""

    async def prepare(self) -> None:
        await super().prepare()
        go_to(now() + 1)  # later than what is known already

    async def call(self) -> None:
        await self.pool.probe(max_age=0, timeout=FOR_EVER)


POINTS: dict[str, type[Point]] = {
    "waiting": Waiting,
    "hand_over": HandOver,
    "hand_over_by_hand": HandOverByHand,
    "refused": Refused,
    "create": Create,
    "suspended": Suspended,
    "resized": Resized,
    "check": Check,
    "change": Change,
    "change_after_block": ChangeAfterBlock,
    "drain": Drain,
    "drain_of_free": DrainOfFree,
    "close": Close,
    "close_of_free": CloseOfFree,
    "open": Open,
    "probe": Probe,
}


# --- axis: when ------------------------------------------------------------------------------------


class When(Enum):
    BEFORE = "before it begins"
    DURING = "meanwhile"
    EVE = "just before it is decided"
    OUTCOME = "as it is decided"


@dataclass(frozen=True)
class Strike:
    """One cancellation: when, and how many turns of the loop later."""

    when: When
    turns: int = 0

    def __str__(self) -> str:
        return f"{self.when.value} + {self.turns} turns" if self.turns else self.when.value

    @property
    def comes_first(self) -> bool:
        """Whether it comes before the decision."""
        return self.when is not When.OUTCOME


Moment = tuple[Strike, ...]

BEFORE, DURING = Strike(When.BEFORE), Strike(When.DURING)
AS_DECIDED = [Strike(When.OUTCOME, turns) for turns in range(TURNS)]
MOMENTS: list[Moment] = [
    (BEFORE,),
    (DURING,),
    (Strike(When.EVE),),
    *((strike,) for strike in AS_DECIDED),
    *((DURING, Strike(When.DURING, turns)) for turns in range(3)),
    *((DURING, strike) for strike in AS_DECIDED[:2]),
]


# --- all of them together --------------------------------------------------------------------------


class Caller:
    """A caller with a task of its own, and how that ended."""

    def __init__(self, call: Callable[[], Awaitable[None]]) -> None:
        self._call = call
        self.is_done = False
        self.end: BaseException | None = None
        start(self._run)

    async def _run(self) -> None:
        try:
            await self._call()
        except BaseException as error:  # noqa: BLE001 - the test asks what it was
            self.end = error
        finally:
            self.is_done = True


@dataclass(frozen=True)
class Case:
    """One of all combinations."""

    point: str
    style: str
    outcome: Outcome
    moment: Moment
    in_company: bool

    @property
    def is_struck_first(self) -> bool:
        """Whether the caller has long been cancelled when it is decided how its wait ends."""
        return self.moment[0].when in (When.BEFORE, When.DURING)

    def __str__(self) -> str:
        company = "in company" if self.in_company else "alone"
        moment = " and ".join(map(str, self.moment))
        return f"[{self.point}, {company}; hook {self.outcome.value}; {self.style} {moment}]"


class Scene:
    """A case being played: a caller is cancelled, and another one may be there as well."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._point = POINTS[case.point](case.outcome)
        self._pool = self._point.pool
        self._was_struck_in_time = True
        self._is_waiting = False
        self._strikes = 0  # once it was begun

    async def play(self) -> None:
        """Cancel a caller, and see what comes of it."""
        await self._begin()
        if self._case.is_struck_first:
            self._strike_when(When.DURING)
            await self._settle()
            self._see_when_the_caller_goes_on()
        self._strike_when(When.EVE)
        self._point.decide()
        self._strike_when(When.OUTCOME)
        await self._settle()
        is_called = self._point.backend.count(self._point.hook) > self._point.calls_before
        await self._point.end()
        self._see_that_the_caller_was_cancelled()
        self._see_that_nobody_else_was()
        if is_called and self._case.outcome in (Outcome.HANGS, Outcome.CUT):
            assert self._point.backend.cut, "the hook hung for ever"
        self._point.see_that_it_was_carried_out()
        await at_once(partial(see_that_nothing_is_lost, self._point))

    async def _begin(self) -> None:
        case, point = self._case, self._point
        if point.is_opened:
            await self._pool.open()
        await point.prepare()
        self._style = STYLES[case.style](
            [
                number * PATIENCE + (0 if strike.comes_first else HOOK_TIMEOUT)
                for number, strike in enumerate(case.moment, 1)
            ]
        )
        self._caller = Caller(partial(self._style.run, self._call, cancelled=BEFORE in case.moment))
        await settle()
        assert self._is_waiting or BEFORE in case.moment, "the caller waits for nothing"
        self._company = [Caller(point.keep_company)] if case.in_company else []
        await settle()

    async def _call(self) -> None:
        self._is_waiting = True
        await self._point.call()
        self._is_waiting = False
        await sleep_forever()  # a caller that was not cancelled before is so now

    async def _settle(self) -> None:
        await settle()
        check(self._pool)

    def _strike_when(self, when: When) -> None:
        for strike in self._case.moment:
            if strike.when is when:
                in_turns(strike.turns, self._strike)

    def _strike(self) -> None:
        self._was_struck_in_time = not self._caller.is_done
        if self._was_struck_in_time:
            self._strikes += 1
            self._style.strike()

    def _see_when_the_caller_goes_on(self) -> None:
        """A cancelled caller waits only for the end of what cannot be left half done."""
        if not self._point.ends_what_it_began:
            assert self._caller.is_done, "the caller waits although it was cancelled"
        elif self._strikes == 1 or (self._strikes and self._case.style == "scope"):
            assert not self._caller.is_done, "the caller did not wait for the end of what it began"

    def _see_that_the_caller_was_cancelled(self) -> None:
        case, end = self._case, self._caller.end
        assert self._caller.is_done, "the caller did not get its cancellation"
        if not self._style.was_cancelled(end):
            # Nothing but that the outcome was faster, and that it was an error. `task.cancel` knows that best.
            was_faster = not case.is_struck_first and not (case.style == "cancel" and self._was_struck_in_time)
            assert was_faster, f"the caller was not cancelled: {end!r}"
            assert self._point.tells(), f"the caller was not cancelled: {end!r}"
            assert isinstance(end, self._point.error), f"the caller was not cancelled: {end!r}"

    def _see_that_nobody_else_was(self) -> None:
        case, point = self._case, self._point
        may_fail = point.company_may_fail and (case.outcome in FAILURES or not point.is_opened)
        for other in self._company:
            assert other.is_done, "another caller waits for ever"
            is_served = other.end is None
            assert is_served or (may_fail and isinstance(other.end, PoolError)), f"another caller got {other.end!r}"
        is_cut = case.outcome in (Outcome.HANGS, Outcome.CUT) or point.cancels_what_it_began
        may_be_cut = {point.hook} if is_cut else set()
        assert set(point.backend.cut) <= may_be_cut, f"hooks were cancelled: {point.backend.cut}"
        assert all(task.cancelled() for task in point.cancelled), "the task of a hook swallowed its cancellation"


async def see_that_nothing_is_lost(point: Point) -> None:
    if point.pool.status != "open":
        await point.pool.open()
    await assert_nothing_is_lost(point.pool, point.backend)
    assert same(point.backend.created, point.backend.cleaned), "each one is cleaned once"


async def at_once(call: Callable[[], Any]) -> None:
    """Await what has to end without time going by."""
    ends: list[Any] = []

    async def run() -> None:
        ends.append(await outcome_of(call))

    start(run)
    await settle()
    assert ends, "not all can be leased again at once"
    if isinstance(ends[0], Exception):
        raise ends[0]


def tasks() -> set[asyncio.Task[Any]]:
    return set() if in_trio() else asyncio.all_tasks()


def cases(loop: str, point: str, style: str) -> Iterator[Case]:
    """Yield what one test goes through: with its siblings, all points by outcomes by moments by styles.

    The loops take turns at these, and so do callers that are alone and others, so that any two of all meet somewhere.
    """
    turns = [(each, in_company) for each in (LOOPS if loop != "trio" else ["trio"]) for in_company in (False, True)]
    turns = [turn for turn in turns if loop == "trio" or turn[0] != "trio"]
    for row, outcome in enumerate(POINTS[point].outcomes):
        if loop == "trio" and outcome is Outcome.CUT:
            continue
        for column, moment in enumerate(MOMENTS):
            whose_turn = turns[(row + column + list(STYLES).index(style)) % len(turns)]
            for in_company in (False, True):
                if IS_COMPLETE or whose_turn == (loop, in_company):
                    yield Case(point, style, outcome, moment, in_company)


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run in the loop of that name."""
    return LOOPS[request.param]()


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Log nothing: thousands of hooks fail."""
    logger.disabled = True
    yield
    logger.disabled = False


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("anyio_backend", "style"),
    [
        pytest.param(loop, style, id=f"{loop}-{style}")
        for loop in LOOPS
        for style in STYLES
        if loop != "trio" or style == "scope"
    ],
    indirect=["anyio_backend"],
)
@pytest.mark.parametrize("point", POINTS)
async def test_only_the_cancelled_caller_notices(request: pytest.FixtureRequest, point: str, style: str) -> None:
    """The pool loses nothing, and no task goes on."""
    before = tasks()
    for case in cases(request.node.callspec.params["anyio_backend"], point, style):
        trio._core._run._r.seed(str(case))  # by which it shuffles its tasks, so that a case fails again
        try:
            await Scene(case).play()
            assert tasks() == before, "a task goes on"
        except Exception as error:
            raise AssertionError(f"{case}: {error!r}") from error
