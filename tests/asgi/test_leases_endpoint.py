"""/pool/leases: the holders of all leases, for authorized requests only."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import anyio
import pytest
from fastapi import FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import format_trace_id
from starlette.requests import HTTPConnection
from starlette.types import Message

from connectionpools_fastapi import Leased, PoolTimeout, install_pools
from connectionpools_fastapi._runtime.holders import STREAM_REMEDY
from connectionpools_fastapi.testing import started
from tests.support import loop_time, settled
from tests.web import Thing, ask, speak, things

pytestmark = pytest.mark.anyio

TOKEN = [("authorization", "token")]


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def by_token(connection: HTTPConnection) -> bool:
    return connection.headers.get("authorization") == "token"


async def test_leases_are_listed_over_pools_the_longest_first() -> None:
    app, clock = FastAPI(), Clock()
    db, cache = things(name="db", clock=clock), things(name="cache", clock=clock)
    install_pools(app, db, cache, authorize=by_token)
    async with started(app) as served, db.lease(holder="GET /slow"):
        clock.now = 3.0
        async with cache.lease(holder="GET /{code}"):
            clock.now = 4.0
            answer = await ask(served, "/pool/leases", headers=TOKEN)
            head = await ask(served, "/pool/leases", method="HEAD", headers=TOKEN)
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
    others = {"wait": 0.0, "uses": 1, "responding": None, "trace": None, "worker": None}
    assert json.loads(answer.body) == {
        "leases": [
            {"pool": "db", "holder": "GET /slow", "age": 4.0, **others},
            {"pool": "cache", "holder": "GET /{code}", "age": 1.0, **others},
        ]
    }
    assert (head.status, head.body, head.headers) == (200, b"", answer.headers)


async def test_each_lease_tells_its_wait_and_the_uses_of_its_resource() -> None:
    clock = Clock()
    db = things(limit=1, clock=clock)
    async with db, anyio.create_task_group() as group:
        seen: list[Any] = []

        async def use() -> None:
            async with db.lease():
                seen.extend((holder.wait, holder.uses) for holder in db.holders())

        async with db.lease():
            group.start_soon(use)
            await settled()
            clock.now = 3.0
        await settled()
        await use()
    assert seen == [(3.0, 2), (0.0, 3)]


async def test_a_stream_that_pins_its_lease_is_told_with_its_route_and_the_remedy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app, clock = FastAPI(), Clock()
    db = things(limit=1, clock=clock)
    install_pools(app, db)
    responding: list[float | None] = []

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            clock.now += 1.5
            responding.extend(holder.responding for holder in db.holders())
            yield b"."
        with pytest.raises(PoolTimeout) as caught:
            await db.acquire(timeout=0)
        told.append(str(caught.value))

    @app.get("/export")
    async def export(_: Annotated[Thing, Leased(db)]) -> StreamingResponse:
        return StreamingResponse(chunks())

    told: list[str] = []
    async with started(app) as served:
        await ask(served, "/export")
    assert responding == [None, 1.5, 3.0]
    held = "Held the longest: GET /export for 4.5 s (3 s of them since its response began)"
    assert held + STREAM_REMEDY in told[0]
    assert not caplog.records


async def test_a_short_response_and_a_block_within_a_stream_pin_nothing() -> None:
    app = FastAPI()
    db, cache = things(name="db"), things(name="cache")
    install_pools(app, db, cache)
    seen: list[Any] = []

    def look(_: Message) -> None:
        seen.extend(holder.responding for holder in db.holders())

    async def chunks() -> AsyncIterator[bytes]:
        yield b"."
        async with cache.lease():
            seen.extend(holder.responding for holder in cache.holders())
            yield b"."

    @app.get("/short")
    async def short(_: Annotated[Thing, Leased(db)]) -> int:
        return 1

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(chunks())

    async with started(app) as served:
        await ask(served, "/short", on_send=look)
        await ask(served, "/stream", on_send=look)
    assert seen == [None, None]


async def test_a_websocket_pins_its_lease_from_its_first_message_on() -> None:
    app, clock = FastAPI(), Clock()
    db = things(clock=clock)
    install_pools(app, db)
    seen: list[Any] = []

    @app.websocket("/live")
    async def live(socket: WebSocket, _: Annotated[Thing, Leased(db)]) -> None:
        await socket.accept()
        for _turn in range(2):
            seen.extend(holder.responding for holder in db.holders())
            await socket.send_text(".")
            clock.now += 2.0
        seen.extend(holder.responding for holder in db.holders())
        await socket.close()

    async with started(app) as served:
        await speak(served, "/live")
    assert seen == [None, 2.0, 4.0]


@pytest.mark.virtual_time
async def test_a_pinned_lease_is_told_with_the_remedy_after_max_hold(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    db = things(max_hold=5, clock=loop_time)
    install_pools(app, db)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"."
        await anyio.sleep(7)

    @app.get("/feed")
    async def feed(_: Annotated[Thing, Leased(db)]) -> StreamingResponse:
        return StreamingResponse(chunks())

    async with started(app) as served:
        await ask(served, "/feed")
    held = "GET /feed has held a resource for 5 s (5 s of them since its response began)"
    assert caplog.messages == [f"pool 'db': {held}, and max_hold is 5 s{STREAM_REMEDY}"]


TRACER = TracerProvider().get_tracer("test")


async def test_leases_of_a_request_and_of_a_task_tell_their_trace() -> None:
    app, db = FastAPI(), things(limit=4)
    install_pools(app, db)
    seen: list[Any] = []

    async def look() -> None:
        seen.extend(holder.trace for holder in db.holders())

    @app.get("/leased")
    async def leased(_: Annotated[Thing, Leased(db)]) -> None:
        await look()

    @app.get("/block")
    async def block() -> None:
        async with db.lease(), anyio.create_task_group() as group:
            group.start_soon(look)

    @app.get("/thread")
    def thread() -> None:
        with db.lease():
            seen.extend(holder.trace for holder in db.holders())

    async with started(app) as served:
        for path in ("/leased", "/block", "/thread"):
            with TRACER.start_as_current_span("request") as span:
                await ask(served, path)
            assert seen == [format_trace_id(span.get_span_context().trace_id)]
            seen.clear()
        await ask(served, "/leased")
        assert seen == [None]


@pytest.mark.parametrize("headers", [[], [("authorization", "tokens")], [("authorization", "")]])
async def test_unauthorized_request_sees_no_lease(headers: list[tuple[str, str]]) -> None:
    app, db = FastAPI(), things()
    install_pools(app, db, authorize=by_token, details="always")
    async with started(app) as served, db.lease(holder="GET /secret"):
        answer = await ask(served, "/pool/leases", headers=headers)
    assert (answer.status, json.loads(answer.body)) == (403, {"detail": "not authorized"})


@pytest.mark.parametrize("details", ["never", "always"])
async def test_leases_endpoint_exists_only_with_authorize(details: Any) -> None:
    app = FastAPI()
    install_pools(app, things(), details=details)
    app.get("/pool/leases")(lambda: "the application's")
    async with started(app) as served:
        assert (await ask(served, "/pool/leases")).body == b'"the application\'s"'


async def test_every_answer_forbids_storing_sniffing_and_framing() -> None:
    app, db = FastAPI(), things(limit=1, timeout=0, min_free=1)
    install_pools(app, db, authorize=by_token)

    @app.get("/")
    async def endpoint() -> None:
        async with db.lease():
            pass

    paths = ["/", *(f"/pool/{path}" for path in ("health", "health/live", "health/ready", "health/db", "health/x"))]
    async with started(app) as served, db.lease():
        for path in (*paths, "/pool/metrics", "/pool/leases"):
            headers = (await ask(served, path)).headers
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
