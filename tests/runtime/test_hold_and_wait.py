"""A caller that holds a resource of a pool does not wait for another one of it."""

from typing import Annotated, Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import BackgroundTasks, FastAPI

from connectionpools_fastapi import ConnectionPool, Leased, WouldDeadlock, install_pools
from connectionpools_fastapi.testing import started
from tests.web import Thing, ask, things

pytestmark = pytest.mark.anyio


def installed(pool: ConnectionPool[Any]) -> FastAPI:
    app = FastAPI()
    install_pools(app, pool)
    return app


async def test_requests_that_hold_one_each_are_told_at_once() -> None:
    """Each of them wants a second one."""
    pool = things(limit=2, timeout=60)
    app = installed(pool)
    both_hold, both_told = anyio.Event(), anyio.Event()
    told: list[str] = []

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased(pool)]) -> None:
        if pool.stats().leased == 2:
            both_hold.set()
        await both_hold.wait()
        with pytest.raises(WouldDeadlock, match="holds a resource already") as caught:
            await pool.acquire()
        told.append(str(caught.value))
        if len(told) == 2:
            both_told.set()
        await both_told.wait()

    async with started(app) as served:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(ask, served)
                group.start_soon(ask, served)
    assert len(told) == 2
    assert (pool.taken, pool.waiting) == (0, 0)


async def test_a_thread_of_the_request_is_told_as_well() -> None:
    pool: ConnectionPool[object] = ConnectionPool(create=object, limit=1, timeout=60, name="db")
    app = installed(pool)

    @app.get("/")
    def endpoint(_: Annotated[object, Leased(pool)]) -> str:
        with pytest.raises(WouldDeadlock):
            pool.acquire_sync()
        return "told"

    async with started(app) as served:
        assert b"told" in (await ask(served)).body


async def test_a_second_one_that_is_free_is_leased() -> None:
    pool = things(limit=2, min_free=1)
    app = installed(pool)

    @app.get("/")
    async def endpoint(first: Annotated[Thing, Leased(pool)]) -> bool:
        await anyio.lowlevel.checkpoint()
        spare = None
        while spare is None:  # until it is made ready
            spare = pool.try_acquire()
            await anyio.lowlevel.checkpoint()
        await pool.release(spare)
        return spare is not first

    async with started(app) as served:
        assert (await ask(served)).body == b"true"


async def test_background_task_waits_as_others_do() -> None:
    pool = things(limit=1, timeout=60)
    app = installed(pool)
    done: list[str] = []

    async def later() -> None:
        async with pool.lease():
            done.append("later")

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased(pool)], background: BackgroundTasks) -> None:
        background.add_task(later)

    async with started(app) as served, anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(ask, served)
    assert done == ["later"] * 5


async def test_requests_and_others_wait_for_each_other_as_before() -> None:
    pool = things(limit=1, timeout=60)
    app = installed(pool)

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased(pool)]) -> None:
        await anyio.lowlevel.checkpoint()

    async with started(app) as served:
        async with pool.lease(), anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(ask, served)
            while pool.waiting < 5:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        assert (await ask(served)).status == 200
