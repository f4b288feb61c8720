"""A client that goes away while its request waits: nothing waits, works or complains for it any more."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Annotated, Any, Self

import anyio
import anyio.lowlevel
import pytest
import uvicorn
from fastapi import BackgroundTasks, Depends, FastAPI, Request, WebSocket
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from connectionpools_fastapi import ConnectionPool, Leased, NotLeased, PoolMiddleware, install_pools, pool_lifespan
from connectionpools_fastapi._asgi.disconnect import ClientGone
from connectionpools_fastapi._asgi.exchange import Exchange
from connectionpools_fastapi._runtime.request_context import REQUEST
from connectionpools_fastapi.testing import started
from tests.support import held, loop_time, outcome_of, settled
from tests.web import NONE, Answer, Base, Stacking, Thing, ask, forgets_streams, in_each_stacking, watched
from tests.web import things as things_of_real_time

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.virtual_time,
    forgets_streams,
]

things = partial(things_of_real_time, clock=loop_time)


GONE: Message = {"type": "http.disconnect"}
LEASES = [Leased("db"), Leased("db", scope="request"), Leased("db", scope="function")]


def part(body: bytes = b"", *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


class Client:
    """What a server has received of one request, and the calls that ask for it."""

    def __init__(self, *messages: Message) -> None:
        self._put, self._get = anyio.create_memory_object_stream[Message](100)
        self.received = 0
        self.receiving = 0
        for message in messages:
            self.send(message)

    def send(self, message: Message) -> None:
        self._put.send_nowait(message)

    async def receive(self) -> Message:
        self.receiving += 1
        try:
            message = await self._get.receive()
        finally:
            self.receiving -= 1
        self.received += 1
        return message

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._put.close()
        self._get.close()


class ReadsBody(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        await request.body()
        return await call_next(request)


class ReadsStream(BaseHTTPMiddleware):
    """Reads the body away: what is inside gets an empty one."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        async for _ in request.stream():
            pass
        return await call_next(request)


async def call(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)


class Groups:
    """Middleware that raises whatever is raised in it as a group."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(call, self.app, scope, receive, send)


class Listens:
    """Middleware that itself listens to the client while the application runs."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        put, get = anyio.create_memory_object_stream[Message](100)

        async def listen() -> None:
            message = None
            while message != GONE:
                message = await receive()
                put.send_nowait(message)

        with put, get:
            async with anyio.create_task_group() as group:
                group.start_soon(listen)
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()
                await self.app(scope, get.receive, send)
                group.cancel_scope.cancel()


def installed(*pools: ConnectionPool[Any], inside: tuple[Any, ...] = (), around: tuple[Any, ...] = ()) -> FastAPI:
    app = FastAPI()
    for middleware in inside:
        app.add_middleware(middleware)
    install_pools(app, *pools)
    for middleware in around:
        app.add_middleware(middleware)
    return app


def count_runs(app: FastAPI, *, lease: Any = LEASES[0]) -> list[str]:
    ran: list[str] = []

    @app.api_route("/", methods=["GET", "POST"])
    async def endpoint(_: Annotated[Thing, lease]) -> str:
        ran.append("endpoint")
        return "done"

    return ran


@asynccontextmanager
async def holding(pool: ConnectionPool[Any]) -> AsyncIterator[Callable[[], None]]:
    """Hold the one resource of a pool until it is given back, at the end of the block at the latest."""
    lease = pool.lease()
    await lease.__aenter__()
    try:
        yield lease.release_nowait
    finally:
        with suppress(NotLeased):
            lease.release_nowait()


@asynccontextmanager
async def waiting(
    app: FastAPI, pool: ConnectionPool[Any], client: Client, **request: Any
) -> AsyncIterator[tuple[Callable[[], None], Answer]]:
    """Let a request wait for a resource in the block; it gets what gives it the resource, and its answer to be."""
    answer = Answer()

    async def run(served: ASGIApp) -> None:
        answer.messages = (await ask(served, receive=client.receive, **request)).messages

    with anyio.fail_after(10), client:
        async with started(app) as served, anyio.create_task_group() as group, holding(pool) as give_back:
            group.start_soon(run, served)
            await watched()
            assert pool.waiting == 1
            yield give_back, answer


