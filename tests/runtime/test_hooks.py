"""Hooks: in whatever form they are written, where they run, and what happens when they fail."""

import asyncio
import itertools
import logging
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from connectionpools_fastapi import ConnectionPool, HookTimeout, PoolError, ResourceManager, ResourceUnavailable
from connectionpools_fastapi._runtime.caller import current_task
from connectionpools_fastapi._runtime.holders import name_of
from tests.support import SECRET, Backend, Resource, assert_nothing_is_lost, loop_time, outcome_of, settled

pytestmark = pytest.mark.anyio

virtual_time = pytest.mark.virtual_time

SAFETY = 60  # seconds after which a thread that was forgotten goes on


class AsyncCallable:
    """An object with `async def __call__`."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self._hook = hook

    async def __call__(self, *arguments: Any) -> Any:
        return await self._hook(*arguments)


class PlainCallable(AsyncCallable):
    """An object whose `__call__` returns an awaitable."""

    def __call__(self, *arguments: Any) -> Any:
        return self._hook(*arguments)


class Later(Awaitable[Any]):
    """An awaitable that is no coroutine, as some drivers return it."""

    def __init__(self, coroutine: Any) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Any:
        return self._coroutine.__await__()


def plain(hook: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        return hook(*arguments)

    return call


FORMS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "async def": lambda hook: hook,
    "def that returns a coroutine": plain,
    "def that returns an awaitable": lambda hook: lambda *arguments: Later(hook(*arguments)),
    "partial": partial,
    "partial of a partial": lambda hook: partial(partial(hook)),
    "object with async def": AsyncCallable,
    "object with def": PlainCallable,
    "partial of an object": lambda hook: partial(AsyncCallable(hook)),
}


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("form", FORMS)
async def test_a_hook_may_be_written_in_any_form(form: str, blocking: bool) -> None:  # noqa: FBT001
    backend = Backend()
    hooks = {name: FORMS[form](getattr(backend, name)) for name in ("create", "check", "change", "clean")}
    async with backend.pool(**hooks, limit=2, check_after=0, blocking=blocking) as pool:
        for _ in range(3):
            async with pool.lease() as resource:
                assert isinstance(resource, Resource)
        assert resource.uses == 3
        assert backend.count("check") == 2
        resource.is_healthy = False
        async with pool.lease() as another:
            assert another is not resource
        await assert_nothing_is_lost(pool, backend)


@pytest.mark.parametrize(("form", "at_first"), [(plain, False), (lambda hook: hook, True)])
async def test_pool_says_whether_it_belongs_to_a_loop(form: Callable[..., Any], at_first: bool) -> None:  # noqa: FBT001
    """A `def` that returns an awaitable shows it only once it was called."""
    pool = ConnectionPool(create=form(Backend().create))
    assert pool.belongs_to_loop is at_first
    async with pool, pool.lease():
        assert pool.belongs_to_loop
    assert not ConnectionPool(create=lambda: Resource(0)).belongs_to_loop


@pytest.mark.parametrize("blocking", [True, False])
async def test_def_hooks_run_on_threads_unless_they_do_not_block(blocking: bool) -> None:  # noqa: FBT001
    here = threading.get_ident()
    where: dict[str, int] = {}

    def note(name: str, result: Any, *_: Any) -> Any:
        where[name] = threading.get_ident()
        return result

    pool: ConnectionPool[Resource] = ConnectionPool(
        create=lambda: note("create", Resource(0)),
        check=partial(note, "check", True),  # noqa: FBT003
        change=partial(note, "change", None),
        clean=partial(note, "clean", None),
        check_after=0,
        blocking=blocking,
    )
    async with pool:
        async with pool.lease():
            pass
        async with pool.lease():
            pass
    assert sorted(where) == ["change", "check", "clean", "create"]
    assert all((thread == here) != blocking for thread in where.values())


async def test_a_class_may_be_what_creates() -> None:
    class Connection:
        created_in = 0

        def __init__(self) -> None:
            self.created_in = threading.get_ident()

        async def __call__(self) -> None:
            """Not what creates, though it is there."""

    pool = ConnectionPool(create=Connection)
    async with pool, pool.lease() as connection:
        assert connection.created_in != threading.get_ident(), "it blocks, as each def hook may"


async def test_manager_may_override_only_some_hooks() -> None:
    """The hooks that it leaves out cost nothing."""

    class Manager(ResourceManager[Resource]):
        def __init__(self) -> None:
            self.changed: list[Resource] = []

        async def create(self) -> Resource:
            return Resource(0)

        def change(self, resource: Resource) -> None:
            self.changed.append(resource)

    manager = Manager()
    pool = ConnectionPool(manager, check_after=0)
    async with pool:
        async with pool.lease() as resource:
            pass
        async with pool.lease():
            assert manager.changed == [resource]
    assert not pool._engine.hooks.has_check
    assert pool.manager is manager
    assert pool.stats().cleans == 1


async def test_the_hooks_of_a_manager_may_be_set_on_it_too() -> None:
    class Manager(ResourceManager[Resource]):
        def __init__(self, cleaned: list[Resource]) -> None:
            self.clean = cleaned.append  # type: ignore[method-assign, assignment]

        def create(self) -> Resource:
            return Resource(0)

    cleaned: list[Resource] = []
    pool = ConnectionPool(Manager(cleaned))
    async with pool, pool.lease() as resource:
        pass
    assert cleaned == [resource]


# --- outside of the lock ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async def", "def on a thread", "def inline"])
async def test_hooks_may_use_their_own_pool(kind: str) -> None:
    """Hooks never run under the pool's lock."""
    seen: list[str] = []

    def use(name: str, result: Any, *_: Any) -> Any:
        pool.stats()
        pool.holders()
        repr(pool)
        if pool.status == "open" and kind != "def on a thread":
            resource = pool.try_acquire()
            if resource is not None:
                seen.append("leased")
                pool.discard(resource)
        seen.append(name)
        return result

    def hook(name: str, result: Any = None) -> Any:
        async def call(*_: Any) -> Any:
            await anyio.lowlevel.checkpoint()
            return use(name, result)

        return call if kind == "async def" else partial(use, name, result)

    numbers = iter(range(100))
    pool: ConnectionPool[Any] = ConnectionPool(
        create=(lambda: Resource(next(numbers))) if kind != "async def" else hook("create", Resource(0)),
        check=hook("check", result=True),
        change=hook("change"),
        clean=hook("clean"),
        limit=1 if kind == "async def" else 3,
        check_after=0,
        blocking=kind != "def inline",
    )
    with anyio.fail_after(10):
        async with pool:
            for _ in range(2):
                async with pool.lease():
                    pass
    assert {"check", "change", "clean"} <= set(seen)


