"""faults: make the hooks of a pool fail, or take its back-end down, in a test."""

# ruff: noqa: SLF001 - it replaces the hooks of a pool for as long as it lasts

import inspect
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

import anyio
import anyio.to_thread

from .._core.policy import check_seconds
from .._core.slot import Slot
from .._runtime.engine import Engine
from ..errors import PoolClosed, PoolConfigError
from ..pool import ConnectionPool
from ._loop import run_in_loop_of

T = TypeVar("T")

Hook = Literal["create", "check", "change"]
HOOKS: tuple[Hook, ...] = ("create", "check", "change")
SATURATE_WITHIN = 30.0  # seconds


@dataclass
class _Plan:
    """What the next calls of a hook do."""

    times: float  # how many calls
    delay: float = 0.0
    error: BaseException | None = None


class faults(Generic[T]):  # noqa: N801 - a context manager that reads as a function, like `sandbox`
    """Make the hooks of a pool fail or hang on order: to test a 503 page, a retry, an alert.

    Write `with faults(db) as fault:`, in sync and in async tests. At the end of the block the hooks are the pool's
    own again, and whatever is down is up. Each method may be called from any thread.

    Example:
        ```python
        with faults(db) as fault:
            fault.down()
            assert client.get("/users").status_code == 503
            fault.up()
            assert client.get("/users").status_code == 200
        ```
    """

    def __init__(self, pool: ConnectionPool[T]) -> None:
        """Name the pool.

        Args:
            pool: The pool; `down`, `kill` and `saturated` need it open.
        """
        self._pool: ConnectionPool[T] = pool
        self._lock = threading.Lock()  # protects the plans
        self._plans: dict[Hook, list[_Plan]] = {}
        self._is_down: BaseException | None = None
        self._own: dict[str, Any] = {}
        self._engine: Engine[T]

    def __enter__(self) -> Self:
        """Begin.

        Raises:
            PoolConfigError: If faults of this pool have begun already.
        """
        engine = self._engine = self._pool._engine
        hooks = engine.hooks._hooks
        if any(isinstance(hook, _Faulty) for hook in hooks.values()):
            raise PoolConfigError(f"pool {self._pool.name!r}: it has faults already; use the ones that have begun")
        for name in HOOKS:
            own = hooks[name]
            if own is not None:
                self._own[name] = own
                hooks[name] = _Faulty(self, name, own, is_async=engine.hooks.are_async)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the pool its own hooks back."""
        self._engine.hooks._hooks.update(self._own)
        self._plans.clear()
        self.up()

    # --- hooks ----------------------------------------------------------------------------

    def fail(self, hook: Hook, *, times: float = 1, error: BaseException | None = None) -> None:
        """Make the next calls of a hook raise.

        Args:
            hook: "create", "check" or "change".
            times: How many calls; `math.inf` for all.
            error: What they raise; by default a ConnectionError.

        Raises:
            PoolConfigError: If the pool has no such hook.
        """
        self._plan(hook, _Plan(times, error=error or ConnectionError("ordered by a test")))

    def delay(self, hook: Hook, seconds: float, *, times: float = 1) -> None:
        """Make the next calls of a hook take longer.

        Args:
            hook: "create", "check" or "change".
            seconds: How much longer; a pool gives a call up after its `hook_timeout`.
            times: How many calls; `math.inf` for all.

        Raises:
            PoolConfigError: If the pool has no such hook, or `seconds` is no duration.
        """
        check_seconds(f"pool {self._pool.name!r}", "seconds", seconds, hint="as 0.5")
        self._plan(hook, _Plan(times, delay=seconds))

    def _plan(self, hook: Hook, plan: _Plan) -> None:
        if hook not in self._own:
            has = ", ".join(self._own) or "none before the block begins"
            raise PoolConfigError(f"pool {self._pool.name!r}: there is no hook {hook!r} that could fail; it has {has}")
        with self._lock:
            self._plans.setdefault(hook, []).append(plan)

    def next_of(self, hook: Hook) -> _Plan:
        """Take what a call of a hook has to do; for the hooks."""
        with self._lock:
            if self._is_down is not None and hook != "change":
                return _Plan(1, error=self._is_down)
            plans = self._plans.get(hook, [])
            if not plans:
                return _Plan(0)
            plan = plans[0]
            plan.times -= 1
            if plan.times < 1:
                plans.pop(0)
            return plan

    # --- the back-end ---------------------------------------------------------------------

    def down(self, error: BaseException | None = None) -> None:
        """Take the back-end down: each `create` and `check` raises, and no free resource is left.

        What is leased goes on; `kill` ends it. As in production, callers wait for about a second before
        the pool takes the back-end for down, and get ResourceUnavailable from then on.

        Args:
            error: What the hooks raise; by default a ConnectionError.
        """
        self._is_down = error or ConnectionError("taken down by a test")
        self._pool.expire()

    def up(self) -> None:
        """Bring the back-end back; the pool forgets that it was down, and serves the next caller."""
        was_down, self._is_down = self._is_down, None
        if was_down is not None and self._pool.status == "open":
            self._pool.suspend()
            self._pool.resume()  # which forgets failures

    async def kill(self) -> int:
        """Destroy what is leased, under the hands of its holders: their next use gets the driver's error.

        Returns:
            How many resources.

        Raises:
            PoolConfigError: If the pool is in a sandbox, which would be lost.
        """
        engine = self._engine
        if self._pool._engine is not engine or engine.hooks._hooks["clean"] is None:
            raise PoolConfigError(
                f"pool {self._pool.name!r}: nothing can be killed, since it is in a sandbox, or has no `clean`"
            )
        if not engine.is_here():
            return await anyio.to_thread.run_sync(self.kill_sync)
        slots = list(engine.inventory.taken.values())
        kill = getattr(self._pool.manager, "kill", None)
        for slot in slots:
            if kill is None:
                await engine.hooks.clean(slot.resource)
            elif inspect.iscoroutinefunction(kill):
                await kill(slot.resource)
            else:
                await anyio.to_thread.run_sync(kill, slot.resource)
        return len(slots)

    def kill_sync(self) -> int:
        """Destroy what is leased, from a plain thread; see `kill`."""
        return run_in_loop_of(self._engine, self.kill)

    # --- time -----------------------------------------------------------------------------

    def skew(self, seconds: float) -> None:
        """Move the clock of the pool on: what falls due by then, falls due now.

        So a test of `max_lifetime`, `max_idle`, `keepalive`, `check_after`, `max_hold` or a `timeout` need not sleep. A
        caller that waits in another loop than the pool's, or in a thread, and a hook go by their own time. The clock
        stays ahead after the block, since it must not go back.

        Args:
            seconds: How far.

        Raises:
            PoolConfigError: If `seconds` is no duration.
        """
        check_seconds(f"pool {self._pool.name!r}", "seconds", seconds, hint="as 1800")
        engine = self._engine
        executor = engine.executor
        clock: Any = engine.clock
        if not isinstance(clock, _AheadOf):
            clock = engine.clock = executor._clock = _AheadOf(clock)
            if executor.tokens is not None:
                executor.tokens._clock = clock
        clock.seconds += seconds
        engine.apply(executor._tick, clock())

    # --- saturation -----------------------------------------------------------------------

    @asynccontextmanager
    async def saturated(self) -> AsyncIterator[None]:
        """Hold all resources that the limit allows, so that each caller has to wait."""
        slots = await self._take_all()
        try:
            yield
        finally:
            await self._give_back(slots)

    @contextmanager
    def saturated_sync(self) -> Iterator[None]:
        """Hold all resources that the limit allows, from a plain thread; see `saturated`."""
        slots = run_in_loop_of(self._engine, self._take_all)
        try:
            yield
        finally:
            run_in_loop_of(self._engine, partial(self._give_back, slots))

    async def _take_all(self) -> list[Slot[T]]:
        engine = self._engine
        if not engine.state.is_open:
            raise PoolClosed(f"pool {self._pool.name!r}: open it first, as by the lifespan of the application")
        slots: list[Slot[T]] = []
        terms = engine.terms(SATURATE_WITHIN, "normal")  # the pool's own timeout may be shorter than a `create`
        try:
            while len(engine.inventory.taken) < engine.state.limit:
                slot = engine.take() or await engine.park(terms, None)
                slot.holder = "saturated by a test"
                slots.append(slot)
        except BaseException:
            await self._give_back(slots)
            raise
        return slots

    async def _give_back(self, slots: list[Slot[T]]) -> None:
        """Give all back, and wait until the next caller can have them."""
        engine = self._engine
        changing = [(slot, lease) for slot in slots for lease in (slot.leases,) if engine.give_back(slot)]
        for slot, lease in changing:
            await engine.wait_changed(slot, lease)


class _AheadOf:
    """A clock that is ahead of another one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.seconds = 0.0

    def __call__(self) -> float:
        return self._clock() + self.seconds


class _Faulty:
    """A hook with faults, which is called as the pool's own is."""

    def __init__(self, of: faults[Any], name: Hook, own: Callable[..., Any], *, is_async: bool) -> None:
        self._of = of
        self._name: Hook = name
        self._own = own
        self._is_async = is_async

    def __call__(self, *args: Any) -> Any:
        return self._call_async(args) if self._is_async else self._call(args)

    async def _call_async(self, args: tuple[Any, ...]) -> Any:
        plan = self._of.next_of(self._name)
        if plan.delay:
            await anyio.sleep(plan.delay)
        if plan.error is not None:
            raise plan.error
        result = self._own(*args)
        return await result if inspect.isawaitable(result) else result

    def _call(self, args: tuple[Any, ...]) -> Any:
        plan = self._of.next_of(self._name)
        if plan.delay:
            time.sleep(plan.delay)
        if plan.error is not None:
            raise plan.error
        return self._own(*args)
