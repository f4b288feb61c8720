"""Each line of the log carries its facts as `extra`, for logs that are read by programs."""

import ast
import json
import logging
from pathlib import Path
from typing import Annotated, Any

import anyio
import pytest
from fastapi import FastAPI

import connectionpools_fastapi
from connectionpools_fastapi import ConnectionPool, Leased, ResourceUnavailable, install_pools
from connectionpools_fastapi._runtime.storm import Storm
from connectionpools_fastapi.testing import started
from tests.support import SECRET, loop_time, outcome_of
from tests.web import Thing, ask, things

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

PACKAGE = Path(connectionpools_fastapi.__file__).parent
PLAIN = {*vars(logging.makeLogRecord({})), "message", "asctime"}


def facts(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return what a formatter for JSON writes of each line, without the text."""
    return [
        {key: value for key, value in json.loads(json.dumps(vars(record), default=str)).items() if key not in PLAIN}
        for record in caplog.records
    ]


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_line_of_the_log_has_facts(module: Path) -> None:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).lstrip("_") in ("logger.warning", "logger.log"):
            assert "extra" in [keyword.arg for keyword in node.keywords], f"line {node.lineno}"


async def test_a_lease_that_is_held_too_long_tells_what_leases_tell(caplog: pytest.LogCaptureFixture) -> None:
    db = things(max_hold=5, clock=loop_time)
    async with db, db.lease(holder="GET /slow"):
        await anyio.sleep(6)
    lease = {"holder": "GET /slow", "age": 5.0, "wait": 0.0, "uses": 1, "responding": None, "trace": None}
    assert facts(caplog) == [{"pool_event": "held_too_long", "pool": "db", "max_hold": 5, **lease}]


async def test_a_refused_request_tells_pool_route_and_error(caplog: pytest.LogCaptureFixture) -> None:
    app, db = FastAPI(), things(limit=1, min_free=1, timeout=0)
    install_pools(app, db)

    @app.get("/items/{number}")
    async def items(_: Annotated[Thing, Leased(db)], number: int) -> int:
        return number

    async with started(app) as served, db.lease():
        assert (await ask(served, "/items/5", headers=[("authorization", SECRET)])).status == 503
    refused = {"pool_event": "request_refused", "pool": "db", "error": "PoolTimeout"}
    assert facts(caplog) == [{**refused, "route": "GET /items/{number}", "count": 1}]


def test_a_storm_tells_counts_by_kind(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    storm = Storm("refusals", extra={"pool_event": "request_refused"}, clock=lambda: now)
    for kind in ("a", "b", "b", "a", "b"):
        storm.note(kind, f"{kind}: refused", route=kind)
    now = 0.5
    storm.end()
    assert facts(caplog) == [
        {"pool_event": "request_refused", "route": "a", "count": 1},
        {"pool_event": "request_refused", "count": 4, "counts": {"b": 3, "a": 1}},
        {"pool_event": "request_refused", "count": 5, "lasted": 0.0},
    ]


async def test_a_hook_that_fails_tells_its_name_and_error_and_no_credential(caplog: pytest.LogCaptureFixture) -> None:
    def create() -> object:
        raise ConnectionRefusedError(SECRET)

    async with ConnectionPool(create=create, name="db", blocking=False, clock=loop_time) as db:
        assert isinstance(await outcome_of(db.acquire), ResourceUnavailable)
    assert facts(caplog) == [
        {"pool_event": "hook_failed", "pool": "db", "hook": "create", "error": "ConnectionRefusedError", "count": 1}
    ]
    assert SECRET not in str([vars(record) for record in caplog.records])
