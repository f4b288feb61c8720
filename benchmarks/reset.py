"""What a session reset takes of the server's CPU, for a lease with one query; on Linux."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped] # has no types
from psycopg import AsyncConnection

from benchmarks.rounds import Benchmark, Claim, Figures, Measure, Rounds
from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi.adapters.asyncpg import AsyncpgManager
from connectionpools_fastapi.adapters.psycopg import PsycopgManager
from tests.wheel_servers import postgres

OURS, OWN, NONE = "AsyncpgManager", "asyncpg's own reset", "asyncpg, no reset"
PSYCOPG, PSYCOPG_NONE = "PsycopgManager, after a commit", "psycopg, a commit, no reset"
OPEN, OPEN_NONE = "PsycopgManager, transaction left open", "psycopg, a rollback, no reset"
LEASES = 500  # at least, in a round

Lend = Callable[[], AbstractAsyncContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Contestant:
    """Lends one connection; a lease asks one query."""

    lend: Lend
    ask: Callable[[Any], Awaitable[Any]]

    async def cost(self, process: int, leases: int) -> float:
        """Return the seconds of the server's process for each lease."""
        spent = 0.0
        for number in range(leases + 1):
            async with self.lend() as connection:  # here the reset after the last lease is over
                if number in (0, leases):
                    spent = _cpu(process) - spent
                await self.ask(connection)
        return spent / leases

    async def process(self) -> int:
        """Return the number of the server's process."""
        async with self.lend() as connection:
            pid = connection.get_server_pid() if hasattr(connection, "get_server_pid") else connection.info.backend_pid
            return int(pid)


def _cpu(process: int) -> float:
    return int(Path(f"/proc/{process}/schedstat").read_text().split()[0]) * 1e-9


async def _ask_asyncpg(connection: Any) -> None:
    await connection.fetchval("SELECT 1")


async def _ask_psycopg(connection: AsyncConnection[Any]) -> None:
    await connection.execute("SELECT 1")


async def _commit_psycopg(connection: AsyncConnection[Any]) -> None:
    await connection.execute("SELECT 1")
    await connection.commit()


async def _contestants(stack: AsyncExitStack, url: str) -> dict[str, Contestant]:
    async def lending(source: Any = None, **hooks: Any) -> Lend:
        # All in the same pool: the longer a server waits for its next query, the more that takes of its CPU.
        return (await stack.enter_async_context(ConnectionPool(source, limit=1, **hooks))).lease

    kind: Any = AsyncConnection  # its type parameter is of no account
    of_asyncpg = {"create": partial(asyncpg.connect, url), "clean": asyncpg.Connection.close}
    # Without prepared statements, which do not outlast a DISCARD ALL.
    of_psycopg = {"create": partial(kind.connect, url, prepare_threshold=None), "clean": kind.close}
    return {
        NONE: Contestant(await lending(**of_asyncpg), _ask_asyncpg),
        OWN: Contestant(await lending(**of_asyncpg, change=asyncpg.Connection.reset), _ask_asyncpg),
        OURS: Contestant(await lending(AsyncpgManager(url)), _ask_asyncpg),
        PSYCOPG_NONE: Contestant(await lending(**of_psycopg), _commit_psycopg),
        PSYCOPG: Contestant(await lending(PsycopgManager(url)), _commit_psycopg),
        OPEN_NONE: Contestant(await lending(**of_psycopg, change=kind.rollback), _ask_psycopg),
        OPEN: Contestant(await lending(PsycopgManager(url)), _ask_psycopg),
    }


def run(rounds: Rounds) -> None:
    async def round_by_round(url: str) -> None:
        async with AsyncExitStack() as stack:
            contestants = await _contestants(stack, url)
            processes = {name: await each.process() for name, each in contestants.items()}
            for figures in rounds:
                for name in rounds.in_any_order(contestants):
                    leases = rounds.operations(name, LEASES, "cpu")
                    figures["cpu"][name] = await contestants[name].cost(processes[name], leases)

    with postgres() as server:
        asyncio.run(round_by_round(server.url))


def _claim(what: str, name: str, none: str) -> Claim:
    def value(of: Figures) -> float:
        cpu = of["cpu"]
        return (cpu[name] - cpu[none]) / (cpu[OWN] - cpu[NONE])

    return Claim(f"the server's CPU of asyncpg's own reset, {what}", value, at_most=1.5)


BENCHMARK = Benchmark(
    title="A session reset of PostgreSQL",
    run=run,
    measures={"cpu": Measure("CPU of the server for a lease with SELECT 1", "µs", 1e6)},
    claims=(
        _claim("asyncpg", OURS, NONE),
        _claim("psycopg after a commit", PSYCOPG, PSYCOPG_NONE),
        _claim("psycopg with a transaction left open", OPEN, OPEN_NONE),
    ),
    budget=40,
    notes={OWN: "leaves SET ROLE, temporary tables, prepared statements and sequences"},
)
