"""Arrivals: who waits at a socket is told as soon as there is something to read, and the loop is left as it was."""

import asyncio
import contextvars
import gc
import os
import socket
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from connectionpools_fastapi.adapters import _arrivals
from connectionpools_fastapi.adapters._arrivals import Arrivals, arrivals_of
from tests.support import settled

pytestmark = pytest.mark.anyio

NEVER = 3600.0


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both loops: only asyncio has sockets to watch."""
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    def set_to(seconds: float) -> None:
        monkeypatch.setattr(_arrivals, "LOOK_EVERY", seconds)

    return set_to


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


@asynccontextmanager
async def watching() -> AsyncIterator[Arrivals]:
    arrivals = arrivals_of(asyncio.get_running_loop())
    assert arrivals is not None
    async with asyncio.timeout(10):
        yield arrivals
    asyncio.get_running_loop().remove_reader(arrivals._epoll.fileno())


async def test_who_waits_is_told_what_arrives_and_nobody_else(patience: Callable[[float], None]) -> None:
    patience(NEVER)
    async with watching() as arrivals:
        with pair() as (here, there), pair() as (other, _):
            for _ in range(3):
                arrival, in_vain = arrivals.at(here.fileno()), arrivals.at(other.fileno())
                there.send(b"news")
                assert await arrival
                assert not in_vain.done()
                here.recv(100)


async def test_what_is_there_already_is_told_as_is_the_end(patience: Callable[[float], None]) -> None:
    patience(NEVER)
    async with watching() as arrivals:
        with pair() as (here, there):
            there.send(b"news")
            assert await arrivals.at(here.fileno())
            assert await arrivals.at(here.fileno())  # nobody has read it
            here.recv(100)
            there.close()
            assert await arrivals.at(here.fileno())


async def test_who_waits_in_vain_looks_now_and_then(patience: Callable[[float], None]) -> None:
    patience(0.01)
    async with watching() as arrivals:
        with pair() as (here, there):
            for _ in range(3):
                assert not await arrivals.at(here.fileno())
            there.send(b"news")
            assert await arrivals.at(here.fileno())


async def test_who_waits_no_more_is_in_nobodys_way(patience: Callable[[float], None]) -> None:
    patience(NEVER)
    async with watching() as arrivals:
        with pair() as (here, there), pair() as (other, beyond):
            arrivals.at(here.fileno()).cancel()
            there.send(b"news")
            beyond.send(b"news")
            assert await arrivals.at(other.fileno())  # which is told of both
            assert await arrivals.at(here.fileno())


async def test_a_closed_socket_is_refused_and_who_waits_there_learns_that_its_number_is_given_to_another(
    patience: Callable[[float], None],
) -> None:
    patience(NEVER)
    async with watching() as arrivals:
        with pair() as (another, there):
            with pair() as (here, _):
                number = here.fileno()
                arrival = arrivals.at(number)
            with pytest.raises(OSError, match="Bad file descriptor"):
                arrivals.at(number)
            os.dup2(another.fileno(), number)
            later = arrivals.at(number)
            assert not await arrival
            there.send(b"news")
            assert await later
            os.close(number)


async def test_the_loop_watches_for_a_moment_longer_than_somebody_waits(patience: Callable[[float], None]) -> None:
    patience(NEVER)
    loop = asyncio.get_running_loop()
    async with watching() as arrivals:
        with pair() as (here, there):
            for _ in range(2):
                there.send(b"news")
                assert await arrivals.at(here.fileno())
                here.recv(100)
                assert arrivals._timer is not None
                arrivals._look()  # as the timer has it
                assert arrivals._timer is None
                assert not loop.remove_reader(arrivals._epoll.fileno())


async def test_what_the_first_task_had_in_its_context_is_not_kept(patience: Callable[[float], None]) -> None:
    class Thing:
        pass

    variable: contextvars.ContextVar[Thing] = contextvars.ContextVar("variable")

    async def wait(thing: Thing) -> None:
        variable.set(thing)
        there.send(b"news")
        assert await arrivals.at(here.fileno())

    patience(NEVER)
    async with watching() as arrivals:
        with pair() as (here, there):
            thing = Thing()
            kept = weakref.ref(thing)
            await asyncio.create_task(wait(thing))
            del thing
            await settled()  # the loop lets go of a task a little later
            gc.collect()
            assert kept() is None
