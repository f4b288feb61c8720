"""What an aiomysql.Pool knows of itself, and asyncmy's, which is made after it."""

# ruff: noqa: SLF001 - they have no other words for it

from typing import Any

from connectionpools_fastapi.stats import ObservedStats


class MysqlPool:
    """A Pool of aiomysql or asyncmy: it knows its connections, but counts nothing."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def stats(self, name: str, cause: str | None) -> ObservedStats:
        """Return the pool's numbers; connections that are being made are taken."""
        free = self._pool.freesize
        return ObservedStats(
            name=name,
            status=self._status(),
            limit=self._pool.maxsize,
            free=free,
            taken=self._pool.size - free,
            cause=cause,
        )

    def can_lend(self) -> bool:
        """Whether a connection is free or can be made; while the pool makes one, other callers queue."""
        if self._pool._cond.locked():
            return False
        return self._pool.freesize > 0 or not self._pool.maxsize or self._pool.size < self._pool.maxsize

    def still_fails(self) -> bool:
        """Whether connections are being made, so that callers queue."""
        locked: bool = self._pool._cond.locked()
        return locked

    async def try_out(self, timeout: float) -> None:  # noqa: ARG002 - the caller's limit is enough
        """Ask the server, on a connection that is free or made for it."""
        async with self._pool.acquire() as connection:
            await connection.ping(reconnect=False)

    def _status(self) -> str:
        if self._pool._closed:
            return "closed"
        return "closing" if self._pool._closing else "open"
