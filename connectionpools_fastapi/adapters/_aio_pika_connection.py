"""The connection that the channels of a pool share; needs the extra `aio-pika`."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from typing import Any

from ..errors import PoolError, own

CLOSE_TIMEOUT = 1.0


class Link:
    """A connection of aiormq, and the numbers of the channels that use it."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.numbers: set[int] = set()

    @property
    def is_lost(self) -> bool:
        """Whether this end knows that the connection is closed."""
        closed: bool = self.connection.is_closed
        return closed

    def reserve(self) -> int:
        """Choose the number of a new channel.

        aiormq's own choice only grows, and the server closes a connection that goes beyond the highest number.
        """
        highest = self.connection.connection_tune.channel_max
        number = next(n for n in count(1) if n not in self.numbers and n not in self.connection.channels)
        if highest and number > highest:
            raise own(PoolError(f"the server allows {highest} channels on a connection, and all of them are in use"))
        self.numbers.add(number)
        return number


class SharedConnection:
    """One connection at a time for all channels in an event loop: made for the first one, closed after the last."""

    def __init__(self) -> None:
        self._link: Link | None = None
        self._connecting = asyncio.Lock()

    async def join(self, connect: Callable[[], Awaitable[Any]]) -> tuple[Link, int]:
        """Return the connection and a number for one more channel; connect if there is none, or it was lost."""
        async with self._connecting:
            if self._link is None or self._link.is_lost:
                self._link = Link(await connect())
            return self._link, self._link.reserve()

    async def leave(self, link: Link, number: int) -> None:
        """Give the connection up for one channel."""
        link.numbers.discard(number)
        if link.numbers:
            return
        if link is self._link:
            self._link = None
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await link.connection.close()
