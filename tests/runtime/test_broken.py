"""`broken` says what an error that a lease met means for its resource."""

from http import HTTPStatus
from typing import Annotated, Any

import anyio
import pytest
from fastapi import FastAPI, HTTPException

from connectionpools_fastapi import ConnectionPool, Leased, Loan, Verdict, install_pools
from connectionpools_fastapi.testing import started
from tests.state_harness import harness
from tests.support import Backend, PlainBackend, Resource, assert_nothing_is_lost, check, same, settled
from tests.web import ask

pytestmark = pytest.mark.anyio


class Fault(Exception):  # noqa: N818 - what a server has
    """What a driver raises, with what it means."""

    def __init__(self, verdict: Any) -> None:
        super().__init__(verdict)
        self.verdict = verdict


def broken(resource: Resource, error: Exception) -> Verdict | None:
    assert type(resource) is Resource
    return error.verdict if isinstance(error, Fault) else None


class Noting(Resource):
    def __init__(self, resource: Resource, loan: Loan) -> None:
        super().__init__(resource.number)
        self.loan = loan


def judging(backend: Backend, *hooks: str, **options: Any) -> ConnectionPool[Resource]:
    return backend.pool(*hooks, **{"broken": broken, "check_after": 60, **options})


async def fail(pool: ConnectionPool[Resource], verdict: Any) -> Resource:
    with pytest.raises(Fault):
        async with pool.lease() as resource:
            raise Fault(verdict)
    return resource


@pytest.mark.parametrize("hooks", [(), ("change",), ("check",), ("check", "change")])
@pytest.mark.parametrize(
    ("verdict", "cleaned", "checks"),
    [("keep", 0, 0), (None, 0, 0), ("check", 0, 1), ("discard", 1, 0), ("expire", 1, 0), ("nonsense", 1, 0)],
)
async def test_verdict_decides_what_becomes_of_it(
    hooks: tuple[str, ...], verdict: Any, cleaned: int, checks: int
) -> None:
    backend = Backend()
    async with judging(backend, *hooks, limit=1) as pool:
        await fail(pool, verdict)
        async with pool.lease():
            check(pool)
        await settled()
        if verdict == "check" and "check" not in hooks:
            cleaned, checks = 1, 0
        assert (len(backend.cleaned), backend.count("check")) == (cleaned, checks)
        reason = "expire" if verdict == "expire" else "broken"
        assert pool.stats().discards[reason] == cleaned
        async with pool.lease():  # once is enough
            assert backend.count("check") == checks
        await assert_nothing_is_lost(pool, backend)


@pytest.mark.parametrize("hooks", [(), ("change",)])
async def test_broken_resource_is_not_handed_to_a_waiter(hooks: tuple[str, ...]) -> None:
    backend = Backend()
    async with judging(backend, *hooks, lend=Noting, limit=1) as pool:
        got: list[Resource] = []

        async def wait() -> None:
            async with pool.lease() as resource:
                got.append(resource)

        async with anyio.create_task_group() as group:
            resource = await pool.acquire()
            group.start_soon(wait)
            await settled()
            assert isinstance(resource, Noting)
            resource.loan.note(Fault("discard"))
            await pool.release(resource)
        assert got[0].number == 1
        await assert_nothing_is_lost(pool, backend)


async def test_gravest_verdict_of_a_lease_stays() -> None:
    backend = Backend()
    async with judging(backend, "check", lend=Noting) as pool:
        async with pool.lease() as lent:
            assert isinstance(lent, Noting)
            for verdict in ("check", "discard", "check", "keep"):
                lent.loan.note(Fault(verdict))
        assert pool.stats().discards["broken"] == 1


async def test_noted_error_counts_though_the_caller_handles_it() -> None:
    backend = Backend()
    async with judging(backend, lend=Noting) as pool:
        async with pool.lease() as lent:
            assert isinstance(lent, Noting)
            lent.loan.note(Fault("discard"))
            lent.loan.note(KeyboardInterrupt())
        lent.loan.note(Fault("expire"))  # too late
        assert dict(pool.stats().discards)["broken"] == 1
        assert dict(pool.stats().discards)["expire"] == 0