# --- leaving ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lease", LEASES, ids=["response", "request", "function"])
@pytest.mark.parametrize(
    "inside",
    [(), (Base,), (ReadsBody,), (ReadsStream,), (Groups,)],
    ids=["", "base", "reads", "streams", "groups"],
)
@pytest.mark.parametrize("around", [(), (Base,), (ReadsBody,), (ReadsStream,)], ids=["", "base", "reads", "streams"])
async def test_a_client_that_goes_away_leaves_the_queue_at_once(
    lease: Any, inside: tuple[Any, ...], around: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    pool = things(1)
    app = installed(pool, inside=inside, around=around)
    ran = count_runs(app, lease=lease)
    client = Client(part())
    async with waiting(app, pool, client) as (give_back, answer):
        client.send(GONE)
        await settled()
        assert pool.waiting == 0
        assert pool.stats().withdrawals == 1
        assert answer.status == 499  # which no client sees
        give_back()
        assert (pool.free, pool.taken) == (1, 0)
    assert ran == []
    assert caplog.messages == []
    assert client.receiving == 0


async def test_client_gone_before_the_wait_does_not_wait() -> None:
    pool = things(1)
    app = installed(pool)
    ran = count_runs(app)
    with Client(part(), GONE) as client:
        async with started(app) as served, held(pool):
            with anyio.fail_after(10):
                assert (await ask(served, receive=client.receive)).status == 499
    assert ran == []


async def test_disconnect_gives_back_what_is_already_leased() -> None:
    first, pool = things(1, name="first", min_free=1), things(1)
    app = installed(first, pool)

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased(first)], __: Annotated[Thing, Leased(pool)]) -> None:
        raise AssertionError

    taken: list[int] = []
    client = Client(part())
    async with waiting(app, pool, client, on_send=lambda _: taken.append(first.taken)) as (give_back, answer):
        assert first.taken == 1
        assert first.holders()[0].name == "GET /"
        client.send(GONE)
        await settled()
        assert (first.taken, pool.waiting, answer.status) == (0, 0, 499)
        give_back()
    assert taken == [0, 0]


async def test_a_request_that_waits_twice_is_watched_twice() -> None:
    first, pool = things(1, name="first"), things(1)
    app = installed(first, pool)

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased(pool)], __: Annotated[Thing, Leased(first)]) -> None:
        raise AssertionError

    client = Client(part())
    async with waiting(app, pool, client) as (give_back, answer), first.lease():
        give_back()
        await watched()
        assert (first.waiting, pool.taken, client.receiving) == (1, 1, 1)
        client.send(GONE)
        await settled()
        assert (first.waiting, pool.taken, answer.status) == (0, 0, 499)


async def test_second_wait_after_a_disconnect_ends_at_once() -> None:
    first, pool = things(1, name="first"), things(1)
    app = installed(first, pool)
    hold = anyio.Event()

    @app.get("/")
    async def endpoint(
        _: Annotated[Thing, Leased(pool)], __: Annotated[None, Depends(hold.wait)], ___: Annotated[Thing, Leased(first)]
    ) -> None:
        raise AssertionError

    client = Client(part())
    async with waiting(app, pool, client) as (give_back, answer), first.lease():
        give_back()
        await settled()
        client.send(GONE)
        await settled()
        assert pool.taken == 1
        hold.set()
        await settled()
        assert (pool.taken, answer.status) == (0, 499)
        assert first.stats().withdrawals == 0


async def test_disconnect_received_by_the_app_ends_the_wait() -> None:
    pool = things(1)
    app = installed(pool, inside=(Listens,))
    ran = count_runs(app)
    client = Client(part(b"body"))
    async with waiting(app, pool, client) as (give_back, answer):
        assert client.receiving == 1
        client.send(GONE)
        await settled()
        assert (pool.waiting, answer.status) == (0, 499)
        give_back()
    assert ran == []


async def test_failed_send_to_a_gone_client_is_no_error() -> None:
    pool = things(1)
    app = installed(pool)
    count_runs(app)

    def refuse(_: Message) -> None:
        raise OSError

    client = Client(part())
    async with waiting(app, pool, client, on_send=refuse) as (give_back, answer):
        client.send(GONE)
        await settled()
        assert (pool.waiting, answer.messages) == (0, [])
        give_back()


