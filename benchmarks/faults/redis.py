"""Faults of a real Redis, and the pools that live through them."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, cast
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio import ConnectionPool as PlainPool
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.credentials import CredentialProvider

from benchmarks.faults.load import (
    LIMIT,
    PATIENCE,
    PERIOD,
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
from benchmarks.faults.proxy import LOOPBACK, Proxy
from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi.adapters.redis import RedisManager
from tests.wheel_servers import RedisServer, redis

HOLD = 0.03  # how long a caller's command takes, in seconds
USER = "app"  # the user of the contestants
PASSWORD = "one"  # noqa: S105 - of a server that lives as long as we do
HOOK_TIMEOUT = 1.0  # ours, in seconds
HEALTH_CHECK = 1.0  # the peers' interval, as our `check_after`, in seconds
ADMINS = 1  # connections of the administrator
ROOM = 5  # how many connections others leave to a pool
NOWHERE = "1"  # the port of a master that is not there: a replica refuses to write all the same
DELAY = 0.1  # of each piece on a slow network, in seconds

# --- the contestants -----------------------------------------------------------------------------

Address = Callable[[], str]  # asked anew for each connection, where a pool can do so


def retry() -> Retry:
    """Return what redis-py's own client takes if nothing else is said."""
    return Retry(ExponentialWithJitterBackoff(base=0.01, cap=1), 10)


async def work(client: Any) -> None:
    """Wait for what does not come: a command that takes its time, and that a replica refuses."""
    await client.blpop(["nothing"], HOLD)


