"""Both drivers of MySQL, under the same words, for tests of their managers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import aiomysql  # type: ignore[import-untyped] # has no types
import asyncmy  # type: ignore[import-untyped, unused-ignore]
import asyncmy.cursors  # type: ignore[import-untyped, unused-ignore]
import asyncmy.errors  # type: ignore[import-untyped, unused-ignore]
import pytest

from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi.adapters import aiomysql as of_aiomysql
from connectionpools_fastapi.adapters import asyncmy as of_asyncmy
from tests.mariadb_servers import MariadbServer
from tests.wires import Proxy, proxied

SOON = 10.0


@dataclass(frozen=True)
class Driver:
    name: str
    module: Any  # of our adapter
    manager: Any
    connect: Any
    errors: Any
    unbuffered: Any  # its SSCursor
    cursor_option: str

    def __str__(self) -> str:
        return self.name


DRIVERS = [
    Driver(
        "aiomysql",
        of_aiomysql,
        of_aiomysql.AiomysqlManager,
        aiomysql.connect,
        aiomysql,
        aiomysql.SSCursor,
        "cursorclass",
    ),
    Driver(
        "asyncmy",
        of_asyncmy,
        of_asyncmy.AsyncmyManager,
        asyncmy.connect,
        asyncmy.errors,
        asyncmy.cursors.SSCursor,
        "cursor_cls",
    ),
]


async def rows(connection: Any, query: str) -> list[Any]:
    """Execute a query, on the connection of either driver; return its rows."""
    async with connection.cursor() as cursor:
        await cursor.execute(query)
        return list(await cursor.fetchall())


async def value(connection: Any, query: str) -> Any:
    """Return the only value that a query gives."""
    (row,) = await rows(connection, query)
    return row[0]


@asynccontextmanager
async def outside(url: str) -> AsyncIterator[Any]:
    """Connect from outside of the pool."""
    parts = urlsplit(url)
    connection = await aiomysql.connect(
        host=parts.hostname,
        port=parts.port,
        user=parts.username,
        password=parts.password or "",
        db="test",
        autocommit=True,
    )
    try:
        yield connection
    finally:
        connection.close()


async def sessions(root: Any, text: str = "") -> set[int]:
    """Return the numbers of the sessions, of others than root, whose statement has a text in it."""
    found = await rows(root, "SELECT id, user, info FROM information_schema.processlist")
    return {session for session, user, info in found if user != "root" and text in (info or "")}


async def until_runs(root: Any, text: str, sessions_of_it: int = 1) -> set[int]:
    """Wait until a statement with a text in it runs in so many sessions; return their numbers."""
    async with asyncio.timeout(SOON):
        while len(found := await sessions(root, text)) < sessions_of_it:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.002)
    return found


async def time_to_end(root: Any, *ending: int) -> float:
    """Wait until sessions have ended; return how long that took, in seconds."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(SOON):
        while not (await sessions(root)).isdisjoint(ending):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.002)
    return loop.time() - began


async def end(root: Any, session: int) -> None:
    """End a session, unless it has ended already: a server looks every few seconds whether its client is there."""
    with suppress(aiomysql.OperationalError):
        await rows(root, f"KILL {session}")


# --- what the tests of the managers share ----------------------------------------------------------

Reset = Literal["session", "transaction"]
RESETS: list[Reset] = ["session", "transaction"]
WRITE = "INSERT INTO kept VALUES (1)"
FOR_A_MINUTE = "SELECT sleep(60)"
ENDED = r"pool 'db': .* after its lease had ended, and nothing was sent"
AT_ONCE = 1.0  # seconds, for what takes 0.1 s on a machine with nothing else to do


@pytest.fixture(name="driver", params=DRIVERS, ids=str)
def fixture_driver(request: pytest.FixtureRequest) -> Driver:
    driver: Driver = request.param
    return driver


@pytest.fixture(name="url")
def fixture_url(mariadb_server: MariadbServer) -> str:
    return mariadb_server.url


@pytest.fixture(name="root")
async def fixture_root(mariadb_server: MariadbServer) -> AsyncIterator[Any]:
    """Yield a connection from outside of the pool, and two tables, `kept (n int)` and `other`."""
    async with outside(mariadb_server.root_url) as connection:
        for name in ("kept", "other"):
            await rows(connection, f"CREATE OR REPLACE TABLE {name} (n int) ENGINE InnoDB")
        yield connection


@pytest.fixture(name="proxy")
async def fixture_proxy(mariadb_server: MariadbServer) -> AsyncIterator[Proxy]:
    async with proxied(mariadb_server.url) as proxy:
        yield proxy


def pool_of(manager: Any, **options: Any) -> ConnectionPool[Any]:
    return ConnectionPool(manager, **{"limit": 1, "name": "db", **options})
