"""The whole pool in thousands of random runs: whatever comes when, nothing is lost and no caller is stranded.

Everything in a run is drawn from its seed: the options of the pool, what its users do, how and when hooks answer,
which caller a cancellation hits, and in which order the loop calls what is ready at the same time. A run that fails
says how to have just that one again; `POOL_RUNS` has more of them.
"""

import asyncio
import gc
import logging
import os
import random
import sys
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import anyio
import pytest

from connectionpools_fastapi import (
    ConnectionPool,
    NotLeased,
    PoolClosed,
    PoolConfigError,
    PoolError,
    PoolListener,
    PoolTimeout,
    ResourceUnavailable,
    TooManyWaiting,
    WouldDeadlock,
)
from connectionpools_fastapi._core.invariants import check_invariants
from connectionpools_fastapi._core.wait_queue import WaitQueue
from tests.support import SECRET, Backend, JumpingLoop, Resource, assert_nothing_is_lost

FILE = f"tests/runtime/{Path(__file__).name}"
RUNS = 600  # as many as fit into about two seconds
LONGEST = 2000.0  # when a run that began at 1000 virtual seconds has not ended, it never will; common is 1010
MOST_TURNS = 5000  # as above; a hundred are common
EPSILON = 1e-6  # time is a sum of floats


class Fault(AssertionError):  # noqa: N818 - reads as what it reports
    """The pool broke a promise."""


class InAnyOrder(deque[asyncio.Handle]):
    """What a loop has ready, taken in any order; looks at the pool before each turn.

    To take handles in any order breaks no task: it has one next step at most, so that its own steps stay in order.
    asyncio does promise first in, first out between handles, but a pool that relied on it would fail on trio, which
    shuffles as well, and wherever threads come in between.
    """

    def __init__(self, chance: random.Random, look: Callable[[], None]) -> None:
        super().__init__()
        self._chance = chance.random
        self._look = look

    def popleft(self) -> asyncio.Handle:
        self._look()
        self.rotate(int(self._chance() * len(self)))
        return super().popleft()


