"""What `lend` returns is what callers have, and it is dead from the end of its lease on."""

import gc
import logging
from collections.abc import AsyncIterator, Callable
from threading import Thread
from typing import Annotated, Any
from weakref import ref

import anyio
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.responses import StreamingResponse

from connectionpools_fastapi import (
    ConnectionPool,
    Leased,
    Loan,
    NotLeased,
    PoolConfigError,
    ResourceManager,
    install_pools,
)
from connectionpools_fastapi._runtime.executor import GRACE
from connectionpools_fastapi.testing import started
from tests.state_harness import harness
from tests.support import Backend, PlainBackend, Resource, assert_nothing_is_lost, check, settled
from tests.web import ask

pytestmark = pytest.mark.anyio


class Guarded(Resource):
    """Stands for a resource until its lease ends."""

    def __init__(self, resource: Resource, loan: Loan) -> None:
        super().__init__(resource.number)
        self.resource = resource
        self.loan = loan

    def use(self) -> int:
        self.loan.check()
        return self.resource.number


def lending(backend: Backend, *hooks: str, **options: Any) -> ConnectionPool[Resource]:
    return backend.pool(*hooks, **{"lend": Guarded, "name": "db", **options})


def guarded(resource: Resource) -> Guarded:
    assert isinstance(resource, Guarded)
    return resource


def number(resource: Resource) -> int:
    return guarded(resource).use()


@pytest.mark.parametrize("hooks", [(), ("change",)])
async def test_lent_object_works_until_its_lease_ends(hooks: tuple[str, ...]) -> None:
    backend = Backend()
    async with lending(backend, *hooks) as pool:
        async with pool.lease() as first:
            assert number(first) == 0
        async with pool.lease() as second:
            assert second is not first
            assert number(second) == 0
            with pytest.raises(NotLeased, match=r"pool 'db'.*after its lease had ended.*pool.lease"):
                number(first)


@pytest.mark.parametrize(
    "end", [lambda lease: lease.release_nowait(), lambda lease: lease.discard()], ids=["release", "discard"]
)
async def test_lent_object_is_dead_before_change_begins(end: Callable[[Any], None]) -> None:
    backend = Backend()
    async with lending(backend, "change") as pool:
        lease = pool.lease()
        async with lease as lent:
            assert lease.resource is lent
            end(lease)
            assert backend.count("change") == 0
            with pytest.raises(NotLeased):
                number(lent)


@pytest.mark.parametrize("end", ["release", "discard"])
async def test_by_hand_the_lent_object_is_given_back(end: str) -> None:
    backend = Backend()
    async with lending(backend, limit=1) as pool:
        lent = await pool.acquire()
        with pytest.raises(NotLeased):
            await pool.release(guarded(lent).resource)
        ended = getattr(pool, end)(lent)
        if ended is not None:
            await ended
        with pytest.raises(NotLeased):
            await pool.release(lent)
        spare = pool.try_acquire()
        if spare is not None:
            await pool.release(spare)
        check(pool)
        await assert_nothing_is_lost(pool, backend)


async def test_detached_lent_object_stays_alive() -> None:
    backend = Backend()
    async with lending(backend, limit=1) as pool:
        lent = await pool.acquire()
        assert pool.detach(lent) is lent
        async with pool.lease() as other:
            assert (number(lent), number(other)) == (0, 1)
            with pytest.raises(NotLeased):
                pool.discard(lent)
        await assert_nothing_is_lost(pool, backend, detached=1)


async def test_lease_detach_returns_the_lent_object() -> None:
    backend = Backend()
    async with lending(backend) as pool:
        lease = pool.lease()
        async with lease as lent:
            assert lease.detach() is lent
        assert number(lent) == 0


async def test_lend_that_raises_costs_no_slot() -> None:
    def fail(_resource: Resource, _loan: Loan) -> Resource:
        raise ZeroDivisionError

    backend = Backend()
    async with lending(backend, lend=fail, limit=1) as pool:
        for acquire in (pool.acquire, pool.lease().__aenter__):
            with pytest.raises(ZeroDivisionError):
                await acquire()
            check(pool)
        await settled()
        assert pool.taken == pool.free == 0
        assert pool.stats().discards["discard"] == len(backend.created)


async def test_each_lease_gets_what_lend_makes_after_a_wait() -> None:
    backend = Backend()
    async with lending(backend, limit=1) as pool:
        numbers = []

        async def use() -> None:
            async with pool.lease() as lent:
                numbers.append(number(lent))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(use)
        assert numbers == [0] * 5


def test_lend_serves_threads() -> None:
    pool: ConnectionPool[Resource] = PlainBackend().pool("change", lend=Guarded)
    with pool:
        with pool.lease() as lent:
            assert number(lent) == 0
        with pytest.raises(NotLeased):
            number(lent)
        again = pool.acquire_sync()
        pool.release_sync(again)
        with pytest.raises(NotLeased):
            number(again)


async def test_manager_lends_and_is_asked_with_its_own_resource() -> None:
    seen: list[Resource] = []

    class Manager(ResourceManager[Resource]):
        async def create(self) -> Resource:
            return Resource(7)

        def lend(self, resource: Resource, loan: Loan) -> Resource:
            return Guarded(resource, loan)

        async def check(self, resource: Resource) -> None:
            seen.append(resource)

        async def change(self, resource: Resource) -> None:
            seen.append(resource)

        async def clean(self, resource: Resource) -> None:
            seen.append(resource)

    async with ConnectionPool(Manager(), check_after=0) as pool:
        for _ in range(2):
            async with pool.lease() as lent:
                assert number(lent) == 7
        assert pool.retain(lambda resource: type(resource) is Resource) == 0
    assert [type(resource) for resource in seen] == [Resource] * len(seen)
    assert len(seen) >= 4


