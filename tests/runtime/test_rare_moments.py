"""What happens once in a year: another thread in between, a loop that is gone, a caller that is interrupted."""

import asyncio
import gc
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from threading import get_ident
from typing import Any
from weakref import ref

import anyio
import anyio.to_thread
import pytest

from connectionpools_fastapi import ConnectionPool, NotLeased, PoolConfigError, WrongEventLoop
from connectionpools_fastapi._core.effects import Effect, EffectQueue
from connectionpools_fastapi._runtime.current import task_waiter
from connectionpools_fastapi._runtime.loop import LoopEnded
from connectionpools_fastapi._runtime.on_asyncio import PrivateLoop
from connectionpools_fastapi._runtime.waiters import ThreadWaiter
from tests.state_harness import Named, StateHarness
from tests.support import SECRET, Backend, PlainBackend, Resource, check, held, same, settled


class Once:
    """Lets something happen after the first call of a method, as another thread might."""

    def __init__(self, method: Callable[..., Any], then: Callable[[], Any]) -> None:
        self._method = method
        self._then = then
        self.is_over = False

    def __call__(self, *args: Any) -> Any:
        result = self._method(*args)
        if not self.is_over:
            self.is_over = True
            self._then()
        return result


@pytest.mark.needs_python
@pytest.mark.anyio
async def test_waiter_that_comes_during_put_back_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    async with PlainBackend().pool(limit=1, blocking=False, timeout=20) as pool, anyio.create_task_group() as group:
        lease = pool.lease()
        await lease.__aenter__()
        # The gate is raised, and a waiter queued, after the resource was found to be unwanted and put back.
        served = anyio.Event()

        async def wait() -> None:
            async with pool.lease():
                served.set()

        group.start_soon(wait)
        await settled()
        state = pool._engine.state
        waiter = state.queue.head()
        owner = waiter.owner
        state.queue.leave(waiter)
        state.inventory.needs_lock = False

        def come() -> None:
            waiter.owner = owner
            state.queue.join(waiter)
            state.inventory.needs_lock = True

        monkeypatch.setattr(state.inventory, "put_back", Once(state.inventory.put_back, come))
        lease.release_nowait()
        with anyio.fail_after(10):
            await served.wait()


def test_effect_taken_by_another_thread_is_left_to_it() -> None:
    class TakenByAnother(EffectQueue):
        def popleft(self) -> Any:
            super().popleft()
            raise IndexError

    with PlainBackend().pool(limit=1) as pool:
        state, taken = pool._engine.state, TakenByAnother()
        taken.append((Effect.CLEAN, "to be done by the other"))
        effects, state.effects = state.effects, taken
        pool._engine.executor._run_effects(get_ident())
        assert not taken
        state.effects = effects


@pytest.mark.anyio
async def test_ended_waiter_is_not_watched() -> None:
    async with Backend().pool(limit=1) as pool:
        waiter = task_waiter()
        assert waiter.client is None
        pool._engine.executor._watch([waiter])


@pytest.mark.anyio
async def test_block_notices_that_its_resource_was_given_back() -> None:
    async with Backend().pool(limit=1) as pool:
        with pytest.raises(NotLeased):
            async with pool.lease() as resource:
                await pool.release(resource)
        assert (pool.free, pool.taken) == (1, 0)


def test_block_in_thread_notices_release_but_may_discard() -> None:
    with PlainBackend().pool(limit=1) as pool:
        with pytest.raises(NotLeased), pool.lease() as resource:
            pool.release_sync(resource)
        with pool.lease() as resource:
            pool.discard(resource)
        with pool.lease() as another:
            assert another is not resource


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[ConnectionPool[Any]], None]:
    """Let the next decision of a pool be interrupted before anything that it asks for is done."""

    def prepare(pool: ConnectionPool[Any]) -> None:
        def raise_it(_: int) -> None:
            monkeypatch.undo()
            raise KeyboardInterrupt

        monkeypatch.setattr(pool._engine.executor, "_run_effects", raise_it)

    return prepare


@pytest.mark.needs_python
@pytest.mark.anyio
async def test_task_interrupted_while_joining_leaves_queue(interrupt: Callable[[ConnectionPool[Any]], None]) -> None:
    async with Backend().pool(limit=1) as pool:
        interrupt(pool)
        with pytest.raises(KeyboardInterrupt):
            await pool.acquire()
        assert pool.waiting == 0


