"""Hooks: where and for how long a user's `create`, `check`, `change` and `clean` run."""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Generic

import anyio
import anyio.lowlevel
import anyio.to_thread
from anyio.lowlevel import RunVar

from .._core.policy import Policy
from .._core.slot import T, Verdict
from ..errors import HookTimeout, PoolConfigError, own
from .callables import is_async, misfit, yields
from .current import current_loop
from .hook_context import HOOK_CONTEXT
from .loan import Loan
from .loop import Loop, TimedBlock, TimeLimit
from .on_asyncio import PrivateLoop
from .stepper import Stepper
from .storm import Failures
from .time_limit import AsyncioTimeLimit

Create = Callable[[], T | Awaitable[T]]
Check = Callable[[T], bool | None | Awaitable[bool | None]]
Act = Callable[[T], object]
Doubt = Callable[[T], object]
Lend = Callable[[T, Loan], T]
Broken = Callable[[T, Exception], Verdict | None]

# Threads that hooks may occupy at once, beyond FastAPI's own 40 for sync endpoints.
MOST_THREADS = 40
# The limiter of a `prepare` that runs on a thread: one for each loop whose tasks lease, which need not be the pool's.
_THREADS = RunVar[anyio.CapacityLimiter]("connectionpools_fastapi_prepare_threads")

EXAMPLES = {
    "create": "create=lambda: connect(...)",
    "check": "check=lambda conn: conn.is_usable()",
    "doubtful": "doubtful=lambda conn: conn.closed",
    "change": "change=lambda conn: conn.reset()",
    "clean": "clean=lambda conn: conn.close()",
    "lend": "lend=lambda conn, loan: Guarded(conn, loan)",
    "broken": 'broken=lambda conn, error: "discard" if isinstance(error, OSError) else "keep"',
}
# Hooks that only managers have, around the `prepare` of a request.
FOR_PREPARE = ("prepared", "refuse_prepare")
# The arguments of each hook, as a message names them.
ARGUMENTS = {
    "create": (),
    "lend": ("the resource", "the loan"),
    "broken": ("the resource", "the error"),
}
# Hooks that the pool calls as a resource is leased or given back, so that it cannot wait for them.
PLAIN = {
    "doubtful": (
        "it is called at each lease, and says only what is known already; what takes a round trip belongs to check"
    ),
    "lend": "it is called at each lease, and only makes what the caller gets",
    "broken": "it is called as errors happen, and only says what they mean",
}
VERDICTS: frozenset[Verdict] = frozenset(("keep", "check", "discard", "expire"))


