"""What the pool of an engine of SQLAlchemy knows of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Engine, NullPool, QueuePool, select

from connectionpools_fastapi.stats import ObservedStats

if TYPE_CHECKING:  # an Engine does not need what an AsyncEngine needs
    from sqlalchemy.ext.asyncio import AsyncEngine

ASK = select(1)


class EnginePool:
    """Either kind of engine; it counts nothing, and has a new pool after each `dispose`."""

    def __init__(self, engine: Engine | AsyncEngine) -> None:
        self._base = engine

    def stats(self, name: str, cause: str | None) -> ObservedStats:
        """Return the pool's numbers; only a QueuePool has any, and an engine is always open."""
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

        Of other pools than QueuePool only NullPool is tried: any other one may lend a connection
        that is in use.
        """
        pool = self._base.pool
        if not isinstance(pool, QueuePool):
            return isinstance(pool, NullPool)
        limit, free = _limit(pool), pool.checkedin()
        return limit is None or free > 0 or pool.checkedout() < limit

    def still_fails(self) -> bool:
        """Return False: connections that are not free are in use, and their health is unknown."""
        return False


class AsyncEnginePool(EnginePool):
    """The pool of an AsyncEngine."""

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self._engine = engine

    async def try_out(self, timeout: float) -> None:  # noqa: ARG002 - the caller's limit is enough
        """Ask the server, on a connection that is free or made for it."""
        async with self._engine.connect() as connection:
            await connection.execute(ASK)


class ThreadEnginePool(EnginePool):
    """The pool of an Engine, for threads."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._engine = engine

    def try_out(self, timeout: float) -> None:  # noqa: ARG002 - SQLAlchemy or the driver sets its own limit
        """Ask the server, as above."""
        with self._engine.connect() as connection:
            connection.execute(ASK)


def _limit(pool: QueuePool) -> int | None:
    if not pool.size() or pool._max_overflow < 0:  # noqa: SLF001 - SQLAlchemy has no other word for it
        return None
    return pool.size() + pool._max_overflow  # noqa: SLF001 - as above
