"""Reading ahead without a task, where a server's `receive` is known to need none."""

import asyncio
import contextvars
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

import anyio
import pytest
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Message

from connectionpools_fastapi import ConnectionPool, Leased, install_pools
from connectionpools_fastapi._asgi.stepper import Stepper, needs_no_task
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


async def test_client_that_goes_away_leaves_the_queue_at_once() -> None:
    pool, messages = things(1, clock=loop_time), asyncio.Queue[Message]()
    messages.put_nowait(PARTS[-1])
    async with waiting(pool, echoing(pool), messages) as answer:
        messages.put_nowait(GONE)
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


async def test_reading_ends_as_the_response_begins() -> None:
    pool, messages = things(1, clock=loop_time), asyncio.Queue[Message]()
    messages.put_nowait(PARTS[-1])
    app = FastAPI()
    install_pools(app, pool)

    @app.post("/")
    async def endpoint(_: Annotated[Any, Leased(pool)]) -> StreamingResponse:
        async def rows() -> AsyncIterator[str]:
            messages.put_nowait(GONE)
            await settled()
            yield str(messages.qsize())

        return StreamingResponse(rows())

    async with waiting(pool, app, messages) as answer:
        pass
    assert answer.body == b"1"


async def test_only_the_receive_of_a_known_server_needs_no_task() -> None:
    async def receive() -> Message:
        return GONE

    queue: asyncio.Queue[Message] = asyncio.Queue()
    assert needs_no_task(queue.get)
    assert not needs_no_task(partial(queue.get))
    assert not needs_no_task(receive)
    assert not needs_no_task(anyio.Event().wait)


async def test_steps_run_in_their_context_from_future_to_future() -> None:
    variable = contextvars.ContextVar("variable", default=0)
    context = contextvars.copy_context()
    context.run(variable.set, 1)
    seen: list[tuple[int, object]] = []
    go_on = asyncio.Event()

    async def look() -> None:
        for wait in (asyncio.sleep(0), asyncio.sleep(1), go_on.wait()):
            await wait
            seen.append((variable.get(), asyncio.current_task()))

    Stepper(context).run(look())
    await settled()
    assert len(seen) == 1
    await asyncio.sleep(1)
    await settled()
    go_on.set()
    await settled()
    assert seen == [(1, None)] * 3


@pytest.mark.parametrize("happens", [True, False], ids=["as-it-happens", "before"])
async def test_cancel_ends_a_coroutine_where_it_is(*, happens: bool) -> None:
    event, ended = asyncio.Event(), []

    async def wait() -> None:
        try:
            await event.wait()
            ended.append("went on")
        finally:
            ended.append("ended")

    stepper = Stepper(contextvars.copy_context())
    stepper.run(wait())
    if happens:
        event.set()
    stepper.cancel()
    assert ended == ["ended"]
    event.set()
    await settled()
    stepper.cancel()
    assert ended == ["ended"]


async def test_coroutine_whose_future_is_cancelled_ends() -> None:
    future = asyncio.get_running_loop().create_future()
    ended = asyncio.Event()

    async def wait() -> None:
        try:
            await future
        finally:
            ended.set()

    stepper = Stepper(contextvars.copy_context())
    stepper.run(wait())
    future.cancel()
    await settled()
    assert ended.is_set()
    stepper.cancel()
