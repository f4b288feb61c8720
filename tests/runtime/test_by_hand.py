"""What is acquired by hand and lost is recovered; what is handed on is not."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import anyio
import anyio.to_thread
import pytest
from fastapi import FastAPI

from connectionpools_fastapi import ConnectionPool, Loan, NotLeased, Pooled, install_pools
from connectionpools_fastapi._core.by_hand import LOOK_EVERY
from connectionpools_fastapi.testing import started
from tests.support import check, held, jumping, loop_time, settled
from tests.web import Thing, ask, things

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


async def in_a_task(call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(call)


async def looked_twice() -> None:
    await anyio.sleep(2 * LOOK_EVERY)
    await anyio.wait_all_tasks_blocked()


class Lent:
    """Refers to itself, and its resource to it, as what drivers make."""

    def __init__(self, thing: Any, loan: Loan) -> None:
        self.itself, self.loan, self.thing = self, loan, thing
        thing.lent = self


class Books:
    """Notes what is cleaned; not what is created, since that would refer to it."""

    def __init__(self) -> None:
        self.cleaned: list[Thing] = []

    def pool(self, limit: int = 1, **hooks: Any) -> ConnectionPool[Any]:
        return things(limit, clean=self.cleaned.append, **{"clock": loop_time, **hooks})


@pytest.mark.parametrize("lend", [None, Lent])
async def test_a_lease_of_a_task_that_ended_is_recovered(lend: Any, caplog: pytest.LogCaptureFixture) -> None:
    books = Books()
    async with books.pool(lend=lend, debug=True) as pool:

        async def forget() -> None:
            await pool.acquire()

        await in_a_task(forget)
        began = loop_time()
        async with pool.lease(timeout=5):
            assert loop_time() - began == 2 * LOOK_EVERY
        (message,) = caplog.messages
        assert message.startswith(
            "pool 'db': a holder that is gone has held a resource for 2 s and ended without giving it back; "
            "the resource is destroyed. Write `async with pool.lease()`\nacquired at:\n"
        )
        assert message.rstrip().endswith("await pool.acquire()")
        assert (pool.stats().discards["leak"], len(books.cleaned)) == (1, 1)


@pytest.mark.parametrize("anyio_backend", [jumping("asyncio")])
async def test_a_task_that_ended_is_named_while_it_is_known(caplog: pytest.LogCaptureFixture) -> None:
    async with things(clock=loop_time) as pool:

        async def forget() -> None:
            assert pool.try_acquire() or await pool.acquire()

        tasks = [asyncio.create_task(forget(), name=f"careless {number}") for number in range(2)]
        await asyncio.gather(*tasks)
        await looked_twice()
        assert [message.split(" has held ")[0] for message in caplog.messages] == [
            "pool 'db': careless 0",
            "pool 'db': careless 1",
        ]


async def test_lease_of_ended_request_is_reported_with_route(caplog: pytest.LogCaptureFixture) -> None:
    pool = things(clock=loop_time)
    app = FastAPI()
    install_pools(app, pool)

    @app.get("/items")
    async def forget(of: Annotated[ConnectionPool[Thing], Pooled("db")]) -> None:
        await of.acquire()

    async with started(app) as served:
        await in_a_task(lambda: ask(served, "/items"))
        await looked_twice()
    assert "'db': GET /items has held a resource for 2 s and ended without giving it back" in caplog.text


@pytest.mark.parametrize("lend", [None, Lent])
@pytest.mark.parametrize("handed_on_by", ["a variable", "a result"])
async def test_what_a_task_has_handed_on_is_left_alone(
    lend: Any, handed_on_by: str, caplog: pytest.LogCaptureFixture
) -> None:
    books = Books()
    async with books.pool(lend=lend) as pool:
        box: list[Any] = []

        async def acquire() -> None:
            box.append(await pool.acquire())

        await in_a_task(acquire)
        if handed_on_by == "a result":
            holder = box.pop()

            async def keep(resource: Any) -> None:
                await anyio.sleep(10)
                await pool.release(resource)

            async with anyio.create_task_group() as group:
                group.start_soon(keep, holder)
                del holder
        else:
            await anyio.sleep(10)
            await pool.release(box.pop())
        await looked_twice()
        assert (pool.free, books.cleaned, caplog.messages) == (1, [], [])


@pytest.mark.parametrize("anyio_backend", [jumping("asyncio")])
async def test_wait_for_and_gather_acquire_in_tasks_of_their_own() -> None:
    books = Books()
    async with books.pool(3) as pool:
        one = await asyncio.wait_for(pool.acquire(), 1)
        others = asyncio.gather(pool.acquire(), pool.acquire())
        await anyio.sleep(10)
        for resource in (one, *await others):
            await pool.release(resource)
        assert (pool.free, books.cleaned) == (3, [])


async def test_running_task_keeps_lease_without_reference() -> None:
    async with Books().pool() as pool, anyio.create_task_group() as group:

        async def go_on() -> None:
            await pool.acquire()
            await anyio.sleep_forever()

        group.start_soon(go_on)
        await anyio.sleep(60)
        assert pool.taken == 1
        group.cancel_scope.cancel()


async def test_pool_looks_only_during_leases_by_hand() -> None:
    async with Books().pool() as pool:
        async with held(pool):
            await settled()
            assert pool._engine.state.inventory.by_hand.is_watched
        await looked_twice()
        assert not pool._engine.state.inventory.by_hand.is_watched
        async with pool.lease():
            await anyio.sleep(10)
            assert pool._engine.state.next_deadline() == float("inf")


async def test_pool_looks_at_older_leases_less_often() -> None:
    """A new lease is looked at soon, however long the others have gone on."""
    books = Books()
    async with books.pool(3) as pool, held(pool):
        pauses = []
        for _ in range(9):
            pauses.append(pool._engine.state.inventory.by_hand.due_at - loop_time())
            await anyio.sleep(pauses[-1] + 0.001)
        assert pauses == pytest.approx([1, 1, 2, 4, 8, 16, 32, 60, 60], abs=0.1)

        async def forget() -> None:
            await pool.acquire()

        await in_a_task(forget)
        await looked_twice()
        assert (len(books.cleaned), pool.taken) == (1, 1)


async def test_what_is_lost_after_close_is_cleaned() -> None:
    books = Books()
    pool = books.pool(close_timeout=1)

    async def forget_late() -> None:
        resource = await pool.acquire()
        await anyio.sleep(5)
        check(pool)
        del resource

    async with anyio.create_task_group() as group:
        await pool.open()
        group.start_soon(forget_late)
        await anyio.wait_all_tasks_blocked()
        await pool.close()
        assert not books.cleaned
    await anyio.sleep(10)
    assert len(books.cleaned) == 1
    check(pool)


@pytest.mark.parametrize("anyio_backend", [jumping("asyncio")])
async def test_a_lease_of_a_thread_that_ended_is_recovered(caplog: pytest.LogCaptureFixture) -> None:
    books = Books()
    async with books.pool(clock=asyncio.get_running_loop().time) as pool:
        async with pool.lease():
            pass  # and one is free, for a thread that this loop does not run beside
        thread = threading.Thread(target=lambda: pool.acquire_sync() and None, name="nightly report")
        thread.start()
        thread.join(10)
        async with pool.lease(timeout=5):
            assert books.cleaned
    assert "nightly report has held a resource for 2 s and ended without giving it back" in caplog.text


@pytest.mark.parametrize("anyio_backend", [jumping("asyncio")])
async def test_a_thread_may_hand_on_what_it_has_acquired() -> None:
    books = Books()
    async with books.pool(clock=asyncio.get_running_loop().time) as pool:
        async with pool.lease():
            pass
        box: list[Thing] = []
        thread = threading.Thread(target=lambda: box.append(pool.acquire_sync()))
        thread.start()
        thread.join(10)
        await anyio.sleep(10)
        await pool.release(box.pop())
        assert not books.cleaned


async def test_what_was_recovered_cannot_be_given_back() -> None:
    """Whatever still has a part of it: the resource itself is gone."""
    books = Books()
    async with books.pool() as pool:

        async def forget() -> None:
            await pool.acquire()

        await in_a_task(forget)
        await looked_twice()
        with pytest.raises(NotLeased):
            await pool.release(books.cleaned[0])
