"""/pool/control: acts on a pool for requests that `control` allows, and for no other, however it is asked."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message

from connectionpools_fastapi import ConnectionPool, PoolConfigError, PoolMiddleware, install_pools
from connectionpools_fastapi._asgi.control import ARRIVES_WITHIN, CONTROL_HEADERS, HIGHEST_LIMIT, LONGEST_BODY
from connectionpools_fastapi.stats import ObservedStats
from connectionpools_fastapi.testing import started
from tests.web import Answer, Thing, ask, things

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

CANARY = "canary7f3a"
SUSPEND = {"pool": "db", "action": "suspend"}
JSON = ("content-type", "application/json")
OPERATOR, VIEWER = ("authorization", "operator"), ("authorization", "viewer")
ALLOWED = [JSON, OPERATOR]


def may_see(connection: HTTPConnection) -> bool:
    return connection.headers.get("authorization") in ("operator", "viewer")


def may_act(connection: HTTPConnection) -> bool:
    """Say yes to requests that may not see, too."""
    return connection.headers.get("authorization") != "viewer"


class Observed:
    """A driver's own pool."""

    name = "theirs"

    def stats(self) -> ObservedStats:
        return ObservedStats(name=self.name, status="open")

    def holders(self) -> None:
        return

    async def probe(self, *, max_age: float = 5.0, timeout: float = 2.0) -> bool:
        return True


@asynccontextmanager
async def controlled(**options: Any) -> AsyncIterator[tuple[ASGIApp, ConnectionPool[Thing]]]:
    app, db = FastAPI(), things(4)
    install_pools(app, db, Observed(), **{"authorize": may_see, "control": may_act, **options})
    async with started(app) as served:
        yield served, db


