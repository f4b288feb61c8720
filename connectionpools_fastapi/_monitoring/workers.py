"""Workers: the processes of one service on this machine, which answer for each other.

Each worker listens on a Unix socket in Linux's abstract namespace. Its name contains the service and the worker's
number, and the kernel drops it with the process, however that ends: no file is ever left, and a successor takes the
number. The kernel also tells each side the user of the other one.
"""

import json
import os
import re
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from .._runtime.current import current_loop
from .._runtime.log import facts, logger
from ..errors import PoolConfigError, describe

# Most processes are no workers, and need neither these nor multiprocessing.
if TYPE_CHECKING:
    from anyio.abc import SocketListener, SocketStream
    from anyio.streams.buffered import BufferedByteReceiveStream

# How long a worker may take to show that its event loop runs, in seconds; beyond, it hangs.
ALIVE_WITHIN = 0.2
ALIVE = b"+"
LONGEST_QUESTION = 1000
LONGEST_ANSWER = 50_000_000
MOST_WORKERS = 1000
# A socket's name has 107 bytes at most, and the kernel's list of names is divided by spaces and lines.
SERVICE = re.compile(r"[A-Za-z0-9._-]{1,50}")

Tell = Callable[[dict[str, Any]], Awaitable[Any]]
Ask = Callable[["SocketStream"], Awaitable[Any]]


class Workers:
    """This worker's number, and the way to ask all others."""

    def __init__(self, service: str | None, tell: Tell) -> None:
        """Stay alone until `join`.

        Args:
            service: The name of the service; None to recognise its workers by their parent process.
            tell: Answers the question of another worker with plain values; called in the event loop.

        Raises:
            PoolConfigError: If the name cannot be that of a socket.
        """
        if service is not None and not (isinstance(service, str) and SERVICE.fullmatch(service)):
            msg = f'service={service!r} must be 1 to 50 letters, digits, ".", "-" or "_", as service="orders"'
            raise PoolConfigError(msg)
        self.number: int | None = None  # None while this process answers for itself alone
        self._service = service
        self._tell = tell
        self._name = ""
        self._serving: anyio.CancelScope | None = None  # made where an event loop runs

    async def join(self) -> None:
        """Take the first free number and answer the other workers from now on, if this is one of several."""
        name = None
        with suppress(OSError):  # /proc is hidden: this process answers for itself
            name = _name_of(self._service)
        loop = current_loop()
        if name is None or loop is None:
            return
        for number in range(MOST_WORKERS):
            with suppress(OSError):  # the number is taken
                listener = await anyio.create_unix_listener(f"\0{name}{number}")
                self.number, self._name, self._serving = number, name, anyio.CancelScope()
                loop.spawn(partial(self._serve, listener, self._serving))
                return

    def leave(self) -> None:
        """Answer no more, and give the number back."""
        self.number = None
        if self._serving is not None:
            self._serving.cancel()

    async def ask(self, question: dict[str, Any], within: float, alive_within: float = ALIVE_WITHIN) -> dict[int, Any]:
        """Ask all other workers the same question.

        Args:
            question: Plain values.
            within: How long an answer may take, in seconds.
            alive_within: How long a worker may take to show that its event loop runs, in seconds.

        Returns:
            The answers by number; None for a worker that hangs. One whose event loop does not run in time does not
            get the question, later either.
        """
        answers: dict[int, Any] = {}
        async with anyio.create_task_group() as group:
            for number in self._others():
                group.start_soon(self._ask_one, number, partial(_ask, question, within, alive_within), answers)
        return dict(sorted(answers.items()))

    async def _ask_one(self, number: int, ask: Ask, answers: dict[int, Any]) -> None:
        with suppress(OSError, anyio.BrokenResourceError, anyio.EndOfStream, anyio.IncompleteRead):  # it has just ended
            async with await anyio.connect_unix(f"\0{self._name}{number}") as stream:
                if _is_same_user(stream):
                    answers[number] = None
                    answers[number] = await ask(stream)
                return
        answers.pop(number, None)

    def _others(self) -> set[int]:
        names: set[str] = set()
        with suppress(OSError):  # as above
            names = {line.rpartition(" ")[2].strip() for line in Path("/proc/net/unix").read_text().splitlines()}
        prefix = f"@{self._name}"
        numbers = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
        return {int(number) for number in numbers if number.isdigit()} - {self.number}

    async def _serve(self, listener: "SocketListener", until: anyio.CancelScope) -> None:
        with until:
            async with listener:
                await listener.serve(self._answer)

    async def _answer(self, stream: "SocketStream") -> None:
        async with stream:
            try:
                if _is_same_user(stream):
                    await stream.send(ALIVE)
                    question = await _buffered(stream).receive_until(b"\n", LONGEST_QUESTION)
                    await stream.send(json.dumps(await self._tell(json.loads(question))).encode() + b"\n")
            except (OSError, anyio.BrokenResourceError, anyio.IncompleteRead):
                pass  # the other worker asks no more
            except Exception as error:  # noqa: BLE001 - the next question must find an answer
                logger.warning(
                    "a question of another worker failed with %s",
                    describe(error),
                    extra=facts("worker_failed", None, error=type(error).__name__),
                )


async def _ask(question: dict[str, Any], within: float, alive_within: float, stream: "SocketStream") -> Any:
    """Return the answer, or None if there is none in time."""
    received = _buffered(stream)
    with anyio.move_on_after(alive_within) as hanging:
        await received.receive_exactly(len(ALIVE))
    if hanging.cancelled_caught:
        return None
    with anyio.move_on_after(within):
        await stream.send(json.dumps(question).encode() + b"\n")
        return json.loads(await received.receive_until(b"\n", LONGEST_ANSWER))
    return None


def _buffered(stream: "SocketStream") -> "BufferedByteReceiveStream":
    from anyio.streams.buffered import BufferedByteReceiveStream  # noqa: PLC0415 - see above

    return BufferedByteReceiveStream(stream)


def _is_same_user(stream: "SocketStream") -> bool:
    from anyio.abc import SocketAttribute  # noqa: PLC0415 - see above

    raw = stream.extra(SocketAttribute.raw_socket)  # noqa: S610 - not Django's
    _, user, _ = struct.unpack("3i", raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(user == os.getuid())


def _name_of(service: str | None) -> str | None:
    """Return the first part of the names of a service's sockets; None if this process is no worker of several."""
    if sys.platform != "linux":
        return None
    if service is None:
        import multiprocessing  # noqa: PLC0415 - see above

        # The parent of all workers: uvicorn, hypercorn and granian start them by multiprocessing.
        is_gunicorn = os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn")
        if not is_gunicorn and multiprocessing.parent_process() is None:
            return None
        parent = os.getppid()
        status = Path(f"/proc/{parent}/stat").read_text()
        # A process id is used again, and counts within its container only.
        started = status.rpartition(")")[2].split()[19]
        service = f"{Path('/proc/self/ns/pid').stat().st_ino}.{parent}.{started}"
    return f"connectionpools_fastapi/{os.getuid()}/{service}/"
