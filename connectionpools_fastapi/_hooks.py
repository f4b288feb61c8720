"""Hooks: where and for how long a user's `create`, `check`, `change` and `clean` run."""

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Generic

import anyio
import anyio.to_thread

from ._loop import Loop, PrivateLoop, TimeLimit
from ._policy import Policy
from .errors import HookTimeout, PoolConfigError, own
from .manager import ResourceManager, T

Create = Callable[[], T | Awaitable[T]]
Check = Callable[[T], bool | None | Awaitable[bool | None]]
Act = Callable[[T], object]
Doubt = Callable[[T], object]

# Threads that hooks may occupy at once, beyond FastAPI's own 40 for sync endpoints.
MOST_THREADS = 40

EXAMPLES = {
    "create": "create=lambda: connect(...)",
    "check": "check=lambda conn: conn.is_usable()",
    "doubtful": "doubtful=lambda conn: conn.closed",
    "change": "change=lambda conn: conn.reset()",
    "clean": "clean=lambda conn: conn.close()",
}


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
        blocking: bool,
    ) -> None:
        self._policy = policy
        self._hooks: dict[str, Callable[..., Any] | None] = {
            "create": create,
            "check": check,
            "doubtful": doubtful,
            "change": change,
            "clean": clean,
        }
        for name, hook in self._hooks.items():
            if hook is not None:
                self._validate(name, hook)
        self._async = {name for name, hook in self._hooks.items() if hook is not None and _is_async(hook)}
        self._check_doubts()
        self._blocking = blocking
        self._thread_limiter: anyio.CapacityLimiter | None = None
        self._loop: Loop | None = None
        self._time_limit: TimeLimit  # known in a loop
        # Whether resources belong to the loop: a hook is async, or what a `def` hook returned was awaited.
        self.are_async: bool = bool(self._async)

    @property
    def has_check(self) -> bool:
        """Whether a free resource has to be checked."""
        return self._hooks["check"] is not None

    @property
    def has_change(self) -> bool:
        """Whether a resource that comes back has to be changed."""
        return self._hooks["change"] is not None

    def _check_doubts(self) -> None:
        if not self.has_doubts:
            return
        if "doubtful" in self._async:
            msg = (
                f"pool {self._policy.name!r}: doubtful must not be async: it is called at each lease, and says "
                "only what is known already; what takes a round trip belongs to check"
            )
            raise PoolConfigError(msg)
        if not self.has_check:
            msg = f"pool {self._policy.name!r}: doubtful needs a check, as {EXAMPLES['check']}"
            raise PoolConfigError(msg)

    def _validate(self, name: str, hook: object) -> None:
        if not callable(hook):
            msg = f"pool {self._policy.name!r}: {name} must be callable, as {EXAMPLES[name]}; got {type(hook).__name__}"
            raise PoolConfigError(msg)
        arguments = () if name == "create" else (None,)
        if inspect.isgeneratorfunction(made := inspect.unwrap(hook)) or inspect.isasyncgenfunction(made):
            msg = (
                f"pool {self._policy.name!r}: {name} must not yield. Return the resource from create, "
                "and destroy it in clean: there is no context manager to leave"
            )
            raise PoolConfigError(msg)
        try:
            signature = inspect.signature(hook)
        except (TypeError, ValueError):  # a built-in without a signature
            return
        try:
            signature.bind(*arguments)
        except TypeError:
            takes = "no argument" if name == "create" else "one argument, the resource"
            msg = (
                f"pool {self._policy.name!r}: {name} is called with {takes}, "
                f"but its parameters are ({', '.join(signature.parameters)}); write {EXAMPLES[name]}"
            )
            raise PoolConfigError(msg) from None

    @property
    def has_doubts(self) -> bool:
        """Whether a resource has to be asked about at each lease."""
        return self._hooks["doubtful"] is not None

    def must_be_awaited(self) -> PoolConfigError:
        """Say that async hooks need an event loop to be opened in."""
        which = ", ".join(sorted(self._async)) or "what a hook returns"
        msg = (
            f"pool {self._policy.name!r}: {which} must be awaited, but the pool is opened from a plain thread. "
            "Open it with `async with`, or use hooks and a driver that are not async"
        )
        return own(PoolConfigError(msg))

    def enter_loop(self, loop: Loop) -> None:
        """Get ready for the loop in which the pool is being opened."""
        self._loop = loop
        self._time_limit = loop.time_limit(self._policy.hook_timeout)
        self._thread_limiter = None  # belongs to a loop

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
            if isinstance(error, HookTimeout) or not isinstance(error, Exception):  # it was cut off
                delivery.refuse()
            raise
        if resource is None:
            msg = f"pool {self._policy.name!r}: create returned None; return the resource, as {EXAMPLES['create']}"
            raise own(PoolConfigError(msg))
        return resource

    async def check(self, resource: T) -> bool:
        """Say whether a resource may be used; raises what the hook raises."""
        if not self.has_check:  # another thread has put back a fresh one as the state looked for others
            return True
        verdict = await self._call("check", partial(self._hook("check"), resource))
        return verdict is None or bool(verdict)

    def doubt(self, resource: T) -> bool:
        """Say whether a resource has to be checked before its next use; a failure to say so says it."""
        try:
            return bool(self._hook("doubtful")(resource))
        except Exception:  # noqa: BLE001 - the check that follows has the last word
            return True

    def change(self, resource: T) -> Awaitable[object]:
        """Make a resource ready for its next user; raises what the hook raises."""
        return self._call("change", partial(self._hook("change"), resource))

    def changes_in_loop(self) -> bool:
        """Whether `change` is `def` and called in the loop: then it may be over as soon as it is called."""
        return "change" not in self._async and not self._on_thread("change")

    def begin_change(self, resource: T) -> Callable[[], Awaitable[object]] | None:
        """Call a `change` that is `def`, in the loop; returns what waits for the rest, if there is one.

        Raises:
            Exception: What the hook raises.
        """
        result = contextvars.Context().run(self._hook("change"), resource)  # as in a task of the pool's own
        return partial(self._call, "change", lambda: result) if inspect.isawaitable(result) else None

    async def clean(self, resource: T) -> None:
        """Destroy a resource; raises what the hook raises."""
        if self._hooks["clean"] is not None:
            await self._call("clean", partial(self._hook("clean"), resource))

    def _hook(self, name: str) -> Callable[..., Any]:
        hook = self._hooks[name]
        assert hook is not None  # noqa: S101 - the state asks for no change where there is none
        return hook

    def _on_thread(self, name: str) -> bool:
        # What an event loop made must not be touched from a thread, so the other hooks of such
        # resources run in the loop, whether `def` or `async def`.
        of_loop = name in self._async or (self.are_async and name != "create")
        return self._blocking and not of_loop

    async def _call(self, name: str, hook: Callable[[], Any]) -> Any:
        with self._time_limit():
            return await (hook() if name in self._async else self._run(name, hook))
        msg = f"{name} took longer than hook_timeout={self._policy.hook_timeout:g} s"  # its reporter names the pool
        raise own(HookTimeout(msg))

    async def _run(self, name: str, hook: Callable[[], Any]) -> Any:
        if self._on_thread(name):
            result = await self._run_on_thread(hook)
        else:
            result = hook()
        if inspect.isawaitable(result):
            if isinstance(self._loop, PrivateLoop):
                _dispose(result)
                raise self.must_be_awaited()
            self.are_async = True
            result = await result
        return result

    async def _run_on_thread(self, hook: Callable[[], Any]) -> Any:
        has_begun = False

        def run() -> tuple[Any]:  # a tuple, since trio takes a coroutine that a thread returns for a mistake
            nonlocal has_begun
            has_begun = True
            return (hook(),)

        try:
            (result,) = await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._threads())
        except RuntimeError:
            if has_begun:
                raise
            # No thread can be started any more: the interpreter is at its end.
            result = hook()  # pragma: no cover - in a process of its own, see tests/test_garbage.py
        return result

    def _threads(self) -> anyio.CapacityLimiter:
        if self._thread_limiter is None:
            self._thread_limiter = anyio.CapacityLimiter(MOST_THREADS)
        return self._thread_limiter


