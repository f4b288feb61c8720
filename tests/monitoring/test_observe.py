"""Observe: a driver's own pool is seen as ours is, tells no more than it knows, and is never queued for."""

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, fields
from typing import Annotated, Any

import anyio
import asyncpg  # type: ignore[import-untyped] # has no types
import pytest
from anyio.to_thread import run_sync
from fastapi import FastAPI
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from prometheus_client.parser import text_string_to_metric_families
from psycopg_pool import AsyncConnectionPool, AsyncNullConnectionPool
from psycopg_pool import ConnectionPool as ThreadConnectionPool
from sqlalchemy import NullPool, QueuePool, StaticPool, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from connectionpools_fastapi import (
    Leased,
    ObservedPool,
    ObservedStats,
    PoolCollector,
    PoolConfigError,
    Pooled,
    PoolMiddleware,
    install_pools,
    observe,
)
from connectionpools_fastapi._monitoring.health import examine
from connectionpools_fastapi._monitoring.metrics import render
from connectionpools_fastapi._monitoring.prober import Prober
from connectionpools_fastapi.otel import observe_pools
from connectionpools_fastapi.testing import started
from tests.web import ask, things
from tests.wheel_servers import postgres

pytestmark = pytest.mark.anyio

WAIT = 20.0  # for what comes soon, or the test fails


@pytest.fixture
def anyio_backend() -> str:
    """The drivers are of asyncio."""
    return "asyncio"


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Peer:
    """A driver's pool of limit 2, and how it is used by its own words."""

    pool: Any
    take: Callable[[], Awaitable[Any]]
    give_back: Callable[[Any], Awaitable[Any]]
    numbers: Callable[[], tuple[int, int, int]]  # limit, free and taken

    @asynccontextmanager
    async def held(self, count: int = 1) -> AsyncIterator[None]:
        held = [await self.take() for _ in range(count)]
        try:
            yield
        finally:
            for connection in held:
                await self.give_back(connection)


def of_psycopg(pool: Any) -> tuple[int, int, int]:
    stats = pool.get_stats()
    return stats["pool_max"], stats["pool_available"], stats["pool_size"] - stats["pool_available"]


def of_sqlalchemy(pool: Any) -> tuple[int, int, int]:
    return 2, pool.checkedin(), pool.checkedout()


@asynccontextmanager
async def asyncpgs(url: str) -> AsyncIterator[Peer]:
    async with asyncpg.create_pool(url, min_size=0, max_size=2) as pool:
        yield Peer(
            pool,
            pool.acquire,
            pool.release,
            lambda: (pool.get_max_size(), pool.get_idle_size(), pool.get_size() - pool.get_idle_size()),
        )


@asynccontextmanager
async def psycopgs(url: str) -> AsyncIterator[Peer]:
    async with AsyncConnectionPool(url, min_size=0, max_size=2, open=False) as pool:
        yield Peer(pool, pool.getconn, pool.putconn, lambda: of_psycopg(pool))


@asynccontextmanager
async def psycopgs_for_threads(url: str) -> AsyncIterator[Peer]:
    pool = ThreadConnectionPool(url, min_size=0, max_size=2, open=True)
    try:
        yield Peer(
            pool, lambda: run_sync(pool.getconn), lambda conn: run_sync(pool.putconn, conn), lambda: of_psycopg(pool)
        )
    finally:
        await run_sync(pool.close)


@asynccontextmanager
async def sqlalchemys(url: str) -> AsyncIterator[Peer]:
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"), pool_size=1, max_overflow=1)
    try:
        yield Peer(
            engine, lambda: engine.connect().start(), lambda conn: conn.close(), lambda: of_sqlalchemy(engine.pool)
        )
    finally:
        await engine.dispose()


@asynccontextmanager
async def sqlalchemys_for_threads(url: str) -> AsyncIterator[Peer]:
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), pool_size=1, max_overflow=1)
    try:
        yield Peer(
            engine,
            lambda: run_sync(engine.connect),
            lambda conn: run_sync(conn.close),
            lambda: of_sqlalchemy(engine.pool),
        )
    finally:
        await run_sync(engine.dispose)


PEERS = (asyncpgs, psycopgs, psycopgs_for_threads, sqlalchemys, sqlalchemys_for_threads)
each_peer = pytest.mark.parametrize("peers", PEERS, ids=lambda peers: peers.__name__)


