"""PoolMiddleware: what becomes of a PoolError, and which requests it answers itself."""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import anyio
import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

from connectionpools_fastapi import (
    ConnectionPool,
    Leased,
    NotLeased,
    Overloaded,
    PoolClosed,
    PoolError,
    PoolMiddleware,
    PoolTimeout,
    ResourceUnavailable,
    TooManyWaiting,
    WrongEventLoop,
    install_pools,
)
from connectionpools_fastapi.testing import started
from tests.support import loop_time
from tests.web import (
    NONE,
    Answer,
    Db,
    Stacking,
    Thing,
    ask,
    beside_requests,
    forgets_streams,
    in_each_stacking,
    installed,
    speak,
    things,
)

pytestmark = [pytest.mark.anyio, forgets_streams]

ADDRESS = "postgres://user:secret@host/db"


def raising(error: Exception, stacking: Stacking = NONE, pool: ConnectionPool[Thing] | None = None) -> FastAPI:
    """Make an application whose endpoint leases, and raises."""
    app = stacking.app(pool or things())

    @app.api_route("/items/{item}", methods=["GET", "POST"])
    async def endpoint(item: str, _: Db) -> None:
        assert item
        raise error

    return app


def assert_problem(answer: Answer, retry_after: str) -> None:
    assert answer.status == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == retry_after
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert b'"status":503' in answer.body
    assert b"secret" not in answer.body
    assert b"pool" not in answer.body


# --- a PoolError that the application does not handle ---------------------------------------------


@pytest.mark.parametrize(
    ("error", "retry_after"),
    [
        (PoolTimeout(ADDRESS), "1"),
        (TooManyWaiting(ADDRESS), "1"),
        (Overloaded(ADDRESS, 0.2), "1"),
        (Overloaded(ADDRESS, 2.3), "3"),
        (ResourceUnavailable(ADDRESS, 0.0), "1"),
        (ResourceUnavailable(ADDRESS, 0.2), "1"),
        (ResourceUnavailable(ADDRESS, 1.01), "2"),
        (ResourceUnavailable(ADDRESS, 30.0), "30"),
        (PoolClosed(ADDRESS), "1"),
        (NotLeased(ADDRESS), "1"),
        (ExceptionGroup("several", [PoolTimeout(ADDRESS), ExceptionGroup("more", [PoolClosed(ADDRESS)])]), "1"),
        (ExceptionGroup("several", [ResourceUnavailable(ADDRESS, 7.0)]), "7"),
    ],
)
@in_each_stacking
async def test_pool_error_is_answered_with_503_and_retry_after(
    stacking: Stacking, error: Exception, retry_after: str
) -> None:
    """The lease has ended before."""
    pool = things(limit=1)
    taken: list[int] = []
    async with started(raising(error, stacking, pool)) as served:
        answer = await ask(served, "/items/1", on_send=lambda _: taken.append(pool.taken))
    assert_problem(answer, retry_after)
    assert set(taken) == {0}


@pytest.mark.parametrize(
    "error",
    [LookupError("a mistake"), ExceptionGroup("both", [PoolTimeout("pool"), LookupError("a mistake")])],
)
async def test_any_other_error_goes_through(error: Exception) -> None:
    seen: list[Message] = []
    async with started(raising(error)) as served:
        with pytest.raises(type(error)) as raised:
            await ask(served, "/items/1", on_send=seen.append)
    assert raised.value is error
    assert seen[0]["status"] == 500


@in_each_stacking
async def test_exhausted_pool_answers_503_then_serves(stacking: Stacking) -> None:
    pool = things(limit=1, timeout=0, min_free=1)
    app = stacking.app(pool)

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased(pool)]) -> str:
        return "served"

    async with started(app) as served:
        async with pool.lease():
            assert_problem(await ask(served), "1")
        assert (await ask(served)).body == b'"served"'


@pytest.mark.virtual_time
async def test_down_back_end_is_answered_without_its_address() -> None:
    def create() -> Thing:
        raise ConnectionRefusedError(ADDRESS)

    pool = things(create=create, clock=loop_time)
    app = installed(pool)

    @app.get("/")
    async def endpoint(thing: Annotated[Thing, Leased(pool)]) -> None:
        raise NotImplementedError

    async with started(app) as served:
        assert_problem(await ask(served), "1")


async def test_pool_error_in_a_task_group_is_answered_as_well() -> None:
    pool = things(limit=1, timeout=0)
    app = installed(pool)

    async def use() -> None:
        async with pool.lease():
            await anyio.sleep_forever()

    @app.get("/")
    async def endpoint() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(use)
            group.start_soon(use)

    async with started(app) as served:
        assert_problem(await ask(served), "1")
        assert pool.taken == 0


