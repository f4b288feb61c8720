"""Health: what /pool/health says, at what cost, and to which requests."""

import json
import math
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from starlette.requests import HTTPConnection

from connectionpools_fastapi import (
    ConnectionPool,
    PoolError,
    PoolMiddleware,
    install_pools,
    mark_unready,
    pool_lifespan,
)
from connectionpools_fastapi.testing import started
from tests.support import loop_time
from tests.web import Answer, Thing, ask, things

pytestmark = pytest.mark.anyio

virtual_time = pytest.mark.virtual_time

ADDRESS = "postgres://user:secret@host/db"


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class BackEnd:
    """A back-end that is up or down, and counts its callers."""

    def __init__(self) -> None:
        self.is_up = True
        self.created = 0
        self.checked = 0
        self.answered: anyio.Event | None = None

    def create(self) -> Thing:
        self.created += 1
        if not self.is_up:
            raise ConnectionRefusedError(ADDRESS)
        if self.answered is not None:
            self.answered.set()
        return Thing()

    def check(self, _: Thing) -> bool:
        self.checked += 1
        return self.is_up


def installed(*pools: ConnectionPool[Any], **options: Any) -> FastAPI:
    app = FastAPI()
    install_pools(app, *pools, **options)
    return app


def read(answer: Answer) -> Any:
    """Read JSON as strictly as a browser does."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert answer.headers["content-type"] == "application/health+json"
    return json.loads(answer.body, parse_constant=refuse)


async def health(app: Any, path: str = "", **options: Any) -> tuple[int, Any]:
    with anyio.fail_after(10):
        answer = await ask(app, "/pool/health" + path, **options)
    body = read(answer)
    follows_draft(answer.status, body)
    body.pop("checks", None)
    return answer.status, body


def follows_draft(code: int, body: Any) -> None:
    """Check what the IETF's draft of application/health+json, draft-inadarei-api-health-check, asks for."""
    assert (code, body["status"]) in ((200, "pass"), (200, "warn"), (503, "fail"))
    assert ("checks" in body) == ("pools" in body)
    for name, pool in body.get("pools", {}).items():
        (check,) = body["checks"][f"{name}:connections"]
        assert check["status"] == pool["status"]
        assert (check["componentType"], check["observedUnit"]) == ("component", "connections")
        assert check["observedValue"] == pool["taken"]
        assert check.get("output", "") == pool.get("reason", "")
        assert "output" not in check or check["status"] != "pass"


async def until_down(app: Any, clock: Clock, **options: Any) -> tuple[int, Any]:
    """Ask until the back-end is known to be down: until then the pool warns, as after any one failure."""
    status, body = await health(app, **options)
    assert (status, body["status"]) == (200, "warn")
    with anyio.fail_after(10):
        while status == 200:
            clock.now += 1
            await anyio.wait_all_tasks_blocked()
            status, body = await health(app, **options)
    return status, body


# --- pass, warn, fail -----------------------------------------------------------------------------


async def test_healthy_pool_passes_with_its_counts_only() -> None:
    pool = things(limit=3, min_free=1)
    async with started(installed(pool)) as served:
        counts = {"status": "pass", "limit": 3, "free": 1, "taken": 0, "creating": 0, "waiting": 0}
        assert await health(served) == (200, {"pools": {"db": counts}, "status": "pass"})
        assert await health(served, "/db") == (200, counts)
        assert await health(served, "/ready") == (200, {"status": "pass"})
        assert await health(served, "/live") == (200, {"status": "pass"})


async def test_a_colon_in_the_name_of_a_pool_ends_no_name_of_a_check() -> None:
    async with started(installed(things(name="db:main"))) as served:
        assert list(read(await ask(served, "/pool/health"))["checks"]) == ["db_main:connections"]


