"""The sandbox of RedisManager: its leases have an empty database of the server for themselves."""

import secrets
from collections.abc import Awaitable
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from connectionpools_fastapi import Loan
from connectionpools_fastapi.errors import PoolConfigError, own
from connectionpools_fastapi.manager import ResourceManager

from ._redis_session import NEW

# The databases that a sandbox tries, the highest first: a server has 16, unless its configuration says otherwise.
DATABASES = range(15, -1, -1)
# In the database of the pool, this key and a number say that a sandbox has that database.
CLAIM = "connectionpools_fastapi:sandbox:"
# A run of tests that was killed leaves its claim for so many seconds.
CLAIMED_FOR = 3600


class RedisSandbox(ResourceManager[Redis]):
    """The hooks of one sandbox."""

    def __init__(self, manager: ResourceManager[Redis], client: Any) -> None:
        self._manager = manager
        self._client = client
        self._pool = client.connection_pool
        self._own_number: int = self._pool.wire.db
        self._claim = ""

    async def create(self) -> Redis:
        if self._claim:
            await self._reconnect()  # what a discarded lease has left is not known
        else:
            await self._claim_database()
        client: Redis = self._client
        return client

    def lend(self, resource: Redis, loan: Loan) -> Redis:
        return self._manager.lend(resource, loan)

    def change(self, resource: Redis) -> Awaitable[None] | None:
        return self._manager.change(resource)

    def refuse_prepare(self) -> str | None:
        return self._manager.refuse_prepare()

    async def end(self) -> None:
        """Empty the database, and go back to that of the pool."""
        if self._pool.wire.unanswered or not self._pool.wire.is_quiet:
            await self._reconnect()
        await self._client.execute_command("FLUSHDB")
        await self._select(self._own_number)
        await self._client.execute_command("DEL", self._claim)

    async def _claim_database(self) -> None:
        for number in DATABASES:
            claim = f"{CLAIM}{number}"
            claiming = ("SET", claim, secrets.token_hex(8), "NX", "EX", CLAIMED_FOR)
            if number == self._own_number or not await self._client.execute_command(*claiming):
                continue
            try:
                await self._select(number)
                if not await self._client.execute_command("DBSIZE"):
                    self._claim = claim
                    return
            except ResponseError:  # there is no such database
                pass
            await self._select(self._own_number)
            await self._client.execute_command("DEL", claim)
        raise own(
            PoolConfigError(
                "RedisManager: a sandbox needs a database of the server that is empty, and there is none. Send FLUSHDB "
                "in one that tests may use, such as one that a run has left which was killed"
            )
        )

    async def _select(self, number: int) -> None:
        await self._client.execute_command("SELECT", number)
        self._pool.wire.db = self._pool.facts["db"] = number  # redis-py selects it wherever it connects
        self._pool.wire.session = NEW

    async def _reconnect(self) -> None:
        wire = self._pool.wire
        wire.may_connect = True
        wire._connect_callbacks.clear()  # noqa: SLF001 - a PubSub of an ended lease would subscribe again
        await wire.disconnect(nowait=True)
        await wire.open()