@pytest.mark.parametrize("kind", [PoolError, PoolTimeout])
@in_each_stacking
async def test_the_applications_own_handler_wins(
    stacking: Stacking, kind: type[PoolError], caplog: pytest.LogCaptureFixture
) -> None:
    app = raising(PoolTimeout("late"), stacking)

    @app.exception_handler(kind)
    async def handle(_: Request, error: PoolError) -> JSONResponse:
        return JSONResponse({"own": str(error)}, status_code=429)

    async with started(app) as served:
        answer = await ask(served, "/items/1")
    assert (answer.status, answer.body) == (429, b'{"own":"late"}')
    assert not caplog.records


@in_each_stacking
async def test_error_after_the_response_began_goes_through(stacking: Stacking) -> None:
    pool = things(limit=1)
    app = stacking.app(pool)

    @app.get("/")
    async def endpoint(_: Db) -> StreamingResponse:
        async def rows() -> AsyncIterator[str]:
            yield "row"
            raise PoolTimeout

        return StreamingResponse(rows())

    sent: list[Message] = []
    async with started(app) as served:
        with pytest.raises(PoolTimeout):
            await ask(served, on_send=sent.append)
        assert (pool.taken, pool.free) == (0, 1)
    assert [message["status"] for message in sent if message["type"] == "http.response.start"] == [200]
    assert b"".join(message.get("body", b"") for message in sent) == b"row"


async def test_log_names_route_and_pool_without_user_input(caplog: pytest.LogCaptureFixture) -> None:
    async with started(raising(PoolTimeout("pool 'db': late"))) as served:
        await ask(served, "/items/typed", method="POST", headers=[("x-typed", "typed")])
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("connectionpools_fastapi", logging.WARNING)
    assert record.getMessage() == "POST /items/{item} answered with 503: pool 'db': late"
    assert record.exc_info is None


@pytest.mark.virtual_time
async def test_a_storm_of_refusals_is_a_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    began = time.monotonic()
    async with started(raising(PoolTimeout("late"))) as served:
        for _ in range(300):
            await ask(served, "/items/1")
        await anyio.sleep(3)
    first, *more, over = caplog.messages
    assert first == "GET /items/{item} answered with 503: late"
    assert "GET /items/{item} answered with 503 for PoolTimeout (" in more[0]
    assert sum(int(line.partition(" more requests without a resource within a second: ")[0]) for line in more) == 299
    assert over.startswith("no more requests without a resource for a second; there were 300 within ")
    assert len(more) <= 1 + time.monotonic() - began