class ShuffledLoop(JumpingLoop):
    """A loop in virtual time that nothing but chance steers: no I/O, no threads."""

    def __init__(self, chance: random.Random, look: Callable[[], None]) -> None:
        super().__init__()
        self._ready = InAnyOrder(chance, look)
        self._scheduled: list[asyncio.TimerHandle]
        self._jumping.select = self._jump  # type: ignore[method-assign]

    def _jump(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise Fault("a caller is stranded: all wait, and nothing is left that could wake them")
        self._jumping.now += timeout
        if self._jumping.now > LONGEST:
            raise Fault("a caller is stranded: time goes by, and nothing else")
        return []


class Ear(PoolListener):
    """Keeps the books by what it is told."""

    def __init__(self, chance: random.Random) -> None:
        self.heard: Counter[str] = Counter()
        self._chance = chance

    def hear(self, event: str) -> None:
        self.heard[event] += 1
        if self._chance.random() < 0.05:
            raise OwnError

    def on_create(self, pool: str, took: float) -> None:
        self.hear("creates")

    def on_create_failed(self, pool: str, error: BaseException) -> None:
        self.hear("create_failures")

    def on_timeout(self, pool: str, waited: float) -> None:
        self.hear("timeouts")

    def on_withdraw(self, pool: str, waited: float) -> None:
        self.hear("withdrawals")

    def on_detach(self, pool: str) -> None:
        self.hear("detached")

    def on_clean(self, pool: str) -> None:
        self.hear("cleans")


class KeenEar(Ear):
    """Wants to hear of each lease as well, which then takes another way through the pool."""

    def on_acquire(self, pool: str, waited: float) -> None:
        self.hear("acquires")

    def on_release(self, pool: str, used: float) -> None:
        self.hear("releases")


class OwnError(Exception):
    """What a user's own code raises while it holds a lease."""


class MoodyBackend(Backend):
    """Hooks that take their time, fail, hang and resist cancellation; and the callers that this must not affect."""

    def __init__(self, run: "Run") -> None:
        super().__init__()
        self._run = run
        self._chance = run.chance
        self.alive: set[int] = set()  # was created, and neither detached nor given to `clean`
        self.lost: set[int] = set()  # was still out when the pool was closed and opened again
        self.gone: dict[int, str] = {}  # must not be leased any more, and why
        self.proved_at: dict[int, float] = {}  # when it was last known to work
        self.created_at: dict[int, float] = {}
        self.leases: Counter[int] = Counter()
        self.too_many = 0  # how many there were when the pool was last resized: no limit can do away with them
        self.being_created = 0
        self.create_failures = 0
        self.answers: list[tuple[int, float]] = []  # when a create ended, or a check that succeeded
        self.is_down = False
        self._is_well = False
        self._busy: set[int] = set()  # a hook has it
        self._p_fails, self._p_hangs = self._chance.choice([(0, 0), (0.1, 0.02), (0.2, 0.1), (0.5, 0)])

    def hook(self, name: str, style: str) -> Callable[..., Any]:
        """Make a hook: async, a `def` that hides that it is async, or a `def` that runs inline."""

        async def slow(*resources: Resource) -> Any:
            self._begin(name, *resources)
            try:
                await self._dawdle(name)
            except BaseException as error:
                self._fail(name, type(error).__name__, *resources)
                raise
            return self._end(name, *resources)

        def hidden(*resources: Resource) -> Any:
            return slow(*resources)

        def inline(*resources: Resource) -> Any:
            self._begin(name, *resources)
            if self._fails(name):
                self._fail(name, ConnectionError.__name__, *resources)
                raise ConnectionError(SECRET)
            return self._end(name, *resources)

        async def slow_create() -> Any:
            return await slow()

        def hidden_create() -> Any:
            return slow()

        def inline_create() -> Any:
            return inline()

        if name == "create":  # is seen to take nothing
            return {"async": slow_create, "hidden": hidden_create, "inline": inline_create}[style]
        return {"async": slow, "hidden": hidden, "inline": inline}[style]

    def be_well(self) -> None:
        self._is_well = True

    def _fails(self, name: str) -> bool:
        if self.is_down and name != "clean":
            return not self._is_well
        return not self._is_well and self._chance.random() < self._p_fails

    async def _dawdle(self, name: str) -> None:
        if self._is_well:
            return
        chance = self._chance.random()
        if chance < self._p_hangs:
            await self._hang()
        elif chance < 0.5:
            await self._run.some_turns()
        elif chance < 0.8:
            await self._run.some_time()
        if self._fails(name):
            # A driver that was cut off from within says it so, once in a while.
            raise asyncio.CancelledError if self._chance.random() < 0.1 else ConnectionError(SECRET)

    async def _hang(self) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            stubborn = self._chance.random()
            if stubborn < 0.3:
                await self._run.some_time()
            if stubborn > 0.1:
                raise

    def _begin(self, name: str, *resources: Resource) -> None:
        self._run.note("hook", name, *resources)
        if name == "create":
            self.being_created += 1
            self.see_the_limit()
        for resource in resources:
            self._run.expect(resource.number not in self._run.held, f"{name} of {resource}, which is in use")
            self._run.expect(resource.number not in self._busy, f"{name} of {resource}, which another hook has")
            self._run.expect(resource.number in self.alive, f"{name} of {resource}, which is gone")
            self._busy.add(resource.number)
            if name == "clean":
                self.alive.remove(resource.number)
                self.gone[resource.number] = "cleaned"
                self.cleaned.append(resource)
            else:
                why = self.gone.get(resource.number, "expired")  # which may come just after the call was ordered
                self._run.expect(why == "expired", f"{name} of {resource}, although: {why}")

    def _fail(self, name: str, how: str, *resources: Resource) -> None:
        self._run.note("hook", f"{name} fails with {how}", *resources)
        if name == "create":
            self.being_created -= 1
            self.create_failures += 1
            self.answers.append((self._run.turn, self._run.now))
        for resource in resources:
            self._busy.remove(resource.number)
            self.gone[resource.number] = f"{name} failed"

    def _end(self, name: str, *resources: Resource) -> Any:
        if name == "create":
            self.being_created -= 1
            resource = Resource(len(self.created))
            self.created.append(resource)
            self.alive.add(resource.number)
            self.proved_at[resource.number] = self.created_at[resource.number] = self._run.now
            self.answers.append((self._run.turn, self._run.now))
            self.see_the_limit()
            self._run.note("hook", "created", resource)
            return resource
        for resource in resources:
            self._busy.remove(resource.number)
            if name == "check" and self._fails("check"):
                self.gone[resource.number] = "failed its check"
                return False
            if name == "check" or (name == "change" and self._run.options["check_after"]):
                self.proved_at[resource.number] = self._run.now
            if name == "check":
                self.answers.append((self._run.turn, self._run.now))
            self._run.note("hook", f"end of {name}", resource)
        return True if name == "check" else None

    def existing(self) -> int:
        """How many exist, but for those on their way to `clean` and those that came back too late."""
        return len(
            self.alive - self.lost - {slot.resource.number for slot in self._run.pool._engine.inventory.cleaning}
        )

    def see_the_limit(self) -> None:
        """No more may exist than the limit says, as the back-end counts."""
        there = self.existing() + self.being_created
        limit = max(self._run.pool.limit, self.too_many)
        self._run.expect(there <= limit, f"{there} exist, above the limit of {limit}")
        most = self._run.options["max_creating"]
        self._run.expect(self.being_created <= most, f"{self.being_created} calls of create at once, not {most}")


class User:
    """A task that does one thing after the other with the pool."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.task: asyncio.Task[Any] | None = None  # once it has begun: before, no code sees a cancellation
        self.cancels = 0  # how often it was cancelled since it last noticed
        self.depth = 0  # how many leases it holds, one within the other
        self.doing = "nothing"
        self.waits = False

    def __repr__(self) -> str:
        return self.name


class Run:
    """One run, drawn from its seed: some users, one pool, and what came of it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)  # noqa: S311 - no secret
        self.turn = 0
        self.trace: list[tuple[Any, ...]] = []
        self.seen: Counter[str] = Counter()
        self.held: dict[int, User] = {}
        self._fault: Fault | None = None
        self._line: list[Any] = []
        self._held_up = (False, False)  # no caller may be served: it is suspended, there are too many
        self._doomed: set[int] = set()  # existed when the pool was last told to replace what exists
        self.detached: list[Resource] = []
        self.loop = ShuffledLoop(self.chance, self._look)
        self.loop.set_exception_handler(self._on_stray_exception)
        if sys.version_info >= (3, 12) and self.chance.random() < 0.2:
            self.loop.set_task_factory(asyncio.eager_task_factory)
        self.options = self._draw_options()
        self.backend = MoodyBackend(self)
        self.pool: ConnectionPool[Resource] = self._make_pool()
        self.ear = self.chance.choice([None, Ear(self.chance), KeenEar(self.chance)])
        if self.ear is not None:
            self.pool.add_listener(self.ear)
        self.users = [User(f"user {number}") for number in range(self.chance.randint(2, 6))]

    # --- what is drawn ------------------------------------------------------------------------

    def _draw_options(self) -> dict[str, Any]:
        draw = self.chance.choice
        limit = draw([1, 1, 1, 2, 2, 3])
        return {
            "limit": limit,
            "min_free": min(draw([0, 0, 0, 1, 2]), limit),
            "timeout": draw([0.1, 1.0, 5.0, None]),
            "max_waiting": draw([None, None, None, 0, 1, 3]),
            "max_creating": draw([1, 2, 8]),
            "check_after": draw([0, 0.05, 1.0]),
            "hook_timeout": draw([0.1, 0.6]),
            "close_timeout": draw([0, 0.1, 2.0]),
            "reuse": draw(["lifo", "fifo"]),
            "max_lifetime": draw([None, None, 0.3, 1.0]),
            "max_idle": draw([None, None, 0.2]),
            "max_uses": draw([None, None, 1, 3]),
            "max_hold": draw([None, 0.05]),
        }

    def _make_pool(self) -> ConnectionPool[Resource]:
        hooks = ["create", "clean"] + [name for name in ("check", "change") if self.chance.random() < 0.5]
        styles = self.chance.choice([["async"], ["inline"], ["async", "hidden", "inline"]])
        made: dict[str, Any] = {name: self.backend.hook(name, self.chance.choice(styles)) for name in hooks}
        self.options["hooks"] = hooks
        if "check" in hooks:
            self.options["keepalive"] = self.chance.choice([None, None, 0.4])
        made |= {name: value for name, value in self.options.items() if name != "hooks"}
        pool: ConnectionPool[Resource] = ConnectionPool(**made, blocking=False, clock=self.loop.time)
        return pool

    async def some_turns(self) -> None:
        for _ in range(int(self.chance.random() * 4)):
            await asyncio.sleep(0)

    async def some_time(self) -> None:
        await asyncio.sleep(self.chance.choice([0.01, 0.05, 0.1, 0.5]))

    @property
    def now(self) -> float:
        return self.loop.time()

    # --- what is seen ---------------------------------------------------------------------------

    def note(self, who: object, what: str, *resources: Resource) -> None:
        self.trace.append((self.turn, self.now, str(who), what, *[resource.number for resource in resources]))
        self.seen[what] += 1

    def expect(self, kept: bool, promise: str) -> None:  # noqa: FBT001 - reads as assert does
        """Assert, also where what is raised would be caught: in hooks, callbacks and clean-up."""
        if not kept:
            self._fault = self._fault or Fault(promise)
            raise self._fault

    def _on_stray_exception(self, _: object, context: dict[str, Any]) -> None:
        self._fault = self._fault or Fault(f"{context['message']}: {context.get('exception')!r}")

    def _look(self) -> None:
        """Look at the pool between two turns."""
        self.turn += 1
        if self.turn > MOST_TURNS:
            raise Fault("it never comes to rest: turn after turn, and nothing gets done")
        if self._fault is not None:
            raise self._fault
        state = self.pool._engine.state
        before, self._held_up = self._held_up, (state.status.value == "suspended", state.inventory.is_above_limit())
        if self._line or len(state.queue):
            self._follow(list(state.queue), state.queue, held_up=any(map(all, zip(before, self._held_up, strict=True))))
        if not self.turn % 16:  # a price that thousands of runs can pay
            check_invariants(state, self.now)

    def _follow(self, line: list[Any], queue: WaitQueue[Any], *, held_up: bool) -> None:
        """First come, first served: no caller that waits on came before one that is granted a lease."""
        waits_on = [waiter in queue for waiter in self._line]
        stayed = [waiter for waiter, waits in zip(self._line, waits_on, strict=True) if waits]
        granted = [place for place, waiter in enumerate(self._line) if waiter.slot is not None]
        self.expect(line[: len(stayed)] == stayed, "a newcomer was let in before others")
        self.expect(not (stayed and granted) or granted[-1] < waits_on.index(True), "a caller was overtaken")
        self.expect(not (granted and held_up), "a caller was served while suspended, or above the limit")
        before, self._line = self._line, line
        if granted and self.chance.random() < 0.1:
            self._cancel_at_the_grant(before[granted[-1]])

    def _cancel_at_the_grant(self, waiter: Any) -> None:
        for user in self.users:
            if user.task is not None and getattr(user.task, "_fut_waiter", None) is waiter.parked:
                self.cancel(user, "cancelled at the grant")

    def cancel(self, user: User, how: str) -> None:
        if user.task is not None and not user.task.done():
            self.note(user, how)
            user.cancels += 1
            user.task.cancel()

    # --- what users do -----------------------------------------------------------------------------

    def draw_timeout(self) -> Any:
        return self.chance.choice([0, 0.01, 0.1, 1.0, 30.0, None])

    async def obtain(self, user: User, how: Callable[[], Awaitable[Resource]], timeout: float | None) -> Resource:
        """Acquire, and hold what comes of it against what was promised."""
        state, user.waits = self.pool._engine.state, True
        asked_at, generation = self.now, state.generations.current
        ahead, turn, is_suspended = list(state.queue), self.turn, self.pool.status == "suspended"
        # As the pool decides, which is now: a refusal is raised a turn later, and the other may wait no more by then.
        hold_and_wait = any(other.depth and other.waits for other in self.users)
        try:
            resource = await how()
        except PoolTimeout:
            self.expect(timeout is not None and self.now - asked_at >= timeout - EPSILON, "timed out before its time")
            raise
        except PoolClosed:
            was_closed = self.pool.status not in ("open", "suspended") or state.generations.current != generation
            self.expect(was_closed, "an open pool said that it is closed")
            raise
        except TooManyWaiting:
            self.expect(self.options["max_waiting"] is not None, "a queue without a limit was full")
            raise
        except WouldDeadlock:
            self.expect(hold_and_wait, "no caller holds one and waits for another, and one was told so")
            raise
        except ResourceUnavailable:
            self.expect(self.backend.create_failures > 0, "unavailable, although create has never failed")
            raise
        finally:
            user.waits = False
            waited = self.now - asked_at
            self.expect(timeout is None or waited <= timeout + EPSILON, f"waited {waited} s, not {timeout} s")
        self.expect(not (is_suspended and self.turn == turn), "a newcomer was served while suspended")
        self.expect(not any(waiter in state.queue for waiter in ahead), "a newcomer overtook a waiter")
        self._got(user, resource)
        return resource

    def _got(self, user: User, resource: Resource) -> None:
        number, backend = resource.number, self.backend
        self.expect(number not in self.held, f"{resource} was leased to two at once")
        self.expect(number not in backend.gone, f"{resource} was leased, although: {backend.gone.get(number)}")
        self.expect(number in backend.alive, f"{resource} was leased, and does not exist")
        if "check" in self.options["hooks"]:
            age = self.now - backend.proved_at[number]
            self.expect(age <= self.options["check_after"] + EPSILON, f"{resource} was leased stale: {age} s")
        age, most = self.now - backend.created_at[number], self.options["max_lifetime"]
        self.expect(most is None or age <= most + EPSILON, f"{resource} was leased at the age of {age} s")
        backend.leases[number] += 1
        uses, most = backend.leases[number], self.options["max_uses"]
        self.expect(most is None or uses <= most, f"{resource} was leased for the {uses}th time")
        self.held[number] = user
        user.depth += 1
        self.note(user, "got", resource)

    def gives(self, user: User, resource: Resource, how: str = "gives back") -> None:
        """Note that a lease ends; called just before, since all that follows may come at once."""
        self.note(user, how, resource)
        number, backend = resource.number, self.backend
        self.expect(self.held.pop(number) is user, f"{resource} was another caller's")
        user.depth -= 1
        if number in self._doomed:
            backend.gone[number] = "expired"
        if how in ("discards", "drops"):
            backend.gone[number] = how
        if how == "detaches":
            backend.alive.remove(number)
            backend.gone[number] = how
            self.detached.append(resource)
        if not {"change"}.intersection(self.options["hooks"]):
            backend.proved_at[number] = self.now if self.options["check_after"] else float("-inf")

    def doom(self) -> None:
        """Note that all that exist are to be replaced: what is free at once, the rest when it comes back."""
        taken = {slot.resource.number for slot in self.pool._engine.inventory.taken.values()}
        self._doomed |= self.backend.alive
        for number in self.backend.alive - taken:
            self.backend.gone.setdefault(number, "expired")

    async def hold(self, user: User) -> None:
        chance = self.chance.random()
        if chance < 0.4:
            await self.some_turns()
        elif chance < 0.7:
            await self.some_time()
        elif chance < 0.8:
            raise OwnError
        elif chance < 0.85 and user.depth < 2:
            with suppress(PoolError):
                await lease_for_a_block(self, user, timeout=0.5)

    # --- the run ---------------------------------------------------------------------------------------

    def execute(self) -> "Run":
        """Have the run; what fails says how to have it again."""
        random.seed(self.seed)  # for the pool's own jitter
        try:
            self.loop.run_until_complete(self._live())
        except BaseException as error:
            story = self._story(error)
            self._throw_away()
            raise Fault(story) from error
        finally:
            self.loop.close()
        return self

    def _story(self, error: BaseException) -> str:
        lines = [" ".join(map(str, entry)) for entry in self.trace[-40:]]
        undone = [f"{user} ({user.doing})" for user in self.users if user.task and not user.task.done()]
        return "\n".join(
            [
                f"{type(error).__name__}: {error}",
                f"Have just this run again: POOL_SEED={self.seed} POOL_RUNS=1 python -m pytest {FILE}",
                f"at turn {self.turn}, {self.pool!r}, {self.options}",
                f"not done: {', '.join(undone) or 'none'}; the last of what happened:",
                *lines,
            ]
        )

    def _throw_away(self) -> None:
        """End what a broken pool has left, so that it is silent."""
        ended: set[asyncio.Task[Any]] = set()
        while left := asyncio.all_tasks(self.loop) - ended:
            for task in left:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with suppress(BaseException):
                    task.get_coro().close()
            ended |= left

    async def _live(self) -> None:
        while self.pool.status != "open":
            with suppress(ResourceUnavailable):
                await open_it(self, User("host"))
        tasks = [self.loop.create_task(self._be(user)) for user in self.users]
        await asyncio.wait(tasks)
        for task in tasks:
            task.result()
        await self._come_to_rest()

    async def _be(self, user: User) -> None:
        user.task = task = asyncio.current_task()
        assert task is not None
        for _ in range(self.chance.randint(1, 8)):
            operation = self._draw_operation()
            user.doing = operation.__name__
            self.note(user, user.doing)
            pauses = False
            try:
                await operation(self, user)
            except asyncio.CancelledError:
                self.expect(user.cancels > 0, "cancelled by no caller")
                self.note(user, f"cancelled in {user.doing}")
            except (PoolError, OwnError, TimeoutError) as error:
                self.expect(not user.cancels, f"a cancellation became {error!r}")
                self.note(user, type(error).__name__)
                pauses = True
            else:
                self.expect(not user.cancels, "a cancellation was swallowed")
            if pauses:  # or it would be through with all that it does before others have begun
                with suppress(asyncio.CancelledError):
                    await self.some_turns()
                    await self.some_time()
            while task.uncancel():
                pass
            user.cancels = 0

    def _draw_operation(self) -> "Operation":
        if self.pool.status == "closed" and self.chance.random() < 0.5:
            return open_it
        return self.chance.choices(OPERATIONS, cum_weights=WEIGHTS)[0]

    async def _come_to_rest(self) -> None:
        """Everybody is done: now all must be as if nothing had happened."""
        self.expect(not self.held, f"still held: {self.held}")
        self.backend.be_well()
        await asyncio.sleep(5)  # a create of its last life that hangs would not let it open
        if self.pool.status != "open":
            await open_it(self, User("host"))
        if self.pool.taken:  # a cancelled eager task and its starter's frames are a cycle, which keeps a lost lease
            gc.collect()
        await asyncio.sleep(5)  # hooks that hang end, and create is tried again
        self.expect((self.pool.taken, self.pool.waiting, self.pool.creating) == (0, 0, 0), "it does not come to rest")
        floor = min(self.options["min_free"], self.pool.limit)
        self.expect(self.pool.free >= floor, "there are fewer free than min_free")
        self.expect(self.options["max_idle"] is None or self.pool.free <= floor, "idle ones stay beyond max_idle")
        self.expect(
            self.backend.alive.issuperset({slot.resource.number for slot in self.pool._engine.inventory.free}),
            "a ghost",
        )
        await assert_nothing_is_lost(self.pool, self.backend, detached=len(self.detached))
        self.expect(not self.backend.alive, f"never cleaned: {self.backend.alive}")
        if self.ear is not None:
            stats = self.pool.stats()
            told = {name: getattr(stats, name) for name in self.ear.heard}
            self.expect(told == self.ear.heard, f"listeners heard {self.ear.heard}, statistics say {told}")


