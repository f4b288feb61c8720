"""Asks the operating system whether data has arrived at an idle connection; needs no driver."""

import select
import sys


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
