"""The leak matrix: what a lease leaves for the next one, with our managers and with the drivers' own pools.

`python -m benchmarks.leaks` asks real servers, and writes the tables into docs/leaks.md.
"""

import argparse
import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import aiomysql  # type: ignore[import-untyped] # has no types
import asyncmy  # type: ignore[import-untyped, unused-ignore]
import asyncpg  # type: ignore[import-untyped] # has no types
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

from tests import leak_servers, leaks
from tests.certificates import write_certificate
from tests.leak_drivers import ASYNCPG, MYSQL, PSYCOPG, SQLALCHEMY, Driver
from tests.leak_servers import MARIADB, POSTGRES, Place, Server, place_at
from tests.leaks import Address, Contestant, Lease, Pool
from tests.mariadb_servers import mariadb
from tests.wheel_servers import postgres
from tests.wires import speaking_tls

PAGE = Path(__file__).parent.parent / "docs" / "leaks.md"
BEGIN, END = "<!-- made by python -m benchmarks.leaks -->", "<!-- up to here -->"
LIBRARIES = ("asyncpg", "psycopg", "psycopg-pool", "SQLAlchemy", "aiomysql", "asyncmy", "PyMySQL")

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

Question = Callable[[Pool], Awaitable[Any]]


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


class Site:
    """Two servers of a kind: one that takes few connections and may be killed, and one that speaks TLS."""

    def __init__(self, kind: Server, folder: Path, stack: ExitStack) -> None:
        self.kind = kind
        self.certificate = write_certificate(folder / "both.pem", "127.0.0.1")
        self.first: Any = stack.enter_context(leak_servers.limited(kind))
        secured = (f"--ssl-cert={self.certificate}", f"--ssl-key={self.certificate}")
        self.other: Any = stack.enter_context(postgres() if kind is POSTGRES else mariadb(*secured))

    @property
    def place(self) -> Place:
        """The first server, where the user may do all."""
        root_url = self.first.url if self.kind is POSTGRES else self.first.root_url
        return Place(self.kind, self.first.url, root_url)

    async def answers(self, contestant: Contestant) -> dict[str, str]:
        """Ask one contestant, each time with a new pool."""
        limited, other = await place_at(self.first), await place_at(self.other)
        found = {}

        async def ask(name: str, question: Question, place: Place, limit: int = 1, **options: Any) -> None:
            """Note the answer; the name of the error, if the pool itself fails."""
            try:
                async with asyncio.timeout(6 * leaks.SOON), contestant.pool(place, limit, **options) as pool:
                    found[name] = await question(pool)
            except Exception as error:  # noqa: BLE001 - whatever a pool may do
                found[name] = type(error).__name__

        for name, left in self.kind.leftovers.items():
            await ask(f"left: {name}", partial(leaks.what_remains, leftover=left), self.place)
        await ask("kept: the connection", lambda pool: keeping(pool, leaks.itself(pool)), limited)
        await ask("kept: what was made from it", lambda pool: keeping(pool, contestant.driver.made), limited)
        await ask("a cancelled query on the server", ending, limited)
        for name, fault in (
            ("after the server has ended its session", leaks.end_session),
            ("after a restart of the server", lambda *_: leak_servers.restart(self.first)),
        ):
            await ask(f"the next lease, {name}", partial(leaks.how_the_next_is_served, fault=fault), limited)
        failover = partial(leaks.how_a_failover_is_met, other=other)
        await ask("the next leases, after one has met a server that takes no writes", failover, limited, 3)
        await ask("callers, while the server is full", leaks.how_a_full_server_is_met, limited, 3)
        await ask("a new connection, after the password has changed", leaks.how_a_new_password_is_met, limited, 2)
        await ask("a new connection, with a wrong password", wrong_password, limited, 2)
        options = contestant.asking_for_tls(self.certificate)
        async with AsyncExitStack() as stack:
            if self.kind is POSTGRES:
                other.url = await stack.enter_async_context(speaking_tls(self.certificate, other.url))
            await ask("TLS, where the server speaks it", tls, other, **options)
        await ask("TLS, where the server does not", tls, limited, **options)
        return found


def table(found: dict[str, dict[str, str]]) -> str:
    """Lay out the answers: a row for each question, a column for contestants that give the same answers."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for name, each in found.items():
        columns.setdefault(tuple(each.values()), []).append(f"`{name}`")
    lines = [f"| | {' | '.join(map('<br>'.join, columns.values()))} |", "|" + " --- |" * (len(columns) + 1)]
    lines += [f"| {' | '.join(row)} |" for row in zip(next(iter(found.values())), *columns, strict=True)]
    return "\n".join(lines)


async def measured(only: str | None) -> str:
    parts = []
    for kind, name in ((POSTGRES, "PostgreSQL"), (MARIADB, "MariaDB")):
        contestants = [each for each in [*drivers_own(), *leaks.managers()] if each.server is kind]
        contestants = [each for each in contestants if only in {None, each.name}]
        if not contestants:
            continue
        with TemporaryDirectory() as folder, ExitStack() as stack:
            site = Site(kind, Path(folder), stack)
            await site.place.ask_all(kind.prepare)
            said = str(await site.place.ask("SELECT version()"))
            found = {}
            for contestant in contestants:
                print(contestant, file=sys.stderr)
                found[contestant.name] = await site.answers(contestant)
        parts.append(f"## {name} {said.removeprefix('PostgreSQL ').split('-')[0].split(' ')[0]}\n\n{table(found)}")
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
