"""What the driver knows to be dead is not leased, however lately it was used."""

import threading
from typing import Any

import anyio
import pytest

from connectionpools_fastapi import ConnectionPool, PoolConfigError, PoolListener, ResourceManager
from connectionpools_fastapi._ledger import Action
from tests.desk import desk
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
        assert pool.stats().acquires == 4, "what nobody got was counted"
        await settled()
        assert same(dead, backend.cleaned)
        await assert_nothing_is_lost(pool, backend)


async def test_where_all_are_dead_the_caller_waits_for_a_new_one_and_sees_no_error() -> None:
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
async def test_nobody_asks_about_what_is_not_the_pools_any_more(end: str) -> None:
    asked: list[Resource] = []
    backend = Backend()
    async with backend.pool("check", doubtful=asked.append, limit=1) as pool:
        async with pool.lease() as resource:
            getattr(pool, end)(resource)
            asked.clear()
        assert asked == []
        await assert_nothing_is_lost(pool, backend, detached=end == "detach")


async def test_a_doubt_that_the_check_does_not_share_costs_a_check_only() -> None:
    backend = Backend()
    async with backend.pool("check", doubtful=lambda _: True, check_after=60, limit=1) as pool:
        for uses in range(3):
            async with pool.lease() as resource:
                assert resource is backend.created[0]
                assert backend.count("check") == uses
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
async def test_what_is_known_to_be_dead_as_it_comes_back_is_not_handed_to_who_waits(hooks: tuple[str, ...]) -> None:
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
    assert not pool._has_doubts
    assert Manager().doubtful(Resource(0)) is False


def test_it_needs_a_check() -> None:
    with pytest.raises(PoolConfigError, match=r"pool 'db': doubtful needs a check, as check="):
        ConnectionPool(create=PlainBackend().create, doubtful=is_known_dead, name="db")


def test_it_must_not_be_async() -> None:
    backend = Backend()
    with pytest.raises(PoolConfigError, match=r"pool 'db': doubtful must not be async.*belongs to check"):
        backend.pool("check", doubtful=backend.check, name="db")


def test_one_that_has_to_go_anyway_is_not_checked_first() -> None:
    at = desk(limit=1, has_check=True, check_after=10)
    slot = at.lease()
    at.do(at.state.expire)
    at.do(at.state.mistrust, slot)
    assert at.count("check") == 0
    assert at.discards() == {"expire": 1}


def test_one_that_was_given_back_meanwhile_is_left_alone() -> None:
    at = desk(limit=1, has_check=True, check_after=10)
    slot = at.lease()
    at.give_back(slot)
    at.do(at.state.mistrust, slot)
    assert at.free() == [slot]


def test_listeners_hear_of_an_end_for_each_lease_that_they_heard_of() -> None:
    at = desk(limit=1, has_check=True, check_after=10).listen("on_acquire", "on_release")
    at.give_back(at.lease())
    at.told()
    slot = at.do(at.state.try_acquire)
    assert slot is not None
    at.do(at.state.mistrust, slot)
    assert at.told() == [("on_acquire", 0.0), ("on_release", 0.0)]
    assert at.asked[Action.CHECK] == [slot]
