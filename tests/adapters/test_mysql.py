"""aiomysql and asyncmy on MariaDB: no lease sees what an earlier one left behind, and mistakes are told."""

import asyncio
import importlib
import ssl
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest

from connectionpools_fastapi import PoolConfigError
from connectionpools_fastapi.adapters import _mysql_manager
from connectionpools_fastapi.adapters._options import awaited
from tests.certificates import write_certificate
from tests.mariadb_servers import MariadbServer
from tests.mysql_drivers import (
    DRIVERS,
    FOR_A_MINUTE,
    RESETS,
    Driver,
    Reset,
    end,
    fixture_driver,  # noqa: F401 - pytest finds it
    fixture_proxy,  # noqa: F401 - pytest finds it
    fixture_root,  # noqa: F401 - pytest finds it
    fixture_url,  # noqa: F401 - pytest finds it
    pool_of,
    rows,
    until_runs,
    value,
)
from tests.wheel_servers import PASSWORD
from tests.wires import LOCAL_PORT, Proxy

pytestmark = [pytest.mark.anyio, pytest.mark.needs_program("mariadbd")]


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio only, as the drivers do."""
    return "asyncio"


SECRET = "letmein"  # noqa: S105 - of no account


# --- what a lease may leave behind -----------------------------------------------------------


@pytest.mark.parametrize("reset", RESETS)
async def test_settings_of_the_connection_are_those_of_each_lease(driver: Driver, url: str, reset: Reset) -> None:
    asked = "SELECT @@autocommit, @@sql_mode, @@time_zone, @@character_set_client, database()"
    options = {
        "autocommit": True,
        "charset": "latin1",
        "init_command": "SET time_zone = '+01:00'; SET @mine = 'é'",
        "sql_mode": "'ANSI_QUOTES'",
    }
    async with pool_of(driver.manager(url, reset=reset, **options)) as pool:
        for _ in range(2):
            async with pool.lease() as connection:
                assert await rows(connection, asked) == [(1, "ANSI_QUOTES", "+01:00", "latin1", "test")]
                assert await value(connection, "SELECT @mine") == "é"
                if reset == "session":
                    await rows(
                        connection, "SET NAMES utf8mb4, autocommit = 0, sql_mode = '', time_zone = '+05:00', @mine = 1"
                    )
        assert pool.stats().creates == 1


async def test_charset_may_stand_in_the_url(driver: Driver, url: str) -> None:
    for address, charset in ((url, "utf8mb4"), (f"{url}?charset=latin1", "latin1")):
        async with pool_of(driver.manager(address)) as pool, pool.lease() as connection:
            assert await value(connection, "SELECT @@character_set_client") == charset


@pytest.mark.parametrize("autocommit", [False, True, None])
async def test_autocommit_of_a_lease_ends_with_it(driver: Driver, url: str, *, autocommit: bool | None) -> None:
    async with pool_of(driver.manager(url, autocommit=autocommit)) as pool:
        for _ in range(2):
            async with pool.lease() as connection:
                assert connection.get_autocommit() is (autocommit is not False)
                assert await value(connection, "SELECT @@autocommit") == connection.get_autocommit()
                await connection.autocommit(autocommit is False)
        assert pool.stats().creates == 1


async def test_database_chosen_where_there_was_none_costs_a_connection(driver: Driver, url: str) -> None:
    """No command goes back to none."""
    parts = urlsplit(url)._replace(path="")
    async with pool_of(driver.manager(parts.geturl())) as pool:
        for leave in ("SET @mine = 1", "USE test", "SELECT 1"):
            async with pool.lease() as connection:
                assert await value(connection, "SELECT database()") is None
                await rows(connection, leave)
        assert pool.stats().creates == 2
        assert pool.stats().discards["change"] == 1


@pytest.mark.parametrize("reset", RESETS)
async def test_results_left_unread_are_no_reason_to_reconnect(driver: Driver, url: str, reset: Reset) -> None:
    async with pool_of(driver.manager(url, reset=reset)) as pool:
        async with pool.lease() as connection:
            cursor = connection.cursor()
            cursor = await cursor
            await cursor.execute("SELECT 1; SELECT 2; SELECT 3")
        async with pool.lease() as connection:
            assert await value(connection, "SELECT 4") == 4
        assert pool.stats().creates == 1


async def test_statement_cache_ends_with_the_lease(url: str) -> None:
    driver = DRIVERS[1]
    async with pool_of(driver.manager(url, stmt_cache_size=9)) as pool:
        for _ in range(2):
            async with pool.lease() as connection, connection.cursor() as cursor:
                for number in range(2):
                    await cursor.execute("SELECT %s", (number,))
                    assert await cursor.fetchone() == (number,)
        assert pool.stats().creates == 1
    with pytest.raises(PoolConfigError, match="stmt_cache_size needs reset='session'"):
        driver.manager(url, stmt_cache_size=9, reset="transaction")


# --- what it costs, and what is known without asking ---------------------------------------------


@pytest.mark.parametrize(
    ("reset", "options", "leave", "round_trips"),
    [
        ("session", {}, "SELECT 1", 1),
        ("session", {"init_command": "SET @mine = 1", "sql_mode": "''"}, "BEGIN", 1),
        ("transaction", {"autocommit": True}, "SET @mine = 1", 0),
        ("transaction", {"autocommit": True}, "BEGIN", 1),
        ("transaction", {}, "SELECT 1", 1),  # it may have begun one
    ],
)
async def test_a_reset_makes_as_many_round_trips_as_promised(
    driver: Driver, proxy: Proxy, *, reset: Reset, options: dict[str, Any], leave: str, round_trips: int
) -> None:
    manager = driver.manager(proxy.url, reset=reset, **options)
    connection = await manager.create()
    await rows(connection, leave)
    proxy.sent.clear()
    await awaited(manager.change(connection))
    assert len(proxy.sent) == round_trips
    assert await manager.check(connection) is True
    assert len(proxy.sent) == round_trips + 1
    await manager.clean(connection)
    proxy.sent.clear()
    assert await manager.check(connection) is False
    assert not proxy.sent


async def test_clean_does_not_wait_for_a_network_that_stalls(
    driver: Driver, proxy: Proxy, root: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mysql_manager, "CLOSE_WITHIN", 0.01)
    manager = driver.manager(proxy.url)
    connection = await manager.create()
    manager._options["connect_timeout"] = 0.01  # for the connection that would end the query
    query = asyncio.create_task(rows(connection, FOR_A_MINUTE))
    await until_runs(root, FOR_A_MINUTE)
    proxy.stalls = True
    with anyio.fail_after(5):
        await manager.clean(connection)
        await proxy.left.wait()
        with pytest.raises(driver.errors.Error):
            await query
        await connection.wire.killing
    await end(root, connection.wire.session)


# --- how to connect, and how not ---------------------------------------------------------------


async def test_connecting_is_given_up_in_time(driver: Driver) -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")  # takes calls and says nothing
    port = listener.extra(LOCAL_PORT)  # noqa: S610 - not of Django
    manager = driver.manager(f"mysql://127.0.0.1:{port}", connect_timeout=0.3)
    async with listener:
        with pytest.raises(TimeoutError):
            await manager.create()


async def test_credentials_are_asked_for_anew_at_each_create(driver: Driver, url: str) -> None:
    asked = []

    def plain() -> str:
        asked.append("plain")
        return url

    async def later() -> str:
        asked.append("async")
        return PASSWORD

    parts = urlsplit(url)
    bare = {"host": parts.hostname, "port": parts.port, "user": parts.username, "db": "test", "password": later}
    for manager in (driver.manager(plain), driver.manager(**bare)):
        async with pool_of(manager, limit=2) as pool, pool.lease() as one, pool.lease() as two:
            assert await value(one, "SELECT 1") == await value(two, "SELECT 1") == 1
    assert asked == ["plain", "plain", "async", "async"]


def at(url: str, *, user: str | None = None, database: str | None = None) -> str:
    parts = urlsplit(url)
    account, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user or account}@{host}", path=f"/{database}" if database else parts.path).geturl()


@pytest.mark.parametrize(
    ("make", "options", "names"),
    [
        (lambda _: f"postgresql://u:{SECRET}@localhost/db", {}, r"Write mysql://user:password@host"),
        (lambda _: f"{SECRET}", {}, r"Write mysql://user:password@host"),
        (lambda _: f"mysql+aiomysql://u:{SECRET}@localhost/db", {}, "SQLAlchemy writes it.*Write mysql://"),
        (lambda _: f"mysql://u:{SECRET}@localhost:port/db", {}, "malformed"),
        (lambda _: f"mysql://u:{SECRET}@localhost:99999/db", {}, "malformed"),
        (lambda _: f"mysql://u:{SECRET}/{SECRET}@localhost/db", {}, r"a / stands as it is.*Write %2F"),
        (lambda _: f"mysql://u:{SECRET}@{SECRET}@localhost/db", {}, r"a @ stands as it is.*Write %40"),
        (lambda url: f"{url}?ssl=true", {}, "after the \\? of the URL.*pass ssl as options"),
        (lambda url: at(url, user=f"app:{SECRET}"), {}, "refuses this user"),
        (lambda url: at(url, user=f"nobody-there:{SECRET}"), {}, "refuses this user"),
        (lambda url: at(url, database="mysql"), {}, "may not use this database"),
        (lambda url: url, {"charset": "none"}, "an option or the URL has a value"),
        (lambda url: url, {"init_command": "nonsense"}, "does not understand init_command"),
        (lambda url: url, {"init_command": "SET none = 1"}, "does not know a variable"),
        (lambda url: url, {"sql_mode": "'none'"}, "does not take a value"),
        (lambda _: lambda: None, {}, "must return a str, and returned NoneType"),
    ],
)
async def test_mistake_at_start_is_one_line_without_the_password(
    driver: Driver,
    url: str,
    *,
    make: Callable[[str], Any],
    options: dict[str, Any],
    names: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = driver.manager(make(url), **options)
    with pytest.raises(PoolConfigError, match=names) as caught:
        await pool_of(manager, min_free=1).open()
    told = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(manager)
    assert "\n" not in str(caught.value)
    assert SECRET not in told
    assert PASSWORD not in told
    assert "Access denied" not in told  # the server's text names user and host


async def test_unknown_database_is_told(driver: Driver, mariadb_server: MariadbServer) -> None:
    async with pool_of(driver.manager(at(mariadb_server.root_url, database="nowhere"))) as pool:
        with pytest.raises(PoolConfigError, match="no such database"):
            await pool.acquire()


async def test_server_too_old_to_reset_is_told(driver: Driver, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mysql_manager, "COM_RESET_CONNECTION", 0x7F)  # which is no command
    async with pool_of(driver.manager(url)) as pool:
        with pytest.raises(PoolConfigError, match=r"needs MySQL 5\.7\.3 or MariaDB 10\.2\.4"):
            await pool.acquire()


async def test_server_that_is_down_is_no_mistake(driver: Driver) -> None:
    with pytest.raises(driver.errors.OperationalError) as caught:
        await driver.manager(f"mysql://u:{SECRET}@127.0.0.1:1/db").create()
    assert SECRET not in str(caught.value)


async def test_certificate_that_does_not_verify_is_told(driver: Driver, url: str, tmp_path: Path) -> None:
    other = write_certificate(tmp_path / "other.pem", "127.0.0.1")
    manager = driver.manager(url, ssl=ssl.create_default_context(cafile=str(other)))
    with pytest.raises(PoolConfigError, match="TLS certificate does not pass"):
        await manager.create()


def test_another_event_loop_is_told_to_be_asyncio(driver: Driver) -> None:
    async def use() -> None:
        async with pool_of(driver.manager("mysql://localhost")) as pool:
            await pool.acquire()

    with pytest.raises(PoolConfigError, match="asyncio"):
        anyio.run(use, backend="trio")


def test_unknown_option_is_refused_with_what_to_write(driver: Driver) -> None:
    with pytest.raises(PoolConfigError, match=r"no maxsize: for maxsize write ConnectionPool\(\.\.\., limit="):
        driver.manager("mysql://localhost", maxsize=9)
    with pytest.raises(PoolConfigError, match=r"no autocomit: for autocomit write autocommit="):
        driver.manager("mysql://localhost", autocomit=True)
    with pytest.raises(PoolConfigError, match=r"no xyzzy$"):
        driver.manager("mysql://localhost", xyzzy=SECRET)
    with pytest.raises(PoolConfigError, match="'session' or 'transaction'"):
        driver.manager("mysql://localhost", reset="none")
    with pytest.raises(PoolConfigError, match="url must be a str or a callable"):
        driver.manager(5)


def test_missing_driver_names_what_to_install(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, driver.module.__name__)
    monkeypatch.delitem(sys.modules, f"connectionpools_fastapi.adapters._{driver.name}_connection")
    monkeypatch.setitem(sys.modules, driver.name, None)
    with pytest.raises(ImportError, match=rf"pip install 'connectionpools-fastapi\[{driver.name}\]'"):
        importlib.import_module(driver.module.__name__)