@pytest.mark.needs_python
def test_thread_interrupted_while_joining_leaves_queue(interrupt: Callable[[ConnectionPool[Any]], None]) -> None:
    with PlainBackend().pool(limit=1) as pool:
        interrupt(pool)
        with pytest.raises(KeyboardInterrupt):
            pool.acquire_sync()
        assert pool.waiting == 0


@pytest.mark.anyio
async def test_lost_lease_ended_by_its_resource_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    async with Backend().pool(limit=1) as pool:
        resource = await pool.lease().__aenter__()
        gc.collect()
        await pool.release(resource)  # before the loop has had time to recover it
        await settled()
        assert pool.stats().discards["leak"] == 0
        check(pool)
    assert caplog.messages == []


def test_a_lease_of_a_pool_that_is_in_no_loop_may_be_lost() -> None:
    pool = Backend().pool()
    pool._engine.executor.reclaim_leak(ref(pool))
    assert pool.status == "new"


def test_no_timer_is_set_in_loop_that_pool_has_left() -> None:
    with PlainBackend().pool(limit=1) as pool:
        pool._engine.executor._wind()  # as the loop before calls it, a moment too late
        assert pool._engine.executor._timer is None


@pytest.mark.needs_python
def test_thread_interrupted_while_waiting_leaves_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: ThreadWaiter[Resource], __: float | None) -> bool:
        raise KeyboardInterrupt

    with PlainBackend().pool(limit=1) as pool:
        resource = pool.acquire_sync()
        with monkeypatch.context() as patch:
            patch.setattr(ThreadWaiter, "wait", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pool.acquire_sync()
        assert pool.waiting == 0
        pool.release_sync(resource)
        check(pool)


def test_a_lease_is_entered_once_also_in_a_thread() -> None:
    with PlainBackend().pool(limit=1) as pool:
        lease = pool.lease()
        with lease:
            pass
        with pytest.raises(PoolConfigError, match="can be used once"):
            lease.__enter__()


def test_a_thread_waits_for_a_loop_as_long_as_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connectionpools_fastapi._runtime.on_asyncio.PATIENCE", 0.0001)
    backend = PlainBackend()
    cleaning, go_on = threading.Event(), threading.Event()

    def clean(resource: Resource) -> None:
        cleaning.set()
        go_on.wait(20)
        backend.clean(resource)

    pool = ConnectionPool(create=backend.create, clean=clean, min_free=1)
    with pool:
        thread = threading.Thread(target=pool.drain_sync)
        thread.start()
        assert cleaning.wait(20)
        thread.join(0.01)  # it looks again and again, and goes on waiting
        assert thread.is_alive()
        go_on.set()
        thread.join(20)
        assert same(backend.cleaned, backend.created[:1])


def test_a_private_loop_ends_when_its_hooks_have_ended() -> None:
    loop = PrivateLoop("db")
    begun, ended = threading.Event(), threading.Event()
    go_on = asyncio.Event()

    async def hook() -> None:
        begun.set()
        await go_on.wait()
        ended.set()

    loop.spawn(hook)
    assert begun.wait(20)
    loop.stop_soon()
    assert not loop.has_ended()
    loop.call_soon(go_on.set)
    loop.stop()
    assert ended.is_set()
    assert loop.has_ended()


def test_loop_may_open_pool_with_lease_of_a_thread_out() -> None:
    backend = PlainBackend()
    pool = backend.pool(limit=1, close_timeout=0, blocking=False)
    pool.open_sync()
    late = pool.acquire_sync()
    pool.close_sync()
    thread = pool._engine.executor.loop._thread  # type: ignore[union-attr] # a private loop's

    async def live() -> None:
        async with pool, pool.lease() as resource:
            assert resource is not late
        await pool.release(late)
        await settled()

    asyncio.run(live())
    thread.join(20)
    assert not thread.is_alive()
    assert same(backend.cleaned, backend.created)


def test_def_hook_that_raises_on_thread_is_called_once() -> None:
    calls: list[int] = []

    def change(_: object) -> None:
        calls.append(1)
        raise RuntimeError(SECRET)  # as is raised where no thread can be started

    with ConnectionPool(create=object, change=change, limit=1) as pool, pool.lease():
        pass
    assert calls == [1]


def test_unopened_pool_has_nothing_to_drain_or_close() -> None:
    pool = PlainBackend().pool()
    pool.drain_sync()
    pool.close_sync()
    assert pool.status == "new"


def test_pool_closed_by_another_thread_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = PlainBackend().pool(limit=1)
    pool.open_sync()
    run = PrivateLoop.run

    def be_late(loop: PrivateLoop, job: Any) -> None:
        run(loop, job)
        loop.stop()
        raise LoopEnded

    monkeypatch.setattr(PrivateLoop, "run", be_late)
    pool.close_sync()
    assert pool.status == "closed"


def test_thread_does_not_wait_for_ended_loop() -> None:
    pool = PlainBackend().pool(limit=1, min_free=1)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(pool.open())
    with pytest.raises(WrongEventLoop, match="has ended"):
        pool.drain_sync()
    loop.run_until_complete(pool.close())
    loop.close()


def test_generator_ending_in_pools_loop_does_not_block_it() -> None:
    backend = PlainBackend()
    with backend.pool("change", limit=1, timeout=20) as pool:
        lease = pool.lease()
        lease.__enter__()
        ended = threading.Event()

        def end() -> None:
            lease.__exit__(None, None, None)
            ended.set()

        loop = pool._engine.executor.loop
        assert loop is not None
        loop.call_soon(end)
        assert ended.wait(10)
        with pool.lease() as resource:
            assert resource.uses == 1


class Late:
    """A `create` on a thread that answers after its time is over."""

    def __init__(self, made: object) -> None:
        self._made = made
        self.go_on = threading.Event()
        self.is_over = threading.Event()
        self.cleaned: list[object] = []
        self.calls = 0

    def create(self) -> object:
        self.calls += 1
        if self.calls > 1:  # the pool's own tries
            raise ConnectionError
        self.go_on.wait(20)
        try:
            return self._made
        finally:
            self.is_over.set()

    def pool(self, **options: Any) -> ConnectionPool[Any]:
        return ConnectionPool(create=self.create, limit=1, hook_timeout=0.05, name="db", **options)


async def give_up_on(late: Late, pool: ConnectionPool[Any]) -> None:
    await pool.open()
    async with asyncio.timeout(20):
        while not late.calls or pool.creating:
            assert pool.try_acquire() is None  # has one made, and another if a thread was given up before it began
            await asyncio.sleep(0.01)


def test_creation_after_end_of_loop_is_cleaned_on_thread() -> None:
    late = Late("a connection")
    cleaned = threading.Event()
    pool = late.pool(clean=lambda _: cleaned.set())
    loop = asyncio.new_event_loop()
    loop.run_until_complete(give_up_on(late, pool))
    loop.close()
    late.go_on.set()
    assert cleaned.wait(20)


def test_late_creation_for_async_clean_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the loop could have cleaned it, and the loop has ended."""
    late = Late("a connection")

    async def clean(resource: str) -> None:
        late.cleaned.append(resource)

    pool = late.pool(clean=clean)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(give_up_on(late, pool))
    loop.close()
    reported = threading.Event()
    logger = logging.getLogger("connectionpools_fastapi")
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: reported.set() if "too late" in record.getMessage() else None)
    logger.addHandler(handler)
    try:
        late.go_on.set()
        assert reported.wait(20)
    finally:
        logger.removeHandler(handler)
    assert late.cleaned == []


@pytest.mark.parametrize(
    ("made", "fails_in"), [("a connection", "its thread"), ("a connection", "the loop"), (None, "its thread")]
)
def test_late_creation_is_cleaned_though_clean_fails(
    made: str | None, fails_in: str, caplog: pytest.LogCaptureFixture
) -> None:
    late = Late(made)
    called = threading.Event()

    async def fail() -> None:
        raise ConnectionError(SECRET)

    def clean(resource: str) -> Awaitable[None]:
        late.cleaned.append(resource)
        called.set()
        if fails_in == "the loop":
            return fail()
        raise ConnectionError(SECRET)

    async def live() -> None:
        pool = late.pool(clean=clean)
        await give_up_on(late, pool)
        late.go_on.set()
        await asyncio.to_thread(late.is_over.wait, 20)
        if made is not None:
            await asyncio.to_thread(called.wait, 20)
        await pool.close()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})  # the one that cleans

    with caplog.at_level(logging.WARNING, logger="connectionpools_fastapi"):
        asyncio.run(live())
    assert ("pool 'db': clean failed with ConnectionError" in caplog.messages) == (made is not None)
    assert late.cleaned == ([] if made is None else [made])
    assert SECRET not in caplog.text


@pytest.mark.anyio
async def test_a_broken_invariant_is_named() -> None:
    async with Backend().pool(limit=1) as pool, held(pool):
        slot = next(iter(pool._engine.inventory.taken.values()))
        pool._engine.inventory.free.append(slot)
        with pytest.raises(AssertionError, match="broken: each slot is in one place"):
            check(pool)
        pool._engine.inventory.free.clear()
        check(pool)


@pytest.mark.needs_python
def test_lease_during_deadlock_search_shows_no_deadlock() -> None:
    """A thread leases while a task looks for a circle."""
    core = StateHarness(limit=1)
    core.open()
    task = Named("holder of the only one")
    slot = core.lease(task)

    class Changing(dict[int, Any]):
        is_looked_at = False

        def values(self) -> Any:
            if self.is_looked_at:
                return super().values()
            self.is_looked_at = True
            return self._change()

        def _change(self) -> Iterator[Any]:
            yield slot
            raise RuntimeError("dictionary changed size during iteration")

    core.state.inventory.taken = Changing(core.state.inventory.taken)
    core.is_trusted = True
    caller = core.acquire(owner=task)
    assert caller.error is None
    assert caller in core.state.queue


@pytest.mark.needs_python
def test_lease_ended_during_its_recovery_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread ends the lease at that very moment."""
    core = StateHarness(limit=1)
    core.open()
    slot = core.lease()
    slot.lease = ref(core)
    end = core.state.inventory.end

    def be_late(slot: Any, now: float) -> None:
        end(slot, now)  # the other thread
        end(slot, now)

    monkeypatch.setattr(core.state.inventory, "end", be_late)
    assert core.state.reclaim_leak(slot.lease, core.now) is None
    assert core.state.counters.discards["leak"] == 0


def test_holder_with_failing_name_is_still_reported() -> None:
    class Nameless:
        def __str__(self) -> str:
            raise ValueError(SECRET)

    with PlainBackend().pool(limit=1) as pool, pool.lease(holder=Nameless()):
        assert [holder.name for holder in pool.holders()] == ["Nameless (its name failed with ValueError)"]


@pytest.mark.anyio
async def test_slot_put_back_during_search_needs_no_check() -> None:
    """The state looks for a slot to check; the pool has no check."""
    async with Backend().pool(limit=1, min_free=1) as pool:
        slot = pool._engine.inventory.free.pop()
        pool._engine.apply(pool._engine.state.checks.begin_if_usable, slot, pool._engine.clock())
        await settled()
        assert (pool.free, pool.stats().discards["check"]) == (1, 0)


@pytest.mark.anyio
@pytest.mark.parametrize("blocking", [True, False])
async def test_create_that_raises_generator_exit_keeps_its_place(*, blocking: bool) -> None:
    calls = 0

    def create() -> object:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise GeneratorExit
        return object()

    async with ConnectionPool(create=create, limit=1, blocking=blocking) as pool:
        async with pool.lease():
            assert pool.creating == 0
        assert pool.stats().create_failures == 1


@pytest.mark.anyio
async def test_waiter_is_called_in_its_loop_from_any_thread() -> None:
    waiter = task_waiter()
    called, done = [], anyio.Event()

    def note() -> None:
        called.append(get_ident())
        done.set()

    await anyio.to_thread.run_sync(waiter.call, note)
    await done.wait()
    waiter.call(note)
    await settled()
    assert called == [get_ident(), get_ident()]


@pytest.mark.anyio
async def test_prepare_of_a_lease_is_refused_or_one_for_all() -> None:
    """As at the start, where the application's wiring is checked, for a pool that it could not ask then."""

    async def prepare(_: object) -> None: ...

    back_end = Backend()
    async with back_end.pool() as pool:
        with pytest.raises(PoolConfigError, match="prepare is refused"):
            async with (lease := pool.lease()):
                await lease.prepare(prepare, prepare)
    async with back_end.pool("change") as pool, (lease := pool.lease()):
        await lease.prepare(prepare, prepare)
        await lease.prepare(prepare, prepare)
        with pytest.raises(PoolConfigError, match="prepared by another prepare already"):
            await lease.prepare(object(), prepare)
