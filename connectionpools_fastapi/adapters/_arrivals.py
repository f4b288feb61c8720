"""Arrivals: tells tasks when something has arrived at a socket that is somebody else's; needs no driver."""

import asyncio
import contextvars
import select
from contextlib import suppress
from weakref import WeakValueDictionary

# After how long whoever waits has to look, whether something has arrived or not, in seconds.
LOOK_EVERY = 0.1


class Arrivals:
    """Watches sockets for the tasks of one event loop, on Linux.

    The loop knows only the epoll in which they all are. To have it watch a socket for each single wait, and forget it
    again, takes several system calls and a timer, which costs more than the wait itself. Here it is one system call,
    and one timer for all.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._epoll = select.epoll()
        self._waiting: dict[int, asyncio.Future[bool]] = {}  # by the number of the socket
        self._timer: asyncio.TimerHandle | None = None  # set as long as the loop watches

    def at(self, fileno: int) -> asyncio.Future[bool]:
        """Return what to await: True says that something has arrived, False that it is time to look.

        Raises:
            OSError: If there is no such socket.
        """
        try:
            self._epoll.modify(fileno, select.EPOLLIN | select.EPOLLONESHOT)
        except FileNotFoundError:
            self._epoll.register(fileno, select.EPOLLIN | select.EPOLLONESHOT)
        if self._timer is None:
            # A handle of the loop's keeps its context, and with it all that the request of this first task has in it.
            contextvars.Context().run(self.loop.add_reader, self._epoll.fileno(), self._tell)
            self._set_timer()
        if fileno in self._waiting:  # the socket of whoever waits there was closed, and its number is given to another
            _wake(self._waiting[fileno], has_arrived=False)
        self._waiting[fileno] = arrival = self.loop.create_future()
        return arrival

    def _tell(self) -> None:
        for fileno, _ in self._epoll.poll(0):
            if fileno in self._waiting:
                _wake(self._waiting.pop(fileno), has_arrived=True)

    def _set_timer(self) -> None:
        self._timer = self.loop.call_later(LOOK_EVERY, self._look, context=contextvars.Context())

    def _look(self) -> None:
        if self._waiting:
            for arrival in self._waiting.values():
                _wake(arrival, has_arrived=False)
            self._waiting.clear()
            self._set_timer()
        else:
            self._timer = None
            self.loop.remove_reader(self._epoll.fileno())


def _wake(arrival: asyncio.Future[bool], *, has_arrived: bool) -> None:
    if not arrival.done():  # nor cancelled
        arrival.set_result(has_arrived)


# One a loop, as long as a connection in it has them.
_OF_LOOPS: WeakValueDictionary[asyncio.AbstractEventLoop, Arrivals] = WeakValueDictionary()


def arrivals_of(loop: asyncio.AbstractEventLoop) -> Arrivals | None:
    """Return those of a loop; None where there is no epoll, or none to be had."""
    arrivals = _OF_LOOPS.get(loop)
    if arrivals is None and hasattr(select, "epoll"):
        with suppress(OSError):
            arrivals = _OF_LOOPS[loop] = Arrivals(loop)
    return arrivals
