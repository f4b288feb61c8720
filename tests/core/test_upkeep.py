"""Resources grow old: each is retired, checked and replaced in time, off everybody's path."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from connectionpools_fastapi import ConnectionPool, PoolConfigError
from connectionpools_fastapi._runtime.on_asyncio import AsyncioLoop
from connectionpools_fastapi._runtime.on_trio import TrioLoop
from tests.support import Backend, Resource, assert_nothing_is_lost, check, held, loop_time, same, settled

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


@pytest.fixture
def rings(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the timers that pools set."""
    found: list[float] = []
    for kind in (AsyncioLoop, TrioLoop):
        original: Any = kind.call_later

        def call_later(loop: Any, delay: float, call: Callable[[], None], original: Any = original) -> Any:
            def ring() -> None:
                found.append(loop_time())
                call()

            return original(loop, delay, ring)

        monkeypatch.setattr(kind, "call_later", call_later)
    return found


@asynccontextmanager
async def filled(
    backend: Backend, *hooks: str, size: int = 3, **options: Any
) -> AsyncIterator[ConnectionPool[Resource]]:
    """Open a pool and let it create `size` resources at once."""
    async with backend.pool(*hooks, limit=size, **options) as pool:
        resources = [await pool.acquire() for _ in range(size)]
        for resource in resources:
            await pool.release(resource)
        yield pool
        check(pool)


async def age(seconds: float) -> None:
    await anyio.sleep(seconds)
    await settled()


# --- max_lifetime ----------------------------------------------------------------------------------


async def test_free_resource_retires_in_last_quarter_of_lifetime() -> None:
    backend = Backend()
    async with filled(backend, size=8, max_lifetime=100) as pool:
        await age(74.9)
        assert not backend.cleaned
        await age(25.2)
        assert same(backend.cleaned, backend.created)
        assert (pool.free, pool.stats().discards["max_lifetime"]) == (0, 8)


async def test_resources_created_together_retire_apart() -> None:
    backend = Backend()
    ends: list[float] = []
    async with filled(backend, size=8, max_lifetime=100) as pool:
        clean = backend.clean

        async def note(resource: Resource) -> None:
            ends.append(loop_time())
            await clean(resource)

        pool._engine.hooks._hooks["clean"] = note
        await age(101)
    assert len(set(ends)) == 8


async def test_resource_too_old_on_release_retires_unchanged() -> None:
    backend = Backend()
    async with filled(backend, "change", size=1, max_lifetime=100) as pool:
        uses = backend.created[0].uses
        async with pool.lease() as resource:
            await age(150)
            assert not backend.cleaned
        await settled()
        assert backend.cleaned == [resource]
        assert resource.uses == uses, "what goes need not be made ready for anybody"
        await assert_nothing_is_lost(pool, backend)


async def test_no_lease_begins_after_a_lifetime_with_late_timer() -> None:
    now = [0.0]
    backend = Backend()
    pool = backend.pool(limit=1, max_lifetime=10, clock=lambda: now[0])
    async with pool:
        first = await pool.acquire()
        await pool.release(first)
        now[0] = 10.1  # and the loop has had no time for its timers
        second = await pool.acquire()
        assert second is not first
        await pool.release(second)
        assert pool.stats().discards["max_lifetime"] == 1
        check(pool)


async def test_waiter_gets_new_resource_instead_of_too_old_one() -> None:
    backend = Backend()
    async with backend.pool(limit=1, max_lifetime=10) as pool, anyio.create_task_group() as group:
        lease = pool.lease()
        old = await lease.__aenter__()
        got: list[Resource] = []

        async def wait() -> None:
            async with pool.lease(timeout=60) as resource:
                got.append(resource)

        group.start_soon(wait)
        await age(20)
        lease.release_nowait()
        await settled()
        assert len(got) == 1
        assert got[0] is not old
        assert backend.cleaned == [old]


async def test_resource_too_old_after_its_check_is_not_used() -> None:
    backend = Backend()
    async with filled(backend, "check", size=1, max_lifetime=10, check_after=1, hook_timeout=60) as pool:
        old = backend.created[0]
        await age(8)
        backend["check"].shut()
        async with anyio.create_task_group() as group:
            got: list[Resource] = []

            async def lease() -> None:
                async with pool.lease() as resource:
                    got.append(resource)

            group.start_soon(lease)
            await age(3)
            backend["check"].open()
            await settled()
        assert len(got) == 1
        assert got[0] is not old