class Hooks(Generic[T]):
    """Calls hooks: `async def` in the loop, `def` on a worker thread or inline."""

    def __init__(
        self,
        policy: Policy,
        *,
        create: Create[T],
        check: Check[T] | None,
        doubtful: Doubt[T] | None,
        change: Act[T] | None,
        clean: Act[T] | None,
        lend: Lend[T] | None = None,
        broken: Broken[T] | None = None,
        prepared: Act[T] | None = None,
        refuse_prepare: Callable[[], str | None] | None = None,
        blocking: bool,
    ) -> None:
        self._policy = policy
        self._hooks: dict[str, Callable[..., Any] | None] = {
            "create": create,
            "check": check,
            "doubtful": doubtful,
            "change": change,
            "clean": clean,
            "lend": lend,
            "broken": broken,
        }
        for name, hook in self._hooks.items():
            if hook is not None:
                self._validate(name, hook)
        self.has_check = check is not None
        self.has_change = change is not None
        self.has_doubts = doubtful is not None  # whether `doubtful` is asked at each lease
        self.judges = broken is not None  # whether `broken` is asked about errors of a lease
        self.lend = lend  # makes what the caller gets; None if the caller gets the resource itself
        self._hooks["prepared"] = prepared
        self._refuse_prepare = refuse_prepare
        self._async = {name for name, hook in self._hooks.items() if hook is not None and is_async(hook)}
        self._check_plain()
        self._blocking = blocking
        self._thread_limiter: anyio.CapacityLimiter | None = None
        self._loop: Loop | None = None
        self.failures = Failures(policy.name)
        self._time_limit: TimeLimit  # set by `enter_loop`
        # Calls of `create` that the loop waits for; True for a call that runs on a thread.
        self._creations: dict[TimedBlock, bool] = {}
        self._wants_none = False  # whether the pool closes, so that a new resource would have no user
        self.steps_change = False  # whether `change` may run without a task, in the loop of the pool
        # Whether resources belong to the loop: a hook is async, or what a `def` hook returned was awaited.
        self.are_async: bool = bool(self._async)

    def _check_plain(self) -> None:
        for name, reason in PLAIN.items():
            if name in self._async:
                msg = f"pool {self._policy.name!r}: {name} must not be async: {reason}"
                raise PoolConfigError(msg)
        if self.has_doubts and not self.has_check:
            msg = f"pool {self._policy.name!r}: doubtful needs a check, as {EXAMPLES['check']}"
            raise PoolConfigError(msg)

    def _validate(self, name: str, hook: object) -> None:
        if not callable(hook):
            msg = f"pool {self._policy.name!r}: {name} must be callable, as {EXAMPLES[name]}; got {type(hook).__name__}"
            raise PoolConfigError(msg)
        if yields(hook):
            msg = (
                f"pool {self._policy.name!r}: {name} must not yield. Return the resource from create, "
                "and destroy it in clean: there is no context manager to leave"
            )
            raise PoolConfigError(msg)
        arguments = ARGUMENTS.get(name, ("the resource",))
        if (parameters := misfit(hook, *arguments)) is not None:
            number = ("no argument", "one argument, ", "two arguments, ")[len(arguments)]
            takes = number + " and ".join(arguments)
            msg = (
                f"pool {self._policy.name!r}: {name} is called with {takes}, "
                f"but its parameters are ({parameters}); write {EXAMPLES[name]}"
            )
            raise PoolConfigError(msg)

    def must_be_awaited(self) -> PoolConfigError:
        """Say that a pool with async hooks must be opened in an event loop."""
        which = ", ".join(sorted(self._async)) or "what a hook returns"
        msg = (
            f"pool {self._policy.name!r}: {which} must be awaited, but the pool is opened from a plain thread. "
            "Open it with `async with`, or use hooks and a driver that are not async"
        )
        return own(PoolConfigError(msg))

    def enter_loop(self, loop: Loop) -> None:
        """Prepare for the loop in which the pool is being opened."""
        self._loop = self.failures.loop = loop
        self._time_limit = loop.time_limit(self._policy.hook_timeout)
        self.steps_change = _needs_no_task(self._hooks["change"]) and isinstance(self._time_limit, AsyncioTimeLimit)
        self._thread_limiter = None  # belongs to a loop
        self._creations.clear()
        self._wants_none = False

    def give_up_creations(self) -> None:
        """Cancel each `create` that can be cancelled; one on a thread goes on, and is awaited. From the pool's loop."""
        self._wants_none = True
        for block, is_on_thread in tuple(self._creations.items()):
            if not is_on_thread:
                block.cancel()

    def abandon_creations(self) -> int:
        """Stop waiting for `create`; return how many go on, on threads. From the pool's loop."""
        on_threads = [block for block, is_on_thread in self._creations.items() if is_on_thread]
        for block in on_threads:
            block.cancel()
        return len(on_threads)

    async def create(self, on_late: Callable[[T], None]) -> T:
        """Make a resource; one that is finished too late is handed to `on_late`.

        Raises:
            HookTimeout: If it takes longer than `hook_timeout`.
            PoolConfigError: If it returns None.
        """
        delivery = _Delivery(on_late)
        try:
            resource: T = await self._call("create", delivery.wrap(self._hook("create")))
        except BaseException as error:
            if isinstance(error, HookTimeout) or not isinstance(error, Exception):  # the call was cut off
                delivery.refuse()
            raise
        if resource is None:
            msg = f"pool {self._policy.name!r}: create returned None; return the resource, as {EXAMPLES['create']}"
            raise own(PoolConfigError(msg))
        return resource

    async def check(self, resource: T) -> bool:
        """Say whether a resource may be used; raises what the hook raises."""
        if not self.has_check:  # another thread put back a fresh slot while the state looked for stale ones
            return True
        verdict = await self._call("check", partial(self._hook("check"), resource))
        return verdict is None or bool(verdict)

    def doubt(self, resource: T) -> bool:
        """Say whether a resource has to be checked before its next use; True also if the hook raises."""
        try:
            return bool(self._hook("doubtful")(resource))
        except Exception:  # noqa: BLE001 - the check that follows decides
            return True

    def broken(self, resource: T, error: Exception) -> Verdict:
        """Say what an error means for a resource; "discard" if the hook raises."""
        try:
            verdict = self._hook("broken")(resource, error) or "keep"
        except Exception as failure:  # noqa: BLE001 - the caller has to get the judged error, not this one
            self.failures.note("broken", failure)
            return "discard"
        if verdict not in VERDICTS:
            kind = type(verdict).__name__
            line = f"broken must return 'keep', 'check', 'discard', 'expire' or None; got {kind}"
            self.failures.say("broken", kind, line)
            return "discard"
        return verdict

    def change(self, resource: T) -> Awaitable[object]:
        """Make a resource ready for its next user; raises what the hook raises."""
        return self._call("change", partial(self._hook("change"), resource))

    def changes_in_loop(self) -> bool:
        """Whether `change` is `def` and called in the loop: then it may be over when the call returns."""
        return "change" not in self._async and not self._on_thread("change")

    def begin_change(self, resource: T) -> Awaitable[object] | None:
        """Call a `change` that is `def`, in the loop; returns the rest, if there is one.

        Raises:
            Exception: What the hook raises.
        """
        result = HOOK_CONTEXT.copy().run(self._hook("change"), resource)  # as in a task of the pool's own
        return result if inspect.isawaitable(result) else None

    def finish_change(self, rest: Awaitable[object]) -> Awaitable[object]:
        """Await the rest of a `change`; raises what it raises."""
        return self._call("change", lambda: rest)

    def step_change(self, resource: T, on_end: Callable[[BaseException | None, bool], None]) -> bool:
        """Run a `change` without a task; `on_end` gets its error, and whether it has taken too long. False if not."""
        hook = self._hook("change")
        if not _needs_no_task(hook):  # tests may have put another one in its place
            return False
        Stepper(hook(resource), self._time_limit, on_end)  # type: ignore[arg-type] # see `enter_loop`
        return True

    def refuse_prepare(self) -> str | None:
        """Say why a request may not prepare what it leases; None if it may."""
        if not self.has_change:
            return "there is no change, which would undo what prepare sets before the next lease. Write change=..."
        return None if self._refuse_prepare is None else self._refuse_prepare()

    async def prepare(self, lent: T, act: Act[T]) -> None:
        """Call the `prepare` of a request, in the caller's task, on what the caller gets; raises what it raises.

        Raises:
            PoolConfigError: If what it sets would be left for the next lease.
            HookTimeout: If it takes longer than `hook_timeout`.
        """
        if (reason := self.refuse_prepare()) is not None:
            msg = f"pool {self._policy.name!r}: prepare is refused: {reason}"
            raise PoolConfigError(msg)
        loop = current_loop()
        assert loop is not None  # noqa: S101 - a task runs this
        with loop.time_limit(self._policy.hook_timeout)():  # the caller's loop may be another than the pool's
            await self._act(act, lent)
            if self._hooks["prepared"] is not None:
                await self._act(self._hooks["prepared"], lent)
            return
        msg = f"pool {self._policy.name!r}: prepare took longer than hook_timeout={self._policy.hook_timeout:g} s"
        raise HookTimeout(msg)

    async def _act(self, act: Act[T], lent: T) -> None:
        if self._blocking and not self.are_async and not is_async(act):
            limiter = _THREADS.get(None) or anyio.CapacityLimiter(MOST_THREADS)
            _THREADS.set(limiter)
            result = await self._run_on_thread(partial(act, lent), limiter)
        else:
            result = act(lent)
        if inspect.isawaitable(result):
            await result

    async def clean(self, resource: T) -> None:
        """Destroy a resource; raises what the hook raises."""
        if self._hooks["clean"] is not None:
            await self._call("clean", partial(self._hook("clean"), resource))

    def _hook(self, name: str) -> Callable[..., Any]:
        hook = self._hooks[name]
        assert hook is not None  # noqa: S101 - the state asks only for hooks that exist
        return hook

    def _on_thread(self, name: str) -> bool:
        # A thread must not touch a resource that an event loop made, so the other hooks of such
        # resources run in the loop, whether `def` or `async def`.
        of_loop = name in self._async or (self.are_async and name != "create")
        return self._blocking and not of_loop

    def cleans_on_threads(self) -> bool:
        """Whether `clean` may be called on a thread."""
        return self._hooks["clean"] is None or self._on_thread("clean")

    def begin_clean(self, resource: T) -> Callable[[], Awaitable[object]] | None:
        """Call a `clean` that is `def`, on this thread; returns a call that awaits the rest in the loop, if any.

        Raises:
            Exception: What the hook raises.
        """
        result = self._hooks["clean"](resource) if self._hooks["clean"] is not None else None
        return partial(self._call, "clean", lambda: result) if inspect.isawaitable(result) else None

    async def _call(self, name: str, hook: Callable[[], Any]) -> Any:
        block = self._time_limit()
        with block:
            if name == "create" and self._wants_none:
                block.cancel()
                await anyio.lowlevel.checkpoint()
            if name in self._async:
                return await (hook() if name != "create" else self._wait_for(name, hook, block))
            return await self._run(name, hook, block)
        if name == "create" and self._wants_none:
            raise own(HookTimeout("create was given up, since the pool closes"))
        raise self.too_long(name)

    def too_long(self, name: str) -> HookTimeout:
        """Say that a hook has taken too long; the log line names the pool."""
        return own(HookTimeout(f"{name} took longer than hook_timeout={self._policy.hook_timeout:g} s"))

    async def _wait_for(
        self, name: str, hook: Callable[[], Awaitable[Any]], block: TimedBlock, *, is_on_thread: bool = False
    ) -> Any:
        if name != "create":
            return await hook()
        self._creations[block] = is_on_thread
        try:
            return await hook()
        finally:
            self._creations.pop(block, None)  # if the pool was opened again, it is gone already

    async def _run(self, name: str, hook: Callable[[], Any], block: TimedBlock) -> Any:
        if self._on_thread(name):
            result = await self._wait_for(
                name, lambda: self._run_on_thread(hook, self._threads()), block, is_on_thread=True
            )
        else:
            result = hook()
        if inspect.isawaitable(result):
            if isinstance(self._loop, PrivateLoop):
                _dispose(result)
                raise self.must_be_awaited()
            self.are_async = True
            made = result
            result = await self._wait_for(name, lambda: made, block)
        return result

    async def _run_on_thread(self, hook: Callable[[], Any], limiter: anyio.CapacityLimiter) -> Any:
        has_begun = False

        def run() -> tuple[Any]:  # a tuple, since trio raises if a thread returns a coroutine
            nonlocal has_begun
            has_begun = True
            return (hook(),)

        try:
            (result,) = await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=limiter)
        except RuntimeError:
            if has_begun:
                raise
            # No thread can be started any more: the interpreter is ending.
            result = hook()  # pragma: no cover - in a process of its own, see tests/runtime/test_garbage.py
        finally:
            del run  # compiled, it would keep itself alive, and with it what it made, until the collector comes
        return result

    def _threads(self) -> anyio.CapacityLimiter:
        if self._thread_limiter is None:
            self._thread_limiter = anyio.CapacityLimiter(MOST_THREADS)
        return self._thread_limiter


