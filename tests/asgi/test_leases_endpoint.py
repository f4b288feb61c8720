"""/pool/leases: the holders of all leases, for authorized requests only."""

import json
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.requests import HTTPConnection

from connectionpools_fastapi import install_pools
from connectionpools_fastapi.testing import started
from tests.web import ask, things

pytestmark = pytest.mark.anyio

TOKEN = [("authorization", "token")]


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def by_token(connection: HTTPConnection) -> bool:
    return connection.headers.get("authorization") == "token"


async def test_leases_are_listed_over_pools_the_longest_first() -> None:
    app, clock = FastAPI(), Clock()
    db, cache = things(name="db", clock=clock), things(name="cache", clock=clock)
    install_pools(app, db, cache, authorize=by_token)
    async with started(app) as served, db.lease(holder="GET /slow"):
        clock.now = 3.0
        async with cache.lease(holder="GET /{code}"):
            clock.now = 4.0
            answer = await ask(served, "/pool/leases", headers=TOKEN)
            head = await ask(served, "/pool/leases", method="HEAD", headers=TOKEN)
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
    assert json.loads(answer.body) == {
        "leases": [
            {"pool": "db", "holder": "GET /slow", "age": 4.0},
            {"pool": "cache", "holder": "GET /{code}", "age": 1.0},
        ]
    }
    assert (head.status, head.body, head.headers) == (200, b"", answer.headers)


@pytest.mark.parametrize("headers", [[], [("authorization", "tokens")], [("authorization", "")]])
async def test_unauthorized_request_sees_no_lease(headers: list[tuple[str, str]]) -> None:
    app, db = FastAPI(), things()
    install_pools(app, db, authorize=by_token, details="always")
    async with started(app) as served, db.lease(holder="GET /secret"):
        answer = await ask(served, "/pool/leases", headers=headers)
    assert (answer.status, json.loads(answer.body)) == (403, {"detail": "not authorized"})


@pytest.mark.parametrize("details", ["never", "always"])
async def test_leases_endpoint_exists_only_with_authorize(details: Any) -> None:
    app = FastAPI()
    install_pools(app, things(), details=details)
    app.get("/pool/leases")(lambda: "the application's")
    async with started(app) as served:
        assert (await ask(served, "/pool/leases")).body == b'"the application\'s"'


async def test_every_answer_forbids_storing_sniffing_and_framing() -> None:
    app, db = FastAPI(), things(limit=1, timeout=0, min_free=1)
    install_pools(app, db, authorize=by_token)

    @app.get("/")
    async def endpoint() -> None:
        async with db.lease():
            pass

    paths = ["/", *(f"/pool/{path}" for path in ("health", "health/live", "health/ready", "health/db", "health/x"))]
    async with started(app) as served, db.lease():
        for path in (*paths, "/pool/metrics", "/pool/leases"):
            headers = (await ask(served, path)).headers
            assert headers["cache-control"] == "no-store"
            assert headers["x-content-type-options"] == "nosniff"
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
