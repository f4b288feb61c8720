"""How the helpers reach the loop of a pool from a plain thread."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from .._runtime.engine import Engine

R = TypeVar("R")


def run_in_loop_of(engine: Engine[Any], job: Callable[[], Awaitable[R]]) -> R:
    """Run a job in the loop of an open pool, from a plain thread; return its result."""
    engine.refuse_loop("this call", "its async counterpart")
    results: list[R] = []

    async def run() -> None:
        results.append(await job())

    loop = engine.executor.loop
    assert loop is not None  # noqa: S101 - the pool was opened
    loop.run(run)
    return results[0]