async def test_a_saturated_pool_warns_at_once_and_is_still_ready() -> None:
    back_end, clock = BackEnd(), Clock()
    pool = things(limit=1, create=back_end.create, check=back_end.check, clock=clock)
    async with started(installed(pool)) as served, anyio.create_task_group() as group, pool.lease():
        group.start_soon(pool.acquire)
        await anyio.wait_all_tasks_blocked()
        clock.now += 4.9
        counts = {"status": "warn", "limit": 1, "free": 0, "taken": 1, "creating": 0, "waiting": 1}
        assert await health(served) == (200, {"pools": {"db": counts}, "status": "warn"})
        assert await health(served, "/ready") == (200, {"status": "warn"})
        assert (pool.waiting, back_end.created, back_end.checked) == (1, 1, 0)
        group.cancel_scope.cancel()


async def test_pool_serving_no_caller_fails_until_a_release() -> None:
    clock = Clock()
    pool = things(limit=2, clock=clock, close_timeout=0)
    async with started(installed(pool, details="always")) as served, anyio.create_task_group() as group:
        hangs = [await pool.acquire() for _ in range(2)]
        clock.now += 1
        group.start_soon(pool.acquire)
        await anyio.wait_all_tasks_blocked()
        clock.now += 4.9
        assert (await health(served, "/ready")) == (200, {"status": "warn"})
        clock.now += 0.2
        status, body = await health(served, "/db")
        assert (status, body["status"]) == (503, "fail")
        assert body["reason"] == "nothing was leased or came back within 5 s: 2 of 2 taken, 1 waiting"
        assert (await health(served))[0] == (await health(served, "/ready"))[0] == 503
        await pool.release(hangs[0])
        await anyio.wait_all_tasks_blocked()
        assert (await health(served))[1]["status"] == "warn"
        await pool.release(hangs[1])
        assert (await health(served))[1]["status"] == "pass"


async def test_callers_that_left_unserved_count_newcomers_do_not() -> None:
    clock = Clock()
    pool = things(limit=1, clock=clock)
    async with started(installed(pool)) as served, pool.lease():
        clock.now += 60
        assert (await health(served, "/ready")) == (200, {"status": "warn"}), "no caller wants what is in use"
        async with anyio.create_task_group() as group:
            group.start_soon(pool.acquire)
            await anyio.wait_all_tasks_blocked()
            assert (await health(served, "/ready")) == (200, {"status": "warn"}), "it has only just come"
            group.cancel_scope.cancel()
        assert (await health(served, "/ready")) == (503, {"status": "fail"})


async def test_a_lease_that_hangs_hides_no_failing_create() -> None:
    back_end, clock = BackEnd(), Clock()
    pool = things(limit=2, create=back_end.create, clock=clock)
    async with started(installed(pool)) as served, pool.lease():
        back_end.is_up = False
        assert pool.try_acquire() is None
        await anyio.wait_all_tasks_blocked()
        clock.now += 5.1
        assert (await health(served, "/ready")) == (200, {"status": "warn"})
        with pytest.raises(PoolError):
            await pool.acquire(timeout=0)
        assert (await health(served, "/ready")) == (503, {"status": "fail"})


async def test_failing_optional_pool_only_warns() -> None:
    """Its own endpoint fails."""
    back_end, clock = BackEnd(), Clock()
    back_end.is_up = False
    db, cache = things(), things(name="cache", create=back_end.create, clock=clock)
    app = FastAPI()
    install_pools(app, db, optional=[cache])
    async with started(app) as served:
        assert cache.status == "open"
        await until_down(served, clock, path="/cache")
        status, body = await health(served)
        assert (status, body["status"], body["pools"]["cache"]["status"]) == (200, "warn", "fail")
        assert await health(served, "/ready") == (200, {"status": "warn"})
        assert (await health(served, "/cache"))[0] == 503
        assert (await health(served, "/db"))[0] == 200


async def test_required_pool_still_fails_beside_an_optional_one() -> None:
    back_end, clock = BackEnd(), Clock()
    back_end.is_up = False
    db, cache = things(create=back_end.create, clock=clock), things(name="cache")
    app = FastAPI()
    app.add_middleware(PoolMiddleware, pools=[db], optional=iter([cache]))
    async with db, cache:
        await until_down(app, clock)
        assert (await health(app, "/ready")) == (503, {"status": "fail"})
        assert (await health(app, "/cache"))[0] == 200


