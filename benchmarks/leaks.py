"""The leak matrix: what a lease leaves for the next one, with our managers and with the drivers' own pools.

`python -m benchmarks.leaks` asks real servers, and writes the tables into docs/leaks.md.
"""

import argparse
import asyncio
import logging
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import aiomysql  # type: ignore[import-untyped] # has no types
import asyncmy  # type: ignore[import-untyped, unused-ignore]
import asyncpg  # type: ignore[import-untyped] # has no types
from psycopg_pool import AsyncConnectionPool
from redis.asyncio import Redis
from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import create_async_engine

from tests import leak_servers, leaks
from tests.certificates import write_certificate
from tests.leak_drivers import ASYNCPG, MYSQL, PSYCOPG, SQLALCHEMY, SYNC_SQLALCHEMY, Driver
from tests.leak_others import RABBITMQ, REDIS, SQLITE
from tests.leak_servers import MARIADB, POSTGRES, Place, Server, place_at
from tests.leaks import Address, Contestant, Lease, Pool
from tests.mariadb_servers import mariadb
from tests.rabbitmq_servers import rabbitmq
from tests.wheel_servers import postgres, redis
from tests.wires import speaking_tls

PAGE = Path(__file__).parent.parent / "docs" / "leaks.md"
BEGIN, END = "<!-- made by python -m benchmarks.leaks -->", "<!-- up to here -->"
LIBRARIES = (
    "asyncpg",
    "psycopg",
    "psycopg-pool",
    "SQLAlchemy",
    "aiomysql",
    "asyncmy",
    "PyMySQL",
    "aiosqlite",
    "redis",
    "aio-pika",
)

LIMITS = (0.5, 1, 2, 2 * leaks.KEEPS_ON)  # seconds

Open = Callable[..., AbstractAsyncContextManager[Lease]]

# --- the drivers' own pools -------------------------------------------------------------------------


@asynccontextmanager
async def asyncpg_pool(address: Address, limit: int, **options: Any) -> AsyncIterator[Lease]:
    async def connect(*_: object, **others: Any) -> Any:
        return await asyncpg.connect(address(), **others)

    async with asyncpg.create_pool(connect=connect, min_size=1, max_size=limit, **options) as pool:
        yield pool.acquire


@asynccontextmanager
async def psycopg_pool(address: Address, limit: int, **options: Any) -> AsyncIterator[Lease]:
    async with AsyncConnectionPool(
        address, min_size=1, max_size=limit, timeout=leaks.SOON, kwargs=options, open=False
    ) as pool:
        await pool.wait()  # else it may make more than one
        yield pool.connection


def sqlalchemy(dialect: str) -> Open:
    @asynccontextmanager
    async def opened(address: Address, limit: int, **options: Any) -> AsyncIterator[Lease]:
        engine = create_async_engine(
            leaks.below_sqlalchemy(address(), dialect), pool_size=limit, max_overflow=0, connect_args=options
        )

        @event.listens_for(engine.sync_engine, "do_connect")
        def aim(_dialect: object, _record: object, _arguments: object, named: dict[str, Any]) -> None:
            parts = urlsplit(address())
            if parts.port is not None:  # of a server
                named.update(port=parts.port, user=parts.username, password=parts.password)

        try:
            yield engine.connect
        finally:
            await engine.dispose()

    return opened


def mysql_pool(module: Any) -> Open:
    @asynccontextmanager
    async def opened(address: Address, limit: int, **options: Any) -> AsyncIterator[Lease]:
        parts = urlsplit(address())  # it asks for no other later
        pool = await module.create_pool(
            host=parts.hostname,
            port=parts.port,
            user=parts.username,
            password=parts.password,
            db=parts.path.strip("/"),
            minsize=1,
            maxsize=limit,
            **options,
        )
        try:
            yield pool.acquire
        finally:
            pool.terminate()  # `close` would wait for what a request has left
            await pool.wait_closed()

    return opened


@asynccontextmanager
async def sqlite_threads(address: Address, limit: int) -> AsyncIterator[Lease]:
    engine = create_engine(address(), pool_size=limit, max_overflow=0)

    @asynccontextmanager
    async def lease() -> AsyncIterator[Any]:
        connection = await asyncio.to_thread(engine.connect)
        try:
            yield connection
        finally:
            await asyncio.to_thread(connection.close)

    yield lease
    engine.dispose()