async def test_disconnect_in_reading_the_body_is_left_to_the_app() -> None:
    pool = things(1, min_free=1)
    app = installed(pool)

    @app.get("/")
    async def endpoint(request: Request, _: Annotated[Thing, Leased(pool)]) -> bytes:
        return await request.body()

    with Client(GONE) as client:
        async with started(app) as served:
            with pytest.raises(ClientDisconnect):
                await ask(served, receive=client.receive)
            assert pool.taken == 0


# --- staying ----------------------------------------------------------------------------------


def echo(app: FastAPI) -> None:
    @app.post("/")
    async def endpoint(request: Request, _: Annotated[Thing, Leased("db")]) -> Response:
        got = [chunk async for chunk in request.stream()]
        assert await request._receive() == GONE
        return PlainTextResponse(b"|".join(got))


@pytest.mark.parametrize("inside", [(), (Base,), (ReadsBody,), (Listens,)], ids=["", "base", "reads", "listens"])
@pytest.mark.parametrize("around", [(), (Base,)], ids=["", "base"])
@pytest.mark.parametrize("early", [0, 1, 2, 3])
async def test_the_application_gets_every_message_in_order(
    early: int, inside: tuple[Any, ...], around: tuple[Any, ...]
) -> None:
    pool = things(1)
    app = installed(pool, inside=inside, around=around)
    echo(app)
    parts = [part(b"a", more=True), part(b"b", more=True), part(b"c")]
    if ReadsBody in inside:
        early = 3
    client = Client(*parts[:early])
    async with waiting(app, pool, client, method="POST") as (give_back, answer):
        for message in parts[early:]:
            client.send(message)
            await settled()
        give_back()
        await settled()
        assert pool.taken == 1
        client.send(GONE)
        await settled()
        assert answer.body.replace(b"|", b"") == b"abc"


@pytest.mark.parametrize("around", [(), (Base,), (Base, Base)], ids=["", "base", "two"])
@pytest.mark.parametrize("turns", range(12))
async def test_message_at_the_moment_of_granting_is_not_lost(turns: int, around: tuple[Any, ...]) -> None:
    pool = things(1)
    app = installed(pool, around=around)
    echo(app)
    client = Client()
    async with waiting(app, pool, client, method="POST") as (give_back, answer):
        client.send(part(b"body"))
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        give_back()
        await settled()
        client.send(GONE)
        await settled()
        assert answer.body.replace(b"|", b"") == b"body"


async def test_what_was_read_ahead_comes_before_what_follows() -> None:
    pool = things(1)
    app = installed(pool)
    got: list[Message] = []

    @app.get("/")
    async def endpoint(request: Request, _: Annotated[Thing, Leased(pool)]) -> None:
        got.extend([await request._receive() for _ in range(3)])

    client = Client(part(b"a"), part(b"b"), part(b"c"))
    async with waiting(app, pool, client) as (give_back, answer):
        assert client.received == 2
        give_back()
        await settled()
        assert answer.status == 200
    assert [message["body"] for message in got] == [b"a", b"b", b"c"]


@in_each_stacking
async def test_a_body_that_goes_on_is_not_piled_up(stacking: Stacking) -> None:
    pool = things(1)
    app = stacking.app(pool)
    count_runs(app)
    client = Client(part(b"a", more=True), part(b"b", more=True), part(b"c"), GONE)
    async with waiting(app, pool, client) as (give_back, answer):
        assert client.received == 1
        give_back()
        await settled()
        assert answer.status == 200
    assert client.received == 1


async def test_second_wait_reads_no_more_of_the_body() -> None:
    first, pool = things(1, name="first"), things(1)
    app = installed(first, pool)

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased(pool)], __: Annotated[Thing, Leased(first)]) -> None: ...

    client = Client(part(b"a", more=True), part(b"b", more=True))
    async with waiting(app, pool, client) as (give_back, answer):
        async with first.lease():
            give_back()
            await watched()
            assert first.waiting == 1
            assert client.received == 1
        await settled()
        assert answer.status == 200


