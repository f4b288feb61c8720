"""pool_lifespan and install_pools: pools live as long as the application, and are found by name."""

import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
import anyio.to_thread
import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from connectionpools_fastapi import (
    ConnectionPool,
    Leased,
    PoolClosed,
    PoolConfigError,
    Pooled,
    PoolMiddleware,
    ResourceUnavailable,
    install_pools,
    pool_lifespan,
)
from connectionpools_fastapi.testing import override_leased, started
from tests.support import loop_time, settled
from tests.web import (
    Base,
    Db,
    Stacking,
    Thing,
    ask,
    beside_requests,
    forgets_streams,
    in_each_stacking,
    installed,
    things,
)

pytestmark = [pytest.mark.anyio, forgets_streams]


async def use(thing: Db) -> bool:
    return thing.cleaned


def start(app: FastAPI) -> None:
    with TestClient(app):
        pass


# --- opening and closing -----------------------------------------------------------------------


def test_pools_are_open_during_the_app_and_clean_after() -> None:
    db, cache = things(min_free=1, name="db"), things(name="cache")
    app = installed(db, cache)
    app.get("/")(use)
    with TestClient(app) as client:
        assert (db.status, db.free, cache.status) == ("open", 1, "open")
        assert client.get("/").status_code == 200
    assert (db.status, db.free, cache.status) == ("closed", 0, "closed")
    assert db.stats().creates == db.stats().cleans > 0


@beside_requests
def test_an_application_can_be_started_again(stacking: Stacking, anyio_backend: Any) -> None:
    pool = things()
    app = stacking.app(pool)
    app.get("/")(use)
    for _ in range(2):
        with TestClient(app, backend=anyio_backend) as client:
            assert client.get("/").status_code == 200
        assert pool.status == "closed"
    assert pool.stats().cleans == 2


@pytest.mark.parametrize("install", ["install_pools", "pool_lifespan"])
def test_own_lifespan_uses_the_pools_and_keeps_its_state(install: str) -> None:
    pool = things()
    seen: list[str] = []

    @asynccontextmanager
    async def own(_: FastAPI) -> AsyncIterator[dict[str, str]]:
        async with pool.lease():
            seen.append(pool.status)
        yield {"greeting": "hello"}
        async with pool.lease():
            seen.append(pool.status)

    if install == "install_pools":
        app = FastAPI(lifespan=own)
        install_pools(app, pool)
    else:
        app = FastAPI(lifespan=pool_lifespan(pool, lifespan=own))
        app.add_middleware(PoolMiddleware)

    @app.get("/")
    async def endpoint(request: Request, _: Db) -> str:
        return str(request.state.greeting)

    with TestClient(app) as client:
        assert client.get("/").json() == "hello"
    assert seen == ["open", "open"]


def test_an_own_lifespan_without_state_is_fine() -> None:
    pool = things()

    @asynccontextmanager
    async def own(_: FastAPI) -> AsyncIterator[None]:
        yield

    app = FastAPI(lifespan=own)
    install_pools(app, pool)
    app.get("/")(use)
    with TestClient(app) as client:
        assert client.get("/").status_code == 200


def test_pools_are_closed_when_the_own_lifespan_fails() -> None:
    pool = things(min_free=1)

    @asynccontextmanager
    async def own(_: FastAPI) -> AsyncIterator[None]:
        raise LookupError
        yield

    app = FastAPI(lifespan=own)
    install_pools(app, pool)
    with pytest.raises(LookupError):
        start(app)
    assert (pool.status, pool.stats().cleans) == ("closed", 1)


def test_pools_are_closed_side_by_side() -> None:
    """Shutdown takes as long as the slowest."""
    arrived: list[object] = []
    passed: list[object] = []
    all_there = anyio.Event()

    async def clean(resource: object) -> None:
        arrived.append(resource)
        if len(arrived) == len(pools):
            all_there.set()
        with anyio.fail_after(5):
            await all_there.wait()  # alone, none of them gets through
        passed.append(resource)

    pools = [things(name=name, min_free=1, clean=clean) for name in "abc"]
    start(installed(*pools))
    assert len(passed) == 3


