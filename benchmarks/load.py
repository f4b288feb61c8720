"""Asks servers as fast as they answer: a process of its own, which takes orders.

Each client keeps its connection, and sends its next request when the last one is answered.
"""

import asyncio
import statistics
import time
from dataclasses import asdict, dataclass
from typing import cast

import uvloop

from benchmarks.wire import answer

WARM_UP = 0.15  # share of the time
REQUEST = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """Requests a second, the seconds that 99 % of them took at most, and how many there were, the warm-up included."""

    throughput: float
    p99: float
    requests: int


class Client(asyncio.Protocol):
    """One connection; raises what goes wrong where `finished` is awaited."""

    def __init__(self, began: float, until: float) -> None:
        self.latencies: list[float] = []
        self.requests = 0
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
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
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish(exc or RuntimeError("a server has closed a connection"))

    def _ask(self) -> None:
        self._received = b""
        self._asked = time.perf_counter()
        if self._asked >= self._until:
            self._finish(None)
        else:
            self.requests += 1
            self._transport.write(REQUEST)

    def _finish(self, error: Exception | None) -> None:
        if not self.finished.done():
            if error is None:
                self.finished.set_result(None)
            else:
                self.finished.set_exception(error)
            self._transport.close()


async def carry_out(port: int, seconds: float, count: int) -> Answer:
    """Put load on the server of a port."""
    now = time.perf_counter()
    began, until = now + WARM_UP * seconds, now + (1 + WARM_UP) * seconds
    loop = asyncio.get_running_loop()
    clients = [Client(began, until) for _ in range(count)]
    for client in clients:
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc] # bound
    async with asyncio.timeout(seconds + 30):
        await asyncio.gather(*[client.finished for client in clients])
    latencies = [latency for client in clients for latency in client.latencies]
    if len(latencies) < 2:  # noqa: PLR2004 - so short a time on a busy machine says nothing
        return await carry_out(port, 2 * seconds, count)
    p99 = statistics.quantiles(latencies, n=100, method="inclusive")[-1]
    return Answer(len(latencies) / seconds, p99, sum(client.requests for client in clients))


if __name__ == "__main__":
    answer(lambda port, seconds, clients: asdict(uvloop.run(carry_out(port, seconds, clients))))
