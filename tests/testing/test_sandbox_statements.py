"""The ways to send statements in a sandbox, and how they are read."""

from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped] # has no types
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ProgrammingError

from connectionpools_fastapi import ConnectionPool, PoolConfigError
from connectionpools_fastapi.adapters._savepoints import control_of
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager
from connectionpools_fastapi.adapters.psycopg import PsycopgManager, SyncPsycopgManager
from connectionpools_fastapi.adapters.sqlalchemy import SqlalchemyManager
from connectionpools_fastapi.testing import sandbox
from tests.mysql_drivers import DRIVERS, Driver, rows
from tests.sandboxes import KINDS, open_database
from tests.sandboxes import insert_of as user_of

pytestmark = pytest.mark.anyio
TABLE = "CREATE TABLE numbers (n int)"  # within the sandbox
NUMBERS = "SELECT n FROM numbers ORDER BY n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def insert_of(number: int) -> Any:
    return f"INSERT INTO numbers VALUES ({number})"  # noqa: S608 - a number of a test


async def test_asyncpg_sends_in_all_its_ways(postgres_url: str) -> None:
    async with ConnectionPool(AsyncpgManager(postgres_url), name="db") as db, sandbox(db):
        async with db.lease() as conn:
            await conn.execute(TABLE)
            await conn.copy_records_to_table("numbers", records=[(1,)])
            await conn.executemany("INSERT INTO numbers VALUES ($1)", [(2,)])
            with pytest.raises(asyncpg.DataError):
                await conn.executemany("INSERT INTO numbers VALUES ($1)", [(3,), ("x",)])
            with pytest.raises(asyncpg.UndefinedTableError):
                await conn.prepare("SELECT * FROM nowhere")
            statement = await conn.prepare("INSERT INTO numbers VALUES ($1)")
            await statement.fetch(4)
            async with conn.transaction(isolation="serializable"):
                assert [row["n"] async for row in conn.cursor(NUMBERS)] == [1, 2, 4]
            with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the end of the block raises
                async with conn.transaction():
                    async with conn.transaction():
                        await conn.execute(insert_of(5))
                    raise ZeroDivisionError
        async with db.lease() as conn:
            assert [row["n"] for row in await conn.fetch(NUMBERS)] == [1, 2, 4]


@pytest.mark.parametrize("autocommit", [False, True])
async def test_psycopg_sends_in_all_its_ways(postgres_url: str, *, autocommit: bool) -> None:
    async with ConnectionPool(PsycopgManager(postgres_url, autocommit=autocommit), name="db") as db, sandbox(db):
        async with db.lease() as conn:
            await conn.execute(TABLE)
            await conn.commit()
            async with conn.cursor().copy("COPY numbers FROM STDIN") as copy:
                await copy.write_row((1,))
            await conn.commit()
            with pytest.raises(psycopg.DataError):
                async with conn.cursor().copy("COPY numbers FROM STDIN") as copy:
                    await copy.write_row(("x",))
            await conn.rollback()
            await conn.cursor().executemany("INSERT INTO numbers VALUES (%s)", [(2,)])
            async with conn.pipeline():
                await conn.execute(insert_of(3))
                await conn.commit()
            with pytest.raises(psycopg.errors.UndefinedTable):
                async with conn.pipeline():
                    await conn.execute("SELECT FROM nowhere")
            await conn.rollback()
            assert [row async for row in conn.cursor().stream(NUMBERS)] == [(1,), (2,), (3,)]
            await conn.commit()
            async with conn.transaction() as transaction:
                await conn.execute(insert_of(4))
                raise psycopg.Rollback(transaction)
            async with conn.transaction(force_rollback=True), conn.cursor("named") as cursor:
                await cursor.execute(NUMBERS)
                assert len(await cursor.fetchall()) == 3
            await conn.set_autocommit(True)
            await conn.execute(insert_of(5))
            await conn.set_autocommit(False)
            await conn.execute(insert_of(6))
            with pytest.raises(psycopg.ProgrammingError, match="INTRANS"):
                await conn.set_autocommit(True)
        async with db.lease() as conn:
            assert await (await conn.execute(NUMBERS)).fetchall() == [(1,), (2,), (3,), (5,)]