async def test_what_names_a_holder_is_not_asked_under_the_lock() -> None:
    backend = Backend()

    class Curious:
        def __str__(self) -> str:
            return f"curious about {pool.stats().taken}"

        def __bool__(self) -> bool:
            raise AssertionError("no caller asked for that")

    async with backend.pool(limit=1) as pool:
        async with pool.lease(holder=Curious()):
            assert [holder.name for holder in pool.holders()] == ["curious about 1"]
        async with pool.lease():
            assert [holder.name for holder in pool.holders()] == [name_of(current_task())]


# --- what fails ----------------------------------------------------------------------------------


@virtual_time
async def test_failing_change_discards_resource_unnoticed(caplog: pytest.LogCaptureFixture) -> None:
    backend = Backend()
    async with backend.pool("change", limit=1) as pool:
        backend.fail("change")
        async with pool.lease() as first:
            pass
        with pytest.raises(KeyError):
            async with pool.lease() as second:
                raise KeyError
        assert second is not first
        assert pool.stats().discards["change"] == 2
        assert caplog.messages == ["pool 'default': change failed with ConnectionError"], "the second is counted"
        backend.work("change")
        await assert_nothing_is_lost(pool, backend)


async def test_change_that_ends_in_its_call_needs_no_task() -> None:
    ran_in: list[object] = []

    def change(_: Resource) -> Awaitable[None] | None:
        ran_in.append(current_task())
        return anyio.lowlevel.checkpoint() if len(ran_in) == 3 else None

    backend = Backend()
    async with ConnectionPool(create=backend.create, clean=backend.clean, change=change, limit=1) as pool:
        for _ in range(3):
            async with pool.lease():
                pass
            assert (pool.free, pool.taken) == (1, 0), "`release` waits for change"
        assert ran_in == [current_task()] * 3
        await assert_nothing_is_lost(pool, backend)


async def test_change_that_fails_in_its_call_costs_no_slot(caplog: pytest.LogCaptureFixture) -> None:
    """The resource is lost."""
    errors: list[BaseException] = [ValueError(SECRET), asyncio.CancelledError(), KeyboardInterrupt()]

    def change(_: Resource) -> None:
        if errors:
            raise errors.pop(0)

    backend = Backend()
    async with ConnectionPool(create=backend.create, clean=backend.clean, change=change, limit=1) as pool:
        for _ in range(2):
            async with pool.lease():
                pass
        with pytest.raises(KeyboardInterrupt):
            async with pool.lease():
                pass
        async with pool.lease() as resource:
            assert resource.number == 3
        assert pool.stats().discards["change"] == 3
        await assert_nothing_is_lost(pool, backend)
    assert [message for message in caplog.messages if "change failed" in message] == [
        "pool 'default': change failed with ValueError",
        "pool 'default': change failed with CancelledError",
        "pool 'default': change failed with KeyboardInterrupt",
    ]


