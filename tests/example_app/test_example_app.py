"""The example application in process: what it promises to its users."""

import csv
import gc
import io
import itertools
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

import example_app
from connectionpools_fastapi.testing import faults
from example_app import Settings, create_app, store
from example_app.feed import BACKLOG, Feed
from example_app.models import RESERVED_CODES, Click
from example_app.pools import urls_of
from example_app.settings import SettingsError
from tests.link_places import (
    Place,
    SqlitePlace,
    fixture_place,  # noqa: F401 - pytest finds it, and the next two
    fixture_shared_place,  # noqa: F401
    fixture_sqlite_place,  # noqa: F401
)

STATIC = Path(example_app.__file__).parent / "static"
XSS = "https://example.com/?q=<script>alert(1)</script>&r=\"'><img src=x onerror=alert(2)>"


@pytest.fixture
def anyio_backend() -> str:
    """Use asyncio only: aiosqlite knows nothing else."""
    return "asyncio"


@pytest.fixture
def app(shared_place: Place) -> FastAPI:
    return shared_place.app()


@pytest.fixture
def client(started_app: TestClient, pool_sandbox: object) -> TestClient:  # noqa: ARG001 - for its effect
    """A client whose links are gone after the test; its requests share one connection."""
    started_app.follow_redirects = False
    return started_app


@pytest.fixture
def committing(place: Place) -> Iterator[TestClient]:
    """A client whose links can be seen from outside."""
    with TestClient(place.app(), follow_redirects=False) as client:
        yield client


@pytest.fixture
def sqlite_client(sqlite_place: SqlitePlace) -> Iterator[TestClient]:
    """A client for what no database has a part in."""
    with TestClient(sqlite_place.app(), follow_redirects=False) as client:
        yield client


def shorten(client: TestClient, url: str = "https://example.com/", code: str | None = None) -> str:
    response = client.post("/api/links", json={"url": url, "code": code})
    assert response.status_code == 201, response.text
    return str(response.json()["code"])


def clicks_of(client: TestClient, code: str) -> int:
    return next(int(link["clicks"]) for link in client.get("/api/links").json()["links"] if link["code"] == code)


def found(client: TestClient, text: str) -> list[str]:
    page = client.get("/api/links", params={"q": text}).json()
    assert page["total"] == len(page["links"])
    return [link["code"] for link in page["links"]]


# --- shorten ---


def test_a_url_gets_a_short_code_and_an_address(client: TestClient) -> None:
    response = client.post("/api/links", json={"url": "https://example.com/a?b=c#d"})

    assert response.status_code == 201
    link = response.json()
    assert link["url"] == "https://example.com/a?b=c#d"
    assert link["clicks"] == 0
    assert datetime.fromisoformat(link["created"]).tzinfo == UTC
    assert re.fullmatch("[2-9b-df-hj-np-tv-xz]{7}", link["code"])
    assert response.headers["location"] == f"http://test/{link['code']}"


def test_a_code_of_ones_own_is_kept(client: TestClient) -> None:
    assert shorten(client, code="My-link_1") == "My-link_1"
    assert client.get("/My-link_1").status_code == 307


def test_a_taken_code_is_refused_and_the_first_link_stays(client: TestClient) -> None:
    shorten(client, "https://example.com/first", "mine")

    response = client.post("/api/links", json={"url": "https://example.com/second", "code": "mine"})

    assert response.status_code == 409
    assert response.json() == {"detail": "The code 'mine' is taken."}
    assert client.get("/mine").headers["location"] == "https://example.com/first"
    assert shorten(client, code="other") == "other"  # the connection is as good as new


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "http://",
        "/relative",
        "ftp://example.com/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        "data:text/html,<script>alert(1)</script>",
        "https://user:secret@example.com/",
        "https://user@example.com/",
        "https://example.com/" + "x" * 2000,
        None,
        42,
    ],
)
def test_only_complete_http_and_https_urls_can_be_shortened(sqlite_client: TestClient, url: object) -> None:
    response = sqlite_client.post("/api/links", json={"url": url})

    assert response.status_code == 422
    assert [problem["loc"] for problem in response.json()["detail"]] == [["body", "url"]]
    assert "secret" not in response.text
    assert sqlite_client.get("/api/links").json()["total"] == 0


