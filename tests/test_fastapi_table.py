"""What was measured of FastAPI, and what follows: each promise, with BaseHTTPMiddleware around, inside, both and none.

What other files hold in several stackings already is not repeated here:

- A waiter whose client has gone leaves the queue, and the application still gets each message in order:
  test_disconnect.py, the first of "leaving" and the first two of "staying", and a real server at its end.
- A new BaseHTTPMiddleware in every place lets a stream have its lease: test_leased.py, "other middleware".

And what no stacking touches: the numbers that come from stats (test_metrics.py, test_stats.py), the boundaries of
OpenTelemetry's buckets (test_otel.py), and the warning about a hidden route (test_pool_lifespan.py).
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest
import starlette
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, StreamingResponse
from fastapi.testclient import TestClient
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from connectionpools_fastapi import (
    ConnectionPool,
    Leased,
    Pooled,
    PoolTimeout,
    ResourceUnavailable,
    WouldDeadlock,
    install_pools,
    pool_lifespan,
)
from connectionpools_fastapi.testing import started
from tests.support import Backend, assert_nothing_is_lost, loop_time, settled
from tests.web import Answer, Thing, ask, things, watched

pytestmark = [
    pytest.mark.anyio,
    # The oldest supported Starlette's own: its BaseHTTPMiddleware leaves a generator to the garbage collector.
    pytest.mark.filterwarnings("ignore:Async generator 'starlette.requests.Request.stream':ResourceWarning"),
]


class Base(BaseHTTPMiddleware):
    """Runs the application in a task of its own, and sends each part of the body on by itself."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-base"] = "seen"
        return response


class Watch:
    """Stands right around PoolMiddleware, and looks at each message as that sends it on."""

    def __init__(self, app: ASGIApp, look: Callable[[Message], None]) -> None:
        self.app = app
        self.look = look

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            self.look(message)
            await send(message)

        await self.app(scope, receive, send_on)


class Stacking(NamedTuple):
    """Where there is a BaseHTTPMiddleware: between PoolMiddleware and the routes, around PoolMiddleware."""

    inside: bool
    around: bool

    def app(
        self, *pools: ConnectionPool[Any], look: Callable[[Message], None] = lambda _: None, **options: Any
    ) -> FastAPI:
        app = FastAPI(**options)
        if self.inside:
            app.add_middleware(Base)
        install_pools(app, *pools)
        app.add_middleware(Watch, look=look)
        if self.around:
            app.add_middleware(Base)
        return app


NONE, AROUND, INSIDE, BOTH = Stacking(False, False), Stacking(False, True), Stacking(True, False), Stacking(True, True)  # noqa: FBT003 - named where they are made
NAMES = {NONE: "none", AROUND: "around", INSIDE: "inside", BOTH: "both"}

in_each_stacking = pytest.mark.parametrize("stacking", NAMES, ids=NAMES.get)
# A WebSocket and the lifespan pass BaseHTTPMiddleware untouched: the most and the least of it say all.
beside_requests = pytest.mark.parametrize("stacking", [NONE, BOTH], ids=NAMES.get)
# Before Starlette 1.7, what is inside of BaseHTTPMiddleware runs its background tasks while that still sends the
# response (Starlette's issue 3458): a background task and the end of a lease come in any order there.
HAS_ORDER = tuple(map(int, starlette.__version__.split(".")[:2])) >= (1, 7)
where_background_comes_last = pytest.mark.parametrize("stacking", NAMES if HAS_ORDER else [NONE, AROUND], ids=NAMES.get)
for_each_scope = pytest.mark.parametrize(
    "until", [None, "function", "request"], ids=["response", "function", "request"]
)


def is_last(message: Message) -> bool:
    kind = message["type"]
    return kind == "http.response.pathsend" or (kind == "http.response.body" and not message.get("more_body"))


