"""When the lease of a request ends: with the last part of the response, or where FastAPI ends its scopes."""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import starlette
from fastapi import BackgroundTasks, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, RedirectResponse, StreamingResponse
from starlette.responses import Response
from starlette.types import Message

from connectionpools_fastapi import (
    Leased,
    PoolConfigError,
    PoolMiddleware,
    pool_lifespan,
)
from connectionpools_fastapi.testing import started
from tests.support import Backend, assert_nothing_is_lost
from tests.web import (
    AROUND,
    LAST,
    NONE,
    STACKINGS,
    Base,
    Db,
    Stacking,
    Thing,
    Watch,
    ask,
    bare,
    forgets_streams,
    in_each_stacking,
    installed,
    is_last,
    json_async,
    json_sync,
    slowly,
    things,
    trace,
)

pytestmark = [pytest.mark.anyio, forgets_streams]

BIG = b"x" * (FileResponse.chunk_size + 1)


# --- until the last part of the response ------------------------------------------------------


async def http_exception(_: Db) -> None:
    raise HTTPException(418)


async def invalid(_: Db, number: int) -> None:
    raise AssertionError(number)


async def default_value(_: Thing = Leased("db")) -> dict[str, int]:
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


async def nothing(_: Db) -> Response:
    return Response(status_code=204)


class Kind(NamedTuple):
    """A kind of response: the code that sends it, and what the client gets."""

    endpoint: Callable[..., Any]
    status: int = 200
    body: bytes | None = None
    method: str = "GET"
    extensions: tuple[str, ...] = ()