async def test_repeated_message_does_not_keep_the_loop_busy() -> None:
    pool = things(1)
    app = installed(pool)
    ran = count_runs(app)
    calls = 0

    async def receive() -> Message:
        nonlocal calls
        calls += 1
        assert calls < 10
        return part()

    client = Client()
    client.receive = receive  # type: ignore[method-assign]
    async with waiting(app, pool, client) as (give_back, _):
        give_back()
    assert ran == ["endpoint"]
    assert calls == 2


@pytest.mark.parametrize("fails_first", [True, False])
async def test_failed_receive_raises_in_its_caller(*, fails_first: bool) -> None:
    pool = things(1)
    app = installed(pool)
    caught: list[str] = []
    fail = anyio.Event()

    @app.get("/")
    async def endpoint(request: Request, _: Annotated[Thing, Leased("db")]) -> None:
        try:
            await request.body()
        except LookupError as error:
            caught.append(str(error))

    async def receive() -> Message:
        await fail.wait()
        msg = "broken"
        raise LookupError(msg)

    client = Client()
    client.receive = receive  # type: ignore[method-assign]
    async with waiting(app, pool, client) as (give_back, answer):
        for happen in (fail.set, give_back) if fails_first else (give_back, fail.set):
            happen()
            await settled()
        assert answer.status == 200
    assert caught == ["broken"]


@in_each_stacking
async def test_free_resource_asks_nothing_of_the_client(stacking: Stacking) -> None:
    pool = things(1, min_free=1)
    app = stacking.app(pool)
    tasks: list[int] = []

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased(pool)]) -> None:
        tasks.append(len(anyio.get_running_tasks()))

    with Client(part(), GONE) as client:
        async with started(app) as served:
            await settled()
            before = len(anyio.get_running_tasks())
            assert (await ask(served, receive=client.receive)).status == 200
            await settled()
        assert client.received == 0
    assert tasks == [before] or stacking is not NONE  # BaseHTTPMiddleware has tasks of its own


def exchange_of(client: Client) -> Exchange:
    """Return a request whose leases no application takes."""

    async def send(_: Any) -> None:
        """An answer that is not looked at."""

    exchange = Exchange({}, client.receive, send)
    exchange.token = REQUEST.set(exchange)
    return exchange


async def test_waiters_of_a_request_share_one_receive() -> None:
    with Client() as client:
        exchange = exchange_of(client)
        pool = things(1)
        async with pool, held(pool), anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(exchange.enter, pool, {})
            await watched()
            assert (pool.waiting, client.receiving) == (2, 1)
            group.cancel_scope.cancel()
        exchange.close()
        await settled()


async def test_watching_goes_on_after_another_wait_has_ended() -> None:
    """Both waiters belong to one request."""
    first, pool = things(1, name="first"), things(1)
    ended: list[str] = []
    with Client(part()) as client:
        exchange = exchange_of(client)

        async def wait(pool: ConnectionPool[Thing]) -> None:
            try:
                await exchange.enter(pool, {})
                exchange.leave(pool)
            except ClientGone:
                ended.append("gone")
            else:
                ended.append("served")

        async with first, pool, held(pool), anyio.create_task_group() as group:
            async with held(first):
                for each in (first, pool):
                    group.start_soon(wait, each)
                await settled()
                assert (first.waiting, pool.waiting) == (1, 1)
            await watched()
            assert (ended, client.receiving) == (["served"], 1)
            client.send(GONE)
        assert ended == ["served", "gone"]


async def test_disconnect_after_the_wait_is_left_to_the_endpoint() -> None:
    pool = things(1)
    app = installed(pool)
    hold = anyio.Event()
    received: list[Message] = []

    @app.get("/")
    async def endpoint(request: Request, _: Annotated[Thing, Leased(pool)]) -> str:
        await hold.wait()
        received.extend([await request._receive(), await request._receive()])
        return "done"

    client = Client()
    async with waiting(app, pool, client) as (give_back, answer):
        give_back()
        await settled()
        client.send(part())
        await settled()
        assert client.received == 1
        assert client.receiving == 0  # nothing is read ahead once the waiting is over
        client.send(GONE)
        await settled()
        hold.set()
        await settled()
        assert answer.status == 200
    assert received == [part(), GONE]