# --- what users do with a pool: one function a kind -------------------------------------------------------------

Operation = Callable[[Run, User], Awaitable[None]]


async def lease_for_a_block(run: Run, user: User, **options: Any) -> None:
    timeout = options["timeout"] if options else run.options["timeout"]
    async with AsyncExitStack() as stack:
        lease = run.pool.lease(holder=user, **options)
        resource = await run.obtain(user, lambda: stack.enter_async_context(lease), timeout)
        try:
            await run.hold(user)
        finally:
            run.gives(user, resource)


async def lease_with_a_timeout(run: Run, user: User) -> None:
    await lease_for_a_block(run, user, timeout=run.draw_timeout())


async def lease_within_a_time_limit(run: Run, user: User) -> None:
    seconds = run.chance.choice([0, 0.01, 0.1, 0.5])
    if run.chance.random() < 0.5:
        async with asyncio.timeout(seconds):
            await lease_for_a_block(run, user)
    else:
        with anyio.move_on_after(seconds):
            await lease_for_a_block(run, user)


async def end_the_lease_in_the_block(run: Run, user: User) -> None:
    lease = run.pool.lease(timeout=1.0)
    how = run.chance.choice(["gives back", "discards", "detaches"])
    async with AsyncExitStack() as stack:
        resource = await run.obtain(user, lambda: stack.enter_async_context(lease), 1.0)
        run.expect(lease.resource is resource, "a lease has another resource")
        try:
            await run.hold(user)
        finally:
            run.gives(user, resource, how)
            end = {"gives back": lease.release_nowait, "discards": lease.discard, "detaches": lease.detach}[how]
            end()
            with pytest.raises(NotLeased):
                end()
        await run.some_turns()


