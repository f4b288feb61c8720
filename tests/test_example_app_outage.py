"""The example application while its PostgreSQL is killed and started again under it."""

import time
from collections.abc import Iterator

import httpx
import pytest

from example_app.servers import PASSWORD, PostgresServer, postgres
from tests.links import Links, shorten

PATIENCE = 30.0


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A server that may be killed."""
    with postgres() as server:
        yield server


def until(client: httpx.Client, status: str) -> httpx.Response:
    """Ask for the health until it is as it should be."""
    deadline = time.monotonic() + PATIENCE
    while (health := client.get("/pool/health")).json()["status"] != status:
        assert time.monotonic() < deadline, health.text
    return health


def test_while_its_server_is_away_it_says_so_and_it_recovers_by_itself(own_postgres: PostgresServer) -> None:
    with Links({"DATABASE_URL": own_postgres.url, "POOL_LIMIT": "3"}) as server, server.client() as client:
        code = shorten(client, "https://example.com/kept")
        assert client.get(f"/{code}").status_code == 307
        assert client.get("/api/report").json()["clicks"] == 1

        own_postgres.kill()
        for _ in range(3):
            for path in ("/api/links", f"/{code}", "/api/report", "/api/links.csv"):
                refused = client.get(path)
                assert refused.status_code == 503, path
                assert refused.headers["content-type"] == "application/problem+json"
                assert int(refused.headers["retry-after"]) >= 1
        health = until(client, "fail")
        assert health.status_code == 503
        assert {pool["status"] for pool in health.json()["pools"].values()} == {"fail"}
        assert client.get("/").status_code == client.get("/pool/health/live").status_code == 200

        own_postgres.start()
        until(client, "pass")
        assert client.get(f"/{code}").headers["location"] == "https://example.com/kept"
        assert client.get("/api/report").json()["clicks"] == 2
        shorten(client)
        health = client.get("/pool/health")
        assert {pool["taken"] for pool in health.json()["pools"].values()} == {0}

        assert server.stop() == 0
        assert "create works again" in server.log
        for word in ("Traceback", " ERROR ", PASSWORD, f":{own_postgres.port}"):
            assert word not in server.log, server.log


def test_without_its_server_it_starts_and_recovers_by_itself(own_postgres: PostgresServer) -> None:
    own_postgres.kill()
    with Links({"DATABASE_URL": own_postgres.url}) as server, server.client() as client:
        assert client.get("/api/links").status_code == 503
        until(client, "fail")

        own_postgres.start()
        until(client, "pass")

        shorten(client)
        assert server.stop() == 0
        assert PASSWORD not in server.log
