"""The garbage collector may run anywhere, and so may the end of a coroutine that is never resumed."""

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from connectionpools_fastapi import ConnectionPool, PoolConfigError, PoolListener
from tests.support import PlainBackend, Resource, check


@pytest.fixture
def pool() -> Iterator[ConnectionPool[Resource]]:
    """A pool of one, in plain threads; collected is only what a test collects."""
    gc.collect()
    gc.disable()
    try:
        with PlainBackend().pool("change", limit=1, timeout=20) as pool:
            yield pool
            check(pool)
    finally:
        gc.enable()


def in_the_midst_of_a_decision(pool: ConnectionPool[Resource], happens: Callable[[], Any]) -> None:
    """Let something happen while the lock is held by this thread; a deadlock fails the test."""
    done = threading.Event()

    def decide() -> None:
        pool._engine.apply(happens)
        done.set()

    thread = threading.Thread(target=decide, daemon=True)
    thread.start()
    assert done.wait(10), "it waits for its own lock"
    thread.join(10)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_parked_caller_may_be_collected_during_a_decision(pool: ConnectionPool[Resource]) -> None:
    held = pool.acquire_sync()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # that a task was destroyed

    async def wait() -> None:
        async with pool.lease(timeout=None):
            pass

    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    assert pool.waiting == 1
    loop.close()
    del task, loop
    in_the_midst_of_a_decision(pool, gc.collect)
    pool.release_sync(held)
    assert pool.waiting == 0
    with pool.lease():
        pass


def test_a_lease_may_end_in_the_midst_of_a_decision(pool: ConnectionPool[Resource]) -> None:
    def rows() -> Generator[Any, Any, None]:
        itself = yield
        with pool.lease() as resource:
            yield resource, itself

    generator = rows()
    next(generator)
    generator.send(generator)  # a cycle, as a traceback makes one
    assert pool.taken == 1
    del generator
    in_the_midst_of_a_decision(pool, gc.collect)
    with pool.lease():
        pass
    assert pool.stats().leased == 0


def dropped(pool: ConnectionPool[Resource], number: int) -> None:
    """Let so many callers, each parked or in the midst of its block, be left to the collector."""
    callers: list[Any] = [None]
    for _ in range(number):
        cycle: list[Any] = [use(pool)]
        cycle.append(cycle)
        cycle[0].send(None)
    del callers, cycle


class Parked:
    def __await__(self) -> Generator[None]:
        yield


async def use(pool: ConnectionPool[Resource]) -> None:
    async with pool.lease(timeout=None):
        await Parked()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("limit", [1, 2000])
def test_collecting_many_callers_in_a_decision_loses_none(limit: int) -> None:
    """All that follows is done in a row, and not one thing within another."""

    async def main() -> None:
        backend = PlainBackend()
        pool = backend.pool("change", limit=limit, max_creating=limit, blocking=False, timeout=None)
        async with pool:
            held = [await pool.acquire() for _ in range(limit)]
            for resource in held[1:]:
                await pool.release(resource)
            gc.collect()
            gc.disable()
            try:
                dropped(pool, 1999)
                assert pool.waiting + pool.taken == 2000
                pool._engine.apply(lambda: gc.collect() and None)
            finally:
                gc.enable()
            assert (pool.waiting, pool.taken) == (0, 1)
            await pool.release(held[0])
            check(pool)

    asyncio.run(main())


def test_collection_at_lock_runs_no_effect_under_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []

    class Onlooker(PoolListener):
        def on_withdraw(self, pool: str, waited: float) -> None:
            told.append(is_locked())

    def is_locked() -> bool:
        return bool(the_pool._engine.executor._lock._is_owned())  # type: ignore[attr-defined] # the library's own

    def look() -> int:
        if is_locked():
            gc.collect()
        return threading.get_ident()

    async def main() -> None:
        async with the_pool:
            the_pool.add_listener(Onlooker())
            held = await the_pool.acquire()
            gc.collect()
            gc.disable()
            try:
                dropped(the_pool, 1)
                with monkeypatch.context() as patch:
                    patch.setattr("connectionpools_fastapi._runtime.executor.get_ident", look)
                    the_pool.stats()
                gc.collect()
            finally:
                gc.enable()
            await the_pool.release(held)

    the_pool = PlainBackend().pool(limit=1, blocking=False)
    asyncio.run(main())
    assert told == [False]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_block_collected_outside_its_loop_gives_back(pool: ConnectionPool[Resource]) -> None:
    """Where a resource is changed as it comes back, no caller is left to wait for that."""
    with pool.lease():
        pass
    caller = use(pool)
    caller.send(None)
    assert pool.taken == 1
    del caller
    gc.collect()
    with pool.lease():
        pass
    assert pool.stats().discards["leak"] == 0


@pytest.mark.parametrize("end", ["release_nowait", "discard"])
def test_lease_end_asked_by_destructor_waits_its_turn(pool: ConnectionPool[Resource], end: str) -> None:
    lease = pool.lease()
    lease.__enter__()
    in_the_midst_of_a_decision(pool, getattr(lease, end))
    with pool.lease() as resource:
        assert resource.number == (end == "discard")


def test_destructor_asking_during_a_decision_is_refused(pool: ConnectionPool[Resource]) -> None:
    """The destructor does not hang."""
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            pool.stats()
        except PoolConfigError as error:
            errors.append(error)

    in_the_midst_of_a_decision(pool, ask)
    assert "Do not use a pool in destructors" in str(errors[0])
    assert pool.stats().leased == 0


def test_close_at_interpreter_exit_cleans_everything() -> None:
    """No thread can be started any more then."""
    script = """
import atexit
from connectionpools_fastapi import ConnectionPool
clean = lambda _: print("cleaned\\n", end="", flush=True)  # in one piece: several threads clean
pool = ConnectionPool(create=object, clean=clean, limit=3, min_free=3, max_creating=1)
pool.open_sync()
atexit.register(pool.close_sync)
"""
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.split(), done.stderr) == (["cleaned"] * 3, "")


class Thing:
    """A resource that can be referred to weakly."""


@pytest.mark.parametrize("hooks", ["def", "async def"])
def test_closed_pool_keeps_no_resource_alive(hooks: str) -> None:
    """Reference counting alone destroys them: a forked child must find none that waits for the collector."""
    destroyed: list[threading.Event] = []

    def create() -> Thing:
        thing = Thing()
        destroyed.append(threading.Event())
        weakref.finalize(thing, destroyed[-1].set)
        return thing

    async def create_later() -> Thing:
        return create()

    async def change_later(thing: Thing) -> None:
        del thing
        await asyncio.sleep(0)

    async def use(pool: ConnectionPool[Thing]) -> None:
        async with pool:
            async with pool.lease():
                pass
            await pool.release(await pool.acquire())

    gc.disable()
    try:
        if hooks == "def":
            with ConnectionPool(create=create, change=id, clean=id, limit=2, min_free=1) as plain, plain.lease():
                pass
        else:
            later: ConnectionPool[Thing] = ConnectionPool(create=create_later, change=change_later, clean=change_later)
            asyncio.run(use(later))
        # A worker thread may still be about to drop what its last call returned.
        assert [event.wait(10) for event in destroyed] == [True] * len(destroyed)
        assert destroyed
    finally:
        gc.enable()