async def test_a_back_end_that_is_down_fails_and_recovers() -> None:
    back_end, clock = BackEnd(), Clock()
    pool = things(create=back_end.create, clock=clock)
    back_end.is_up = False
    async with started(installed(pool)) as served:
        await until_down(served, clock)
        for _ in range(2):
            status, body = await health(served)
            assert (status, body["status"], body["pools"]["db"]["status"]) == (503, "fail", "fail")
            assert (await health(served, "/db"))[0] == 503
            assert await health(served, "/ready") == (503, {"status": "fail"})
            assert await health(served, "/live") == (200, {"status": "pass"})
        back_end.is_up, back_end.answered = True, anyio.Event()
        clock.now += 60
        with anyio.fail_after(10):
            await back_end.answered.wait()
        await anyio.wait_all_tasks_blocked()
        assert (await health(served))[1]["status"] == "pass"


async def test_pool_with_resources_warns_while_it_cannot_grow() -> None:
    back_end = BackEnd()
    pool = things(limit=2, create=back_end.create)
    async with started(installed(pool, details="always")) as served, pool.lease():
        back_end.is_up = False
        assert pool.try_acquire() is None
        await anyio.wait_all_tasks_blocked()
        status, body = await health(served, "/db")
        assert (status, body["status"]) == (200, "warn")
        assert "ConnectionRefusedError" in body["reason"]
        assert "secret" not in json.dumps(body)


async def test_free_resource_that_fails_its_check_proves_nothing() -> None:
    back_end, clock = BackEnd(), Clock()
    pool = things(create=back_end.create, check=back_end.check, clock=clock)
    async with started(installed(pool)) as served:
        async with pool.lease():
            pass
        back_end.is_up = False
        clock.now += 60
        await until_down(served, clock)
        assert back_end.checked == 1


async def test_a_pool_that_is_not_open_fails() -> None:
    app = installed(things())
    assert (await health(app))[0] == 503
    assert (await health(app, "/ready"))[0] == 503
    assert (await health(app, "/live"))[0] == 200
    async with started(app) as served:
        assert (await health(served))[0] == 200
    status, body = await health(app)
    assert (status, body["pools"]["db"]["status"]) == (503, "fail")


