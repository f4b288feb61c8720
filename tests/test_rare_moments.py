"""What happens once in a year: another thread in between, a loop that is gone, a caller that is interrupted."""

import asyncio
import gc
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from threading import get_ident
from typing import Any
from weakref import ref

import anyio
import pytest

from connectionpools_fastapi import ConnectionPool, NotLeased, PoolConfigError, WrongEventLoop
from connectionpools_fastapi._loop import LoopEnded, PrivateLoop, task_waiter
from connectionpools_fastapi._waiters import ThreadWaiter
from tests.desk import Desk, Named
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


@pytest.mark.anyio
async def test_a_waiter_that_comes_just_as_a_resource_is_put_back_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
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
        state = pool._state
        waiter = state.queue.head()
        owner = waiter.owner
        state.queue.leave(waiter)
        state.gate = False

        def come() -> None:
            waiter.owner = owner
            state.queue.join(waiter)
            state.gate = True

        monkeypatch.setattr(state, "put_back", Once(state.put_back, come))
        lease.release_nowait()
        with anyio.fail_after(10):
            await served.wait()


def test_what_another_thread_has_taken_to_carry_out_is_done_by_that_one_alone() -> None:
    class TakenByAnother(deque[Any]):
        def popleft(self) -> Any:
            super().popleft()
            raise IndexError

    with PlainBackend().pool(limit=1) as pool:
        pool._state.todo = TakenByAnother([("to be done by", "the other")])
        pool._keeper._carry_out(get_ident())
        assert not pool._state.todo
        pool._state.todo = deque()


@pytest.mark.anyio
async def test_who_waits_no_more_as_it_is_to_be_watched_is_not() -> None:
    async with Backend().pool(limit=1) as pool:
        waiter = task_waiter()
        assert waiter.client is None
        pool._keeper._watch(waiter)


@pytest.mark.anyio
async def test_what_was_given_back_by_its_resource_within_the_block_is_not_given_back_again_unnoticed() -> None:
    async with Backend().pool(limit=1) as pool:
        with pytest.raises(NotLeased):
            async with pool.lease() as resource:
                await pool.release(resource)
        assert (pool.free, pool.taken) == (1, 0)


def test_nor_is_it_in_a_thread_where_it_may_be_discarded_as_well() -> None:
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

        monkeypatch.setattr(pool._keeper, "_carry_out", raise_it)

    return prepare


@pytest.mark.anyio
async def test_a_task_that_is_interrupted_as_it_joins_the_queue_leaves_it(
    interrupt: Callable[[ConnectionPool[Any]], None],
) -> None:
    async with Backend().pool(limit=1) as pool:
        interrupt(pool)
        with pytest.raises(KeyboardInterrupt):
            await pool.acquire()
        assert pool.waiting == 0


def test_a_thread_that_is_interrupted_as_it_joins_the_queue_leaves_it(
    interrupt: Callable[[ConnectionPool[Any]], None],
) -> None:
    with PlainBackend().pool(limit=1) as pool:
        interrupt(pool)
        with pytest.raises(KeyboardInterrupt):
            pool.acquire_sync()
        assert pool.waiting == 0


@pytest.mark.anyio
async def test_a_lease_that_was_lost_and_ended_by_its_resource_all_the_same_is_not_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
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
    pool._keeper.lose(ref(pool))
    assert pool.status == "new"


def test_a_timer_is_not_set_in_a_loop_that_the_pool_has_left() -> None:
    with PlainBackend().pool(limit=1) as pool:
        pool._keeper._wind()  # as the loop before calls it, a moment too late
        assert pool._keeper._timer is None


def test_a_thread_that_is_interrupted_while_it_waits_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.setattr("connectionpools_fastapi._loop.PATIENCE", 0.0001)
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


def test_a_pool_that_was_opened_by_a_thread_may_be_opened_by_a_loop_while_a_lease_is_still_out() -> None:
    backend = PlainBackend()
    pool = backend.pool(limit=1, close_timeout=0, blocking=False)
    pool.open_sync()
    late = pool.acquire_sync()
    pool.close_sync()
    thread = pool._keeper.loop._thread  # type: ignore[union-attr] # a private loop's

    async def live() -> None:
        async with pool, pool.lease() as resource:
            assert resource is not late
        await pool.release(late)
        await settled()

    asyncio.run(live())
    thread.join(20)
    assert not thread.is_alive()
    assert same(backend.cleaned, backend.created)