@pytest.mark.parametrize(
    "code", ["", "ab", "x" * 33, "a b", "a/b", "a.b", "a%b", "äöü", "abc\n", "docs", "API", "Pool"]
)
def test_a_code_that_cannot_be_is_refused(sqlite_client: TestClient, code: str) -> None:
    response = sqlite_client.post("/api/links", json={"url": "https://example.com/", "code": code})

    assert response.status_code == 422
    assert [problem["loc"] for problem in response.json()["detail"]] == [["body", "code"]]


def test_each_path_of_the_application_is_a_reserved_code() -> None:
    paths = [
        *create_app(Settings()).openapi()["paths"],
        "/docs",
        "/openapi.json",
        "/static/app.js",
        "/live",
        "/pool/health",
    ]
    first_parts = {path.split("/")[1] for path in paths} - {"{code}"}

    assert {"api", "docs", "live", "pool", "static"} <= first_parts
    assert {part for part in first_parts if re.fullmatch("[A-Za-z0-9_-]+", part)} <= RESERVED_CODES


def test_invalid_unicode_is_bad_input_and_no_crash(sqlite_client: TestClient) -> None:
    body = rb'{"url": "https://example.com/\ud800", "code": "\ud800\ud800\ud800"}'

    response = sqlite_client.post("/api/links", content=body, headers={"Content-Type": "application/json"})

    assert response.status_code == 422


# --- list and search ---


def test_paging_meets_each_link_once(client: TestClient) -> None:
    """Other requests add links meanwhile."""
    codes = [shorten(client) for _ in range(6)]

    met: list[str] = []
    before: int | None = None
    for number in itertools.count(1):
        query = {"limit": 3} if before is None else {"limit": 3, "before": before}
        page = client.get("/api/links", params=query).json()
        met += [link["code"] for link in page["links"]]
        assert page["total"] == 5 + number
        shorten(client)
        before = page["next"]
        if before is None:
            break

    assert met == codes[::-1]
    assert number == 2


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 101}, {"before": 0}, {"before": 2**63}, {"q": "x" * 201}])
def test_a_page_that_cannot_be_is_refused(sqlite_client: TestClient, query: dict[str, Any]) -> None:
    assert sqlite_client.get("/api/links", params=query).status_code == 422


def test_search_finds_part_of_code_or_target_in_any_case(client: TestClient) -> None:
    shorten(client, "https://example.com/Cats", "first")
    shorten(client, "https://example.org/dogs", "second")

    assert found(client, "cats") == ["first"]
    assert found(client, " SECOND ") == ["second"]
    assert found(client, "example") == ["second", "first"]
    assert found(client, "") == ["second", "first"]
    assert found(client, "birds") == []


@pytest.mark.parametrize("text", ["%", "_", "\\", "'", '"', "%%%", "' OR 1=1 --", "\0"])
def test_search_takes_every_character_literally(client: TestClient, text: str) -> None:
    shorten(client, "https://example.com/plain", "plain")

    assert found(client, text) == []


# --- follow ---


def test_following_a_link_redirects_and_counts_the_click(client: TestClient) -> None:
    code = shorten(client, "https://example.com/target")

    responses = [client.get(f"/{code}") for _ in range(3)]

    assert [response.status_code for response in responses] == [307] * 3
    assert {response.headers["location"] for response in responses} == {"https://example.com/target"}
    assert {response.headers["cache-control"] for response in responses} == {"no-store"}
    assert clicks_of(client, code) == 3


def test_click_is_counted_after_the_connection_is_released(client: TestClient) -> None:
    code = shorten(client)

    assert client.get(f"/{code}").status_code == 307

    assert clicks_of(client, code) == 1  # though there is one connection, and the request had it


@pytest.mark.parametrize("path", ["/nothing", "/favicon.ico", "/live", "/%00", "/%F0%9F%A6%86", "/%ff", "/'--"])
def test_an_unknown_code_is_not_found(client: TestClient, path: str) -> None:
    for_programs = client.get(path)
    for_people = client.get(path, headers={"Accept": "text/html,*/*;q=0.8"})

    assert for_programs.status_code == for_people.status_code == 404
    assert for_programs.json() == {"detail": "There is no link with this code."}
    assert for_people.headers["content-type"] == "text/html; charset=utf-8"


def test_removed_link_is_gone_with_its_visits(committing: TestClient, place: Place) -> None:
    code = shorten(committing)
    committing.get(f"/{code}")

    assert committing.delete(f"/api/links/{code}").status_code == 204

    assert committing.get(f"/{code}").status_code == 404
    assert committing.delete(f"/api/links/{code}").status_code == 404
    assert committing.get("/api/links").json() == {"links": [], "total": 0, "next": None}
    assert place.ask("SELECT count(*) FROM visits") == [(0,)]