@virtual_time
async def test_failing_change_strands_no_waiter() -> None:
    backend = Backend()
    async with backend.pool("change", limit=1) as pool:
        held = await pool.acquire()
        backend.fail("change")
        served: list[Any] = []

        async def call() -> None:
            async with pool.lease(timeout=None) as resource:
                served.append(resource)

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(call)
            await settled()
            await pool.release(held)
        assert [resource.number for resource in served] == [1, 2, 3]
        backend.work("change")
        await assert_nothing_is_lost(pool, backend)


@virtual_time
async def test_waiter_need_not_wait_for_running_clean() -> None:
    backend = Backend()
    async with backend.pool("change", limit=1) as pool:
        held = await pool.acquire()
        backend.fail("change")
        backend["clean"].shut()
        served: list[Any] = []

        async def call() -> None:
            served.append(await pool.acquire(timeout=None))

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await settled()
            await pool.release(held)
            await settled()
            assert backend["clean"].waiting == 1
            assert len(served) == 1
        backend.work("change")
        backend["clean"].open()
        await pool.release(served[0])
        await assert_nothing_is_lost(pool, backend)


@virtual_time
async def test_when_clean_raises_the_slot_is_free_again(caplog: pytest.LogCaptureFixture) -> None:
    backend = Backend()
    backend.fail("clean")
    async with backend.pool(limit=1) as pool:
        pool.discard(await pool.acquire())
        await pool.release(await pool.acquire())
        await pool.drain()
        assert pool.stats().clean_failures == 2
        await assert_nothing_is_lost(pool, backend)
    first, more, _ = caplog.messages
    assert first == "pool 'default': clean failed with ConnectionError"
    assert more.startswith(f"{len(backend.cleaned) - 1} more failures of clean in pool 'default'")


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), BaseExceptionGroup("", [SystemExit(1)])])
@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
@virtual_time
async def test_whatever_a_hook_raises_does_not_bring_trio_down(error: BaseException) -> None:
    backend = Backend()
    async with backend.pool("change", limit=1) as pool:
        for hook in ("create", "change", "clean"):
            backend.fail(hook, error)
        with pytest.raises(ResourceUnavailable):
            await pool.acquire()
        backend.work("create")
        await anyio.sleep(1)
        async with pool.lease():
            pass
        await settled()
        assert pool.stats().discards["change"] == 1
        backend.work("change")
        backend.work("clean")
        await assert_nothing_is_lost(pool, backend)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@virtual_time
async def test_hook_that_raises_own_cancellation_loses_no_slot() -> None:
    backend = Backend()
    async with backend.pool("check", "change", limit=1, check_after=0) as pool:
        backend.fail("create", asyncio.CancelledError())
        with pytest.raises(ResourceUnavailable):
            await pool.acquire()
        backend.work("create")
        await anyio.sleep(1)
        backend.fail("change", asyncio.CancelledError())
        async with pool.lease():
            pass
        backend.work("change")
        async with pool.lease():
            pass
        await anyio.sleep(1)
        backend.fail("check", asyncio.CancelledError())
        backend.fail("clean", asyncio.CancelledError())
        async with pool.lease(timeout=None):
            pass
        backend.work("check")
        backend.work("clean")
        await assert_nothing_is_lost(pool, backend)


# --- time ------------------------------------------------------------------------------------------


@virtual_time
@pytest.mark.parametrize("hook", ["check", "change", "clean"])
async def test_an_async_hook_has_hook_timeout_seconds(hook: str, caplog: pytest.LogCaptureFixture) -> None:
    backend = Backend()
    async with backend.pool("check", "change", limit=1, check_after=0, hook_timeout=3) as pool:
        async with pool.lease():
            pass
        await anyio.sleep(1)
        backend[hook].shut()
        began = loop_time()
        async with pool.lease() as resource:
            if hook == "clean":
                pool.discard(resource)
        await anyio.sleep(3 - (loop_time() - began))
        await settled()
        assert caplog.messages == [f"pool 'default': {hook} failed with {hook} took longer than hook_timeout=3 s"]
        backend[hook].open()
        if hook == "clean":
            backend.cleaned.append(resource)  # it was begun
        await assert_nothing_is_lost(pool, backend)


