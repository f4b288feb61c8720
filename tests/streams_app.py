"""A service whose streams are left by their clients while others write; DRIVER, ADDRESS and RESET say what it uses."""

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from connectionpools_fastapi import ConnectionPool, Leased, ResourceManager, install_pools

ADDRESS = os.environ["ADDRESS"]
RESET: Any = os.environ["RESET"]
PART = "x" * 20_000
LIMIT = 3

Write = Callable[[Any, int], Awaitable[None]]


async def in_between() -> None:
    """Give other requests the time to use what an earlier lease has left them."""
    await asyncio.sleep(0.002)


def of_asyncpg() -> tuple[ResourceManager[Any], Any, Write, Any]:
    from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager  # noqa: PLC0415

    async def rows(conn: Any) -> AsyncIterator[str]:
        async with conn.transaction():
            async for row in conn.cursor("SELECT $1::text FROM generate_series(1, 100000)", PART, prefetch=10):
                yield row[0]

    async def write(conn: Any, number: int) -> None:
        async with conn.transaction():
            await conn.execute("INSERT INTO writes VALUES ($1, 1)", number)
            await in_between()
            await conn.execute("INSERT INTO writes VALUES ($1, 2)", number)

    async def read(conn: Any) -> list[Any]:
        return [tuple(row) for row in await conn.fetch("SELECT number, count(*) FROM writes GROUP BY number")]

    return AsyncpgManager(ADDRESS, reset=RESET), rows, write, read


def of_psycopg() -> tuple[ResourceManager[Any], Any, Write, Any]:
    from connectionpools_fastapi.adapters.psycopg import PsycopgManager  # noqa: PLC0415

    async def rows(conn: Any) -> AsyncIterator[str]:
        async with conn.transaction(), conn.cursor("rows") as cursor:
            cursor.itersize = 10
            await cursor.execute("SELECT %s::text FROM generate_series(1, 100000)", (PART,))
            async for row in cursor:
                yield row[0]

    async def write(conn: Any, number: int) -> None:
        async with conn.transaction():
            await conn.execute("INSERT INTO writes VALUES (%s, 1)", (number,))
            await in_between()
            await conn.execute("INSERT INTO writes VALUES (%s, 2)", (number,))

    async def read(conn: Any) -> list[Any]:
        found = await conn.execute("SELECT number, count(*) FROM writes GROUP BY number")
        return [tuple(row) for row in await found.fetchall()]

    return PsycopgManager(ADDRESS, reset=RESET), rows, write, read


def of_sqlalchemy() -> tuple[ResourceManager[Any], Any, Write, Any]:
    from sqlalchemy import text  # noqa: PLC0415

    from connectionpools_fastapi.adapters.sqlalchemy import SqlalchemyManager  # noqa: PLC0415

    many = text(
        "WITH RECURSIVE many(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM many WHERE n < 100000) "
        "SELECT CAST(:part AS text) FROM many"
    )
    insert = text("INSERT INTO writes VALUES (:number, :part)")

    async def rows(conn: Any) -> AsyncIterator[str]:
        async with conn.begin(), conn.stream(many, {"part": PART}) as result:
            async for row in result:
                yield row[0]

    async def write(conn: Any, number: int) -> None:
        async with conn.begin():
            await conn.execute(insert, {"number": number, "part": 1})
            await in_between()
            await conn.execute(insert, {"number": number, "part": 2})

    async def read(conn: Any) -> list[Any]:
        found = await conn.execute(text("SELECT number, count(*) FROM writes GROUP BY number"))
        return [tuple(row) for row in found]

    return SqlalchemyManager(ADDRESS, reset=RESET), rows, write, read


def of_aiosqlite() -> tuple[ResourceManager[Any], Any, Write, Any]:
    from connectionpools_fastapi.adapters.aiosqlite import AiosqliteManager  # noqa: PLC0415

    many = "WITH RECURSIVE many(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM many WHERE n < 100000) SELECT ? FROM many"

    async def rows(conn: Any) -> AsyncIterator[str]:
        try:
            async with conn.execute(many, (PART,)) as cursor:
                async for row in cursor:
                    yield row[0]
        finally:
            await conn.rollback()  # as careful code does, and long after its lease

    async def write(conn: Any, number: int) -> None:
        await conn.execute("INSERT INTO writes VALUES (?, 1)", (number,))
        await in_between()
        await conn.execute("INSERT INTO writes VALUES (?, 2)", (number,))
        await conn.commit()

    async def read(conn: Any) -> list[Any]:
        found = await conn.execute("SELECT number, count(*) FROM writes GROUP BY number")
        return [tuple(row) for row in await found.fetchall()]

    return AiosqliteManager(ADDRESS, reset=RESET), rows, write, read


def of_redis() -> tuple[ResourceManager[Any], Any, Write, Any]:
    from connectionpools_fastapi.adapters.redis import RedisManager  # noqa: PLC0415

    async def rows(client: Any) -> AsyncIterator[str]:
        async with client.pubsub() as heard:
            await heard.subscribe("test:parts")
            while True:
                yield PART

    async def write(client: Any, number: int) -> None:
        async with client.pipeline(transaction=True) as pipeline:
            await pipeline.watch("test:none")
            pipeline.multi()
            pipeline.hincrby("test:writes", str(number), 1)
            await in_between()
            pipeline.hincrby("test:writes", str(number), 1)
            await pipeline.execute()

    async def read(client: Any) -> list[Any]:
        return [(int(number), int(parts)) for number, parts in (await client.hgetall("test:writes")).items()]

    return RedisManager(ADDRESS, reset=RESET), rows, write, read


manager, rows_of, write_to, read_from = globals()[f"of_{os.environ['DRIVER']}"]()
db: ConnectionPool[Any] = ConnectionPool(manager, limit=LIMIT, timeout=30, name="db")
app = FastAPI()
install_pools(app, db)
Db = Annotated[Any, Leased(db)]
# Some of the streams that were left are closed much later, as where a traceback or a cycle keeps them.
kept: deque[AsyncIterator[str]] = deque(maxlen=3)


@app.middleware("http")  # whatever runs inside of it is not cancelled as its client leaves
async def around(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    return await call_next(request)


@app.get("/stream")
async def stream(conn: Db) -> StreamingResponse:
    rows = rows_of(conn)
    kept.append(rows)
    return StreamingResponse(rows)


@app.post("/write/{number}")
async def write(number: int, conn: Db) -> None:
    await write_to(conn, number)


@app.get("/writes")
async def writes(conn: Db) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = await read_from(conn)
    return found
