"""What the tests of budgets share: how to wait, what a pool holds, and the books of a RedisBudget."""

import uuid
from collections.abc import Callable
from typing import Any

import anyio
from redis import Redis

from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi.stats import BudgetStats

LONG = 20.0  # seconds, for whatever is awaited


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so: members learn of each other from the operating system, or from a server."""
    with anyio.fail_after(LONG):
        while not condition():  # noqa: ASYNC110 - there is no event for it
            await anyio.sleep(0.005)


def budget_of(pool: ConnectionPool[Any]) -> BudgetStats:
    budget = pool.stats().budget
    assert budget is not None
    return budget


def held(pool: ConnectionPool[Any]) -> int:
    return budget_of(pool).held


def new_name() -> str:
    return f"test-{uuid.uuid4().hex[:8]}"


def key(name: str, part: str) -> str:
    return f"connectionpools:{{{name}}}:{part}"


def grant_at_once(url: str, name: str) -> None:
    """Make the books of a budget that no member holds a token of: they grant at once."""
    with Redis.from_url(url) as redis:
        redis.hset(key(name, "books"), mapping=dict.fromkeys(("used", "seen", "grace", "hungry", "lacking"), 0))


def held_by_members(url: str, name: str) -> list[int]:
    """Return how many tokens each member holds, the most first."""
    with Redis.from_url(url) as redis:
        return [int(tokens) for _, tokens in redis.zrange(key(name, "held"), 0, -1, desc=True, withscores=True)]
