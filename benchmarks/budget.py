"""Eight workers, one budget: `python -m benchmarks.budget` prints what a PostgreSQL saw of it, and the throughput.

The load moves from worker to worker. At random one of them is killed, and started anew, or stopped for a while. Run as
`--seconds 600` for long, `--engine redis` for RedisBudget, `--seed` to repeat the order of events.
"""

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg  # type: ignore[import-untyped] # has no types

from tests.wheel_servers import free_port, postgres, redis

WORKERS, LIMIT, TOTAL = 8, 20, 30
MAX_CONNECTIONS = 60
SAMPLE_EVERY = 0.05
MOVES_AFTER = 1.0, 4.0  # from one hot worker to the next, in seconds; uniform
FAULT_AFTER = 3.0, 6.0  # from one fault to the next
STOPPED_FOR = 0.5, 8.0
HOT = 0.6  # the part of the load that one worker gets
CALM = 30.0  # for how long nothing goes wrong first, at most
PATIENCE = 5.0  # of a client
READY_WITHIN = 30.0
TTL = 5.0
REQUEST = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
COUNT = "SELECT application_name, count(*) FROM pg_stat_activity WHERE application_name LIKE 'worker%' GROUP BY 1"


MADE = "SELECT sessions FROM pg_stat_database WHERE datname = current_database()"


@dataclass
class Seen:
    """What a run has seen; the counts of requests by outcome."""

    requests: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    most: int = 0  # connections of workers that run
    most_beside: int = 0  # with those of killed workers, and of those that were stopped for a time-to-live
    samples: int = 0
    made: int = 0  # connections
    faults: Counter[str] = field(default_factory=Counter)


class Worker:
    """One worker at one port; a new process after each kill."""

    def __init__(self, number: int, environment: dict[str, str], log: Path) -> None:
        self.number = number
        self.port = free_port()
        self.starts = 0
        self.is_usable = False  # as a load balancer sees it
        self.stopped_at: float | None = None
        self.overslept_until = 0.0  # when it has surely given up what went to others
        self.was_hit_at = 0.0  # by a fault, the last time
        self._environment = environment
        self._log = log
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    @property
    def name(self) -> str:
        return f"worker {self.number}.{self.starts}"

    async def start(self) -> None:
        self.starts += 1
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "benchmarks.apps.budget", self.name, str(self.port)]
            self.process = subprocess.Popen(command, env=self._environment, stderr=log)  # noqa: ASYNC220, S603 - ours
        async with asyncio.timeout(READY_WITHIN):
            while True:
                with suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    break
                await asyncio.sleep(0.05)
        self.is_usable = True

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            self.process.wait()

    async def ask(self) -> bool:
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(size)
        except BaseException:
            writer.transport.abort()
            raise
        self._idle.append((reader, writer))
        return head.startswith(b"HTTP/1.1 200")

    def forget_connections(self) -> None:
        for _, writer in self._idle:
            writer.transport.abort()
        self._idle.clear()


