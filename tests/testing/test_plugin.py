"""The fixtures of the pytest plugin, in runs of pytest of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "testing.md"
WITHIN = 240.0

INI = """
[pytest]
addopts = -p no:cacheprovider -p no:schemathesis --strict-markers
asyncio_default_fixture_loop_scope = function
filterwarnings =
    error
    ignore:Using `httpx` with `starlette.testclient`
    ignore:The anyio.abc.BlockingPortal alias is deprecated
"""

APP = """
import os
import random
from typing import Annotated, Any

import pytest
from fastapi import FastAPI

from connectionpools_fastapi import ConnectionPool, Leased, install_pools
from connectionpools_fastapi.adapters.psycopg import PsycopgManager


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def app():
    db = ConnectionPool(PsycopgManager(os.environ["DATABASE"]), limit=3, name="db")
    app = FastAPI()
    install_pools(app, db)

    @app.post("/users/{name}", status_code=201)
    async def add(name: str, conn: Annotated[Any, Leased(db)]) -> None:
        await conn.execute("INSERT INTO users VALUES (%s)", [name])
        await conn.commit()

    @app.get("/users")
    async def names(conn: Annotated[Any, Leased(db)]) -> list[str]:
        return [name for (name,) in await (await conn.execute("SELECT name FROM users")).fetchall()]

    @app.get("/twice")
    async def twice(conn: Annotated[Any, Leased(db)]) -> None:
        async with db.lease():
            pass

    return app


def pytest_collection_modifyitems(items):
    random.Random(os.environ["ORDER"]).shuffle(items)
"""

EACH_KIND = """
import pytest


async def in_loop(client):
    assert (await client.post("/users/ann")).status_code == 201
    assert (await client.get("/users")).json() == ["ann"]


@pytest.mark.anyio
@pytest.mark.parametrize("time", [1, 2])
async def test_anyio(started_app, pool_sandbox, time):
    await in_loop(started_app)


@pytest.mark.asyncio
@pytest.mark.parametrize("time", [1, 2])
async def test_asyncio(started_app, pool_sandbox, time):
    await in_loop(started_app)


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("time", [1, 2])
async def test_loop_of_session(started_app, pool_sandbox, time):
    await in_loop(started_app)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("time", [1, 2])
async def test_loop_of_module(started_app, pool_sandbox, time):
    await in_loop(started_app)


@pytest.mark.pool_sandbox("db")
@pytest.mark.parametrize("time", [1, 2])
def test_sync(started_app, pool_sandbox, time):
    assert started_app.post("/users/ann").status_code == 201
    assert started_app.get("/users").json() == ["ann"]
    assert list(pool_sandbox) == ["db"]


@pytest.mark.pool_sandbox("cache")
def test_unknown_pool(started_app, pool_sandbox): ...


class TestManyApplications:
    @pytest.fixture(params=[1, 2])
    def app(self, request, app):
        app.state.number = request.param
        return app

    def test_started(self, started_app, app):
        assert started_app.get("/users").json() == []
        assert app.state.number in (1, 2)


async def test_without_plugin(started_app): ...
"""

HUNDRED = """
import pytest

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("time", range(100))
async def test_adds_the_same(started_app, pool_sandbox, time):
    assert (await started_app.post("/users/ann")).status_code == 201
    assert (await started_app.get("/users")).json() == ["ann"]
