"""RedisCache: a cache that a redirect does without while it is slow or away."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from connectionpools_fastapi import ConnectionPool, PoolError
from connectionpools_fastapi.adapters.redis import RedisManager

from .cache import Cache, LookUp

LIMIT = 5
CONNECT_WITHIN = 1.0
REMEMBERED = 30  # seconds
# The entry of a removed link, for as long as entries live: a request that read the target before the removal cannot
# store it afterwards. A link that is added anew under the same code is found in the database.
REMOVED = ""
# Removing a link may take a little longer than a redirect.
PATIENCE = 1.0
AWAY: tuple[type[Exception], ...] = (PoolError, RedisError, OSError)  # TimeoutError is one of the latter

T = TypeVar("T")
logger = logging.getLogger(__name__)


class RedisCache(Cache):
    """Remembers in a Redis for half a minute, by the pool "cache".

    Whatever is wrong with it, and however long it takes, a redirect waits `timeout` seconds for
    it at most, and goes on without it. While it cannot be reached at all, the pool says so at once.
    """

    def __init__(self, url: str, *, prefix: str, timeout: float) -> None:
        self._prefix = prefix
        self._timeout = timeout
        self._pool = ConnectionPool(
            RedisManager(url, decode_responses=True, socket_connect_timeout=CONNECT_WITHIN),
            name="cache",
            limit=LIMIT,
            hook_timeout=CONNECT_WITHIN,
        )
        self.pools = (self._pool,)

    async def target(self, code: str, look_up: LookUp) -> str | None:
        """Return where a link leads: from the cache, or else as `look_up` says, which is then remembered."""
        key = self._key(code)
        try:
            found = await self._ask(lambda redis: redis.get(key), within=self._timeout)
        except AWAY:
            return await look_up(code)
        if found:
            return str(found)
        target = await look_up(code)
        if found is None and target is not None:
            with suppress(*AWAY):  # the next one may remember it
                await self._ask(lambda redis: redis.set(key, target, nx=True, ex=REMEMBERED), within=self._timeout)
        return target

    async def forget(self, code: str) -> None:
        """Mark a link as removed, so that neither the cache nor a request that is under way brings it back."""
        key = self._key(code)
        try:
            await self._ask(lambda redis: redis.set(key, REMOVED, ex=REMEMBERED), within=PATIENCE)
        except AWAY:
            logger.warning("the cache is away: a link that was removed may lead on for up to %d s", REMEMBERED)

    def _key(self, code: str) -> str:
        return f"{self._prefix}{code}"

    async def _ask(self, question: Callable[[Redis], Awaitable[T]], *, within: float) -> T:
        async with asyncio.timeout(within), self._pool.lease() as redis:
            return await question(redis)