def test_handlers_for_start_up_events_find_the_pools_open() -> None:
    pool = things()
    app = FastAPI()
    if not hasattr(app.router, "on_startup"):
        pytest.skip("this Starlette has no events any more")
    seen: list[str] = []
    app.router.on_startup.append(lambda: seen.append(pool.status))
    install_pools(app, pool)
    app.router.on_startup.append(lambda: seen.append(pool.status))
    start(app)
    assert seen == ["open", "open"]


# --- routers, sub-applications, several pools -----------------------------------------------------


def test_routers_bring_pools_of_their_own() -> None:
    db, cache, mail = things(name="db"), things(name="cache"), things(name="mail")
    inner = APIRouter(lifespan=pool_lifespan(mail))
    router = APIRouter(lifespan=pool_lifespan(cache))

    @inner.get("/inner")
    async def all_three(
        one: Db, two: Annotated[Thing, Leased("cache")], three: Annotated[Thing, Leased("mail")]
    ) -> int:
        return len({id(one), id(two), id(three)})

    router.include_router(inner)
    app = FastAPI(lifespan=pool_lifespan(db))
    app.add_middleware(PoolMiddleware)
    app.include_router(router, prefix="/router")
    with TestClient(app) as client:
        assert client.get("/router/inner").json() == 3
        assert sorted(client.get("/pool/health").json()["pools"]) == ["cache", "db", "mail"]
    assert {pool.status for pool in (db, cache, mail)} == {"closed"}


def test_routers_may_be_included_after_install_pools() -> None:
    db, cache = things(name="db"), things(name="cache")
    router = APIRouter(lifespan=pool_lifespan(cache))

    @router.get("/")
    async def both(one: Db, two: Annotated[Thing, Leased("cache")]) -> bool:
        return one is two

    app = installed(db)
    app.include_router(router)
    with TestClient(app) as client:
        assert client.get("/").json() is False


def test_install_pools_may_be_called_again_for_more() -> None:
    db, cache = things(name="db"), things(name="cache")
    app = installed(db)
    install_pools(app, cache)

    @app.get("/")
    async def both(one: Db, two: Annotated[Thing, Leased("cache")]) -> list[Any]:
        return [one is two, db.taken, cache.taken]

    with TestClient(app) as client:
        assert client.get("/").json() == [False, 1, 1]
        assert (db.taken, cache.taken) == (0, 0)
        assert sorted(client.get("/pool/health").json()["pools"]) == ["cache", "db"]


@in_each_stacking
@pytest.mark.parametrize("in_the_mounted", [(), (PoolMiddleware,), (Base,)], ids=["", "its own", "base"])
def test_mounted_app_leases_from_the_pools_of_the_outer(stacking: Stacking, in_the_mounted: tuple[Any, ...]) -> None:
    pool = things()
    app, sub = stacking.app(pool), FastAPI()
    for kind in in_the_mounted:
        sub.add_middleware(kind)
    sub.get("/by-name")(use)

    @sub.get("/by-pool")
    async def by_pool(_: Annotated[Thing, Leased(pool)]) -> int:
        return pool.taken

    @sub.websocket("/socket")
    async def socket(socket: WebSocket, _: Db) -> None:
        await socket.accept()
        await socket.send_json(pool.taken)
        await socket.close()

    app.mount("/sub", sub)
    with TestClient(app) as client:
        assert client.get("/sub/by-name").status_code == 200
        assert client.get("/sub/by-pool").json() == 1
        with client.websocket_connect("/sub/socket") as connection:
            assert connection.receive_json() == 1
        assert (pool.taken, pool.stats().acquires) == (0, 3)


# --- what is wrong is said at start-up ------------------------------------------------------------


def with_route(app: FastAPI) -> None:
    app.get("/x")(use)


def with_web_socket(app: FastAPI) -> None:
    @app.websocket("/x")
    async def endpoint(socket: WebSocket, thing: Db) -> None:
        raise NotImplementedError


def with_sub_dependency(app: FastAPI) -> None:
    async def inner(thing: Annotated[bool, Depends(use)]) -> bool:
        return thing

    @app.get("/x")
    async def endpoint(thing: Annotated[bool, Depends(inner)]) -> None:
        raise NotImplementedError


def with_dependency_of_the_route(app: FastAPI) -> None:
    @app.get("/x", dependencies=[Depends(use)])
    async def endpoint() -> None:
        raise NotImplementedError


def with_router(app: FastAPI) -> None:
    inner, outer = APIRouter(), APIRouter()
    inner.get("/x")(use)
    outer.include_router(inner)
    app.include_router(outer)


