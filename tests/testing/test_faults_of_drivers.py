"""A killed connection, through each manager: its holder gets what it would get from a server that has gone."""

from pathlib import Path
from typing import Any

import pytest

from connectionpools_fastapi.testing import faults
from tests.sandboxes import KINDS, Kind, open_database

pytestmark = pytest.mark.anyio
ASK = "SELECT name FROM users"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=kind.marks, id=kind.name) for kind in KINDS])
async def test_killed_connection_raises_error_of_driver(kind: Kind, request: Any, tmp_path: Path) -> None:
    database = await open_database(kind, request, tmp_path)
    assert kind.rows is not None
    async with database.pool() as db:
        with faults(db) as fault:
            async with db.lease() as conn:
                assert await fault.kill() == 1
                with pytest.raises(Exception, match=r"(?i)closed|lost|gone|not connected"):
                    await kind.rows(conn, ASK)
            async with db.lease() as conn:
                assert len(await kind.rows(conn, ASK)) == 0
