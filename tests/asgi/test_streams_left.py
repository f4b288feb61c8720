"""Streams that clients leave, on a real server: what they keep in hand does no harm to the writes of others."""

import asyncio
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import redis

from tests.processes import Process

pytestmark = pytest.mark.anyio

WRITES = 100
LEAVERS = 3
WRITERS = 4
SERVED = re.compile(r"running on http://127\.0\.0\.1:(\d+)")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Yield where a driver finds an empty table of writes."""
    table = "CREATE TABLE writes (number int, part int)"
    scheme = request.param
    if scheme == "redis":
        url: str = request.getfixturevalue("redis_url")
        with closing(redis.Redis.from_url(url)) as client:
            client.delete("test:writes")
            yield url
            client.delete("test:writes")
    elif "sqlite" in scheme:
        path = tmp_path / "writes.db"
        with closing(sqlite3.connect(path)) as database:
            database.execute(table)
        yield f"{scheme}:///{path}" if "+" in scheme else str(path)
    else:
        url = request.getfixturevalue("postgres_url")
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("DROP TABLE IF EXISTS writes")
            conn.execute(table)
            yield url.replace("postgresql", scheme, 1)
            conn.execute("DROP TABLE writes")


async def leave_streams(port: int) -> None:
    """Ask for one stream after the other, and leave each after some of its parts."""
    for number in count():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\n")
            with suppress(ConnectionError):
                for _ in range(1 + number % 3):
                    await reader.read(30_000)
        finally:
            writer.transport.abort()


@pytest.mark.parametrize(
    ("driver", "address", "reset"),
    [
        ("asyncpg", "postgresql", "session"),
        ("asyncpg", "postgresql", "transaction"),
        ("psycopg", "postgresql", "session"),
        ("sqlalchemy", "postgresql+asyncpg", "session"),
        ("sqlalchemy", "postgresql+psycopg", "transaction"),
        ("sqlalchemy", "sqlite+aiosqlite", "session"),
        ("aiosqlite", "sqlite", "session"),
        ("redis", "redis", "session"),
    ],
    indirect=["address"],
)
async def test_streams_left_do_not_harm_writes(driver: str, address: str, reset: str) -> None:
    command = ("uvicorn", "tests.streams_app:app", "--port", "0", "--timeout-graceful-shutdown", "1")
    environment = {**os.environ, "DRIVER": driver, "ADDRESS": address, "RESET": reset}
    answers: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder, Process(Path(folder), command, environment) as server:
        await asyncio.to_thread(server.wait_until, lambda: SERVED.search(server.log) is not None)
        found = SERVED.search(server.log)
        assert found, server.log
        port = int(found[1])
        left = [asyncio.create_task(leave_streams(port)) for _ in range(LEAVERS)]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            numbers = iter(range(WRITES))

            async def write() -> None:
                for number in numbers:
                    answers[number] = (await client.post(f"/write/{number}")).status_code

            async with asyncio.TaskGroup() as writers:
                for _ in range(WRITERS):
                    writers.create_task(write())
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            written: list[Any] = (await client.get("/writes")).json()
        log = server.log
    assert answers == dict.fromkeys(range(WRITES), 200)
    assert dict(written) == dict.fromkeys(range(WRITES), 2)
    assert "closing connection" not in log, "any client can have a driver write this line, as often as it likes"
