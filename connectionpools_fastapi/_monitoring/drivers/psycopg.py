"""What the pools of psycopg_pool know of themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg_pool import AsyncConnectionPool, ConnectionPool

from connectionpools_fastapi.stats import ObservedStats

COUNTERS = (
    "requests_num",
    "requests_queued",
    "requests_wait_ms",
    "requests_errors",
    "usage_ms",
    "returns_bad",
    "connections_num",
    "connections_ms",
    "connections_errors",
    "connections_lost",
)


class PsycopgPool:
    """Either kind of pool; it has many counters, but does not tell connections in use from those being made."""

    def __init__(self, pool: AsyncConnectionPool[Any] | ConnectionPool[Any]) -> None:
        self._base = pool
        self._connected = 0

    def stats(self, name: str, cause: str | None) -> ObservedStats:
        """Return the pool's numbers."""
        found = self._base.get_stats()
        free = found["pool_available"]
        is_open = not self._base.closed
        return ObservedStats(
            name=name,
            status="open" if is_open else "closed" if self._base._opened else "new",  # noqa: SLF001 - psycopg_pool has no other word for it
            limit=found["pool_max"] or None,
            free=free,
            taken=max(0, found["pool_size"] - free) if is_open else None,
            waiting=found["requests_waiting"],
            create_failures=found.get("connections_errors", 0),  # a counter has no entry before its first event
            cause=cause,
            driver={counter: found.get(counter, 0) for counter in COUNTERS},
        )

    def can_lend(self) -> bool:
        """Whether a connection is free, or one can be made and no caller waits for it."""
        found = self._base.get_stats()
        has_room = not found["pool_max"] or found["pool_size"] < found["pool_max"]
        return found["pool_available"] > 0 or (has_room and not found["requests_waiting"])

    def still_fails(self) -> bool:
        """Whether no connection was made since: connections that are not free may be lost rather than in use."""
        return self._connected == self._time_connecting()

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._connected = self._time_connecting()
            raise

    def _time_connecting(self) -> int:
        """Return a number that grows only if a connection is made."""
        return self._base.get_stats().get("connections_ms", 0)


class PsycopgAsyncPool(PsycopgPool):
    """An AsyncConnectionPool."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        super().__init__(pool)
        self._pool = pool

    async def try_out(self, timeout: float) -> None:
        """Ask the server, on a connection that is free or made for it."""
        with self._remembering():
            connection = await self._pool.getconn(timeout)
            try:
                await self._pool.check_connection(connection)
            finally:
                await self._pool.putconn(connection)


class PsycopgThreadPool(PsycopgPool):
    """A ConnectionPool, for threads."""

    def __init__(self, pool: ConnectionPool[Any]) -> None:
        super().__init__(pool)
        self._pool = pool

    def try_out(self, timeout: float) -> None:
        """Ask the server, as above."""
        with self._remembering():
            connection = self._pool.getconn(timeout)
            try:
                self._pool.check_connection(connection)
            finally:
                self._pool.putconn(connection)