# --- export ---


def test_the_export_has_every_link_in_the_order_it_was_made(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "EXPORT_BATCH", 4)
    urls = [f"https://example.com/{number}?a=1,2&b=%22x%22" for number in range(10)]
    codes = [shorten(client, url) for url in urls]

    response = client.get("/api/links.csv")

    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["content-disposition"] == 'attachment; filename="links.csv"'
    rows = list(csv.DictReader(io.StringIO(response.text)))
    assert [row["code"] for row in rows] == codes
    assert [row["url"] for row in rows] == urls


@pytest.mark.anyio
async def test_an_abandoned_export_leaves_nothing_open(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "EXPORT_BATCH", 4)
    app = place.app(pool_limit=1)
    with TestClient(app) as client:
        for _ in range(3 * store.EXPORT_BATCH):
            shorten(client)
    gone = anyio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if b"https://" in message.get("body", b""):  # the first rows: from now on the client reads nothing
            gone.set()
            await anyio.sleep_forever()

    scope = {"type": "http", "method": "GET", "path": "/api/links.csv", "query_string": b"", "headers": []}
    gc.disable()  # what is left to the garbage collector is left open for now
    try:
        async with app.router.lifespan_context(app) as state:
            await app({**scope, "state": dict(state or {})}, receive, send)
        assert gone.is_set()
        place.assert_that_nobody_is_connected()
    finally:
        gc.enable()


def test_no_cell_of_the_export_is_a_formula(sqlite_client: TestClient) -> None:
    shorten(sqlite_client, code="-2-3")

    (row,) = csv.DictReader(io.StringIO(sqlite_client.get("/api/links.csv").text))

    assert row["code"] == "'-2-3"


# --- live ---


def test_a_click_is_told_to_every_open_page(client: TestClient, app: FastAPI) -> None:
    told = [{"code": "mine", "clicks": 1}, {"code": "mine", "clicks": 2}]
    feed: Feed = app.state.feed
    with feed.listen() as heard:
        shorten(client, code="mine")
        with client.websocket_connect("/live") as one, client.websocket_connect("/live") as other:
            client.get("/mine")
            client.get("/mine")
            assert heard.qsize() == 2  # told by now: nothing below waits in vain

            assert [[page.receive_json(), page.receive_json()] for page in (one, other)] == [told, told]


def test_an_open_page_holds_no_connection(client: TestClient) -> None:
    with client.websocket_connect("/live") as page:
        page.send_text("anything")
        page.send_bytes(b"\xff")

        assert client.get("/pool/health/db").json()["taken"] == 0
        code = shorten(client)
        client.get(f"/{code}")
        assert page.receive_json() == {"code": code, "clicks": 1}


def test_pages_of_other_sites_cannot_listen(sqlite_client: TestClient) -> None:
    with sqlite_client.websocket_connect("/live", headers={"Origin": "http://testserver"}):
        pass
    for origin in ("https://evil.example", "null", "http://testserver.evil.example", "http://testserver:81"):
        with (
            pytest.raises(WebSocketDisconnect) as refused,
            sqlite_client.websocket_connect("/live", headers={"Origin": origin}),
        ):
            pass
        assert refused.value.code == 1008


def test_slow_listener_loses_the_oldest_clicks() -> None:
    """It delays no other."""
    feed = Feed()
    with feed.listen() as slow:
        for number in range(BACKLOG + 10):
            feed.tell(Click(code="code", clicks=number))

        assert [slow.get_nowait().clicks for _ in range(slow.qsize())] == list(range(10, BACKLOG + 10))
    feed.tell(Click(code="code", clicks=0))
    assert slow.empty()  # it listens no more


# --- statistics ---


def test_the_report_sums_up_links_clicks_days_and_referrers(committing: TestClient) -> None:
    for code, referrers in {
        "first": ["https://news.example/item?id=1", "", "http://["],
        "second": ["https://news.example"],
    }.items():
        shorten(committing, code=code)
        for referrer in referrers:
            committing.get(f"/{code}", headers={"Referer": referrer})

    report = committing.get("/api/report").json()

    assert (report["links"], report["clicks"]) == (2, 4)
    assert report["referrers"] == [{"label": "direct", "clicks": 2}, {"label": "news.example", "clicks": 2}]
    assert [day["clicks"] for day in report["days"]] == [0] * 13 + [4]


