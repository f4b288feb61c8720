"""What the tests of the web layer share."""

from collections.abc import Callable, Iterable
from typing import Annotated, Any, NamedTuple

import anyio
import anyio.lowlevel
import pytest
from fastapi import FastAPI
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from connectionpools_fastapi import ConnectionPool, Leased, install_pools, pool_lifespan
from connectionpools_fastapi._core.wait_queue import WATCH_AFTER
from connectionpools_fastapi.testing import started
from tests.support import settled

Headers = Iterable[tuple[str, str]]


class Thing:
    """A resource that knows whether it was cleaned."""

    def __init__(self) -> None:
        self.cleaned = False

    def clean(self) -> None:
        self.cleaned = True


def things(limit: int = 2, *, name: str = "db", **options: Any) -> ConnectionPool[Thing]:
    """Make a pool whose hooks never block."""
    hooks: dict[str, Any] = {"create": Thing, "clean": Thing.clean, "blocking": False}
    return ConnectionPool(limit=limit, name=name, **{**hooks, **options})


async def watched() -> None:
    """Let enough virtual time pass that the client of each waiting request is watched."""
    await settled()
    await anyio.sleep(WATCH_AFTER)
    await settled()


class Answer:
    """What an application sent, message by message."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


async def ask(
    app: ASGIApp,
    path: str = "/",
    *,
    method: str = "GET",
    headers: Headers = (),
    root_path: str = "",
    extensions: Iterable[str] = (),
    on_send: Callable[[Message], Any] = lambda _: None,
    receive: Callable[[], Any] | None = None,
    spec_version: str = "2.3",
) -> Answer:
    """Speak ASGI to an application as a server does, and look in at each message that it sends."""
    answer = Answer()
    received = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive_body() -> Message:
        message = next(received, None)
        if message is None:
            await anyio.sleep_forever()
        assert message is not None
        return message

    async def send(message: Message) -> None:
        on_send(message)
        answer.messages.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": spec_version},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": root_path,
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
        "client": ("test", 1),
        "server": ("test", 80),
        "extensions": {name: {} for name in extensions},
    }
    await app(scope, receive or receive_body, send)
    return answer


async def speak(app: Any, path: str, *, extensions: dict[str, Any] | None = None) -> list[Message]:
    """Open a WebSocket as a server does; return what the application sends."""
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
        **({"extensions": extensions} if extensions is not None else {}),
    }
    await app(scope, receive, send)
    return sent


# --- applications with a pool ----------------------------------------------------------------------

LAST = "the last part"
Db = Annotated[Thing, Leased("db")]


def installed(*pools: ConnectionPool[Any], **options: Any) -> FastAPI:
    app = FastAPI()
    install_pools(app, *pools, **options)
    return app


def bare(*pools: ConnectionPool[Any]) -> FastAPI:
    """Open the pools, but have no middleware."""
    return FastAPI(lifespan=pool_lifespan(*pools))


async def json_async(_: Db) -> dict[str, int]:
    return {"a": 1}


def json_sync(_: Db) -> dict[str, int]:
    return {"a": 1}


def is_last(message: Message) -> bool:
    """Whether a message ends the response."""
    kind = message["type"]
    return kind == "http.response.pathsend" or (kind == "http.response.body" and not message.get("more_body"))


async def trace(app: FastAPI, pool: ConnectionPool[Any], **request: Any) -> list[tuple[str, int]]:
    """Say how many resources were taken as each message was sent."""
    seen: list[tuple[str, int]] = []

    def look(message: Message) -> None:
        kind = message["type"].removeprefix("http.response.")
        seen.append((LAST if is_last(message) else kind, pool.taken))

    async with started(app) as served:
        await ask(served, on_send=look, **request)
        assert pool.taken == 0
    return seen


# --- where a BaseHTTPMiddleware stands ----------------------------------------------------------------


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

    inside: bool = False
    around: bool = False

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


NONE, AROUND = Stacking(), Stacking(around=True)
INSIDE, BOTH = Stacking(inside=True), Stacking(inside=True, around=True)
STACKINGS = {NONE: "none", AROUND: "around", INSIDE: "inside", BOTH: "both"}

# The oldest supported Starlette's own: its BaseHTTPMiddleware leaves a generator to the garbage collector.
forgets_streams = pytest.mark.filterwarnings(
    "ignore:Async generator 'starlette.requests.Request.stream':ResourceWarning"
)
in_each_stacking = pytest.mark.parametrize("stacking", STACKINGS, ids=STACKINGS.get)
# A WebSocket and the lifespan pass BaseHTTPMiddleware untouched: the most and the least of it say all.
beside_requests = pytest.mark.parametrize("stacking", [NONE, BOTH], ids=STACKINGS.get)


def slowly(app: ASGIApp, turns: int = 30) -> ASGIApp:
    """Serve an application as a server with a slow client does: each message takes some turns of the loop to send."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_slowly(message: Message) -> None:
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            await send(message)

        await app(scope, receive, send_slowly)

    return serve