KINDS = {
    "json": Kind(json_async, body=b'{"a":1}'),
    "json by a default value": Kind(default_value, body=b'{"a":1}'),
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


# Before Starlette 1.7, what is inside of BaseHTTPMiddleware runs its background tasks while that still sends the
# response (Starlette's issue 3458): a background task and the end of a lease come in any order there.
HAS_ORDER = tuple(map(int, starlette.__version__.split(".")[:2])) >= (1, 7)
where_background_comes_last = pytest.mark.parametrize(
    "stacking", STACKINGS if HAS_ORDER else [NONE, AROUND], ids=STACKINGS.get
)
for_each_scope = pytest.mark.parametrize(
    "until", [None, "function", "request"], ids=["response", "function", "request"]
)


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


@in_each_stacking
async def test_raising_endpoint_gives_back_before_the_error_page(stacking: Stacking) -> None:
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
    """Not a generator: one whose reader is cut off is never closed, as trio complains."""

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        await anyio.lowlevel.checkpoint()
        return "row"


def fails(_: Thing) -> None:
    raise ConnectionError


@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
@pytest.mark.parametrize("scope", [None, "request"])
async def test_failed_change_of_a_closing_client_is_no_warning(
    scope: Any, spec_version: str, caplog: pytest.LogCaptureFixture
) -> None:
    pool = things(change=fails)
    app = installed(pool)

    @app.get("/")
    async def stream(_: Annotated[Thing, Leased(pool, scope)]) -> StreamingResponse:
        return StreamingResponse(EndlessRows())

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    def hang_up(message: Message) -> None:
        if message["type"] == "http.response.body" and spec_version == "2.4":
            raise OSError

    async with started(app) as served:
        with anyio.fail_after(10), suppress(Exception):
            await ask(served, receive=receive, on_send=hang_up, spec_version=spec_version)
        await anyio.wait_all_tasks_blocked()
        assert pool.stats().discards["change"] == 1
        assert not pool._engine.executor.cut_off
    assert not caplog.records


async def test_without_middleware_an_error_means_a_closing_client(caplog: pytest.LogCaptureFixture) -> None:
    pool = things(change=fails)
    app = FastAPI()

    @app.get("/")
    async def stream(_: Annotated[Thing, Leased(pool, scope="request")]) -> StreamingResponse:
        return StreamingResponse(EndlessRows())

    def hang_up(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise OSError

    async with pool:
        with suppress(Exception):
            await ask(app, on_send=hang_up, spec_version="2.4")
        await anyio.wait_all_tasks_blocked()
        assert pool.stats().discards["change"] == 1
    assert not caplog.records


@pytest.mark.parametrize("ends", ["with its last part", "with an error", "before it begins"])
async def test_failed_change_in_fastapi_scope_is_a_warning(ends: str, caplog: pytest.LogCaptureFixture) -> None:
    """The pool does not warn if the client closes."""
    pool = things(change=fails)
    app = installed(pool)

    async def rows() -> AsyncIterator[str]:
        yield "row"
        if ends == "with an error":
            raise LookupError

    @app.get("/")
    async def stream(_: Annotated[Thing, Leased(pool, scope="request")]) -> StreamingResponse:
        if ends == "before it begins":
            raise ConnectionError
        return StreamingResponse(rows())

    async with started(app) as served:
        with suppress(LookupError, ConnectionError):
            await ask(served)
        await anyio.wait_all_tasks_blocked()
    assert caplog.messages == ["pool 'db': change failed with ConnectionError"]


def test_failed_change_of_a_closed_generator_is_no_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The generator runs in a thread."""
    with things(change=fails) as pool:

        def rows() -> Iterator[Thing]:
            with pool.lease() as thing:
                yield thing

        rows_of_a_stream = rows()
        next(rows_of_a_stream)
        rows_of_a_stream.close()  # type: ignore[attr-defined] # a generator
        assert pool.stats().discards["change"] == 1
    assert not caplog.records


async def test_failed_change_of_a_cancelled_block_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with things(change=fails) as pool:
        async with anyio.create_task_group() as group:

            async def hold() -> None:
                async with pool.lease():
                    await anyio.sleep_forever()

            group.start_soon(hold)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert pool.stats().discards["change"] == 1
        assert not caplog.records
        async with pool.lease():
            pass
        assert caplog.messages == ["pool 'db': change failed with ConnectionError"]


async def test_failed_change_after_a_stream_error_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    pool = things(change=fails)
    app = installed(pool)

    async def rows() -> AsyncIterator[str]:
        yield "row"
        raise LookupError

    @app.get("/")
    async def stream(_: Annotated[Thing, Leased(pool)]) -> StreamingResponse:
        return StreamingResponse(rows())

    async with started(app) as served:
        with pytest.raises(LookupError):
            await ask(served)
        await anyio.wait_all_tasks_blocked()
    assert caplog.messages == ["pool 'db': change failed with ConnectionError"]


@pytest.mark.parametrize("scope", [None, "request"])
async def test_a_lease_may_be_ended_before_a_long_stream(scope: Any) -> None:
    pool = things(limit=1, timeout=0, min_free=1)
    app = installed(pool)
    others: list[Thing] = []

    @app.get("/")
    async def stream(thing: Annotated[Thing, Leased(pool, scope)]) -> StreamingResponse:
        await pool.release(thing)

        async def rows() -> AsyncIterator[str]:
            async with pool.lease() as other:  # in other hands by the end of the response
                others.append(other)
                yield "row"
            others.append(await pool.acquire())

        return StreamingResponse(rows())

    async with started(app) as served:
        assert (await ask(served)).body == b"row"
        assert (pool.taken, pool.stats().acquires) == (1, 3), "the end of the request gives back nothing of others"
        await pool.release(others[1])


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
@in_each_stacking
@for_each_scope
async def test_request_cancelled_at_any_turn_gives_back(
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


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("lease_until", [None, "request"])
async def test_thread_of_a_cancelled_request_keeps_its_resource(lease_until: Any) -> None:
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


# --- the generator scopes ----------------------------------------------------------------------


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
def test_only_fastapi_scopes_are_dependencies_with_yield(until: Any, yields: bool) -> None:  # noqa: FBT001
    dependency: Any = Leased("db", scope=until)
    assert inspect.isasyncgenfunction(type(dependency.dependency).__call__) is yields


async def test_generator_scope_gives_back_when_endpoint_raises() -> None:
    pool = things()
    app = bare(pool)

    @app.get("/")
    async def endpoint(_: Annotated[Thing, Leased(pool, scope="function")]) -> None:
        raise LookupError

    async with started(app) as served:
        with pytest.raises(LookupError):
            await ask(served)
        assert (pool.taken, pool.free) == (0, 1)


async def test_leased_that_is_never_given_back_is_refused() -> None:
    """The error says what to write."""
    pool = things()
    app = bare(pool)
    app.get("/")(json_async)
    async with started(app) as served:
        with pytest.raises(PoolConfigError, match=r"install_pools\(app, pool\)") as error:
            await ask(served)
        assert "add_middleware(PoolMiddleware)" in str(error.value)
        assert 'scope="request"' in str(error.value)
        assert (pool.taken, pool.stats().acquires) == (0, 0)


async def test_middleware_alone_gives_back() -> None:
    """Another lifespan opened the pool."""
    pool = things()
    app = bare(pool)
    app.add_middleware(PoolMiddleware)
    app.get("/")(json_async)
    assert await trace(app, pool) == [("start", 1), (LAST, 0)]
