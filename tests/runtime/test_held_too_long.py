"""Leases that are held for too long, lost, or waited for in a circle: found, named and told."""

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Annotated, Any

import anyio
import anyio.to_thread
import pytest
from fastapi import Depends, FastAPI, WebSocket

from connectionpools_fastapi import (
    ConnectionPool,
    Leased,
    NotLeased,
    Pooled,
    PoolTimeout,
    WouldDeadlock,
    install_pools,
)
from connectionpools_fastapi._runtime.caller import current_task
from connectionpools_fastapi._runtime.executor import GRACE
from connectionpools_fastapi._runtime.holders import name_of
from connectionpools_fastapi.testing import started
from tests.support import (
    Backend,
    PlainBackend,
    Resource,
    assert_nothing_is_lost,
    check,
    held,
    jumping,
    outcome_of,
    settled,
)
from tests.web import Thing, ask, speak, things

pytestmark = [pytest.mark.anyio]
virtual = pytest.mark.virtual_time


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What the pools say."""
    with caplog.at_level(logging.WARNING, logger="connectionpools_fastapi"):
        yield caplog.messages
        gc.collect()


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "connectionpools_fastapi"]


# --- circles -----------------------------------------------------------------------------------------


async def test_holder_of_only_resource_is_told_when_it_wants_two() -> None:
    backend = Backend()
    async with backend.pool(limit=1, timeout=None) as pool:
        async with pool.lease():
            with pytest.raises(WouldDeadlock, match="end it first, or raise limit"):
                await pool.acquire()
            assert isinstance(await outcome_of(pool.lease().__aenter__), WouldDeadlock)
        assert pool.stats().refusals["deadlock"] == 2
        await assert_nothing_is_lost(pool, backend)


async def test_task_that_would_close_a_circle_is_told() -> None:
    """The other tasks go on."""
    backend = Backend()
    async with backend.pool(limit=3, timeout=None) as pool:
        ready = 0
        outcomes: list[Any] = []

        async def want_two() -> None:
            nonlocal ready
            async with pool.lease():
                ready += 1
                while ready < 3:
                    await anyio.lowlevel.checkpoint()
                try:
                    async with pool.lease():
                        outcomes.append("served")
                except WouldDeadlock:
                    outcomes.append("told")

        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(want_two)
        assert sorted(outcomes) == ["served", "served", "told"]
        await assert_nothing_is_lost(pool, backend)


@pytest.mark.parametrize("other", ["holds by hand", "holds and does not wait", "is checked", "may be created"])
async def test_no_deadlock_is_told_while_a_release_may_come(other: str) -> None:
    """A task that holds one and waits is right to wait while another holder may give one back."""
    backend = Backend()
    hooks = ("check",) if other == "is checked" else ()
    async with backend.pool(*hooks, limit=2, check_after=0, timeout=None) as pool, anyio.create_task_group() as group:
        finish = anyio.Event()

        async def hold() -> None:
            async with pool.lease():
                await finish.wait()

        async with pool.lease():
            if other == "holds by hand":
                by_hand = await pool.acquire()  # any task that it is handed to may give it back

                async def give_back() -> None:
                    await pool.release(by_hand)

            elif other == "holds and does not wait":
                group.start_soon(hold)
                await settled()

                async def give_back() -> None:
                    finish.set()

            else:
                hook = {"is checked": "check", "may be created": "create"}[other]
                async with held(pool):  # so that there is one to check
                    pass
                if other == "may be created":
                    pool.expire()
                backend[hook].shut()

                async def give_back() -> None:
                    backend[hook].open()

            async def come_to_pass() -> None:
                while not pool.waiting:
                    await anyio.lowlevel.checkpoint()
                await give_back()

            group.start_soon(come_to_pass)
            with anyio.fail_after(10):
                async with pool.lease():
                    pass
        finish.set()
    check(pool)


async def test_newcomer_without_lease_waits() -> None:
    backend = Backend()
    async with backend.pool(limit=1, timeout=None) as pool, anyio.create_task_group() as group:
        served = False

        async def innocent() -> None:
            nonlocal served
            async with pool.lease():
                served = True

        async with pool.lease():
            group.start_soon(innocent)
            await settled()
            assert isinstance(await outcome_of(pool.acquire), WouldDeadlock)
            assert pool.waiting == 1
        await settled()
        assert served


async def test_child_task_is_another_holder() -> None:
    """It is not known whether its parent waits for it."""
    backend = Backend()
    async with backend.pool(limit=1) as pool, pool.lease(), anyio.create_task_group() as group:

        async def child() -> None:
            with pytest.raises(PoolTimeout):
                await pool.acquire(timeout=0.01)

        group.start_soon(child)


def test_thread_is_no_holder_and_waits_as_others_do() -> None:
    """A worker thread that has entered a `def` dependency is idle again, and may run another request."""
    with PlainBackend().pool(limit=1) as pool, pool.lease(), pytest.raises(PoolTimeout):
        pool.acquire_sync(timeout=0.01)


async def test_def_dependencies_on_shared_threads_all_succeed() -> None:
    pool = PlainBackend().pool(limit=2, timeout=20)
    app = FastAPI()
    install_pools(app, pool)

    def connection() -> Iterator[Resource]:
        with pool.lease() as resource:
            yield resource

    @app.get("/")
    async def endpoint(_: Annotated[Any, Depends(connection)]) -> None:
        for _ in range(5):
            await anyio.lowlevel.checkpoint()

    async with started(app) as served:
        statuses: list[int] = []

        async def client() -> None:
            statuses.extend([(await ask(served)).status for _ in range(10)])

        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(client)
    assert statuses == [200] * 60


async def test_request_task_is_told_without_middleware() -> None:
    pool = things(limit=1, timeout=60)
    app = FastAPI()

    @app.get("/")
    async def endpoint(_: Annotated[object, Leased(pool, scope="request")]) -> str:
        with pytest.raises(WouldDeadlock):
            await pool.acquire()
        return "told"

    async with pool:
        assert b"told" in (await ask(app)).body


# --- max_hold ------------------------------------------------------------------------------------------


@virtual
async def test_long_lease_is_reported_once_with_holder_and_age(caplog: pytest.LogCaptureFixture) -> None:
    async with Backend().pool(limit=3, max_hold=30, name="db") as pool:
        for _ in range(5):
            async with pool.lease():
                await anyio.sleep(20)
        assert messages(caplog) == []
        async with pool.lease(holder="GET /slow"):
            await anyio.sleep(10)
            async with pool.lease():
                await anyio.sleep(100)
        assert messages(caplog) == [
            "pool 'db': GET /slow has held a resource for 30 s, and max_hold is 30 s",
            f"pool 'db': {name_of(current_task())} has held a resource for 30 s, and max_hold is 30 s",
        ]


@virtual
async def test_each_lease_of_resource_is_reported_after_max_hold(caplog: pytest.LogCaptureFixture) -> None:
    async with Backend().pool(limit=1, max_hold=5, name="db") as pool:
        for turn in range(3):
            async with pool.lease(holder=turn):
                await anyio.sleep(7)
            await anyio.sleep(1)
        assert [message.split()[2] for message in messages(caplog)] == ["0", "1", "2"]


@virtual
async def test_lease_by_hand_is_reported_under_its_task(caplog: pytest.LogCaptureFixture) -> None:
    async with Backend().pool(limit=1, max_hold=5, name="db") as pool, held(pool):
        await anyio.sleep(6)
        assert messages(caplog)[0].startswith(f"pool 'db': {name_of(current_task())} has held")


def test_a_thread_is_reported_by_its_name() -> None:
    with PlainBackend().pool(limit=2) as pool:
        names: list[str] = []

        def work() -> None:
            with pool.lease():
                names.extend(holder.name for holder in pool.holders())
            resource = pool.acquire_sync()
            names.extend(holder.name for holder in pool.holders())
            pool.release_sync(resource)

        thread = threading.Thread(target=work, name="nightly report")
        thread.start()
        thread.join(10)
        assert names == ["nightly report"] * 2


@virtual
async def test_a_request_is_reported_by_its_route(caplog: pytest.LogCaptureFixture) -> None:
    backend = Backend()
    pool = backend.pool(limit=1, max_hold=5, name="db")
    app = FastAPI()
    install_pools(app, pool)

    @app.get("/items/{item}")
    async def endpoint(item: int, _: Annotated[Resource, Leased(pool)]) -> None:
        await anyio.sleep(2 * item)

    async with started(app) as served:
        await ask(served, "/items/3")
    assert [message for message in messages(caplog) if "GET /items/{item} has held" in message]


@virtual
async def test_debug_mode_reports_where_lease_was_acquired(caplog: pytest.LogCaptureFixture) -> None:
    async with Backend().pool(limit=3, max_hold=5, debug=True) as pool:

        async def a_function_of_the_application() -> Resource:
            return await pool.acquire()

        resource = await a_function_of_the_application()
        async with pool.lease():
            await anyio.sleep(6)
        await pool.release(resource)
    by_hand, by_block = messages(caplog)
    assert "acquired at:\n" in by_hand
    assert by_hand.rstrip().endswith("return await pool.acquire()")
    assert "in a_function_of_the_application" in by_hand
    assert "async with pool.lease():" in by_block
    assert "connectionpools_fastapi" not in by_block.split("acquired at:")[1].splitlines()[-2]


@virtual
async def test_without_debug_mode_no_stack_is_kept() -> None:
    async with Backend().pool(limit=1) as pool, pool.lease():
        assert [slot.stack for slot in pool._engine.inventory.taken.values()] == [None]


# --- lost leases -----------------------------------------------------------------------------------------


@virtual
async def test_dropped_lease_is_reported_and_slot_recovered(caplog: pytest.LogCaptureFixture) -> None:
    backend = Backend()
    async with backend.pool("change", limit=1, name="db") as pool:
        lost = await pool.lease(holder="a careless one").__aenter__()
        gc.collect()
        await anyio.sleep(GRACE)
        async with pool.lease() as resource:
            assert resource is not lost, "the caller that lost the lease may still use the resource"
        (message,) = messages(caplog)
        assert message.startswith("pool 'db': a careless one has held a resource for 1 s and dropped its lease; ")
        assert pool.stats().discards["leak"] == 1
        with pytest.raises(NotLeased):
            await pool.release(lost)
        await assert_nothing_is_lost(pool, backend)


@virtual
async def test_waiter_is_served_after_lease_is_lost() -> None:
    backend = Backend()
    async with backend.pool(limit=1, timeout=60) as pool, anyio.create_task_group() as group:
        leases = [pool.lease()]
        await leases[0].__aenter__()
        served = False

        async def wait() -> None:
            nonlocal served
            async with pool.lease():
                served = True

        group.start_soon(wait)
        await settled()
        leases.clear()
        gc.collect()
        await anyio.sleep(GRACE)
        await settled()
        assert served


async def test_ended_lease_is_never_taken_for_lost(caplog: pytest.LogCaptureFixture) -> None:
    backend = Backend()
    async with backend.pool("change", limit=2) as pool:
        for end in ("discard", "detach", "release_nowait"):
            lease = pool.lease()
            async with lease:
                getattr(lease, end)()
            del lease
        async with pool.lease() as resource:
            pool.discard(resource)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(pool.lease())
            gc.collect()
            assert pool.stats().leased == 1
        resource = await pool.acquire()
        gc.collect()
        await settled()
        assert pool.stats().leased == 1, "what was acquired by hand has no lease that could be lost"
        await pool.release(resource)
        assert pool.stats().discards["leak"] == 0
    assert messages(caplog) == []


@virtual
async def test_lost_lease_may_be_collected_under_the_lock() -> None:
    backend = Backend()
    async with backend.pool(limit=2) as pool:
        leases: list[Any] = [pool.lease()]
        await leases[0].__aenter__()

        def decide() -> None:
            assert pool._engine.executor._decider is not None
            leases.clear()
            gc.collect()

        pool._engine.apply(decide)
        await anyio.sleep(GRACE)
        await settled()
        assert (pool.taken, pool.stats().discards["leak"]) == (0, 1)


@virtual
@pytest.mark.parametrize("anyio_backend", [jumping("asyncio")])  # trio warns of it, as the code deserves
async def test_collected_generator_gives_its_lease_back(caplog: pytest.LogCaptureFixture) -> None:
    """The collector tells of the lease first; only then asyncio ends the generator, which may take its time."""
    backend = Backend()
    async with backend.pool(limit=1, timeout=20) as pool:
        cleaned_up: list[int] = []

        async def rows() -> AsyncIterator[Any]:
            itself = yield
            async with pool.lease() as resource:
                try:
                    yield resource, itself
                finally:
                    cleaned_up.append(len(backend.cleaned))

        generator: Any = rows()
        await generator.asend(None)
        await generator.asend(generator)  # a cycle, as a traceback makes one
        assert pool.stats().leased == 1
        del generator
        gc.collect()
        async with pool.lease():
            pass
        await anyio.sleep(GRACE)
        assert cleaned_up == [0], "the resource was whole to the end"
        assert pool.stats().discards["leak"] == 0
    assert messages(caplog) == []


def test_a_thread_that_drops_its_lease_costs_no_slot() -> None:
    backend = PlainBackend()
    with backend.pool(limit=1, timeout=20) as pool:
        pool.lease().__enter__()
        gc.collect()
        with pool.lease():
            pass
        assert pool.stats().discards["leak"] == 1


def test_lease_lost_after_end_of_loop_is_harmless() -> None:
    backend = Backend()
    leases = []

    async def live() -> None:
        pool = backend.pool(limit=1, clock=lambda: 0.0)
        await pool.open()
        leases.append(pool.lease())
        await leases[0].__aenter__()

    asyncio.run(live())
    leases.clear()
    gc.collect()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_pool_does_not_keep_destroyed_holder_task_alive() -> None:
    """asyncio itself keeps only weak references to tasks."""
    async with Backend().pool(limit=1) as pool:

        async def never_ends() -> None:
            async with pool.lease():
                await asyncio.get_running_loop().create_future()

        task = asyncio.ensure_future(never_ends())
        await settled()
        assert pool.stats().leased == 1
        task.get_loop().set_exception_handler(lambda *_: None)  # it was destroyed but is pending
        del task
        gc.collect()
        await settled()
        assert pool.stats().leased == 0


# --- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_hand", [False, True])
async def test_a_lease_of_a_request_is_named_after_its_route(by_hand: bool) -> None:  # noqa: FBT001
    pool = things()
    app = FastAPI()
    install_pools(app, pool)
    names: list[str] = []

    async def look(of: ConnectionPool[Thing]) -> None:
        if by_hand:
            thing = await of.acquire()
            names.extend(holder.name for holder in of.holders())
            await of.release(thing)
        else:
            async with of.lease():
                names.extend(holder.name for holder in of.holders())

    @app.get("/items")
    async def items(of: Annotated[ConnectionPool[Thing], Pooled("db")]) -> None:
        await look(of)
        async with anyio.create_task_group() as group:
            group.start_soon(look, pool)

    @app.websocket("/live")
    async def live(socket: WebSocket) -> None:
        await socket.accept()
        await look(pool)
        await socket.close()

    async with started(app) as served:
        await ask(served, "/items")
        await speak(served, "/live")
        await look(pool)
    assert names == [*["GET /items"] * 2, "WEBSOCKET /live", name_of(current_task())]


@pytest.mark.parametrize("by_hand", [False, True])
async def test_lease_of_worker_thread_is_named_after_route(by_hand: bool) -> None:  # noqa: FBT001
    pool = things(blocking=True)
    app = FastAPI()
    install_pools(app, pool)
    names: list[str] = []

    def look() -> Iterator[None]:
        if by_hand:
            thing = pool.acquire_sync()
            names.extend(holder.name for holder in pool.holders())
            pool.release_sync(thing)
        else:
            with pool.lease():
                names.extend(holder.name for holder in pool.holders())
            with pool.lease(holder="its own"):
                names.extend(holder.name for holder in pool.holders())
        yield

    @app.get("/items")
    def items() -> None:
        list(look())

    @app.websocket("/live")
    async def live(socket: WebSocket, _: Annotated[None, Depends(look)]) -> None:
        await socket.accept()
        await socket.close()

    async with started(app) as served:
        await ask(served, "/items")
        await speak(served, "/live")
    own = [] if by_hand else ["its own"]
    assert names == ["GET /items", *own, "WEBSOCKET /live", *own]
