"""Many members on one Redis: `python -m benchmarks.budget_members` prints what they cost it, and what an outage costs.

Each member is a RedisBudget's own, with its thread, and a pool that is made up: it needs another number of tokens from
time to time, and gives way when it is asked. `--members 200 --seconds 20` is the default.
"""

import argparse
import asyncio
import logging
import random
import statistics
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from redis import Redis

from connectionpools_fastapi.budgets._books import Books
from connectionpools_fastapi.budgets._share import Request
from connectionpools_fastapi.budgets.redis import RedisBudget, RedisMembership
from tests.wheel_servers import redis

LIMIT = 20  # of each pool
SHARE = 5  # tokens for each member, on the average
NEEDS_CHANGE_AFTER = 5.0  # seconds, on the average
BOOKS = 1_000  # members of the books whose script is measured alone
CALLS = 20_000


class MeasuredBooks:
    """Notes how long each call takes."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self.took: list[float] = []
        self.close_idle = books.close_idle

    def sync(self, member: str, request: Request, *, is_leaving: bool = False) -> list[Any]:
        began = time.perf_counter()
        answer = self._books.sync(member, request, is_leaving=is_leaving)
        self.took.append(time.perf_counter() - began)
        return answer


class MadeUpPool:
    """A member whose resources are numbers."""

    def __init__(self, budget: RedisBudget, tasks: asyncio.TaskGroup) -> None:
        self.pool = "made up"
        self.held = 0
        self._budget = budget
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._needs = 0
        self._share: RedisMembership

    def spawn(self, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._loop.call_soon_threadsafe(lambda: self._tasks.create_task(job()))

    def give_way(self, level: int | None, count: int = 1) -> None:
        for _ in range(count):
            if self.held > max(self._needs, 1) or (level is not None and self.held > level):
                self.held -= 1
                self._share.give_back()

    async def live(self, *, is_idle: bool) -> None:
        self._share = await self._budget.join(self)
        try:
            while True:
                self._needs = 1 if is_idle else random.choice([0, 1, 2, 5, LIMIT])  # noqa: S311 - no secret
                with suppress(TimeoutError):
                    async with asyncio.timeout(NEEDS_CHANGE_AFTER * random.uniform(0.5, 1.5)):  # noqa: S311 - likewise
                        while self.held < self._needs:
                            await self._share.take()
                            self.held += 1
                        await asyncio.Event().wait()
        finally:
            self._share.leave()


async def live_together(url: str, members: int, seconds: float, *, is_idle: bool, restart: Callable[[], None]) -> None:
    kind = "idle" if is_idle else "busy"
    name = f"members-{kind}"
    budget = RedisBudget(url, name, total=members * SHARE, ttl=10.0, max_connections=members)
    calls = MeasuredBooks(budget._books)
    budget._books = calls  # type: ignore[assignment] # it does the same
    with Redis.from_url(url) as admin:
        keys: dict[Any, Any] = {"used": 0, "seen": 0, "grace": 0, "hungry": 0, "lacking": 0}
        admin.hset(f"connectionpools:{{{name}}}:books", mapping=keys)
        async with asyncio.TaskGroup() as tasks:
            pools = [MadeUpPool(budget, tasks) for _ in range(members)]
            lives = [tasks.create_task(pool.live(is_idle=is_idle)) for pool in pools]
            await asyncio.sleep(5.0)
            admin.config_resetstat()
            calls.took.clear()
            await asyncio.sleep(seconds)
            took = sorted(calls.took)
            (script,) = [stats for command, stats in admin.info("commandstats").items() if command == "cmdstat_evalsha"]
            rate, usec = len(took) / seconds, script["usec_per_call"]
            print(f"{members} {kind} members hold {sum(pool.held for pool in pools)} of {budget.total} tokens:")
            print(
                f"  {rate:.0f} scripts a second of {usec:.0f} us each: {rate * usec / 1e4:.1f} % of the server's core"
            )
            print(
                f"  a call takes {statistics.median(took) * 1e3:.1f} ms, p99 {took[int(len(took) * 0.99)] * 1e3:.1f} ms"
            )
            if not is_idle:
                await tell_outage(restart, pools)
            for life in lives:
                life.cancel()


async def tell_outage(restart: Callable[[], None], pools: list[MadeUpPool]) -> None:
    """Restart Redis, which forgets all, and tell what the members have of it."""
    before = sum(pool.held for pool in pools)
    await asyncio.to_thread(restart)
    began = time.perf_counter()
    known: set[int] = set()
    while len(known) < len(pools):
        known = {number for number, pool in enumerate(pools) if pool._share.stats().used and not _is_away(pool)}
        await asyncio.sleep(0.02)
    registered = time.perf_counter() - began
    kept = sum(pool.held for pool in pools)
    while any(pool._share.stats().trouble for pool in pools):  # noqa: ASYNC110 - threads set no event here
        await asyncio.sleep(0.02)
    print(f"  after a restart that lost the books: {kept} of {before} tokens kept, all members known to it after")
    print(f"  {registered:.1f} s, and pools grow again after {time.perf_counter() - began:.1f} s")


def _is_away(pool: MadeUpPool) -> bool:
    return "does not answer" in (pool._share.stats().trouble or "")


def measure_script(url: str) -> None:
    """Call the script for one after the other of many members."""
    books = Books(url, {}, name="books", total=BOOKS * SHARE, floor=1, ttl=60.0)
    with Redis.from_url(url) as admin:
        turns = dict.fromkeys(range(BOOKS), 0)
        for call in range(CALLS + BOOKS):
            if call == BOOKS:
                admin.config_resetstat()
            member = call % BOOKS
            turns[member] += 1
            held = member % (2 * SHARE)
            books.sync(f"host-{member // 8}/{member}/0", Request(turns[member], held, held, held, 0.0))
        stats = admin.info("commandstats")["cmdstat_evalsha"]
        size = admin.info("memory")["used_memory_human"]
    print(f"books of {BOOKS} members: {stats['usec_per_call']:.0f} us a script, {size} of memory")


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budget_members", description=__doc__)
    parser.add_argument("--members", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0)
    said = parser.parse_args()
    logging.disable()  # a line for each member that sees Redis go
    with redis("--maxclients", "5000") as server:

        def restart() -> None:
            server.stop()
            time.sleep(2.0)
            server.start()

        measure_script(server.url)
        for is_idle in (True, False):
            await live_together(server.url, said.members, said.seconds, is_idle=is_idle, restart=restart)


if __name__ == "__main__":
    asyncio.run(main())