async def lose_a_caller(pool: ConnectionPool[Any]) -> None:
    """Let a caller leave, from which the pool learns; and one come, so that the next leaver is not one of a crowd."""
    async with anyio.create_task_group() as group:
        group.start_soon(pool.acquire)
        await settled()
        group.cancel_scope.cancel()
    async with anyio.create_task_group() as group:  # another task: this one may hold the resource
        group.start_soon(outcome_of, lambda: pool.acquire(timeout=0.001))


@pytest.mark.parametrize("leaves", [True, False], ids=["gone", "served"])
@pytest.mark.parametrize("scope", [None, "request"])
async def test_client_gone_during_its_lease_teaches(scope: Any, *, leaves: bool) -> None:
    """Its age, once the pool has lost a caller; the disconnect that a server tells after a response teaches nothing."""
    pool = things(1)
    app = installed(pool)
    hold, after = anyio.Event(), anyio.Event()

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased(pool, scope=scope)], later: BackgroundTasks) -> str:
        later.add_task(after.wait)  # for so long a lease with scope="request" lasts
        await hold.wait()
        return "done"

    client = Client(part())
    async with waiting(app, pool, client) as (give_back, _):
        await lose_a_caller(pool)
        give_back()
        await settled()
        before = pool.stats().patience
        assert before is not None
        if leaves:
            client.send(GONE)
            await settled()
        learned = pool.stats().patience
        assert learned is not None
        assert (learned - before > 0.02 * 0.04) == leaves  # it has waited for 50 ms or more
        hold.set()
        await settled()
        if not leaves:
            client.send(GONE)
            await settled()
            assert pool.stats().patience == pytest.approx(learned, rel=0.01)
        after.set()


async def test_client_that_leaves_its_stream_teaches_nothing() -> None:
    """It was served: its leaving is no sign of patience that has come to an end."""
    pool = things(1)
    app = installed(pool)

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased(pool)]) -> StreamingResponse:
        async def rows() -> AsyncIterator[str]:
            yield "row"
            await anyio.sleep_forever()

        return StreamingResponse(rows())

    client = Client(part())
    async with waiting(app, pool, client) as (give_back, _):
        await lose_a_caller(pool)
        give_back()
        await settled()
        before = pool.stats().patience
        client.send(GONE)
        await settled()
        assert pool.taken == 0
        assert pool.stats().patience == pytest.approx(before, rel=0.001)


async def test_no_client_is_watched_after_the_response() -> None:
    pool = things(1)
    app = installed(pool)
    count_runs(app)
    client = Client(part())
    async with waiting(app, pool, client) as (give_back, answer):
        assert client.receiving == 1
        give_back()
        await settled()
        assert answer.status == 200
        assert client.receiving == 0


async def test_without_middleware_a_request_waits_as_any_task() -> None:
    pool = things(1)
    app = FastAPI(lifespan=pool_lifespan(pool))
    ran = count_runs(app, lease=Leased(pool, scope="request"))
    client = Client(part(), GONE)
    async with waiting(app, pool, client) as (give_back, _):
        assert client.received == 0
        give_back()
    assert ran == ["endpoint"]


async def test_nested_middleware_sees_the_client() -> None:
    pool = things(1)
    app = installed(pool, around=(PoolMiddleware,))
    ran = count_runs(app)
    client = Client(part())
    async with waiting(app, pool, client) as (give_back, answer):
        client.send(GONE)
        await settled()
        assert (pool.waiting, answer.status) == (0, 499)
        give_back()
    assert ran == []


# --- WebSockets -------------------------------------------------------------------------------