def test_a_def_hook_that_raises_on_its_thread_is_called_once() -> None:
    calls: list[int] = []

    def change(_: object) -> None:
        calls.append(1)
        raise RuntimeError(SECRET)  # as is raised where no thread can be started

    with ConnectionPool(create=object, change=change, limit=1) as pool, pool.lease():
        pass
    assert calls == [1]


def test_a_pool_that_was_never_opened_has_nothing_to_drain_or_close() -> None:
    pool = PlainBackend().pool()
    pool.drain_sync()
    pool.close_sync()
    assert pool.status == "new"


def test_a_pool_that_another_thread_has_closed_meanwhile_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_thread_does_not_wait_for_a_loop_that_has_stopped_for_good() -> None:
    pool = PlainBackend().pool(limit=1, min_free=1)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(pool.open())
    with pytest.raises(WrongEventLoop, match="has ended"):
        pool.drain_sync()
    loop.run_until_complete(pool.close())
    loop.close()


def test_a_generator_that_ends_in_the_pool_s_own_loop_does_not_block_it() -> None:
    backend = PlainBackend()
    with backend.pool("change", limit=1, timeout=20) as pool:
        lease = pool.lease()
        lease.__enter__()
        ended = threading.Event()

        def end() -> None:
            lease.__exit__(None, None, None)
            ended.set()

        loop = pool._keeper.loop
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
        return ConnectionPool(create=self.create, hook_timeout=0.3, timeout=20, name="db", **options)


async def give_up_on(pool: ConnectionPool[Any]) -> None:
    await pool.open()
    with pytest.raises(Exception, match="create took longer than hook_timeout"):
        await pool.acquire()


def test_what_is_created_after_the_end_of_the_loop_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    late = Late("a connection")
    pool = late.pool(clean=late.cleaned.append)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(give_up_on(pool))
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


@pytest.mark.parametrize("made", ["a connection", None])
def test_what_is_created_too_late_is_cleaned_even_where_that_fails(
    made: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    late = Late(made)
    called = threading.Event()

    def clean(resource: str) -> None:
        late.cleaned.append(resource)
        called.set()
        raise ConnectionError(SECRET)

    async def live() -> None:
        pool = late.pool(clean=clean)
        await give_up_on(pool)
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
        slot = next(iter(pool._state.taken.values()))
        pool._state.free.append(slot)
        with pytest.raises(AssertionError, match="broken: each slot is in one place"):
            check(pool)
        pool._state.free.clear()
        check(pool)


def test_a_thread_that_leases_while_a_task_looks_for_a_circle_shows_that_there_is_none() -> None:
    at = Desk(limit=1)
    at.open()
    task = Named("who holds the only one")
    slot = at.lease(task)

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

    at.state.taken = Changing(at.state.taken)
    at.is_trusted = True
    caller = at.come(owner=task)
    assert caller.error is None
    assert caller in at.state.queue


def test_a_lost_lease_that_another_thread_ends_at_that_very_moment_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    at = Desk(limit=1)
    at.open()
    slot = at.lease()
    slot.lease = ref(at)
    end = at.state.end

    def be_late(slot: Any, now: float) -> None:
        end(slot, now)  # the other thread
        end(slot, now)

    monkeypatch.setattr(at.state, "end", be_late)
    assert at.state.lose(slot.lease, at.now) is None
    assert at.state.totals.discards["leak"] == 0


def test_a_holder_whose_name_fails_does_not_keep_reports_from_being_made() -> None:
    class Nameless:
        def __str__(self) -> str:
            raise ValueError(SECRET)

    with PlainBackend().pool(limit=1) as pool, pool.lease(holder=Nameless()):
        assert [holder.name for holder in pool.holders()] == ["Nameless (its name failed with ValueError)"]


@pytest.mark.anyio
async def test_what_is_put_back_as_the_state_looks_for_something_to_check_needs_no_check_where_there_is_none() -> None:
    async with Backend().pool(limit=1, min_free=1) as pool:
        slot = pool._state.free.pop()
        pool._commit(pool._state._look_over, slot, pool._clock())
        await settled()
        assert (pool.free, pool.stats().discards["check"]) == (1, 0)
