"""What the driver knows to be dead is not leased, however lately it was used."""

import threading
from typing import Any

import anyio
import pytest

from connectionpools_fastapi import ConnectionPool, PoolConfigError, PoolListener, ResourceManager
from connectionpools_fastapi._core.effects import Effect
from tests.state_harness import harness
from tests.support import Backend, PlainBackend, Resource, assert_nothing_is_lost, held, same, settled

pytestmark = pytest.mark.anyio


def is_known_dead(resource: Resource) -> bool:
    return resource.is_healthy is not True


class Listens(PoolListener):
    """Wants to hear of each lease, so that each is a decision."""

    def on_acquire(self, pool: str, waited: float) -> None: ...


def doubting(backend: Backend, **options: Any) -> ConnectionPool[Resource]:
    return backend.pool("check", doubtful=is_known_dead, check_after=60, **options)


async def fill(pool: ConnectionPool[Resource], number: int) -> list[Resource]:
    """Have so many free ones; the last is the next to be leased."""
    resources = [await pool.acquire() for _ in range(number)]
    for resource in resources:
        await pool.release(resource)
    return resources


@pytest.mark.parametrize("min_free", [0, 3])
@pytest.mark.parametrize("listener", [None, Listens()])  # with and without the fast path
async def test_the_next_lease_gets_one_that_is_not_doubted(min_free: int, listener: PoolListener | None) -> None:
    backend = Backend()
    async with doubting(backend, limit=3, min_free=min_free) as pool:
        if listener is not None:
            pool.add_listener(listener)
        alive, *dead = await fill(pool, 3)
        for resource in dead:
            resource.is_healthy = False
        async with pool.lease() as resource:
            assert resource is alive
        assert pool.stats().acquires == 4, "a lease that reached no caller was counted"
        await settled()
        assert same(dead, backend.cleaned)
        await assert_nothing_is_lost(pool, backend)


async def test_caller_gets_new_resource_when_all_are_dead() -> None:
    """The caller sees no error."""
    backend = Backend()
    async with doubting(backend, limit=5) as pool:
        await fill(pool, 5)
        for resource in backend.created:
            resource.is_healthy = False
        async with pool.lease() as resource:
            assert resource.is_healthy
        assert pool.stats().discards["check"] == 5
        await assert_nothing_is_lost(pool, backend)


@pytest.mark.parametrize("end", ["detach", "discard"])
async def test_resource_that_left_the_pool_is_not_asked_about(end: str) -> None:
    asked: list[Resource] = []
    backend = Backend()
    async with backend.pool("check", doubtful=asked.append, limit=1) as pool:
        async with pool.lease() as resource:
            getattr(pool, end)(resource)
            asked.clear()
        assert asked == []
        await assert_nothing_is_lost(pool, backend, detached=end == "detach")


async def test_doubt_refuted_by_check_costs_only_the_check() -> None:
    backend = Backend()
    async with backend.pool("check", doubtful=lambda _: True, check_after=60, limit=1) as pool:
        for uses in range(3):
            async with pool.lease() as resource:
                assert resource is backend.created[0]
                assert backend.count("check") == uses
        await assert_nothing_is_lost(pool, backend)


async def test_undoubted_is_not_checked_after_change() -> None:
    backend = Backend()
    async with backend.pool("check", "change", doubtful=is_known_dead, check_after=60, limit=1) as pool:
        await fill(pool, 1)
        async with pool.lease():
            assert backend.count("change") == 1
            assert backend.count("check") == 0
        await assert_nothing_is_lost(pool, backend)


async def test_to_raise_is_to_doubt() -> None:
    def fail(_: Resource) -> bool:
        raise OSError

    backend = Backend()
    async with backend.pool("check", doubtful=fail, check_after=60, limit=1) as pool:
        await fill(pool, 1)
        async with pool.lease():
            assert backend.count("check") == 1
        await assert_nothing_is_lost(pool, backend)


