"""What an asyncpg.Pool knows of itself."""

from typing import Any

import asyncpg  # type: ignore[import-untyped] # has no types

from connectionpools_fastapi.stats import ObservedStats


class AsyncpgPool:
    """An asyncpg.Pool: it knows its connections, but counts nothing."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool: Any = pool

    def stats(self, name: str, cause: str | None) -> ObservedStats:
        """Return the pool's numbers; connections that are being made are neither free nor taken."""
        size, free = self._pool.get_size(), self._pool.get_idle_size()
        return ObservedStats(
            name=name,
            status=self._status(),
            limit=self._pool.get_max_size(),
            free=free,
            taken=size - free,
            cause=cause,
        )

    def can_lend(self) -> bool:
        """Whether `acquire` would not wait; no public attribute of asyncpg tells that exactly."""
        return not self._pool._queue.empty()  # noqa: SLF001 - asyncpg has no other word for it

    def still_fails(self) -> bool:
        """Return False: connections that are not free are in use, and their health is unknown."""
        return False

    async def try_out(self, timeout: float) -> None:  # noqa: ARG002 - the caller's limit is enough
        """Ask the server, on a connection that is free or made for it."""
        await self._pool.execute("SELECT")

    def _status(self) -> str:
        if not self._pool._initialized:  # noqa: SLF001 - as above
            return "new"
        if not self._pool.is_closing():
            return "open"
        return "closing" if self._pool.get_size() else "closed"
