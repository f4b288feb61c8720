"""Threads, tasks and loops: which may share a pool, and the error where they may not."""

import asyncio
import random
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

from connectionpools_fastapi import (
    ConnectionPool,
    NotLeased,
    Overloaded,
    PoolClosed,
    PoolConfigError,
    PoolTimeout,
    WrongEventLoop,
)
from tests.support import Backend, PlainBackend, Resource, check, same

THREADS = 8


@pytest.fixture
def _frequent_switches() -> Iterator[None]:
    """Let threads take turns as often as can be, so that races show."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


frequent_switches = pytest.mark.usefixtures("_frequent_switches")


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """Run each call in a thread of its own, all at once; the first failure is raised."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        start.wait(10)
        return call()

    with ThreadPoolExecutor(len(calls)) as executor:
        return [future.result(30) for future in [executor.submit(run, call) for call in calls]]


def assert_all_end(threads: set[threading.Thread]) -> None:
    """Worker threads are told to end, and not waited for."""
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


class Users:
    """Sees whether two ever have the same resource."""

    def __init__(self) -> None:
        self._in_use: dict[int, Resource] = {}

    def use(self, resource: Resource) -> None:
        assert self._in_use.setdefault(id(resource), resource) is resource
        resource.uses += 1
        mine = resource.uses
        for _ in range(3):
            assert resource.uses == mine, "two have the same"
        del self._in_use[id(resource)]


@frequent_switches
@pytest.mark.parametrize("hooks", [(), ("change",)])
@pytest.mark.parametrize("reuse", ["lifo", "fifo"])
def test_eight_threads_share_four_resources_without_loss(hooks: tuple[str, ...], reuse: str) -> None:
    backend, users = PlainBackend(), Users()
    turns = 30 if hooks else 300

    def work() -> None:
        for _ in range(turns):
            with pool.lease(timeout=20) as resource:
                users.use(resource)

    with backend.pool(*hooks, limit=4, reuse=reuse) as pool:
        in_threads(*[work] * THREADS)
        check(pool)
        stats = pool.stats()
        assert stats.acquires == stats.releases == THREADS * turns
        assert (pool.waiting, pool.taken) == (0, 0)
    assert same(backend.created, backend.cleaned)
    assert len(backend.created) <= 4
    check(pool)


class Stress:
    """Everything that threads may do to a pool, at random, while others look on and drain it."""

    TOTALS = ("acquires", "releases", "timeouts", "creates", "cleans", "detached")

    def __init__(self, pool: ConnectionPool[Resource], seed: int) -> None:
        self._pool = pool
        self._seed = seed
        self._users = Users()
        self.detached: list[Resource] = []
        self.over = threading.Event()

    def work(self, number: int) -> None:
        chance = random.Random(self._seed + number)  # noqa: S311 - no secret
        for _ in range(150):
            with suppress(PoolTimeout, Overloaded):  # the latter where a timeout is known to be too short
                self._use_one(chance)

    def _use_one(self, chance: random.Random) -> None:
        lease = self._pool.lease(timeout=chance.choice([0, 0.0001, 20]))
        with lease as resource:
            self._users.use(resource)
            what = chance.random()
            if what < 0.05:
                lease.discard()
            elif what < 0.1:
                self.detached.append(lease.detach())

    def watch(self) -> None:
        before = self._pool.stats()
        while not self.over.is_set():
            now = self._pool.stats()
            assert now.acquires == now.releases + now.leased
            assert now.free + now.taken + now.creating <= now.limit
            assert min(now.free, now.taken, now.leased) >= 0
            for total in self.TOTALS:
                assert getattr(now, total) >= getattr(before, total), f"{total} went back"
            assert all(late >= early for late, early in zip(now.wait.counts, before.wait.counts, strict=True))
            before = now
            self._pool.holders()
            repr(self._pool)

    def disturb(self) -> None:
        chance = random.Random(self._seed)  # noqa: S311 - no secret
        while not self.over.is_set():
            if chance.random() < 0.5:
                resource = self._pool.try_acquire()
                if resource is not None:
                    self._users.use(resource)
                    self._pool.release_sync(resource)
            elif chance.random() < 0.3:
                self._pool.drain_sync()
            else:
                asyncio.run(self._pool.probe(max_age=0, timeout=1))