def slowly(app: ASGIApp, turns: int = 30) -> ASGIApp:
    """Serve an application as a server with a slow client does: each message takes some turns of the loop to send."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_slowly(message: Message) -> None:
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            await send(message)

        await app(scope, receive, send_slowly)

    return serve


# --- released just before the last message of the body, and before background tasks -----------------------

Db = Annotated[Thing, Leased("db")]
BIG = b"x" * (FileResponse.chunk_size + 1)


async def json_async(_: Db) -> dict[str, int]:
    return {"a": 1}


def json_sync(_: Db) -> dict[str, int]:
    return {"a": 1}


async def stream_async(_: Db) -> StreamingResponse:
    async def rows() -> AsyncIterator[str]:
        for row in "abc":
            await anyio.lowlevel.checkpoint()
            yield row

    return StreamingResponse(rows())


def stream_sync(_: Db) -> StreamingResponse:
    def rows() -> Iterator[str]:
        yield from "abc"

    return StreamingResponse(rows())


async def file(_: Db, request: Request) -> FileResponse:
    return FileResponse(request.app.state.path)


async def redirect(_: Db) -> RedirectResponse:
    return RedirectResponse("/elsewhere")


async def http_exception(_: Db) -> None:
    raise HTTPException(418)


async def invalid(_: Db, number: int) -> None:
    raise AssertionError(number)


async def nothing(_: Db) -> Response:
    return Response(status_code=204)


class Kind(NamedTuple):
    """A kind of response: who sends it, and what the client gets."""

    endpoint: Callable[..., Any]
    status: int = 200
    body: bytes | None = None
    method: str = "GET"
    extensions: tuple[str, ...] = ()


KINDS = {
    "json": Kind(json_async, body=b'{"a":1}'),
    "json of a def": Kind(json_sync, body=b'{"a":1}'),
    "stream": Kind(stream_async, body=b"abc"),
    "stream of a def": Kind(stream_sync, body=b"abc"),
    "file": Kind(file, body=BIG),
    "file by its path": Kind(file, body=b"", extensions=("http.response.pathsend",)),
    "redirect": Kind(redirect, status=307, body=b""),
    "refusal": Kind(http_exception, status=418),
    "invalid input": Kind(invalid, status=422),
    "empty": Kind(nothing, status=204, body=b""),
    "head of json": Kind(json_async, method="HEAD"),
    "head of a file": Kind(file, method="HEAD", body=b""),
}


@pytest.fixture(scope="module")
def big_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "big"
    path.write_bytes(BIG)
    return path


@in_each_stacking
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_a_lease_lasts_until_just_before_the_last_message(stacking: Stacking, kind: Kind, big_file: Path) -> None:
    pool = things(limit=1)
    seen: list[tuple[bool, int]] = []
    at_the_server: list[int] = []
    app = stacking.app(pool, look=lambda message: seen.append((is_last(message), pool.taken)))
    app.state.path = big_file
    app.api_route("/", methods=[kind.method])(kind.endpoint)
    async with started(app) as served:
        answer = await ask(
            served,
            method=kind.method,
            extensions=kind.extensions,
            on_send=lambda message: at_the_server.append(pool.taken) if is_last(message) else None,
        )
    assert answer.status == kind.status
    assert kind.body is None or answer.body == kind.body
    *before, last = seen
    assert before == [(False, 1)] * len(before) != []
    assert last == (True, 0)
    assert at_the_server == [0]


@in_each_stacking
async def test_a_stream_has_its_lease_as_long_as_it_makes_rows(stacking: Stacking) -> None:
    pool = things(limit=1)
    app = stacking.app(pool)
    taken: list[int] = []

    @app.get("/")
    async def endpoint(_: Db) -> StreamingResponse:
        async def rows() -> AsyncIterator[str]:
            for row in "abc":
                taken.append(pool.taken)
                yield row
            taken.append(pool.taken)

        return StreamingResponse(rows())

    async with started(app) as served:
        assert (await ask(slowly(served))).body == b"abc"
    assert taken == [1, 1, 1, 1]


@in_each_stacking
async def test_an_endpoint_that_raises_gives_back_before_the_error_page(stacking: Stacking) -> None:
    pool = things(limit=1)
    app = stacking.app(pool)
    sent: list[tuple[str, int]] = []

    @app.get("/")
    async def endpoint(_: Db) -> None:
        msg = "a mistake"
        raise LookupError(msg)

    async with started(app) as served:
        with pytest.raises(LookupError, match="a mistake"):
            await ask(served, on_send=lambda message: sent.append((message["type"], pool.taken)))
    assert sent == [("http.response.start", 0), ("http.response.body", 0)]


class EndlessRows:
    """No generator: nobody closes one whose reader is cut off, as trio complains."""

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        await anyio.lowlevel.checkpoint()
        return "row"


# Starlette's own: its BaseHTTPMiddleware leaves the body to the garbage collector when the server's `send` raises.
@pytest.mark.filterwarnings("ignore:Async generator 'starlette.middleware.base.*body_stream':ResourceWarning")
@in_each_stacking
@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_a_client_that_goes_away_in_mid_stream_gives_back(stacking: Stacking, spec_version: str) -> None:
    pool = things(limit=1)
    app = stacking.app(pool)
    gone = anyio.Event()
    parts = 0

    @app.get("/")
    async def endpoint(_: Db) -> StreamingResponse:
        return StreamingResponse(EndlessRows())

    async def receive() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    def hang_up(message: Message) -> None:
        nonlocal parts
        parts += message["type"] == "http.response.body"
        if parts == 3 and not gone.is_set():
            assert pool.taken == 1
            gone.set()
        if gone.is_set() and spec_version == "2.4":
            raise OSError

    async with started(app) as served:
        with anyio.fail_after(10):
            try:
                await ask(served, receive=receive, on_send=hang_up, spec_version=spec_version)
            except Exception as error:  # noqa: BLE001 - which of them depends on the middleware, and a server swallows it
                assert type(error).__name__ in ("ClientDisconnect", "OSError")  # noqa: PT017 - as above
        assert gone.is_set()
        assert (pool.taken, pool.free) == (0, 1)


@where_background_comes_last
@for_each_scope
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "def"])
async def test_each_scope_gives_back_where_it_says(
    stacking: Stacking,
    until: Any,
    is_async: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    pool = things(limit=1)
    seen: list[tuple[str, int]] = []
    app = stacking.app(pool, look=lambda message: seen.append((message["type"], pool.taken)))

    async def later() -> None:
        seen.append(("background", pool.taken))

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased(pool, scope=until)], tasks: BackgroundTasks) -> None:
        seen.append(("endpoint", pool.taken))
        tasks.add_task(later if is_async else lambda: seen.append(("background", pool.taken)))

    async with started(app) as served:
        await ask(slowly(served))
        assert pool.taken == 0
    begin, last, background = {None: (1, 0, 0), "function": (0, 0, 0), "request": (1, 1, 1)}[until]
    assert seen[:2] == [("endpoint", 1), ("http.response.start", begin)]
    assert [taken for what, taken in seen if what == "http.response.body"][-1] == last
    assert [taken for what, taken in seen if what == "background"] == [background]


@where_background_comes_last
async def test_a_background_task_may_wait_for_a_lease_of_its_own(stacking: Stacking) -> None:
    pool = things(limit=1, timeout=60)
    app = stacking.app(pool)
    done: list[str] = []

    async def later() -> None:
        async with pool.lease():
            done.append("later")

    @app.get("/")
    async def endpoint(_: Db, tasks: BackgroundTasks) -> None:
        tasks.add_task(later)

    async with started(app) as served, anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(ask, slowly(served))
    assert done == ["later"] * 3


@pytest.mark.parametrize("middleware", [(), (Base,)], ids=["none", "base"])
@pytest.mark.parametrize(("until", "taken"), [("function", [0, 0, 0]), ("request", [1, 1, 1])])
async def test_the_scopes_with_yield_need_no_middleware(
    until: Any, taken: list[int], middleware: tuple[Any, ...]
) -> None:
    pool = things(limit=1)
    app = FastAPI(lifespan=pool_lifespan(pool))
    app.add_middleware(Watch, look=lambda _: seen.append(pool.taken))
    for kind in middleware:
        app.add_middleware(kind)
    seen: list[int] = []

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased("db", scope=until)], tasks: BackgroundTasks) -> None:
        tasks.add_task(lambda: seen.append(pool.taken))

    async with started(app) as served:
        await ask(served)
        assert pool.taken == 0
    assert seen == taken


@pytest.mark.parametrize(("until", "yields"), [(None, False), ("function", True), ("request", True)])
def test_only_the_scopes_of_fastapi_are_dependencies_with_yield(until: Any, yields: bool) -> None:  # noqa: FBT001
    dependency: Any = Leased("db", scope=until)
    assert inspect.isasyncgenfunction(type(dependency.dependency).__call__) is yields


# --- a native cancel interrupts no exit; no response waits for a reset --------------------------------------


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@in_each_stacking
@for_each_scope
async def test_a_request_that_is_cancelled_at_any_turn_of_the_loop_gives_back(
    stacking: Stacking, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Backend()
    pool = backend.pool("change", limit=1, name="db", timeout=60)
    app = stacking.app(pool)

    @app.get("/")
    async def endpoint(_: Annotated[Any, Leased(pool, scope=until)], tasks: BackgroundTasks) -> str:
        tasks.add_task(anyio.lowlevel.checkpoint)
        for _ in range(4):
            await anyio.lowlevel.checkpoint()
        return "done"

    ended = False
    turns = held = 0
    async with started(app) as served:
        with anyio.fail_after(10):
            while not ended:
                request = asyncio.create_task(ask(slowly(served, turns=3)))
                for _ in range(turns):
                    await asyncio.sleep(0)
                ended = request.done()
                held += pool.stats().leased
                request.cancel()
                await asyncio.wait([request])
                while pool.taken:  # until it is changed
                    await anyio.lowlevel.checkpoint()
                turns += 1
        assert held >= 3
        # Given back each time, and not found again among what was lost.
        assert (len(backend.created), caplog.messages) == (1, [])
        await assert_nothing_is_lost(pool, backend)


@in_each_stacking
async def test_no_response_waits_for_an_async_change(stacking: Stacking) -> None:
    backend = Backend()
    backend["change"].shut()
    pool = backend.pool("change", limit=1, name="db")
    app = stacking.app(pool)
    app.get("/")(json_async)
    async with started(app) as served:
        with anyio.fail_after(10):
            assert (await ask(served)).status == 200
        assert pool.stats().changing == 1
        backend["change"].open()


# --- a lease comes before validation and before later dependencies -------------------------------------------


async def refuse() -> None:
    raise HTTPException(401)


@in_each_stacking
@pytest.mark.parametrize(
    ("declared", "path", "status", "acquires"),
    [
        (Leased("db"), "/invalid", 422, 1),
        (Leased("db"), "/refused", 401, 1),
        (Pooled("db"), "/invalid", 422, 0),
        (Pooled("db"), "/refused", 401, 0),
    ],
)
async def test_what_ends_in_422_or_401_has_held_a_lease_unless_it_asked_for_the_pool(
    stacking: Stacking, declared: Any, path: str, status: int, acquires: int
) -> None:
    pool = things(limit=1, min_free=1)
    app = stacking.app(pool)

    @app.post("/invalid")
    async def invalid_body(_: Annotated[Any, declared], body: dict[str, int]) -> None:
        raise AssertionError(body)

    @app.post("/refused")
    async def refused(_: Annotated[Any, declared], __: Annotated[None, Depends(refuse)]) -> None:
        raise AssertionError

    async with started(app) as served:
        assert (await ask(served, path, method="POST")).status == status
        assert (pool.stats().acquires, pool.taken, pool.free) == (acquires, 0, 1)


# --- one lease a pool and request -------------------------------------------------------------------------------


def in_all_ways(pool: ConnectionPool[Thing]) -> Callable[..., Any]:
    """Make an endpoint that asks for one resource in every way there is."""
    uncached = Depends(Leased(pool).dependency, use_cache=False)  # type: ignore[attr-defined] # Leased says Thing

    async def endpoint(  # noqa: PLR0917 - FastAPI passes them by name
        by_name: Db,
        by_pool: Annotated[Thing, Leased(pool)],
        until_function: Annotated[Thing, Leased(pool, scope="function")],
        until_request: Annotated[Thing, Leased("db", scope="request")],
        again: Annotated[Thing, uncached],
        once_more: Annotated[Thing, uncached],
    ) -> list[int]:
        await settled()  # so that the others come to wait
        return [len({id(each) for each in (by_name, by_pool, until_function, until_request, again, once_more)})]

    return endpoint


@in_each_stacking
async def test_requests_that_ask_in_all_ways_share_a_small_pool_without_deadlock(stacking: Stacking) -> None:
    pool = things(limit=2, timeout=60)
    app = stacking.app(pool)
    app.get("/")(in_all_ways(pool))
    bodies: list[bytes] = []

    async def one(served: ASGIApp) -> None:
        bodies.append((await ask(served)).body)

    async with started(app) as served:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(one, served)
        assert bodies == [b"[1]"] * 10
        assert (pool.stats().acquires, pool.taken) == (10, 0)


@in_each_stacking
async def test_who_holds_one_and_would_wait_for_another_is_told_at_once(stacking: Stacking) -> None:
    pool = things(limit=1, timeout=60)
    app = stacking.app(pool)

    @app.get("/")
    async def endpoint(_: Db) -> str:
        with pytest.raises(WouldDeadlock):
            await pool.acquire()
        return "told"

    async with started(app) as served:
        with anyio.fail_after(10):
            assert (await ask(served)).body == b'"told"'


# --- providers that are equal ----------------------------------------------------------------------------------


@in_each_stacking
@for_each_scope
async def test_an_override_by_another_leased_of_the_pool_serves_each_scope(stacking: Stacking, until: Any) -> None:
    pool = things(limit=1)
    app = stacking.app(pool)

    @app.get("/")
    async def endpoint(value: Annotated[Any, Leased(pool, scope=until)]) -> str:
        return str(value)

    app.dependency_overrides[Leased(pool).dependency] = lambda: "fake"  # type: ignore[attr-defined] # Leased says Thing
    async with started(app) as served:
        assert (await ask(served)).body == b'"fake"'
        assert pool.stats().acquires == 0


# --- WebSockets ----------------------------------------------------------------------------------------------------


def with_sockets(app: FastAPI, pool: ConnectionPool[Thing]) -> None:
    @app.websocket("/leased")
    async def leased(socket: WebSocket, _: Annotated[Thing, Leased(pool)]) -> None:
        await socket.accept()
        await socket.send_json(pool.taken)
        await socket.close()

    @app.websocket("/late")
    async def late(socket: WebSocket) -> None:
        await socket.accept()
        async with pool.lease(timeout=0):
            raise AssertionError


async def speak(app: ASGIApp, path: str, *extensions: str) -> list[Message]:
    """Connect a WebSocket, and return what the application sends."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "scheme": "ws",
        "path": path,
        "query_string": b"",
        "headers": [],
        "subprotocols": [],
        "extensions": {name: {} for name in extensions},
    }
    await app(scope, receive, send)
    return sent