class _Delivery(Generic[T]):
    """Brings what `create` makes to the pool or, if it is too late, to `on_late`.

    Too late is a resource that a thread makes after the pool has given it up, and one that an
    awaitable, returned by a `def` hook, may have begun to make: some drivers return the
    connection itself as the awaitable.
    """

    def __init__(self, on_late: Callable[[T], None]) -> None:
        self._on_late = on_late
        self._lock = threading.Lock()  # protects the two below
        self._refused = False
        self._created: list[T] = []

    def wrap(self, hook: Callable[[], T]) -> Callable[[], T]:
        """Make `hook` report what it made."""

        def call() -> T:
            resource = hook()
            with self._lock:
                late = self._refused
                self._created.append(resource)
            if late:
                self._turn_away(resource)
            return resource

        return call

    def refuse(self) -> None:
        """Accept nothing more, and turn away what was made but not delivered."""
        with self._lock:
            self._refused = True
            created = list(self._created)
        for resource in created:
            self._turn_away(resource)

    def _turn_away(self, resource: T) -> None:
        if inspect.iscoroutine(resource) or isinstance(resource, asyncio.Future):  # and so not a resource itself
            _dispose(resource)
        elif resource is not None:
            self._on_late(resource)


def _needs_no_task(change: object) -> bool:
    return getattr(change, "needs_no_task", False)


def _dispose(awaitable: Awaitable[Any]) -> None:
    with suppress(AttributeError, RuntimeError, ValueError):
        awaitable.close()  # type: ignore[attr-defined] # a coroutine: it must not warn that it was never awaited