async def post(served: ASGIApp, body: object, headers: Any = ALLOWED, **request: Any) -> Answer:
    """Send a body, as JSON unless it is bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    parts = iter([{"type": "http.request", "body": content}])

    async def receive() -> Message:
        return next(parts, {"type": "http.disconnect"})

    return await ask(served, "/pool/control", **{"method": "POST", "headers": headers, "receive": receive, **request})


def assert_nothing_done(db: ConnectionPool[Thing], caplog: pytest.LogCaptureFixture) -> None:
    assert (db.status, db.limit, db.free, caplog.messages) == ("open", 4, 1, [])


# --- what it does ---------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [[], [("sec-fetch-site", "same-origin")], [("origin", "https://a"), ("host", "a")]])
async def test_each_action_acts_and_is_logged_once(
    headers: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    async with controlled() as (served, db):
        async with db.lease():
            pass

        async def act(action: str, **more: Any) -> None:
            answer = await post(served, {"pool": "db", "action": action, **more}, [*ALLOWED, *headers])
            assert (answer.status, json.loads(answer.body)) == (200, {"workers": {"0": "done"}})

        await act("suspend")
        assert db.status == "suspended"
        await act("resume")
        assert db.status == "open"
        await act("resize", limit=7)
        assert db.limit == 7
        await act("expire")
        assert (db.free, db.stats().discards["expire"]) == (0, 1)
    each = [getattr(record, "action", None) for record in caplog.records]
    assert each == ["suspend", "resume", "resize", "expire"]
    assert caplog.messages[2] == "pool 'db': a request asked to resize it to 7: done in 1 of 1 workers"
    told = {key: value for key, value in vars(caplog.records[2]).items() if key in ("pool", "limit", "done", "missed")}
    assert (told, vars(caplog.records[2])["pool_event"]) == (
        {"pool": "db", "limit": 7, "done": [0], "missed": []},
        "controlled",
    )


async def test_pool_that_is_not_open_is_not_suspended() -> None:
    async with controlled() as (served, db):
        await db.close()
        answer = await post(served, SUSPEND)
    assert (answer.status, json.loads(answer.body)) == (409, {"workers": {"0": "the pool is not open"}})


async def test_stream_says_which_viewer_may_act() -> None:
    (name,) = CONTROL_HEADERS
    async with controlled() as (served, _):
        heads = [await ask(served, "/pool/stream", method="HEAD", headers=[who]) for who in (OPERATOR, VIEWER)]
        streams = [await ask(served, "/pool/stream", headers=[who]) for who in (OPERATOR, VIEWER)]
    assert [answer.headers.get(name.lower()) for answer in (*heads, *streams)] == ["allowed", None] * 2


# --- without the option ---------------------------------------------------------------------------


async def test_endpoint_exists_only_with_control() -> None:
    async with controlled(control=None) as (served, db):
        assert (await post(served, SUSPEND)).status == 404
        assert db.status == "open"


def test_control_is_checked_before_the_start() -> None:
    async def nothing(*_: object) -> None:
        raise AssertionError

    with pytest.raises(PoolConfigError, match=r"control=\.\.\. needs authorize"):
        PoolMiddleware(nothing, control=may_act)
    for wrong, why in ((True, "control=True must be callable"), (lambda: True, "control is called with one argument")):
        with pytest.raises(PoolConfigError, match=why):
            PoolMiddleware(nothing, authorize=may_see, control=wrong)  # type: ignore[arg-type]


# --- breaking in ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "post"])
async def test_other_methods_change_nothing(method: str, caplog: pytest.LogCaptureFixture) -> None:
    async with controlled() as (served, db):
        async with db.lease():
            pass
        answer = await post(served, SUSPEND, method=method)
        assert (answer.status, answer.headers["allow"], answer.body) == (405, "POST", b"")
        assert "access-control-allow-origin" not in answer.headers
        assert_nothing_done(db, caplog)


FORM = "application/x-www-form-urlencoded"
HEADERS = {
    "no authorization": (403, [JSON]),
    "a viewer": (403, [JSON, VIEWER]),
    "allowed to act, and not to see": (403, [JSON, ("authorization", CANARY)]),
    "another site": (403, [*ALLOWED, ("sec-fetch-site", "cross-site")]),
    "another origin of this site": (403, [*ALLOWED, ("sec-fetch-site", "same-site")]),
    "an old browser at another site": (403, [*ALLOWED, ("origin", "https://" + CANARY), ("host", "test")]),
    "another port": (403, [*ALLOWED, ("origin", "http://test:81"), ("host", "test")]),
    "a frame in a sandbox": (403, [*ALLOWED, ("origin", "null"), ("host", "test")]),
    "a form": (415, [OPERATOR, ("content-type", FORM)]),
    "a form with files": (415, [OPERATOR, ("content-type", "multipart/form-data; boundary=application/json")]),
    "a form of text": (415, [OPERATOR, ("content-type", "text/plain; application/json")]),
    "no type": (415, [OPERATOR]),
}
BODIES = {
    "nothing": (400, b""),
    "no JSON": (400, b"pool=db&action=suspend&" + CANARY.encode()),
    "no UTF-8": (400, b'{"pool": "\xff"}'),
    "nested deeply": (400, b"[" * LONGEST_BODY),
    "a number of many digits": (400, b'{"pool":"db","action":"resize","limit":1' + b"0" * 900 + b"}"),
    "a list": (400, [SUSPEND]),
    "no pool": (400, {"action": "suspend"}),
    "a pool that is no text": (400, {**SUSPEND, "pool": ["db"]}),
    "a key that nothing reads": (400, {**SUSPEND, CANARY: 1}),
    "no action": (400, {"pool": "db"}),
    "another method of a pool": (400, {"pool": "db", "action": "close"}),
    "an action of markup": (400, {"pool": "db", "action": f"<b>{CANARY}"}),
    "an action that is no text": (400, {"pool": "db", "action": {"suspend": 1}}),
    "no limit": (400, {"pool": "db", "action": "resize"}),
    "no limit at all": (400, {"pool": "db", "action": "resize", "limit": None}),
    "a limit of 0": (400, {"pool": "db", "action": "resize", "limit": 0}),
    "a limit below 0": (400, {"pool": "db", "action": "resize", "limit": -1}),
    "a limit too high": (400, {"pool": "db", "action": "resize", "limit": HIGHEST_LIMIT + 1}),
    "a limit with a fraction": (400, {"pool": "db", "action": "resize", "limit": 2.5}),
    "a limit that is a bool": (400, {"pool": "db", "action": "resize", "limit": True}),
    "a limit that is text": (400, {"pool": "db", "action": "resize", "limit": CANARY}),
    "a limit for suspend": (400, {**SUSPEND, "limit": 1}),
    "another pool": (404, {**SUSPEND, "pool": CANARY}),
    "a driver's own pool": (404, {**SUSPEND, "pool": "theirs"}),
    "a surrogate alone": (404, b'{"pool": "\\ud800", "action": "suspend"}'),
    "too long": (413, {**SUSPEND, "pool": CANARY * LONGEST_BODY}),
}
REQUESTS = {name: (status, headers, SUSPEND) for name, (status, headers) in HEADERS.items()} | {
    name: (status, ALLOWED, body) for name, (status, body) in BODIES.items()
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
async def test_bad_request_does_and_repeats_nothing(request_: Any, caplog: pytest.LogCaptureFixture) -> None:
    status, headers, body = request_
    async with controlled() as (served, db):
        async with db.lease():
            pass
        answer = await post(served, body, headers)
        assert answer.status == status
        assert CANARY not in answer.body.decode() + str(answer.headers)
        assert json.loads(answer.body).keys() == {"detail"}
        assert answer.headers.items() >= {"cache-control": "no-store", "x-content-type-options": "nosniff"}.items()
        assert_nothing_done(db, caplog)


async def test_body_without_an_end_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    read = 0

    async def endless() -> Message:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b" " * 100, "more_body": True}

    async def silent() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    async with controlled() as (served, db):
        async with db.lease():
            pass
        assert (await post(served, b"", receive=endless)).status == 413
        assert read * 100 <= LONGEST_BODY + 100
        began = anyio.current_time()
        assert (await post(served, b"", receive=silent)).status == 408
        assert anyio.current_time() - began == pytest.approx(ARRIVES_WITHIN, abs=0.1)
        assert_nothing_done(db, caplog)


async def test_client_that_leaves_within_its_body_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    parts: list[Message] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": json.dumps(SUSPEND).encode(), "more_body": True},
    ]

    async def leave() -> Message:
        return parts.pop()

    async with controlled() as (served, db):
        async with db.lease():
            pass
        assert (await post(served, b"", receive=leave)).messages == []
        assert_nothing_done(db, caplog)


async def test_stranger_is_refused_before_the_body_is_read() -> None:
    async def read() -> Message:
        raise AssertionError

    async with controlled() as (served, _):
        assert (await post(served, b"", [JSON], receive=read)).status == 403
