"""faults: hooks that fail on order, an outage, saturation."""

from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import asyncpg  # type: ignore[import-untyped] # has no types
import httpx
import pytest
from fastapi.testclient import TestClient

from connectionpools_fastapi import (
    ConnectionPool,
    Leased,
    PoolClosed,
    PoolConfigError,
    PoolTimeout,
    ResourceUnavailable,
)
from connectionpools_fastapi.adapters.aiosqlite import AiosqliteManager
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager
from connectionpools_fastapi.adapters.sqlite import SqliteManager
from connectionpools_fastapi.testing import faults, sandbox, started
from tests.support import Backend, PlainBackend, check
from tests.web import installed, things

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


@pytest.fixture(name="backend")
def fixture_backend() -> Backend:
    return Backend()


async def test_create_fails_as_often_as_ordered(backend: Backend) -> None:
    async with backend.pool() as pool:
        with faults(pool) as fault:
            fault.fail("create", times=3, error=OSError())
            async with pool.lease(timeout=60):
                assert (pool.stats().create_failures, pool.stats().creates) == (3, 1)
        check(pool)


async def test_failed_check_costs_resource_not_caller(backend: Backend) -> None:
    async with backend.pool("check", check_after=0) as pool:
        async with pool.lease():
            pass
        with faults(pool) as fault:
            fault.fail("check")
            async with pool.lease() as resource:
                assert resource is backend.created[1]


async def test_failed_change_discards(backend: Backend) -> None:
    async with backend.pool("change") as pool:
        with faults(pool) as fault:
            fault.fail("change")
            for number in (0, 1, 1):
                async with pool.lease() as resource:
                    assert resource is backend.created[number]


async def test_delayed_create_makes_callers_wait(backend: Backend) -> None:
    async with backend.pool() as pool:
        with faults(pool) as fault:
            fault.delay("create", 5)
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=4)
            async with pool.lease(timeout=2):
                assert backend.count("create") == 1


def test_delayed_create_makes_threads_wait() -> None:
    with PlainBackend().pool() as pool, faults(pool) as fault:
        fault.delay("create", 0.2)
        with pytest.raises(PoolTimeout):
            pool.acquire_sync(timeout=0.01)
        pool.release_sync(pool.acquire_sync(timeout=60))
        fault.fail("create", times=2)
        pool.drain_sync()
        pool.release_sync(pool.acquire_sync(timeout=60))
        assert pool.stats().create_failures == 2


async def test_back_end_goes_down_and_comes_back(backend: Backend) -> None:
    async with backend.pool() as pool:
        async with pool.lease():
            pass
        with faults(pool) as fault:
            fault.down(OSError())
            with pytest.raises(ResourceUnavailable) as caught:
                await pool.acquire(timeout=60)
            assert isinstance(caught.value.__cause__, OSError)
            assert pool.stats().down
            fault.up()
            async with pool.lease(timeout=60):
                assert not pool.stats().down


async def test_end_of_block_brings_back_end_back(backend: Backend) -> None:
    async with backend.pool() as pool:
        with faults(pool) as fault:
            fault.down()
            fault.fail("create", times=100)
        async with pool.lease():
            assert backend.count("create") == 1


async def test_saturated_pool_answers_503_until_end_of_block() -> None:
    pool = things(3, timeout=0.01)
    app = installed(pool)

    @app.get("/")
    async def use(_: Annotated[Any, Leased(pool)]) -> None: ...

    async with started(app) as served, httpx.AsyncClient(transport=httpx.ASGITransport(served)) as client:
        with faults(pool) as fault:
            async with fault.saturated():
                assert (await client.get("http://test/")).status_code == 503
            assert (await client.get("http://test/")).status_code == 200
    check(pool)


async def test_pool_is_saturated_whatever_its_timeout(backend: Backend) -> None:
    async with backend.pool("change", timeout=0) as pool:
        with faults(pool) as fault:
            fault.delay("create", 1, times=10)
            fault.delay("change", 1, times=10)
            async with fault.saturated():
                assert pool.taken == pool.limit
            assert pool.free == pool.limit


def test_plain_thread_saturates_pool_of_other_loop() -> None:
    pool = things(2, timeout=0.01)
    app = installed(pool)

    @app.get("/")
    async def use(_: Annotated[Any, Leased(pool)]) -> None: ...

    with TestClient(app) as client, faults(pool) as fault:
        with fault.saturated_sync():
            assert client.get("/").status_code == 503
        assert client.get("/").status_code == 200
        assert fault.kill_sync() == 0