@frequent_switches
def test_thread_stress_loses_nothing() -> None:
    """No total goes back."""
    seed = random.randrange(10**6)  # noqa: S311 - no secret
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    backend = PlainBackend()
    with backend.pool(limit=4, check=lambda _: True, check_after=0.0005) as pool:
        stress = Stress(pool, seed)
        with ThreadPoolExecutor(2) as others:
            looking_on = [others.submit(stress.watch), others.submit(stress.disturb)]
            try:
                in_threads(*[partial(stress.work, number) for number in range(THREADS)])
            finally:
                stress.over.set()
            for other in looking_on:
                other.result(30)
        check(pool)
        assert (pool.waiting, pool.stats().leased) == (0, 0)
        leased = [pool.acquire_sync(timeout=20) for _ in range(4)]
        for resource in leased:
            pool.release_sync(resource)
    assert same(backend.created, [*backend.cleaned, *stress.detached])
    check(pool)


@frequent_switches
def test_threads_and_two_loops_share_a_pool_at_once() -> None:
    backend, users = PlainBackend(), Users()

    def in_thread() -> None:
        for _ in range(100):
            with pool.lease(timeout=20) as resource:
                users.use(resource)

    async def in_loop() -> None:
        async def work() -> None:
            for _ in range(20):
                async with pool.lease(timeout=20) as resource:
                    users.use(resource)
                    await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(work)

    def loop() -> None:
        asyncio.run(in_loop())

    with backend.pool(limit=3) as pool:
        in_threads(loop, loop, lambda: anyio.run(in_loop, backend="trio"), in_thread, in_thread)
        assert pool.stats().acquires == 3 * 100 + 2 * 100
        check(pool)
    assert same(backend.created, backend.cleaned)


def test_only_one_of_several_releasing_threads_succeeds() -> None:
    with PlainBackend().pool(limit=1) as pool:
        for _ in range(20):
            lease = pool.lease()
            lease.__enter__()

            def give_back(lease: Any = lease) -> bool:
                try:
                    lease.release_nowait()
                except NotLeased:
                    return False
                return True

            assert sorted(in_threads(*[give_back] * 4)) == [False, False, False, True]
            assert (pool.free, pool.taken) == (1, 0)
            check(pool)


# --- plain threads -----------------------------------------------------------------------------


def test_plain_thread_opens_leases_and_closes() -> None:
    """No thread is left."""
    before = set(threading.enumerate())
    backend = PlainBackend()
    pool = backend.pool("change", limit=2, min_free=1)
    with pool:
        assert pool.free == 1
        with pool.lease() as resource:
            assert pool.taken == 1
        assert resource.uses == 1, "release waits for change"
        kept = pool.acquire_sync()
        assert pool.detach(kept) is kept
        with pytest.raises(KeyError), pool.lease():
            raise KeyError
        pool.discard(pool.acquire_sync())
        pool.drain_sync()
        assert pool.status == "open"
    assert same(backend.created, [*backend.cleaned, kept])
    assert_all_end(set(threading.enumerate()) - before)


def test_timeout_of_thread_holds_while_loop_is_blocked() -> None:
    async def main() -> None:
        async with PlainBackend().pool(limit=1) as pool:
            resource = await pool.acquire()
            outcome: list[Any] = []

            def wait() -> None:
                try:
                    pool.acquire_sync(timeout=0.01)
                except PoolTimeout as error:
                    outcome.append(error)

            thread = threading.Thread(target=wait)
            thread.start()
            thread.join(10)  # and blocks the loop with it
            assert len(outcome) == 1
            assert pool.waiting == 0
            await pool.release(resource)

    asyncio.run(main())


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_timeout_of_a_thread_names_the_longest_lease(timeout: float) -> None:
    pool = ConnectionPool(create=object, limit=1)
    with pool, pool.lease(holder="nightly report"), ThreadPoolExecutor(1) as threads:
        error = threads.submit(pool.acquire_sync, timeout=timeout).exception()
    assert isinstance(error, PoolTimeout)
    assert re.search(r"\. Held the longest: nightly report for [\d.e-]+ s$", str(error))


def test_thread_of_higher_priority_is_served_first() -> None:
    pool = ConnectionPool(create=object, limit=1)
    order: list[str] = []

    def use(priority: Any) -> None:
        with pool.lease(priority=priority):
            order.append(priority)

    with pool, ThreadPoolExecutor(3) as threads:
        held = pool.acquire_sync()
        for waiting, priority in enumerate(("low", "normal", "high"), 1):
            threads.submit(use, priority)
            while pool.waiting < waiting:
                pass
        pool.release_sync(held)
    assert order == ["high", "normal", "low"]