async def test_expire_retires_all_of_before_and_only_once() -> None:
    backend = Backend()
    async with judging(backend, lend=Noting, limit=4) as pool:
        held = [await pool.acquire() for _ in range(3)]
        await pool.release(held.pop())
        for lent in held:
            assert isinstance(lent, Noting)
            lent.loan.note(Fault("expire"))
            await settled()
            assert len(backend.cleaned) == 1, "the free one goes at once"
        new = await pool.acquire()
        held[0].loan.note(Fault("expire"))  # type: ignore[attr-defined] # as above
        for lent in (*held, new):
            await pool.release(lent)
        await settled()
        assert same(backend.cleaned, backend.created[:3])
        await assert_nothing_is_lost(pool, backend)


async def test_broken_that_raises_discards(caplog: pytest.LogCaptureFixture) -> None:
    def fails(_resource: Resource, _error: Exception) -> Verdict:
        raise ZeroDivisionError("postgres://u:secret@h/db")

    backend = Backend()
    async with judging(backend, broken=fails) as pool:
        await fail(pool, "keep")
        assert pool.stats().discards["broken"] == 1
    assert "broken failed with ZeroDivisionError" in caplog.text
    assert "secret" not in caplog.text


async def test_cancelled_block_is_not_asked_about() -> None:
    backend = Backend()
    async with judging(backend, broken=lambda _resource, _error: "discard") as pool:
        with anyio.CancelScope() as scope:
            async with pool.lease():
                scope.cancel()
                await anyio.lowlevel.checkpoint()
        assert pool.free == 1


async def test_error_after_release_is_not_asked_about() -> None:
    backend = Backend()
    async with judging(backend) as pool:
        lease = pool.lease()
        await lease.__aenter__()
        lease.release_nowait()
        await lease.__aexit__(Fault, Fault("discard"), None)
        async with pool.lease():
            assert len(backend.created) == 1
        assert pool.free == 1


def test_error_of_a_block_in_a_thread_is_asked_about() -> None:
    backend = PlainBackend()
    with backend.pool(broken=broken) as pool:
        with pytest.raises(Fault), pool.lease():
            raise Fault("discard")
        assert pool.stats().discards["broken"] == 1


@pytest.mark.parametrize("scope", [None, "function", "request"])
@pytest.mark.parametrize("status", [200, 404])
async def test_loan_knows_whether_its_request_failed(scope: Any, status: int) -> None:
    loans: list[Loan] = []
    pool = judging(Backend(), lend=Noting)
    app = FastAPI()
    install_pools(app, pool)

    @app.get("/")
    async def endpoint(resource: Annotated[Any, Leased(pool, scope=scope)]) -> None:
        loans.append(resource.loan)
        if status != HTTPStatus.OK:
            raise HTTPException(status)

    async with started(app):
        assert (await ask(app)).status == status
    assert [(loan.is_over, loan.has_failed) for loan in loans] == [(True, status != HTTPStatus.OK)]


async def test_loan_knows_whether_its_block_failed() -> None:
    async with judging(Backend(), lend=Noting) as pool:
        lent = await fail(pool, "keep")
        assert isinstance(lent, Noting)
        assert lent.loan.has_failed
        async with pool.lease() as other:
            pass
        assert isinstance(other, Noting)
        assert not other.loan.has_failed


@pytest.mark.parametrize("scope", [None, "function", "request"])
async def test_error_of_a_request_is_asked_about(scope: Any) -> None:
    backend = Backend()
    pool = judging(backend, "change")
    app = FastAPI()
    install_pools(app, pool)

    @app.get("/")
    async def endpoint(_: Annotated[Any, Leased(pool, scope=scope)]) -> None:
        raise Fault("discard")

    async with started(app):
        with pytest.raises(Fault):
            await ask(app)
        await settled()
        assert pool.stats().discards["broken"] == 1


@pytest.mark.parametrize("verdict", ["check", "discard"])
def test_verdict_on_what_was_given_back_changes_nothing(verdict: Verdict) -> None:
    core = harness(has_check=True)
    slot = core.lease()
    core.release(slot)
    core.do(core.state.judge, slot, verdict)
    assert core.free() == [slot]
    assert slot.verdict is None
