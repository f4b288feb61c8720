"""Workers: processes of one service answer for each other, and never for another one."""

import multiprocessing
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from connectionpools_fastapi import ConnectionPool, install_pools, mark_unready
from connectionpools_fastapi._asgi import endpoints, readiness
from connectionpools_fastapi._monitoring.workers import Workers
from tests.support import settled

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform != "linux", reason="workers find each other on Linux")]

HOW_LONG = 5.0
PATIENCE = 30.0
NUMBERS = count()


@pytest.fixture
def service() -> str:
    """A name that no other test uses at the same time."""
    return f"{os.getpid()}.{next(NUMBERS)}"


@asynccontextmanager
async def joined(service: str | None, answer: Any = None) -> AsyncIterator[Workers]:
    async def tell(question: dict[str, Any]) -> Any:
        return [answer, question["what"]]

    workers = Workers(service, tell)
    await workers.join()
    try:
        yield workers
    finally:
        workers.leave()
        await settled()


def squat(name: str, number: int) -> socket.socket:
    """Listen at a number of the service, and never answer."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{name}{number}")
    listener.listen()
    return listener


async def test_each_worker_hears_all_others(service: str) -> None:
    async with joined(service, "a") as first, joined(service, "b") as second, joined(service, "c") as third:
        assert [workers.number for workers in (first, second, third)] == [0, 1, 2]
        assert await second.ask({"what": 5}, HOW_LONG) == {0: ["a", 5], 2: ["c", 5]}


async def test_number_of_a_worker_that_left_is_taken_again(service: str) -> None:
    async with joined(service, "a") as first:
        async with joined(service, "b"):
            pass
        assert await first.ask({"what": 5}, HOW_LONG) == {}
        async with joined(service, "c") as successor:
            assert successor.number == 1
            assert await first.ask({"what": 5}, HOW_LONG) == {1: ["c", 5]}


async def test_two_services_do_not_mix(service: str) -> None:
    async with joined(f"{service}-1", "a") as one, joined(f"{service}-12", "b") as other:
        assert (one.number, other.number) == (0, 0)
        assert await one.ask({"what": 5}, HOW_LONG) == await other.ask({"what": 5}, HOW_LONG) == {}


async def test_worker_that_hangs_is_named_within_a_moment(service: str) -> None:
    async with joined(service, "a") as first, joined(service, "b"):
        with squat(first._name, 7):
            began = anyio.current_time()
            assert await first.ask({"what": 5}, HOW_LONG) == {1: ["b", 5], 7: None}
            assert anyio.current_time() - began < HOW_LONG


async def test_worker_that_hangs_never_gets_the_question(service: str) -> None:
    async with joined(service) as first:
        with squat(first._name, 7) as listener:
            assert await first.ask({"what": 5}, HOW_LONG, 0.01) == {7: None}
            connection, _ = listener.accept()  # as it does when it goes on
            with connection:
                assert connection.recv(1) == b""


async def test_slow_answer_is_cut_off_by_its_own_limit(service: str) -> None:
    async def tell(_: dict[str, Any]) -> Any:
        await anyio.sleep_forever()

    slow = Workers(service, tell)
    await slow.join()
    async with joined(service) as other:
        assert await other.ask({"what": 5}, 0.01) == {0: None}
    slow.leave()
    await settled()


async def test_another_user_neither_reads_nor_feeds(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with joined(service, "a") as first, joined(service, "b"):
        us = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: us + 1)
        assert await first.ask({"what": 5}, HOW_LONG) == {}
        async with await anyio.connect_unix(f"\0{first._name}0") as stream:
            await stream.send(b'{"what": 5}\n')
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await stream.receive()


@pytest.mark.parametrize("question", [b"nonsense\n", b"[]\n", b"{}\n", b"x" * 10_000])
async def test_nonsense_ends_only_its_own_connection(service: str, question: bytes) -> None:
    async with joined(service, "a") as first, joined(service, "b") as second:
        async with await anyio.connect_unix(f"\0{first._name}0") as stream:
            await stream.send(question)
            received = [part async for part in stream]
        assert b"".join(received) == b"+"
        assert await second.ask({"what": 5}, HOW_LONG) == {0: ["a", 5]}


@pytest.mark.parametrize("way", ["alone", "multiprocessing", "gunicorn"])
async def test_workers_of_one_parent_are_one_service(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    if way == "multiprocessing":
        monkeypatch.setattr(multiprocessing, "parent_process", multiprocessing.current_process)
    if way == "gunicorn":
        monkeypatch.setenv("SERVER_SOFTWARE", "gunicorn/23.0.0")
    async with joined(None, "a") as first, joined(None, "b") as second:
        if way == "alone":
            assert (first.number, second.number) == (None, None)
        else:
            assert await second.ask({"what": 5}, HOW_LONG) == {0: ["a", 5]}


@pytest.mark.parametrize("hidden", ["join", "ask"])
async def test_where_proc_is_hidden_a_worker_answers_alone(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    def refuse(_: Path) -> str:
        raise PermissionError

    monkeypatch.setenv("SERVER_SOFTWARE", "gunicorn/23.0.0")
    if hidden == "join":
        monkeypatch.setattr(Path, "read_text", refuse)
    async with joined(None, "a") as workers:
        monkeypatch.setattr(Path, "read_text", refuse)
        assert workers.number == (None if hidden == "join" else 0)
        assert await workers.ask({"what": 5}, HOW_LONG) == {}


# --- the endpoints -------------------------------------------------------------------------------


def serving(pool: ConnectionPool[Any], **options: Any) -> TestClient:
    app = FastAPI()
    install_pools(app, pool, **options)
    return TestClient(app)


def test_any_worker_answers_for_the_whole_service(service: str) -> None:
    pools = [ConnectionPool(create=object, limit=limit, name="db") for limit in (2, 3)]
    options: dict[str, Any] = {"service": service, "authorize": lambda _: True}
    first, second = [serving(pool, **options) for pool in pools]
    with first, second, pools[1].lease(holder="GET /slow"):
        for client in (first, second):
            health = client.get("/pool/health").json()
            assert health["workers"] == {"0": {"status": "pass"}, "1": {"status": "pass"}}
            assert (health["pools"]["db"]["limit"], health["pools"]["db"]["taken"]) == (5, 1)
            one = client.get("/pool/health/db").json()
            assert (one["status"], one["limit"]) == ("pass", 5)
            assert re.findall(r"connectionpool_limit\{.*", client.get("/pool/metrics").text) == [
                'connectionpool_limit{pool="db",worker="0"} 2.0',
                'connectionpool_limit{pool="db",worker="1"} 3.0',
            ]
            (lease,) = client.get("/pool/leases").json()["leases"]
            assert (lease["holder"], lease["worker"]) == ("GET /slow", 1)


def test_a_worker_that_is_marked_unready_tells_the_others(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = [serving(ConnectionPool(create=object, name="db"), service=service) for _ in range(2)]
    before = set(readiness._RUNNING)  # an earlier test may have left some that are not collected yet
    with first:
        (own,) = set(readiness._RUNNING) - before
        with second:
            monkeypatch.setattr(readiness, "_RUNNING", {own})
            mark_unready()
            until = time.monotonic() + PATIENCE
            while second.get("/pool/health/ready").status_code == 200:
                assert time.monotonic() < until
            assert first.get("/pool/health/ready").status_code == 503
            assert second.get("/pool/health").json()["status"] == "pass"


def test_action_reaches_all_workers_and_names_those_that_hang(
    service: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = [ConnectionPool(create=object, limit=2, name="db") for _ in range(2)]
    options: dict[str, Any] = {"service": service, "authorize": lambda _: True, "control": lambda _: True}
    first, second = [serving(pool, **options) for pool in pools]
    with first, second:
        answer = second.post("/pool/control", json={"pool": "db", "action": "resize", "limit": 5})
        assert (answer.status_code, answer.json()) == (200, {"workers": {"0": "done", "1": "done"}})
        assert [pool.limit for pool in pools] == [5, 5]
        monkeypatch.setattr(endpoints, "ACTS_WITHIN", 0.2)
        name = re.findall(rf"@(.*/{service}/)0", Path("/proc/net/unix").read_text())[0]
        with squat(name, 7):
            answer = first.post("/pool/control", json={"pool": "db", "action": "suspend"})
        outcomes = {"0": "done", "1": "done", "7": "the worker does not answer"}
        assert (answer.status_code, answer.json()) == (504, {"workers": outcomes})
        assert [pool.status for pool in pools] == ["suspended", "suspended"]
        pools[1].close_sync()
        answer = first.post("/pool/control", json={"pool": "db", "action": "resume"})
        assert (answer.status_code, answer.json()["workers"]["1"]) == (409, "the pool is not open")
    lines = [record.getMessage() for record in caplog.records if getattr(record, "pool_event", None) == "controlled"]
    assert lines == [
        "pool 'db': a request asked to resize it to 5: done in 2 of 2 workers",
        "pool 'db': a request asked to suspend it: done in 2 of 3 workers, not in 7",
        "pool 'db': a request asked to resume it: done in 1 of 2 workers, not in 1",
    ]


def test_ready_speaks_for_the_answering_worker_only(service: str) -> None:
    pools = [ConnectionPool(create=object, name="db") for _ in range(2)]
    first, second = [serving(pool, service=service) for pool in pools]
    with first, second:
        pools[1].close_sync()
        assert [client.get("/pool/health/ready").status_code for client in (first, second)] == [200, 503]
        assert [client.get("/pool/health").status_code for client in (first, second)] == [200, 200]


def test_metrics_of_several_workers_as_json(service: str) -> None:
    clients = [serving(ConnectionPool(create=object, name=f"db{number}"), service=service) for number in range(2)]
    with clients[0], clients[1]:
        workers = clients[0].get("/pool/metrics", headers={"accept": "application/json"}).json()["workers"]
    assert {number: [pool["name"] for pool in found["pools"]] for number, found in workers.items()} == {
        "0": ["db0"],
        "1": ["db1"],
    }


def test_kernel_lists_no_name_of_a_service_that_ended(service: str) -> None:
    with serving(ConnectionPool(create=object, name="db"), service=service):
        assert f"/{service}/" in Path("/proc/net/unix").read_text()
    assert f"/{service}/" not in Path("/proc/net/unix").read_text()