def test_killed_connection_of_thread_raises(tmp_path: Path) -> None:
    pool = ConnectionPool(SqliteManager(tmp_path / "app.db"), name="db")
    with pool, faults(pool) as fault:
        with pytest.raises(Exception, match="closed"), pool.lease() as conn:  # noqa: PT012 - the second one raises
            assert fault.kill_sync() == 1
            conn.execute("SELECT 1")
        with pool.lease() as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.usefixtures("anyio_backend")
async def test_killed_connection_raises_error_of_driver(postgres_url: str) -> None:
    async with ConnectionPool(AsyncpgManager(postgres_url), name="db") as pool:
        with faults(pool) as fault:
            with pytest.raises(asyncpg.InterfaceError):  # noqa: PT012 - the second one raises
                async with pool.lease() as conn:
                    assert await fault.kill() == 1
                    await conn.fetchval("SELECT 1")
            async with pool.lease() as conn:
                assert await conn.fetchval("SELECT 1") == 1


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # in real time, which a thread needs
@pytest.mark.usefixtures("anyio_backend")
async def test_nothing_is_killed_in_a_sandbox(tmp_path: Path) -> None:
    db = ConnectionPool(SqliteManager(tmp_path / "app.db"), name="db")
    async with db:
        with faults(db) as fault:
            async with sandbox(db), db.lease():
                with pytest.raises(PoolConfigError, match="it is in a sandbox"):
                    await fault.kill()


async def test_skewed_clock_retires_what_is_old(backend: Backend) -> None:
    async with backend.pool(max_lifetime=1800) as pool:
        for expected in (1, 2, 3):
            async with pool.lease():
                assert pool.stats().creates == expected
            with faults(pool) as fault:
                fault.skew(1800)
        check(pool)


async def test_skewed_clock_cleans_what_is_idle_at_once(backend: Backend) -> None:
    async with backend.pool(max_idle=60) as pool:
        async with pool.lease():
            pass
        with faults(pool) as fault:
            fault.skew(30)
            assert pool.free == 1
            fault.skew(60)  # it has a jitter
            assert pool.free == 0


async def test_skewed_clock_ends_wait(backend: Backend) -> None:
    async def wait(pool: ConnectionPool[Any]) -> None:
        with pytest.raises(PoolTimeout):
            await pool.acquire(timeout=10)

    async with backend.pool(limit=1) as pool:
        with faults(pool) as fault:
            async with fault.saturated(), anyio.create_task_group() as tasks:
                began = anyio.current_time()
                tasks.start_soon(wait, pool)
                while not pool.waiting:
                    await anyio.lowlevel.checkpoint()
                fault.skew(10)
        assert anyio.current_time() == began


async def test_clock_is_not_skewed_back(backend: Backend) -> None:
    async with backend.pool() as pool:
        with faults(pool) as fault, pytest.raises(PoolConfigError, match="seconds must"):
            fault.skew(-1)


def test_thread_skews_clock_of_pool_in_other_loop(tmp_path: Path) -> None:
    db = ConnectionPool(AiosqliteManager(tmp_path / "app.db"), max_lifetime=1800, name="db")
    with TestClient(installed(db)), faults(db) as fault:
        assert db.stats().creates == 0
        with fault.saturated_sync():
            fault.skew(1800)
        with fault.saturated_sync():
            assert db.stats().creates == 2 * db.limit


async def test_hook_that_pool_has_not_is_refused(backend: Backend) -> None:
    with faults(backend.pool("change")) as fault:
        with pytest.raises(PoolConfigError, match="no hook 'check' that could fail; it has create, change"):
            fault.fail("check")
        with pytest.raises(PoolConfigError, match="seconds must be"):
            fault.delay("create", -1)


async def test_second_faults_of_pool_are_refused(backend: Backend) -> None:
    pool = backend.pool()
    with faults(pool), pytest.raises(PoolConfigError, match="has faults already"), faults(pool):
        pass


async def test_closed_pool_cannot_be_saturated(backend: Backend) -> None:
    with faults(backend.pool()) as fault, pytest.raises(PoolClosed, match="open it first"):
        async with fault.saturated():
            pass


async def test_cancelled_saturation_gives_back(backend: Backend) -> None:
    async with backend.pool(limit=2) as pool:
        with faults(pool) as fault:
            async with pool.lease():
                backend["create"].shut()
                with anyio.move_on_after(1):
                    async with fault.saturated():
                        pytest.fail("the second one is never made")
                backend["create"].open()
            assert pool.taken == 0
        check(pool)