def test_an_application_that_is_marked_unready_serves_on_until_it_starts_again() -> None:
    pool = things(min_free=1)
    app = installed(pool)
    app.get("/items")(lambda: 1)
    with TestClient(app) as client:
        mark_unready()
        ready = client.get("/pool/health/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "fail"})
        for path in ("/pool/health", "/pool/health/db", "/pool/health/live", "/pool/metrics", "/items"):
            assert client.get(path).status_code == 200
    mark_unready()  # nothing runs
    with TestClient(app) as client:
        assert client.get("/pool/health/ready").json() == {"status": "pass"}


async def test_the_worst_pool_speaks_for_all() -> None:
    back_end, clock = BackEnd(), Clock()
    back_end.is_up = False
    well, full = things(name="well"), things(1, name="full")
    down = things(name="down", create=back_end.create, clock=clock)
    async with started(installed(well, full, down)) as served, full.lease():
        status, body = await until_down(served, clock)
        assert (status, body["status"]) == (503, "fail")
        assert {name: one["status"] for name, one in body["pools"].items()} == {
            "well": "pass",
            "full": "warn",
            "down": "fail",
        }
        assert (await health(served, "/well"))[0] == 200
        assert (await health(served, "/full"))[0] == 200
        assert (await health(served, "/down"))[0] == 503


async def test_an_application_without_pools_is_healthy() -> None:
    pool = things()
    app = installed(pool)
    async with started(app) as served:
        assert (await health(served))[0] == 200


# --- what a probe costs ---------------------------------------------------------------------------------


async def test_live_never_touches_a_back_end() -> None:
    back_end = BackEnd()
    async with started(installed(things(create=back_end.create))) as served:
        for _ in range(5):
            assert (await health(served, "/live"))[0] == 200
        assert (back_end.created, back_end.checked) == (0, 0)


@virtual_time
async def test_hundreds_of_calls_at_once_cost_one_probe() -> None:
    gate, created = anyio.Event(), 0

    async def create() -> Thing:
        nonlocal created
        created += 1
        await gate.wait()
        return Thing()

    pool = things(limit=10, create=create)
    found: list[tuple[int, Any]] = []

    async def look(served: Any, path: str) -> None:
        found.append(await health(served, path))

    async with started(installed(pool)) as served:
        async with anyio.create_task_group() as group:
            for path in ("", "/ready", "/db"):
                for _ in range(100):
                    group.start_soon(look, served, path)
            await anyio.wait_all_tasks_blocked()
            assert created == 1
            gate.set()
        assert [status for status, _ in found] == [200] * 300
        assert created == 1


async def test_probe_max_age_saves_checks_until_it_is_over() -> None:
    """Later calls cost one check."""
    back_end, clock = BackEnd(), Clock()
    pool = things(create=back_end.create, check=back_end.check, clock=clock)
    async with started(installed(pool, probe_max_age=5.0)) as served:
        for age, checks in ((0, 0), (4.9, 0), (5.1, 1), (5.2, 1), (10.1, 1), (10.3, 2)):
            clock.now = 1000 + age
            for _ in range(3):
                assert (await health(served))[0] == 200
            assert (back_end.created, back_end.checked) == (1, checks)


def with_middleware_by_hand(pool: ConnectionPool[Any]) -> FastAPI:
    app = FastAPI(lifespan=pool_lifespan(pool))
    app.add_middleware(PoolMiddleware)
    return app


async def test_middleware_by_hand_probes_after_five_seconds() -> None:
    back_end, clock = BackEnd(), Clock()
    pool = things(create=back_end.create, check=back_end.check, clock=clock)
    async with started(with_middleware_by_hand(pool)) as served:
        assert (await health(served))[0] == 200
        for age, checks in ((4.9, 0), (5.0, 0), (5.1, 1)):
            clock.now = 1000 + age
            assert (await health(served))[0] == 200
            assert back_end.checked == checks


async def test_use_by_requests_spares_the_back_end_a_probe() -> None:
    back_end, clock = BackEnd(), Clock()
    pool = things(create=back_end.create, check=back_end.check, clock=clock)
    async with started(installed(pool)) as served:
        async with pool.lease():
            pass
        assert (await health(served))[0] == 200
        assert (back_end.created, back_end.checked) == (1, 0)


class Stuck:
    """A back-end that does not answer until the test is over."""

    def __init__(self) -> None:
        self.over = anyio.Event()

    async def create(self) -> Thing:
        await self.over.wait()
        return Thing()


@virtual_time
async def test_unanswering_back_end_is_given_probe_timeout() -> None:
    stuck = Stuck()
    pool = things(create=stuck.create)
    async with started(installed(pool, probe_timeout=9)) as served:
        assert (await health(served))[0] == 503
        assert pool.creating == 1
        stuck.over.set()


@virtual_time
async def test_middleware_by_hand_waits_two_seconds_untold_why() -> None:
    stuck = Stuck()
    pool = things(create=stuck.create)
    async with started(with_middleware_by_hand(pool)) as served:
        began = loop_time()
        status, told = await health(served)
        assert status == 503
        assert loop_time() - began == pytest.approx(2)
        assert "reason" not in json.dumps(told)
        stuck.over.set()


async def test_calls_after_a_probe_timeout_are_answered_at_once() -> None:
    stuck, clock = Stuck(), Clock()
    pool = things(create=stuck.create, clock=clock)
    async with started(installed(pool, probe_timeout=60.0)) as served, anyio.create_task_group() as group:
        group.start_soon(ask, served, "/pool/health")
        await anyio.wait_all_tasks_blocked()
        clock.now += 60
        for _ in range(3):
            assert (await health(served))[0] == 503
        assert pool.creating == 1
        stuck.over.set()
        await anyio.wait_all_tasks_blocked()
        assert (await health(served))[0] == 200


@virtual_time
async def test_one_pool_that_hangs_does_not_hide_the_others() -> None:
    stuck = Stuck()
    hangs, well = things(name="hangs", create=stuck.create), things(name="well")
    async with started(installed(hangs, well, probe_timeout=9)) as served:
        status, body = await health(served)
        assert status == 503
        assert {name: one["status"] for name, one in body["pools"].items()} == {"hangs": "fail", "well": "pass"}
        assert (await health(served, "/well"))[0] == 200
        stuck.over.set()


async def test_a_probe_that_is_cancelled_leaves_nothing_behind() -> None:
    gate = anyio.Event()

    async def create() -> Thing:
        await gate.wait()
        return Thing()

    pool = things(create=create)
    async with started(installed(pool)) as served:
        async with anyio.create_task_group() as group:
            group.start_soon(ask, served, "/pool/health")
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        gate.set()
        await anyio.wait_all_tasks_blocked()
        assert (pool.free, pool.taken, pool.waiting) == (1, 0, 0)
        assert (await health(served))[0] == 200


# --- details -----------------------------------------------------------------------------------------------


def by_token(connection: HTTPConnection) -> bool:
    return connection.headers.get("authorization") == "token"


async def by_token_async(connection: HTTPConnection) -> bool:
    await anyio.lowlevel.checkpoint()
    return by_token(connection)


def by_mistake(_: HTTPConnection) -> bool:
    raise HTTPException(401, ADDRESS)


async def down(app_options: dict[str, Any], **options: Any) -> Any:
    """Ask about a pool that is down, in detail where that is allowed."""
    back_end, clock = BackEnd(), Clock()
    back_end.is_up = False
    async with started(installed(things(create=back_end.create, clock=clock), **app_options)) as served:
        status, body = await until_down(served, clock, **options)
        assert status == 503
        assert (await health(served, "/db", **options))[1] == body["pools"]["db"] or "retry_after" in str(body)
        return body["pools"]["db"]


async def test_by_default_no_request_sees_why() -> None:
    assert set(await down({})) == {"status", "limit", "free", "taken", "creating", "waiting"}


@pytest.mark.parametrize("authorize", [by_token, by_token_async])
async def test_only_an_authorized_request_sees_why(authorize: Callable[..., Any]) -> None:
    options = {"authorize": authorize}
    assert "reason" not in await down(options)
    assert "reason" not in await down(options, headers=[("authorization", "wrong")])
    assert "ConnectionRefusedError" in (await down(options, headers=[("authorization", "token")]))["reason"]
    assert "reason" not in await down({**options, "details": "never"}, headers=[("authorization", "token")])


async def test_failed_authorization_shows_no_details(caplog: pytest.LogCaptureFixture) -> None:
    assert "reason" not in await down({"details": "authorized", "authorize": by_mistake})
    assert "HTTPException" in caplog.text
    assert "secret" not in caplog.text


async def test_details_say_why_without_address_in_finite_numbers() -> None:
    body = await down({"details": "always"})
    assert body["reason"].startswith("create fails with ConnectionRefusedError")
    assert body["pool"] == "open"
    assert math.isfinite(body["retry_after"])
    assert "secret" not in json.dumps(body)


async def test_details_name_a_few_holders_longest_first() -> None:
    clock = Clock()
    pool = things(limit=20, clock=clock)
    async with started(installed(pool, details="always")) as served:
        held = []
        for _ in range(12):
            held.append(await pool.acquire())
            clock.now += 1
        _, body = await health(served, "/db")
        assert [holder["age"] for holder in body["holders"]] == [12, 11, 10, 9, 8, 7, 6, 5, 4, 3]
        assert body["retry_after"] is None
        for thing in held:
            await pool.release(thing)