@beside_requests
async def test_a_web_socket_has_a_lease_to_its_end(stacking: Stacking) -> None:
    pool = things(limit=1)
    app = stacking.app(pool)
    with_sockets(app, pool)
    async with started(app) as served:
        sent = await speak(served, "/leased")
        assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
        assert (sent[1]["text"], pool.taken, pool.free) == ("1", 0, 1)


@beside_requests
async def test_an_exhausted_pool_refuses_a_web_socket_with_503_where_the_server_can(stacking: Stacking) -> None:
    pool = things(limit=1, timeout=0, min_free=1)
    app = stacking.app(pool)
    with_sockets(app, pool)
    async with started(app) as served, pool.lease():
        start, body = await speak(served, "/leased", "websocket.http.response")
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 503)
    headers = dict(start["headers"])
    assert (headers[b"content-type"], headers[b"retry-after"]) == (b"application/problem+json", b"1")
    assert body["type"] == "websocket.http.response.body"


@beside_requests
@pytest.mark.parametrize(
    ("path", "extensions", "before"),
    [
        ("/leased", (), []),
        ("/late", (), ["websocket.accept"]),
        ("/late", ("websocket.http.response",), ["websocket.accept"]),
    ],
    ids=["cannot deny", "accepted", "too late to deny"],
)
async def test_else_an_exhausted_pool_closes_a_web_socket_with_1013(
    stacking: Stacking, path: str, extensions: tuple[str, ...], before: list[str]
) -> None:
    pool = things(limit=1, timeout=0, min_free=1)
    app = stacking.app(pool)
    with_sockets(app, pool)
    async with started(app) as served, pool.lease():
        *others, last = await speak(served, path, *extensions)
    assert [message["type"] for message in others] == before
    assert (last["type"], last["code"]) == ("websocket.close", 1013)


