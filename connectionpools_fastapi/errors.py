"""What can go wrong: `PoolError` and its kinds.

Each message names the pool, its counts and what to do. None of them ever shows what a
hook was given or said (an address, a credential): of a failed hook they name the type
of its exception only, and carry the exception itself as `__cause__`.
"""

import os
from typing import TypeVar


class PoolError(Exception):
    """Any error of a pool.

    Attributes:
        retry_after: Seconds after which it makes sense to ask again, or None where
            asking again will not help.
    """

    retry_after: float | None = None
    is_own: bool = False  # see `own`


class PoolConfigError(PoolError, ValueError):
    """The pool, a hook or an application was set up in a way that cannot work."""


class PoolClosed(PoolError):  # noqa: N818 - reads as the state that it reports
    """The pool is not open: never opened, being closed, or closed."""


class PoolTimeout(PoolError, TimeoutError):  # noqa: N818 - as asyncio.TimeoutError, the word says it
    """No resource came free within the caller's `timeout`."""

    retry_after: float | None = 1.0


class TooManyWaiting(PoolError):  # noqa: N818 - reads as the state that it reports
    """The queue already holds `max_waiting` callers; this one was not let in."""

    retry_after: float | None = 1.0


class WouldDeadlock(PoolError):  # noqa: N818 - reads as the danger that it reports
    """Who holds a resource of the pool would wait for a second one: if all did, nobody would ever go on."""


class ResourceUnavailable(PoolError):  # noqa: N818 - reads as the state that it reports
    """`create` fails and nothing is left to wait for; `__cause__` says why it fails.

    Attributes:
        retry_after: Seconds until the pool itself tries `create` again.
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        """Keep the time until the next try beside the message."""
        super().__init__(message)
        self.retry_after: float | None = retry_after


class NotLeased(PoolError, ValueError):  # noqa: N818 - reads as the state that it reports
    """What was given back is not leased from this pool: foreign, or given back before."""


class WrongEventLoop(PoolError, RuntimeError):  # noqa: N818 - reads as the state that it reports
    """The call came from a thread or an event loop in which it cannot be served."""


class HookTimeout(PoolError, TimeoutError):  # noqa: N818 - as asyncio.TimeoutError, the word says it
    """A hook took longer than `hook_timeout`."""


E = TypeVar("E", bound=PoolError)


def own(error: E) -> E:
    """Mark an error as the pool's own words about a hook; one that a hook raises is not."""
    error.is_own = True
    return error


def describe(error: BaseException) -> str:
    """Name an exception without its text, which may hold an address or a credential.

    Args:
        error: The exception.

    Returns:
        Its type; for an error of the operating system also that system's own words for
        its number; for the pool's own words about a hook these, which are safe.
    """
    if isinstance(error, PoolError) and error.is_own:
        return str(error)
    kind = type(error).__name__
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return f"{kind} ({os.strerror(error.errno)})"
    return kind
