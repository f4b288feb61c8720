"""aiomysql and asyncmy on a MariaDB that dies, is full, takes no writes, or does not answer."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest

from benchmarks.faults.proxy import Proxy
from connectionpools_fastapi import ConnectionPool, HookTimeout, ResourceUnavailable
from connectionpools_fastapi.adapters import _mysql
from tests.back_ends import until
from tests.mariadb_servers import MariadbServer, mariadb
from tests.mysql_drivers import WRITE, Driver, fixture_driver, outside, rows, time_to_end, until_runs, value  # noqa: F401 - pytest finds it

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


def test_server_without_writes_retires_connections_at_times(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = _mysql.Verdicts()
    refused = Exception(1290, "The MariaDB server is running with the --read-only option")
    assert verdicts.of(refused) == "expire"
    monkeypatch.setattr(_mysql, "monotonic", lambda: time.monotonic() + _mysql.RETIRE_EVERY)
    assert [verdicts.of(refused), verdicts.of(refused)] == ["expire", None]


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