# --- sync endpoints -------------------------------------------------------------------------------------------------


@in_each_stacking
async def test_two_hundred_requests_to_a_sync_endpoint_on_a_small_pool_are_all_answered(stacking: Stacking) -> None:
    pool = things(limit=5, timeout=60)
    app = stacking.app(pool)
    app.get("/")(json_sync)
    anyio.to_thread.current_default_thread_limiter().total_tokens = 2  # who waited on one would stop all others
    statuses: list[int] = []

    async def one(served: ASGIApp) -> None:
        statuses.append((await ask(served)).status)

    async with started(app) as served:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                for _ in range(200):
                    group.start_soon(one, served)
    assert statuses == [200] * 200
    assert pool.stats().timeouts == 0


# --- whether the client is still there (what is not in test_disconnect.py in all stackings) -------------------------

GONE: Message = {"type": "http.disconnect"}


class Client:
    """What a server has received of one request, and how much of it was asked for."""

    def __init__(self, *messages: Message) -> None:
        self._messages = iter(messages)
        self.received = 0

    async def receive(self) -> Message:
        message = next(self._messages, None)
        if message is None:
            await anyio.sleep_forever()
        assert message is not None
        self.received += 1
        return message


@asynccontextmanager
async def waiting(served: ASGIApp, pool: ConnectionPool[Any], client: Client) -> AsyncIterator[Answer]:
    """Let a request wait for a resource in the block, and have it after the block."""
    answer = Answer()

    async def run() -> None:
        answer.messages = (await ask(served, receive=client.receive)).messages

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group, pool.lease():
            group.start_soon(run)
            await watched()
            yield answer


