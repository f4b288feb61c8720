"""The example application end to end: a process of its own, uvicorn, real sockets and signals."""

import asyncio
import csv
import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Self

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from example_app import store

LONGEST_RUN = 60.0  # seconds: whatever goes wrong, no process outlives its test
LINKS = 4000  # of 2 kB each: an export of 8 MB
SECRET = "hunter2"  # noqa: S105 - nobody's


class Server:
    """`python -m example_app` in a directory of its own."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "example_app"],
            cwd=directory,
            env={
                "PYTHONPATH": os.pathsep.join(sys.path),
                "PYTHONWARNINGS": "default::ResourceWarning",  # says which connections were not cleaned
                "PORT": "0",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._watchdog = threading.Timer(LONGEST_RUN, self.process.kill)
        self._watchdog.start()
        self._log: list[str] = []
        self._more = threading.Condition()
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,))
        self._reader.start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            with self._more:
                self._log.append(line)
                self._more.notify_all()
        with self._more:
            self._log.append("")  # the end
            self._more.notify_all()

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return "".join(self._log)

    def wait_for_log(self, text: str) -> None:
        """Wait until it has logged something."""
        with self._more:
            self._more.wait_for(lambda: text in self.log or "" in self._log)
        assert text in self.log, self.log

    def wait_for_address(self) -> str:
        """Wait until it says that it is there, and return where."""
        assert self.process.stdout is not None
        printed = list(zip(range(5), self.process.stdout, strict=False))
        if len(printed) < 5:
            self.wait()
            pytest.fail(f"it did not start: {self.log}")
        return printed[1][1].split()[0].rstrip("/")

    def wait(self) -> int:
        """Wait for its end; returns the exit code."""
        code = self.process.wait()
        self._watchdog.cancel()
        self._reader.join()
        return code

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for its end; returns the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@contextmanager
def running(directory: Path, **environment: str) -> Iterator[tuple[Server, httpx.Client]]:
    """Run the application, and a client of it."""
    # What one side sends and the other does not read must not fit into the sockets.
    narrow = httpx.HTTPTransport(
        socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)],
        # Less than uvicorn's 5 seconds: no request meets a connection that is just being closed.
        limits=httpx.Limits(keepalive_expiry=1),
    )
    with Server(directory, environment) as server:
        base = server.wait_for_address()
        with httpx.Client(base_url=base, timeout=30, transport=narrow) as client:
            yield server, client


def shorten(client: httpx.Client, url: str = "https://example.com/") -> str:
    response = client.post("/api/links", json={"url": url})
    assert response.status_code == 201, response.text
    return str(response.json()["code"])


def fill(directory: Path, links: int) -> list[str]:
    """Make a database whose export is far more than what sockets buffer; returns the codes."""
    codes = [f"code-{number}" for number in range(links)]
    with closing(sqlite3.connect(directory / "links.db")) as conn, conn:
        conn.executescript(store.SCHEMA)
        url = "https://example.com/" + "x" * 1900
        conn.executemany("INSERT INTO links (code, url) VALUES (?, ?)", [(code, url) for code in codes])
    return codes


def assert_ended_cleanly(server: Server, directory: Path) -> None:
    # SQLite removes links.db-wal and links.db-shm when the last connection is closed, and only then.
    assert [path.name for path in directory.iterdir()] == ["links.db"]
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


def test_two_hundred_requests_at_once_on_a_pool_of_five_are_all_answered(tmp_path: Path) -> None:
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

    with running(tmp_path, POOL_LIMIT="5") as (server, client):
        code = shorten(client)
        answers = asyncio.run(ask_all(str(client.base_url), code))
        assert answers == {201: 80, 307: 60, 200: 60}

        assert server.stop() == 0
        assert_ended_cleanly(server, tmp_path)
    with closing(sqlite3.connect(tmp_path / "links.db")) as conn:
        assert conn.execute("SELECT count(*), sum(clicks) FROM links").fetchone() == (81, 60)


def test_an_exhausted_pool_answers_503_until_the_last_row_of_an_export_is_sent(tmp_path: Path) -> None:
    codes = fill(tmp_path, links=LINKS)
    with running(tmp_path, POOL_LIMIT="1", POOL_MIN_FREE="1", POOL_TIMEOUT="0") as (_, client):
        with client.stream("GET", "/api/links.csv") as response:
            export = Export(response)

            refused = client.get("/api/links")
            assert refused.status_code == 503
            assert refused.headers["content-type"] == "application/problem+json"
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["status"] == 503
            health = client.get("/pool/health")
            assert (health.status_code, health.json()["status"]) == (200, "warn")
            assert health.json()["pools"]["db"]["taken"] == 1

            assert export.read_codes() == codes
        # Not at once: what is given back is first made ready for the next one.
        while (answer := client.get("/api/links")).status_code == 503:
            pass
        assert answer.status_code == 200


# --- the end ---


def test_sigterm_lets_every_request_end_and_cleans_every_connection(tmp_path: Path) -> None:
    codes = fill(tmp_path, links=LINKS)
    with (
        ThreadPoolExecutor() as threads,
        running(tmp_path, POOL_LIMIT="2", POOL_TIMEOUT="30") as (server, client),
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
        assert_ended_cleanly(server, tmp_path)


def test_an_open_page_hears_clicks_and_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running(tmp_path) as (server, client):
        code = shorten(client)
        address = str(client.base_url.copy_with(scheme="ws", path="/live"))
        with connect(address) as page:
            assert client.get(f"/{code}").status_code == 307
            assert json.loads(page.recv(timeout=30)) == {"code": code, "clicks": 1}

            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed):
                page.recv(timeout=30)
        assert server.wait() == 0
        assert_ended_cleanly(server, tmp_path)


def test_links_and_clicks_survive_a_restart(tmp_path: Path) -> None:
    with running(tmp_path) as (server, client):
        code = shorten(client, "https://example.com/kept")
        client.get(f"/{code}")
        assert server.stop(signal.SIGINT) == 0  # Ctrl+C ends it as well as SIGTERM does
        assert_ended_cleanly(server, tmp_path)

    with running(tmp_path) as (_, client):
        (link,) = client.get("/api/links").json()["links"]
        assert (link["code"], link["url"], link["clicks"]) == (code, "https://example.com/kept", 1)


# --- the beginning ---


def test_it_prints_where_to_go(tmp_path: Path) -> None:
    with Server(tmp_path, {}) as server:
        assert server.process.stdout is not None
        printed = [line.split()[0] for _, line in zip(range(5), server.process.stdout, strict=False)][1:]
        addresses = [httpx.URL(address) for address in printed]

        assert [address.path for address in addresses] == ["/", "/docs", "/pool/health", "/pool/metrics"]
        for address in addresses:
            assert httpx.get(address, trust_env=False).status_code == 200


def test_nonsense_in_the_environment_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    dsn = f"postgresql://user:{SECRET}@db.example/links"
    with Server(tmp_path, {"DATABASE_URL": dsn}) as server:
        assert server.wait() == 2

        assert server.log.startswith("example_app: DATABASE_URL must be ")
        assert server.log.count("\n") == 1
        assert SECRET not in server.log


def test_without_its_database_it_does_not_start_if_it_needs_a_connection(tmp_path: Path) -> None:
    environment = {"DATABASE_URL": "sqlite:///missing/hunter2.db", "POOL_MIN_FREE": "1"}
    with Server(tmp_path, environment) as server:
        assert server.wait() == 3

        assert "Traceback" not in server.log
        (reason,) = [
            line for line in server.log.splitlines() if " ERROR " in line and "Application startup" not in line
        ]
        assert "the directory of the file does not exist" in reason
        assert SECRET not in server.log


def test_without_its_database_it_starts_says_so_and_recovers_by_itself(tmp_path: Path) -> None:
    with running(tmp_path, DATABASE_URL="sqlite:///missing/links.db") as (server, client):
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
