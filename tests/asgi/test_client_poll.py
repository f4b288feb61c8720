"""Clients that are watched by a poll, where a server is known to tell at once whether they have gone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from types import MethodType, SimpleNamespace
from typing import Annotated, Any

import anyio
import pytest
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Message

from connectionpools_fastapi import ConnectionPool, Leased, install_pools
from connectionpools_fastapi._asgi.client_poll import PERIOD, ClientPoll, presence
from connectionpools_fastapi.testing import started
from tests.support import held, jumping, loop_time, settled
from tests.web import Answer, ask, things, watched

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", [jumping("asyncio")], ids=["asyncio"])]

GONE: Message = {"type": "http.disconnect"}
PARTS: list[Message] = [
    {"type": "http.request", "body": b"a", "more_body": True},
    {"type": "http.request", "body": b"b", "more_body": True},
    {"type": "http.request", "body": b"c", "more_body": False},
]


def echoing(pool: ConnectionPool[Any]) -> FastAPI:
    app = FastAPI()
    install_pools(app, pool)

    @app.post("/")
    async def endpoint(request: Request, _: Annotated[Any, Leased(pool)]) -> str:
        return (await request.body()).decode()

    return app


@asynccontextmanager
async def waiting(pool: ConnectionPool[Any], app: FastAPI, messages: asyncio.Queue[Message]) -> AsyncIterator[Answer]:
    """Let a request wait in the block for a resource, which its end gives back; its server's `receive` is known."""
    answer = Answer()

    async def run(served: ASGIApp) -> None:
        answer.messages = (await ask(served, method="POST", receive=messages.get, spec_version="2.4")).messages

    async with started(app) as served, asyncio.TaskGroup() as group, held(pool):
        group.create_task(run(served))
        tasks = len(asyncio.all_tasks())
        await watched()
        assert pool.waiting == 1
        assert len(asyncio.all_tasks()) == tasks
        yield answer


async def test_client_that_goes_away_leaves_the_queue_within_50_ms() -> None:
    pool, messages = things(1, clock=loop_time), asyncio.Queue[Message]()
    messages.put_nowait(PARTS[-1])
    async with waiting(pool, echoing(pool), messages) as answer:
        messages.put_nowait(GONE)
        await anyio.sleep(PERIOD)
        await settled()
        assert (pool.waiting, pool.stats().withdrawals, answer.status) == (0, 1, 499)


@pytest.mark.parametrize("early", range(4))
async def test_application_gets_every_message_in_order(early: int) -> None:
    pool, messages = things(1, clock=loop_time), asyncio.Queue[Message]()
    for message in PARTS[:early]:
        messages.put_nowait(message)
    async with waiting(pool, echoing(pool), messages) as answer:
        for message in PARTS[early:]:
            messages.put_nowait(message)
            await settled()
    assert answer.body == b'"abc"'


@pytest.mark.parametrize("turns", range(8))
async def test_message_at_the_moment_of_granting_is_not_lost(turns: int) -> None:
    pool, messages = things(1, clock=loop_time), asyncio.Queue[Message]()
    async with waiting(pool, echoing(pool), messages) as answer:
        messages.put_nowait(PARTS[-1])
        for _ in range(turns):
            await asyncio.sleep(0)
    assert answer.body == b'"c"'


async def test_client_gone_as_its_lease_begins_is_seen_at_once() -> None:
    """The next look would come too late: the endpoint would run in vain."""
    pool, messages = things(1, clock=loop_time), asyncio.Queue[Message]()
    messages.put_nowait(PARTS[-1])
    async with waiting(pool, echoing(pool), messages) as answer:
        messages.put_nowait(GONE)
    assert (answer.status, pool.taken) == (499, 0)


async def test_client_gone_since_the_last_look_is_none_that_was_served() -> None:
    """The pool learns of it as the response begins."""
    pool, messages = things(1, clock=loop_time), asyncio.Queue[Message]()
    messages.put_nowait(PARTS[-1])
    app = FastAPI()
    install_pools(app, pool)
    watcher: list[Any] = []

    @app.post("/")
    async def endpoint(request: Request, _: Annotated[Any, Leased(pool)]) -> str:
        watcher.append(request.scope["connectionpools_fastapi"]._watcher)  # nothing else shows it
        messages.put_nowait(GONE)
        return "done"

    async with waiting(pool, app, messages) as answer:
        pass
    assert answer.status == 200
    assert watcher[0].disconnected


async def test_looking_ends_as_the_response_begins() -> None:
    pool, messages = things(1, clock=loop_time), asyncio.Queue[Message]()
    messages.put_nowait(PARTS[-1])
    app = FastAPI()
    install_pools(app, pool)
    watcher: list[Any] = []

    @app.post("/")
    async def endpoint(request: Request, _: Annotated[Any, Leased(pool)]) -> StreamingResponse:
        watcher.append(request.scope["connectionpools_fastapi"]._watcher)

        async def rows() -> AsyncIterator[str]:
            messages.put_nowait(GONE)
            await anyio.sleep(2 * PERIOD)
            yield "row"

        return StreamingResponse(rows())

    async with waiting(pool, app, messages) as answer:
        pass
    assert answer.status == 200
    assert not watcher[0].disconnected


class Watcher:
    """Counts how often it was told."""

    told = 0

    def note_disconnect(self) -> None:
        self.told += 1


async def test_poll_looks_again_after_it_has_had_no_clients() -> None:
    poll, gone, watcher = ClientPoll(), asyncio.Event(), Watcher()
    for times in range(2):
        gone.clear()
        poll.add(watcher, gone.is_set)
        await anyio.sleep(3 * PERIOD)
        assert watcher.told == times
        gone.set()
        await anyio.sleep(2 * PERIOD)
        assert watcher.told == times + 1
    poll.add(watcher, gone.is_set)
    poll.discard(watcher)
    await anyio.sleep(2 * PERIOD)
    assert watcher.told == 2


async def test_only_the_receive_of_a_known_server_tells_at_once() -> None:
    async def receive(_: object = None) -> Message:
        return GONE

    queue: asyncio.Queue[Message] = asyncio.Queue()
    assert presence(queue.get) is not None
    assert presence(partial(queue.get)) is None
    assert presence(receive) is None
    assert presence(MethodType(receive, anyio.Event())) is None


@pytest.mark.parametrize("module", ["httptools_impl", "h11_impl"])
async def test_uvicorn_tells_unless_it_has_paused_reading(module: str) -> None:
    """Then it would not notice a client that goes away; `receive` makes it read on."""
    cycle = pytest.importorskip(f"uvicorn.protocols.http.{module}").RequestResponseCycle
    flow = SimpleNamespace(read_paused=False)
    request = cycle.__new__(cycle)
    request.flow, request.disconnected = flow, False
    has_gone = presence(request.receive)
    assert has_gone is not None
    assert not has_gone()
    request.disconnected = True
    assert has_gone()
    flow.read_paused = True
    assert presence(request.receive) is None
