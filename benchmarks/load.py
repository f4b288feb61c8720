"""Asks servers as fast as they answer: a process of its own, which takes one order a line and answers each with one.

Each client keeps its connection, and sends its next request when the last one is answered.
"""

import asyncio
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import cast

import uvloop

WARM_UP = 0.15  # share of the time


@dataclass(frozen=True, slots=True)
class Order:
    """What to ask, and for how long."""

    port: int
    seconds: float
    clients: int
    scrape_every: float = 0.0  # seconds between two looks at /pool/metrics; 0 for none


@dataclass(frozen=True, slots=True)
class Answer:
    """Requests a second, and the seconds that half of them and 99 % of them took at most."""

    throughput: float
    p50: float
    p99: float


class Client(asyncio.Protocol):
    """One connection; raises what goes wrong where `finished` is awaited."""

    def __init__(self, path: str, pause: float, began: float, until: float) -> None:
        self.latencies: list[float] = []
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
        self._pause = pause
        self._began = began
        self._until = until
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        now = time.perf_counter()
        if not head.startswith(b"HTTP/1.1 200"):
            self._finish(RuntimeError(f"a server says {self._received.decode()}"))
        elif now >= self._until:
            self._finish(None)
        else:
            if self._asked >= self._began:
                self.latencies.append(now - self._asked)
            if self._pause:
                asyncio.get_running_loop().call_later(self._pause, self._ask)
            else:
                self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(exc or RuntimeError("a server has closed a connection"))

    def _ask(self) -> None:
        self._received = b""
        self._asked = time.perf_counter()
        if self._asked >= self._until:
            self._finish(None)
        else:
            self._transport.write(self._request)

    def _finish(self, error: Exception | None) -> None:
        if not self.finished.done():
            if error is None:
                self.finished.set_result(None)
            else:
                self.finished.set_exception(error)
            self._transport.close()


async def carry_out(order: Order) -> Answer:
    """Put the load on the server."""
    now = time.perf_counter()
    began, until = now + WARM_UP * order.seconds, now + (1 + WARM_UP) * order.seconds
    loop = asyncio.get_running_loop()
    clients = [Client("/", 0, began, until) for _ in range(order.clients)]
    scrapers = [Client("/pool/metrics", order.scrape_every, began, until)] if order.scrape_every else []
    for client in clients + scrapers:
        await loop.create_connection(lambda client=client: client, "127.0.0.1", order.port)  # type: ignore[misc] # bound
    async with asyncio.timeout(order.seconds + 30):
        await asyncio.gather(*[client.finished for client in clients + scrapers])
    latencies = [latency for client in clients for latency in client.latencies]
    if len(latencies) < 2:  # noqa: PLR2004 - so short a time on a busy machine says nothing
        return await carry_out(replace(order, seconds=2 * order.seconds))
    hundredths = statistics.quantiles(latencies, n=100, method="inclusive")
    return Answer(len(latencies) / order.seconds, hundredths[49], hundredths[98])


def main() -> None:
    for line in sys.stdin:
        answer = uvloop.run(carry_out(Order(**json.loads(line))))
        print(json.dumps(asdict(answer)), flush=True)


if __name__ == "__main__":
    main()
