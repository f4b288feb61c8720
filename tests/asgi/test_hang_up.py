"""`Leased(db, on_disconnect="cancel")`: a client that hangs up cancels the work that is done for it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

import anyio
import asyncpg  # type: ignore[import-untyped] # has no types
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy import text

from connectionpools_fastapi import ConnectionPool, Leased, PoolConfigError, install_pools
from connectionpools_fastapi._asgi.hang_up import AT_ONCE, PAUSE, WATCH_AFTER
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager
from connectionpools_fastapi.adapters.psycopg import PsycopgManager
from connectionpools_fastapi.adapters.sqlalchemy import LeasedSession, SqlalchemyManager
from connectionpools_fastapi.testing import started
from tests.asgi.test_disconnect import GONE, Client, Groups, installed, part
from tests.support import loop_time, settled
from tests.web import Answer, Base, Thing, ask, forgets_streams
from tests.web import things as things_of_real_time

things = partial(things_of_real_time, clock=loop_time)
in_virtual_time = [pytest.mark.anyio, pytest.mark.virtual_time, forgets_streams]


def asked(app: FastAPI, client: Client, answers: list[Answer]) -> Callable[[], Any]:
    async def run() -> None:
        answers.append(await ask(app, receive=client.receive))

    return run


async def watched_use() -> None:
    await settled()
    await anyio.sleep(WATCH_AFTER)
    await settled()


class TestInVirtualTime:
    """On asyncio and trio, with clients that hang up at a known moment."""

    pytestmark = in_virtual_time

    @pytest.mark.parametrize("inside", [(), (Base,), (Groups,)], ids=["", "base", "groups"])
    @pytest.mark.parametrize("around", [(), (Base,)], ids=["", "base"])
    @pytest.mark.parametrize("scope", [None, "function"])
    async def test_hang_up_cancels_the_endpoint(self, scope: Any, inside: Any, around: Any, caplog: Any) -> None:
        pool = things(1)
        app = installed(pool, inside=inside, around=around)
        ended: list[str] = []

        @app.get("/")
        async def endpoint(_: Annotated[Thing, Leased(pool, scope, on_disconnect="cancel")]) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append("cancelled")

        answers: list[Answer] = []
        with anyio.fail_after(10), Client(part()) as client:
            async with started(app), anyio.create_task_group() as group:
                group.start_soon(asked(app, client, answers))
                await watched_use()
                assert pool.taken == 1
                client.send(GONE)
                await settled()
                assert (ended, pool.taken, answers[0].status) == (["cancelled"], 0, 499)
        assert caplog.messages == []
        assert client.receiving == 0

    async def test_client_gone_before_the_watch_is_noticed(self) -> None:
        pool = things(1)
        app = installed(pool)

        @app.get("/")
        async def endpoint(_: Annotated[Thing, Leased(pool, on_disconnect="cancel")]) -> None:
            await anyio.sleep_forever()

        with anyio.fail_after(10), Client(part(), GONE) as client:
            async with started(app):
                assert (await ask(app, receive=client.receive)).status == 499
                assert pool.taken == 0

    async def test_a_short_use_is_not_watched(self) -> None:
        pool = things(1)
        app = installed(pool)

        @app.get("/")
        async def endpoint(_: Annotated[Thing, Leased(pool, on_disconnect="cancel")]) -> str:
            await anyio.sleep(WATCH_AFTER / 2)
            return "done"

        with anyio.fail_after(10), Client(part(), GONE) as client:
            async with started(app):
                assert (await ask(app, receive=client.receive)).status == 200
                await watched_use()
                assert client.received == 0

    async def test_without_the_option_the_endpoint_goes_on(self) -> None:
        pool = things(1)
        app = installed(pool)

        @app.get("/")
        async def endpoint(_: Annotated[Thing, Leased(pool)]) -> str:
            await anyio.sleep(1)
            return "done"

        with anyio.fail_after(10), Client(part(), GONE) as client:
            async with started(app):
                assert (await ask(app, receive=client.receive)).status == 200

    async def test_few_cancels_are_under_way_at_once(self) -> None:
        pool = things(3 * AT_ONCE)
        app = installed(pool)

        @app.get("/")
        async def endpoint(_: Annotated[Thing, Leased(pool, on_disconnect="cancel")]) -> None:
            await anyio.sleep_forever()

        answers: list[Answer] = []
        with anyio.fail_after(10), Client(part()) as client:
            async with started(app), anyio.create_task_group() as group:
                for _ in range(3 * AT_ONCE):
                    group.start_soon(asked(app, client, answers))
                await watched_use()
                for _ in range(3 * AT_ONCE):
                    client.send(GONE)
                for turn in range(1, 4):
                    await settled()
                    assert len(answers) == turn * AT_ONCE
                    await anyio.sleep(PAUSE)
                assert (pool.taken, pool.free) == (0, 3 * AT_ONCE)

    async def test_stream_goes_on_after_its_endpoint(self) -> None:
        pool = things(1)
        app = installed(pool)

        async def parts() -> AsyncIterator[str]:
            for _ in range(3):
                await anyio.sleep(1)
                yield "part"

        @app.get("/")
        async def endpoint(_: Annotated[Thing, Leased(pool, on_disconnect="cancel")]) -> StreamingResponse:
            await anyio.sleep(2 * WATCH_AFTER)
            return StreamingResponse(parts())

        with anyio.fail_after(10):
            async with started(app):
                assert (await ask(app)).body == b"partpartpart"
                assert pool.taken == 0


@pytest.mark.anyio
async def test_def_endpoint_runs_to_its_end() -> None:
    pool = things_of_real_time(1)
    app = installed(pool)

    @app.get("/")
    def endpoint(_: Annotated[Thing, Leased(pool, on_disconnect="cancel")]) -> str:
        time.sleep(2 * WATCH_AFTER)  # on a worker thread, where time is real
        return "done"

    with anyio.fail_after(10), Client(part(), GONE) as client:
        async with started(app):
            assert (await ask(app, receive=client.receive)).status == 200
            assert pool.taken == 0


@pytest.mark.parametrize("options", [{"on_disconnect": "stop"}, {"on_disconnect": "cancel", "scope": "request"}])
def test_options_that_cannot_work_are_refused(options: Any) -> None:
    with pytest.raises(PoolConfigError, match="on_disconnect"):
        Leased("db", **options)


# --- real servers -----------------------------------------------------------------------------

MARK = "/* hang-up */"
RUNNING = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%' || $1 AND state = 'active'"
QUERY = f"SELECT pg_sleep(60) {MARK}"


async def on_asyncpg(conn: Any, query: str) -> None:
    await conn.fetchval(query)


async def on_psycopg(conn: Any, query: str) -> None:
    await conn.execute(query)


async def on_sqlalchemy(conn: Any, query: str) -> None:
    await conn.exec_driver_sql(query)


async def on_session(session: Any, query: str) -> None:
    await session.execute(text(query))


def with_sqlalchemy(url: str) -> SqlalchemyManager:
    return SqlalchemyManager(url.replace("postgresql", "postgresql+asyncpg", 1))


DRIVERS: dict[str, tuple[Callable[[str], Any], Any, Callable[[Any, str], Any]]] = {
    "asyncpg": (AsyncpgManager, Leased, on_asyncpg),
    "psycopg": (PsycopgManager, Leased, on_psycopg),
    "sqlalchemy": (with_sqlalchemy, Leased, on_sqlalchemy),
    "session": (with_sqlalchemy, LeasedSession, on_session),
}


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[int]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve())

        async def has_started() -> bool:
            return server.started

        await until(has_started)
        try:
            yield server.servers[0].sockets[0].getsockname()[1]
        finally:
            server.should_exit = True


async def until(reached: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not await reached():  # noqa: ASYNC110 - only the server knows
            await asyncio.sleep(0.01)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("driver", DRIVERS)
async def test_hang_ups_end_queries_on_the_server(driver: str, postgres_url: str) -> None:
    manager, leased, execute = DRIVERS[driver]
    clients = 2 * AT_ONCE
    pool: ConnectionPool[Any] = ConnectionPool(manager(postgres_url), limit=clients, name="db")
    app = FastAPI()
    install_pools(app, pool)

    @app.get("/slow")
    async def slow(conn: Annotated[Any, leased(pool, on_disconnect="cancel")]) -> None:
        await execute(conn, QUERY)

    @app.get("/quick")
    async def quick(conn: Annotated[Any, leased(pool)]) -> str:
        await execute(conn, "SELECT 1")
        return "done"

    watch = await asyncpg.connect(postgres_url)
    try:
        async with serving(app) as port:
            writers = []
            for _ in range(clients):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /slow HTTP/1.1\r\nHost: test\r\n\r\n")
                writers.append(writer)

            async def run(count: int) -> bool:
                return bool(await watch.fetchval(RUNNING, MARK) == count)

            await until(partial(run, clients))
            for writer in writers:
                writer.transport.abort()
            async with asyncio.timeout(2):
                await until(partial(run, 0))
            for _ in range(clients):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /quick HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
                assert (await reader.read()).startswith(b"HTTP/1.1 200")
                writer.close()

            async def given_back() -> bool:
                return pool.taken == 0

            await until(given_back)
    finally:
        await watch.close()