async def acquire_and_release(run: Run, user: User) -> None:
    timeout = run.draw_timeout()
    resource = await run.obtain(user, lambda: run.pool.acquire(timeout=timeout), timeout)
    try:
        await run.hold(user)
    finally:
        run.gives(user, resource)
        await run.pool.release(resource)


async def acquire_and_end(run: Run, user: User) -> None:
    resource = await run.obtain(user, run.pool.acquire, run.options["timeout"])
    how = run.chance.choice(["discards", "detaches"])
    try:
        await run.hold(user)
    finally:
        run.gives(user, resource, how)
        {"discards": run.pool.discard, "detaches": run.pool.detach}[how](resource)


async def try_to_acquire(run: Run, user: User) -> None:
    async def attempt() -> Resource:
        resource = run.pool.try_acquire()
        if resource is None:
            raise OwnError
        return resource

    resource = await run.obtain(user, attempt, 0)
    try:
        await run.hold(user)
    finally:
        run.gives(user, resource)
        await run.pool.release(resource)


async def give_back_what_is_foreign(run: Run, _: User) -> None:
    with pytest.raises(NotLeased):
        await run.pool.release(Resource(-1))


async def cancel_somebody(run: Run, user: User) -> None:
    victim = run.chance.choice(run.users)
    if victim is user:
        return
    for _ in range(run.chance.randint(1, 2)):
        run.cancel(victim, f"cancelled by {user}")
    if run.chance.random() < 0.3:  # once more, at what it does about the first
        await run.some_turns()
        run.cancel(victim, f"cancelled again by {user}")


