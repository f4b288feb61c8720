"""`--demo-servers`: everything for somebody who has nothing, and nothing is left of it."""

import re
import signal
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from example_app.servers import PASSWORD
from tests.links import Links, shorten


def ports_of(printed: str) -> list[int]:
    return [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)  (?:PostgreSQL|Redis)", printed)]


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def test_it_serves_on_both_servers_and_leaves_none_behind(tmp_path: Path) -> None:
    # Of the other settings those hold that it does not bring.
    environment = {"DATABASE_URL": "sqlite:///links.db", "POOL_LIMIT": "2"}
    with Links(environment, "--demo-servers", directory=tmp_path) as server, server.client() as client:
        ports = ports_of(server.printed)
        assert len(ports) == 2
        assert [listens(port) for port in ports] == [True, True]
        assert PASSWORD not in server.printed

        code = shorten(client, "https://example.com/a")
        for _ in range(3):
            assert client.get(f"/{code}").headers["location"] == "https://example.com/a"
        (link,) = client.get("/api/links").json()["links"]
        assert link["clicks"] == 3
        pools = client.get("/pool/health").json()["pools"]
        assert {name: pool["status"] for name, pool in pools.items()} == dict.fromkeys(
            ("db", "report", "cache"), "pass"
        )
        assert pools["db"]["limit"] == 2

        assert server.stop(signal.SIGTERM) == 0

        assert [listens(port) for port in ports] == [False, False]
        assert list(tmp_path.iterdir()) == []
        for word in ("WARNING", "ERROR", "Traceback", PASSWORD):
            assert word not in server.log, server.log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_however_it_ends_no_server_outlives_it(number: signal.Signals) -> None:
    with Links({}, "--demo-servers") as server:
        server.wait_for_addresses()
        ports = ports_of(server.printed)

        # It waits for all who may write to its log, as the servers may.
        assert server.stop(number) == (0 if number is signal.SIGINT else -number)

        assert [listens(port) for port in ports] == [False, False]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_servers_start_ends_it_as_well(number: signal.Signals) -> None:
    with Links({}, "--demo-servers") as server:
        assert server.process.stdout is not None
        assert server.process.stdout.readline() == "Starting a PostgreSQL and a Redis for this run ...\n"

        assert server.stop(number) == 0

        assert "Traceback" not in server.log
        assert server.process.stdout.read() == ""


def test_help_lists_the_option_and_every_variable(tmp_path: Path) -> None:
    with Links({}, "--help", directory=tmp_path) as server:
        assert server.process.stdout is not None
        printed = server.process.stdout.read()
        assert server.wait() == 0

    for word in ("--demo-servers", "DATABASE_URL", "CACHE_URL", "CACHE_TIMEOUT", "POOL_LIMIT", "sqlite:///links.db"):
        assert word in printed
    assert max(map(len, printed.splitlines())) <= 100