def with_dependency_of_an_inclusion(app: FastAPI) -> None:
    router = APIRouter()

    @router.get("/x")
    async def endpoint() -> None:
        raise NotImplementedError

    app.include_router(router, dependencies=[Depends(use)])


def with_web_socket_of_a_router(app: FastAPI) -> None:
    router = APIRouter()

    @router.websocket("/x")
    async def endpoint(socket: WebSocket, thing: Db) -> None:
        raise NotImplementedError

    app.include_router(router)


def with_sub_application(app: FastAPI) -> None:
    sub = FastAPI()
    sub.get("/x")(use)
    app.mount("", sub)


def with_generator_scope(app: FastAPI) -> None:
    @app.get("/x")
    async def endpoint(thing: Annotated[Thing, Leased("db", scope="function")]) -> None:
        raise NotImplementedError


def with_pooled(app: FastAPI) -> None:
    @app.get("/x")
    async def endpoint(pool: Annotated[ConnectionPool[Thing], Pooled("db")]) -> None:
        raise NotImplementedError


PLACES = [
    with_route,
    with_web_socket,
    with_sub_dependency,
    with_dependency_of_the_route,
    with_router,
    with_dependency_of_an_inclusion,
    with_web_socket_of_a_router,
    with_sub_application,
    with_generator_scope,
    with_pooled,
]


@pytest.mark.parametrize("place", PLACES)
def test_unknown_name_is_found_at_start_wherever_it_is(place: Callable[[FastAPI], None]) -> None:
    cache, mail = things(name="mail"), things(name="cache")
    app = installed(cache, mail)
    place(app)
    with pytest.raises(PoolConfigError, match=r"/x: there is no pool named 'db' here; there are 'cache', 'mail'"):
        start(app)
    assert (cache.status, mail.status) == ("closed", "closed")


@pytest.mark.parametrize("place", PLACES)
def test_a_known_name_is_no_reason_not_to_start(place: Callable[[FastAPI], None]) -> None:
    app = installed(things(name="db"))
    place(app)
    start(app)


def test_overridden_unknown_name_does_not_stop_the_start() -> None:
    app = installed(things(name="cache"))
    app.get("/x")(use)
    with override_leased(app, "db", Thing), TestClient(app) as client:
        assert client.get("/x").json() is False


def test_leased_pool_that_nothing_opens_fails_the_start() -> None:
    forgotten = things(name="forgotten")
    app = installed(things(name="db"))

    @app.get("/x")
    async def endpoint(thing: Annotated[Thing, Leased(forgotten)]) -> None:
        raise NotImplementedError

    with pytest.raises(PoolConfigError, match=r"Leased at /x: pool 'forgotten' is not open .*install_pools\(app, ..."):
        start(app)


def test_a_pool_that_something_else_opened_is_as_good() -> None:
    other = things(name="other")
    app = installed(things(name="db"))

    @app.get("/x")
    async def endpoint(_: Annotated[Thing, Leased(other)]) -> int:
        return other.taken

    with other, TestClient(app) as client:
        assert client.get("/x").json() == 1


def second_by_router(app: FastAPI, pool: ConnectionPool[Any]) -> None:
    app.include_router(APIRouter(lifespan=pool_lifespan(pool)))


def second_by_install(app: FastAPI, pool: ConnectionPool[Any]) -> None:
    install_pools(app, pool)


@pytest.mark.parametrize("second", [second_by_router, second_by_install])
def test_two_pools_of_one_name_fail_the_start(second: Callable[..., None]) -> None:
    """It does not matter where the pools come from."""
    one, other = things(), things()
    app = installed(one)
    second(app, other)
    with pytest.raises(PoolConfigError, match="two pools have the name 'db'; give each its own"):
        start(app)
    assert one.status in ("new", "closed")
    assert other.status in ("new", "closed")
    assert "open" not in (one.status, other.status)


def test_two_applications_may_each_have_a_pool_of_one_name() -> None:
    one, other = things(), things()
    apps = [installed(one), installed(other)]
    for app in apps:
        app.get("/")(use)
    with TestClient(apps[0]) as first, TestClient(apps[1]) as second:
        assert first.get("/").status_code == second.get("/").status_code == 200
    assert one.stats().acquires == other.stats().acquires == 1