def test_the_report_comes_from_a_pool_of_its_own(client: TestClient) -> None:
    client.get("/api/report")

    metrics = client.get("/pool/metrics").text
    assert 'connectionpool_acquires_total{pool="report"} 1.0' in metrics
    assert 'connectionpool_acquires_total{pool="db"} 0.0' in metrics


# --- what a browser gets ---


def page_of(client: TestClient, path: str) -> httpx.Response:
    response: httpx.Response = client.get(path, headers={"Accept": "text/html"})
    return response


def test_user_input_is_never_part_of_the_page(sqlite_client: TestClient) -> None:
    empty = page_of(sqlite_client, "/").text
    response = sqlite_client.post("/api/links", json={"url": XSS, "code": "xss"})

    assert response.headers["content-type"] == "application/json"
    assert page_of(sqlite_client, "/").text == empty
    assert "<script>" not in sqlite_client.get("/xss").headers["location"]


def test_script_of_the_page_cannot_make_html_of_a_text() -> None:
    script = (STATIC / "app.js").read_text()

    assert "textContent" in script
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|srcdoc|setHTML", script
    )


@pytest.mark.parametrize("page", sorted(STATIC.glob("*.html")), ids=lambda page: page.name)
def test_a_page_has_nothing_that_its_policy_forbids(page: Path) -> None:
    inline: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            names = dict(attrs)
            if tag == "style" or (tag == "script" and "src" not in names):
                inline.append(tag)
            inline.extend(name for name in names if name == "style" or name.startswith("on"))
            inline.extend(
                f"{name}={value}"
                for name, value in attrs
                if name in ("src", "href", "action") and re.match("//|[a-z]+:", value or "")
            )

    Reader().feed(page.read_text())
    assert inline == []


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/static/app.js", 200),
        ("/api/links", 200),
        ("/api/links?limit=0", 422),
        ("/api/links.csv", 200),
        ("/nothing", 404),
        ("/pool/health", 200),
        ("/pool/metrics", 200),
    ],
)
def test_every_answer_has_the_strict_policy(sqlite_client: TestClient, path: str, status: int) -> None:
    response = page_of(sqlite_client, path)

    assert response.status_code == status
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


def test_the_documentation_may_load_what_it_consists_of(sqlite_client: TestClient) -> None:
    page = sqlite_client.get("/docs")

    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "https://cdn.jsdelivr.net" in policy
    for source in re.findall(r'(?:src|href)="(https://[^/"]+)', page.text):
        assert source in policy


def test_the_health_of_every_pool_can_be_seen(client: TestClient, shared_place: Place) -> None:
    health = client.get("/pool/health")

    assert health.status_code == 200
    assert health.json()["status"] == "pass"
    assert set(health.json()["pools"]) == {"db", "report"} | (
        {"cache"} if "cache_url" in shared_place.settings else set()
    )


def test_exhausted_pool_answers_503_until_one_is_back(place: Place) -> None:
    app = place.app(pool_timeout=0)
    with TestClient(app) as client, faults(app.state.database.pools[0]) as fault:
        with fault.saturated_sync():
            refused = client.get("/api/links")
            health = client.get("/pool/health")

        assert (refused.status_code, refused.json()["status"]) == (503, 503)
        assert refused.headers["content-type"] == "application/problem+json"
        assert int(refused.headers["retry-after"]) >= 1
        assert (health.status_code, health.json()["status"]) == (200, "warn")
        assert health.json()["pools"]["db"]["taken"] == 5
        assert client.get("/api/links").status_code == 200


# --- settings ---


def test_an_empty_environment_gives_the_defaults() -> None:
    for environment in ({}, {"PORT": "", "DATABASE_URL": ""}):
        settings = Settings.from_environment(environment)
        assert (settings.host, settings.port, settings.pool_limit) == ("127.0.0.1", 8000, 5)
        assert urls_of(settings.database_url)[0].database == "links.db"


