"""The leak matrix: what a lease leaves for the next one, with our managers and with the drivers' own pools.

`python -m benchmarks.leaks` asks real servers, and writes the tables into docs/leaks.md.
"""

import argparse
import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiomysql  # type: ignore[import-untyped] # has no types
import asyncmy  # type: ignore[import-untyped, unused-ignore]
import asyncpg  # type: ignore[import-untyped] # has no types
from psycopg_pool import AsyncConnectionPool
from sqlalchemy.ext.asyncio import create_async_engine

from tests import leaks
from tests.leaks import ASYNCPG, MARIADB, MYSQL, POSTGRES, PSYCOPG, SQLALCHEMY, Contestant, Driver, Pool, Server
from tests.mariadb_servers import MariadbServer, mariadb
from tests.mysql_drivers import outside
from tests.wheel_servers import PostgresServer, postgres

PAGE = Path(__file__).parent.parent / "docs" / "leaks.md"
BEGIN, END = "<!-- made by python -m benchmarks.leaks -->", "<!-- up to here -->"
LIBRARIES = ("asyncpg", "psycopg", "psycopg-pool", "SQLAlchemy", "aiomysql", "asyncmy")

LIMITS = (0.5, 1, 2, 2 * leaks.KEEPS_ON)  # seconds

Lease = Callable[[], AbstractAsyncContextManager[Any]]
Open = Callable[[str], AbstractAsyncContextManager[Lease]]

# --- the drivers' own pools -------------------------------------------------------------------------


@asynccontextmanager
async def asyncpg_pool(url: str) -> AsyncIterator[Lease]:
    async with asyncpg.create_pool(url, min_size=1, max_size=1) as pool:
        yield pool.acquire


@asynccontextmanager
async def psycopg_pool(url: str) -> AsyncIterator[Lease]:
    async with AsyncConnectionPool(url, min_size=1, max_size=1, timeout=leaks.SOON) as pool:
        yield pool.connection


def sqlalchemy(dialect: str) -> Open:
    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[Lease]:
        engine = create_async_engine(leaks.below_sqlalchemy(url, dialect), pool_size=1, max_overflow=0)
        try:
            yield engine.connect
        finally:
            await engine.dispose()

    return opened


def mysql_pool(module: Any) -> Open:
    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[Lease]:
        parts = urlsplit(url)
        pool = await module.create_pool(
            host=parts.hostname,
            port=parts.port,
            user=parts.username,
            password=parts.password,
            db=parts.path.strip("/"),
            minsize=1,
            maxsize=1,
        )
        try:
            yield pool.acquire
        finally:
            pool.terminate()  # `close` would wait for what a request has left
            await pool.wait_closed()

    return opened


def drivers_own() -> list[Contestant]:
    own: list[tuple[str, Driver, Server, Open]] = [
        ("asyncpg.Pool", ASYNCPG, POSTGRES, asyncpg_pool),
        ("psycopg_pool", PSYCOPG, POSTGRES, psycopg_pool),
        ("SQLAlchemy, asyncpg", SQLALCHEMY, POSTGRES, sqlalchemy("postgresql+asyncpg")),
        ("SQLAlchemy, psycopg", SQLALCHEMY, POSTGRES, sqlalchemy("postgresql+psycopg")),
        ("aiomysql.Pool", MYSQL, MARIADB, mysql_pool(aiomysql)),
        ("asyncmy.Pool", MYSQL, MARIADB, mysql_pool(asyncmy)),
        ("SQLAlchemy, aiomysql", SQLALCHEMY, MARIADB, sqlalchemy("mysql+aiomysql")),
    ]
    return [Contestant(*each) for each in own]


# --- what is asked of all ---------------------------------------------------------------------------


async def asked(question: Awaitable[Any]) -> Any:
    """Return an answer; the name of the error, if the pool itself fails."""
    try:
        async with asyncio.timeout(2 * leaks.SOON):
            return await question
    except Exception as error:  # noqa: BLE001 - whatever a pool may do
        return f"fails ({type(error).__name__})"