@in_each_stacking
async def test_a_resource_that_is_free_costs_no_look_at_the_client(stacking: Stacking) -> None:
    pool = things(limit=1, min_free=1)
    app = stacking.app(pool)
    app.get("/")(json_async)
    client = Client(GONE)
    async with started(app) as served:
        assert (await ask(served, receive=client.receive)).status == 200
    assert client.received == 0


@in_each_stacking
@pytest.mark.virtual_time
async def test_a_client_that_is_still_sending_is_not_read_ahead_and_keeps_its_place(stacking: Stacking) -> None:
    pool = things(limit=1, clock=loop_time)
    app = stacking.app(pool)
    app.get("/")(json_async)
    client = Client({"type": "http.request", "body": b"a", "more_body": True}, GONE)
    async with started(app) as served:
        async with waiting(served, pool, client) as answer:
            assert (pool.waiting, client.received) == (1, 1)
        assert (answer.status, client.received) == (200, 1)


class ReadsStream(BaseHTTPMiddleware):
    """Reads the body away: what is inside gets an empty one."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        async for _ in request.stream():
            pass
        return await call_next(request)


@pytest.mark.parametrize("place", ["around", "inside"])
@pytest.mark.virtual_time
async def test_a_client_that_leaves_is_seen_through_a_middleware_that_has_read_the_body(place: str) -> None:
    pool = things(limit=1, clock=loop_time)
    app = FastAPI()
    if place == "inside":
        app.add_middleware(ReadsStream)
    install_pools(app, pool)
    if place == "around":
        app.add_middleware(ReadsStream)
    app.get("/")(json_async)
    client = Client({"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.request"}, GONE)
    async with started(app) as served:
        async with waiting(served, pool, client) as answer:
            assert (pool.waiting, answer.status) == (0, 499)
        assert pool.stats().withdrawals == 1


class AnswersEarly(BaseHTTPMiddleware):
    """Does not wait for the application, as one with a time limit."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        with anyio.CancelScope() as scope:
            request.app.state.answer_now = scope.cancel
            return await call_next(request)
        return PlainTextResponse("late", status_code=504)