@asynccontextmanager
async def redis_pool(address: Address, limit: int) -> AsyncIterator[Lease]:
    async with Redis.from_url(address(), max_connections=limit) as client:
        yield lambda: nullcontext(client)  # it has no leases: each command takes a connection


@asynccontextmanager
async def aio_pika_pool(address: Address, limit: int) -> AsyncIterator[Lease]:
    async with await aio_pika.connect_robust(address()) as connection:

        async def get_channel() -> Any:
            return await connection.channel()

        async with aio_pika.pool.Pool(get_channel, max_size=limit) as pool:
            yield pool.acquire


def drivers_own() -> list[Contestant]:
    own: list[tuple[str, Driver, Server, Open]] = [
        ("asyncpg.Pool", ASYNCPG, POSTGRES, asyncpg_pool),
        ("psycopg_pool", PSYCOPG, POSTGRES, psycopg_pool),
        ("SQLAlchemy, asyncpg", SQLALCHEMY, POSTGRES, sqlalchemy("postgresql+asyncpg")),
        ("SQLAlchemy, psycopg", SQLALCHEMY, POSTGRES, sqlalchemy("postgresql+psycopg")),
        ("aiomysql.Pool", MYSQL, MARIADB, mysql_pool(aiomysql)),
        ("asyncmy.Pool", MYSQL, MARIADB, mysql_pool(asyncmy)),
        ("SQLAlchemy, aiomysql", SQLALCHEMY, MARIADB, sqlalchemy("mysql+aiomysql")),
        ("SQLAlchemy, aiosqlite", SQLALCHEMY, SQLITE, sqlalchemy("sqlite+aiosqlite")),
        ("SQLAlchemy, sqlite3", SYNC_SQLALCHEMY, SQLITE, sqlite_threads),
        ("redis.asyncio", REDIS.driver, REDIS, redis_pool),
        ("aio_pika.pool", RABBITMQ.driver, RABBITMQ, aio_pika_pool),
    ]
    return [Contestant(*each) for each in own]


# --- what is asked of all ---------------------------------------------------------------------------


async def ending(pool: Pool) -> str:
    answer, took = await leaks.how_a_cancelled_query_ends(pool)
    return f"ends within {next(limit for limit in LIMITS if took < limit)} s" if answer == "ends" else answer


async def keeping(pool: Pool, make: Any) -> str:
    return "works" if await leaks.what_is_kept(pool, make) is None else "refused"


async def wrong_password(pool: Pool) -> str:
    error = await leaks.how_a_wrong_password_is_told(pool)
    return "is not noticed" if error is None else type(error).__name__


async def tls(pool: Pool) -> str:
    return "is used" if await leaks.is_encrypted(pool) else "is not used"


Question = Callable[[Pool], Awaitable[Any]]


class Answers:
    """What one contestant answers, each time with a new pool."""

    def __init__(self, contestant: Contestant) -> None:
        self.found: dict[str, str] = {}
        self._contestant = contestant

    async def ask(self, name: str, question: Question, place: Place, limit: int = 1, **options: Any) -> None:
        """Note the answer; the name of the error, if the pool itself fails."""
        try:
            async with asyncio.timeout(6 * leaks.SOON), self._contestant.pool(place, limit, **options) as pool:
                self.found[name] = await question(pool)
        except Exception as error:  # noqa: BLE001 - whatever a pool may do
            self.found[name] = type(error).__name__

    async def about_leases(self, place: Place) -> None:
        for name, left in place.server.leftovers.items():
            await self.ask(f"left: {name}", partial(leaks.what_remains, leftover=left), place)
        await self.ask("kept: the connection", lambda pool: keeping(pool, leaks.itself(pool)), place)
        made = self._contestant.driver.made
        await self.ask("kept: what was made from it", lambda pool: keeping(pool, made), place)

    async def about_sessions(self, place: Place) -> None:
        await self.ask("a cancelled query on the server", ending, place)
        ended = partial(leaks.how_the_next_is_served, fault=leaks.end_session)
        await self.ask("the next lease, after the server has ended its session", ended, place)

    async def about_a_restart(self, place: Place, running: Any) -> None:
        restarted = partial(leaks.how_the_next_is_served, fault=lambda *_: leak_servers.restart(running))
        await self.ask("the next lease, after a restart of the server", restarted, place)

    async def about_servers(self, place: Place, other: Place, certificate: Path) -> None:
        failover = partial(leaks.how_a_failover_is_met, other=other)
        await self.ask("the next leases, after one has met a server that takes no writes", failover, place, 3)
        await self.ask("callers, while the server is full", leaks.how_a_full_server_is_met, place, 3)
        await self.ask("a new connection, after the password has changed", leaks.how_a_new_password_is_met, place, 2)
        await self.ask("a new connection, with a wrong password", wrong_password, place, 2)
        options = self._contestant.asking_for_tls(certificate)
        async with AsyncExitStack() as stack:
            secured = replace(other)
            if other.server is POSTGRES:
                secured.url = await stack.enter_async_context(speaking_tls(certificate, other.url))
            await self.ask("TLS, where the server speaks it", tls, secured, **options)
        await self.ask("TLS, where the server does not", tls, place, **options)