class Accepts:
    """Middleware that accepts WebSockets before the application runs."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
        await self.app(scope, receive, send)


@asynccontextmanager
async def waiting_websocket(
    app: FastAPI, pool: ConnectionPool[Any], client: Client
) -> AsyncIterator[tuple[Callable[[], None], list[str]]]:
    sent: list[str] = []

    async def send(message: Message) -> None:
        sent.append(message.get("text") or message["type"])

    scope = {"type": "websocket", "path": "/", "query_string": b"", "headers": [], "asgi": {"version": "3.0"}}
    with anyio.fail_after(10), client:
        async with started(app) as served, anyio.create_task_group() as group, holding(pool) as give_back:
            group.start_soon(call, served, scope, client.receive, send)
            await watched()
            assert pool.waiting == 1
            yield give_back, sent


def echo_websocket(app: FastAPI) -> None:
    @app.websocket("/")
    async def endpoint(websocket: WebSocket, _: Annotated[Thing, Leased("db")]) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)


async def test_a_websocket_that_waited_misses_nothing() -> None:
    pool = things(1)
    app = installed(pool)
    echo_websocket(app)
    client = Client({"type": "websocket.connect"})
    async with waiting_websocket(app, pool, client) as (give_back, sent):
        give_back()
        await settled()
        for text in "ab":
            client.send({"type": "websocket.receive", "text": text})
        await settled()
        assert sent == ["websocket.accept", "a", "b"]
        client.send({"type": "websocket.disconnect", "code": 1000})
    assert client.received == 4


@pytest.mark.parametrize(("inside", "sent_at_all"), [((), ["websocket.close"]), ((Accepts,), ["websocket.accept"])])
async def test_closed_websocket_leaves_the_queue_at_once(
    inside: tuple[Any, ...], sent_at_all: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    pool = things(1)
    app = installed(pool, inside=inside)
    echo_websocket(app)
    client = Client({"type": "websocket.connect"})
    async with waiting_websocket(app, pool, client) as (give_back, sent):
        client.send({"type": "websocket.disconnect", "code": 1006})
        await settled()
        assert pool.waiting == 0
        assert pool.stats().withdrawals == 1
        assert sent == sent_at_all  # after accepting there is nothing left to say
        give_back()
        assert (pool.free, pool.taken) == (1, 0)
    assert caplog.messages == []


# --- a real server ----------------------------------------------------------------------------


@asynccontextmanager
async def serving(app: FastAPI, **options: Any) -> AsyncIterator[int]:
    """Run a real server in the block, which gets its port."""
    config = uvicorn.Config(app, port=0, log_config=None, **options)
    server = uvicorn.Server(config)
    listener = config.bind_socket()
    task = asyncio.create_task(server.serve([listener]))
    try:
        await until(lambda: server.started or task.done())
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        listener.close()


async def until(happened: Callable[[], bool]) -> None:
    """Give way to the others until something has happened."""
    with anyio.fail_after(20):
        while not happened():
            await anyio.lowlevel.checkpoint()


GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbody"
LONG = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000)  # uvicorn pauses reading
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("around", [(), (Base,)], ids=["", "base"])
@pytest.mark.parametrize(
    ("request_", "options"),
    [
        (GET, {"http": "h11"}),
        (POST, {"http": "h11"}),
        (POST, {"http": "httptools"}),
        (LONG, {"http": "httptools"}),
        (UPGRADE, {"ws": "websockets-sansio"}),
    ],
    ids=["h11", "h11-body", "httptools", "httptools-long", "websocket"],
)
async def test_gone_clients_of_a_real_server_leave_the_queue(
    request_: bytes, options: dict[str, str], around: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    for needed, module in (("httptools", "httptools"), ("websockets-sansio", "websockets")):
        if needed in options.values():
            pytest.importorskip(module)
    clients = 20
    pool = things_of_real_time(1, timeout=None)
    app = installed(pool, around=around)
    ran = count_runs(app)

    @app.websocket("/ws")
    async def endpoint(_: WebSocket, __: Annotated[Thing, Leased(pool)]) -> None:
        ran.append("websocket")

    async with serving(app, **options) as port, holding(pool) as give_back:
        with caplog.at_level(logging.INFO):
            connected = [await asyncio.open_connection("127.0.0.1", port) for _ in range(clients)]
            for _, writer in connected:
                writer.write(request_)
            await until(lambda: pool.waiting == clients)
            caplog.clear()
            for _, writer in connected:
                writer.close()
            await until(lambda: pool.waiting == 0)
            assert pool.stats().withdrawals == clients
            give_back()
            assert (pool.free, pool.taken) == (1, 0)
            for _, writer in connected:
                await writer.wait_closed()
            await settled()
        assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []
    assert ran == []