class Workshop:
    """`def create` on threads, the first of which stops until it is let go on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.first_is_cleaned = threading.Event()
        self.numbers = itertools.count()
        self.cleaned: list[Resource] = []

    def create(self) -> Resource:
        resource = Resource(next(self.numbers))
        if resource.number == 0:
            self.go_on.wait(SAFETY)
        return resource

    def clean(self, resource: Resource) -> None:
        self.cleaned.append(resource)
        if resource.number == 0:
            self.first_is_cleaned.set()


async def test_what_a_thread_creates_too_late_is_cleaned(caplog: pytest.LogCaptureFixture) -> None:
    shop = Workshop()
    options: dict[str, Any] = {"limit": 1, "hook_timeout": 0.05, "timeout": None}
    async with ConnectionPool(create=shop.create, clean=shop.clean, **options) as pool:
        # A busy machine may be too late with other creates as well: they are tried again, and cleaned as the first.
        while not isinstance(served := await outcome_of(pool.acquire), Resource):
            assert isinstance(served.__cause__, HookTimeout)
        assert "pool 'default': create failed with create took longer than hook_timeout=0.05 s" in caplog.messages
        assert served.number > 0
        shop.go_on.set()
        assert await anyio.to_thread.run_sync(shop.first_is_cleaned.wait, SAFETY)
        assert served.number not in {cleaned.number for cleaned in shop.cleaned}
        assert (pool.free, pool.taken, pool.creating) == (0, 1, 0)
        await pool.release(served)


@virtual_time
async def test_half_created_awaitable_is_cleaned_when_cut_off() -> None:
    cleaned: list[Any] = []

    class Connection:
        """As drivers have it: awaited, it connects and is itself the result."""

        def __await__(self) -> Any:
            return self.connect().__await__()

        async def connect(self) -> "Connection":
            await anyio.sleep(100)
            return self

    pool: ConnectionPool[Any] = ConnectionPool(
        create=Connection, clean=cleaned.append, limit=1, hook_timeout=1, blocking=False, clock=loop_time
    )
    async with pool:
        with pytest.raises(ResourceUnavailable, match="hook_timeout=1 s"):
            await pool.acquire()
        await settled()
        assert pool.stats().create_failures == len(cleaned) == 2, "one more try is made before a caller is told"
        assert {type(one) for one in cleaned} == {Connection}


@virtual_time
async def test_what_fails_by_itself_has_nothing_to_clean() -> None:
    cleaned: list[Any] = []

    async def refuse() -> None:
        raise ConnectionError

    pool: ConnectionPool[Any] = ConnectionPool(
        create=lambda: Later(refuse()), clean=cleaned.append, limit=1, blocking=False, clock=loop_time
    )
    async with pool:
        with pytest.raises(ResourceUnavailable):
            await pool.acquire()
        await settled()
    assert cleaned == []


@virtual_time
async def test_create_that_succeeds_after_cut_off_is_used() -> None:
    backend = Backend()

    async def stubborn() -> Resource:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(5)
        return await backend.create()

    async with backend.pool(create=stubborn, limit=1, hook_timeout=2) as pool:
        outcome = await outcome_of(lambda: pool.acquire(timeout=None))
        if isinstance(outcome, Resource):
            await pool.release(outcome)
        await anyio.sleep(10)
        assert len(backend.created) - len(backend.cleaned) == pool.free + pool.taken


# --- what is never seen ------------------------------------------------------------------------------


class LeakyError(PoolError):
    """A PoolError that is not the pool's."""


@pytest.mark.parametrize("kind", [ConnectionError, partial(OSError, 111), LeakyError, ValueError, HookTimeout])
@virtual_time
async def test_text_of_hook_exceptions_appears_nowhere(
    kind: Callable[[str], Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """No error, log or statistic repeats it."""
    caplog.set_level(logging.DEBUG)
    backend = Backend()
    said: list[str] = []
    async with backend.pool("check", "change", limit=2, check_after=0) as pool:
        backend.fail("create", kind(SECRET))
        for _ in range(2):
            error = await outcome_of(pool.acquire)
            assert isinstance(error, ResourceUnavailable)
            said += [str(error), repr(error)]
        said += [repr(pool), repr(pool.stats()), repr(pool.holders())]
        assert not await pool.probe(max_age=0)
        backend.work("create")
        await anyio.sleep(1)
        for hook in ("change", "check", "clean"):
            async with pool.lease() as resource:
                pass
            await anyio.sleep(1)
            backend.fail(hook, kind(SECRET))
            async with pool.lease() as resource:
                if hook == "clean":
                    pool.discard(resource)
            await settled()
            backend.work(hook)
            said += [repr(pool), repr(pool.stats())]
        backend.fail("create", kind(SECRET))
        await pool.drain()
        with pytest.raises(ResourceUnavailable) as caught:
            await pool.acquire()
        said.append(str(caught.value))
    text = "\n".join([*said, *(record.getMessage() for record in caplog.records), caplog.text])
    assert "failed with" in text
    for secret in (SECRET, "secret", "u:", "@h"):
        assert secret not in text