async def expire(run: Run, _: User) -> None:
    run.doom()
    run.pool.expire()


async def drain(run: Run, _: User) -> None:
    run.doom()
    existed = set(run.backend.alive)
    was = run.pool.status
    await run.pool.drain()
    if was == run.pool.status == "open" and not run.backend.lost:  # closing waits for no lease for ever
        left = existed & run.backend.alive
        run.expect(not left, f"drained, and still there: {left}")


async def close_it(run: Run, user: User) -> None:
    run.doom()
    began_at = run.now
    try:
        await run.pool.close()
        if run.pool.status == "closed":
            run.expect(run.pool.stats().leased == 0, "a closed pool still counts leases")
    finally:
        run.note(user, "closed it")
        most = run.options["close_timeout"] + run.options["hook_timeout"] + EPSILON
        run.expect(run.now - began_at <= most, "to close took longer than it may")


async def open_it(run: Run, user: User) -> None:
    can_open = run.pool.status in ("new", "closed")
    if can_open:
        run.backend.lost |= run.backend.alive
    try:
        await run.pool.open()
    except PoolConfigError:
        run.expect(not can_open, "a closed pool could not be opened")
        raise
    finally:
        run.note(user, "opened it" if can_open else "found it open")


async def probe(run: Run, _: User) -> None:
    timeout, began_at, began = run.chance.choice([0, 0.05, 1.0]), run.now, run.turn
    await run.pool.probe(max_age=run.chance.choice([0, 0.1]), timeout=timeout)
    run.expect(run.now - began_at <= timeout + EPSILON, "a probe took longer than it may")
    told_late = any(began < turn and at < run.now - EPSILON for turn, at in run.backend.answers[-5:])
    run.expect(not told_late, "a probe slept on after the back-end had answered")


