"""The example application while its PostgreSQL is killed and started again under it."""

import time
from collections.abc import Iterator

import httpx
import pytest

from tests.links import Links, shorten
from tests.wheel_servers import PASSWORD, PostgresServer, postgres

PATIENCE = 30.0


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A server that may be killed."""
    with postgres() as server:
        yield server


def tries() -> Iterator[None]:
    """Go on until PATIENCE is at its end."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        yield
    pytest.fail("it did not happen in time")


def until_refused(client: httpx.Client, path: str, pool: str) -> None:
    """Ask until the health of a pool says that it is down: for a moment a killed server's processes live on."""
    for _ in tries():
        answer = client.get(path)
        assert answer.status_code in (200, 307, 503)
        if answer.status_code == 503:
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers["retry-after"]) >= 1
            if client.get(f"/pool/health/{pool}").json()["status"] == "fail":
                return


def until_well(client: httpx.Client) -> None:
    """Ask for the health until there is nothing to complain of."""
    for _ in tries():
        if client.get("/pool/health").json()["status"] == "pass":
            return


def until_all_is_given_back(client: httpx.Client) -> None:
    """Ask for the health until no request holds a connection; a click is counted after the redirect."""
    for _ in tries():
        if not any(pool["taken"] for pool in client.get("/pool/health").json()["pools"].values()):
            return


def until_clicks(client: httpx.Client, clicks: int) -> None:
    """Ask for the report until it shows a click, which is counted after the redirect."""
    for _ in tries():
        if client.get("/api/report").json()["clicks"] == clicks:
            return


def test_outage_is_reported_and_ends_by_itself(own_postgres: PostgresServer) -> None:
    with Links({"DATABASE_URL": own_postgres.url, "POOL_LIMIT": "3"}) as server, server.client() as client:
        code = shorten(client, "https://example.com/kept")
        assert client.get(f"/{code}").status_code == 307
        until_clicks(client, 1)

        own_postgres.kill()
        for path, pool in (("/api/links", "db"), (f"/{code}", "db"), ("/api/report", "report")):
            until_refused(client, path, pool)
        health = client.get("/pool/health")
        assert health.status_code == 503
        assert {pool["status"] for pool in health.json()["pools"].values()} == {"fail"}
        assert client.get("/api/links.csv").status_code == client.get(f"/{code}").status_code == 503
        assert client.get("/").status_code == client.get("/pool/health/live").status_code == 200

        own_postgres.start()
        until_well(client)
        assert client.get(f"/{code}").headers["location"] == "https://example.com/kept"
        shorten(client)
        until_all_is_given_back(client)

        assert server.stop() == 0
        assert "create works again" in server.log
        for word in ("Traceback", " ERROR ", PASSWORD, f":{own_postgres.port}"):
            assert word not in server.log, server.log


def test_app_starts_without_its_server_and_recovers(own_postgres: PostgresServer) -> None:
    own_postgres.kill()
    with Links({"DATABASE_URL": own_postgres.url}) as server, server.client() as client:
        until_refused(client, "/api/links", "db")

        own_postgres.start()
        until_well(client)

        shorten(client)
        assert server.stop() == 0
        assert PASSWORD not in server.log
