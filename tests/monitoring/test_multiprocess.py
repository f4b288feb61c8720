"""prometheus-client's own multi-process mode: its collector, in any worker, has the pools of all workers."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.processes import Process

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

PATIENCE = 30.0  # seconds, for whatever is awaited
WORKERS = 2
LIMIT = 3

APP = f"""
import os
from typing import Annotated

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter, make_asgi_app, multiprocess

from connectionpools_fastapi import ConnectionPool, Leased, PoolCollector, install_pools

USES = Counter("uses", "What the application counts itself.")
db = ConnectionPool(create=object, limit={LIMIT}, name="db")
app = FastAPI()
install_pools(app, db, details="always")
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
registry.register(PoolCollector([db]))  # it adds nothing to what the files have
app.mount("/metrics", make_asgi_app(registry=registry))


@app.get("/use")
async def use(thing: Annotated[object, Leased(db)]):
    USES.inc()
    return os.getpid()
"""
CONF = """
from prometheus_client import multiprocess


def child_exit(server, worker):
    multiprocess.mark_process_dead(worker.pid)
"""
SERVERS = {
    "uvicorn": ("uvicorn", "--workers", str(WORKERS), "--host", "127.0.0.1", "--port", "0", "app:app"),
    "gunicorn": ("gunicorn", "-k", "uvicorn_worker.UvicornWorker", "-w", str(WORKERS), "-b", "127.0.0.1:0", "app:app"),
}

Samples = dict[str, float]


class Service:
    """A service of two workers, asked on a new connection each time, and so now one and now the other."""

    def __init__(self, base: str, process: Process) -> None:
        self.process = process
        self._client = httpx.Client(
            base_url=base, timeout=PATIENCE, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    def use(self) -> int:
        """Lease once; returns the worker that answers."""
        return int(self._client.get("/use").raise_for_status().text)

    def samples(self, path: str = "/metrics/") -> Samples:
        """Return the metrics at a path, by name; no series may be there twice."""
        found: Samples = {}
        text = self._client.get(path).raise_for_status().text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                assert f"{sample.name}{{{labels}}}" not in found
                found[f"{sample.name}{{{labels}}}"] = sample.value
        return found

    def wait_until(self, condition: Callable[[Samples], bool]) -> Samples:
        """Ask until a condition holds; returns what was seen then."""
        deadline = time.monotonic() + PATIENCE
        while not condition(found := self.samples()):
            assert time.monotonic() < deadline, (found, self.process.log)
        return found

    def wait_for_workers(self, number: int) -> None:
        """Wait until so many workers have started."""
        self.process.wait_until(lambda: self.process.log.count("Application startup complete") == number)

    def close(self) -> None:
        self._client.close()


@contextmanager
def serving(folder: Path, command: tuple[str, ...]) -> Iterator[Service]:
    (folder / "app.py").write_text(APP)
    (folder / "gunicorn.conf.py").write_text(CONF)
    metrics = folder / "metrics"
    metrics.mkdir()
    with Process(folder, command, {"PROMETHEUS_MULTIPROC_DIR": str(metrics)}) as process:
        process.wait_until(lambda: process.log.count("Application startup complete") == WORKERS)
        found = re.search(r"http://127\.0\.0\.1:\d+", process.log)
        assert found is not None, process.log
        service = Service(found[0], process)
        try:
            yield service
        finally:
            service.close()


def use_both(service: Service) -> dict[int, int]:
    """Use things until both workers have answered several times; returns how often each did."""
    uses: dict[int, int] = {}
    while len(uses) < WORKERS or min(uses.values()) < 3:
        worker = service.use()
        uses[worker] = uses.get(worker, 0) + 1
    return uses


@pytest.mark.parametrize("server", SERVERS)
def test_any_worker_has_the_pools_of_all(server: str, tmp_path: Path) -> None:
    with serving(tmp_path, SERVERS[server]) as service:
        number = sum(use_both(service).values())
        # A worker writes one number after the other: a moment may show some of them only.
        expected = {
            "uses_total{}": number,
            "connectionpool_acquires_total{pool=db}": number,
            "connectionpool_releases_total{pool=db}": number,
            "connectionpool_route_leases_total{pool=db,route=GET /use}": number,
            "connectionpool_use_seconds_bucket{le=+Inf,pool=db}": number,
            "connectionpool_use_seconds_count{pool=db}": number,
            "connectionpool_limit{pool=db}": WORKERS * LIMIT,
            "connectionpool_open{pool=db}": 1,
        }
        service.wait_until(lambda found: {name: found.get(name) for name in expected} == expected)
        own = service.samples("/pool/metrics")
        name = "connectionpool_route_leases_total{{pool=db,route=GET /use,worker={}}}"
        assert sum(own[name.format(worker)] for worker in range(WORKERS)) == number
        assert service.process.stop() == 0


@pytest.mark.parametrize(("server", "number_of_signal"), [("gunicorn", signal.SIGKILL), ("uvicorn", signal.SIGTERM)])
def test_totals_outlive_a_worker_and_its_limit_does_not(
    server: str, number_of_signal: signal.Signals, tmp_path: Path
) -> None:
    with serving(tmp_path, SERVERS[server]) as service:
        uses = use_both(service)
        number = sum(uses.values())
        service.wait_until(lambda found: found.get("connectionpool_releases_total{pool=db}") == number)
        os.kill(next(iter(uses)), number_of_signal)
        service.wait_for_workers(WORKERS + 1)
        found = service.wait_until(lambda found: found.get("connectionpool_limit{pool=db}") == WORKERS * LIMIT)
        assert found["connectionpool_releases_total{pool=db}"] == number


SCRIPT = """
import logging, os
from fastapi import FastAPI
from starlette.testclient import TestClient
from connectionpools_fastapi import ConnectionPool, install_pools

logging.basicConfig(format="%(levelname)s %(message)s")
{first}
os.environ["PROMETHEUS_MULTIPROC_DIR"] = "missing"
app = FastAPI()
install_pools(app, ConnectionPool(create=object, name="db"))
with TestClient(app) as client:
    assert b"connectionpool_limit" in client.get("/pool/metrics").content
"""


@pytest.mark.parametrize(
    ("first", "cause"),
    [("", "FileNotFoundError"), ("import prometheus_client", "prometheus_client was imported before it was set")],
)
def test_files_that_cannot_be_written_are_told(first: str, cause: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(first=first))
    with Process(tmp_path, ("script",), {}) as process:
        assert process.wait() == 0, process.log
    warnings = [line for line in process.log.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert f"PROMETHEUS_MULTIPROC_DIR: {cause}" in warnings[0]
    assert "Set it" in warnings[0]
