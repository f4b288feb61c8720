"""HostBudget over processes: a real server never sees more connections than the total, whatever ends or stops."""

import asyncio
import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg

from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager
from connectionpools_fastapi.budgets.host import HostBudget
from tests.processes import Process

TOTAL = 6
LIMIT = 5
WORKERS = 3
LONG = 30.0  # seconds, for whatever is awaited
NAME = "budgeted"

COUNT = "select count(*) from pg_stat_activity where application_name = %s"


async def work(url: str, directory: str, number: int) -> None:
    """Be one worker: query on five connections, for as long as the file that names this worker exists, else on one."""
    manager = AsyncpgManager(url, server_settings={"application_name": NAME})
    pool = ConnectionPool(manager, limit=LIMIT, timeout=LONG, budget=HostBudget("db", total=TOTAL, directory=directory))
    busy = Path(directory).parent / f"busy-{number}"

    async def query(task: int) -> None:
        while True:
            if task == 0 or busy.exists():
                async with pool.lease() as connection:
                    await connection.execute("select pg_sleep(0.005)")
            else:
                await asyncio.sleep(0.02)

    async with pool, asyncio.TaskGroup() as tasks:
        for task in range(2 * LIMIT):
            tasks.create_task(query(task))
        told = -1
        while True:
            stats = pool.stats().budget
            assert stats is not None
            if stats.held != told:
                told = stats.held
                print(f"holds {told}", file=sys.stderr, flush=True)  # noqa: T201
            await asyncio.sleep(0.01)


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1], sys.argv[2], int(sys.argv[3])))


def holds(worker: Process) -> int:
    told = [line for line in worker.log.splitlines() if line.startswith("holds")]
    return int(told[-1].split()[1]) if told else 0


def test_workers_share_a_servers_connections(postgres_url: str, tmp_path: Path) -> None:
    """Load moves from worker to worker; one is killed, one is stopped, and goes on."""
    directory = tmp_path / "tokens"
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    most = 0

    def start(number: int) -> Process:
        command = ("tests.budgets.test_processes", postgres_url, str(directory), str(number))
        return stack.enter_context(Process(Path.cwd(), command, environment))

    def make_busy(*numbers: int) -> None:
        for number in range(WORKERS):
            busy = tmp_path / f"busy-{number}"
            busy.touch() if number in numbers else busy.unlink(missing_ok=True)

    def watch_until(*expected: tuple[int, ...]) -> tuple[int, ...]:
        """Sample the server until the workers hold one of these numbers of tokens."""
        nonlocal most
        deadline = time.monotonic() + LONG
        while (found := tuple(map(holds, workers))) not in expected:
            ((connections,),) = server.execute(COUNT, [NAME]).fetchall()
            most = max(most, connections)
            assert time.monotonic() < deadline, [found, *(worker.log[-2000:] for worker in workers)]
        return found

    with ExitStack() as stack:
        server = stack.enter_context(psycopg.connect(postgres_url, autocommit=True))
        workers = [start(number) for number in range(WORKERS)]
        watch_until((1, 1, 1))
        make_busy(0)
        watch_until((4, 1, 1))
        make_busy(1)
        watch_until((1, 4, 1))
        make_busy(0, 1, 2)
        watch_until((2, 2, 2))

        workers[0].process.send_signal(signal.SIGSTOP)  # what it holds, it keeps
        make_busy(1)
        watch_until((2, 3, 1))
        workers[0].process.send_signal(signal.SIGCONT)
        watch_until((1, 4, 1))
        assert most <= TOTAL

        workers[1].process.kill()
        workers[1].wait()
        make_busy(0)
        workers[1] = workers[0]
        watch_until((5, 5, 1))
        for worker in (workers[0], workers[2]):
            assert "Error" not in worker.log, worker.log