async def test_an_endpoint_that_a_middleware_around_has_given_up_keeps_its_lease_while_it_runs() -> None:
    pool = things(limit=1, min_free=1)
    app = NONE.app(pool)
    app.add_middleware(AnswersEarly)
    go_on = anyio.Event()
    taken: list[int] = []

    @app.get("/")
    async def endpoint(_: Db) -> None:
        app.state.answer_now()
        await go_on.wait()
        taken.append(pool.taken)

    def look(message: Message) -> None:
        if is_last(message):
            go_on.set()

    async with started(app) as served:
        with anyio.fail_after(10):
            assert (await ask(served, on_send=look)).status == 504
        assert taken == [1]
        assert (pool.taken, pool.free) == (0, 1)


# --- mounted applications, and where no lifespan runs ----------------------------------------------------------------


@in_each_stacking
@pytest.mark.parametrize("in_the_mounted", [(), (Base,)], ids=["", "base in the mounted"])
async def test_a_mounted_application_leases_from_the_pools_of_the_outer_one(
    stacking: Stacking, in_the_mounted: tuple[Any, ...]
) -> None:
    pool = things(limit=1)
    seen: list[int] = []
    app = stacking.app(pool, look=lambda _: seen.append(pool.taken))
    sub = FastAPI()
    for kind in in_the_mounted:
        sub.add_middleware(kind)
    sub.get("/")(json_async)
    app.mount("/sub", sub)
    async with started(app) as served:
        assert (await ask(served, "/sub/")).body == b'{"a":1}'
    assert (seen[0], seen[-1], pool.stats().acquires) == (1, 0, 1)