# --- max_uses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("hooks", [(), ("check",), ("check", "change")])
async def test_a_resource_is_leased_max_uses_times(hooks: tuple[str, ...]) -> None:
    backend = Backend()
    async with backend.pool(*hooks, limit=1, max_uses=3) as pool:
        users = []
        for _ in range(7):
            async with pool.lease() as resource:
                users.append(resource)
        await settled()
        assert [sum(user is resource for user in users) for resource in backend.created] == [3, 3, 1]
        assert pool.stats().discards["max_uses"] == 2
        await assert_nothing_is_lost(pool, backend)


# --- max_idle --------------------------------------------------------------------------------------


async def test_max_idle_retires_unused_ones_down_to_min_free() -> None:
    backend = Backend()
    async with filled(backend, size=5, max_idle=60, min_free=2) as pool:
        await age(53)
        assert pool.free == 5
        await age(8)
        assert (pool.free, pool.stats().discards["max_idle"]) == (2, 3)
        await age(600)
        assert pool.free == 2
        assert len(backend.created) == 5


async def test_only_surplus_ages_under_lifo_reuse() -> None:
    backend = Backend()
    async with filled(backend, size=3, max_idle=60) as pool:
        for _ in range(30):
            async with pool.lease() as busy:
                await age(1)
            await age(2)
        assert pool.free == 1
        assert len(backend.cleaned) == 2
        assert not any(resource is busy for resource in backend.cleaned)


async def test_with_fifo_all_stay_in_use_and_none_is_idle() -> None:
    backend = Backend()
    async with filled(backend, size=3, max_idle=60, reuse="fifo") as pool:
        for _ in range(60):
            async with pool.lease():
                await age(3)
        assert pool.free == 3


async def test_idle_time_counts_from_the_peak_not_the_creation() -> None:
    backend = Backend()
    async with filled(backend, size=2, max_idle=60) as pool:
        await age(40)
        async with held(pool), held(pool):
            pass
        await age(40)
        assert pool.free == 2
        await age(21)
        assert pool.free == 0


# --- min_free --------------------------------------------------------------------------------------


async def test_min_free_refills_in_background_several_at_once() -> None:
    backend = Backend()
    async with backend.pool(limit=9, min_free=4, max_lifetime=100, max_creating=3) as pool:
        backend["create"].shut()
        pool.expire()
        await settled()
        assert (pool.free, pool.creating) == (0, 3)
        backend["create"].open()
        await settled()
        assert pool.free == 4
        assert len(backend.created) == 8
        for _ in range(10):
            await age(50)
            assert pool.free == 4, "whatever goes is replaced"


# --- keepalive -------------------------------------------------------------------------------------


async def test_keepalive_checks_quiet_ones_so_no_caller_waits() -> None:
    backend = Backend()
    async with filled(backend, "check", size=3, keepalive=20, check_after=30) as pool:
        for _ in range(10):
            await age(60)
            before = backend.count("check")
            async with held(pool), held(pool), held(pool):
                assert backend.count("check") == before
        assert backend.count("check") >= 10 * 3 * 2


async def test_resources_in_use_are_not_checked_beside() -> None:
    backend = Backend()
    async with filled(backend, "check", size=1, keepalive=20, check_after=30) as pool:
        for _ in range(20):
            async with pool.lease():
                await age(9)
        async with pool.lease():
            await age(100)
        assert backend.count("check") == 0
        await age(21)
        assert backend.count("check") == 1


async def test_keepalive_checks_one_at_a_time() -> None:
    """The others stay ready meanwhile."""
    backend = Backend()
    async with filled(backend, "check", size=4, keepalive=20, check_after=30, hook_timeout=100) as pool:
        backend["check"].shut()
        await age(25)
        assert backend["check"].waiting == 1
        assert pool.free == 3
        backend["check"].open()
        await settled()
        assert pool.free == 4
        assert backend.count("check") == 4


async def test_dead_resource_is_replaced_before_a_caller_gets_it() -> None:
    backend = Backend()
    async with filled(backend, "check", size=3, keepalive=20, check_after=30, min_free=3) as pool:
        dead = backend.created[1]
        dead.is_healthy = False
        await age(21)
        assert any(resource is dead for resource in backend.cleaned)
        assert pool.free == 3
        async with held(pool) as one, held(pool) as two, held(pool) as three:
            assert not any(resource is dead for resource in (one, two, three))


async def test_resource_leased_at_its_check_is_checked_later() -> None:
    backend = Backend()
    async with filled(backend, "check", size=2, keepalive=20, check_after=30, hook_timeout=100) as pool:
        backend["check"].shut()
        await age(25)  # one is being checked, the other one is next
        lease = pool.lease()
        await lease.__aenter__()
        backend["check"].open()
        await settled()
        assert backend.count("check") == 1
        lease.release_nowait()
        await age(21)
        assert backend.count("check") == 3