"""


def run(folder: Path, test: str, *arguments: str, conftest: str = APP, **variables: str) -> tuple[int, str]:
    """Run pytest on one file; return its exit code and what it printed."""
    for name, content in {"pytest.ini": INI, "conftest.py": conftest, "test_it.py": test}.items():
        (folder / name).write_text(content)
    done = subprocess.run(  # noqa: S603 - our own tests
        [sys.executable, "-m", "pytest", "-q", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ORDER": "7", **variables},
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(name="address")
def fixture_address(postgres_url: str) -> str:
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS users")
        conn.execute("CREATE TABLE users (name text UNIQUE)")
    return postgres_url


def test_fixtures_fit_each_kind_of_test_and_tell_mistakes(tmp_path: Path, address: str) -> None:
    code, said = run(tmp_path, EACH_KIND, DATABASE=address)
    assert (code, "12 passed, 2 errors" in said) == (1, True), said
    assert "the application has no pool named cache; it has db" in said
    assert "needs @pytest.mark.anyio, or pytest-asyncio and its mark" in said


def test_page_begins_with_a_test_that_passes(tmp_path: Path) -> None:
    test, conftest, application = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[:3]
    code, said = run(tmp_path, test, conftest=f"{application}\n\n{conftest}")
    assert (code, "1 passed" in said) == (0, True), said


def test_missing_application_is_told(tmp_path: Path) -> None:
    code, said = run(tmp_path, "def test_it(started_app): ...", conftest="")
    assert (code, "fixture 'app' not found" in said) == (1, True), said
    assert "def started_app(" in said


def test_hundred_tests_add_same_row_in_two_processes(tmp_path: Path, address: str) -> None:
    code, said = run(tmp_path, HUNDRED, "-n", "2", DATABASE=address)
    assert (code, "100 passed" in said) == (0, True), said
    with psycopg.connect(address) as conn:
        assert conn.execute("SELECT count(*) FROM users").fetchone() == (0,)


def test_plugin_imports_nothing_before_use(tmp_path: Path) -> None:
    test = "import sys\ndef test_it(): assert not {'fastapi', 'connectionpools_fastapi'} & set(sys.modules)"
    code, said = run(tmp_path, test, "-p", "no:anyio", conftest="")
    assert code == 0, said


GUARDED = """
import pytest


def test_refused(started_app):
    started_app.get("/twice")


@pytest.mark.pool_guard_allow("second", reason="it asks two databases")
def test_allowed(started_app):
    started_app.get("/twice")


@pytest.mark.pool_guard_allow("second")
def test_without_reason(started_app): ...


def test_well(started_app):
    started_app.get("/users")
"""


REPORTED = """
def test_users(started_app):
    started_app.get("/users")


def test_nothing(started_app):
    started_app.get("/nothing")


def test_users_again(started_app):
    started_app.get("/users")
    started_app.get("/users")
"""


def test_report_has_routes_of_all_processes(tmp_path: Path, address: str) -> None:
    code, said = run(tmp_path, REPORTED, "-n", "2", "--pool-report", "report.md", DATABASE=address)
    assert code == 0, said
    report = (tmp_path / "report.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.splitlines()]
    assert rows[0][0] == "route"
    assert rows[2][:5] == ["GET /users", "3", "db", "3", "1.00"]
    assert rows[3] == ["GET unknown route", "1", "", "0", "0", "", "", "", ""]


def test_guard_fails_tests_unless_a_mark_gives_reason(tmp_path: Path, address: str) -> None:
    code, said = run(tmp_path, GUARDED, "--pool-guard", "-rA", DATABASE=address)
    assert code == 1
    for outcome in ("PASSED {}allowed", "PASSED {}well", "FAILED {}refused", "FAILED {}without_reason"):
        assert outcome.format("test_it.py::test_") in said, said
    assert "GET /twice takes a second lease of the same pool" in said
    assert "'second' is allowed with a reason" in said


OTHER_LOOP = """
import asyncio
import os

import pytest

from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi.adapters.psycopg import PsycopgManager

lasting, ending = (ConnectionPool(PsycopgManager(os.environ["DATABASE"]), name=name) for name in ("lasting", "ending"))


@pytest.fixture(scope="module")
def opened():
    with asyncio.Runner() as runner:
        runner.run(lasting.open())
        yield
        runner.run(lasting.close())


async def use(pool):
    async with pool.lease():
        pass


@pytest.mark.asyncio
async def test_lasting(opened):
    await use(lasting)


@pytest.mark.asyncio
async def test_begins():
    await ending.open()


@pytest.mark.asyncio
async def test_goes_on():
    try:
        await use(ending)
    finally:
        await ending.close()
"""


def test_pool_of_another_tests_loop_is_told_with_the_fix(tmp_path: Path, address: str) -> None:
    code, said = run(tmp_path, OTHER_LOOP, conftest="", DATABASE=address)
    assert (code, "2 failed, 1 passed" in said) == (1, True), said
    for told in ("'lasting': its resources belong to the event loop that opened it", "'ending': the event loop that"):
        assert f"WrongEventLoop: pool {told}" in said, said
    assert said.count("A test opens the pool in its own loop, as the fixture `started_app` does") >= 2
