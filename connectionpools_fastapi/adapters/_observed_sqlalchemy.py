"""What the pool of an engine of SQLAlchemy knows of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Engine, NullPool, QueuePool, select

from connectionpools_fastapi.stats import ObservedStats

if TYPE_CHECKING:  # who has an Engine need not have what an AsyncEngine needs
    from sqlalchemy.ext.asyncio import AsyncEngine

ASK = select(1)


class EnginePool:
    """Either kind of engine, whose pool is another one after each `dispose`; it counts nothing."""

    def __init__(self, engine: Engine | AsyncEngine) -> None:
        self._base = engine

    def stats(self, name: str, cause: str | None) -> ObservedStats:
        """Tell what the pool knows; one that is not a QueuePool has no numbers, and an engine is always open."""
        pool = self._base.pool
        if not isinstance(pool, QueuePool):
            return ObservedStats(name=name, status="open", cause=cause)
        return ObservedStats(
            name=name,
            status="open",
            limit=_limit(pool),
            free=pool.checkedin(),
            taken=max(0, pool.checkedout()),
            cause=cause,
        )

    def can_lend(self) -> bool:
        """Whether a connection is free or can be made.

        Of pools other than QueuePool only NullPool is tried: elsewhere a connection may be
        shared with those who use it.
        """
        pool = self._base.pool
        if not isinstance(pool, QueuePool):
            return isinstance(pool, NullPool)
        limit, free = _limit(pool), pool.checkedin()
        return limit is None or free > 0 or pool.checkedout() < limit

    def still_fails(self) -> bool:
        """Say no: what is not free is in use, and nobody knows how it fares."""
        return False


class AsyncEnginePool(EnginePool):
    """An AsyncEngine's."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self._engine = engine

    async def try_out(self, timeout: float) -> None:  # noqa: ARG002 - the caller's limit is enough
        """Ask the server, on a connection that is free or made for it."""
        async with self._engine.connect() as connection:
            await connection.execute(ASK)


class ThreadEnginePool(EnginePool):
    """An Engine's, for threads."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._engine = engine

    def try_out(self, timeout: float) -> None:  # noqa: ARG002 - what SQLAlchemy or the driver limits
        """Ask the server, as above."""
        with self._engine.connect() as connection:
            connection.execute(ASK)


def _limit(pool: QueuePool) -> int | None:
    if not pool.size() or pool._max_overflow < 0:
        return None
    return pool.size() + pool._max_overflow
