"""Leased and Pooled: what an endpoint gets, and how often."""

import gc
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from connectionpools_fastapi import (
    ConnectionPool,
    Leased,
    Pooled,
    WouldDeadlock,
    install_pools,
)
from connectionpools_fastapi._asgi.request import RequestLeases
from connectionpools_fastapi.testing import override_leased, started
from tests.support import settled
from tests.web import (
    BOTH,
    LAST,
    NONE,
    Base,
    Db,
    Stacking,
    Thing,
    ask,
    forgets_streams,
    in_each_stacking,
    installed,
    is_last,
    json_async,
    json_sync,
    things,
    trace,
)

pytestmark = [pytest.mark.anyio, forgets_streams]

# --- a lease comes before validation and before later dependencies ------------------------------


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
async def test_request_ending_in_422_or_401_has_held_a_lease(
    stacking: Stacking, declared: Any, path: str, status: int, acquires: int
) -> None:
    """An endpoint that asked for the pool has held none."""
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


# --- one lease a pool and request ----------------------------------------------------------------


def sub_dependency(thing: Db) -> Thing:
    return thing


def mixed(pool: ConnectionPool[Thing]) -> Callable[..., Any]:
    """Make an endpoint that asks for one resource in every way there is."""
    uncached = Depends(Leased(pool).dependency, use_cache=False)  # type: ignore[attr-defined] # Leased says Thing

    async def endpoint(  # noqa: PLR0917 - FastAPI passes them by name
        by_name: Db,
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


@in_each_stacking
async def test_mixed_requests_share_a_pool_of_two(stacking: Stacking) -> None:
    pool = things(limit=2, timeout=60)
    app = stacking.app(pool)
    endpoint = mixed(pool)

    @app.get("/")
    async def slow(result: Annotated[list[int], Depends(endpoint)]) -> list[int]:
        await settled()  # so that the others come to wait
        return result

    bodies: list[bytes] = []

    async def one(served: ASGIApp) -> None:
        bodies.append((await ask(served)).body[:3])

    async with started(app) as served:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(one, served)
        assert bodies == [b"[1,"] * 10
        assert (pool.stats().acquires, pool.stats().creates, pool.taken) == (10, 2, 0)


@in_each_stacking
async def test_holder_that_would_wait_raises_would_deadlock(stacking: Stacking) -> None:
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


@in_each_stacking
async def test_all_requests_to_a_sync_endpoint_are_served(stacking: Stacking) -> None:
    """More of them than resources, and more of these than threads: a request that waited on one would stop all."""
    pool = things(limit=5, timeout=60)
    app = stacking.app(pool)
    app.get("/")(json_sync)
    anyio.to_thread.current_default_thread_limiter().total_tokens = 2
    statuses: list[int] = []

    async def one(served: ASGIApp) -> None:
        statuses.append((await ask(served)).status)

    async with started(app) as served:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                for _ in range(40):
                    group.start_soon(one, served)
    assert statuses == [200] * 40
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


async def test_discarded_or_detached_resource_is_not_given_back() -> None:
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
async def test_finished_request_is_freed_without_gc(path: str) -> None:
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
async def test_background_task_behind_middleware_has_no_lease(endpoint: Callable[..., Any]) -> None:
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
    app = BOTH.app(pool)  # which a WebSocket passes untouched

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


async def test_override_leased_replaces_leases_within_its_block() -> None:
    """The block replaces every kind of lease."""
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


async def test_override_leased_by_name_replaces_leases_by_name() -> None:
    pool = things()
    app = asks_in_all_ways(pool)
    async with started(app) as served:
        with override_leased(app, "db", lambda: "fake"):
            assert (await ask(served)).body == b'["real","fake","real","real"]'
            app.dependency_overrides.clear()  # by the test itself: no reason to fail
        assert (await ask(served)).body == b'["real","real","real","real"]'


@pytest.mark.parametrize("scope", [None, "function", "request"])
async def test_override_by_hand_needs_only_another_leased(scope: Any) -> None:
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


async def test_app_whose_pool_is_overridden_needs_no_pool() -> None:
    app = FastAPI()
    app.get("/")(json_async)
    with override_leased(app, "db", lambda: "fake"):
        assert (await ask(app)).status == 200


async def test_endpoint_keeps_its_resource_after_a_time_limit() -> None:
    """A middleware has answered in its place."""

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


class AnswersEarly(BaseHTTPMiddleware):
    """Does not wait for the application, as one with a time limit."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        with anyio.CancelScope() as scope:
            request.app.state.answer_now = scope.cancel
            return await call_next(request)
        return PlainTextResponse("late", status_code=504)


async def test_endpoint_cut_off_by_middleware_keeps_its_lease() -> None:
    """The endpoint holds the lease for as long as it runs."""
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
