"""Workers: processes whose pools share one budget and one PostgreSQL, busy or not as the test wants."""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Self

import psycopg

from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager
from connectionpools_fastapi.budget import Budget
from connectionpools_fastapi.budgets.host import HostBudget
from connectionpools_fastapi.budgets.redis import RedisBudget
from tests.budgets.support import budget_of
from tests.processes import Process

TOTAL = 6
LIMIT = 5
LONG = 30.0  # seconds, for whatever is awaited
NAME = "budgeted"
TTL = 2.0

COUNT = "select count(*) from pg_stat_activity where application_name = %s"


def describe(place: str) -> Budget:
    """Return the budget of a place: a directory, or the address of a Redis."""
    if place.startswith("redis:"):
        return RedisBudget(place, "db", total=TOTAL, ttl=TTL)
    return HostBudget("db", total=TOTAL, directory=place)


async def work(url: str, place: str, busy: Path) -> None:
    """Be one worker: query on five connections, for as long as the file `busy` exists, else on one."""
    manager = AsyncpgManager(url, server_settings={"application_name": NAME})
    pool = ConnectionPool(manager, limit=LIMIT, timeout=LONG, budget=describe(place))

    async def query(task: int) -> None:
        while True:
            if task == 0 or busy.exists():  # noqa: ASYNC240 - it takes no time
                async with pool.lease() as connection:
                    await connection.execute("select pg_sleep(0.005)")
            else:
                await asyncio.sleep(0.02)

    async with pool, asyncio.TaskGroup() as tasks:
        for task in range(2 * LIMIT):
            tasks.create_task(query(task))
        told = -1
        while True:
            if (held := budget_of(pool).held) != told:
                told = held
                print(f"holds {told}", file=sys.stderr, flush=True)  # noqa: T201
            await asyncio.sleep(0.01)


class Workers:
    """Some workers, and what their server sees."""

    def __init__(self, postgres_url: str, folder: Path) -> None:
        self.running: list[Process] = []
        self.most = 0  # connections at once
        self._url = postgres_url
        self._folder = folder
        self._server = psycopg.connect(postgres_url, autocommit=True)

    def start(self, place: str) -> Process:
        command = ("tests.budgets.worker", self._url, place, str(self._busy(len(self.running))))
        self.running.append(Process(Path.cwd(), command, {"PYTHONPATH": os.pathsep.join(sys.path)}))
        return self.running[-1]

    def make_busy(self, *numbers: int) -> None:
        for number in range(len(self.running)):
            self._busy(number).touch() if number in numbers else self._busy(number).unlink(missing_ok=True)

    def _busy(self, number: int) -> Path:
        return self._folder / f"busy-{number}"

    def held(self) -> tuple[int, ...]:
        """Return how many tokens each holds."""
        told = [[line for line in worker.log.splitlines() if line.startswith("holds")] for worker in self.running]
        return tuple(int(lines[-1].split()[1]) if lines else 0 for lines in told)

    def watch_until(self, *expected: tuple[int | None, ...]) -> None:
        """Sample the server until the workers hold one of these numbers of tokens; None stands for any."""
        deadline = time.monotonic() + LONG
        while not any(
            all(want in (None, has) for want, has in zip(numbers, self.held(), strict=True)) for numbers in expected
        ):
            self.sample()
            assert time.monotonic() < deadline, [self.held(), *(worker.log[-2000:] for worker in self.running)]

    def watch(self, seconds: float) -> None:
        """Sample the server for some time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.sample()

    def sample(self) -> None:
        ((connections,),) = self._server.execute(COUNT, [NAME]).fetchall()
        self.most = max(self.most, connections)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.running:
            worker.__exit__(None, None, None)
        self._server.close()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