async def test_even_an_interrupt_in_it_costs_no_slot() -> None:
    interrupts: list[BaseException] = []

    def interrupted(_: Resource) -> bool:
        if interrupts:
            raise interrupts.pop()
        return False

    backend = Backend()
    async with backend.pool("check", doubtful=interrupted, check_after=60, limit=1) as pool:
        await fill(pool, 1)
        interrupts.append(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            await pool.acquire()
        async with pool.lease() as resource:
            assert resource is backend.created[0]
        await assert_nothing_is_lost(pool, backend)


async def test_try_acquire_gives_no_doubtful_one_either() -> None:
    backend = Backend()
    async with doubting(backend, limit=2) as pool:
        await fill(pool, 2)
        backend.created[1].is_healthy = False
        assert pool.try_acquire() is backend.created[0]
        await pool.release(backend.created[0])
        await assert_nothing_is_lost(pool, backend)


def test_threads_get_no_doubtful_one_either() -> None:
    backend = PlainBackend()
    pool = backend.pool(check=lambda resource: resource.is_healthy, doubtful=is_known_dead, check_after=60, limit=2)

    def use() -> None:
        with pool.lease() as resource:
            assert resource.is_healthy
            resource.is_healthy = False

    with pool:
        threads = [threading.Thread(target=use) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(backend.created) == len(backend.cleaned) == 8


@pytest.mark.parametrize("hooks", [(), ("change",)])
async def test_resource_released_dead_is_not_handed_to_waiter(hooks: tuple[str, ...]) -> None:
    backend = Backend()
    leased: list[Resource] = []

    async def wait(pool: ConnectionPool[Resource]) -> None:
        async with pool.lease() as resource:
            leased.append(resource)

    async with backend.pool("check", *hooks, doubtful=is_known_dead, check_after=60, limit=1) as pool:
        async with anyio.create_task_group() as tasks, held(pool) as dead:
            tasks.start_soon(wait, pool)
            await settled()
            dead.is_healthy = False
        assert leased
        assert leased[0] is not dead
        await assert_nothing_is_lost(pool, backend)


async def test_a_manager_may_have_it() -> None:
    class Manager(ResourceManager[Resource]):
        def create(self) -> Resource:
            return Resource(0)

        def check(self, resource: Resource) -> bool:
            return resource.is_healthy is True

        def doubtful(self, resource: Resource) -> bool:
            return is_known_dead(resource)

    async with ConnectionPool(Manager(), check_after=60) as pool:
        async with pool.lease() as first:
            first.is_healthy = False
        async with pool.lease() as second:
            assert second is not first


async def test_a_manager_without_it_is_not_asked() -> None:
    class Manager(ResourceManager[Resource]):
        def create(self) -> Resource:
            return Resource(0)

    pool = ConnectionPool(Manager())
    assert not pool._engine.hooks.has_doubts
    assert Manager().doubtful(Resource(0)) is False


def test_it_needs_a_check() -> None:
    with pytest.raises(PoolConfigError, match=r"pool 'db': doubtful needs a check, as check="):
        ConnectionPool(create=PlainBackend().create, doubtful=is_known_dead, name="db")


def test_it_must_not_be_async() -> None:
    backend = Backend()
    with pytest.raises(PoolConfigError, match=r"pool 'db': doubtful must not be async.*belongs to check"):
        backend.pool("check", doubtful=backend.check, name="db")


def test_one_that_has_to_go_anyway_is_not_checked_first() -> None:
    core = harness(limit=1, has_check=True, check_after=10)
    slot = core.lease()
    core.do(core.state.expire)
    core.do(core.state.send_to_check, slot)
    assert core.count("check") == 0
    assert core.discards() == {"expire": 1}


def test_one_that_was_given_back_meanwhile_is_left_alone() -> None:
    core = harness(limit=1, has_check=True, check_after=10)
    slot = core.lease()
    core.release(slot)
    core.do(core.state.send_to_check, slot)
    assert core.free() == [slot]


def test_listeners_hear_an_end_of_each_lease() -> None:
    core = harness(limit=1, has_check=True, check_after=10).listen("on_acquire", "on_release")
    core.release(core.lease())
    core.notified()
    slot = core.do(core.state.try_acquire)
    assert slot is not None
    core.do(core.state.send_to_check, slot)
    assert core.notified() == [("on_acquire", 0.0), ("on_release", 0.0)]
    assert core.asked[Effect.CHECK] == [slot]