async def look_in(run: Run, user: User) -> None:
    stats = run.pool.stats()
    run.note(user, f"sees {stats.free} free, {stats.taken} taken, {stats.creating} creating, {stats.waiting} waiting")
    limit = max(stats.limit, run.backend.too_many)
    run.expect(stats.free + stats.taken + stats.creating <= limit, "the numbers are above the limit")
    run.expect(stats.leased >= len(run.held.keys() - run.backend.lost) or run.pool.status != "open", "leases are lost")
    run.pool.holders()


async def resize(run: Run, _: User) -> None:
    await asyncio.sleep(0)  # in a turn of its own, so that it shows which caller is served after it
    run.backend.too_many = run.backend.existing() + run.pool.creating
    run.pool.resize(run.chance.randint(1, 4))
    check_invariants(run.pool._engine.state, run.now)


async def suspend_for_a_while(run: Run, _: User) -> None:
    await asyncio.sleep(0)  # as above
    run.pool.suspend()
    try:
        await run.some_turns()
        await run.some_time()
    finally:
        with suppress(PoolClosed):
            run.pool.resume()


async def retain_some(run: Run, _: User) -> None:
    def keep(resource: Resource) -> bool:
        run.expect(resource.number not in run.held, f"asked about {resource}, which is in use")
        chance = run.chance.random()
        if chance < 0.1:
            raise OwnError
        if chance < 0.5:
            run.backend.gone[resource.number] = "not retained"
        return chance >= 0.5

    run.pool.retain(keep)


