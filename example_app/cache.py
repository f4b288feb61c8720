"""Cache: where links lead, remembered for a moment."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import HTTPConnection

from connectionpools_fastapi import ConnectionPool

LookUp = Callable[[str], Awaitable[str | None]]


class Cache(ABC):
    """Knows where links lead, as long as they are not removed."""

    # Those that it leases from; the lifespan opens them.
    pools: tuple[ConnectionPool[Any], ...] = ()

    @abstractmethod
    async def target(self, code: str, look_up: LookUp) -> str | None:
        """Return where a link leads, or None if there is no such link; `look_up` asks the database."""

    @abstractmethod
    async def forget(self, code: str) -> None:
        """Hear that a link was removed from the database."""


class NoCache(Cache):
    """Remembers nothing."""

    async def target(self, code: str, look_up: LookUp) -> str | None:
        """Ask the database."""
        return await look_up(code)

    async def forget(self, code: str) -> None:
        """Do nothing."""


def _cache_of(connection: HTTPConnection) -> Cache:
    cache: Cache = connection.app.state.cache
    return cache


Redirects = Annotated[Cache, Depends(_cache_of)]
