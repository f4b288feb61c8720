"""Leased and Pooled: what an endpoint gets, and when it is given back."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.testclient import TestClient
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from connectionpools_fastapi import (
    ConnectionPool,
    Leased,
    PoolConfigError,
    Pooled,
    PoolMiddleware,
    install_pools,
    pool_lifespan,
)
from connectionpools_fastapi._request import RequestLeases
from connectionpools_fastapi.testing import override_leased, started
from tests.support import settled
from tests.web import Thing, ask, things

pytestmark = pytest.mark.anyio

LAST = "the last part"


def installed(*pools: ConnectionPool[Any]) -> FastAPI:
    app = FastAPI()
    install_pools(app, *pools)
    return app


def bare(*pools: ConnectionPool[Any]) -> FastAPI:
    """Open the pools, but have no middleware."""
    return FastAPI(lifespan=pool_lifespan(*pools))


async def trace(app: FastAPI, pool: ConnectionPool[Any], **request: Any) -> list[tuple[str, int]]:
    """Say how many resources were taken as each message was sent."""
    seen: list[tuple[str, int]] = []

    def look(message: Message) -> None:
        kind = message["type"].removeprefix("http.response.")
        last = kind == "pathsend" or (kind == "body" and not message.get("more_body"))
        seen.append((LAST if last else kind, pool.taken))

    async with started(app) as served:
        await ask(served, on_send=look, **request)
        assert pool.taken == 0
    return seen


# --- until the last part of the response ------------------------------------------------------


async def json_async(_: Annotated[Thing, Leased("db")]) -> dict[str, int]:
    return {"a": 1}


def json_sync(_: Annotated[Thing, Leased("db")]) -> dict[str, int]:
    return {"a": 1}


async def http_exception(_: Annotated[Thing, Leased("db")]) -> None:
    raise HTTPException(418)


async def invalid(_: Annotated[Thing, Leased("db")], number: int) -> None:
    raise AssertionError(number)


async def default_value(_: Thing = Leased("db")) -> dict[str, int]:
    return {"a": 1}


@pytest.mark.parametrize("endpoint", [json_async, json_sync, http_exception, invalid, default_value])
async def test_a_lease_ends_just_before_the_body_of_a_plain_response(endpoint: Callable[..., Any]) -> None:
    pool = things()
    app = installed(pool)
    app.get("/")(endpoint)
    assert await trace(app, pool) == [("start", 1), (LAST, 0)]


async def test_a_stream_keeps_its_lease_to_the_last_chunk() -> None:
    pool = things()
    app = installed(pool)

    @app.get("/")
    async def stream(thing: Annotated[Thing, Leased(pool)]) -> StreamingResponse:
        async def rows() -> AsyncIterator[str]:
            for row in "abc":
                assert pool.taken == 1
                assert not thing.cleaned
                yield row

        return StreamingResponse(rows())

    assert await trace(app, pool) == [("start", 1), ("body", 1), ("body", 1), ("body", 1), (LAST, 0)]


async def test_a_sync_stream_keeps_its_lease_to_the_last_chunk() -> None:
    pool = things()
    app = installed(pool)

    @app.get("/")
    def stream(_: Annotated[Thing, Leased(pool)]) -> StreamingResponse:
        def rows() -> Iterator[str]:
            yield from "ab"

        return StreamingResponse(rows())

    assert await trace(app, pool) == [("start", 1), ("body", 1), ("body", 1), (LAST, 0)]


@pytest.mark.parametrize("extensions", [(), ("http.response.pathsend",)])
async def test_a_file_keeps_its_lease_to_its_last_part(tmp_path: Path, extensions: tuple[str, ...]) -> None:
    pool = things()
    app = installed(pool)
    path = tmp_path / "file"
    path.write_bytes(b"x" * (FileResponse.chunk_size + 1))

    @app.get("/")
    async def file(_: Annotated[Thing, Leased(pool)]) -> FileResponse:
        return FileResponse(path)

    parts = [] if extensions else [("body", 1)]
    assert await trace(app, pool, extensions=extensions) == [("start", 1), *parts, (LAST, 0)]


async def test_a_background_task_runs_after_the_lease() -> None:
    pool = things()
    app = installed(pool)
    seen: list[int] = []

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased(pool)], tasks: BackgroundTasks) -> None:
        tasks.add_task(lambda: seen.append(pool.taken))

    assert await trace(app, pool) == [("start", 1), (LAST, 0)]
    assert seen == [0]


async def test_an_endpoint_that_raises_gives_back_before_the_error_page() -> None:
    pool = things()
    app = installed(pool)
    seen: list[tuple[str, int]] = []

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased(pool)]) -> None:
        msg = "a mistake"
        raise LookupError(msg)

    async with started(app) as served:
        with pytest.raises(LookupError, match="a mistake"):
            await ask(served, on_send=lambda message: seen.append((message["type"], pool.taken)))
        assert seen == [("http.response.start", 0), ("http.response.body", 0)]
        assert pool.free == 1


class EndlessRows:
    """No generator: nobody closes one whose reader is cut off, as trio complains."""

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        await anyio.lowlevel.checkpoint()
        return "row"


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_a_client_that_goes_away_in_mid_stream_gives_back(spec_version: str) -> None:
    pool = things()
    app = installed(pool)
    gone = anyio.Event()

    @app.get("/")
    async def stream(_: Annotated[Thing, Leased(pool)]) -> StreamingResponse:
        return StreamingResponse(EndlessRows())

    async def receive() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    parts = 0

    def hang_up(message: Message) -> None:
        nonlocal parts
        parts += message["type"] == "http.response.body"
        if parts == 3:
            assert pool.taken == 1
            gone.set()
        if gone.is_set() and spec_version == "2.4":
            raise OSError

    async with started(app) as served:
        with anyio.fail_after(10):
            try:
                await ask(served, receive=receive, on_send=hang_up, spec_version=spec_version)
            except Exception as error:  # noqa: BLE001 - Starlette raises its own kind, a server swallows it
                assert type(error).__name__ == "ClientDisconnect"  # noqa: PT017 - as above
        assert (pool.taken, pool.free) == (0, 1)


async def test_a_cancelled_request_gives_back() -> None:
    pool = things()
    app = installed(pool)
    begun = anyio.Event()

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased(pool)]) -> None:
        begun.set()
        await anyio.sleep_forever()

    async with started(app) as served:
        async with anyio.create_task_group() as group:
            group.start_soon(ask, served)
            await begun.wait()
            assert pool.taken == 1
            group.cancel_scope.cancel()
        assert (pool.taken, pool.free) == (0, 1)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("lease_until", [None, "request"])
async def test_what_the_thread_of_a_cancelled_request_still_uses_is_leased_to_nobody(lease_until: Any) -> None:
    pool = things(limit=1)
    app = installed(pool)
    begun, done = threading.Event(), threading.Event()
    used: list[Thing] = []

    @app.get("/")
    def endpoint(thing: Annotated[Thing, Leased(pool, scope=lease_until)]) -> None:
        used.append(thing)
        begun.set()
        done.wait(10)

    async with started(app) as served:
        request = asyncio.create_task(ask(served))
        await anyio.to_thread.run_sync(begun.wait)
        request.cancel()  # as a time limit of asyncio does; anyio's own waits for the thread
        await asyncio.wait([request])
        async with pool.lease() as thing:
            assert thing is not used[0]
        assert pool.stats().discards["discard"] == 1
        done.set()


async def test_no_response_waits_for_an_async_change() -> None:
    gate = anyio.Event()

    async def change(_: Thing) -> None:
        await gate.wait()

    pool = things(change=change)
    app = installed(pool)
    app.get("/")(json_async)
    async with started(app) as served:
        with anyio.fail_after(10):
            assert (await ask(served)).status == 200
        assert pool.stats().changing == 1
        gate.set()


# --- the generator scopes ----------------------------------------------------------------------


@pytest.mark.parametrize("make", [installed, bare])
async def test_scope_function_gives_back_before_the_response_begins(make: Callable[..., FastAPI]) -> None:
    pool = things()
    app = make(pool)

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased(pool, scope="function")]) -> int:
        return pool.taken

    assert await trace(app, pool) == [("start", 0), (LAST, 0)]


@pytest.mark.parametrize("make", [installed, bare])
async def test_scope_request_gives_back_after_background_tasks(make: Callable[..., FastAPI]) -> None:
    pool = things()
    app = make(pool)
    seen: list[int] = []

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased(pool, scope="request")], tasks: BackgroundTasks) -> None:
        tasks.add_task(lambda: seen.append(pool.taken))

    assert await trace(app, pool) == [("start", 1), (LAST, 1)]
    assert seen == [1]


async def test_a_generator_scope_gives_back_when_the_endpoint_raises() -> None:
    pool = things()
    app = bare(pool)

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased(pool, scope="function")]) -> None:
        raise LookupError

    async with started(app) as served:
        with pytest.raises(LookupError):
            await ask(served)
        assert (pool.taken, pool.free) == (0, 1)


async def test_where_nothing_gives_back_the_error_says_what_to_write() -> None:
    pool = things()
    app = bare(pool)
    app.get("/")(json_async)
    async with started(app) as served:
        with pytest.raises(PoolConfigError, match=r"install_pools\(app, pool\)") as error:
            await ask(served)
        assert "add_middleware(PoolMiddleware)" in str(error.value)
        assert 'scope="request"' in str(error.value)
        assert (pool.taken, pool.stats().acquires) == (0, 0)


async def test_the_middleware_alone_gives_back_what_another_lifespan_opened() -> None:
    pool = things()
    app = bare(pool)
    app.add_middleware(PoolMiddleware)
    app.get("/")(json_async)
    assert await trace(app, pool) == [("start", 1), (LAST, 0)]


# --- one lease a pool and request ----------------------------------------------------------------

Plain = Annotated[Thing, Leased("db")]


def sub_dependency(thing: Plain) -> Thing:
    return thing


def mixed(pool: ConnectionPool[Thing]) -> Callable[..., Any]:
    """Make an endpoint that asks for one resource in every way there is."""
    uncached = Depends(Leased(pool).dependency, use_cache=False)  # type: ignore[attr-defined] # Leased says Thing

    async def endpoint(  # noqa: PLR0917 - FastAPI passes them by name
        by_name: Plain,
        by_pool: Annotated[Thing, Leased(pool)],
        until_function: Annotated[Thing, Leased(pool, scope="function")],
        until_request: Annotated[Thing, Leased("db", scope="request")],
        inner: Annotated[Thing, Depends(sub_dependency)],
        again: Annotated[Thing, uncached],
        once_more: Annotated[Thing, uncached],
        itself: Annotated[ConnectionPool[Thing], Pooled("db")],
    ) -> list[int]:
        every = {id(thing) for thing in (by_name, by_pool, until_function, until_request, inner, again, once_more)}
        assert itself is pool
        return [len(every), pool.taken]

    return endpoint


async def test_any_mix_of_declarations_is_one_lease() -> None:
    pool = things(limit=1)
    app = installed(pool)
    app.get("/", dependencies=[Depends(sub_dependency)])(mixed(pool))
    async with started(app) as served:
        answer = await ask(served)
        assert answer.body == b"[1,1]"
        assert pool.stats().acquires == 1
        assert pool.taken == 0


async def test_a_shared_lease_lasts_as_long_as_its_last_user() -> None:
    pool = things(limit=1)
    app = installed(pool)
    app.get("/")(mixed(pool))
    assert await trace(app, pool) == [("start", 1), (LAST, 1)]


async def test_fifty_mixed_requests_on_a_pool_of_two_are_all_answered() -> None:
    pool = things(limit=2)
    app = installed(pool)
    endpoint = mixed(pool)

    @app.get("/")
    async def slow(result: Annotated[list[int], Depends(endpoint)]) -> list[int]:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        return result

    bodies: list[bytes] = []

    async def one(served: ASGIApp) -> None:
        bodies.append((await ask(served)).body[:3])

    async with started(app) as served:
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(one, served)
        assert bodies == [b"[1,"] * 50
        assert (pool.stats().acquires, pool.stats().creates) == (50, 2)


async def test_two_hundred_requests_to_a_sync_endpoint_on_a_pool_of_five_are_all_answered() -> None:
    pool = things(limit=5, timeout=60)
    app = installed(pool)
    app.get("/")(json_sync)
    statuses: list[int] = []

    async def one(served: ASGIApp) -> None:
        statuses.append((await ask(served)).status)

    async with started(app) as served:
        async with anyio.create_task_group() as group:
            for _ in range(200):
                group.start_soon(one, served)
        assert statuses == [200] * 200
        assert pool.stats().timeouts == 0


async def test_waiting_for_a_lease_occupies_no_worker_thread() -> None:
    pool = things(limit=1, timeout=None)
    app = installed(pool)
    app.get("/")(json_sync)
    app.get("/free")(lambda: "answered")
    anyio.to_thread.current_default_thread_limiter().total_tokens = 1
    async with started(app) as served, anyio.create_task_group() as group, pool.lease():
        for _ in range(3):
            group.start_soon(ask, served)
        await anyio.wait_all_tasks_blocked()
        assert pool.waiting == 3
        with anyio.fail_after(10):
            assert (await ask(served, "/free")).status == 200
    assert pool.stats().acquires == 4


async def test_each_request_has_a_lease_of_its_own() -> None:
    pool = things(limit=2)
    app = installed(pool)
    seen: list[Thing] = []
    both = anyio.Event()

    @app.get("/")
    async def endpoint(thing: Annotated[Thing, Leased(pool)]) -> None:
        seen.append(thing)
        if len(seen) == 2:
            both.set()
        await both.wait()

    async with started(app) as served, anyio.create_task_group() as group:
        group.start_soon(ask, served)
        group.start_soon(ask, served)
    assert seen[0] is not seen[1]


async def test_several_pools_are_told_apart() -> None:
    db, cache = things(name="db"), things(name="cache")
    app = installed(db, cache)

    @app.get("/")
    async def endpoint(
        one: Annotated[Thing, Leased("db")],
        other: Annotated[Thing, Leased("cache")],
        same: Annotated[Thing, Leased(cache)],
    ) -> list[Any]:
        return [one is other, other is same, db.taken, cache.taken]

    async with started(app) as served:
        assert (await ask(served)).body == b"[false,true,1,1]"
        assert (db.taken, cache.taken) == (0, 0)


async def test_a_resource_that_the_endpoint_discards_or_detaches_is_not_given_back() -> None:
    pool = things(limit=1)
    app = installed(pool)
    kept: list[Thing] = []

    @app.get("/discard")
    async def discard(thing: Annotated[Thing, Leased(pool)]) -> None:
        pool.discard(thing)

    @app.get("/detach")
    async def detach(thing: Annotated[Thing, Leased(pool, scope="request")]) -> None:
        kept.append(pool.detach(thing))

    async with started(app) as served:
        assert (await ask(served, "/discard")).status == 200
        assert (await ask(served, "/detach")).status == 200
        assert not kept[0].cleaned
    assert (pool.taken, pool.free, pool.stats().cleans, pool.stats().detached) == (0, 0, 1, 1)


async def test_pooled_injects_the_pool_and_leases_nothing() -> None:
    pool = things()
    app = installed(pool)

    @app.get("/")
    async def endpoint(
        by_name: Annotated[ConnectionPool[Thing], Pooled("db")], by_pool: Annotated[ConnectionPool[Thing], Pooled(pool)]
    ) -> list[Any]:
        before = by_name.taken
        async with by_name.lease() as thing:
            return [by_name is by_pool is pool, before, pool.taken, thing.cleaned]

    async with started(app) as served:
        assert (await ask(served)).body == b"[true,0,1,false]"
        assert pool.taken == 0


async def test_a_lease_names_its_holder_by_the_whole_route() -> None:
    pool = things()
    app = installed(pool)
    router = APIRouter(prefix="/items")

    @router.get("/{item}")
    async def endpoint(item: str, _: Annotated[Thing, Leased(pool)]) -> list[str]:
        assert item == "secret"
        return [holder.name for holder in pool.holders()]

    app.include_router(router, prefix="/shop/{shop}")
    async with started(app) as served:
        assert (await ask(served, "/shop/1/items/secret")).body == b'["GET /shop/{shop}/items/{item}"]'


async def test_a_finished_request_leaves_nothing_behind() -> None:
    pool = things()
    app = installed(pool)
    app.get("/")(json_async)

    def remembered() -> int:
        gc.collect()
        return sum(issubclass(type(thing), RequestLeases) for thing in gc.get_objects())

    async with started(app) as served:
        before = remembered()
        for _ in range(3):
            await ask(served)
        await settled()  # one of them waited, and what watched its client ends a moment later
        assert remembered() <= before


class Connection:
    """What a server knows of a request: it has the scope, and its methods are what the application calls."""

    def __init__(self, app: Any, path: str) -> None:
        self.app = app
        self.scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}

    async def serve(self) -> None:
        await self.app(self.scope, self.receive, self.send)

    async def receive(self) -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message: Message) -> None:
        assert message.get("status", 200) == 200


@pytest.mark.parametrize("path", ["/leased", "/idle"])
async def test_a_finished_request_is_freed_without_the_garbage_collector(path: str) -> None:
    pool = things()
    app = installed(pool)

    @app.get("/leased")
    async def leased(thing: Annotated[Thing, Leased(pool)]) -> bool:
        return thing.cleaned

    @app.get("/idle")
    async def idle() -> bool:
        return False

    async with pool:
        await Connection(app, path).serve()  # the first of all makes what is kept
        gc.collect()
        gc.disable()
        try:
            connection = Connection(app, path)
            await connection.serve()
            finished = weakref.ref(connection)
            del connection
            assert finished() is None
        finally:
            gc.enable()


# --- other middleware ----------------------------------------------------------------------------


class CopiesScope:
    """Middleware that hands on a copy of the scope, as many do."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(dict(scope) if scope["type"] != "lifespan" else scope, receive, send)


