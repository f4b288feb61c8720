"""What a sandbox promises, through each manager that has one."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from connectionpools_fastapi.testing import faults, sandbox
from tests.sandboxes import KINDS, Database, awaited, insert_of, open_database

pytestmark = pytest.mark.anyio
NAMES = "SELECT name FROM users"
EACH: Any = [pytest.param(kind, marks=kind.marks, id=kind.name) for kind in KINDS]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=EACH, name="database")
async def fixture_database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    return await open_database(request.param, request, tmp_path)


async def add(database: Database, conn: Any, name: str) -> None:
    assert database.kind.rows is not None
    await database.kind.rows(conn, insert_of(name))


async def commit(database: Database, conn: Any) -> None:
    if not database.kind.autocommits:
        await awaited(conn.commit())


async def names(database: Database, conn: Any) -> list[str]:
    assert database.kind.rows is not None
    return sorted(name for (name,) in await database.kind.rows(conn, NAMES))


async def test_committed_rows_last_as_long_as_sandbox(database: Database) -> None:
    async with database.pool() as db:
        for _ in range(2):
            async with sandbox(db):
                async with db.lease() as conn:
                    await add(database, conn, "ann")
                    await commit(database, conn)
                async with db.lease() as conn:
                    assert await names(database, conn) == ["ann"]
                    await add(database, conn, "bob")
                    await commit(database, conn)
                async with db.lease() as conn:
                    assert await names(database, conn) == ["ann", "bob"]
                assert await database.names() == []
            assert await database.names() == []
        async with db.lease() as conn:
            assert await names(database, conn) == []
            await add(database, conn, "cat")
            await commit(database, conn)
    assert await database.names() == ["cat"]


async def test_failed_statement_undoes_what_its_lease_has_not_committed(database: Database) -> None:
    async with database.pool() as db, sandbox(db):
        async with db.lease() as conn:
            await add(database, conn, "ann")
            await commit(database, conn)
        with pytest.raises(Exception, match=r"(?i)unique|duplicate"):  # noqa: PT012 - the end of the block raises
            async with db.lease() as conn:
                await add(database, conn, "bob")
                await add(database, conn, "ann")
        async with db.lease() as conn:
            kept = ["ann", "bob"] if database.kind.autocommits else ["ann"]
            assert await names(database, conn) == kept
            await add(database, conn, "cat")
            await commit(database, conn)
    assert await database.names() == []


@pytest.mark.parametrize("database", [kind for kind in EACH if not kind.values[0].autocommits], indirect=True)
async def test_rollback_goes_back_to_last_commit(database: Database) -> None:
    async with database.pool() as db, sandbox(db):
        async with db.lease() as conn:
            await add(database, conn, "ann")
            await commit(database, conn)
            await add(database, conn, "bob")
            await awaited(conn.rollback())
            assert await names(database, conn) == ["ann"]
            await add(database, conn, "cat")  # and is not committed
        async with db.lease() as conn:
            assert await names(database, conn) == ["ann"]


async def test_leases_take_turns(database: Database) -> None:
    async def use(number: int) -> int:
        async with db.lease() as conn:
            before = len(await names(database, conn))
            await add(database, conn, str(number))
            await commit(database, conn)
            return before

    async with database.pool() as db, sandbox(db):
        seen = await asyncio.gather(*map(use, range(5)))
        assert sorted(seen) == list(range(5))
    assert await database.names() == []


async def test_discarded_lease_keeps_what_others_have_committed(database: Database) -> None:
    async with database.pool() as db, sandbox(db):
        with faults(db) as fault:
            async with db.lease() as conn:
                await add(database, conn, "ann")
                await commit(database, conn)
            fault.fail("change")
            async with db.lease() as conn:
                await add(database, conn, "bob")
            async with db.lease() as conn:
                assert "ann" in await names(database, conn)
                assert ("bob" in await names(database, conn)) is database.kind.autocommits
    assert await database.names() == []
