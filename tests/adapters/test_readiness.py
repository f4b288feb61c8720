"""Readiness: a task that waits at a socket goes on once there is something to read; the loop is left as it was."""

import asyncio
import contextvars
import gc
import os
import socket
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from connectionpools_fastapi.adapters import _readiness
from connectionpools_fastapi.adapters._readiness import Readiness, readiness_of
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
        monkeypatch.setattr(_readiness, "LOOK_EVERY", seconds)

    return set_to


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


@asynccontextmanager
async def watching() -> AsyncIterator[Readiness]:
    readiness = readiness_of(asyncio.get_running_loop())
    assert readiness is not None
    async with asyncio.timeout(10):
        yield readiness
    asyncio.get_running_loop().remove_reader(readiness._epoll.fileno())


async def test_only_the_waiting_task_sees_what_arrives(patience: Callable[[float], None]) -> None:
    patience(NEVER)
    async with watching() as readiness:
        with pair() as (here, there), pair() as (other, _):
            for _ in range(3):
                readable, in_vain = readiness.wait_readable(here.fileno()), readiness.wait_readable(other.fileno())
                there.send(b"news")
                assert await readable
                assert not in_vain.done()
                here.recv(100)


async def test_what_is_there_already_is_told_as_is_the_end(patience: Callable[[float], None]) -> None:
    patience(NEVER)
    async with watching() as readiness:
        with pair() as (here, there):
            there.send(b"news")
            assert await readiness.wait_readable(here.fileno())
            assert await readiness.wait_readable(here.fileno())  # it is unread
            here.recv(100)
            there.close()
            assert await readiness.wait_readable(here.fileno())


async def test_task_that_waits_in_vain_polls_now_and_then(patience: Callable[[float], None]) -> None:
    patience(0.01)
    async with watching() as readiness:
        with pair() as (here, there):
            for _ in range(3):
                assert not await readiness.wait_readable(here.fileno())
            there.send(b"news")
            assert await readiness.wait_readable(here.fileno())


async def test_task_that_waits_no_more_disturbs_no_other(patience: Callable[[float], None]) -> None:
    patience(NEVER)
    async with watching() as readiness:
        with pair() as (here, there), pair() as (other, beyond):
            readiness.wait_readable(here.fileno()).cancel()
            there.send(b"news")
            beyond.send(b"news")
            assert await readiness.wait_readable(other.fileno())  # which is told of both
            assert await readiness.wait_readable(here.fileno())


async def test_reused_socket_number_ends_the_old_wait(
    patience: Callable[[float], None],
) -> None:
    """A closed socket is refused."""
    patience(NEVER)
    async with watching() as readiness:
        with pair() as (another, there):
            with pair() as (here, _):
                number = here.fileno()
                readable = readiness.wait_readable(number)
            with pytest.raises(OSError, match="Bad file descriptor"):
                readiness.wait_readable(number)
            os.dup2(another.fileno(), number)
            later = readiness.wait_readable(number)
            assert not await readable
            there.send(b"news")
            assert await later
            os.close(number)


async def test_loop_watches_a_moment_longer_than_a_wait(patience: Callable[[float], None]) -> None:
    patience(NEVER)
    loop = asyncio.get_running_loop()
    async with watching() as readiness:
        with pair() as (here, there):
            for _ in range(2):
                there.send(b"news")
                assert await readiness.wait_readable(here.fileno())
                here.recv(100)
                assert readiness._timer is not None
                readiness._look()  # as the timer has it
                assert readiness._timer is None
                assert not loop.remove_reader(readiness._epoll.fileno())


async def test_what_the_first_task_had_in_its_context_is_not_kept(patience: Callable[[float], None]) -> None:
    class Thing:
        pass

    variable: contextvars.ContextVar[Thing] = contextvars.ContextVar("variable")

    async def wait(thing: Thing) -> None:
        variable.set(thing)
        there.send(b"news")
        assert await readiness.wait_readable(here.fileno())

    patience(NEVER)
    async with watching() as readiness:
        with pair() as (here, there):
            thing = Thing()
            kept = weakref.ref(thing)
            await asyncio.create_task(wait(thing))
            del thing
            await settled()  # the loop lets go of a task a little later
            gc.collect()
            assert kept() is None
