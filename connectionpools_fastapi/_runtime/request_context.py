"""The request that running code belongs to; tasks and threads that it starts belong to it too."""

from contextvars import ContextVar
from typing import Protocol


class Request(Protocol):
    """The request that code runs for."""

    def is_holding(self) -> bool:
        """Whether it holds a lease of any pool."""
        ...

    def is_answered(self) -> bool:
        """Whether its response has begun."""
        ...

    def __str__(self) -> str:
        """Name its route."""
        ...


# The request of the running code; tasks and threads that it starts inherit it.
REQUEST: ContextVar[Request | None] = ContextVar("connectionpools_fastapi.request", default=None)


def is_answered() -> bool:
    """Whether code runs for a request whose response has begun: a client that leaves then was served."""
    request = REQUEST.get()
    return request is not None and request.is_answered()


def holding_request() -> Request | None:
    """Return the request of the running code if it holds a lease; without one it cannot wait for itself."""
    request = REQUEST.get()
    return request if request is not None and request.is_holding() else None
