"""What the operating system knows of a connection that nobody uses, without asking the server; needs no driver."""

import select
import sys


def has_news(fileno: int) -> bool:
    """Say whether something has arrived that nobody has read, the end of the connection included.

    Args:
        fileno: The number of its socket.

    Returns:
        True if so. Between two leases a server has nothing to say but that it goes.
    """
    if sys.platform == "win32":
        return bool(select.select([fileno], [], [], 0)[0])
    poll = select.poll()  # select takes no number above 1,023
    poll.register(fileno, select.POLLIN)
    return bool(poll.poll(0))
