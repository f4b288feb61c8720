"""The example application end to end: a process of its own, uvicorn, real sockets and signals."""

import asyncio
import csv
import io
import json
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.link_places import LINK, Place, SqlitePlace, fixture_place  # noqa: F401 - pytest finds it
from tests.links import Links, shorten

LINKS = 4000  # of 2 kB each: an export of 8 MB
SECRET = "hunter2"  # noqa: S105 - of no account


@contextmanager
def running(place: Place, **environment: str) -> Iterator[tuple[Links, httpx.Client]]:
    """Run the application, and a client of it."""
    with Links({**place.environment, **environment}) as server, server.client() as client:
        yield server, client


def fill(place: Place, links: int) -> list[str]:
    """Make a database whose export is far more than what sockets buffer; returns the codes."""
    codes = [f"code-{number}" for number in range(links)]
    place.prepare()
    url = "https://example.com/" + "x" * 1900
    place.execute(LINK, [{"code": code, "url": url} for code in codes])
    return codes


def assert_ended_cleanly(server: Links, place: Place) -> None:
    place.assert_that_nobody_is_connected()
    assert "Finished server process" in server.log
    for word in ("WARNING", "ERROR", "Traceback", "ResourceWarning"):
        assert word not in server.log, server.log


class Export:
    """An export of which only the beginning was read so far."""

    def __init__(self, response: httpx.Response) -> None:
        self._parts = response.iter_bytes()
        self._first = next(self._parts)

    def read_codes(self) -> list[str]:
        """Read the rest; returns the codes of all links."""
        text = b"".join([self._first, *self._parts]).decode()
        return [row["code"] for row in csv.DictReader(io.StringIO(text))]


# --- load ---


def test_two_hundred_requests_share_a_pool_of_five(place: Place) -> None:
    async def ask_all(base: str, code: str) -> Counter[int]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=base, timeout=30, limits=limits, trust_env=False) as client:
            asked = [
                *(client.post("/api/links", json={"url": f"https://example.com/{n}"}) for n in range(80)),
                *(client.get(f"/{code}") for _ in range(60)),
                *(client.get("/api/links", params={"q": "example"}) for _ in range(40)),
                *(client.get("/api/report") for _ in range(20)),
            ]
            return Counter(response.status_code for response in await asyncio.gather(*asked))

    with running(place, POOL_LIMIT="5", POOL_TIMEOUT="30") as (server, client):
        code = shorten(client)
        answers = asyncio.run(ask_all(str(client.base_url), code))
        assert answers == {201: 80, 307: 60, 200: 60}

        assert server.stop() == 0
        assert_ended_cleanly(server, place)
    assert place.ask("SELECT count(*), sum(clicks) FROM links") == [(81, 60)]


# --- the end ---


def test_sigterm_lets_requests_end_and_cleans_connections(place: Place) -> None:
    codes = fill(place, links=LINKS)
    with (
        ThreadPoolExecutor() as threads,
        running(place, POOL_LIMIT="2", POOL_TIMEOUT="30") as (server, client),
        client.stream("GET", "/api/links.csv") as one,
        client.stream("GET", "/api/links.csv") as other,
    ):
        exports = [Export(one), Export(other)]
        queued = [threads.submit(client.get, "/api/links") for _ in range(3)]
        while (health := client.get("/pool/health/db").json())["waiting"] < 3:
            pass
        assert health["taken"] == 2

        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("Waiting for connections to close")

        assert [export.read_codes() for export in exports] == [codes, codes]
        assert [request.result().status_code for request in queued] == [200, 200, 200]
        assert server.wait() == 0
        assert_ended_cleanly(server, place)


def test_open_page_hears_clicks_and_allows_the_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running(place) as (server, client):
        code = shorten(client)
        address = str(client.base_url.copy_with(scheme="ws", path="/live"))
        with connect(address) as page:
            assert client.get(f"/{code}").status_code == 307
            assert json.loads(page.recv(timeout=30)) == {"code": code, "clicks": 1}

            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed):
                page.recv(timeout=30)
        assert server.wait() == 0
        assert_ended_cleanly(server, place)


