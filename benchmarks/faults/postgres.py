"""Faults of a real PostgreSQL, and the pools that live through them."""

import asyncio
import math
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import asyncpg  # type: ignore[import-untyped] # has no types
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.faults.load import (
    LIMIT,
    PATIENCE,
    Contestant,
    Effort,
    Load,
    Opened,
    Outcome,
    Row,
    Scenario,
    clock,
    filled,
    outcome_of,
)
from benchmarks.faults.proxy import Proxy
from connectionpools_fastapi import ConnectionPool, ResourceManager
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager
from connectionpools_fastapi.adapters.psycopg import PsycopgManager
from connectionpools_fastapi.adapters.sqlalchemy import SqlalchemyManager
from tests.wheel_servers import PASSWORD, PostgresServer, postgres

WORK = "SELECT pg_sleep(0.03)"
OTHER = "other"  # another user of the server
USER = "app"  # the role of the contestants
HOOK_TIMEOUT = 0.75  # ours, in seconds
MAX_CONNECTIONS = 3 * LIMIT
LEFT = 3  # of them, while another user takes the rest
DELAY = 0.1  # of each piece on a slow network, in seconds
PAUSE = 0.05  # between two looks at the server, in seconds

Fault = Callable[[Contestant, "Site", Effort], Awaitable[Outcome]]

# --- the contestants -----------------------------------------------------------------------------

Address = Callable[[], str]  # asked anew for each connection, where a pool can do so


async def _execute(connection: Any) -> None:
    await connection.execute(WORK)


async def _execute_text(connection: Any) -> None:
    await connection.execute(text(WORK))


def ours(
    make_manager: Callable[[Address], ResourceManager[Any]], work: Callable[[Any], Awaitable[object]]
) -> Callable[[Address], Awaitable[Opened]]:
    async def open_pool(address: Address) -> Opened:
        pool = ConnectionPool(
            make_manager(address),
            limit=LIMIT,
            timeout=PATIENCE,
            hook_timeout=HOOK_TIMEOUT,
            close_timeout=PATIENCE,
            name="faults",
        )
        await pool.open()

        async def expire() -> None:
            pool.expire()

        return Opened(lease=pool.lease, work=work, close=pool.close, expire=expire)

    return open_pool


async def asyncpg_pool(address: Address) -> Opened:
    async def connect(*_: object, **options: Any) -> Any:
        return await asyncpg.connect(address(), **options)

    pool = await asyncpg.create_pool(connect=connect, min_size=0, max_size=LIMIT)
    return Opened(
        lease=lambda: pool.acquire(timeout=PATIENCE), work=_execute, close=pool.close, expire=pool.expire_connections
    )


def psycopg_pool(**options: Any) -> Callable[[Address], Awaitable[Opened]]:
    async def open_pool(address: Address) -> Opened:
        pool = AsyncConnectionPool(address, min_size=0, max_size=LIMIT, timeout=PATIENCE, open=False, **options)
        await pool.open()
        return Opened(lease=pool.connection, work=_execute, close=pool.close, expire=pool.drain)

    return open_pool


def sqlalchemy_pool(driver: str, **options: Any) -> Callable[[Address], Awaitable[Opened]]:
    async def open_engine(address: Address) -> Opened:
        engine = create_async_engine(
            _as_dialect(address, driver), pool_size=LIMIT, max_overflow=0, pool_timeout=PATIENCE, **options
        )

        @event.listens_for(engine.sync_engine, "do_connect")
        def put_password(_dialect: object, _record: object, _args: object, options: dict[str, Any]) -> None:
            options["password"] = urlsplit(address()).password

        return Opened(lease=engine.connect, work=_execute_text, close=engine.dispose, expire=engine.dispose)

    return open_engine


def _as_dialect(address: Address, driver: str) -> str:
    return address().replace("postgresql:", f"postgresql+{driver}:")


