"""A real Prometheus, which scrapes what a test runs, and whose query API answers."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.programs import path_of
from tests.wheel_servers import free_port, start

PATIENCE = 30.0  # seconds, for whatever is awaited
JOB = "links"

# A series, by its labels, its name among them, without what Prometheus adds itself.
Series = dict[frozenset[tuple[str, str]], float]


class Prometheus:
    """The query API of a server that runs."""

    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False)

    def get(self, path: str, **parameters: str) -> Any:
        """Ask the API; it has to answer with success."""
        answer = self._client.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Evaluate an expression now; returns what the API calls the result."""
        result: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return result

    def rules(self) -> list[dict[str, Any]]:
        """Return the rules, each with the state of its last evaluation."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Ask until a condition holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.get("targets")

    def wait_for_scrapes(self, number: int = 1) -> None:
        """Wait until so many scrapes have begun and ended from now on."""
        before = time.time()
        for _ in range(number):
            self.wait_for(lambda before=before: self._scraped_at() > before)  # type: ignore[misc]
            before = self._scraped_at()

    def _scraped_at(self) -> float:
        found = self.query(f'timestamp(up{{job="{JOB}"}} == 1)')
        return float(found[0]["value"][1]) if found else 0.0

    def series(self) -> Series:
        """Return the values of all series of pools."""
        return {
            frozenset(
                (name, value) for name, value in found["metric"].items() if name not in ("job", "instance")
            ): float(found["value"][1])
            for found in self.query(f'{{__name__=~"connectionpool_.*", job="{JOB}"}}')
        }

    def close(self) -> None:
        """Close the connections of this client."""
        self._client.close()


@contextmanager
def prometheus(target: str, *rules: Path) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes a service once a second.

    Args:
        target: Host and port of the service.
        rules: Files of rules that it evaluates.
    """
    program = path_of("prometheus")
    assert program is not None, "mark the test with needs_program('prometheus')"
    with tempfile.TemporaryDirectory(prefix="prometheus-") as folder:
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [
                {"job_name": JOB, "metrics_path": "/pool/metrics", "static_configs": [{"targets": [target]}]}
            ],
        }
        file = Path(folder) / "prometheus.yml"
        file.write_text(json.dumps(config))  # which is YAML too
        port = free_port()
        words = [
            program,
            f"--config.file={file}",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        shell = start(words, "Server is ready to receive web requests")
        server = Prometheus(port)
        try:
            yield server
        finally:
            server.close()
            shell.communicate()  # closes its input, and waits
