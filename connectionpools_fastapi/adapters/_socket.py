"""What the operating system knows of a driver's socket, and does with it; needs no driver."""

import select
import socket
import sys
from contextlib import suppress


def has_news(fileno: int) -> bool:
    """Whether unread data, or the end of the connection, has arrived.

    Args:
        fileno: The number of its socket.

    Returns:
        True if so. Between two leases a server sends nothing, unless it closes the connection.
    """
    if sys.platform == "win32":
        return bool(select.select([fileno], [], [], 0)[0])
    poll = select.poll()  # select takes no number above 1,023
    poll.register(fileno, select.POLLIN)
    return bool(poll.poll(0))


def shut_down(fileno: int) -> None:
    """End a connection for both ends, so that what waits at its socket is woken; the socket stays open.

    Args:
        fileno: The number of its socket.
    """
    with suppress(OSError):  # the other end has gone
        end = socket.socket(fileno=fileno)
        try:
            end.shutdown(socket.SHUT_RDWR)
        finally:
            end.detach()
