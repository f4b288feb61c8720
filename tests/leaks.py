"""What one lease of a pool does to the next one, and what befalls its server: the same questions to each pool.

The tests compare the answers of our managers to what is promised; `python -m benchmarks.leaks` prints them for all,
and for the drivers' own pools.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi.adapters.aio_pika import AioPikaManager
from connectionpools_fastapi.adapters.aiomysql import AiomysqlManager
from connectionpools_fastapi.adapters.aiosqlite import AiosqliteManager
from connectionpools_fastapi.adapters.asyncmy import AsyncmyManager
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager
from connectionpools_fastapi.adapters.psycopg import PsycopgManager, SyncPsycopgManager
from connectionpools_fastapi.adapters.redis import RedisManager
from connectionpools_fastapi.adapters.sqlalchemy import SqlalchemyManager, SyncSqlalchemyManager
from connectionpools_fastapi.adapters.sqlite import SqliteManager
from tests.leak_drivers import ASYNCPG, MYSQL, PSYCOPG, SQLALCHEMY, SYNC_PSYCOPG, SYNC_SQLALCHEMY, Driver
from tests.leak_others import AIOSQLITE, RABBITMQ, REDIS, SQLITE, sqlite_path
from tests.leak_servers import MARIADB, POSTGRES, Leftover, Place, Server

SOON = 10.0
KEEPS_ON = 3.0  # seconds after which a cancelled query is said to go on
TO_BE_REFUSED = 0.2  # seconds that a full server has for refusing

Address = Callable[[], str]
Answer = Literal["gone", "seen", "ends", "goes on", "served", "fails"]
Lease = Callable[[], AbstractAsyncContextManager[Any]]

# --- pools, and what is asked of them ---------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """An open pool, of one connection where nothing else is said; `lease` leases it."""

    lease: Lease
    driver: Driver
    place: Place


async def what_remains(pool: Pool, leftover: Leftover) -> Answer:
    """Let one lease leave something behind, and say whether the next one sees it."""
    driver = pool.driver
    async with pool.lease() as connection:
        if not (leftover.of_session or driver.begins):
            await driver.ask(connection, "BEGIN")
        with suppress(Exception):  # one statement fails, as it is meant to
            await driver.ask(connection, leftover.leave)
        if leftover.of_session:
            await driver.commit(connection)
    async with pool.lease() as connection:
        try:
            is_seen = leftover.is_seen(await driver.ask(connection, leftover.question))
        except Exception:  # noqa: BLE001 - of any driver
            is_seen = leftover.tells_by_error
    return "seen" if is_seen else "gone"


async def what_is_kept(pool: Pool, make: Callable[[Any], Awaitable[Callable[[], Awaitable[Any]]]]) -> Exception | None:
    """Use something that a lease has kept while the next lease goes on; return the error, None if it works."""
    async with pool.lease() as connection:
        use = await make(connection)
    async with pool.lease():
        try:
            await use()
        except Exception as error:  # noqa: BLE001 - of any driver
            return error
    return None


def itself(pool: Pool) -> Callable[[Any], Awaitable[Callable[[], Awaitable[Any]]]]:
    async def make(connection: Any) -> Callable[[], Awaitable[Any]]:
        return lambda: pool.driver.ask(connection, pool.place.server.seven)

    return make


async def how_a_cancelled_query_ends(pool: Pool) -> tuple[Answer, float]:
    """Cancel a request in its query; say whether and when it ends on the server."""

    async def request() -> None:
        async with pool.lease() as connection:
            await pool.driver.ask(connection, pool.place.server.sleep)

    async def sleeper() -> Any:
        await asyncio.sleep(0.01)
        return pool.place.server.sleeps_in(await pool.place.ask(pool.place.server.sleeper))

    task = asyncio.create_task(request())
    async with asyncio.timeout(SOON):
        while await sleeper() is None:
            pass
    task.cancel()
    began = time.monotonic()
    while (session := await sleeper()) is not None and time.monotonic() < began + KEEPS_ON:
        pass
    took = time.monotonic() - began
    if session is not None:
        await end_session(pool, session)
    await asyncio.wait([task], timeout=SOON)
    return ("ends" if session is None else "goes on"), took


async def end_session(pool: Pool, session: int) -> None:
    """End a session from outside, unless it has ended."""
    with suppress(Exception):
        await pool.place.ask(pool.place.server.end.format(session))


async def how_the_next_is_served(pool: Pool, fault: Callable[[Pool, int], Awaitable[Any]]) -> Answer:
    """Have a fault befall a free connection; say whether the next lease notices."""
    async with pool.lease() as connection:
        session = await pool.driver.ask(connection, pool.place.server.session or pool.place.server.seven)
    await fault(pool, session)
    return await is_served(pool)


async def is_served(pool: Pool) -> Answer:
    """Say whether the next lease works."""
    try:
        async with pool.lease() as connection:
            assert int(await pool.driver.ask(connection, pool.place.server.seven)) == 7
    except AssertionError:
        raise
    except Exception:  # noqa: BLE001 - of any driver
        return "fails"
    return "served"


async def how_a_full_server_is_met(pool: Pool) -> Answer:
    """Have others fill the server, and two callers come to a pool of three; say whether both are served in the end."""
    both_are_served = asyncio.Barrier(2)

    async def call() -> None:
        async with pool.lease() as connection:
            assert int(await pool.driver.ask(connection, pool.place.server.seven)) == 7
            await both_are_served.wait()

    async with AsyncExitStack() as own:
        await own.enter_async_context(pool.lease())
        async with pool.place.full() as others_leave:
            callers = [asyncio.create_task(call()) for _ in range(2)]
            await asyncio.wait(callers, timeout=TO_BE_REFUSED)
            await own.aclose()  # makes room for one
            await others_leave()
            await asyncio.wait(callers, timeout=SOON, return_when=asyncio.FIRST_EXCEPTION)
            are_served = all(caller.done() and caller.exception() is None for caller in callers)
            for caller in callers:
                caller.cancel()
            await asyncio.wait(callers)
    return "served" if are_served else "fails"


async def how_a_failover_is_met(pool: Pool, other: Place) -> Answer:
    """Have the server take no writes; say whether, after one lease has met that, a pool of three writes to another."""
    place, ask = pool.place, pool.driver.ask
    async with AsyncExitStack() as failover:
        async with AsyncExitStack() as leases:
            connections = [await leases.enter_async_context(pool.lease()) for _ in range(3)]
            await failover.enter_async_context(place.failed_over_to(other))
            for connection in connections:
                async with asyncio.timeout(SOON):
                    while not await ask(connection, place.server.takes_no_writes):  # noqa: ASYNC110 - no event tells
                        await asyncio.sleep(0.01)
                await pool.driver.commit(connection)
            with suppress(Exception):
                await ask(connections[0], place.server.write)
        async with AsyncExitStack() as leases:
            try:
                for _ in range(3):
                    await ask(await leases.enter_async_context(pool.lease()), place.server.write)
            except Exception:  # noqa: BLE001 - of any driver
                return "fails"
    return "served"


async def how_a_new_password_is_met(pool: Pool) -> Answer:
    """Change the password; say whether a pool of two makes a new connection."""
    async with pool.lease(), pool.place.another_password(is_known=True):
        return await is_served(pool)


async def how_a_wrong_password_is_told(pool: Pool) -> Exception | None:
    """Change the password at the server only; return the error when a pool of two makes a new connection."""
    async with pool.lease(), pool.place.another_password(is_known=False):
        try:
            async with pool.lease():
                return None
        except Exception as error:  # noqa: BLE001 - of any driver
            return error


async def is_encrypted(pool: Pool) -> bool:
    """Say whether a lease speaks to its server by TLS."""
    async with pool.lease() as connection:
        return bool(await pool.driver.ask(connection, pool.place.server.is_encrypted))


# --- our managers -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contestant:
    """A kind of pool; `open` takes the address, as of now, the limit, and options of the driver."""

    name: str
    driver: Driver
    server: Server
    open: Callable[..., AbstractAsyncContextManager[Lease]]

    def __str__(self) -> str:
        return self.name

    @asynccontextmanager
    async def pool(self, place: Place, limit: int = 1, **options: Any) -> AsyncIterator[Pool]:
        """Open a pool, and tidy up after it."""
        async with self.open(lambda: place.url, limit, **options) as lease:
            yield Pool(lease, self.driver, place)
        if self.server.tidy:
            await place.ask(self.server.tidy)

    def asking_for_tls(self, authority: Path) -> dict[str, Any]:
        """Return the options that ask the driver for TLS."""
        if "psycopg" in self.name.lower():
            return {"sslmode": "verify-full", "sslrootcert": str(authority)}
        return {"ssl": ssl.create_default_context(cafile=authority)}


def ours(name: str, driver: Driver, server: Server, make: Callable[..., Any]) -> Contestant:
    """Make a contestant of a manager, which `make` makes for an address and options."""

    @asynccontextmanager
    async def opened(address: Address, limit: int, **options: Any) -> AsyncIterator[Lease]:
        async with ConnectionPool(make(address, **options), limit=limit, name="db") as pool:
            yield pool.lease

    return Contestant(name, driver, server, opened)


def below_sqlalchemy(url: str, driver: str) -> str:
    return f"{driver}://{url.partition('://')[2]}"


SERVERS = {"postgresql": POSTGRES, "mysql": MARIADB, "sqlite": SQLITE}


def managers(reset: Any = "session") -> list[Contestant]:
    """Return all managers whose resources have something to leave; AioPikaManager always resets all."""

    def of_sqlalchemy(manager: Any, driver: Driver, below: str) -> Contestant:
        def make(address: Address, **options: Any) -> Any:
            return manager(lambda: below_sqlalchemy(address(), below), reset=reset, connect_args=options)

        return ours(f"{manager.__name__}, {below}", driver, SERVERS[below.partition("+")[0]], make)

    def of_sqlite(manager: Any, driver: Driver) -> Contestant:
        return ours(manager.__name__, driver, SQLITE, lambda url: manager(sqlite_path(url()), reset=reset))

    return [
        ours("AsyncpgManager", ASYNCPG, POSTGRES, partial(AsyncpgManager, reset=reset)),
        ours("PsycopgManager", PSYCOPG, POSTGRES, partial(PsycopgManager, reset=reset)),
        ours("SyncPsycopgManager", SYNC_PSYCOPG, POSTGRES, partial(SyncPsycopgManager, reset=reset)),
        of_sqlalchemy(SqlalchemyManager, SQLALCHEMY, "postgresql+asyncpg"),
        of_sqlalchemy(SqlalchemyManager, SQLALCHEMY, "postgresql+psycopg"),
        of_sqlalchemy(SyncSqlalchemyManager, SYNC_SQLALCHEMY, "postgresql+psycopg"),
        of_sqlalchemy(SqlalchemyManager, SQLALCHEMY, "mysql+aiomysql"),
        of_sqlalchemy(SqlalchemyManager, SQLALCHEMY, "mysql+asyncmy"),
        of_sqlalchemy(SyncSqlalchemyManager, SYNC_SQLALCHEMY, "mysql+pymysql"),
        ours("AiomysqlManager", MYSQL, MARIADB, partial(AiomysqlManager, reset=reset)),
        ours("AsyncmyManager", MYSQL, MARIADB, partial(AsyncmyManager, reset=reset)),
        of_sqlite(AiosqliteManager, AIOSQLITE),
        of_sqlite(SqliteManager, SYNC_PSYCOPG),
        of_sqlalchemy(SqlalchemyManager, SQLALCHEMY, "sqlite+aiosqlite"),
        of_sqlalchemy(SyncSqlalchemyManager, SYNC_SQLALCHEMY, "sqlite"),
        ours("RedisManager", REDIS.driver, REDIS, partial(RedisManager, reset=reset)),
        ours("AioPikaManager", RABBITMQ.driver, RABBITMQ, AioPikaManager),
    ]