MANAGERS: dict[str, tuple[Callable[[Address], ResourceManager[Any]], Callable[[Any], Awaitable[object]]]] = {
    "AsyncpgManager": (AsyncpgManager, _execute),
    "PsycopgManager": (PsycopgManager, _execute),
    "SqlalchemyManager": (lambda address: SqlalchemyManager(lambda: _as_dialect(address, "asyncpg")), _execute_text),
}
OURS = [Contestant(f"this pool, {name}", ours(*manager)) for name, manager in MANAGERS.items()]
PEERS = [
    Contestant("asyncpg.Pool", asyncpg_pool),
    Contestant("psycopg_pool", psycopg_pool()),
    Contestant("psycopg_pool, check", psycopg_pool(check=AsyncConnectionPool.check_connection)),
    Contestant("SQLAlchemy", sqlalchemy_pool("asyncpg")),
    Contestant("SQLAlchemy, pool_pre_ping", sqlalchemy_pool("asyncpg", pool_pre_ping=True)),
]

# --- the server ----------------------------------------------------------------------------------


class Site:
    """A PostgreSQL with a user for the contestants, whose password may change."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._password = ""

    def address(self, port: int | None = None) -> str:
        """Say where to connect to, as of now."""
        return f"postgresql://{USER}:{self._password}@127.0.0.1:{port or self.server.port}/postgres"

    async def prepare(self) -> None:
        """Make the users."""
        await self.ask(f"CREATE ROLE {OTHER} LOGIN PASSWORD '{PASSWORD}'")
        await self.ask(f"CREATE ROLE {USER} LOGIN")
        await self.change_password()

    async def ask(self, query: str, *args: Any) -> Any:
        """Ask the server for one value, as its superuser."""
        connection = await asyncpg.connect(self.server.url)
        try:
            return await connection.fetchval(query, *args)
        finally:
            await connection.close()

    async def change_password(self) -> None:
        self._password = secrets.token_hex()
        await self.ask(f"ALTER ROLE {USER} PASSWORD '{self._password}'")

    async def sessions(self) -> list[int]:
        """Return the process numbers of the contestant's connections."""
        pids: list[int] = await self.ask(
            "SELECT coalesce(array_agg(pid), '{}') FROM pg_stat_activity WHERE usename = $1", USER
        )
        return pids

    async def gone(self, pids: list[int], bound: float) -> bool:
        """Wait until none of these is connected any more; returns whether it came to that."""
        return await self._until(lambda: self._none_of(pids), bound)

    async def count(self) -> int:
        """Count the contestant's connections; what is just being closed has a moment for it."""
        await self._until(self._within_limit, bound=1)
        return len(await self.sessions())

    async def reaches_limit(self, bound: float) -> bool:
        """Wait until the contestant has all the connections it may have; returns whether it came to that."""
        return await self._until(self._at_limit, bound)

    @asynccontextmanager
    async def crowded_but_for(self, left: int) -> AsyncGenerator[AsyncExitStack]:
        """Take all but `left` connections as another user; the stack that it yields closes them."""
        others = []
        async with AsyncExitStack() as taken:
            with suppress(asyncpg.TooManyConnectionsError):
                while True:
                    others.append(await asyncpg.connect(self.server.url, user=OTHER))
                    taken.push_async_callback(others[-1].close)
            for other in others[:left]:
                await other.close()
            yield taken

    async def _none_of(self, pids: list[int]) -> bool:
        return not set(pids) & set(await self.sessions())

    async def _within_limit(self) -> bool:
        return len(await self.sessions()) <= LIMIT

    async def _at_limit(self) -> bool:
        return len(await self.sessions()) == LIMIT

    async def _until(self, condition: Callable[[], Awaitable[bool]], bound: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(bound):
                while True:
                    if await condition():
                        return True
                    await asyncio.sleep(PAUSE)
        return False


@contextmanager
def a_site() -> Iterator[Site]:
    """Start a server, which has yet to be prepared."""
    with postgres(max_connections=str(MAX_CONNECTIONS)) as server:
        yield Site(server)


# --- the faults ----------------------------------------------------------------------------------


async def terminated(contestant: Contestant, site: Site, effort: Effort) -> Outcome:
    """An administrator terminates all connections."""

    async def fault(load: Load) -> None:
        pids = await site.sessions()
        await site.ask("SELECT count(pg_terminate_backend(pid)) FROM unnest($1::int[]) AS pid", pids)
        await site.gone(pids, effort.bound)
        load.strike()
        load.end()

    return await outcome_of(contestant, site.address, fault, site.count, effort)


async def killed(contestant: Contestant, site: Site, effort: Effort) -> Outcome:
    """The server is killed with SIGKILL, and started again after a while."""

    async def fault(load: Load) -> None:
        await asyncio.to_thread(site.server.kill)
        load.strike()
        await asyncio.sleep(effort.down)
        await asyncio.to_thread(site.server.start)
        load.end()

    return await outcome_of(contestant, site.address, fault, site.count, effort)


async def crowded(contestant: Contestant, site: Site, effort: Effort) -> Outcome:
    """Another user leaves LEFT connections of `max_connections`; a pool has recovered once it has all after that."""
    async with site.crowded_but_for(LEFT) as others:
        grown_after = math.inf

        async def fault(load: Load) -> None:
            nonlocal grown_after
            load.strike()
            await asyncio.sleep(effort.down)
            await others.aclose()
            load.end()
            if await site.reaches_limit(effort.bound):
                grown_after = clock() - load.returned

        outcome = await outcome_of(contestant, site.address, fault, site.count, effort)
        return replace(outcome, recovered_after=max(outcome.recovered_after, grown_after))


async def rotated(contestant: Contestant, site: Site, effort: Effort) -> Outcome:
    """The password changes, and the pool is told to replace its connections; recovered once no old one is left."""
    turned_after = math.inf

    async def fault(load: Load) -> None:
        nonlocal turned_after
        pids = await site.sessions()
        await site.change_password()
        await load.opened.expire()
        load.strike()
        load.end()
        if await site.gone(pids, effort.bound):
            turned_after = clock() - load.returned

    outcome = await outcome_of(contestant, site.address, fault, site.count, effort)
    return replace(outcome, recovered_after=max(outcome.recovered_after, turned_after))


def network(make_bad: Callable[[Proxy], object], *, before_close: Callable[[Proxy], object] = Proxy.resume) -> Fault:
    """The network goes bad for a while."""

    async def fault_of_network(contestant: Contestant, site: Site, effort: Effort) -> Outcome:
        async with Proxy(site.server.port) as proxy:

            async def fault(load: Load) -> None:
                make_bad(proxy)
                load.strike()
                await asyncio.sleep(effort.down)
                proxy.resume()
                load.end()

            return await outcome_of(
                filled(contestant),
                lambda: site.address(proxy.port),
                fault,
                site.count,
                effort,
                before_close=lambda: before_close(proxy),
            )

    return fault_of_network


stalled = network(Proxy.stall, before_close=Proxy.stall)
reset = network(Proxy.reset)
slowed = network(lambda proxy: proxy.slow(DELAY))

FAULTS: dict[str, Fault] = {
    "all connections terminated": terminated,
    "server killed": killed,
    "max_connections reached": crowded,
    "network stalls": stalled,
    "network resets": reset,
    "network slow": slowed,
    "password changed": rotated,
}


def beside(fault: Fault) -> Scenario:
    async def run(effort: Effort) -> list[Row]:
        with a_site() as site:
            await site.prepare()
            return [Row(contestant.name, await fault(contestant, site, effort)) for contestant in OURS + PEERS]

    return run


SCENARIOS: dict[str, Scenario] = {f"PostgreSQL: {name}": beside(fault) for name, fault in FAULTS.items()}