def test_sync_psycopg_sends_in_all_its_ways(postgres_url: str) -> None:
    with ConnectionPool(SyncPsycopgManager(postgres_url), name="db") as db, sandbox(db):
        with db.lease() as conn:
            conn.execute(TABLE)
            with conn.cursor().copy("COPY numbers FROM STDIN") as copy:
                copy.write_row((1,))
            conn.commit()
            with conn.pipeline():
                conn.execute(insert_of(2))
                conn.commit()
            with conn.transaction() as transaction:
                conn.execute(insert_of(3))
                raise psycopg.Rollback(transaction)
            with conn.transaction():
                conn.execute(insert_of(4))
            conn.execute(insert_of(5))
        with db.lease() as conn:
            assert conn.execute(NUMBERS).fetchall() == [(1,), (2,), (4,)]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_failed_statement_in_autocommit_of_sqlalchemy_stays_alone(driver: str, postgres_url: str) -> None:
    url = make_url(postgres_url).set(drivername=f"postgresql+{driver}")
    async with ConnectionPool(SqlalchemyManager(url), name="db") as db, sandbox(db):
        async with db.lease() as conn:
            await conn.execution_options(isolation_level="AUTOCOMMIT")
            await conn.execute(text(TABLE))
            with pytest.raises(ProgrammingError):
                await conn.execute(text("SELECT * FROM nowhere"))
            await conn.execute(text(insert_of(1)))
        async with db.lease() as conn:
            assert [tuple(row) async for row in await conn.stream(text(NUMBERS))] == [(1,)]


@pytest.mark.needs_program("mariadbd")
@pytest.mark.parametrize("driver", DRIVERS, ids=str)
async def test_autocommit_of_mysql_is_switched_within_sandbox(
    driver: Driver, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    kind = next(kind for kind in KINDS if kind.name == driver.name)
    database = await open_database(kind, request, tmp_path)
    async with database.pool() as db:
        async with sandbox(db):
            async with db.lease() as conn:
                await rows(conn, user_of("ann"))
                await conn.autocommit(True)  # noqa: FBT003 - takes no keyword; it commits
                assert (conn.get_autocommit(), conn.get_transaction_status()) == (True, False)
                await rows(conn, user_of("bob"))
                await conn.begin()
                assert conn.get_transaction_status()
                await rows(conn, user_of("cat"))
                await conn.rollback()
                await conn.autocommit(False)  # noqa: FBT003 - as above
                await rows(conn, user_of("dan"))
                with pytest.raises(PoolConfigError, match="SET autocommit beside other settings"):
                    await rows(conn, "SET autocommit = 1, @a = 1")
            async with db.lease() as conn:
                assert not conn.get_autocommit()
                assert await rows(conn, "SELECT name FROM users ORDER BY name") == [("ann",), ("bob",)]
        assert await database.names() == []


@pytest.mark.parametrize(
    ("sql", "control"),
    [
        ("SELECT 1", None),
        ("", None),
        ("begin", "begin"),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE;", "begin"),
        ("START TRANSACTION", "begin"),
        (" /* a */ -- b\n (COMMIT)", "commit"),
        ("END;", "commit"),
        ("Rollback work", "rollback"),
        ("ROLLBACK TO SAVEPOINT a", None),
        ("ROLLBACK WORK TO a", None),
        ("SELECT ';COMMIT;'; SELECT $a$; COMMIT; $a$, \"; END;\"", None),
        ("PREPARE x AS SELECT 1", None),
        ("committed", None),
    ],
)
def test_statement_is_read_by_its_first_words(sql: str, control: str | None) -> None:
    assert control_of(sql) == control


@pytest.mark.parametrize(
    "sql", ["SELECT 1; COMMIT", "COMMIT PREPARED 'x'", "PREPARE TRANSACTION 'x'", "ROLLBACK AND CHAIN", "XA END 'x'"]
)
def test_statement_beyond_its_lease_is_refused(sql: str) -> None:
    with pytest.raises(PoolConfigError, match="a sandbox cannot run"):
        control_of(sql)