async def ending(pool: Pool) -> str:
    answer, took = await leaks.how_a_cancelled_query_ends(pool)
    return f"ends within {next(limit for limit in LIMITS if took < limit)} s" if answer == "ends" else answer


async def keeping(pool: Pool, make: Any) -> str:
    return "works" if await leaks.what_is_kept(pool, make) is None else "refused"


async def answers(
    contestant: Contestant, server: PostgresServer | MariadbServer, ask: Callable[[str], Awaitable[Any]]
) -> dict[str, str]:
    """Ask one contestant, each time with a new pool."""

    def killed_and_started() -> None:
        server.kill()
        server.start()

    async def restart(*_: object) -> None:
        await asyncio.to_thread(killed_and_started)  # meanwhile the loop may notice

    questions: dict[str, Callable[[Pool], Awaitable[Any]]] = {
        f"left: {name}": lambda pool, left=left: leaks.what_remains(pool, left)  # type: ignore[misc] # the default binds it
        for name, left in contestant.server.leftovers.items()
    }
    questions |= {
        "kept: the connection": lambda pool: keeping(pool, leaks.itself(pool)),
        "kept: what was made from it": lambda pool: keeping(pool, contestant.driver.made),
        "a cancelled query on the server": ending,
        "the next lease, after the server has ended its session": lambda pool: leaks.how_the_next_is_served(
            pool, leaks.end_session
        ),
        "the next lease, after a restart of the server": lambda pool: leaks.how_the_next_is_served(pool, restart),
    }
    found = {}
    for name, question in questions.items():
        async with asyncio.timeout(6 * leaks.SOON), contestant.pool(server.url, ask) as pool:
            found[name] = await asked(question(pool))
    return found


@asynccontextmanager
async def asking(server: PostgresServer | MariadbServer) -> AsyncIterator[Callable[[str], Awaitable[Any]]]:
    """Yield how to ask a server by connections of no pool, a new one for each question: it may be restarted."""

    async def ask_postgres(query: str) -> Any:
        connection = await asyncpg.connect(server.url)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    async def ask_mariadb(query: str) -> Any:
        async with outside(server.root_url) as root:  # type: ignore[union-attr] # a MariadbServer
            return await leaks.ask_mysql(root, query)

    if isinstance(server, PostgresServer):
        yield ask_postgres
        return
    for table in ("left_behind", "other"):
        await ask_mariadb(f"CREATE OR REPLACE TABLE {table} (n int) ENGINE InnoDB")
    yield ask_mariadb


def table(found: dict[str, dict[str, str]]) -> str:
    """Lay out the answers: a row for each question, a column for contestants that give the same answers."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for name, each in found.items():
        columns.setdefault(tuple(each.values()), []).append(f"`{name}`")
    lines = [f"| | {' | '.join(map('<br>'.join, columns.values()))} |", "|" + " --- |" * (len(columns) + 1)]
    lines += [f"| {' | '.join(row)} |" for row in zip(next(iter(found.values())), *columns, strict=True)]
    return "\n".join(lines)


async def measured(only: str | None) -> str:
    async with AsyncExitStack() as stack:
        parts = []
        for server, start, kind in ((POSTGRES, postgres, "PostgreSQL"), (MARIADB, mariadb, "MariaDB")):
            contestants = [each for each in [*drivers_own(), *leaks.managers()] if each.server is server]
            contestants = [each for each in contestants if only in {None, each.name}]
            if not contestants:
                continue
            running: Any = stack.enter_context(start())
            ask = await stack.enter_async_context(asking(running))
            said = str(await ask("SELECT version()")).removeprefix("PostgreSQL ").split("-")[0].split(" ")[0]
            found = {}
            for contestant in contestants:
                print(contestant, file=sys.stderr)
                found[contestant.name] = await answers(contestant, running, ask)
            parts.append(f"## {kind} {said}\n\n{table(found)}")
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return "\n\n".join([*parts, f"With {versions}, on Python {sys.version.split()[0]}."])


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