Ask = Callable[[Answers], Awaitable[None]]


@asynccontextmanager
async def of_sql(kind: Server) -> AsyncIterator[tuple[Place, Ask]]:
    """Run PostgreSQL or MariaDB; yield where, and what asks a contestant."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        certificate = write_certificate(Path(folder) / "both.pem", "127.0.0.1")
        running: Any = stack.enter_context(leak_servers.limited(kind))
        secured = (f"--ssl-cert={certificate}", f"--ssl-key={certificate}")
        other: Any = stack.enter_context(postgres() if kind is POSTGRES else mariadb(*secured))
        place, another = await place_at(running), await place_at(other)

        async def ask(answers: Answers) -> None:
            await answers.about_leases(replace(place, url=running.url))  # of a user that may do all
            await answers.about_sessions(place)
            await answers.about_a_restart(place, running)
            await answers.about_servers(place, another, certificate)

        yield place, ask


@asynccontextmanager
async def of_others(kind: Server) -> AsyncIterator[tuple[Place, Ask]]:
    """Run SQLite, Redis or RabbitMQ, as above."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        running: Any = None
        if kind is not SQLITE:
            running = stack.enter_context(redis() if kind is REDIS else rabbitmq())
        url = f"sqlite:///{folder}/app.db" if running is None else running.url
        place = Place(kind, url, url)

        async def ask(answers: Answers) -> None:
            await place.ask_all(kind.prepare)
            await answers.about_leases(place)
            if kind.session:
                await answers.about_sessions(place)
            if running is not None:
                await answers.about_a_restart(place, running)

        yield place, ask


def table(found: dict[str, dict[str, str]]) -> str:
    """Lay out the answers: a row for each question, a column for contestants that give the same answers."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for name, each in found.items():
        columns.setdefault(tuple(each.values()), []).append(f"`{name}`")
    lines = [f"| | {' | '.join(map('<br>'.join, columns.values()))} |", "|" + " --- |" * (len(columns) + 1)]
    lines += [f"| {' | '.join(row)} |" for row in zip(next(iter(found.values())), *columns, strict=True)]
    return "\n".join(lines)


KINDS = {"PostgreSQL": POSTGRES, "MariaDB": MARIADB, "SQLite": SQLITE, "Redis": REDIS, "RabbitMQ": RABBITMQ}


async def measured(only: str | None) -> str:
    parts = []
    for name, kind in KINDS.items():
        contestants = [each for each in [*drivers_own(), *leaks.managers()] if each.server is kind]
        contestants = [each for each in contestants if only in {None, each.name}]
        if not contestants:
            continue
        found = {}
        async with (of_sql if kind.write else of_others)(kind) as (place, ask):
            (number,) = re.findall(r"\d+(?:\.\d+)+", str(await place.ask(kind.version)))[:1]
            for contestant in contestants:
                print(contestant, file=sys.stderr)
                answers = Answers(contestant)
                await ask(answers)
                found[contestant.name] = answers.found
        parts.append(f"## {name} {number}\n\n{table(found)}")
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return "\n\n".join([*parts, f"With {libraries}, on Python {sys.version.split()[0]}."])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leaks", description=__doc__)
    parser.add_argument("--only", help="one contestant; nothing is written")
    options = parser.parse_args()
    logging.disable()  # what all of them say would drown the tables
    found = asyncio.run(measured(options.only))
    print(found)
    if options.only is None:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n\n{found}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
