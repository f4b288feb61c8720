"""What the connection pools of redis-py know of themselves."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import NoPermissionError

from connectionpools_fastapi.stats import ObservedStats

UNLIMITED = 2**31  # redis-py's own `max_connections`, if none is given


class RedisPool:
    """Either kind of pool; it counts nothing, is always open, and connects a free connection that was lost on use."""

    def __init__(self, pool: Any) -> None:
        self._base = pool

    def stats(self, name: str, cause: str | None) -> ObservedStats:
        """Return the pool's numbers."""
        free, taken = self._counts()
        return ObservedStats(name=name, status="open", limit=self._limit, free=free, taken=taken, cause=cause)

    def can_lend(self) -> bool:
        """Whether a connection is free or can be made."""
        free, taken = self._counts()
        return free > 0 or self._limit is None or taken < self._limit

    def still_fails(self) -> bool:
        """Return False: connections that are not free are in use, and their health is unknown."""
        return False

    @property
    def _limit(self) -> int | None:
        limit: int = self._base.max_connections
        return limit if limit < UNLIMITED else None

    def _counts(self) -> tuple[int, int]:
        """Return how many connections are free and taken; older versions have no public word for it."""
        if isinstance(self._base, redis.BlockingConnectionPool):  # its queue has None for each one that was not made
            free = sum(connection is not None for connection in tuple(self._base.pool.queue))
            return free, max(0, len(self._base._connections) - free)  # noqa: SLF001 - as above
        return len(self._base._available_connections), len(self._base._in_use_connections)  # noqa: SLF001 - as above


class RedisAsyncPool(RedisPool):
    """A ConnectionPool of redis.asyncio."""

    async def try_out(self, timeout: float) -> None:  # noqa: ARG002 - the caller's limit is enough
        """Ask the server, on a connection that is free or made for it."""
        client: Any = redis.asyncio.Redis(connection_pool=self._base)
        with suppress(NoPermissionError):  # a refusal is an answer too
            await client.ping()


class RedisThreadPool(RedisPool):
    """A ConnectionPool for threads."""

    def try_out(self, timeout: float) -> None:  # noqa: ARG002 - redis-py has its own limit
        """Ask the server, as above."""
        with suppress(NoPermissionError):
            redis.Redis(connection_pool=self._base).ping()