class Base(BaseHTTPMiddleware):
    """Middleware that runs the application in a task of its own."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-base"] = "seen"
        return response


# Starlette 0.49 leaves the request's body to the garbage collector, of which trio complains.
@pytest.mark.filterwarnings("ignore:Async generator 'starlette.requests.Request.stream':ResourceWarning")
@pytest.mark.parametrize("other", [CopiesScope, Base])
@pytest.mark.parametrize("place", ["inside", "outside", "both"])
async def test_other_middleware_may_be_inside_and_outside(other: Any, place: str) -> None:
    pool = things(limit=1)
    app = FastAPI()
    if place != "outside":
        app.add_middleware(other)
    install_pools(app, pool)
    if place != "inside":
        app.add_middleware(other)
    chunks: list[int] = []

    @app.get("/")
    async def stream(
        _: Annotated[Thing, Leased(pool)], __: Annotated[Thing, Depends(sub_dependency)]
    ) -> StreamingResponse:
        async def rows() -> AsyncIterator[str]:
            for row in "abc":
                chunks.append(pool.taken)
                yield row

        return StreamingResponse(rows())

    seen = await trace(app, pool)
    assert seen[-1] == (LAST, 0)
    assert chunks == [1, 1, 1]
    gc.collect()
    assert pool.stats().acquires == 1


@pytest.mark.parametrize("endpoint", [json_async, json_sync])
async def test_a_background_task_behind_other_middleware_runs_after_the_lease(endpoint: Callable[..., Any]) -> None:
    pool = things(limit=1)
    app = FastAPI()
    app.add_middleware(Base)
    install_pools(app, pool)
    seen: list[int] = []

    @app.get("/")
    async def outer(tasks: BackgroundTasks, _: Annotated[Any, Depends(endpoint)]) -> None:
        tasks.add_task(lambda: seen.append(pool.taken))

    async with started(app) as served:
        await ask(served)
        assert seen == [0]


# --- web sockets ----------------------------------------------------------------------------------


def echo(pool: ConnectionPool[Thing], target: ConnectionPool[Thing] | str, scope: Any) -> FastAPI:
    app = installed(pool)

    @app.websocket("/")
    async def endpoint(
        socket: WebSocket, one: Annotated[Thing, Leased(target, scope=scope)], two: Annotated[Thing, Leased(target)]
    ) -> None:
        await socket.accept()
        try:
            while (text := await socket.receive_text()) != "raise":
                await socket.send_json([text, one is two, pool.taken])
        except WebSocketDisconnect:
            return
        raise LookupError

    return app


@pytest.mark.parametrize("scope", [None, "function", "request"])
@pytest.mark.parametrize("by_name", [False, True])
def test_a_web_socket_has_one_lease_until_it_ends(
    anyio_backend: str,
    scope: str | None,
    by_name: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    pool = things(limit=1)
    app = echo(pool, "db" if by_name else pool, scope)
    with TestClient(app, backend=anyio_backend) as client:  # type: ignore[arg-type] # a literal
        with client.websocket_connect("/") as socket:
            for word in ("a", "b"):
                socket.send_text(word)
                assert socket.receive_json() == [word, True, 1]
        assert (pool.taken, pool.free, pool.stats().acquires) == (0, 1, 1)


def test_a_web_socket_that_raises_gives_back(anyio_backend: str) -> None:
    pool = things(limit=1)
    with TestClient(echo(pool, pool, None), backend=anyio_backend) as client:  # type: ignore[arg-type] # a literal
        with pytest.raises(LookupError), client.websocket_connect("/") as socket:  # noqa: PT012 - the block is the point
            socket.send_text("raise")
            socket.receive_text()
        assert (pool.taken, pool.free) == (0, 1)


# --- overrides ------------------------------------------------------------------------------------


def asks_in_all_ways(pool: ConnectionPool[Thing]) -> FastAPI:
    app = installed(pool)

    @app.get("/")
    async def endpoint(
        one: Annotated[Any, Leased(pool)],
        two: Annotated[Any, Leased("db")],
        three: Annotated[Any, Leased(pool, scope="function")],
        four: Annotated[Any, Leased(pool, scope="request")],
    ) -> list[str]:
        return [value if isinstance(value, str) else "real" for value in (one, two, three, four)]

    return app


async def test_override_leased_replaces_every_kind_of_lease_and_ends_with_its_block() -> None:
    pool = things()
    app = asks_in_all_ways(pool)
    async with started(app) as served:
        with override_leased(app, pool, lambda: "fake"):
            assert (await ask(served)).body == b'["fake","fake","fake","fake"]'
            assert pool.stats().acquires == 0
            with override_leased(app, pool, lambda: "inner"):
                assert b"inner" in (await ask(served)).body
            assert (await ask(served)).body == b'["fake","fake","fake","fake"]'
        assert (await ask(served)).body == b'["real","real","real","real"]'
    assert app.dependency_overrides == {}


async def test_override_leased_by_name_replaces_what_is_leased_by_name() -> None:
    pool = things()
    app = asks_in_all_ways(pool)
    async with started(app) as served:
        with override_leased(app, "db", lambda: "fake"):
            assert (await ask(served)).body == b'["real","fake","real","real"]'
            app.dependency_overrides.clear()  # by the test itself: no reason to fail
        assert (await ask(served)).body == b'["real","real","real","real"]'


@pytest.mark.parametrize("scope", [None, "function", "request"])
async def test_an_override_by_hand_needs_only_another_leased_of_that_pool(scope: Any) -> None:
    pool = things()
    app = asks_in_all_ways(pool)
    closed: list[str] = []

    async def fake() -> AsyncIterator[str]:
        yield "fake"
        closed.append("fake")

    app.dependency_overrides[Leased(pool, scope=scope).dependency] = fake  # type: ignore[attr-defined] # says Thing
    async with started(app) as served:
        assert (await ask(served)).body == b'["fake","real","fake","fake"]'
    assert closed


async def test_an_application_whose_pool_is_overridden_needs_no_pool() -> None:
    app = FastAPI()
    app.get("/")(json_async)
    with override_leased(app, "db", lambda: "fake"):
        assert (await ask(app)).status == 200


async def test_what_an_endpoint_still_uses_is_leased_to_nobody_though_a_middleware_has_answered_in_its_place() -> None:
    class TimeLimit(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
            with anyio.CancelScope() as scope:
                request.state.time_is_up = scope.cancel
                return await call_next(request)
            return PlainTextResponse("late", status_code=504)

    pool = things(1)
    app = FastAPI()
    app.add_middleware(TimeLimit)  # inside of the pool's own
    install_pools(app, pool)
    answered, go_on = anyio.Event(), anyio.Event()

    @app.get("/")
    async def endpoint(request: Request, _: Annotated[Thing, Leased(pool)]) -> None:
        request.state.time_is_up()
        with anyio.CancelScope(shield=True):
            await go_on.wait()

    async with started(app) as served:
        async with anyio.create_task_group() as group:

            async def request() -> None:
                assert (await ask(served, on_send=lambda _: answered.set())).status == 504

            group.start_soon(request)
            await answered.wait()
            await settled()
            assert pool.stats().leased == 1
            go_on.set()
        assert pool.stats().leased == 0
