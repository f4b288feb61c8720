"""Load beyond capacity over HTTP: `python -m benchmarks.overload` writes a table and a picture of it.

Clients do not wait for each other, and each hangs up after its patience. `--tiny` only sees that it runs.
"""

import argparse
import asyncio
import json
import math
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import uvloop

from benchmarks.apps.overload import CONNECTIONS, QUERY_TAKES
from benchmarks.machine import describe
from benchmarks.plot import curves
from benchmarks.wire import serving
from tests.wheel_servers import postgres

PATIENCE = 0.5  # seconds
LOADS = (0.8, 1.3, 2.0, 3.0, 5.0)  # times the capacity
CAPACITY = CONNECTIONS / QUERY_TAKES  # requests a second, if nothing but the query took time
POOLS = {
    "connectionpools_fastapi": "leased",
    "asyncpg.Pool": "asyncpg_pool",
    "psycopg_pool": "psycopg_pool",
    "SQLAlchemy": "sqlalchemy",
}
REQUEST = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
SERVED = b"HTTP/1.1 200"

PROBE_EVERY = 0.05
WATCH = 2.5  # seconds after the load
NORMAL = 0.1  # a request that takes longer is not served as normal

TABLE, PICTURE = Path("benchmarks/overload.md"), Path("benchmarks/plots/overload.svg")
HEAD = (
    "| pool | load | goodput | p99 of the served | queries in vain | normal after |\n"
    "| --- | --- | --- | --- | --- | --- |"
)


@dataclass
class Seen:
    """What the clients saw of one pool under one load."""

    latencies: list[float] = field(default_factory=list)  # of those that were served
    slow_until: float = 0.0  # seconds after the load


async def _ask(port: int) -> float:
    """Return the seconds that an answer took; infinity if there is none in time, or a refusal."""
    began = time.perf_counter()
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(REQUEST)
                is_served = (await reader.read()).startswith(SERVED)
            finally:
                writer.transport.abort()
    except (TimeoutError, OSError):
        return math.inf
    return time.perf_counter() - began if is_served else math.inf


async def _put_load(port: int, rate: float, seconds: float, watch: float) -> Seen:
    seen = Seen()

    async def load() -> None:
        latency = await _ask(port)
        if latency < math.inf:
            seen.latencies.append(latency)

    async def probe(at: float) -> None:
        if await _ask(port) > NORMAL:
            seen.slow_until = max(seen.slow_until, at)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(began + number / rate - time.perf_counter())
            group.create_task(load())
    async with asyncio.TaskGroup() as group:
        for number in range(1, _probes(watch) + 1):
            await asyncio.sleep(PROBE_EVERY)
            group.create_task(probe(number * PROBE_EVERY))
    return seen


def _probes(watch: float) -> int:
    return int(watch / PROBE_EVERY)


def _queries(port: int) -> int:
    with urlopen(f"http://127.0.0.1:{port}/queries", timeout=30) as answer:
        return int(json.load(answer))


def measure(
    seconds: float, loads: tuple[float, ...], watch: float = WATCH
) -> tuple[list[str], dict[str, list[tuple[float, float]]]]:
    """Return the rows of the table, and the points of the picture by pool."""
    rows: list[str] = []
    points: dict[str, list[tuple[float, float]]] = {}
    with postgres() as database:
        for name, app in POOLS.items():
            for load in loads:
                with serving(f"benchmarks.apps.overload:{app}", database.url) as server:
                    before = _queries(server.port)
                    seen = uvloop.run(_put_load(server.port, load * CAPACITY, seconds, watch))
                    # All probes count as served, which flatters a pool that has not recovered.
                    in_vain = max(0, _queries(server.port) - before - len(seen.latencies) - _probes(watch))
                goodput = 100 * len(seen.latencies) / seconds / CAPACITY
                p99 = statistics.quantiles(seen.latencies or [math.nan] * 2, n=100, method="inclusive")[-1]
                normal = f"> {watch} s" if seen.slow_until > watch - 2 * PROBE_EVERY else f"{seen.slow_until:.2f} s"
                rows.append(f"| {name} | {load} x | {goodput:.0f} % | {1e3 * p99:.0f} ms | {in_vain} | {normal} |")
                points.setdefault(name, []).append((load, goodput))
                print(rows[-1], flush=True)
    return rows, points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="run for a moment, and write nothing")
    if parser.parse_args().tiny:
        measure(0.2, (2.0,), watch=0.2)
        return
    rows, points = measure(4.0, LOADS)
    machine = describe()
    below = f"{CONNECTIONS} connections, a query of {1e3 * QUERY_TAKES:.0f} ms, patience {PATIENCE} s"
    said = (
        f"{below}; 100 % are {CAPACITY:.0f} requests a second, the capacity if nothing but the query took time. "
        f"Measured on {machine['date']}, {machine['Python']}, {machine['CPU']}."
    )
    TABLE.write_text("\n".join(["# Overload over HTTP", "", said, "", HEAD, *rows, ""]), encoding="utf-8")
    shares = {name: [(load, goodput / 100) for load, goodput in line] for name, line in points.items()}
    PICTURE.write_text(curves("Goodput over HTTP", "offered load, times the capacity", shares, below), encoding="utf-8")


if __name__ == "__main__":
    main()
