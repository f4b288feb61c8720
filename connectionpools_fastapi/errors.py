"""What can go wrong: `PoolError` and its kinds.

Each message names the pool, its counts and what to do. No message shows the arguments or the
words of a hook (an address, a credential): for a failed hook it names only the type of the
exception, and carries the exception itself as `__cause__`.
"""

import os
from pathlib import Path
from typing import TypeVar


class PoolError(Exception):
    """Any error of a pool.

    Attributes:
        retry_after: Seconds after which it makes sense to try again, or None if trying
            again will not help.
        pool: The name of the pool that gave its caller no resource; None for other errors.
    """

    retry_after: float | None = None
    pool: str | None = None
    is_own: bool = False  # see `own`


class PoolConfigError(PoolError, ValueError):
    """The pool, a hook or an application was set up in a way that cannot work."""


class PoolClosed(PoolError):  # noqa: N818 - reads as the state that it reports
    """The pool is not open: never opened, being closed, or closed."""


class PoolTimeout(PoolError, TimeoutError):  # noqa: N818 - named like asyncio.TimeoutError
    """No resource came free within the caller's `timeout`."""

    retry_after: float | None = 1.0


class TooManyWaiting(PoolError):  # noqa: N818 - reads as the state that it reports
    """The queue already holds `max_waiting` callers, so this one was refused."""

    retry_after: float | None = 1.0


class Overloaded(PoolError):  # noqa: N818 - reads as the state that it reports
    """The caller would leave or time out before it is done with a resource, so it was refused at once.

    Attributes:
        retry_after: How long a caller that comes now is expected to wait, in seconds.
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        """Keep the expected wait beside the message."""
        super().__init__(message)
        self.retry_after: float | None = retry_after


class WouldDeadlock(PoolError):  # noqa: N818 - reads as the danger that it reports
    """The caller holds a resource of the pool and would wait for a second one: if all did so, none would go on."""


class ResourceUnavailable(PoolError):  # noqa: N818 - reads as the state that it reports
    """The back-end is down: no resource exists, and `create` keeps failing; `__cause__` is its last error.

    Attributes:
        retry_after: Seconds until the pool itself tries `create` again.
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        """Keep the time until the next try beside the message."""
        super().__init__(message)
        self.retry_after: float | None = retry_after


class NotLeased(PoolError, ValueError):  # noqa: N818 - reads as the state that it reports
    """The resource is not leased from this pool: it is foreign, or was given back before."""


class WrongEventLoop(PoolError, RuntimeError):  # noqa: N818 - reads as the state that it reports
    """The call came from a thread or an event loop in which the pool cannot serve it."""


class HookTimeout(PoolError, TimeoutError):  # noqa: N818 - named like asyncio.TimeoutError
    """A hook took longer than `hook_timeout`."""


E = TypeVar("E", bound=PoolError)
Kind = TypeVar("Kind", bound=BaseException)


def own(error: E) -> E:
    """Mark an error as the pool's own text about a hook, unlike one that a hook raises."""
    error.is_own = True
    return error


def describe(error: BaseException) -> str:
    """Name an exception without its text, which may hold an address or a credential.

    Args:
        error: The exception.

    Returns:
        Its type; for an error of the operating system also that system's text for its
        number; for the pool's own error about a hook the text, which is safe.
    """
    if isinstance(error, PoolError) and error.is_own:
        return str(error)
    kind = type(error).__name__
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return f"{kind} ({os.strerror(error.errno)})"
    return kind


def where(error: BaseException) -> str:
    """Say where an exception was raised: a function, a file and a line.

    Args:
        error: The exception.

    Returns:
        Text to follow its name; empty if it was never raised.
    """
    traceback = error.__traceback__
    if traceback is None:
        return ""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    code = traceback.tb_frame.f_code
    return f" in {code.co_qualname} ({Path(code.co_filename).name}, line {traceback.tb_lineno})"


def only(kind: type[Kind], error: BaseException) -> Kind | None:
    """Find an error of a kind: the error itself, or one in a group that contains only this kind."""
    if isinstance(error, BaseExceptionGroup):
        found = [only(kind, inner) for inner in error.exceptions]
        return None if None in found else found[0]
    return error if isinstance(error, kind) else None