@in_each_stacking
async def test_without_a_lifespan_the_log_names_the_cause_and_the_fix(
    stacking: Stacking, caplog: pytest.LogCaptureFixture
) -> None:
    pool = things()
    app = stacking.app(pool)
    app.get("/by-name")(json_async)

    @app.get("/by-pool")
    async def by_pool(_: Annotated[Thing, Leased(pool)]) -> None:
        raise AssertionError

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for path in ("/by-name", "/by-pool"):
            answers = [await client.get(path), await anyio.to_thread.run_sync(TestClient(app).get, path)]
            assert [answer.status_code for answer in answers] == [503, 503]
    assert len(caplog.messages) == 4
    for message in caplog.messages:
        for words in ("'db'", "install_pools(app, pool)", "with TestClient(app)", "mounted"):
            assert words in message


@in_each_stacking
def test_each_start_of_the_lifespan_opens_the_pools_again(stacking: Stacking, anyio_backend: Any) -> None:
    pool = things(min_free=1)
    app = stacking.app(pool)
    app.get("/")(json_async)
    for _ in range(2):
        with TestClient(app, backend=anyio_backend) as client:
            assert client.get("/").status_code == 200
        assert pool.status == "closed"


# --- the lifespan ---------------------------------------------------------------------------------------------------


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


def down() -> Thing:
    raise ConnectionRefusedError


@beside_requests
@pytest.mark.parametrize("fault", ["down", "wiring"])
async def test_a_server_hears_that_the_start_failed_before_anything_is_raised(stacking: Stacking, fault: str) -> None:
    app = stacking.app(things(create=down, min_free=1) if fault == "down" else things(name="other"))
    app.get("/")(json_async)
    sent: list[Message] = []
    with pytest.raises(Exception, match="'db'"):
        await live(app, sent, anyio.sleep_forever, state={})
    (message,) = sent
    assert message["type"] == "lifespan.startup.failed"
    assert "'db'" in message["message"]
    assert "Traceback" not in message["message"]


@in_each_stacking
async def test_the_end_waits_for_a_request_that_the_server_has_only_cancelled(
    stacking: Stacking, caplog: pytest.LogCaptureFixture
) -> None:
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


# --- the endpoints --------------------------------------------------------------------------------------------------


def with_catch_all(stacking: Stacking, **options: Any) -> FastAPI:
    app = stacking.app(things(), **options)
    app.api_route("/{path:path}", methods=["GET", "HEAD", "POST"])(lambda: "the application's")
    return app