def test_a_start_up_that_failed_can_be_tried_again() -> None:
    broken = True

    def create() -> Thing:
        if broken:
            raise ConnectionRefusedError
        return Thing()

    app = installed(things(create=create, min_free=1))
    with pytest.raises(ResourceUnavailable):
        start(app)
    broken = False
    start(app)


def test_a_route_that_is_hidden_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    app = installed(things())
    router = APIRouter(prefix="/pool")
    router.get("/health")(lambda: "own")
    router.get("/health/db/")(lambda: "own")
    router.get("/healthy")(lambda: "own")
    app.include_router(router)
    app.get("/pool/metrics")(lambda: "own")

    @app.websocket("/pool/health/ready")
    async def socket(socket: WebSocket) -> None:  # which nothing hides
        raise NotImplementedError

    app.get("/{path:path}")(lambda: "own")
    start(app)
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert [message.split()[4] for message in told] == ["/pool/health", "/pool/health/db/", "/pool/metrics"]
    assert "prefix" in told[0]


def test_no_route_is_hidden_where_the_prefix_is_another(caplog: pytest.LogCaptureFixture) -> None:
    app = installed(things(), prefix="/internal/pool")
    app.get("/pool/health")(lambda: "own")
    with TestClient(app) as client:
        assert client.get("/pool/health").json() == "own"
        assert client.get("/internal/pool/health").json()["status"] == "pass"
    assert not caplog.records


# --- where the lifespan did not run ----------------------------------------------------------------