async def test_pool_keeps_no_lent_object_after_its_lease() -> None:
    async with lending(Backend()) as pool:
        async with pool.lease() as lent:
            found = ref(lent)
        del lent
        assert found() is None


@pytest.mark.virtual_time
async def test_lost_lease_kills_its_lent_object(caplog: pytest.LogCaptureFixture) -> None:
    async with lending(Backend()) as pool:
        lease = pool.lease()
        lent = await lease.__aenter__()
        del lease
        gc.collect()
        await anyio.sleep(GRACE + 1)
        assert pool.taken == 0
        with pytest.raises(NotLeased):
            number(lent)
    assert "dropped its lease" in caplog.text


async def test_kept_loan_does_not_make_an_ended_lease_a_lost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[object] = []
    async with lending(Backend()) as pool:
        monkeypatch.setattr(pool._engine, "reclaim_leak", lost.append)
        async with pool.lease() as lent:
            pass
        gc.collect()
        assert guarded(lent).loan.is_over
        assert lost == []


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ({"lend": lambda _: _}, "two arguments, the resource and the loan"),
        ({"broken": lambda _: "keep"}, "two arguments, the resource and the error"),
        ({"lend": Backend().check}, "two arguments"),
    ],
)
def test_wrong_parameters_of_plain_hooks_are_refused(hook: dict[str, Any], message: str) -> None:
    with pytest.raises(PoolConfigError, match=message):
        Backend().pool(**hook)


@pytest.mark.parametrize("name", ["lend", "broken"])
def test_async_plain_hooks_are_refused(name: str) -> None:
    async def hook(resource: Resource, other: object) -> Any: ...

    with pytest.raises(PoolConfigError, match=f"{name} must not be async"):
        Backend().pool(**{name: hook})


# --- what a loan says -----------------------------------------------------------------------------


async def test_warning_names_pool_and_holder(caplog: pytest.LogCaptureFixture) -> None:
    async with lending(Backend()) as pool:
        async with pool.lease(holder="nightly report") as lent:
            guarded(lent).loan.warn("something is left")
        guarded(lent).loan.warn("something was left")
        assert [record.getMessage() for record in caplog.records] == [
            "pool 'db': nightly report: something is left",
            "pool 'db': nightly report: something was left",
        ]
        assert caplog.records[0].levelno == logging.WARNING


async def test_warning_names_the_task_of_a_lease_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    async with lending(Backend()) as pool:
        lent = await pool.acquire()
        async with anyio.create_task_group() as group:
            group.start_soon(pool.release, lent)
        guarded(lent).loan.warn("something was left")
        assert "a holder that is gone" not in caplog.text
        assert caplog.text.endswith(": something was left\n")


# --- in requests ----------------------------------------------------------------------------------


async def test_background_task_with_the_lent_object_raises() -> None:
    pool = lending(Backend())
    app = FastAPI()
    install_pools(app, pool)
    late: list[Exception] = []

    def audit(resource: Guarded) -> None:
        try:
            resource.use()
        except NotLeased as error:
            late.append(error)

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks, resource: Annotated[Any, Leased(pool)]) -> int:
        tasks.add_task(audit, resource)
        return int(resource.use())

    async with started(app):
        answer = await ask(app)
    assert answer.body == b"0"
    assert len(late) == 1


@pytest.mark.parametrize("scope", [None, "function", "request"])
async def test_dependencies_share_one_lent_object(scope: Any) -> None:
    pool = lending(Backend())
    app = FastAPI()
    install_pools(app, pool)
    leased = Annotated[Any, Leased(pool, scope=scope)]

    async def dependency(resource: leased) -> Any:
        return resource

    @app.get("/")
    async def endpoint(resource: leased, other: Annotated[Any, Depends(dependency, scope="function")]) -> bool:
        return resource is other and resource.use() == 0

    async with started(app):
        assert (await ask(app)).body == b"true"


async def test_stream_uses_the_lent_object_to_its_end() -> None:
    pool = lending(Backend())
    app = FastAPI()
    install_pools(app, pool)

    @app.get("/")
    async def endpoint(resource: Annotated[Any, Leased(pool)]) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield str(resource.use()).encode()

        return StreamingResponse(parts())

    async with started(app):
        assert (await ask(app)).body == b"000"


def test_threads_never_share_a_lent_object() -> None:
    pool: ConnectionPool[Resource] = PlainBackend().pool("change", lend=Guarded, limit=3, timeout=60)
    seen: list[Resource] = []

    def work() -> None:
        for by_hand in (True, False) * 100:
            if by_hand:
                lent = pool.acquire_sync()
                number(lent)
                pool.release_sync(lent)
            else:
                with pool.lease() as lent:
                    number(lent)
            with pytest.raises(NotLeased):
                number(lent)
            seen.append(lent)

    with pool:
        threads = [Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check(pool)
    assert len({id(lent) for lent in seen}) == 6 * 200
    assert pool._engine.inventory.lent == {}


def test_lease_that_was_never_lent_leaves_other_loans() -> None:
    core = harness(limit=2)
    lent, granted = core.leases(2)
    core.ask(core.state.inventory.lend, lent, Loan("db", lent, None), Resource(-1))
    core.release(granted)
    assert core.free() == [granted]
    loan = core.state.inventory.loan_of(lent)
    assert loan is not None
    assert not loan.is_over
    core.release(lent)
    assert loan.is_over
