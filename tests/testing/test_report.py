"""The table of what requests take: what is counted in a lease."""

from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from connectionpools_fastapi import ConnectionPool, Leased, install_pools
from connectionpools_fastapi.testing import sandbox, started
from connectionpools_fastapi.testing._report import recorder, table_of
from tests.sandboxes import KINDS, awaited, insert_of, open_database

pytestmark = [pytest.mark.anyio, pytest.mark.needs_python]
TELLS = [kind for kind in KINDS if "asyncpg" in kind.name or "sqlalchemy" in kind.name]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def rows_of(seen: recorder) -> dict[str, str]:
    head, _, *lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table_of([seen.record()]).splitlines()
    ]
    assert len(lines) == 1
    return dict(zip(head, lines[0], strict=True))


async def ask(app: FastAPI, path: str, times: int = 1) -> None:
    async with (
        started(app) as served,
        httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url="http://test") as client,
    ):
        for _ in range(times):
            assert (await client.get(path)).status_code == 200


async def test_lease_is_unused_since_its_response_began() -> None:
    now = 0.0
    db = ConnectionPool(create=object, limit=1, blocking=False, clock=lambda: now, name="db")
    app = FastAPI()
    install_pools(app, db)

    async def parts() -> AsyncIterator[str]:
        nonlocal now
        yield "a"
        now += 2
        yield "b"

    @app.get("/stream")
    async def stream(_: Annotated[Any, Leased(db)]) -> StreamingResponse:
        nonlocal now
        now += 1
        return StreamingResponse(parts())

    with recorder() as seen:
        await ask(app, "/stream", times=2)
    row = rows_of(seen)
    assert row["route"] == "GET /stream"
    assert (row["held (s)"], row["held at most (s)"], row["unused (s)"]) == ("6.000", "3.000", "4.000")
    assert row["queries"] == ""  # nothing tells of any


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=kind.marks, id=kind.name) for kind in TELLS])
@pytest.mark.parametrize("around", [sandbox, lambda _: nullcontext()], ids=["sandbox", ""])
async def test_driver_that_tells_has_its_queries_counted(
    kind: Any, around: Any, request: pytest.FixtureRequest, tmp_path: Any
) -> None:
    database = await open_database(kind, request, tmp_path)
    db = database.pool()
    app = FastAPI()
    install_pools(app, db)

    @app.get("/users")
    async def users(conn: Annotated[Any, Leased(db)]) -> int:
        await database.kind.rows(conn, insert_of("ann"))  # type: ignore[misc] # each kind has it
        if not kind.autocommits:
            await awaited(conn.rollback())
        return len(await database.kind.rows(conn, "SELECT name FROM users"))  # type: ignore[misc] # as above

    async with started(app) as served, httpx.AsyncClient(transport=httpx.ASGITransport(served)) as client:
        with recorder() as seen:
            async with around(db):
                assert (await client.get("http://test/users")).status_code == 200
    assert rows_of(seen)["queries"] == "2"