def ours(**options: Any) -> Callable[[Address], Awaitable[Opened]]:
    async def open_pool(address: Address) -> Opened:
        pool = ConnectionPool(
            RedisManager(address, **options),
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


class Credentials(CredentialProvider):
    """How redis-py asks anew for each connection."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def get_credentials(self) -> tuple[str, str]:
        parts = urlsplit(self._address())
        return parts.username or "", parts.password or ""

    async def get_credentials_async(self) -> tuple[str, str]:
        return self.get_credentials()


def redis_py(kind: type[PlainPool], **options: Any) -> Callable[[Address], Awaitable[Opened]]:
    async def open_pool(address: Address) -> Opened:
        pool: PlainPool = kind(
            host=LOOPBACK,
            port=urlsplit(address()).port,
            credential_provider=Credentials(address),
            **options,
        )

        @asynccontextmanager
        async def lease() -> AsyncIterator[Any]:
            async with Redis(connection_pool=pool, single_connection_client=True) as client:
                yield client

        async def expire() -> None:
            await pool.disconnect(inuse_connections=False)
            await cast("Any", pool).update_active_connections_for_reconnect()

        return Opened(lease=lease, work=work, close=pool.aclose, expire=expire)

    return open_pool


OURS = [
    Contestant("this pool", ours()),
    Contestant("this pool, retry", ours(retry=retry())),
]
PEERS = [
    Contestant("ConnectionPool of 100, retry", redis_py(PlainPool, retry=retry())),
    Contestant("BlockingConnectionPool", redis_py(BlockingConnectionPool, max_connections=LIMIT, timeout=PATIENCE)),
    Contestant(
        "BlockingConnectionPool, retry, health check",
        redis_py(
            BlockingConnectionPool,
            max_connections=LIMIT,
            timeout=PATIENCE,
            retry=retry(),
            health_check_interval=HEALTH_CHECK,
        ),
    ),
]

Fault = Callable[[Contestant, Effort], Awaitable[Outcome]]

# --- where it happens ----------------------------------------------------------------------------


class Site:
    """A Redis, a client of its administrator, and the address for the contestants."""

    def __init__(self, server: RedisServer, admin: Any) -> None:
        self.server = server
        self.admin = admin
        self.port = server.port
        self.password = PASSWORD

    def address(self) -> str:
        return f"redis://{USER}:{self.password}@{LOOPBACK}:{self.port}/0"

    async def clients(self) -> list[int]:
        """Ask for the numbers of the contestant's connections."""
        return [int(client["id"]) for client in await self.admin.client_list() if client["user"] == USER]

    async def count(self) -> int:
        """Ask how many connections the contestant has."""
        return len(await self.clients())


@asynccontextmanager
async def site(*options: str) -> AsyncGenerator[Site]:
    account = "--user", USER, "on", f">{PASSWORD}", "~*", "&*", "+@all"
    with redis(*account, *options) as server:
        async with Redis.from_url(server.url, protocol=2, retry=retry()) as admin:
            yield Site(server, admin)


@asynccontextmanager
async def site_behind_a_proxy() -> AsyncGenerator[tuple[Site, Proxy]]:
    async with site() as it, Proxy(it.port) as proxy:
        it.port = proxy.port
        yield it, proxy


async def seconds_until(condition: Callable[[], Awaitable[bool]], effort: Effort) -> float:
    """Return how long it takes, infinity if that is too long."""
    began = clock()
    while not await condition():
        if clock() > began + effort.bound:
            return math.inf
        await asyncio.sleep(PERIOD)
    return clock() - began


# --- the faults --------------------------------------------------------------------------------


async def killed(contestant: Contestant, effort: Effort) -> Outcome:
    """The server is killed, and started again."""
    async with site() as it:

        async def fault(load: Load) -> None:
            await asyncio.to_thread(it.server.stop)
            load.strike()
            await asyncio.sleep(effort.down)
            await asyncio.to_thread(it.server.start)
            load.end()

        return await outcome_of(contestant, it.address, fault, it.count, effort)


async def cut_off(contestant: Contestant, effort: Effort) -> Outcome:
    """The server closes all connections, and takes new ones."""
    async with site() as it:

        async def fault(load: Load) -> None:
            await it.admin.execute_command("CLIENT KILL", "USER", USER)
            load.strike()
            load.end()

        return await outcome_of(filled(contestant), it.address, fault, it.count, effort)


async def failed_over(contestant: Contestant, effort: Effort) -> Outcome:
    """The server becomes a replica, its name leads to another one from then on; and back again."""
    async with site_behind_a_proxy() as (it, proxy), site() as other:

        async def fail_over(old: Site, new: Site) -> None:
            await new.admin.replicaof("NO", "ONE")
            proxy.lead_to(new.server.port)
            await old.admin.replicaof(LOOPBACK, NOWHERE)

        async def fault(load: Load) -> None:
            await fail_over(it, other)
            load.strike()
            await asyncio.sleep(effort.down)
            await fail_over(other, it)
            load.end()

        return await outcome_of(filled(contestant), it.address, fault, it.count, effort)


def through_proxy(make: Callable[[Proxy], object]) -> Fault:
    """A network that goes bad for a while, and that stalls as the pool is closed."""

    async def bad_network(contestant: Contestant, effort: Effort) -> Outcome:
        async with site_behind_a_proxy() as (it, proxy):

            async def fault(load: Load) -> None:
                make(proxy)
                load.strike()
                await asyncio.sleep(effort.down)
                proxy.resume()
                load.end()

            return await outcome_of(filled(contestant), it.address, fault, it.count, effort, before_close=proxy.stall)

    return bad_network


async def crowded(contestant: Contestant, effort: Effort) -> Outcome:
    """Others leave ROOM connections of `maxclients`; a pool has recovered once it has all after they close."""
    async with site("--maxclients", str(LIMIT + ADMINS)) as it, AsyncExitStack() as others:
        for _ in range(LIMIT - ROOM):
            other: Any = await others.enter_async_context(Redis.from_url(it.server.url, single_connection_client=True))
            await other.ping()
        grown_after = math.inf

        async def has_grown() -> bool:
            return await it.count() == LIMIT

        async def fault(load: Load) -> None:
            nonlocal grown_after
            load.strike()
            await asyncio.sleep(effort.down)
            await others.aclose()
            load.end()
            grown_after = await seconds_until(has_grown, effort)

        outcome = await outcome_of(contestant, it.address, fault, it.count, effort)
        return replace(outcome, recovered_after=max(outcome.recovered_after, grown_after))


async def rotated(contestant: Contestant, effort: Effort) -> Outcome:
    """The password changes, and the pool is told to replace its connections; recovered once no old one is left."""
    async with site() as it:
        turned_after = math.inf

        async def fault(load: Load) -> None:
            nonlocal turned_after
            outdated = set(await it.clients())
            old, new = it.password, "another"
            await it.admin.acl_setuser(USER, enabled=True, passwords=[f"+{new}"])
            it.password = new
            await load.opened.expire()
            await it.admin.acl_setuser(USER, enabled=True, passwords=[f"-{old}"])
            load.strike()
            load.end()

            async def has_turned() -> bool:
                return outdated.isdisjoint(await it.clients())

            turned_after = await seconds_until(has_turned, effort)

        outcome = await outcome_of(contestant, it.address, fault, it.count, effort)
        return replace(outcome, recovered_after=max(outcome.recovered_after, turned_after))


FAULTS: dict[str, Fault] = {
    "server killed": killed,
    "all connections killed": cut_off,
    "failed over, and back": failed_over,
    "maxclients reached": crowded,
    "network stalls": through_proxy(Proxy.stall),
    "network resets": through_proxy(Proxy.reset),
    "network slow": through_proxy(lambda proxy: proxy.slow(DELAY)),
    "password changed": rotated,
}


def beside(fault: Fault) -> Scenario:
    async def run(effort: Effort) -> list[Row]:
        return [Row(contestant.name, await fault(contestant, effort)) for contestant in OURS + PEERS]

    return run


SCENARIOS: dict[str, Scenario] = {f"Redis: {name}": beside(fault) for name, fault in FAULTS.items()}