def test_keepalive_without_a_check_is_refused() -> None:
    with pytest.raises(PoolConfigError, match="keepalive=30 needs a check"):
        Backend().pool(keepalive=30)


async def test_times_below_the_clock_s_own_precision_do_no_harm() -> None:
    backend = Backend()
    async with backend.pool(limit=1, min_free=1, max_idle=1e-12, max_lifetime=1e6) as pool:
        async with pool.lease():
            pass
        state = pool._engine.state
        for slot in state.inventory.slots.values():
            state.maintenance.schedule(slot, 1e9)
            assert slot.due_at > 1e9


async def test_a_slow_check_lets_nothing_pile_up() -> None:
    backend = Backend()
    async with filled(backend, "check", size=5, keepalive=1, check_after=10, hook_timeout=1000) as pool:
        backend["check"].shut()
        await age(500)
        assert len(pool._engine.state.maintenance._unchecked) <= 5
        backend["check"].open()


@pytest.mark.parametrize("max_hold", [13.522987986828, 0.1, 3.3, 7.7])
async def test_hold_check_comes_on_time_to_the_bit(max_hold: float, rings: list[float]) -> None:
    async with Backend().pool(limit=1, max_hold=max_hold) as pool:
        for _ in range(20):
            async with pool.lease():
                await age(max_hold * 1.37)
        assert len(rings) <= 60


# --- one timer, no polling ---------------------------------------------------------------------------


async def test_idle_pool_sets_no_timer(rings: list[float]) -> None:
    backend = Backend()
    async with filled(backend, "check", size=3, max_hold=5):
        await age(30)
        rings.clear()
        await age(100_000)
        assert not rings


async def test_a_pool_wakes_for_what_is_due_and_then_never_again(rings: list[float]) -> None:
    backend = Backend()
    options = {"max_idle": 60, "max_lifetime": 1000, "max_hold": 5, "min_free": 1, "check_after": 0}
    async with filled(backend, "check", size=4, **options) as pool:
        await age(5000)
        assert pool.free == 1
        # Four were looked at for being idle; since then the one that stays is looked at when it may be idle or old.
        assert 4 <= len(rings) < 5000 / 54 + 5000 / 900 + 10
    async with filled(backend, size=4, max_idle=60) as pool:
        await age(61)
        assert pool.free == 0
        rings.clear()
        await age(100_000)
        assert not rings


async def test_ten_thousand_uses_set_no_more_timers_than_one(rings: list[float]) -> None:
    backend = Backend()
    async with filled(backend, size=1, max_idle=60, max_lifetime=1000, max_hold=5) as pool:
        for _ in range(10_000):
            async with pool.lease():
                pass
        assert not rings
        await age(1001)
        assert pool.free == 0
        assert 1 <= len(rings) <= 4 + 1000 / 54


# --- a machine that was suspended ----------------------------------------------------------------------


class Machine:
    """Its clock goes on while it is suspended, its timers do not."""

    def __init__(self) -> None:
        self.suspended_for = 0.0

    def clock(self) -> float:
        return loop_time() + self.suspended_for


async def test_machine_suspend_has_stale_checked_and_old_replaced() -> None:
    backend, machine = Backend(), Machine()
    async with backend.pool(
        "check", limit=3, min_free=2, check_after=1, max_lifetime=3600, keepalive=30, clock=machine.clock
    ) as pool:
        async with pool.lease() as old:
            pass
        machine.suspended_for = 8 * 3600
        async with pool.lease() as fresh:
            assert fresh is not old
        await age(40)  # the timer was set before, and rings as late as that
        assert same(backend.cleaned, backend.created[:2])
        assert pool.free >= 2
        check(pool)


async def test_waiter_through_a_suspend_times_out_once() -> None:
    """Leases go on."""
    backend, machine = Backend(), Machine()
    async with backend.pool(limit=1, timeout=5, clock=machine.clock, max_hold=60) as pool, held(pool):
        async with anyio.create_task_group() as group:
            errors: list[BaseException] = []

            async def wait() -> None:
                try:
                    await pool.acquire()
                except TimeoutError as error:
                    errors.append(error)

            for _ in range(3):
                group.start_soon(wait)
            await settled()
            machine.suspended_for = 3600
        assert len(errors) == 3
        assert (pool.taken, pool.waiting) == (1, 0)


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="a clock that counts suspends is Linux's own")
async def test_clock_that_counts_suspends_can_be_the_pool_clock() -> None:
    pool = ConnectionPool(create=object, limit=1, blocking=False, clock=lambda: time.clock_gettime(time.CLOCK_BOOTTIME))
    async with pool, pool.lease():
        assert pool.holders()[0].age < 60
