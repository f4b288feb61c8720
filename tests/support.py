"""What the tests of the core share: virtual time, resources, and a back-end that keeps the books."""

import asyncio
import inspect
import selectors
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import trio
import trio.lowlevel
from trio.testing import MockClock

from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi._core.invariants import check_invariants
from connectionpools_fastapi._core.slot import T
from connectionpools_fastapi._core.waiter import Waiter

# What must never be seen: the text of an exception that a hook raises.
SECRET = "postgres://u:secret@h/db"  # noqa: S105 - no real one


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for nothing: it sets the clock forward instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:  # nothing is left but threads
            return super().select(timeout)
        events = super().select(0)
        if not events:
            self.now += timeout
        return events


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop of asyncio whose time jumps to the next timer as soon as nothing else is to be done."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def jumping(backend: str) -> tuple[str, dict[str, Any]]:
    """Return what anyio needs to run a test in virtual time."""
    if backend == "trio":
        return "trio", {"clock": MockClock(autojump_threshold=0)}
    return "asyncio", {"loop_factory": JumpingLoop}


def loop_time() -> float:
    """Return the time of the running loop, also within its callbacks."""
    return trio.current_time() if trio.lowlevel.in_trio_run() else asyncio.get_running_loop().time()


async def settled() -> None:
    """Let everything happen that can happen without time going by."""
    for _ in range(30):
        await anyio.lowlevel.checkpoint()


class Resource:
    """One of a kind that can only be told apart by identity."""

    __hash__ = None  # type: ignore[assignment] # unhashable

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_healthy: object = True  # what `check` says of it; an exception is raised
        self.uses = 0

    def __eq__(self, other: object) -> bool:
        return True

    def __repr__(self) -> str:
        return f"Resource({self.number})"


class Gate:
    """Where hooks stop while it is shut; knows which calls stand before it."""

    def __init__(self) -> None:
        self._opened: anyio.Event | None = None
        self.waiting = 0

    def shut(self) -> None:
        self._opened = anyio.Event()

    def open(self) -> None:
        assert self._opened is not None
        self._opened.set()
        self._opened = None

    async def pass_through(self) -> None:
        if self._opened is not None:
            self.waiting += 1
            try:
                await self._opened.wait()
            finally:
                self.waiting -= 1


class Backend:
    """A back-end: makes resources, keeps the books, and fails when told to.

    What it is told to raise is raised by that hook; None lets it work again.
    """

    def __init__(self) -> None:
        self.created: list[Resource] = []
        self.cleaned: list[Resource] = []
        self.calls: list[str] = []
        self.raises: dict[str, BaseException | None] = dict.fromkeys(("create", "check", "change", "clean"))
        self.gates = {name: Gate() for name in ("create", "check", "change", "clean")}

    def __getitem__(self, hook: str) -> Gate:
        return self.gates[hook]

    def fail(self, hook: str, error: BaseException | None = None) -> None:
        self.raises[hook] = error or ConnectionError(SECRET)

    def work(self, hook: str) -> None:
        self.raises[hook] = None

    def count(self, hook: str) -> int:
        return self.calls.count(hook)

    def _call(self, hook: str) -> None:
        error = self.raises[hook]
        if error is not None:
            raise error

    async def create(self) -> Resource:
        self.calls.append("create")
        await self.gates["create"].pass_through()
        self._call("create")
        resource = Resource(len(self.created))
        self.created.append(resource)
        return resource

    async def check(self, resource: Resource) -> Any:
        self.calls.append("check")
        await self.gates["check"].pass_through()
        self._call("check")
        if isinstance(resource.is_healthy, BaseException):
            raise resource.is_healthy
        return resource.is_healthy

    async def change(self, resource: Resource) -> None:
        self.calls.append("change")
        await self.gates["change"].pass_through()
        self._call("change")
        resource.uses += 1

    async def clean(self, resource: Resource) -> None:
        self.calls.append("clean")
        await self.gates["clean"].pass_through()
        self.cleaned.append(resource)
        self._call("clean")

    def pool(self, *hooks: str, **options: Any) -> ConnectionPool[Resource]:
        """Make a pool with `create`, `clean` and the hooks that are named, in the loop's own time."""
        chosen = {name: getattr(self, name) for name in ("create", "clean", *hooks)}
        return ConnectionPool(**{"clock": loop_time, **chosen, **options})


class PlainBackend:
    """As `Backend`, for pools whose hooks are `def`: of threads, and of several loops."""

    def __init__(self) -> None:
        self.created: list[Resource] = []
        self.cleaned: list[Resource] = []

    def create(self) -> Resource:
        resource = Resource(len(self.created))
        self.created.append(resource)  # atomic, as the next
        return resource

    def clean(self, resource: Resource) -> None:
        self.cleaned.append(resource)

    def change(self, resource: Resource) -> None:
        resource.uses += 1

    def pool(self, *hooks: str, **options: Any) -> ConnectionPool[Resource]:
        chosen = {name: getattr(self, name) for name in ("create", "clean", *hooks)}
        return ConnectionPool(**{**chosen, **options})


def same(left: list[Resource], right: list[Resource]) -> bool:
    """Whether both hold the same resources, in any order, by identity."""
    return sorted(map(id, left)) == sorted(map(id, right))


def check(pool: ConnectionPool[Any]) -> None:
    """Assert the invariants of a pool at rest."""
    pool._engine.apply(check_invariants, pool._engine.state, pool._engine.clock())


@asynccontextmanager
async def held(pool: ConnectionPool[T]) -> AsyncIterator[T]:
    """Hold a resource by hand, as another caller: then the test itself may wait for another one."""
    resource = await pool.acquire()
    try:
        yield resource
    finally:
        await pool.release(resource)


async def assert_nothing_is_lost(pool: ConnectionPool[Resource], backend: Backend, *, detached: int = 0) -> None:
    """Lease all there may be at once, close, and see that each one created was cleaned."""
    check(pool)
    leased = [await pool.acquire(timeout=60) for _ in range(pool.limit)]
    assert len({id(resource) for resource in leased}) == pool.limit
    check(pool)
    for resource in leased:
        await pool.release(resource)
    await pool.close()
    check(pool)
    assert pool.status == "closed"
    assert (pool.free, pool.taken, pool.creating, pool.waiting) == (0, 0, 0, 0)
    assert len(backend.created) == len(backend.cleaned) + detached
    stats = pool.stats()
    assert stats.creates == stats.cleans + stats.detached
    assert stats.acquires == stats.releases


async def outcome_of(call: Callable[[], Any]) -> Any:
    """Return what a call returns or raises."""
    try:
        result = call()
        return await result if inspect.isawaitable(result) else result
    except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
        return error


class Caller(Waiter[Resource]):
    """A parked caller that only remembers whether it was woken: for the state machine alone."""

    __slots__ = ("__weakref__", "woken")

    def __init__(self) -> None:
        super().__init__()
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1
