"""Contestants that are open all the time, in this process, and do the same work in turn.

If our pool is compiled, it takes part in pure Python too, in a process of its own.
"""

import asyncio
import pkgutil
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, contextmanager
from typing import Any

import uvloop

from benchmarks.machine import IS_COMPILED
from benchmarks.rounds import OURS, PURE
from benchmarks.wire import PURE_PYTHON, Ask, answer, asking

ASYNCIO, UVLOOP = "asyncio", "uvloop"
LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    ASYNCIO: asyncio.new_event_loop,
    UVLOOP: uvloop.new_event_loop,
}

Contestant = Callable[[], AbstractAsyncContextManager[Any]]
Work = Callable[..., Awaitable[float]]  # with what the contestant yields, and numbers; returns seconds


class Arena:
    """Contestants, each open in each of some event loops; `opened` makes it."""

    def __init__(self, stack: ExitStack, contestants: Mapping[str, Contestant], loops: Iterable[str]) -> None:
        self.names = list(contestants)
        self._open: dict[tuple[str, str], tuple[asyncio.Runner, Any]] = {}
        for loop in loops:
            runner = stack.enter_context(asyncio.Runner(loop_factory=LOOPS[loop]))
            inside = AsyncExitStack()
            stack.callback(runner.run, inside.aclose())
            for name, open_it in contestants.items():
                self._open[name, loop] = runner, runner.run(inside.enter_async_context(open_it()))

    def add_pure(self, ask: Ask) -> None:
        """Let a process of its own take part."""
        self.names.append(PURE)
        self._ask = ask

    def measure(self, name: str, work: Work, *numbers: int, loop: str = ASYNCIO) -> float:
        """Let one contestant work; return the seconds for each operation."""
        if name == PURE:
            seconds: float = self._ask(loop, _name_of(work), *numbers)
            return seconds
        runner, contestant = self._open[name, loop]

        async def run() -> float:
            return await work(contestant, *numbers)

        return runner.run(run())


@contextmanager
def opened(contestants: Mapping[str, Contestant], loops: Iterable[str] = (ASYNCIO,)) -> Iterator[Arena]:
    """Open contestants, which are functions of modules, in event loops."""
    with ExitStack() as stack:
        arena = Arena(stack, contestants, loops)
        if IS_COMPILED and OURS in contestants:
            words = ("benchmarks.arena", _name_of(contestants[OURS]), *loops)
            arena.add_pure(stack.enter_context(asking(*words, **PURE_PYTHON)))
        yield arena


def _name_of(function: Callable[..., Any]) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def main(contestant: str, *loops: str) -> None:
    with ExitStack() as stack:
        arena = Arena(stack, {OURS: pkgutil.resolve_name(contestant)}, loops)
        answer(lambda loop, work, *numbers: arena.measure(OURS, pkgutil.resolve_name(work), *numbers, loop=loop))


if __name__ == "__main__":
    main(*sys.argv[1:])
