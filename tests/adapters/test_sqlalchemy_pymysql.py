"""SyncSqlalchemyManager on PyMySQL: the same reset as the managers of aiomysql and asyncmy, on MariaDB."""

import struct
from typing import Any

import pymysql  # type: ignore[import-untyped] # has no types
import pytest
from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import NullPool

from connectionpools_fastapi import ConnectionPool, PoolConfigError
from connectionpools_fastapi.adapters import _sqlalchemy_drivers as drivers
from connectionpools_fastapi.adapters.sqlalchemy import SyncSqlalchemyManager
from tests.mariadb_servers import MariadbServer
from tests.sqlalchemy_pools import each_reset
from tests.support import check

pytestmark = pytest.mark.needs_program("mariadbd")

MANY = "SELECT seq FROM seq_1_to_100000"


@pytest.fixture(name="url")
def fixture_url(mariadb_server: MariadbServer) -> URL:
    return make_url(mariadb_server.url).set(drivername="mysql+pymysql")


def pool_of(url: Any, **options: Any) -> ConnectionPool[Connection]:
    return ConnectionPool(SyncSqlalchemyManager(url, **options), limit=1, check_after=0, name="db")


def driven(connection: Connection) -> Any:
    return connection.connection.driver_connection


def test_settings_of_the_connection_are_those_of_each_lease(url: URL) -> None:
    options = {
        "charset": "latin1",
        "init_command": "SET time_zone = '+01:00', @mine = 'é'",
        "sql_mode": "ANSI_QUOTES",
    }
    with pool_of(url, connect_args=options, isolation_level="READ COMMITTED") as pool:
        for _ in range(2):
            with pool.lease() as connection:
                asked = "SELECT @@autocommit, @@sql_mode, @@time_zone, @@character_set_client, database(), @mine"
                found = connection.exec_driver_sql(asked).one()
                assert found == (0, "ANSI_QUOTES", "+01:00", "latin1", "test", "é")
                assert connection.get_isolation_level() == "READ COMMITTED"
                driven(connection).set_character_set("utf8mb4")
                connection.exec_driver_sql("USE information_schema")
        assert pool.stats().creates == 1


def test_isolation_level_ends_with_the_lease(url: URL) -> None:
    with pool_of(url) as pool:
        with pool.lease() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").exec_driver_sql("SELECT 1")
        with pool.lease() as connection:
            assert connection.exec_driver_sql("SELECT @@autocommit").scalar() == 0
        assert pool.stats().creates == 1


def test_reset_takes_one_round_trip(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = SyncSqlalchemyManager(url)
    connection: Any = manager.create()
    writes: list[bytes] = []
    write = connection.driven._write_bytes

    def note(data: bytes) -> None:
        writes.append(data)
        write(data)

    monkeypatch.setattr(connection.driven, "_write_bytes", note)
    manager.change(connection)
    _rollback, packets = writes
    assert packets.startswith(struct.pack("<iB", 1, drivers.COM_RESET_CONNECTION))
    manager.clean(connection)


def test_lost_write_is_told_with_the_remedy(url: URL, caplog: pytest.LogCaptureFixture) -> None:
    with pool_of(url) as pool:
        with pool.lease() as connection:
            connection.exec_driver_sql("CREATE OR REPLACE TABLE lost (n int) ENGINE InnoDB")
            connection.exec_driver_sql("INSERT INTO lost VALUES (1)")
            connection.commit()
        with pool.lease() as connection:
            connection.exec_driver_sql("SELECT * FROM lost")
        assert caplog.messages == []
        with pool.lease() as connection:
            connection.exec_driver_sql("DELETE FROM lost")
        with pool.lease() as connection:
            assert connection.exec_driver_sql("SELECT n FROM lost").scalar() == 1
    (told,) = caplog.messages
    assert "write `conn.commit()`" in told


def test_engine_of_yours_is_reset_too(url: URL) -> None:
    with pool_of(create_engine(url, poolclass=NullPool)) as pool:
        with pool.lease() as connection:
            connection.exec_driver_sql("SET @mine = 1")
        with pool.lease() as connection:
            assert connection.exec_driver_sql("SELECT @mine").scalar() is None
        assert pool.stats().creates == 1


@each_reset
def test_connection_that_a_lease_closed_is_destroyed(url: URL, reset: str) -> None:
    with pool_of(url, reset=reset) as pool:
        with pool.lease() as connection:
            driven(connection).close()
        with pool.lease() as connection:
            assert connection.exec_driver_sql("SELECT 7").scalar() == 7
        assert pool.stats().creates == 2


@each_reset
def test_unread_rows_cost_their_connection(url: URL, reset: str) -> None:
    with pool_of(url, reset=reset) as pool:
        with pool.lease() as connection:
            kept = connection.execution_options(stream_results=True).exec_driver_sql(MANY)
            assert kept.fetchone() == (1,)
        with pool.lease() as connection:
            assert connection.exec_driver_sql("SELECT 7").scalar() == 7
        assert pool.stats().creates == 2
        check(pool)


def test_rows_of_a_second_result_are_dropped(url: URL) -> None:
    multi = {"client_flag": pymysql.constants.CLIENT.MULTI_STATEMENTS}
    with pool_of(url, connect_args=multi) as pool:
        with pool.lease() as connection:
            connection.exec_driver_sql("SELECT 1; SELECT 2; SELECT 3")
        with pool.lease() as connection:
            assert connection.exec_driver_sql("SELECT 7").scalar() == 7
        assert pool.stats().creates == 1


def test_server_too_old_to_reset_is_told(url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "COM_RESET_CONNECTION", 0x7F)  # which no server knows
    pool = pool_of(url)
    with pytest.raises(PoolConfigError, match="too old to reset a session: it needs MySQL"), pool, pool.lease():
        pass


def test_driver_that_is_missing_is_told_with_its_package() -> None:
    with pytest.raises(PoolConfigError, match=r"pip install mysqlclient, or write mysql\+pymysql://"):
        SyncSqlalchemyManager("mysql://app:let-me-in@db/app")


def test_driver_without_a_known_reset_is_refused_with_a_session_reset() -> None:
    with pytest.raises(PoolConfigError, match="no reset of a whole session is known"):
        SyncSqlalchemyManager(create_engine("mysql+mysqlconnector://", module=Unknown(), poolclass=NullPool))


class Unknown:
    """A driver of MySQL."""

    paramstyle = "format"
    Error = Exception