def samples(*pools: Any) -> dict[tuple[str, ...], float]:
    body, _ = render(pools)
    return {
        (sample.name, sample.labels.pop("pool"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def installed(*pools: Any, **options: Any) -> FastAPI:
    app = FastAPI()
    install_pools(app, *pools, **options)
    return app


async def health(app: Any, path: str = "") -> tuple[int, Any]:
    with anyio.fail_after(WAIT):
        answer = await ask(app, "/pool/health" + path)
    return answer.status, json.loads(answer.body)


# --- what it tells --------------------------------------------------------------------------------


@each_peer
async def test_health_and_metrics_tell_what_the_pool_itself_tells(peers: Any, postgres_url: str) -> None:
    async with peers(postgres_url) as peer:
        pool = observe(peer.pool, name="db")
        async with peer.held(2):
            pass
        async with peer.held(1), started(installed(pool)) as served:
            status, body = await health(served, "/db")
            limit, free, taken = peer.numbers()
            assert (limit, taken) == (2, 1)
            found = samples(pool)
            waiting = found.pop(("connectionpool_waiting", "db"), None)
            assert (status, body) == (
                200,
                {"status": "pass", "limit": 2, "free": free, "taken": 1, "creating": None, "waiting": waiting},
            )
            assert found["connectionpool_limit", "db"] == 2
            assert found["connectionpool_open", "db"] == 1
            assert {key[2]: found[key] for key in found if key[0] == "connectionpool_resources"} == {
                "free": free,
                "taken": 1,
            }
            answer = await ask(served, "/pool/metrics", headers=[("Accept", "application/json")])
            [told] = json.loads(answer.body)["pools"]
            numbers = {field.name: getattr(pool.stats(), field.name) for field in fields(ObservedStats)}
            assert told == {**numbers, "cause": None}


async def test_what_psycopg_counts_keeps_its_name_and_its_value(postgres_url: str) -> None:
    async with psycopgs(postgres_url) as peer:
        pool = observe(peer.pool, name="db")
        async with peer.held(2):
            assert (await examine(pool)).verdict == "warn"
        found = samples(pool)
        own = peer.pool.get_stats()
        assert own["requests_num"] == 2
        driver = {key[2]: value for key, value in found.items() if key[0] == "connectionpool_driver_total"}
        assert {name: value for name, value in driver.items() if value} == {
            name: own[name] for name in driver if own.get(name)
        }
        # Whatever is not one of its measures, which are told as gauges, is a counter.
        measures = {"pool_min", "pool_max", "pool_size", "pool_available", "requests_waiting"}
        assert own.keys() - measures <= driver.keys()
        assert found["connectionpool_create_failures_total", "db"] == 0


@pytest.mark.parametrize("peers", [asyncpgs, sqlalchemys], ids=lambda peers: peers.__name__)
async def test_what_a_driver_does_not_count_is_not_told_as_zero(peers: Any, postgres_url: str) -> None:
    async with peers(postgres_url) as peer, things(name="ours") as ours:
        found = samples(ours, observe(peer.pool, name="db"))
        told = {key[0].removeprefix("connectionpool_") for key in found if "db" in key}
        assert told == {"resources", "limit", "open"}
        assert {"acquires_total", "timeouts_total", "waiting", "wait_seconds_count"} <= {
            key[0].removeprefix("connectionpool_") for key in found if "ours" in key
        }


@pytest.mark.parametrize("peers", [psycopgs, psycopgs_for_threads], ids=lambda peers: peers.__name__)
async def test_waiters_in_psycopgs_queue_are_counted(peers: Any, postgres_url: str) -> None:
    async with peers(postgres_url) as peer, anyio.create_task_group() as group:
        pool = observe(peer.pool, name="db")
        async with peer.held(2):

            async def wait() -> None:
                await peer.give_back(await peer.take())

            group.start_soon(wait)
            await until(lambda: peer.pool.get_stats()["requests_waiting"])
            found = await examine(pool)
            assert (found.verdict, found.reason) == ("warn", "saturated: 2 of 2 taken, 1 waiting")
            assert samples(pool)["connectionpool_waiting", "db"] == 1


async def test_opentelemetry_gets_what_is_known(postgres_url: str) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    async with asyncpgs(postgres_url) as peer, peer.held(1):
        observe_pools(observe(peer.pool, name="db"), meter=provider.get_meter("test"))
        data = reader.get_metrics_data()
    provider.shutdown()
    assert data is not None
    assert {
        (metric.name.removeprefix("db.client.connection."), *map(str, (point.attributes or {}).values())): point.value
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
        if isinstance(point, NumberDataPoint)
    } == {("count", "db", "idle"): 0, ("count", "db", "used"): 1, ("idle.max", "db"): 2, ("max", "db"): 2}


async def test_pools_of_sqlalchemy_without_numbers_tell_none(postgres_url: str) -> None:
    url = make_url(postgres_url).set(drivername="postgresql+asyncpg")
    one_for_each = observe(create_async_engine(url, poolclass=NullPool), name="null")
    assert one_for_each.stats() == ObservedStats(name="null", status="open")
    assert (await examine(one_for_each)).verdict == "pass"
    one_for_all = observe(create_async_engine(url.set(port=1), poolclass=StaticPool), name="static")
    assert one_for_all.stats() == ObservedStats(name="static", status="open")
    # Its one connection may be in use, so that it is not tried.
    assert (await examine(one_for_all)).verdict == "pass"
    assert samples(one_for_each, one_for_all) == {
        ("connectionpool_open", "null"): 1,
        ("connectionpool_open", "static"): 1,
    }


@pytest.mark.parametrize("unlimited", [{"max_overflow": -1}, {"pool_size": 0}], ids=str)
async def test_unlimited_engine_has_no_limit_and_is_not_saturated(unlimited: dict[str, int], postgres_url: str) -> None:
    engine = create_async_engine(make_url(postgres_url).set(drivername="postgresql+asyncpg"), **unlimited)
    pool = observe(engine, name="db")
    async with AsyncExitStack() as stack:
        for _ in range(6):
            await stack.enter_async_context(engine.connect())
        found = await examine(pool)
        assert (found.verdict, found.stats.limit, found.stats.taken) == ("pass", None, 6)
    await engine.dispose()


async def test_a_null_pool_of_psycopg_is_seen_too(postgres_url: str) -> None:
    async with AsyncNullConnectionPool(postgres_url, open=False) as unlimited:
        found = await examine(observe(unlimited, name="db"))
        assert (found.verdict, found.stats.limit) == ("pass", None)
    async with AsyncNullConnectionPool(postgres_url, max_size=1, open=False) as limited, limited.connection():
        assert (await examine(observe(limited, name="db"))).verdict == "warn"


# --- health ---------------------------------------------------------------------------------------


@each_peer
async def test_saturated_pool_warns_at_once_without_queueing(peers: Any, postgres_url: str) -> None:
    async with peers(postgres_url) as peer, peer.held(2):
        pool = observe(peer.pool, name="db")
        with anyio.fail_after(WAIT):
            found = await examine(pool, max_age=0, timeout=WAIT * 5)
        assert found.verdict == "warn"
        assert found.reason.startswith("saturated: 2 of 2 taken")
        assert (found.stats.limit, found.stats.free, found.stats.taken) == peer.numbers() == (2, 0, 2)


@each_peer
async def test_many_checks_share_one_try_and_its_success(peers: Any, postgres_url: str) -> None:
    clock = Clock()
    async with peers(postgres_url) as peer:
        pool = observe(peer.pool, name="db", clock=clock)
        tries = 0
        take = Prober._start

        def count(prober: Prober, timeout: float) -> None:
            nonlocal tries
            tries += 1
            take(prober, timeout)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Prober, "_start", count)
            for expected in (1, 1, 2):
                if expected == 2:
                    clock.now += 5.1
                async with anyio.create_task_group() as group:
                    for _ in range(100):
                        group.start_soon(passes, pool)
                assert tries == expected
        assert peer.numbers()[2] == 0  # it has given back what it took


async def passes(pool: ObservedPool) -> None:
    assert (await examine(pool, timeout=WAIT)).verdict == "pass"


async def test_a_try_that_failed_stands_for_a_second() -> None:
    clock = Clock()
    async with nobody_answers() as (address, calls), asyncpg.create_pool(address, min_size=0, max_size=2) as peer:
        pool = observe(peer, name="db", clock=clock)
        for expected in (1, 1, 2):
            if expected == 2:
                clock.now += 1.1
            found = await examine(pool, timeout=0.05)
            clock.now += 0.05
            assert (found.verdict, found.reason) == ("fail", "the back-end does not answer within 0.05 s")
            await ended(pool)
            await until(lambda: len(calls) >= expected)  # noqa: B023 - waited for here
            assert len(calls) == expected


@each_peer
async def test_silent_server_fails_all_checks_in_time_by_one_try(peers: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    async with nobody_answers() as (address, calls), peers(address) as peer:
        pool = observe(peer.pool, name="db")
        verdicts = []

        async def look() -> None:
            found = await examine(pool, timeout=0.2)
            verdicts.append((found.verdict, found.reason))

        with anyio.fail_after(WAIT):
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(look)
        assert {verdict for verdict, _ in verdicts} == {"fail"}
        await until(lambda: calls)
        assert len(calls) == 1
        for writer in calls:
            writer.close()
        await ended(pool)


async def test_probe_during_a_hanging_try_answers_at_once() -> None:
    clock = Clock()
    async with nobody_answers() as (address, calls), sqlalchemys_for_threads(address) as peer:
        pool = observe(peer.pool, name="db", clock=clock)
        assert (await examine(pool, timeout=0.05)).verdict == "fail"
        await until(lambda: calls)
        clock.now += WAIT  # and its thread hangs still
        with anyio.fail_after(WAIT / 2):
            assert (await examine(pool, timeout=WAIT)).verdict == "fail"
        assert peer.numbers() == (2, 0, 1)
        calls[0].close()
        await ended(pool)


@asynccontextmanager
async def nobody_answers() -> AsyncIterator[tuple[str, list[asyncio.StreamWriter]]]:
    """Run a server that takes connections and says nothing; yields its address and its connections."""
    calls: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: calls.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"postgresql://user:secret@127.0.0.1:{port}/db", calls
    finally:
        server.close()
        for writer in calls:
            writer.close()


async def ended(pool: ObservedPool) -> None:
    """Wait until nothing is tried."""
    prober = pool._prober()
    assert isinstance(prober, Prober)
    await until(lambda: prober._since is None)


async def until(condition: Callable[[], Any]) -> None:
    """Wait for a condition that sends no event; or fail."""
    with anyio.fail_after(WAIT):
        while not condition():  # noqa: ASYNC110 - the driver has no event for it
            await anyio.sleep(0.01)


async def test_server_gone_fails_all_checks_until_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)  # psycopg_pool logs what the server said
    with postgres() as server:
        async with AsyncExitStack() as stack:
            pools = {}
            for peers in PEERS:
                peer = await stack.enter_async_context(peers(server.url))
                async with peer.held(2):
                    pass
                pools[peers.__name__] = observe(peer.pool, name=peers.__name__)
                assert (await examine(pools[peers.__name__], timeout=WAIT)).verdict == "pass"
            await run_sync(server.kill)
            for pool in pools.values():  # what is left of the server goes within moments
                await comes(pool, "fail")
            for _ in range(5):  # more often than there are connections to be found dead
                for name, pool in pools.items():
                    found = await examine(pool, max_age=0, timeout=0.3)
                    assert (name, found.verdict) == (name, "fail")
                    await ended(pool)
            await run_sync(server.start)
            for pool in pools.values():
                await comes(pool, "pass")


async def comes(pool: ObservedPool, verdict: str) -> None:
    """Ask anew until the verdict is this one; or fail."""
    with anyio.fail_after(WAIT):
        while (await examine(pool, max_age=0, timeout=1)).verdict != verdict:  # noqa: ASYNC110 - it is to be asked
            await anyio.sleep(0.01)


async def test_psycopg_pool_passes_once_a_lost_one_is_replaced(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    async with AsyncConnectionPool(postgres_url, min_size=2, max_size=2, open=False) as peer:
        await peer.wait(WAIT)
        pool = observe(peer, name="db")
        for connection in peer._pool:  # behind its back
            connection.pgconn.finish()
        assert (await examine(pool, max_age=0, timeout=WAIT)).verdict == "fail"
        assert (await examine(pool, max_age=0, timeout=WAIT)).verdict == "fail"
        await until(lambda: peer.get_stats()["pool_available"] == 2)
        async with peer.connection(), peer.connection():
            found = await examine(pool, max_age=0, timeout=WAIT)
            assert (found.verdict, found.reason) == ("warn", "saturated: 2 of 2 taken, 0 waiting")


def test_try_that_ended_with_its_loop_is_not_waited_for() -> None:
    class Stuck:
        """A driver that hangs in its first loop, and is never cancelled."""

        def __init__(self) -> None:
            self.tries: list[Any] = []

        def stats(self, name: str, cause: str | None) -> ObservedStats:
            return ObservedStats(name=name, status="open", cause=cause)

        def can_lend(self) -> bool:
            return True

        def still_fails(self) -> bool:
            return False

        async def try_out(self, _: float) -> None:
            self.tries.append(asyncio.current_task())
            if len(self.tries) == 1:
                await asyncio.get_running_loop().create_future()

    driver = Stuck()
    prober = Prober(driver, Clock())
    loop = asyncio.new_event_loop()
    asked = loop.create_task(prober.probe(5, WAIT))
    while not driver.tries:
        loop.run_until_complete(asyncio.sleep(0))
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(asked)
    driver.tries[0]._log_destroy_pending = False  # which is what is tested
    loop.close()
    assert asyncio.run(prober.probe(5, WAIT)) is True
    assert len(driver.tries) == 2


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_pools_for_threads_are_observed_on_asyncio_and_trio(backend: str) -> None:
    engine = create_engine("sqlite://", poolclass=QueuePool, connect_args={"check_same_thread": False})
    pool = observe(engine, name="db")
    found = anyio.run(lambda: examine(pool, timeout=WAIT), backend=backend)
    assert (found.verdict, found.stats.free, found.stats.taken) == ("pass", 1, 0)
    engine.dispose()


# --- when there is no pool yet, or no more -----------------------------------------------------------


async def test_pool_made_by_the_lifespan_is_observed_from_then(postgres_url: str) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with asyncpg.create_pool(postgres_url, min_size=0, max_size=2) as app.state.pool:
            yield

    app = FastAPI(lifespan=lifespan)
    pool = observe(lambda: app.state.pool, name="db")
    install_pools(app, things(name="ours"), pool, details="always")
    unknown = {"limit": None, "free": None, "taken": None, "creating": None, "waiting": None}
    assert await health(app, "/db") == (
        503,
        {
            "status": "fail",
            **unknown,
            "reason": "the pool is not open (new): AttributeError",
            "pool": "new",
            "retry_after": None,
            "holders": None,
        },
    )
    assert samples(pool) == {("connectionpool_open", "db"): 0}
    for _ in range(2):  # each lifespan has a pool of its own
        async with started(app) as served:
            status, body = await health(served, "/db")
            assert (status, body["status"], body["reason"], body["limit"]) == (200, "pass", "", 2)
            status, body = await health(served)
            assert (status, body["status"], sorted(body["pools"])) == (200, "pass", ["db", "ours"])
        status, body = await health(app, "/db")
        assert (status, body["reason"]) == (503, "the pool is not open (closed)")


async def test_pool_observed_in_lifespan_needs_only_middleware(postgres_url: str) -> None:
    async with psycopgs(postgres_url) as peer:
        app = FastAPI()
        app.add_middleware(PoolMiddleware, pools=[observe(peer.pool, name="db")])
        assert await health(app, "/ready") == (200, {"status": "pass"})


@pytest.mark.parametrize("nothing", [lambda: None, lambda: dict[str, object]()["pool"]], ids=["None", "raises"])
async def test_no_pool_yet_is_a_pool_that_is_not_open(nothing: Callable[[], Any]) -> None:
    found = await examine(observe(nothing, name="db"))
    assert (found.verdict, found.stats.status) == ("fail", "new")


async def test_what_is_found_too_late_to_be_refused_is_named() -> None:
    found = await examine(observe(lambda: "secret", name="db"))
    assert (found.verdict, found.reason[-8:], "secret" in found.reason) == ("fail", " got str", False)


async def test_pool_is_new_until_opened_and_closed_at_its_end(postgres_url: str) -> None:
    of_asyncpg = asyncpg.create_pool(postgres_url, min_size=0, max_size=2)
    of_psycopg = AsyncConnectionPool(postgres_url, min_size=1, max_size=2, open=False)
    pools = [observe(of_asyncpg, name="asyncpg"), observe(of_psycopg, name="psycopg")]

    async def statuses() -> set[tuple[str, str, str]]:
        found = [await examine(pool, timeout=WAIT) for pool in pools]
        return {(each.verdict, each.reason, each.stats.status) for each in found}

    assert await statuses() == {("fail", "the pool is not open (new)", "new")}
    async with of_asyncpg, of_psycopg:
        await of_psycopg.wait(WAIT)
        assert await statuses() == {("pass", "", "open")}
    assert await statuses() == {("fail", "the pool is not open (closed)", "closed")}
    assert not any(pool.stats().taken for pool in pools)


async def test_asyncpg_pool_that_waits_for_connections_is_closing(postgres_url: str) -> None:
    async with asyncpgs(postgres_url) as peer, anyio.create_task_group() as group:
        pool = observe(peer.pool, name="db")
        async with peer.held():
            group.start_soon(peer.pool.close)
            await anyio.wait_all_tasks_blocked()
            assert (await examine(pool)).reason == "the pool is not open (closing)"


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("declare", [Leased, Pooled])
def test_nothing_is_leased_from_an_observed_pool(declare: Any) -> None:
    pool = observe(create_engine("sqlite://"), name="db")
    with pytest.raises(PoolConfigError, match=r"pool 'db' is only observed, and an observed pool is not leased from"):
        declare(pool)


async def test_leasing_an_observed_pool_by_name_is_refused() -> None:
    app = installed(observe(create_engine("sqlite://"), name="db"))

    @app.get("/items")
    def items(_: Annotated[Any, Leased("db")]) -> None: ...

    sent = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(PoolConfigError, match="at /items: pool 'db' is only observed"):
        await app({"type": "lifespan", "state": {}, "app": app}, receive, send)
    assert "is not leased from" in sent[-1]["message"]


URL = "postgresql://user:secret@host/db"


@pytest.mark.parametrize(
    ("what", "named"),
    [(URL, "str"), (object(), "object"), (asyncpg.Pool, "the class Pool"), (things(), "ConnectionPool")],
    ids=["url", "object", "class", "ours"],
)
def test_what_cannot_be_observed_is_refused_by_its_kind(what: Any, named: str) -> None:
    with pytest.raises(PoolConfigError) as caught:
        observe(what, name="db")
    text = str(caught.value)
    assert text.endswith(f"got {named}")
    assert "secret" not in text
    for kind in ("asyncpg.Pool", "psycopg_pool.AsyncConnectionPool", "sqlalchemy.ext.asyncio.AsyncEngine"):
        assert kind in text


def test_a_name_is_needed_and_a_plain_function() -> None:
    engine = create_engine("sqlite://")
    for name in ("", None):
        with pytest.raises(PoolConfigError, match="name must be a string"):
            observe(engine, name=name)  # type: ignore[arg-type] # what is tested

    async def later() -> Any: ...

    with pytest.raises(PoolConfigError, match="observe takes a plain function"):
        observe(later, name="db")
    with pytest.raises(PoolConfigError, match="two pools have the name 'db'"):
        installed(observe(engine, name="db"), things(name="db"))
    with pytest.raises(PoolConfigError, match=r"got Engine; .* observe\(pool, name=...\) for a driver's own pool"):
        installed(engine)
    with pytest.raises(PoolConfigError, match="expected pools, got type"):
        installed(ObservedPool)


def test_drivers_that_are_not_used_are_not_imported() -> None:
    code = """
import sys
from connectionpools_fastapi import PoolConfigError, observe
try:
    observe(object(), name="db")
except PoolConfigError:
    print(sorted({"asyncpg", "psycopg", "psycopg_pool", "sqlalchemy"} & sys.modules.keys()))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - ours
    assert result.stdout == "[]\n"


# --- secrets --------------------------------------------------------------------------------------


@each_peer
async def test_no_output_shows_an_address_or_a_credential(
    peers: Any, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = make_url(postgres_url).set(username="nobody_we_know", password="wrong-secret")  # noqa: S106 - no real one
    async with peers(url.render_as_string(hide_password=False)) as peer:
        pool = observe(peer.pool, name="db")
        with only_ours(caplog):
            async with started(installed(pool, details="always", probe_timeout=0.3)) as served:
                answers = [
                    await ask(served, path)
                    for path in ("/pool/health", "/pool/health/db", "/pool/health/ready", "/pool/metrics")
                ]
                answers.append(await ask(served, "/pool/metrics", headers=[("Accept", "application/json")]))
            await ended(pool)
        seen = b"".join(answer.body for answer in answers).decode() + repr(pool) + caplog.text
    assert answers[0].status == 503
    for secret in ("nobody_we_know", "wrong-secret", str(url.host), str(url.port)):
        assert secret not in seen


@contextmanager
def only_ours(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Keep what psycopg_pool logs, with all that the server said, out of the books: it is the driver's own."""
    logger = logging.getLogger("psycopg.pool")
    before, logger.propagate = logger.propagate, False
    handler = logging.NullHandler()
    logger.addHandler(handler)
    caplog.clear()
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(handler)


def test_collectors_take_observed_pools() -> None:
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=3, max_overflow=4)
    found = list(PoolCollector([observe(engine, name="db")]).collect())
    [limit] = [family for family in found if family.name == "connectionpool_limit"]
    assert [sample.value for sample in limit.samples] == [7]