def test_count_of_a_storm_is_logged_at_shutdown(caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(raising(NotLeased("twice"))) as client:
        for _ in range(3):
            client.get("/items/1")
    levels = {record.levelno for record in caplog.records if record.name == "connectionpools_fastapi"}
    assert levels == {logging.ERROR}
    assert "no more requests that met this mistake for a second; there were 3 within" in caplog.messages[-1]


async def test_log_does_not_repeat_an_unknown_method(caplog: pytest.LogCaptureFixture) -> None:
    app = installed(things())

    async def fails(*_: Any) -> None:
        raise PoolTimeout("late")

    app.mount("/typed", fails)
    async with started(app) as served:
        await ask(served, "/typed/typed", method="TYPED")
    assert "typed" not in caplog.records[0].getMessage().lower()


@pytest.mark.parametrize("error", [NotLeased("twice"), WrongEventLoop("another")])
async def test_a_mistake_in_the_application_is_logged_as_an_error(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(raising(error)) as served:
        await ask(served, "/items/1")
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_mistake_is_logged_with_its_line_in_the_app(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = things()
    app = installed(pool)

    @app.get("/twice")
    async def twice() -> None:
        thing = await pool.acquire()
        await pool.release(thing)
        await pool.release(thing)

    async with started(app) as served:
        await ask(served, "/twice")
    line = inspect.getsourcelines(twice)[1] + 4
    assert f'{Path(__file__).name}", line {line}' in caplog.records[0].getMessage()


# --- web sockets ------------------------------------------------------------------------------------


def socket_app(pool: ConnectionPool[Thing], stacking: Stacking = NONE) -> FastAPI:
    app = stacking.app(pool)

    @app.websocket("/leased")
    async def leased(socket: WebSocket, _: Annotated[Thing, Leased(pool)]) -> None:
        await socket.accept()
        await socket.close()

    @app.websocket("/late")
    async def late(socket: WebSocket) -> None:
        await socket.accept()
        async with pool.lease(timeout=0):
            await socket.close()

    @app.websocket("/closed")
    async def closed(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close(4000)
        raise PoolTimeout

    return app


@beside_requests
async def test_a_web_socket_without_a_resource_is_denied_with_503(stacking: Stacking) -> None:
    pool = things(limit=1, timeout=0, min_free=1)
    async with started(socket_app(pool, stacking)) as served, pool.lease():
        sent = await speak(served, "/leased", extensions={"websocket.http.response": {}})
    start, body = sent
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 503)
    headers = dict(start["headers"])
    assert headers[b"retry-after"] == b"1"
    assert headers[b"content-type"] == b"application/problem+json"
    assert body["type"] == "websocket.http.response.body"
    assert b"pool" not in body["body"]


@pytest.mark.parametrize("extensions", [None, {}])
@beside_requests
async def test_a_server_that_cannot_deny_closes_with_1013(
    stacking: Stacking, extensions: dict[str, Any] | None
) -> None:
    pool = things(limit=1, timeout=0, min_free=1)
    async with started(socket_app(pool, stacking)) as served, pool.lease():
        sent = await speak(served, "/leased", extensions=extensions)
    assert sent == [{"type": "websocket.close", "code": 1013, "reason": "Try again later"}]


@beside_requests
async def test_a_web_socket_that_was_accepted_is_closed_with_1013(stacking: Stacking) -> None:
    pool = things(limit=1, timeout=0, min_free=1)
    async with started(socket_app(pool, stacking)) as served, pool.lease():
        sent = await speak(served, "/late", extensions={"websocket.http.response": {}})
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]
    assert sent[-1]["code"] == 1013


@pytest.mark.parametrize(
    ("path", "extensions", "what"),
    [
        ("/leased", {"websocket.http.response": {}}, "WEBSOCKET /leased denied with 503: pool 'db'"),
        ("/leased", {}, "WEBSOCKET /leased closed with 1013: pool 'db'"),
        ("/late", {"websocket.http.response": {}}, "WEBSOCKET /late closed with 1013: pool 'db'"),
    ],
)
async def test_the_log_says_how_a_web_socket_was_refused(
    path: str, extensions: dict[str, Any], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = things(limit=1, timeout=0, min_free=1)
    async with started(socket_app(pool)) as served, pool.lease():
        await speak(served, path, extensions=extensions)
    (message,) = caplog.messages
    assert message.startswith(what)


async def test_a_web_socket_that_was_closed_is_not_closed_again() -> None:
    sent: list[Message] = []
    async with started(socket_app(things())) as served:
        with pytest.raises(PoolTimeout):
            sent = await speak(served, "/closed", extensions={"websocket.http.response": {}})
    assert sent == []


def test_a_client_sees_the_denial_and_the_closing(anyio_backend: str) -> None:
    pool = things(limit=1, timeout=0, min_free=1)
    app = socket_app(pool)
    with TestClient(app, backend=anyio_backend) as client:  # type: ignore[arg-type] # a literal
        held = client.portal.call(pool.acquire) if client.portal else None
        assert held is not None
        with pytest.raises(WebSocketDenialResponse) as denied, client.websocket_connect("/leased"):
            raise NotImplementedError
        assert denied.value.status_code == 503
        with client.websocket_connect("/late") as socket, pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
        assert closed.value.code == 1013
        pool.discard(held)


# --- the endpoints' paths and methods ---------------------------------------------------------------

OWN = ["/pool/health", "/pool/health/live", "/pool/health/ready", "/pool/health/db", "/pool/metrics"]
NOT_OWN = [
    "/pool",
    "/pool/",
    "/pool/healthy",
    "/pool/health//",
    "/pool/health.json",
    "/pool/metrics/db",
    "/pool/metrics//",
    "/POOL/health",
    "/x/pool/health",
    "//pool/health",
    "/poolhealth",
    "/pools/health",
]


def with_catch_all(stacking: Stacking = NONE, **options: Any) -> FastAPI:
    app = stacking.app(things(), **options)
    app.api_route("/{path:path}", methods=["GET", "HEAD", "POST"])(lambda: "the application's")
    return app


async def is_own(app: Any, path: str, **options: Any) -> bool:
    return b"the application's" not in (await ask(app, path, **options)).body


@in_each_stacking
async def test_endpoints_match_exact_paths_before_the_routes(stacking: Stacking) -> None:
    """A path may end with a slash. The answers are never stored."""
    async with started(with_catch_all(stacking)) as served:
        for path in [*OWN, *(path + "/" for path in OWN)]:
            answer = await ask(served, path)
            assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
            assert b"the application's" not in answer.body
        for path in NOT_OWN:
            assert not await is_own(served, path), path


@in_each_stacking
async def test_head_has_the_headers_of_get_and_no_body(stacking: Stacking) -> None:
    async with started(with_catch_all(stacking)) as served:
        for path in OWN:
            await ask(served, path)
            got, head = await ask(served, path), await ask(served, path, method="HEAD")
            assert (head.status, head.body, head.headers) == (got.status, b"", got.headers)
            assert got.headers["content-length"] == str(len(got.body))


@in_each_stacking
async def test_other_methods_are_told_which_are_allowed(stacking: Stacking) -> None:
    async with started(with_catch_all(stacking)) as served:
        for path in [*OWN, "/pool/health/unknown"]:
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "NONSENSE"):
                answer = await ask(served, path, method=method)
                assert (answer.status, answer.headers["allow"], answer.body) == (405, "GET, HEAD", b"")
                assert answer.headers["cache-control"] == "no-store"


async def test_an_unknown_pool_is_not_found() -> None:
    async with started(with_catch_all()) as served:
        answer = await ask(served, "/pool/health/typed")
        assert answer.status == 404
        assert b"typed" not in answer.body
        head = await ask(served, "/pool/health/typed", method="HEAD")
        assert (head.status, head.body, head.headers) == (404, b"", answer.headers)


@pytest.mark.parametrize(
    ("root_path", "path", "own"),
    [
        ("", "/pool/health", True),
        ("/api", "/pool/health", True),  # a proxy that has stripped it
        ("/api", "/api/pool/health", True),  # a server that has not
        ("/api/v1", "/api/v1/pool/metrics/", True),
        ("/api", "/apis/pool/health", False),
        ("/api", "/other/pool/health", False),
        ("/api", "/api/api/pool/health", False),
        ("", "/api/pool/health", False),
        ("/p", "/pool/health", True),  # stripped, and it begins alike
        ("/p", "/p/pool/health", True),
        ("/po", "/pool/metrics", True),
        ("/pool", "/pool/pool/health", True),
        ("/pool", "/pool/health", False),  # what is left of it is /health
    ],
)
async def test_the_root_path_is_respected_as_starlette_does(root_path: str, path: str, own: bool) -> None:  # noqa: FBT001
    async with started(with_catch_all()) as served:
        assert await is_own(served, path, root_path=root_path) is own


@in_each_stacking
@pytest.mark.filterwarnings("ignore:The `root_path` parameter")
async def test_the_applications_root_path_is_respected(stacking: Stacking) -> None:
    async with started(with_catch_all(stacking, root_path="/api")) as served:
        for path, own in (("/pool/health", True), ("/api/pool/health", True), ("/other/pool/health", False)):
            assert await is_own(served, path) is own


async def test_mounted_app_may_have_endpoints_of_its_own() -> None:
    app, sub = FastAPI(), FastAPI()
    install_pools(app, things(), prefix="/outer")
    sub.add_middleware(PoolMiddleware)
    app.mount("/sub", sub)
    async with started(app) as served:
        assert b'"db"' in (await ask(served, "/sub/pool/health")).body
        assert b'"db"' in (await ask(served, "/outer/health")).body
        assert (await ask(served, "/pool/health")).status == 404


async def test_another_prefix_moves_all_endpoints() -> None:
    app = installed(things(), prefix="/internal/resources")
    app.get("/{path:path}")(lambda: "the application's")
    async with started(app) as served:
        for path in OWN:
            assert await is_own(served, path.replace("/pool", "/internal/resources"))
            assert not await is_own(served, path)


async def test_endpoints_are_not_in_the_openapi_document() -> None:
    app = installed(things())
    app.get("/items")(lambda: None)
    async with started(app) as served:
        await ask(served, "/pool/health")
        await ask(served, "/pool/metrics")
    assert list(app.openapi()["paths"]) == ["/items"]


async def test_a_request_that_uses_no_pool_takes_nothing() -> None:
    pool = things(min_free=1)
    app = installed(pool)
    app.get("/")(lambda: "answered")
    async with started(app) as served:
        assert (await ask(served)).body == b'"answered"'
        assert pool.stats().acquires == 0


def test_asyncio_pool_refuses_another_loop_with_503(caplog: pytest.LogCaptureFixture) -> None:
    async def create() -> Thing:
        return Thing()

    pool = things(create=create)
    app = installed(pool)

    @app.get("/")
    async def endpoint(thing: Annotated[Thing, Leased(pool)]) -> None:
        raise NotImplementedError

    async def main() -> None:
        async with pool:
            answers = await asyncio.to_thread(lambda: asyncio.run(ask(app)))
            assert answers.status == 503

    asyncio.run(main())
    assert "event loop" in caplog.text
