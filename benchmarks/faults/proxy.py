"""A network that can be made bad: a TCP proxy on the loopback that stalls, resets, refuses or slows."""

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Self

LOOPBACK = "127.0.0.1"
CHUNK = 65_536
TO_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing says RST


class Proxy:
    """Passes what comes to `port` on to another port, and back, until it is told otherwise.

    Each fault lasts until `resume`; one may come on top of another. The methods are called in
    the loop that entered the proxy.

    Attributes:
        port: Where to connect to; stays the same.
        accepted: How many connections came so far.
    """

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.accepted = 0
        self._target = LOOPBACK, target_port
        self._delay = 0.0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._listener: socket.socket | None = None
        self._links: dict[asyncio.Task[None], tuple[socket.socket, socket.socket]] = {}

    async def __aenter__(self) -> Self:
        self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.refuse()
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._links)

    def stall(self) -> None:
        """Accept, and pass on nothing, not even that one side has closed."""
        self._flowing.clear()

    def slow(self, seconds: float) -> None:
        """Pass on each piece this much later, either way."""
        self._delay = seconds

    def refuse(self) -> None:
        """Refuse new connections; those that are open stay."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def reset(self) -> None:
        """Break off all open connections with RST, on both sides and before this returns."""
        loop = asyncio.get_running_loop()
        for link, ends in self._links.items():
            _break_off(*ends)
            for end in ends:
                loop.remove_reader(end)
                loop.remove_writer(end)
                end.close()
            link.cancel()

    def lead_to(self, target_port: int) -> None:
        """Lead new connections to another port, as a name does that has moved; those that are open stay."""
        self._target = LOOPBACK, target_port

    def resume(self) -> None:
        """Be a good network again, wherever it leads: what was stalled is passed on now."""
        self._delay = 0.0
        self._flowing.set()
        if self._listener is None:
            self._listen()

    def _listen(self) -> None:
        self._listener = socket.create_server((LOOPBACK, self.port), backlog=1000)
        self._listener.settimeout(0)
        self.port = self._listener.getsockname()[1]
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):  # it is gone again
            near, _ = listener.accept()
            far = socket.socket()
            for end in (near, far):
                end.settimeout(0)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.accepted += 1
            link = asyncio.get_running_loop().create_task(self._link(near, far))
            self._links[link] = near, far
            link.add_done_callback(self._unlink)

    def _unlink(self, link: asyncio.Task[None]) -> None:
        for end in self._links.pop(link):  # here, since a link that is cancelled may not even have begun
            end.close()

    async def _link(self, near: socket.socket, far: socket.socket) -> None:
        try:
            await self._flowing.wait()
            await asyncio.get_running_loop().sock_connect(far, self._target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(near, far))
                group.create_task(self._pump(far, near))
        except* OSError:  # one side is gone, and so is the other then
            _break_off(near, far)

    async def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            piece = await loop.sock_recv(source, CHUNK)
            if self._delay:
                await asyncio.sleep(self._delay)
            await self._flowing.wait()
            if not piece:
                break
            await loop.sock_sendall(sink, piece)
        sink.shutdown(socket.SHUT_WR)


def _break_off(*ends: socket.socket) -> None:
    for end in ends:
        if end.fileno() >= 0:  # else it is closed already
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, TO_RESET)