OWN = ["/pool/health", "/pool/health/live", "/pool/health/ready", "/pool/health/db", "/pool/metrics"]
NOT_OWN = ["/pool", "/pool/", "/pool/healthy", "/pool/health//", "/pool/metrics/db", "/x/pool/health", "//pool/health"]


@in_each_stacking
async def test_endpoints_are_exact_paths_before_any_route_and_are_never_stored(stacking: Stacking) -> None:
    async with started(with_catch_all(stacking)) as served:
        for path in OWN:
            answer = await ask(served, path)
            assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
            assert b"the application's" not in answer.body
        for path in NOT_OWN:
            assert b"the application's" in (await ask(served, path)).body


@in_each_stacking
async def test_endpoints_answer_head_as_get_and_tell_other_methods_what_is_allowed(stacking: Stacking) -> None:
    async with started(with_catch_all(stacking)) as served:
        for path in OWN:
            await ask(served, path)
            got, head, post = [await ask(served, path, method=method) for method in ("GET", "HEAD", "POST")]
            assert (head.status, head.body, head.headers) == (200, b"", got.headers)
            assert head.headers["content-length"] == str(len(got.body))
            assert (post.status, post.headers["allow"], post.body) == (405, "GET, HEAD", b"")
            assert post.headers["cache-control"] == "no-store"


@in_each_stacking
@pytest.mark.filterwarnings("ignore:The `root_path` parameter")
async def test_endpoints_are_found_below_the_root_path(stacking: Stacking) -> None:
    async with started(with_catch_all(stacking, root_path="/api")) as served:
        for path, is_own in (("/pool/health", True), ("/api/pool/health", True), ("/other/pool/health", False)):
            assert (b"the application's" not in (await ask(served, path)).body) is is_own


@in_each_stacking
async def test_endpoints_are_not_in_the_openapi_document(stacking: Stacking) -> None:
    app = stacking.app(things())
    app.get("/items")(json_async)
    async with started(app) as served:
        assert (await ask(served, "/pool/health")).status == 200
        document = (await ask(served, "/openapi.json")).body
    assert b'"/items"' in document
    assert b"/pool" not in document


# --- a PoolError that nobody handled --------------------------------------------------------------------------------


@in_each_stacking
@pytest.mark.parametrize(
    ("error", "retry_after"),
    [
        (PoolTimeout("late"), "1"),
        (ResourceUnavailable("down", 6.5), "7"),
        (ExceptionGroup("several", [ResourceUnavailable("down", 3.0)]), "3"),
    ],
    ids=["timeout", "unavailable", "group"],
)
async def test_a_pool_error_is_answered_with_a_problem_and_when_to_come_back(
    stacking: Stacking, error: Exception, retry_after: str
) -> None:
    pool = things(limit=1)
    app = stacking.app(pool)

    @app.get("/")
    async def endpoint(_: Db) -> None:
        raise error

    taken: list[int] = []
    async with started(app) as served:
        answer = await ask(served, on_send=lambda _: taken.append(pool.taken))
    assert answer.status == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.headers["retry-after"], answer.headers["cache-control"]) == (retry_after, "no-store")
    assert set(taken) == {0}


@in_each_stacking
async def test_an_exhausted_pool_answers_503_and_serves_the_next(stacking: Stacking) -> None:
    pool = things(limit=1, timeout=0, min_free=1)
    app = stacking.app(pool)
    app.get("/")(json_async)
    async with started(app) as served:
        async with pool.lease():
            assert (await ask(served)).status == 503
        assert (await ask(served)).body == b'{"a":1}'


@in_each_stacking
async def test_a_pool_error_after_the_response_has_begun_goes_through(stacking: Stacking) -> None:
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


@in_each_stacking
async def test_the_applications_own_handler_of_pool_errors_wins(stacking: Stacking) -> None:
    app = stacking.app(things(limit=1, create=down))
    app.get("/")(json_async)

    @app.exception_handler(ResourceUnavailable)
    async def handle(_: Request, error: ResourceUnavailable) -> JSONResponse:
        return JSONResponse(type(error).__name__, status_code=429)

    async with started(app) as served:
        answer = await ask(served)
    assert (answer.status, answer.body) == (429, b'"ResourceUnavailable"')
