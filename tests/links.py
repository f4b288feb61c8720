"""Links: the example application as a process of its own, with real sockets and signals."""

import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.processes import Process


class Links(Process):
    """`python -m example_app`, with nothing in its environment but what is given."""

    def __init__(self, environment: dict[str, str], *arguments: str, directory: Path | None = None) -> None:
        super().__init__(
            directory or Path(tempfile.gettempdir()),
            ("example_app", *arguments),
            {
                "PYTHONWARNINGS": "default::ResourceWarning",  # says which connections were not cleaned
                "PORT": "0",
                **environment,
            },
            stdout=subprocess.PIPE,
        )
        self.printed = ""

    def wait_for_addresses(self) -> list[str]:
        """Wait until it says that it is there, and return where: the page, and what is beside it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line
            if line.endswith("metrics\n"):
                return [word for word in self.printed.split() if word.startswith("http://")]
        self.wait()
        pytest.fail(f"it did not start: {self.log}")

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        """Wait until it is there; yields a client."""
        # What one side sends and the other does not read must not fit into the sockets.
        narrow = httpx.HTTPTransport(
            socket_options=[(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)],
            # Less than uvicorn's 5 seconds: no request meets a connection that is just being closed.
            limits=httpx.Limits(keepalive_expiry=1),
        )
        base = self.wait_for_addresses()[0].rstrip("/")
        with httpx.Client(base_url=base, timeout=30, transport=narrow) as client:
            yield client


def shorten(client: httpx.Client, url: str = "https://example.com/") -> str:
    """Shorten a URL; returns the code."""
    response = client.post("/api/links", json={"url": url})
    assert response.status_code == 201, response.text
    return str(response.json()["code"])