class Run:
    """The load, the faults and the samples of one service."""

    def __init__(self, workers: list[Worker], database: str, seed: int, rate: float, engine: str) -> None:
        self.workers = workers
        self.seen = Seen()
        self.chance = random.Random(seed)  # noqa: S311 - no secret
        self._database = database
        self._rate = rate
        # What a member that is stopped for a time-to-live holds is granted to others; not so with locks.
        self._loses_after = 0.9 * TTL if engine == "redis" else float("inf")
        self._is_over = asyncio.Event()

    async def play(self, seconds: float, *, faults: bool) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sample())
            if faults:
                group.create_task(self._break())
            await self._load(seconds)
            self._is_over.set()

    async def _load(self, seconds: float) -> None:
        began = time.perf_counter()
        hot, moves_at = self.workers[0], 0.0
        async with asyncio.TaskGroup() as group:
            for number in range(int(self._rate * seconds)):
                due = number / self._rate
                if due >= moves_at:
                    hot, moves_at = self.chance.choice(self.workers), due + self.chance.uniform(*MOVES_AFTER)
                await asyncio.sleep(began + due - time.perf_counter())
                usable = [worker for worker in self.workers if worker.is_usable]
                is_hot = hot in usable and self.chance.random() < HOT
                group.create_task(self._ask(hot if is_hot else self.chance.choice(usable)))

    async def _ask(self, worker: Worker) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE):
                outcome = "served" if await worker.ask() else "refused"
        except (TimeoutError, OSError, EOFError):
            outcome = "failed" if worker.is_usable and worker.was_hit_at < began else "hit by a fault"
        if outcome == "served":
            self.seen.latencies.append(time.monotonic() - began)
        self.seen.requests[outcome] += 1

    async def _break(self) -> None:
        while not await self._wait(self.chance.uniform(*FAULT_AFTER)):
            worker = self.chance.choice(self.workers)
            worker.is_usable = False
            if self.chance.random() < 0.5:  # noqa: PLR2004 - as often as not
                self.seen.faults["kill -9"] += 1
                worker.send(signal.SIGKILL)
                worker.forget_connections()
                await worker.start()
                worker.was_hit_at = time.monotonic()
            else:
                self.seen.faults["SIGSTOP"] += 1
                worker.send(signal.SIGSTOP)
                worker.stopped_at = time.monotonic()
                await self._wait(self.chance.uniform(*STOPPED_FOR))
                if time.monotonic() > worker.stopped_at + self._loses_after:
                    worker.overslept_until = time.monotonic() + 1.0
                worker.send(signal.SIGCONT)
                worker.stopped_at = None
                worker.was_hit_at = time.monotonic()
                worker.is_usable = True

    async def _wait(self, seconds: float) -> bool:
        """Wait; True if the run is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._is_over.wait()
        return self._is_over.is_set()

    async def _sample(self) -> None:
        server = await asyncpg.connect(self._database)
        made = await server.fetchval(MADE)
        while not self._is_over.is_set():
            found = dict(await server.fetch(COUNT))
            now = time.monotonic()
            running = {
                worker.name
                for worker in self.workers
                if now > worker.overslept_until and now < (worker.stopped_at or now) + self._loses_after
            }
            seen = self.seen
            seen.samples += 1
            seen.most = max(seen.most, sum(count for name, count in found.items() if name in running))
            seen.most_beside = max(seen.most_beside, sum(found.values()))
            await asyncio.sleep(SAMPLE_EVERY)
        self.seen.made = await server.fetchval(MADE) - made
        await server.close()


async def share_and_take_over(workers: list[Worker], database: str) -> tuple[list[int], float, float]:
    """Let one worker have all it wants, then another want as much, then kill the first.

    Returns how many connections each has after two seconds, and after how many seconds the second has the first
    token of the killed one, and all that it may have.
    """
    one, two = workers[:2]
    server = await asyncpg.connect(database)

    async def counts() -> list[int]:
        found = dict(await server.fetch(COUNT))
        return [found.get(worker.name, 0) for worker in (one, two)]

    async def use(worker: Worker) -> None:
        while True:
            with suppress(OSError, EOFError):
                await worker.ask()

    async def until_more(than: int) -> float:
        began = time.monotonic()
        async with asyncio.timeout(READY_WITHIN):
            while (await counts())[1] <= than:  # noqa: ASYNC110 - a server sets no event here
                await asyncio.sleep(0.01)
        return time.monotonic() - began

    busy = [asyncio.create_task(use(one)) for _ in range(LIMIT)]
    async with asyncio.timeout(READY_WITHIN):
        while (await counts())[0] < LIMIT:  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.05)
    more = [asyncio.create_task(use(two)) for _ in range(LIMIT)]
    await asyncio.sleep(2.0)
    shares = await counts()
    for task in busy:
        task.cancel()
    one.send(signal.SIGKILL)
    first = await until_more(shares[1])
    every = first + await until_more(LIMIT - 1)
    for task in more:
        task.cancel()
    await asyncio.gather(*busy, *more, return_exceptions=True)
    await server.close()
    return shares, first, every


async def measure(engine: str, count: int, limit: int, said: argparse.Namespace, seconds: float) -> Seen:
    """Run one service, and print what it gave; with faults if it is for as long as was said."""
    async with AsyncExitStack() as stack:
        database = stack.enter_context(postgres(max_connections=str(MAX_CONNECTIONS)))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        counter = {"none": "none", "host": str(folder / "tokens")}.get(engine)
        if counter is None:
            counter = stack.enter_context(redis()).url
        environment = {
            **os.environ,
            "DSN": database.url,
            "LIMIT": str(limit),
            "TOTAL": str(TOTAL),
            "TTL": str(TTL),
            "ENGINE": counter,
        }
        log = folder / "log"
        workers = [Worker(number, environment, log) for number in range(count)]
        stack.enter_context(ending(workers))
        await asyncio.gather(*(worker.start() for worker in workers))
        if engine == "redis":
            await asyncio.sleep(TTL + 1.0)  # it was empty
        run = Run(workers, database.url, said.seed, said.rate, engine)
        await run.play(seconds, faults=seconds == said.seconds)
        tell(engine, count, run.seen, said, seconds)
        if engine != "none":
            shares, first, every = await share_and_take_over(workers, database.url)
            print(f"  two that are busy hold {shares} after 2 s; after a kill -9 of one, the other has its first token")
            print(f"  after {first:.2f} s, all {LIMIT} connections after {every:.2f} s")
        lines = log.read_text(encoding="utf-8").splitlines()
        refused = sum("too many" in line or "53300" in line for line in lines)
        print(
            f"  errors 53300 in the logs: {refused}; other errors: {sum('Error' in line for line in lines) - refused}"
        )
        if said.log:
            print(*lines[-40:], sep="\n")
        return run.seen


def tell(engine: str, count: int, seen: Seen, said: argparse.Namespace, seconds: float) -> None:
    ordered = sorted(seen.latencies)
    middle, late = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    print(f"{engine}, {count} workers, {seconds:g} s at {said.rate:g} requests a second, seed {said.seed}:")
    print(f"  {dict(seen.faults)}; requests: {dict(seen.requests)}")
    print(f"  {len(ordered) / seconds:.1f} served a second, p50 {middle * 1000:.0f} ms, p99 {late * 1000:.0f} ms")
    most = f"{seen.most}, {seen.most_beside} with those apart"
    print(f"  most connections: {most}; {seen.made} made; {seen.samples} samples", flush=True)


@contextmanager
def ending(workers: list[Worker]) -> Iterator[None]:
    try:
        yield
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budget", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))  # noqa: S311 - no secret
    parser.add_argument("--engine", choices=["host", "redis"], action="append")
    parser.add_argument("--log", action="store_true", help="print the end of the workers' log")
    said = parser.parse_args()
    calm = min(CALM, said.seconds / 2)
    alone = await measure("none", 1, TOTAL, said, calm)
    for engine in said.engine or ["host", "redis"]:
        whole = await measure(engine, WORKERS, LIMIT, said, calm)
        print(f"  throughput: {len(whole.latencies) / len(alone.latencies):.1%} of one process with limit {TOTAL}")
        await measure(engine, WORKERS, LIMIT, said, said.seconds)


if __name__ == "__main__":
    asyncio.run(main())