async def lose_a_lease(run: Run, user: User) -> None:
    lease = run.pool.lease(timeout=1.0)
    resource = await run.obtain(user, lease.__aenter__, 1.0)
    try:
        await run.some_turns()
    finally:
        run.gives(user, resource, "drops")
        del lease


async def break_down_for_a_while(run: Run, _: User) -> None:
    run.backend.is_down = True
    try:
        await run.some_turns()
        await run.some_time()
    finally:
        run.backend.is_down = False


async def let_time_pass(run: Run, _: User) -> None:
    await run.some_time()


async def let_others_go_first(run: Run, _: User) -> None:
    await run.some_turns()


# How often each is drawn. One that is new is one function and one line.
TABLE: list[tuple[int, Operation]] = [
    (24, lease_for_a_block),
    (12, lease_with_a_timeout),
    (6, lease_within_a_time_limit),
    (6, end_the_lease_in_the_block),
    (12, acquire_and_release),
    (4, acquire_and_end),
    (4, try_to_acquire),
    (1, give_back_what_is_foreign),
    (14, cancel_somebody),
    (3, expire),
    (2, drain),
    (3, close_it),
    (1, open_it),
    (3, probe),
    (2, look_in),
    (3, resize),
    (3, suspend_for_a_while),
    (2, retain_some),
    (2, lose_a_lease),
    (3, break_down_for_a_while),
    (6, let_time_pass),
    (2, let_others_go_first),
]
OPERATIONS = [operation for _, operation in TABLE]
WEIGHTS = list(accumulate(weight for weight, _ in TABLE))