@in_each_stacking
async def test_without_lifespan_a_lease_is_refused_with_the_fix(
    stacking: Stacking, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names the cause."""
    pool = things()
    app = stacking.app(pool)
    app.get("/by-name")(use)

    @app.get("/by-pool")
    async def by_pool(_: Annotated[Thing, Leased(pool)]) -> None:
        raise NotImplementedError

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for path in ("/by-name", "/by-pool"):
            answers = [await client.get(path), await anyio.to_thread.run_sync(TestClient(app).get, path)]
            assert [answer.status_code for answer in answers] == [503, 503]
    by_name, by_itself = [record for record in caplog.records if record.message.startswith("GET /by-")]
    assert by_name.levelno == logging.ERROR
    for words in ("'db'", "install_pools(app, pool)", "with TestClient(app)", "mounted"):
        assert words in by_name.message
        assert words in by_itself.message
    assert "started(app)" in by_name.message
    assert "never opened" in by_itself.message


def test_pools_of_a_mounted_app_say_where_they_belong(caplog: pytest.LogCaptureFixture) -> None:
    app, sub = FastAPI(), installed(things())
    sub.get("/")(use)
    app.mount("/sub", sub)
    with TestClient(app) as client:
        assert client.get("/sub/").status_code == 503
    assert "install its pools in the outermost application" in caplog.text


def test_pool_closed_names_the_pool_that_was_closed_again() -> None:
    pool = things()
    app = FastAPI(lifespan=pool_lifespan(pool))

    @app.get("/")
    async def endpoint(thing: Annotated[Thing, Leased(pool, scope="request")]) -> None:
        raise NotImplementedError

    client = TestClient(app)
    with client:
        pass
    with pytest.raises(PoolClosed, match=r"'db'.*closed"):
        client.get("/")


async def test_started_runs_the_lifespan_and_hands_on_its_state() -> None:
    pool = things()
    app = installed(pool)
    app.get("/")(use)
    async with started(app) as served:
        assert pool.status == "open"
        assert (await ask(served)).status == 200
    assert pool.status == "closed"


# --- what the server sees ---------------------------------------------------------------------------


async def lifespan_messages(app: FastAPI) -> tuple[list[Any], BaseException | None]:
    sent: list[Any] = []
    received = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        return next(received)

    async def send(message: Any) -> None:
        sent.append(message)

    try:
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    except Exception as error:  # noqa: BLE001 - a part of the answer
        return sent, error
    return sent, None


def refuse() -> Thing:
    msg = "postgres://user:secret@host/db"
    raise ConnectionRefusedError(msg)


@beside_requests
@pytest.mark.virtual_time
async def test_pool_that_cannot_open_fails_the_start_in_one_line(stacking: Stacking) -> None:
    """The line lacks the address."""
    app = stacking.app(things(create=refuse, min_free=1, clock=loop_time))
    sent, error = await lifespan_messages(app)
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert isinstance(error, ResourceUnavailable)
    text = sent[0]["message"]
    assert text == str(error)
    assert "\n" not in text
    assert "'db'" in text
    assert "ConnectionRefusedError" in text
    assert "secret" not in text


@beside_requests
async def test_wrong_wiring_fails_the_start_in_one_line(stacking: Stacking) -> None:
    app = stacking.app(things(name="cache"))
    app.get("/x")(use)
    sent, error = await lifespan_messages(app)
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert sent[0]["message"] == str(error)
    assert "no pool named 'db'" in str(error)


async def test_another_failure_at_start_is_reported_as_it_was() -> None:
    @asynccontextmanager
    async def own(_: FastAPI) -> AsyncIterator[None]:
        msg = "a mistake"
        raise LookupError(msg)
        yield

    app = FastAPI(lifespan=own)
    install_pools(app, things())
    sent, error = await lifespan_messages(app)
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert "Traceback" in sent[0]["message"]
    assert isinstance(error, LookupError)


async def live(app: FastAPI, sent: list[Message], end: Callable[[], Awaitable[object]], **scope: Any) -> None:
    """Speak the protocol of the lifespan as a server does, until the end."""
    begun = False

    async def receive() -> Message:
        nonlocal begun
        if not begun:
            begun = True
            return {"type": "lifespan.startup"}
        await end()
        return {"type": "lifespan.shutdown"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, **scope}, receive, send)


@in_each_stacking
async def test_shutdown_waits_for_a_cancelled_request(stacking: Stacking, caplog: pytest.LogCaptureFixture) -> None:
    pool = things(limit=1)
    app = stacking.app(pool)
    holds, end, may_go = anyio.Event(), anyio.Event(), anyio.Event()
    state: dict[str, Any] = {}
    sent: list[Message] = []
    cleaned: list[bool] = []

    @app.get("/")
    async def endpoint(thing: Db) -> None:
        holds.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await may_go.wait()
            cleaned.append(thing.cleaned)

    request = anyio.CancelScope()

    async def serve() -> None:
        with request:
            await ask(lambda scope, receive, send: app({**scope, "state": {**state}}, receive, send))

    async def lifespan() -> None:
        await live(app, sent, end.wait, state=state)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(lifespan)
            await settled()
            group.start_soon(serve)
            await holds.wait()
            request.cancel()
            end.set()
            try:
                await settled()
                assert (pool.status, len(sent)) == ("closing", 1)
            finally:  # or a failure would wait for ever
                may_go.set()
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert cleaned == [False]
    assert (pool.status, pool.stats().cleans, caplog.messages) == ("closed", 1, [])


async def test_a_good_start_and_end_are_reported_once_each() -> None:
    sent, error = await lifespan_messages(installed(things()))
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert error is None


async def test_middleware_around_an_app_without_routes_is_inert() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])
        await receive()
        await send({"type": "lifespan.startup.complete"})

    sent, error = await lifespan_messages(PoolMiddleware(app))  # type: ignore[arg-type] # an ASGI application as well
    assert (seen, error) == (["lifespan"], None)
    assert [message["type"] for message in sent] == ["lifespan.startup.complete"]


SERVICE = """
import uvicorn
from fastapi import FastAPI
from connectionpools_fastapi import ConnectionPool, install_pools

def create():
    raise ConnectionRefusedError(111, "postgres://user:secret@host/db")

app = FastAPI()
install_pools(app, ConnectionPool(create=create, min_free=1, name="db"))
uvicorn.run(app, port=0, lifespan="auto")
"""


def test_real_server_names_a_failed_pool_in_one_line(refused: str) -> None:
    assert len([line for line in refused.splitlines() if "pool 'db'" in line]) == 1


def test_real_server_does_not_start_without_its_pool(refused: str) -> None:
    """It says why, without a traceback."""
    lines = [line for line in refused.splitlines() if line.startswith("ERROR:")]
    assert len(lines) == 2, refused
    assert "pool 'db'" in lines[0]
    assert "ConnectionRefusedError (Connection refused)" in lines[0]
    assert "startup failed" in lines[1]
    assert "Traceback" not in refused
    assert "secret" not in refused


@pytest.fixture(scope="module")
def refused() -> str:
    """What a server prints that cannot open its pool."""
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", SERVICE],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 3, done.stderr
    return done.stdout + done.stderr
