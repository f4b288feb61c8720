"""The endpoints under fire: whatever a stranger sends, the answers are safe and tell verdicts and counts only."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message

from connectionpools_fastapi import ConnectionPool, ResourceUnavailable, install_pools
from connectionpools_fastapi.testing import started
from tests.web import Answer, speak, things

TOKEN = "Bearer the-token"  # noqa: S105 - no real one
ADDRESS = "postgres://user:hunter2@db.internal/app"
ROUTE = "GET /private-route"
CANARY = "canary7f3a"  # part of all that the client sends
PRIVATE = (ROUTE, "private-route", "db.internal", "hunter2", "ConnectionRefused", "the-token")

OWN = (
    "health",
    "health/live",
    "health/ready",
    "health/db",
    "health/down",
    "metrics",
    "leases",
    "stream",
    "",
    "control",
)
STATUSES = {"pass", "warn", "fail"}
WORDS = {"new", "open", "suspended", "closing", "closed"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", CANARY)
# What proxies and frameworks take for the identity, the address or the path of a request.
HEADERS = (
    *("accept", "accept-encoding", "authorization", "cookie", "content-length", "content-type", "forwarded", "host"),
    *("if-none-match", "origin", "range", "referer", "sec-fetch-site", "traceparent", "upgrade", "x-forwarded-for"),
    *("x-forwarded-prefix", "x-http-method-override", "x-original-url", "x-real-ip", "x-rewrite-url", "x-user", CANARY),
)
VALUES = (
    *(
        "*/*",
        "application/json",
        "application/openmetrics-text; version=1.0.0; escaping=underscores",
        "text/plain;q=nan",
    ),
    *(
        "127.0.0.1",
        "localhost",
        "admin",
        "same-origin",
        "/pool/leases",
        "POST",
        "bytes=0-9",
        "Bearer ",
        "bearer the-token",
    ),
    *("Bearer the-tokens", "Bearer the-toke", " Bearer the-token", "Bearer the-token\x00"),
)

text = st.text(st.characters(max_codepoint=0xFF), max_size=30)
values = (st.sampled_from(VALUES) | text).map(lambda value: value + ";" + CANARY if value != "*/*" else value)
segments = st.sampled_from(
    ("pool", "health", "metrics", "leases", "stream", "control", "db", "..", "", ".", "%2e", "//", CANARY)
)
paths = (
    st.sampled_from(OWN).map(lambda own: f"/pool/{own}")
    | st.tuples(st.sampled_from(OWN), st.sampled_from(("/", "//", "/.", ";x", "%00", "\x00", CANARY))).map(
        lambda parts: f"/pool/{parts[0]}{parts[1]}"
    )
    | st.lists(segments | text, max_size=6).map(lambda parts: "/" + "/".join(parts))
)
requests = st.fixed_dictionaries(
    {
        "method": st.sampled_from(METHODS),
        "path": paths,
        "query_string": (st.binary(max_size=30) | st.just(b"authorization=Bearer%20the-token")).map(
            lambda query: query + b"&" + CANARY.encode()
        ),
        "headers": st.lists(st.tuples(st.sampled_from(HEADERS), values), max_size=4),
        "root_path": st.sampled_from(("", "/pool", "/x", "/pool/health")),
    }
)


def by_token(connection: HTTPConnection) -> bool:
    return connection.headers.get("authorization") == TOKEN


def refuse() -> object:
    raise ConnectionRefusedError(ADDRESS)


class Service:
    """An application with a lease of a private route, and a back-end that is down, to send requests to."""

    def __init__(self, runner: asyncio.Runner, served: ASGIApp) -> None:
        self._runner = runner
        self._served = served

    def send(self, request: dict[str, Any]) -> Answer:
        """Return the answer to a request; its headers are those of the endpoints."""
        return self._runner.run(self._send(request))

    async def _send(self, request: dict[str, Any]) -> Answer:
        answer = Answer()

        async def receive() -> Message:
            return {"type": "http.disconnect"}  # the page's stream ends with it

        async def send(message: Message) -> None:
            answer.messages.append(message)

        headers = [(name.encode(), value.encode("latin-1")) for name, value in request["headers"]]
        scope = {"type": "http", "http_version": "1.1", "scheme": "http", "client": ("192.0.2.1", 1)}
        own = {"raw_path": request["path"].encode(), "headers": headers, "server": ("test", 80)}
        with anyio.fail_after(20):
            await self._served({**scope, **request, **own}, receive, send)
        return answer


@pytest.fixture(scope="module", params=["with authorize", "without"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    app = FastAPI(docs_url=None, openapi_url=None)
    db = things(name="db", min_free=1)
    down = ConnectionPool(create=refuse, name="down", blocking=False, timeout=0)
    options: dict[str, Any] = {"authorize": by_token, "control": by_token} if request.param == "with authorize" else {}
    install_pools(app, db, down, probe_timeout=10, **options)
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()

        async def start() -> ASGIApp:
            served = await stack.enter_async_context(started(app))
            await stack.enter_async_context(db.lease(holder=ROUTE))
            with pytest.raises(ResourceUnavailable):  # after a second of failures, for which health only warns
                await down.acquire(timeout=10)
            return served

        yield Service(runner, runner.run(start()))
        runner.run(stack.aclose())


def leaves(value: Any) -> Iterator[Any]:
    """Yield all that an answer in JSON says, but for the names of its keys."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


