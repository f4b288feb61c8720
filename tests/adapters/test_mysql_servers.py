"""aiomysql and asyncmy on a MariaDB that dies, is full, takes no writes, or does not answer."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from benchmarks.faults.proxy import Proxy
from connectionpools_fastapi import ConnectionPool, HookTimeout, PoolConfigError, ResourceUnavailable
from connectionpools_fastapi.adapters import _mysql_manager
from tests.back_ends import until
from tests.mariadb_servers import MariadbServer, mariadb
from tests.mysql_drivers import WRITE, Driver, fixture_driver, outside, rows, time_to_end, until_runs, value  # noqa: F401 - pytest finds it
from tests.wheel_servers import PASSWORD

pytestmark = [pytest.mark.anyio, pytest.mark.needs_program("mariadbd")]

LIMIT = 3
SLOW_MACHINE = 1.9  # seconds that may be added to any time


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio only, as the drivers do."""
    return "asyncio"


@pytest.fixture(scope="module")
def server() -> Iterator[MariadbServer]:
    """Yield a MariaDB of this module's own, without TLS."""
    with mariadb("--skip-ssl") as server:
        yield server


@pytest.fixture
async def root(server: MariadbServer) -> AsyncIterator[Any]:
    async with outside(server.root_url) as connection:
        await rows(connection, "CREATE OR REPLACE TABLE kept (n int) ENGINE InnoDB")
        yield connection


async def test_killed_server_costs_its_leases_only(driver: Driver, server: MariadbServer) -> None:
    """What is free is found dead without a round trip, and is not leased."""
    async with ConnectionPool(driver.manager(server.url), limit=LIMIT, timeout=10, check_after=3600) as pool:
        async with AsyncExitStack() as leases:
            taken = [await leases.enter_async_context(pool.lease()) for _ in range(LIMIT)]
            for connection in taken:
                assert await value(connection, "SELECT 1") == 1
        with suppress(driver.errors.Error):
            async with pool.lease() as connection:
                server.kill()
                await value(connection, "SELECT 1")
        server.start()
        for _ in range(LIMIT):
            async with pool.lease() as connection:
                assert await value(connection, "SELECT 1") == 1
        assert pool.stats().timeouts == 0


async def test_pool_lives_with_few_server_slots(driver: Driver, server: MariadbServer, root: Any) -> None:
    before = await value(root, "SELECT @@max_connections")
    await rows(root, "SET GLOBAL max_connections = 10")
    try:
        async with AsyncExitStack() as others:
            for _ in range(7):  # with that of `root`, they leave two
                await others.enter_async_context(outside(server.url))
            async with ConnectionPool(driver.manager(server.url), limit=9, timeout=10, name="db") as pool:

                async def work() -> None:
                    async with pool.lease() as connection:
                        await rows(connection, "SELECT sleep(0.05)")

                async with asyncio.TaskGroup() as group:
                    for _ in range(9):
                        group.create_task(work())
                stats = pool.stats()
                assert (stats.acquires, stats.timeouts, sum(stats.refusals.values())) == (9, 0, 0)
                assert stats.create_failures > 0
    finally:
        await rows(root, f"SET GLOBAL max_connections = {before}")


async def test_write_on_a_demoted_server_replaces_all_connections(
    driver: Driver, server: MariadbServer, root: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mysql_manager, "RETIRE_EVERY", 3600.0)

    async def write() -> None:
        async with pool.lease() as connection:
            with suppress(driver.errors.OperationalError, driver.errors.InternalError):
                await rows(connection, WRITE)
            await connection.commit()

    async with ConnectionPool(driver.manager(server.url), limit=2) as pool:
        await rows(root, "SET GLOBAL read_only = 1")
        try:
            async with pool.lease():
                await write()
            assert pool.stats().discards["expire"] == 2
            for _ in range(2):  # at most once in a while
                await write()
            assert pool.stats().discards["expire"] == 2
        finally:
            await rows(root, "SET GLOBAL read_only = 0")
        await write()
    assert await value(root, "SELECT count(*) FROM kept") == 1


