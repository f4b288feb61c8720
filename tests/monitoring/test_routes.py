"""By route: which requests hold a pool, wait for it and are turned away."""

from dataclasses import asdict
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import APIRouter, FastAPI

from connectionpools_fastapi import ConnectionPool, Leased, Pooled
from connectionpools_fastapi._monitoring.metrics import Stats, render, stats_of
from connectionpools_fastapi._runtime.route_usage import MOST_ROUTES, OTHER
from connectionpools_fastapi.testing import started
from tests.programs import path_of
from tests.support import settled
from tests.web import Db, Thing, ask, installed, speak, things

pytestmark = pytest.mark.anyio

CHECKED = {"authorize": lambda request: request.headers.get("authorization") == "right"}


class Clock:
    """A clock that stands still."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- by route ----------------------------------------------------------------------------------------


async def test_lease_counts_for_its_template() -> None:
    clock = Clock()
    pool = things(clock=clock)
    app = installed(pool)

    @app.get("/items/{item}")
    async def item(_: Db) -> None:
        clock.now += 2.0

    async with started(app) as served:
        for number in range(3):
            await ask(served, f"/items/{number}")
        await ask(served, "/items/1", method="PURGE")
    stats = pool.stats()
    assert set(stats.routes) == {"GET /items/{item}"}
    totals = stats.routes["GET /items/{item}"]
    assert (totals.leases, totals.use) == (stats.releases, stats.use.sum) == (3, 6.0)
    text = render([pool])[0].decode()
    assert 'connectionpool_route_leases_total{pool="db",route="GET /items/{item}"} 3.0' in text
    assert 'connectionpool_route_use_seconds_total{pool="db",route="GET /items/{item}"} 6.0' in text


async def test_block_in_an_endpoint_counts_for_its_route() -> None:
    pool = things()
    app = installed(pool)

    @app.get("/block")
    async def block(pool: Annotated[ConnectionPool[Thing], Pooled("db")]) -> None:
        async with pool.lease():
            pass
        async with pool.lease() as thing:
            pool.discard(thing)
        await pool.release(await pool.acquire())

    @app.get("/thread")
    def thread(pool: Annotated[ConnectionPool[Thing], Pooled("db")]) -> None:
        with pool.lease():
            pass

    async with started(app) as served:
        await ask(served, "/block")
        await ask(served, "/thread")
        async with pool.lease():  # for no request
            pass
        assert {route: totals.leases for route, totals in pool.stats().routes.items()} == {
            "GET /block": 3,
            "GET /thread": 1,
        }


async def test_wait_timeout_and_refusal_count_for_their_route() -> None:
    clock = Clock()
    pool = things(limit=1, max_waiting=1, clock=clock)
    app = installed(pool)

    @app.get("/waits")
    async def waits(_: Db) -> None: ...

    @app.get("/hurries")
    async def hurries(_: Annotated[Thing, Leased("db", timeout=0)]) -> None: ...

    async with started(app) as served, anyio.create_task_group() as group:
        held = await pool.acquire()
        for path in ("/waits", "/waits", "/hurries"):
            group.start_soon(ask, served, path)
            await settled()
        clock.now += 3.0
        await pool.release(held)
        await settled()
        stats = pool.stats()
    waited, hurried = stats.routes["GET /waits"], stats.routes["GET /hurries"]
    assert (waited.leases, waited.wait, waited.refusals, waited.timeouts) == (1, stats.wait.sum, 1, 0)
    assert waited.wait == 3.0
    assert (hurried.leases, hurried.wait, hurried.refusals, hurried.timeouts) == (0, 0.0, 0, 1)
    assert (stats.refusals["full"], stats.timeouts) == (1, 1)


async def test_wait_of_a_thread_counts_for_its_route() -> None:
    clock = Clock()
    pool = things(limit=1, clock=clock)
    app = installed(pool)

    @app.get("/thread")
    def thread(pool: Annotated[ConnectionPool[Thing], Pooled("db")]) -> None:
        with pool.lease():
            pass

    async with started(app) as served, anyio.create_task_group() as group:
        held = await pool.acquire()
        group.start_soon(ask, served, "/thread")
        while not pool.waiting:
            await anyio.lowlevel.checkpoint()
        clock.now += 3.0
        await pool.release(held)
    assert pool.stats().routes["GET /thread"].wait == 3.0


async def test_detached_resource_counts_as_a_lease_of_its_route() -> None:
    pool = things()
    app = installed(pool)

    @app.get("/keep")
    async def keep(pool: Annotated[ConnectionPool[Thing], Pooled("db")]) -> None:
        pool.detach(await pool.acquire())

    async with started(app) as served:
        await ask(served, "/keep")
    assert pool.stats().routes["GET /keep"].leases == pool.stats().releases == 1


async def test_prefix_of_an_included_router_is_part_of_the_route() -> None:
    pool = things()
    app, router = installed(pool), APIRouter()

    @router.get("/items")
    async def items(_: Db) -> None: ...

    app.include_router(router, prefix="/one/{place}")
    app.include_router(router, prefix="/two/{place}")
    async with started(app) as served:
        for path in ("/one/a/items", "/two/b/items", "/two/c/items"):
            await ask(served, path)
    assert {route: totals.leases for route, totals in pool.stats().routes.items()} == {
        "GET /one/{place}/items": 1,
        "GET /two/{place}/items": 2,
    }


async def test_websocket_counts_for_its_route() -> None:
    pool = things()
    app = installed(pool)

    @app.websocket("/live/{room}")
    async def live(_: Db) -> None: ...

    async with started(app) as served:
        await speak(served, "/live/secret")
    assert pool.stats().routes["WEBSOCKET /live/{room}"].leases == 1


async def test_routes_beyond_a_hundred_are_one() -> None:
    pool = things()
    app = installed(pool)

    async def endpoint(_: Db) -> None: ...

    for number in range(MOST_ROUTES + 5):
        app.get(f"/{number}")(endpoint)
    async with started(app) as served:
        for number in range(MOST_ROUTES + 5):
            await ask(served, f"/{number}")
    routes = pool.stats().routes
    assert len(routes) == MOST_ROUTES + 1
    assert routes[OTHER].leases == 5


@pytest.mark.parametrize("secret", ["/hunter2", "/%0Ahunter2%22"])
async def test_raw_path_reaches_no_metric(secret: str) -> None:
    pool = things()

    async def lease(_: Any) -> Any:
        async with pool.lease():
            raise RuntimeError

    app = installed(pool)
    app.add_route("/{rest:path}", lease, methods=["HUNTER2"])
    async with started(app) as served:
        with pytest.raises(RuntimeError):
            await ask(served, secret, method="HUNTER2")
    found = pool.stats().routes
    assert "hunter2" not in str(found).lower()
    assert sum(totals.leases for totals in found.values()) == 1


async def test_pool_without_the_middleware_counts_no_routes() -> None:
    async with things() as pool:
        async with pool.lease():
            pass
        assert pool.stats().routes == {}


@pytest.mark.parametrize(("given", "options"), [("right", CHECKED), ("wrong", CHECKED), ("", CHECKED), ("right", {})])
@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text", "application/json"])
async def test_routes_are_shown_to_those_authorized(given: str, options: dict[str, Any], accept: str) -> None:
    pool = things()
    app = installed(pool, **options)

    @app.get("/plans/{plan}")
    async def plan(_: Db) -> None: ...

    async with started(app) as served:
        await ask(served, "/plans/a")
        answer = await ask(served, "/pool/metrics", headers=[("authorization", given), ("accept", accept)])
    assert answer.status == 200
    assert (b"/plans/" in answer.body) is (given == "right" and options is CHECKED)
    assert b"limit" in answer.body


# --- formats -------------------------------------------------------------------------------------------


async def busy_app() -> tuple[FastAPI, ConnectionPool[Thing]]:
    pool = things(limit=1)
    app = installed(pool, details="always")

    @app.get("/items/{item}")
    async def item(_: Db) -> None: ...

    return app, pool


async def test_stats_of_another_worker_are_the_same() -> None:
    app, pool = await busy_app()
    async with started(app) as served:
        await ask(served, "/items/1")
        stats = pool.stats()
        assert stats_of(asdict(stats)) == stats


@pytest.mark.needs_program("promtool")
@pytest.mark.parametrize("workers", [None, 2])
async def test_promtool_has_nothing_to_say(workers: int | None) -> None:
    promtool = path_of("promtool")
    assert promtool is not None
    app, pool = await busy_app()
    async with started(app) as served:
        await ask(served, "/items/1")
        stats: list[Stats] = [pool.stats()]
        body, _ = render([pool], workers=None if workers is None else dict.fromkeys(range(workers), stats))
    said = await anyio.run_process([promtool, "check", "metrics"], input=body, check=False)
    assert (said.returncode, said.stdout, said.stderr) == (0, b"", b"")