def test_the_environment_is_read() -> None:
    settings = Settings.from_environment(
        {
            "HOST": "::1",
            "PORT": "9000",
            "DATABASE_URL": "sqlite:////srv/my%20links.db",
            "CACHE_URL": "redis://user:p%40ss@cache.example:6379/3",
            "CACHE_PREFIX": "mine:",
            "CACHE_TIMEOUT": "0.25",
            "POOL_LIMIT": "3",
            "POOL_MIN_FREE": "3",
            "POOL_TIMEOUT": "0.5",
            "PATH": "/bin",
        }
    )

    assert (settings.host, settings.port, settings.pool_limit, settings.pool_min_free) == ("::1", 9000, 3, 3)
    assert (settings.pool_timeout, settings.cache_timeout, settings.cache_prefix) == (0.5, 0.25, "mine:")
    assert settings.cache_url == "redis://user:p%40ss@cache.example:6379/3"
    assert urls_of(settings.database_url)[0].database == "/srv/my links.db"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOST", "not a host"),
        ("HOST", "http://127.0.0.1"),
        ("PORT", "eight"),
        ("PORT", "-1"),
        ("PORT", "65536"),
        ("PORT", "80.5"),
        ("POOL_LIMIT", "0"),
        ("POOL_LIMIT", "five"),
        ("POOL_MIN_FREE", "-1"),
        ("POOL_MIN_FREE", "6"),
        ("POOL_TIMEOUT", "-1"),
        ("POOL_TIMEOUT", "nan"),
        ("POOL_TIMEOUT", "inf"),
        ("DATABASE_URL", "links.db"),
        ("DATABASE_URL", "sqlite://"),
        ("DATABASE_URL", "sqlite:///"),
        ("DATABASE_URL", "sqlite:///:memory:"),
        ("DATABASE_URL", "sqlite:///directory/"),
        ("DATABASE_URL", "sqlite:///links.db?mode=ro"),
        ("DATABASE_URL", "sqlite:///links%00.db"),
        ("DATABASE_URL", "oracle://user:hunter2@db.example/links"),
        ("DATABASE_URL", "mysql+aiomysql://user:hunter2@db.example/links"),
        ("DATABASE_URL", "mysql://user:hunter2@db.example:port/links"),
        ("DATABASE_URL", "postgresql:/user:hunter2@db.example/links"),
        ("DATABASE_URL", "postgresql://user:hunter2@db.example:port/links"),
        ("DATABASE_URL", "postgresql://user:hunter2/x@db.example/links"),
        ("DATABASE_URL", "postgresql://user:hunter2@db.example:5432,other.example:x/links"),
        ("DATABASE_URL", "postgresql://user:hunter2@db.example/my links"),
        ("DATABASE_URL", "postgresql://user:hunter2@[::1/links"),
        ("CACHE_URL", "localhost:6379"),
        ("CACHE_URL", "redis://"),
        ("CACHE_URL", "redis://user:hunter2@cache.example:port/0"),
        ("CACHE_URL", "redis://user:hunter2#@cache.example/0"),
        ("CACHE_URL", "redis://user:hunter2@cache.example/first"),
        ("CACHE_PREFIX", "with space:"),
        ("CACHE_TIMEOUT", "0"),
        ("CACHE_TIMEOUT", "61"),
    ],
)
def test_nonsense_is_refused_in_one_line_without_its_value(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.from_environment({name: value})

    line = str(refused.value)
    assert line.startswith(f"{name} must be ")
    assert "\n" not in line
    assert "hunter2" not in line
    assert refused.value.__suppress_context__  # nor does a traceback show what was given


def test_settings_do_not_show_where_database_and_cache_are() -> None:
    shown = repr(Settings(database_url="sqlite:///secret.db", cache_url="redis://:secret@cache.example"))
    assert "secret" not in shown


@pytest.mark.parametrize("url", ["postgresql://user:hunter2@db.example/links", "mysql://user:hunter2@db.example/links"])
def test_option_the_driver_does_not_know_is_refused_in_one_line(url: str) -> None:
    settings = Settings.from_environment({"DATABASE_URL": f"{url}?nonsense=1"})

    with pytest.raises(SettingsError) as refused:
        create_app(settings)

    assert re.fullmatch("DATABASE_URL cannot be used: .*takes no nonsense.*", str(refused.value))
    assert "hunter2" not in str(refused.value)
    assert refused.value.__suppress_context__


# --- the pools, live ---


@pytest.mark.parametrize(
    ("client_host", "host", "status"),
    [
        ("127.0.0.1", "localhost:8000", 200),
        ("127.0.0.1", "127.0.0.1:8000", 200),
        ("127.0.0.1", "evil.example", 403),  # a page whose own name means 127.0.0.1
        ("192.0.2.1", "localhost:8000", 403),
        ("192.0.2.1", "links.example", 403),
    ],
)
def test_leases_are_shown_on_the_loopback_only(
    sqlite_place: SqlitePlace, client_host: str, host: str, status: int
) -> None:
    with TestClient(sqlite_place.app(), client=(client_host, 1)) as client:
        assert client.get("/pool/leases", headers={"host": host}).status_code == status
        assert client.get("/pool/", headers={"host": host}).status_code == 200  # which has no numbers in it