def is_own(answer: Answer) -> bool:
    """Whether an endpoint has answered, and not the application's own 404 or 405."""
    return "content-security-policy" in answer.headers


@given(requests)
def test_strangers_get_safe_answers_with_verdicts_and_counts_only(service: Service, request: dict[str, Any]) -> None:
    answer = service.send(request)
    assert answer.status in (200, 403, 404, 405, 503)
    told = answer.body.decode() + str(answer.headers)
    assert not [secret for secret in PRIVATE if secret in told]
    assert CANARY not in told
    if not is_own(answer):
        assert answer.status in (404, 405)
        return
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "set-cookie" not in answer.headers
    assert "access-control-allow-origin" not in answer.headers
    if answer.headers.get("allow") == "POST":
        assert (answer.status, answer.body) == (405, b"")
        assert request["method"] != "POST"
    elif request["method"] not in ("GET", "HEAD") and (request["method"], answer.status) != ("POST", 403):
        assert (answer.status, answer.headers["allow"], answer.body) == (405, "GET, HEAD", b"")
    elif request["method"] == "HEAD":
        assert answer.body == b""
    elif "json" in answer.headers["content-type"]:
        body = json.loads(answer.body, parse_constant=pytest.fail)
        said = {leaf for leaf in leaves(body) if isinstance(leaf, str)}
        assert said <= STATUSES | WORDS | {
            "db",
            "down",
            "component",
            "connections",
            "not authorized",
            "no pool of this name",
        }
        if answer.headers["content-type"] == "application/health+json":
            assert (answer.status == 503) == (body["status"] == "fail")


@given(st.sampled_from(OWN), st.lists(st.tuples(st.sampled_from(HEADERS), values), max_size=3))
def test_head_says_what_get_says(service: Service, own: str, headers: list[tuple[str, str]]) -> None:
    request = {"path": f"/pool/{own}", "query_string": b"", "headers": headers, "root_path": ""}
    got, head = [service.send({**request, "method": method}) for method in ("GET", "HEAD")]
    assert is_own(head) == is_own(got)
    if not is_own(got):  # the application's own 404
        return
    assert (head.status, head.body) == (got.status, b"")
    assert {**head.headers, "content-length": ""} == {**got.headers, "content-length": ""}


@pytest.mark.parametrize("path", ["leases", "leases/", "stream", "health", "health/down", "metrics"])
def test_only_the_right_token_opens_the_private_part(service: Service, path: str) -> None:
    def told(*headers: tuple[str, str]) -> bytes:
        request = {"method": "GET", "path": f"/pool/{path}", "query_string": b"", "root_path": ""}
        accept = ("accept", "application/json")
        return service.send({**request, "headers": [accept, *headers]}).body

    refused = [told(("authorization", given)) for given in ("", "Bearer", TOKEN.lower(), TOKEN + " x", TOKEN[:-1])]
    refused += [
        told(("cookie", TOKEN)),
        told(("x-authorization", TOKEN)),
        told(("authorization", "x"), ("authorization", TOKEN)),
    ]
    assert not any(secret.encode() in body for body in refused for secret in PRIVATE)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_a_denied_web_socket_is_as_safe(anyio_backend: str) -> None:  # noqa: ARG001 - the fixture
    app, db = FastAPI(), things(limit=1, min_free=1, timeout=0)
    install_pools(app, db)

    @app.websocket("/live")
    async def live() -> None:
        async with db.lease():
            pass

    async with started(app) as served, db.lease(holder=ROUTE):
        start, body = await speak(served, "/live", extensions={"websocket.http.response": {}})
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert (start["status"], headers["cache-control"], headers["x-content-type-options"]) == (
        503,
        "no-store",
        "nosniff",
    )
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert ROUTE not in body["body"].decode()