class _Delivery(Generic[T]):
    """Sees to it that what `create` makes reaches the pool or, too late, `on_late`.

    Too late is what a thread still makes after it was given up, and what the awaitable
    that a `def` hook returned may have begun to make, as drivers return their connection
    itself to be awaited.
    """

    def __init__(self, on_late: Callable[[T], None]) -> None:
        self._on_late = on_late
        self._lock = threading.Lock()  # protects the two below
        self._refused = False
        self._created: list[T] = []

    def wrap(self, hook: Callable[[], T]) -> Callable[[], T]:
        """Have `hook` report what it made."""

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
        """Take nothing any more; what is there already nobody has seen."""
        with self._lock:
            self._refused = True
            created = list(self._created)
        for resource in created:
            self._turn_away(resource)

    def _turn_away(self, resource: T) -> None:
        if inspect.iscoroutine(resource) or isinstance(resource, asyncio.Future):  # and no resource itself
            _dispose(resource)
        elif resource is not None:
            self._on_late(resource)


def _dispose(awaitable: Awaitable[Any]) -> None:
    with suppress(AttributeError, RuntimeError, ValueError):
        awaitable.close()  # type: ignore[attr-defined] # a coroutine: it must not warn that nobody awaited it


def _is_async(hook: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(hook) or inspect.iscoroutinefunction(getattr(type(hook), "__call__", None))  # noqa: B004


def hooks_of(manager: ResourceManager[T]) -> dict[str, Any]:
    """Return a manager's hooks by name; None for those that it did not override."""
    return {
        name: getattr(manager, name)
        if getattr(getattr(manager, name), "__func__", None) is not getattr(ResourceManager, name)
        else None
        for name in EXAMPLES
    }