# --- the tests ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """Leave the chance of others as it was; a log of thousands of failures would cost more than the runs."""
    before = random.getstate()
    logger = logging.getLogger("connectionpools_fastapi")
    logger.disabled = True
    yield
    logger.disabled = False
    random.setstate(before)


def seeds(runs: int = RUNS) -> range:
    """Return the seeds to run: fresh ones, unless POOL_SEED says with which to begin."""
    first = int(os.environ.get("POOL_SEED") or random.SystemRandom().randrange(10**9))
    runs = int(os.environ.get("POOL_RUNS") or runs)
    print(f"POOL_SEED={first} POOL_RUNS={runs}")  # noqa: T201 - shown when the test fails
    return range(first, first + runs)


def test_random_runs_lose_nothing_and_strand_no_caller() -> None:
    seen: Counter[str] = Counter()
    runs = seeds()
    for seed in runs:
        seen += Run(seed).execute().seen
    if len(runs) >= RUNS:  # and did anything come?
        wanted = {operation.__name__ for operation in OPERATIONS}
        wanted |= {f"cancelled in {operation.__name__}" for operation in (lease_for_a_block, close_it)}
        wanted |= {
            "cancelled at the grant",
            "PoolTimeout",
            "PoolClosed",
            "ResourceUnavailable",
            "TooManyWaiting",
            "OwnError",
        }
        wanted |= {"create fails with CancelledError", "check fails with ConnectionError", "end of change"}
        assert sorted(wanted - seen.keys()) == [], "these never happened"


def test_a_run_of_the_same_seed_is_the_same_run() -> None:
    for seed in seeds(20):
        first, again, other = (Run(each).execute().trace for each in (seed, seed, seed + 1))
        assert first == again
        assert first != other


# A run that is broken off may leave a hook's coroutine that was about to be awaited.
@pytest.mark.needs_python
@pytest.mark.filterwarnings("ignore:coroutine 'MoodyBackend.hook:RuntimeWarning")
def test_a_run_that_fails_says_how_to_have_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first_come = WaitQueue.next

    def last_come(queue: WaitQueue[Any]) -> Any:
        waiter = list(queue)[-1]
        if waiter is queue.head():
            return first_come(queue)
        queue.leave(waiter)
        return waiter

    monkeypatch.setattr(WaitQueue, "next", last_come)
    overtaken = 0
    for seed in seeds(60):
        told = story_of(seed)
        if "a caller was overtaken" in told:
            overtaken += 1
            assert f"POOL_SEED={seed} POOL_RUNS=1" in told
            assert story_of(seed) == told
    assert overtaken or os.environ.get("POOL_RUNS")


def story_of(seed: int) -> str:
    try:
        Run(seed).execute()
    except Fault as fault:
        return str(fault)
    return ""