async def test_transaction_of_a_lease_that_is_read_only_costs_nothing(
    driver: Driver, server: MariadbServer, root: Any
) -> None:
    async with ConnectionPool(driver.manager(server.url), limit=1) as pool:
        async with pool.lease() as connection:
            await rows(connection, "START TRANSACTION READ ONLY")
            with pytest.raises(driver.errors.Error, match="READ ONLY transaction"):
                await rows(connection, WRITE)
        async with pool.lease() as connection:
            await rows(connection, WRITE)
            await connection.commit()
        assert pool.stats().creates == 1
    assert await value(root, "SELECT count(*) FROM kept") == 1


async def test_password_change_replaces_connections(driver: Driver, server: MariadbServer, root: Any) -> None:
    password = PASSWORD
    address = server.url
    async with ConnectionPool(driver.manager(lambda: address.replace(PASSWORD, password)), limit=1) as pool:
        async with pool.lease() as connection:
            session = connection.thread_id()
        try:
            password = "another"  # noqa: S105 - of a server that lives as long as we do
            await rows(root, f"ALTER USER app@127.0.0.1 IDENTIFIED BY '{password}'")
            pool.expire()
            async with pool.lease() as connection:
                assert connection.thread_id() != session
                assert await value(connection, "SELECT 1") == 1
            password = "wrong"  # noqa: S105 - as above
            pool.expire()
            with pytest.raises(PoolConfigError, match="refuses this user"):
                await pool.acquire()
        finally:
            await rows(root, f"ALTER USER app@127.0.0.1 IDENTIFIED BY '{PASSWORD}'")


async def test_server_without_tls_is_refused_if_tls_is_asked_for(driver: Driver, server: MariadbServer) -> None:
    """aiomysql itself would go on in plain text."""
    async with ConnectionPool(driver.manager(server.url, ssl=ssl.create_default_context()), limit=1) as pool:
        with pytest.raises(PoolConfigError, match="speaks no TLS"):
            await pool.acquire()


# --- on a network that passes on nothing ---------------------------------------------------------

HOOK_ENDS = 0.3  # hook_timeout, in seconds
LEASES_HAVE = 0.2  # close_timeout


@pytest.fixture
async def proxy(server: MariadbServer) -> AsyncIterator[Proxy]:
    async with Proxy(server.port) as proxy:
        yield proxy


def behind(proxy: Proxy, driver: Driver, server: MariadbServer) -> ConnectionPool[Any]:
    url = server.url.replace(str(server.port), str(proxy.port))
    return ConnectionPool(
        driver.manager(url),
        limit=2,
        timeout=60,
        check_after=0,
        hook_timeout=HOOK_ENDS,
        close_timeout=LEASES_HAVE,
    )


async def test_hooks_end_at_hook_timeout_on_a_network_that_stalls(
    driver: Driver, server: MariadbServer, proxy: Proxy
) -> None:
    loop = asyncio.get_running_loop()
    async with behind(proxy, driver, server) as pool:
        first, second = await pool.acquire(), await pool.acquire()
        await pool.release(second)
        proxy.stall()
        began = loop.time()
        await pool.release(first)
        assert HOOK_ENDS <= loop.time() - began < HOOK_ENDS + SLOW_MACHINE
        assert pool.stats().discards["change"] == 1
        with pytest.raises(ResourceUnavailable) as refused:
            await pool.acquire()
        assert isinstance(refused.value.__cause__, HookTimeout)
        assert pool.stats().discards["check"] == 1
        began = loop.time()
        await pool.close()
        assert loop.time() - began < HOOK_ENDS + SLOW_MACHINE
        assert (pool.stats().creates, pool.stats().cleans) == (2, 2)


async def test_lease_hanging_in_a_query_lets_the_pool_close(
    driver: Driver, server: MariadbServer, proxy: Proxy, root: Any
) -> None:
    loop = asyncio.get_running_loop()
    query = "SELECT sleep(60)"
    async with behind(proxy, driver, server) as pool:

        async def hang() -> None:
            with suppress(driver.errors.Error):
                async with pool.lease() as connection:
                    await rows(connection, query)

        hanging = asyncio.create_task(hang())
        running = await until_runs(root, query)
        proxy.stall()
        began = loop.time()
        await pool.close()
        assert LEASES_HAVE <= loop.time() - began < LEASES_HAVE + HOOK_ENDS + SLOW_MACHINE
        proxy.resume()
        hanging.cancel()
        await asyncio.wait([hanging])
        await until(lambda: pool.stats().cleans == pool.stats().creates)
        await time_to_end(root, *running)  # killed, or seen by the server, which looks every few seconds
