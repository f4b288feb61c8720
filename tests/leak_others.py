"""Databases and brokers of the leak matrix whose sessions are no MySQL's and no PostgreSQL's."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aio_pika
import aiosqlite
from redis.asyncio import Redis

from tests.leak_drivers import Driver, ask_psycopg
from tests.leak_servers import Leftover, Server

# --- SQLite -----------------------------------------------------------------------------------------


async def made_by_aiosqlite(connection: Any) -> Callable[[], Awaitable[Any]]:
    cursor = await connection.execute("SELECT 1")
    return partial(cursor.execute, "SELECT 2")


@asynccontextmanager
async def outside_sqlite(url: str) -> AsyncIterator[Any]:
    async with aiosqlite.connect(sqlite_path(url)) as connection:
        yield connection
        await connection.commit()


def sqlite_path(url: str) -> str:
    return url.partition("///")[2]


AIOSQLITE = Driver(ask_psycopg, made_by_aiosqlite, lambda connection: connection.commit())  # in the same words
SQLITE = Server(
    AIOSQLITE,
    outside_sqlite,
    {
        "rows that were not committed": Leftover(
            "INSERT INTO left_behind VALUES (1)", "SELECT count(*) FROM left_behind", of_session=False
        ),
        "a lock (BEGIN EXCLUSIVE)": Leftover("BEGIN EXCLUSIVE", "BEGIN", of_session=False, tells_by_error=True),
        "a setting (query_only)": Leftover("PRAGMA query_only = on", "PRAGMA query_only"),
        "a setting (busy_timeout)": Leftover(
            "PRAGMA busy_timeout = 7", "PRAGMA busy_timeout", lambda value: value == 7
        ),
        "a setting (case_sensitive_like)": Leftover("PRAGMA case_sensitive_like = on", "SELECT 'a' NOT LIKE 'A'"),
        "a temporary table": Leftover("CREATE TEMP TABLE mine (n int)", "SELECT count(*) FROM sqlite_temp_schema"),
        "an attached database": Leftover(
            "ATTACH ':memory:' AS mine", "SELECT count(*) FROM pragma_database_list WHERE name = 'mine'"
        ),
    },
    version="SELECT sqlite_version()",
    tidy="DELETE FROM left_behind",
    prepare=("CREATE TABLE IF NOT EXISTS left_behind (n int)",),
)

# --- Redis ------------------------------------------------------------------------------------------


async def ask_redis(client: Any, command: str) -> Any:
    answer = await client.execute_command(*command.split())
    return answer.decode() if isinstance(answer, bytes) else answer


async def made_by_redis(client: Any) -> Callable[[], Awaitable[Any]]:
    pipeline = client.pipeline()
    await pipeline.get("left-behind").execute()

    async def use() -> Any:
        return await pipeline.get("left-behind").execute()

    return use


@asynccontextmanager
async def outside_redis(url: str) -> AsyncIterator[Any]:
    async with Redis.from_url(url) as client:
        yield client


def has(mark: str) -> Callable[[Any], bool]:
    return lambda answer: mark in str(answer)


def blocked(clients: str) -> int | None:
    """Find the client that BLPOP holds up."""
    lines = [dict(part.partition("=")[::2] for part in line.split()) for line in clients.splitlines()]
    return next((int(line["id"]) for line in lines if line["cmd"] == "blpop"), None)


REDIS = Server(
    Driver(ask_redis, made_by_redis),
    outside_redis,
    {
        "the database (SELECT)": Leftover("SELECT 1", "CLIENT INFO", has("db=1")),
        "the name (CLIENT SETNAME)": Leftover("CLIENT SETNAME mine", "CLIENT GETNAME", has("mine")),
        "the user (AUTH)": Leftover("AUTH test:leaks open", "ACL WHOAMI", has("test:leaks")),
        "an open MULTI": Leftover("MULTI", "GET left-behind", has("QUEUED"), of_session=False),
    },
    session="CLIENT ID",
    seven="ECHO 7",
    version="INFO server",
    sleep="BLPOP nothing-there 60",
    sleeper="CLIENT LIST",
    sleeps_in=blocked,
    end="CLIENT KILL ID {}",
    prepare=("ACL SETUSER test:leaks on >open ~* +@all",),
)

# --- RabbitMQ, whose statements are functions of a channel ------------------------------------------

QUEUE = "test-leaks"


async def act(channel: Any, deed: Callable[[Any], Awaitable[Any]]) -> Any:
    return await deed(channel)


async def queue_of(channel: Any) -> Any:
    return await channel.declare_queue(QUEUE)


async def consume(channel: Any) -> None:
    async def take(message: Any) -> None: ...

    await (await queue_of(channel)).consume(take)


async def get(channel: Any) -> Any:
    queue = await queue_of(channel)
    await channel.default_exchange.publish(aio_pika.Message(b"hello"), routing_key=QUEUE)
    return await queue.get()


async def fail(channel: Any) -> None:
    await channel.declare_queue("test-not-there", passive=True)


async def has_consumers(channel: Any) -> bool:
    return bool((await queue_of(channel)).declaration_result.consumer_count)


async def gets_nothing(channel: Any) -> bool:
    return await (await queue_of(channel)).get(fail=False) is None


async def seven(channel: Any) -> int:
    await queue_of(channel)
    return 7


async def version(channel: Any) -> Any:
    return (await channel.get_underlay_channel()).connection.server_properties["version"]


async def delete(channel: Any) -> None:
    await channel.queue_delete(QUEUE)


async def made_by_aio_pika(channel: Any) -> Callable[[], Awaitable[Any]]:
    queue = await queue_of(channel)
    return partial(queue.get, fail=False)


@asynccontextmanager
async def outside_rabbitmq(url: str) -> AsyncIterator[Any]:
    async with await aio_pika.connect(url) as connection, connection.channel() as channel:
        yield channel


RABBITMQ = Server(
    Driver(act, made_by_aio_pika),
    outside_rabbitmq,
    {
        "a consumer": Leftover(consume, has_consumers),
        "a message that was not acknowledged": Leftover(get, gets_nothing),
        "a channel that the server has closed": Leftover(fail, seven, lambda _: False, tells_by_error=True),
    },
    seven=seven,
    version=version,
    tidy=delete,
)
