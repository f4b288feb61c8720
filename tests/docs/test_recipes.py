"""The recipes of docs/recipes.md, word for word, against real servers: HTTP, gRPC, SSH, Chromium and PostgreSQL."""

import ast
import asyncio
import os
import re
import shutil
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import asyncssh
import grpc  # type: ignore[import-untyped] # has no types
import httpx
import playwright.async_api as playwright
import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, OperationalError

import connectionpools_fastapi
from benchmarks.faults.proxy import LOOPBACK, Proxy
from connectionpools_fastapi import ConnectionPool, NotLeased, PoolTimeout, ResourceUnavailable
from connectionpools_fastapi.testing import started
from tests.back_ends import LAST_TICK, SECRET, SOON, Backend, grpc_server, http_server, ssh_server, until
from tests.support import check

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "recipes.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))
PROGRAMS = {
    title: re.findall(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    for title, section in SECTIONS.items()
    if "```" in section
}


@pytest.fixture
def anyio_backend() -> str:
    """All these drivers are of asyncio, or of threads."""
    return "asyncio"


def program(title: str) -> Any:
    """Run the program of a recipe, as importing it does, and return it as a module."""
    (code,) = PROGRAMS[title]
    module = ModuleType("recipe")
    exec(compile(code, f"<recipe: {title}>", "exec"), module.__dict__)  # noqa: S102 - our own page
    return module


def only_pool(module: Any) -> ConnectionPool[Any]:
    (pool,) = (each for each in vars(module).values() if isinstance(each, ConnectionPool))
    return pool


@asynccontextmanager
async def client_of(module: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Run a program's lifespan and ask its application; at the end, nothing may be left."""
    pool = only_pool(module)
    async with (
        started(module.app) as served,
        httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://test") as client,
    ):
        yield client
    assert_closed(pool)


def assert_closed(pool: ConnectionPool[Any]) -> None:
    check(pool)
    stats = pool.stats()
    assert pool.status == "closed"
    assert stats.creates == stats.cleans > 0
    assert stats.acquires == stats.releases


async def cut_off(work: Awaitable[Any], begun: Callable[[], bool]) -> None:
    """Cancel work once it has begun."""
    task = asyncio.ensure_future(work)
    await until(lambda: begun() or task.done())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- the page ---------------------------------------------------------------------------------


def test_page_has_a_short_program_in_each_recipe() -> None:
    """A program fits on a screen."""
    assert list(PROGRAMS) == ["HTTP sessions", "gRPC channels", "SSH", "Models", "Browser pages", "A driver's own pool"]
    for (code,) in PROGRAMS.values():
        ast.parse(code)
        assert len(code.splitlines()) <= 72
        assert max(map(len, code.splitlines())) <= 120


def test_every_place_that_the_page_points_to_exists() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert targets
    for target in targets:
        path, _, anchor = target.partition("#")
        place = PAGE if not path else (ROOT / "docs" / path).read_text()
        headings = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in titles(place)}
        assert not anchor or anchor in headings


def titles(page: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)


# --- HTTP, gRPC and SSH: a server behind a proxy ----------------------------------------------


class Peer:
    """A recipe whose server is behind a proxy."""

    def __init__(self, title: str, module: Any, proxy: Proxy, backend: Backend) -> None:
        self.title = title
        self.module = module
        self.proxy = proxy
        self.backend = backend
        self.pool = only_pool(module)

    async def use(self, resource: Any) -> str:
        """Have the server say something."""
        if self.title == "SSH":
            said: str = await self.module.run(resource, "cat word")
            return said
        if self.title == "gRPC channels":
            peer: bytes = await resource.unary_unary("/ticker.Ticker/Peer")(b"")
            return peer.decode()
        response: httpx.Response = await resource.get("/session")
        return response.raise_for_status().text

    def knows(self, resource: Any) -> bool:
        """Whether a driver has been told that its connection was broken off; httpx looks as it uses one."""
        if self.title == "SSH":
            return bool(resource.is_closed())
        return self.title != "gRPC channels" or resource.get_state() is not grpc.ChannelConnectivity.READY

    async def hang(self, resource: Any) -> None:
        """Ask for what does not come."""
        if self.title == "SSH":
            await self.module.run(resource, "hang")
        elif self.title == "gRPC channels":
            async for message in resource.unary_stream("/ticker.Ticker/Watch")(b"for ever"):
                # From here on: grpc.aio does not end a call that is cancelled before its first message.
                self.backend.seen["hang"] += message == LAST_TICK
        else:
            await resource.get("/hang")


SERVERS: dict[str, Callable[[Backend, Path], Any]] = {
    "HTTP sessions": http_server,
    "gRPC channels": grpc_server,
    "SSH": ssh_server,
}


@asynccontextmanager
async def serving(title: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Peer]:
    backend = Backend()
    (folder / "word").write_text("hello")
    async with SERVERS[title](backend, folder) as port, Proxy(port) as proxy:
        prefix = title.split(maxsplit=1)[0].replace("HTTP", "BACKEND").upper()
        variables = {
            "BACKEND_URL": f"http://{LOOPBACK}:{proxy.port}",
            "BACKEND_USER": "me",
            "BACKEND_PASSWORD": SECRET,
            "GRPC_TARGET": f"{LOOPBACK}:{proxy.port}",
            "SSH_HOST": LOOPBACK,
            "SSH_PORT": str(proxy.port),
            "SSH_USER": "me",
            "SSH_KEY": f"{folder}/key",
            "SSH_KNOWN_HOSTS": f"{folder}/known_hosts",
        }
        for name, value in variables.items():
            if name.startswith(prefix):
                monkeypatch.setenv(name, value)
        yield Peer(title, program(title), proxy, backend)


@pytest.fixture(params=list(SERVERS))
async def peer(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Peer]:
    async with serving(request.param, tmp_path, monkeypatch) as peer:
        yield peer


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    return partial(serving, folder=tmp_path, monkeypatch=monkeypatch)


async def test_each_resource_has_its_own_connection(peer: Peer) -> None:
    """Shutdown closes all of them."""
    async with peer.pool:
        leased = [await peer.pool.acquire() for _ in range(3)]
        for resource in leased:
            await peer.use(resource)
        assert peer.proxy.connections == 3
        for resource in leased:
            await peer.pool.release(resource)
    assert_closed(peer.pool)
    assert peer.backend.sessions == set()  # logged out
    await until(lambda: peer.proxy.connections == 0)


async def test_connection_lost_while_free_is_replaced(peer: Peer) -> None:
    async with peer.pool:
        async with peer.pool.lease() as first:
            said = await peer.use(first)
        peer.proxy.reset()
        await until(lambda: peer.proxy.connections == 0)
        await until(lambda: peer.knows(first))
        async with peer.pool.lease() as second:
            assert (await peer.use(second) == said) is (peer.title != "gRPC channels")
        assert second is not first or peer.title == "HTTP sessions"  # whose session lives on, on a new connection
    assert_closed(peer.pool)


async def test_connection_lost_in_use_fails_only_its_user(peer: Peer) -> None:
    async with peer.pool:
        async with peer.pool.lease() as first:
            task = asyncio.create_task(peer.hang(first))
            await until(lambda: peer.backend.seen["hang"] > 0)
            peer.proxy.reset()
            with pytest.raises((httpx.TransportError, grpc.RpcError, ConnectionError)):
                await task
        if isinstance(first, grpc.aio.Channel):  # it learns on a thread of its own what its call was told already
            await until(lambda: peer.knows(first))
        async with peer.pool.lease() as second:
            await peer.use(second)
    assert_closed(peer.pool)


async def test_cancelled_use_ends_at_server_and_resource_lives_on(peer: Peer) -> None:
    async def leased() -> None:
        async with peer.pool.lease() as resource:
            await peer.hang(resource)

    async with peer.pool:
        await cut_off(leased(), lambda: peer.backend.seen["hang"] > 0)
        assert peer.pool.taken == 0
        await until(lambda: peer.backend.seen["ended"] == 1)
        async with peer.pool.lease() as resource:
            await peer.use(resource)
        assert peer.pool.stats().creates == (2 if peer.title == "SSH" else 1)
    assert_closed(peer.pool)


async def test_silent_server_is_reported_in_time(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The report hides what the driver said; a server that speaks again is used again."""
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(server(title)) for title in SERVERS]
        await asyncio.gather(*(is_silent(peer) for peer in peers))
    said = [record.getMessage() for record in caplog.records if record.name == "connectionpools_fastapi"]
    assert len(said) >= len(peers)
    for words in said:
        assert SECRET not in words
        assert LOOPBACK not in words


async def is_silent(peer: Peer) -> None:
    async with peer.pool:
        peer.proxy.stall()
        with pytest.raises((ResourceUnavailable, PoolTimeout)) as silent:
            await peer.pool.acquire()
        assert isinstance(silent.value.__cause__, (TimeoutError, httpx.TimeoutException))
        assert LOOPBACK not in str(silent.value)
        peer.proxy.resume()
        await peer.use(resource := await acquired(peer.pool))
        await peer.pool.release(resource)
    assert_closed(peer.pool)
    await until(lambda: peer.proxy.connections == 0)


async def acquired(pool: ConnectionPool[Any]) -> Any:
    """Acquire as soon as the pool has seen that its back-end is up again."""
    async with asyncio.timeout(SOON):
        while True:
            try:
                return await pool.acquire()
            except (ResourceUnavailable, PoolTimeout) as error:
                await asyncio.sleep(error.retry_after or 0)


# --- each by itself ---------------------------------------------------------------------------


async def test_http_requests_do_not_share_cookies(server: Any) -> None:
    async with server("HTTP sessions") as peer, client_of(peer.module) as client:
        for _ in range(2):
            assert (await client.get("/report")).json() == '"report after None"'
            await until(lambda: peer.pool.free == 1)
        assert peer.backend.seen["login"] == 1


async def test_http_client_kept_beyond_its_lease_raises(server: Any) -> None:
    async with server("HTTP sessions") as peer, peer.pool as pool:
        async with pool.lease() as kept:
            kept.headers["X-Tenant"] = "one"
            assert (await kept.get("/session")).is_success
        async with pool.lease() as client:
            assert "X-Tenant" not in client.headers
            with pytest.raises(NotLeased):
                await kept.get("/session")
            assert (await client.get("/session")).is_success
        assert peer.backend.seen["login"] == 1


async def test_http_stream_left_open_costs_only_the_session(server: Any) -> None:
    async with server("HTTP sessions") as peer, peer.pool as pool:
        async with pool.lease() as client:
            left = await client.send(client.build_request("GET", "/report"), stream=True)
        async with pool.lease() as client:
            assert (await client.get("/session")).is_success
        assert peer.backend.seen["login"] == 2
        await left.aclose()


async def test_http_a_session_that_has_lapsed_is_replaced(server: Any, later: "Later") -> None:
    async with server("HTTP sessions") as peer, client_of(peer.module) as client:
        assert (await client.get("/report")).status_code == 200
        await until(lambda: peer.pool.free == 1)
        peer.backend.sessions.clear()
        later.seconds += 2  # more than `check_after`
        assert (await client.get("/report")).status_code == 200
        assert peer.backend.seen["login"] == 2


async def test_http_session_lapsed_in_use_fails_one_request(server: Any) -> None:
    async with server("HTTP sessions") as peer, client_of(peer.module) as client:
        assert (await client.get("/report")).status_code == 200
        await until(lambda: peer.pool.free == 1)
        peer.backend.sessions.clear()
        with pytest.raises(httpx.HTTPStatusError):
            await client.get("/report")
        assert (await client.get("/report")).status_code == 200
        assert peer.backend.seen["login"] == 2


class Later:
    """The clock of the pools that programs make: it can be put forward."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.seconds


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    later = Later()

    class Pool(ConnectionPool[Any]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, clock=later, **options)

    monkeypatch.setattr(connectionpools_fastapi, "ConnectionPool", Pool)
    return later


async def test_http_wrong_password_is_refused_without_showing_it(
    server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with server("HTTP sessions") as peer, peer.pool:
        monkeypatch.setenv("BACKEND_PASSWORD", "something-else")
        with pytest.raises(ResourceUnavailable) as refused:
            await peer.pool.acquire()
        assert "HTTPStatusError" in str(refused.value)
        await until(lambda: peer.proxy.connections == 0)
        for said in (str(refused.value), *caplog.messages):
            assert "something-else" not in said


async def test_grpc_stream_keeps_its_channel_and_leaves_nothing(server: Any) -> None:
    async with server("gRPC channels") as peer, client_of(peer.module) as client:
        for _ in range(2):
            assert (await client.get("/ticks")).text == "0\n1\n2\n"
        assert peer.pool.stats().creates == 1


async def test_ssh_command_does_not_see_what_the_last_one_set(server: Any) -> None:
    async with server("SSH") as peer, peer.pool:
        async with peer.pool.lease() as first:
            await peer.module.run(first, "cd / && export WORD=secret && umask 777")
        async with peer.pool.lease() as second:
            assert second is first
            assert await peer.module.run(second, "echo $WORD; cat word") == "\nhello"


async def test_ssh_endpoint_and_background_task_lease_separately(server: Any, tmp_path: Path) -> None:
    async with server("SSH") as peer, client_of(peer.module) as client:
        assert float((await client.get("/uptime")).json().split()[0]) > 0
        assert (await client.post("/restart")).status_code == 202
        assert (tmp_path / "restart.wanted").exists()
        assert peer.pool.stats().acquires == 2


async def test_ssh_failing_command_leaves_connection_unchanged(server: Any) -> None:
    async with server("SSH") as peer, peer.pool:
        with pytest.raises(asyncssh.ProcessError):
            async with peer.pool.lease() as conn:
                await peer.module.run(conn, "exit 7")
        async with peer.pool.lease() as again:
            assert again is conn
            assert await peer.use(again) == "hello"


# --- models -----------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "words").write_text("to be or not to be that is the question")
    monkeypatch.setenv("MODEL_PATH", f"{tmp_path}/words")
    return program("Models")


def model_threads() -> int:
    return sum(thread.name.startswith("model") for thread in threading.enumerate())


async def test_models_request_finds_an_empty_model(models: Any) -> None:
    """Only one thread touches the model."""
    touched = set()

    class Watched(models.Model):  # type: ignore[misc] # the recipe's
        def complete(self, prompt: str) -> str:
            touched.add(threading.get_ident())
            assert self.context == []
            said: str = super().complete(prompt)
            return said

        def forget(self) -> None:
            touched.add(threading.get_ident())
            super().forget()

    models.Model = Watched
    models.models.resize(1)
    async with client_of(models) as client:
        assert models.models.free == 1  # loaded at start-up
        for prompt, word in (("the", "question"), ("or", "not"), ("that", "is")):
            assert (await client.get("/complete", params={"prompt": prompt})).json() == word
        await until(lambda: models.models.free == 1)
        assert len(touched) == model_threads() == 1
    assert model_threads() == 0


async def test_models_cancelled_request_still_finishes(models: Any) -> None:
    """The next request finds the model done and empty."""
    begun, may_end = threading.Event(), threading.Event()

    class Slow(models.Model):  # type: ignore[misc] # the recipe's
        def complete(self, prompt: str) -> str:
            begun.set()
            assert may_end.wait(SOON)
            said: str = super().complete(prompt)
            return said

    models.Model = Slow
    models.models.resize(1)
    async with models.models as pool:

        async def use() -> None:
            async with pool.lease() as worker:
                await worker.complete("the")

        cancelled = asyncio.create_task(use())
        await until(begun.is_set)
        cancelled.cancel()
        await until(lambda: pool.stats().releases == 1)
        following = asyncio.create_task(pool.acquire())
        await until(lambda: pool.waiting == 1)  # no caller gets it while it is busy
        may_end.set()
        worker = await following
        assert worker._model.context == []
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await pool.release(worker)
    assert_closed(pool)
    assert model_threads() == 0


async def test_models_one_that_cannot_forget_is_replaced(models: Any) -> None:
    models.models.resize(1)
    async with models.models as pool:
        async with pool.lease() as first:
            first._model.forget = lambda: 1 / 0
        async with pool.lease() as second:
            assert second is not first
        await until(lambda: model_threads() == 1)
    assert model_threads() == 0
    assert_closed(pool)


# --- browser pages ----------------------------------------------------------------------------


@pytest.fixture
def browser_pages(monkeypatch: pytest.MonkeyPatch) -> Any:
    program_path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if program_path is None:
        pytest.fail("no browser: install chromium, or set CHROMIUM to the path of one")
    monkeypatch.setenv("CHROMIUM", program_path)
    return program("Browser pages")


async def test_pages_one_is_always_ready_and_each_is_used_once(browser_pages: Any) -> None:
    pool = browser_pages.pages
    async with client_of(browser_pages) as client:
        assert pool.free == 1
        for number in (1, 2):
            answer = await client.get(f"/invoices/{number}.pdf")
            assert answer.content.startswith(b"%PDF")
        async with http_server(Backend()) as port:
            for _ in range(2):
                async with pool.lease() as page:
                    assert await page.context.cookies() == []
                    await page.goto(f"http://{LOOPBACK}:{port}/docs")
                    assert await page.evaluate("localStorage.length") == 0
                    await page.evaluate("document.cookie = 'me=1'; localStorage.setItem('me', '1')")
        assert pool.stats().creates >= 4
    assert browser_pages.manager._driver is None


async def test_pages_cancelled_page_closes_and_crash_is_survived(
    browser_pages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser or driver that crashes is replaced."""
    pool = browser_pages.pages
    drivers = []

    async def execute(*words: Any, **options: Any) -> Any:
        drivers.append(await start(*words, **options))
        return drivers[-1]

    start = asyncio.create_subprocess_exec
    monkeypatch.setattr(asyncio, "create_subprocess_exec", execute)
    async with browser_pages.lifespan(browser_pages.app):
        seen: list[Any] = []

        async def hang() -> None:
            async with pool.lease() as page:
                seen.append(page)
                await page.evaluate("new Promise(() => {})")

        await cut_off(hang(), lambda: bool(seen))
        await until(seen[0].is_closed)
        await until(lambda: pool.free == 1)

        async with pool.lease() as page:
            await until(lambda: pool.free == 1)  # what is being made fails, see the page
            crashing = await page.context.browser.new_browser_cdp_session()
            with pytest.raises(playwright.Error, match="closed"):
                await crashing.send("Browser.crash")
            with pytest.raises(playwright.Error, match="closed"):
                await page.evaluate("1")
        async with pool.lease() as page:
            assert await page.evaluate("1 + 1") == 2
            await until(lambda: pool.free == 1)
            drivers[-1].kill()
            with pytest.raises(playwright.Error, match="closed"):
                await page.evaluate("1")
        page = await acquired(pool)
        assert await page.evaluate("1 + 1") == 2
        await pool.release(page)
    assert_closed(pool)


# --- a driver's own pool ----------------------------------------------------------------------


@pytest.fixture
def database(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DATABASE_URL", postgres_url.replace("postgresql://", "postgresql+psycopg://"))
    return program("A driver's own pool")


LEFT_BEHIND = (
    "SET app.me = 'one'",
    "CREATE TEMP TABLE mine AS SELECT 1",
    "SELECT pg_advisory_lock(77)",
    "LISTEN news",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SET ROLE pg_monitor",
)
FOUND = """
    SELECT coalesce(current_setting('app.me', true), ''), to_regclass('pg_temp.mine'),
    current_setting('transaction_read_only'), current_user,
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
    (SELECT count(*) FROM pg_listening_channels())
"""


def test_driver_a_lease_finds_nothing_of_the_one_before(database: Any) -> None:
    with database.db as pool:
        with pool.lease() as conn:
            before = tuple(conn.exec_driver_sql(FOUND).one())
        with pool.lease() as conn:
            for words in LEFT_BEHIND:
                conn.exec_driver_sql(words)
            conn.commit()
            assert tuple(conn.exec_driver_sql(FOUND).one()) != before
        with pool.lease() as conn:
            assert tuple(conn.exec_driver_sql(FOUND).one()) == before
            conn.rollback()
            conn.execution_options(isolation_level="SERIALIZABLE")
        with pool.lease() as conn:
            assert conn.exec_driver_sql("SHOW transaction_isolation").scalar() == "read committed"
            conn.exec_driver_sql("CREATE TEMP TABLE mine ()")
            conn.rollback()  # there is a transaction
            assert tuple(conn.exec_driver_sql(FOUND).one()) == before
        assert pool.stats().creates == 1
    assert_closed(pool)


def test_driver_frequent_statements_outlive_the_reset(database: Any) -> None:
    with database.db as pool:
        for _ in range(3):
            with pool.lease() as conn:
                for number in range(10):
                    assert conn.execute(text("SELECT :number + 1"), {"number": number}).scalar() == number + 1
        assert pool.stats().creates == 1


def test_driver_shutdown_closes_connections_at_server(database: Any) -> None:
    with database.db as pool:
        leased = [pool.acquire_sync() for _ in range(3)]
        pids = [conn.exec_driver_sql("SELECT pg_backend_pid()").scalar() for conn in leased]
        for conn in leased:
            pool.release_sync(conn)
        assert alive(database, pids) == 3
    assert_closed(pool)
    gone_by = time.monotonic() + SOON
    while alive(database, pids) and time.monotonic() < gone_by:
        time.sleep(0.01)
    assert alive(database, pids) == 0


def alive(database: Any, pids: list[int]) -> int:
    with create_engine(database.engine.url, poolclass=NullPool).connect() as conn:
        words = text("SELECT count(*) FROM pg_stat_activity WHERE pid = ANY(:pids)")
        return int(conn.execute(words, {"pids": pids}).scalar_one())


async def test_driver_yield_dependency_commits_before_response(database: Any) -> None:
    """What fails is rolled back."""
    with database.engine.begin() as conn:
        conn.exec_driver_sql("DROP TABLE IF EXISTS note")
        conn.exec_driver_sql("CREATE TABLE note (words text CHECK (words <> 'bad'))")
    seen: list[tuple[int, list[str]]] = []

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        async def see(message: Any) -> None:
            if message["type"] == "http.response.start":
                with database.engine.connect() as conn:
                    notes = conn.exec_driver_sql("SELECT words FROM note").scalars().all()
                seen.append((message["status"], list(notes)))
            await send(message)

        await database.app(scope, receive, see)

    async with (
        database.app.router.lifespan_context(database.app),
        httpx.AsyncClient(transport=httpx.ASGITransport(watched), base_url="http://test") as client,
    ):
        await client.post("/notes", params={"words": "good"})
        with pytest.raises(IntegrityError):
            await client.post("/notes", params={"words": "bad"})
    assert seen == [(200, ["good"]), (500, ["good"])]
    assert_closed(database.db)
    with database.engine.begin() as conn:
        conn.exec_driver_sql("DROP TABLE note")


def test_driver_connection_ended_by_server_is_replaced(later: Later, database: Any) -> None:
    pool = database.db
    with pool:
        with pool.lease() as conn:
            first = conn.exec_driver_sql("SELECT pg_backend_pid()").scalar()
        end(database, first)
        later.seconds += 2
        with pool.lease() as conn:
            second = conn.exec_driver_sql("SELECT pg_backend_pid()").scalar()
            assert second != first
            end(database, second)
            with pytest.raises(OperationalError, match="terminat"):
                conn.exec_driver_sql("SELECT 1")
        with pool.lease() as conn:
            assert conn.exec_driver_sql("SELECT 1").scalar() == 1
    assert_closed(pool)


def end(database: Any, pid: int) -> None:
    with database.engine.connect() as conn:
        conn.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})


def test_driver_wrong_password_is_refused_unshown(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = make_url(postgres_url).set(drivername="postgresql+psycopg", password="something-else")  # noqa: S106 - it is wrong
    monkeypatch.setenv("DATABASE_URL", wrong.render_as_string(hide_password=False))
    with program("A driver's own pool").db as pool, pytest.raises(ResourceUnavailable) as refused:
        pool.acquire_sync()
    assert "OperationalError" in str(refused.value)
    for said in (str(refused.value), *caplog.messages):
        assert "something-else" not in said