def test_links_and_clicks_survive_a_restart(place: Place) -> None:
    with running(place) as (server, client):
        code = shorten(client, "https://example.com/kept")
        client.get(f"/{code}")
        assert server.stop(signal.SIGINT) == 0  # Ctrl+C ends it as well as SIGTERM does
        assert_ended_cleanly(server, place)

    with running(place) as (_, client):
        (link,) = client.get("/api/links").json()["links"]
        assert (link["code"], link["url"], link["clicks"]) == (code, "https://example.com/kept", 1)


# --- the beginning ---


def test_it_prints_where_to_go(tmp_path: Path) -> None:
    with Links({}, directory=tmp_path) as server:
        addresses = [httpx.URL(address) for address in server.wait_for_addresses()]

        assert [address.path for address in addresses] == ["/", "/docs", "/pool/", "/pool/health", "/pool/metrics"]
        for address in addresses:
            assert httpx.get(address, trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("said", "url"),
    [
        ("DATABASE_URL must be", f"oracle://user:{SECRET}@db.example/links"),
        ("DATABASE_URL cannot be used: ", f"postgresql://user:{SECRET}@db.example/links?nonsense=1"),
        ("DATABASE_URL cannot be used: ", f"mysql://user:{SECRET}@db.example/links?nonsense=1"),
        ("CACHE_URL must be", f"redis://user:{SECRET}@cache.example/first"),
    ],
)
def test_nonsense_in_environment_is_one_line_and_code_2(said: str, url: str) -> None:
    with Links({said.partition(" ")[0]: url}) as server:
        assert server.wait() == 2

        assert server.log.startswith(f"example_app: {said}")
        assert server.log.count("\n") == 1
        assert SECRET not in server.log


def test_missing_file_fails_a_start_that_needs_it() -> None:
    """`POOL_MIN_FREE` needs a connection."""
    environment = {"DATABASE_URL": "sqlite:///missing/hunter2.db", "POOL_MIN_FREE": "1"}
    with Links(environment) as server:
        assert server.wait() == 3

        assert "Traceback" not in server.log
        (reason,) = [
            line for line in server.log.splitlines() if " ERROR " in line and "Application startup" not in line
        ]
        assert "the directory of the file does not exist" in reason
        assert SECRET not in server.log


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [({"path": f"/{SECRET}"}, "check the name"), ({"user": SECRET}, "check user and password")],
)
def test_refusing_server_fails_a_start_that_needs_it(postgres_url: str, wrong: dict[str, str], advice: str) -> None:
    """`POOL_MIN_FREE` needs a connection."""
    address = urlsplit(postgres_url)
    user = wrong.get("user", address.username)
    netloc = f"{user}:{SECRET if 'user' in wrong else address.password}@{address.hostname}:{address.port}"
    url = address._replace(netloc=netloc, path=wrong.get("path", address.path)).geturl()
    with Links({"DATABASE_URL": url, "POOL_MIN_FREE": "1"}) as server:
        assert server.wait() == 3

        assert "Traceback" not in server.log
        (reason,) = [
            line for line in server.log.splitlines() if " ERROR " in line and "Application startup" not in line
        ]
        assert advice in reason
        assert SECRET not in server.log


def test_help_lists_every_variable() -> None:
    with Links({}, "--help") as server:
        assert server.process.stdout is not None
        printed = server.process.stdout.read()
        assert server.wait() == 0

    for word in ("DATABASE_URL", "CACHE_URL", "CACHE_TIMEOUT", "POOL_LIMIT", "sqlite:///links.db"):
        assert word in printed
    assert max(map(len, printed.splitlines())) <= 100


def test_missing_file_is_reported_and_recovery_follows(tmp_path: Path) -> None:
    with running(SqlitePlace(tmp_path / "missing" / "links.db")) as (server, client):
        for path in ("/api/links", "/api/report"):
            refused = client.get(path)
            assert refused.status_code == 503
            assert refused.headers["content-type"] == "application/problem+json"
            assert int(refused.headers["retry-after"]) >= 1
        health = client.get("/pool/health")
        assert (health.status_code, health.json()["status"]) == (503, "fail")
        assert client.get("/").status_code == client.get("/pool/health/live").status_code == 200

        (tmp_path / "missing").mkdir()
        server.wait_for_log("pool 'db': create works again")
        server.wait_for_log("pool 'report': create works again")

        assert client.get("/pool/health").json()["status"] == "pass"
        code = shorten(client)
        assert client.get(f"/{code}").status_code == 307
        assert server.stop() == 0
        assert [path.name for path in (tmp_path / "missing").iterdir()] == ["links.db"]
