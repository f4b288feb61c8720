"""/pool/: a page for authorized requests, whose viewers share one picture a second."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from starlette.requests import HTTPConnection
from starlette.types import Message

from connectionpools_fastapi import install_pools
from connectionpools_fastapi._asgi.page import HANGS_AFTER, LINGERS, LONGEST_STREAM, MOST_VIEWERS, Viewers
from connectionpools_fastapi._asgi.startup_checks import hidden_routes
from connectionpools_fastapi.testing import started
from tests.web import Answer, ask, things

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

TOKEN = [("authorization", "token")]
FILES = ("/pool/", "/pool/page.css", "/pool/page.js")


def by_token(connection: HTTPConnection) -> bool:
    return connection.headers.get("authorization") == "token"


def pictures(answer: Answer) -> list[Any]:
    return [json.loads(event.removeprefix(b"data: ")) for event in answer.body.split(b"\n\n") if event]


# --- the page -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES)
async def test_page_may_load_its_own_files_only(path: str) -> None:
    app = FastAPI()
    install_pools(app, things(), authorize=by_token)
    async with started(app) as served:
        answer = await ask(served, path)
        head = await ask(served, path, method="HEAD")
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
    assert (head.status, head.body, head.headers) == (200, b"", answer.headers)
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"} <= set(policy)
    assert {"frame-ancestors 'none'", "form-action 'none'", "base-uri 'none'"} <= set(policy)
    assert "unsafe" not in answer.headers["content-security-policy"]
    text = answer.body.decode()
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|innerHTML|insertAdjacent|document\.write|eval\(", text)
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?! src=)", text)


@pytest.mark.parametrize("path", [*FILES, "/pool/stream"])
async def test_page_exists_only_with_authorize(path: str) -> None:
    app = FastAPI()
    install_pools(app, things(), details="always")
    app.get(path)(lambda: "the application's")
    async with started(app) as served:
        assert (await ask(served, path, headers=TOKEN)).body == b'"the application\'s"'


async def test_own_route_at_the_page_is_told_to_be_hidden() -> None:
    app = FastAPI()
    app.get("/pool/")(lambda: "the application's")
    app.get("/pool")(lambda: "the application's")
    assert hidden_routes(app, ["/pool/"]) == ["/pool/"]


@pytest.mark.parametrize("path", [*FILES, "/pool/stream"])
async def test_page_changes_nothing(path: str) -> None:
    app = FastAPI()
    install_pools(app, things(), authorize=by_token)
    async with started(app) as served:
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert (await ask(served, path, method=method, headers=TOKEN)).status == 405


# --- the stream -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "tokens")],
        [*TOKEN, ("sec-fetch-site", "cross-site")],
        [*TOKEN, ("sec-fetch-site", "same-site")],
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_stream_is_refused_to_strangers_and_other_sites(method: str, headers: list[tuple[str, str]]) -> None:
    app, db = FastAPI(), things()
    install_pools(app, db, authorize=by_token)
    async with started(app) as served, db.lease(holder="GET /secret"):
        answer = await ask(served, "/pool/stream", method=method, headers=headers)
    assert (answer.status, answer.body) == (403, b'{"detail":"not authorized"}' if method == "GET" else b"")


async def test_stream_sends_the_stats_each_second_and_ends() -> None:
    app, db = FastAPI(), things(clock=lambda: 0.0)
    install_pools(app, db, authorize=by_token)
    sent_at: list[float] = []
    async with started(app) as served, db.lease(holder="GET /slow"):
        head = await ask(served, "/pool/stream", method="HEAD", headers=TOKEN)
        began = anyio.current_time()
        answer = await ask(
            served,
            "/pool/stream",
            headers=[*TOKEN, ("sec-fetch-site", "same-origin")],
            on_send=lambda _: sent_at.append(anyio.current_time() - began),
        )
        stats = asdict(db.stats())
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
    assert answer.headers.items() >= head.headers.items() - {("content-length", "0")}
    seen = pictures(answer)
    assert len(seen) == LONGEST_STREAM
    assert sent_at[1:] == pytest.approx(range(int(LONGEST_STREAM) + 1), abs=0.01)
    (pool,) = seen[-1]["pools"]
    assert pool["stats"] == {key: value for key, value in stats.items() if key in pool["stats"]}
    assert stats.keys() - pool["stats"].keys() == {"wait", "use", "create", "routes", "priorities"}
    assert pool["leases"][0]["holder"] == "GET /slow"
    assert not answer.messages[-1].get("more_body")


async def stay() -> Message:
    await anyio.sleep_forever()
    raise AssertionError


class Watched:
    """Viewers of pools that count how often they are asked."""

    def __init__(self) -> None:
        self.looks = 0
        self.viewers = Viewers(self._look)
        self.answers: list[Answer] = []

    async def _look(self) -> dict[int, Any]:
        self.looks += 1
        return {0: {}}

    async def view(self, *, on_send: Callable[[Message], Any] | None = None, receive: Any = None) -> Answer:
        answer = Answer()
        self.answers.append(answer)

        async def send(message: Message) -> None:
            answer.messages.append(message)
            if on_send is not None:
                await on_send(message)

        scope = {"type": "http", "method": "GET", "headers": []}
        await self.viewers(scope, receive or stay, send)
        return answer


async def test_all_viewers_share_one_look_a_second() -> None:
    watched = Watched()
    async with anyio.create_task_group() as group:
        for _ in range(MOST_VIEWERS):
            group.start_soon(watched.view)
            await anyio.sleep(0.1)
    assert watched.looks == pytest.approx(LONGEST_STREAM + 2, abs=1)
    assert [len(pictures(answer)) for answer in watched.answers] == pytest.approx([LONGEST_STREAM] * 20, abs=1)


async def test_nothing_is_asked_or_kept_without_viewers() -> None:
    watched = Watched()
    await watched.view()
    looks = watched.looks
    await assert_nothing_is_left(watched)
    assert watched.looks == looks


async def test_next_stream_of_a_viewer_goes_on_with_the_last_minute() -> None:
    app, db = FastAPI(), things()
    install_pools(app, db, authorize=by_token)
    async with started(app) as served, db.lease():
        await ask(served, "/pool/stream", headers=TOKEN)
        first, *_ = pictures(await ask(served, "/pool/stream", headers=TOKEN))
    assert first["pools"][0]["minute_seconds"] == pytest.approx(LONGEST_STREAM, abs=0.1)


async def assert_nothing_is_left(watched: Watched) -> None:
    await anyio.sleep(LINGERS + 0.1)
    assert (watched.viewers._count, watched.viewers._shared) == (0, None)


async def test_one_viewer_too_many_is_told_until_one_leaves() -> None:
    watched, leaves = Watched(), anyio.Event()

    async def until_it_leaves() -> Message:
        await leaves.wait()
        return {"type": "http.disconnect"}

    async with anyio.create_task_group() as group:
        group.start_soon(lambda: watched.view(receive=until_it_leaves))
        for _ in range(MOST_VIEWERS - 1):
            group.start_soon(watched.view)
        await anyio.sleep(0.5)
        refused = await watched.view()
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")
        assert "20 viewers" in json.loads(refused.body)["detail"]
        leaves.set()
        await anyio.sleep(0.1)
        assert (await watched.view()).status == 200


async def test_slow_viewer_skips_pictures_and_delays_no_other() -> None:
    watched = Watched()

    async def slowly(_: Message) -> None:
        await anyio.sleep(4.5)

    async with anyio.create_task_group() as group:
        group.start_soon(lambda: watched.view(on_send=slowly))
        group.start_soon(watched.view)
    assert sorted(len(pictures(answer)) for answer in watched.answers) == [4, LONGEST_STREAM]


async def test_viewer_that_hangs_is_dropped() -> None:
    watched = Watched()

    async def hang(message: Message) -> None:
        if message["type"] == "http.response.body":
            await anyio.sleep_forever()

    began = anyio.current_time()
    answer = await watched.view(on_send=hang)
    assert anyio.current_time() - began == pytest.approx(HANGS_AFTER, abs=0.1)
    assert answer.messages[-1]["more_body"]  # the server sees that the response did not end
    await assert_nothing_is_left(watched)


async def test_viewer_whose_connection_breaks_leaves() -> None:
    watched = Watched()

    async def break_off(_: Message) -> None:
        raise OSError

    await watched.view(on_send=break_off)
    await assert_nothing_is_left(watched)


async def test_streams_end_with_the_application_and_begin_with_its_next_start() -> None:
    watched = Watched()
    async with anyio.create_task_group() as group:
        group.start_soon(watched.view)
        await anyio.sleep(0.5)
        watched.viewers.end()
        began = anyio.current_time()
    assert anyio.current_time() - began < 1.0
    watched.viewers.begin()
    assert len(pictures(await watched.view())) == LONGEST_STREAM
