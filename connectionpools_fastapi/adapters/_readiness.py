"""Readiness: wakes tasks when data has arrived at a socket of another library; needs no driver."""

import asyncio
import contextvars
import select
from contextlib import suppress
from weakref import WeakValueDictionary

# After how long a waiting task wakes to look, even if nothing has arrived, in seconds.
LOOK_EVERY = 0.1


class Readiness:
    """Watches sockets for the tasks of one event loop, on Linux.

    The loop watches only one epoll, which contains them all. Adding a socket to the loop for each wait, and removing
    it again, would take several system calls and a timer, which cost more than the wait itself. This takes one system
    call, and one timer for all.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._epoll = select.epoll()
        self._waiting: dict[int, asyncio.Future[bool]] = {}  # by the number of the socket
        self._timer: asyncio.TimerHandle | None = None  # set while the loop watches the epoll

    def wait_readable(self, fileno: int) -> asyncio.Future[bool]:
        """Return a future: True means that data has arrived, False that it is time to look.

        Raises:
            OSError: If there is no such socket.
        """
        try:
            self._epoll.modify(fileno, select.EPOLLIN | select.EPOLLONESHOT)
        except FileNotFoundError:
            self._epoll.register(fileno, select.EPOLLIN | select.EPOLLONESHOT)
        if self._timer is None:
            # The loop's handle keeps its context alive, which would be that of this first task's request.
            contextvars.Context().run(self.loop.add_reader, self._epoll.fileno(), self._tell)
            self._set_timer()
        if fileno in self._waiting:  # the waiting task's socket was closed, and its number is given to another
            _wake(self._waiting[fileno], has_arrived=False)
        self._waiting[fileno] = readable = self.loop.create_future()
        return readable

    def _tell(self) -> None:
        for fileno, _ in self._epoll.poll(0):
            if fileno in self._waiting:
                _wake(self._waiting.pop(fileno), has_arrived=True)

    def _set_timer(self) -> None:
        self._timer = self.loop.call_later(LOOK_EVERY, self._look, context=contextvars.Context())

    def _look(self) -> None:
        if self._waiting:
            for readable in self._waiting.values():
                _wake(readable, has_arrived=False)
            self._waiting.clear()
            self._set_timer()
        else:
            self._timer = None
            self.loop.remove_reader(self._epoll.fileno())


def _wake(readable: asyncio.Future[bool], *, has_arrived: bool) -> None:
    if not readable.done():  # nor cancelled
        readable.set_result(has_arrived)


# One for each loop, while a connection in it refers to it.
_OF_LOOPS: WeakValueDictionary[asyncio.AbstractEventLoop, Readiness] = WeakValueDictionary()


def readiness_of(loop: asyncio.AbstractEventLoop) -> Readiness | None:
    """Return the Readiness of a loop; None if the system has no epoll, or gives none."""
    readiness = _OF_LOOPS.get(loop)
    if readiness is None and hasattr(select, "epoll"):
        with suppress(OSError):
            readiness = _OF_LOOPS[loop] = Readiness(loop)
    return readiness
