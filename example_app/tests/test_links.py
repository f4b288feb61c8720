"""How to test an application: `pytest --pool-guard example_app`, with the extra `pytest`."""

import asyncio

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from connectionpools_fastapi.testing import faults
from example_app import Settings, create_app

# Of the pools of this application, the one that writes: "report" reads the same file.
pytestmark = pytest.mark.pool_sandbox("db")
MINE = {"url": "https://example.com/", "code": "mine"}


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """One database for all tests: in a sandbox, none of them leaves anything behind."""
    return Settings(database_url=f"sqlite:///{tmp_path_factory.mktemp('links')}/links.db", pool_timeout=1)


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.usefixtures("pool_sandbox")
def test_code_of_ones_own_is_kept(started_app: TestClient, time: int) -> None:  # noqa: ARG001 - each time anew
    assert started_app.post("/api/links", json=MINE).status_code == 201
    assert started_app.post("/api/links", json=MINE).status_code == 409
    assert started_app.get("/mine", follow_redirects=False).headers["location"] == MINE["url"]
    assert started_app.get("/api/links").json()["links"][0]["clicks"] == 1


@pytest.mark.anyio
@pytest.mark.usefixtures("pool_sandbox")
async def test_parallel_requests_get_codes_of_their_own(started_app: httpx.AsyncClient) -> None:
    new = {"url": "https://example.com/"}
    answers = await asyncio.gather(*(started_app.post("/api/links", json=new) for _ in range(10)))
    assert len({answer.json()["code"] for answer in answers}) == 10


@pytest.mark.usefixtures("pool_sandbox")
@pytest.mark.pool_guard_allow("stream", reason="it reads the next links while it sends")
def test_export_has_all_links(started_app: TestClient) -> None:
    started_app.post("/api/links", json=MINE)
    assert started_app.get("/api/links.csv").text.count("\n") == 2


def test_full_pool_asks_to_come_again(started_app: TestClient, app: FastAPI) -> None:
    with faults(app.state.database.pools[0]) as fault, fault.saturated_sync():
        answer = started_app.get("/api/links")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_outage_ends_by_itself(started_app: TestClient, app: FastAPI) -> None:
    with faults(app.state.database.pools[0]) as fault:
        fault.down()
        assert started_app.get("/api/links").status_code == 503
        fault.up()
        assert started_app.get("/api/links").status_code == 200
