"""guard: what it finds in requests, and what it leaves alone."""

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import httpx
import pytest
import requests
from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import StreamingResponse

from benchmarks.faults.proxy import LOOPBACK
from connectionpools_fastapi import ConnectionPool, Leased, NotLeased, PoolConfigError, install_pools
from connectionpools_fastapi.adapters.aiosqlite import AiosqliteManager
from connectionpools_fastapi.testing import GuardError, guard, started
from tests.wheel_servers import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.needs_python]
HERE = Path(__file__).name


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def make_tables(conn: Any) -> None:
    conn.execute("CREATE TABLE IF NOT EXISTS notes (n int)")


async def parts() -> AsyncIterator[str]:
    for part in "abc":
        yield part


def application(path: Path, limit: int = 4) -> FastAPI:  # noqa: C901 - one route for each kind
    db = ConnectionPool(
        AiosqliteManager(path / "app.db", init=make_tables), limit=limit, min_free=limit, close_timeout=0.5, name="db"
    )
    app = FastAPI()
    install_pools(app, db)
    Db = Annotated[Any, Leased(db)]  # noqa: N806 - a type
    app.state.kept = []
    transport = httpx.MockTransport(lambda _: httpx.Response(200))

    @app.get("/stream")
    async def stream(_: Db) -> StreamingResponse:
        return StreamingResponse(parts())

    @app.get("/outlives")
    async def outlives() -> None:
        app.state.kept.append(await db.acquire())

    @app.get("/lost")
    async def lost() -> None:
        async def drop() -> None:
            await db.acquire()

        await asyncio.create_task(drop())

    @app.get("/late")
    async def late() -> None:
        async with db.lease() as conn:
            pass
        with pytest.raises(NotLeased):
            await conn.execute("SELECT 1")

    @app.get("/second")
    async def second(_: Db) -> None:
        async with db.lease():
            pass

    @app.get("/outbound")
    async def outbound(_: Db) -> None:
        async with httpx.AsyncClient(transport=transport) as client:
            await client.get("http://other.example/")

    async def later() -> None:
        async with db.lease():
            pass

    @app.get("/well")
    async def well(conn: Db, background: BackgroundTasks) -> None:
        await conn.execute("INSERT INTO notes VALUES (1)")
        await conn.commit()
        background.add_task(later)

    @app.get("/well/stream")
    async def stream_well() -> StreamingResponse:
        async with db.lease():
            pass
        async with httpx.AsyncClient(transport=transport) as client:
            await client.get("http://other.example/")
        return StreamingResponse(parts())

    return app


async def ask(app: FastAPI, path: str, allow: Any = None, status: int = 200) -> guard:
    async with started(app) as served, httpx.AsyncClient(transport=httpx.ASGITransport(served)) as client:
        look = guard(allow=allow)
        try:
            with look:
                assert (await client.get(f"http://test{path}")).status_code == status
                gc.collect()
        finally:
            pool = next(iter(app.state.kept), None)
            if pool is not None:
                await pool.close()  # of aiosqlite: so that the application can end
        return look


@pytest.mark.parametrize("kind", ["stream", "outlives", "late", "second", "outbound"])
async def test_finding_names_route_and_place(kind: Any, tmp_path: Path) -> None:
    app = application(tmp_path)
    expected = rf'^pool .db.: GET /{kind} .*{HERE}, line \d+, in {kind}\). .*pool_guard_allow\("{kind}"'
    with pytest.raises(GuardError, match=expected) as caught:
        await ask(app, f"/{kind}")
    assert str(caught.value).count("\n") == 0


async def by_aiohttp(url: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(url):
        pass


async def by_requests(url: str) -> None:
    await asyncio.to_thread(requests.get, url, timeout=1)


@pytest.mark.parametrize("call", [by_aiohttp, by_requests])
async def test_call_by_each_client_is_found(call: Any, tmp_path: Path) -> None:
    app = application(tmp_path)

    @app.get("/call")
    async def endpoint(_: Annotated[Any, Leased("db")]) -> None:
        with pytest.raises((aiohttp.ClientError, requests.ConnectionError)):
            await call(f"http://{LOOPBACK}:{free_port()}/")

    with pytest.raises(GuardError, match="GET /call makes an HTTP call while it holds a lease"):
        await ask(app, "/call")


async def test_lost_lease_is_found(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match=rf"GET /lost has dropped a lease .*{HERE}.* in drop"):
        await ask(application(tmp_path), "/lost")


async def test_second_lease_that_pool_refuses_is_found(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match=rf"GET /second takes a second lease .*{HERE}"):
        await ask(application(tmp_path, limit=1), "/second", status=503)


@pytest.mark.parametrize("path", ["/well", "/well/stream"])
async def test_nothing_is_found_where_all_is_well(path: str, tmp_path: Path) -> None:
    assert (await ask(application(tmp_path), path)).findings == []


async def test_what_is_allowed_is_no_finding(tmp_path: Path) -> None:
    app = application(tmp_path)
    assert (await ask(app, "/stream", {"stream": "it reads while it sends"})).findings == []
    with pytest.raises(GuardError, match="second lease"):
        await ask(app, "/second", {"stream": "it reads while it sends"})


async def test_error_of_block_comes_first(tmp_path: Path) -> None:
    app = application(tmp_path)
    look = guard()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the end of the block raises
        async with started(app) as served, httpx.AsyncClient(transport=httpx.ASGITransport(served)) as client:
            with look:
                await client.get("http://test/second")
                raise ZeroDivisionError
    assert [finding.kind for finding in look.findings] == ["second"]


async def test_after_guard_nothing_looks_on(tmp_path: Path) -> None:
    before = httpx.AsyncClient.send
    with pytest.raises(GuardError):
        await ask(application(tmp_path), "/second")
    assert httpx.AsyncClient.send is before


@pytest.mark.parametrize(
    ("allow", "told"), [({"streams": "why"}, "no kind of finding"), ({"stream": " "}, "is allowed with a reason")]
)
def test_bad_allowance_is_refused(allow: Any, told: str) -> None:
    with pytest.raises(PoolConfigError, match=told):
        guard(allow=allow)


def test_second_guard_is_refused() -> None:
    with guard(), pytest.raises(PoolConfigError, match="one looks on already"), guard():
        pass