def test_threads_and_tasks_serve_each_other() -> None:
    async def main() -> None:
        async with PlainBackend().pool(limit=1) as pool:
            resource = await pool.acquire()
            async with anyio.create_task_group() as group:
                got: list[Resource] = []

                async def lease_in_thread() -> None:
                    got.append(await anyio.to_thread.run_sync(lambda: pool.acquire_sync(timeout=10)))

                group.start_soon(lease_in_thread)
                while not pool.waiting:
                    await anyio.lowlevel.checkpoint()
                await pool.release(resource)
            assert got == [resource]
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.to_thread.run_sync, pool.release_sync, resource)
                assert await pool.acquire(timeout=10) is resource
            await pool.release(resource)

    asyncio.run(main())


def test_try_acquire_works_in_threads() -> None:
    with PlainBackend().pool(limit=1, min_free=1) as pool:
        resource = pool.try_acquire()
        assert resource is not None
        assert in_threads(pool.try_acquire) == [None]
        pool.release_sync(resource)


def test_a_thread_that_waits_is_told_when_the_pool_closes() -> None:
    pool = PlainBackend().pool(limit=1, close_timeout=0)
    pool.open_sync()
    pool.acquire_sync()

    def wait() -> str:
        try:
            pool.acquire_sync(timeout=None)
        except PoolClosed as error:
            return str(error)
        return ""

    def close() -> None:
        while not pool.waiting:
            pass
        pool.close_sync()

    told, _ = in_threads(wait, close)
    assert "closing" in told


def in_disguise(hook: Callable[[], Any]) -> Callable[[], Any]:
    """Return a `def` that does not show that the hook is async."""

    def call() -> Any:
        return hook()

    return call


# --- which may not -----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_pool_with_async_hook_belongs_to_opening_loop() -> None:
    pool = Backend().pool(limit=1)
    async with pool:
        resource = await pool.acquire()
        await pool.release(resource)
        for call in (pool.acquire_sync, pool.try_acquire, lambda: pool.lease().__enter__()):
            with pytest.raises(WrongEventLoop, match="Lease in that loop"):
                await anyio.to_thread.run_sync(call)
        for backend in ("asyncio", "trio"):
            with pytest.raises(WrongEventLoop, match="belong to the event loop that opened it"):
                await anyio.to_thread.run_sync(partial(anyio.run, pool.acquire, backend=backend))
        assert (pool.free, pool.taken) == (1, 0)


@pytest.mark.anyio
async def test_create_may_show_only_by_result_that_it_is_async() -> None:
    backend = Backend()
    async with ConnectionPool(create=in_disguise(backend.create), limit=1) as pool:
        with pytest.raises(WrongEventLoop):
            await anyio.to_thread.run_sync(lambda: pool.acquire_sync(timeout=10))
        assert pool.stats().leased == 0
        async with pool.lease(timeout=0):
            pass


@pytest.mark.anyio
async def test_sync_call_in_loop_is_refused_and_names_async_one() -> None:
    async with PlainBackend().pool(limit=1) as pool:
        for call, instead in (
            (pool.acquire_sync, "async with pool.lease"),
            (lambda: pool.lease().__enter__(), "async with pool.lease"),
            (pool.open_sync, "async with pool:"),
            (pool.drain_sync, "await pool.drain"),
            (pool.close_sync, "await pool.close"),
        ):
            with pytest.raises(WrongEventLoop, match=instead):
                call()
        assert pool.status == "open"
        assert pool.taken == 0


def test_plain_thread_cannot_open_pool_with_async_hook() -> None:
    with pytest.raises(PoolConfigError, match="must be awaited, but the pool is opened from a plain thread"):
        Backend().pool().open_sync()
    backend = Backend()
    pool: ConnectionPool[Resource] = ConnectionPool(create=in_disguise(backend.create), min_free=1)
    with pytest.raises(PoolConfigError, match="what a hook returns must be awaited"):
        pool.open_sync()
    assert pool.status == "closed"


def test_failed_open_in_thread_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())

    def fail() -> Resource:
        raise OSError

    pool = ConnectionPool(create=fail, min_free=1)
    with pytest.raises(Exception, match="create failed"):
        pool.open_sync()
    assert_all_end(set(threading.enumerate()) - before)
    assert pool.status == "closed"
