"""Feed: sends each click to all current listeners."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection

from .models import Click

# Clicks that a listener may be behind. Each says how many there are by now, so that to
# lose the oldest ones only makes a counter jump.
BACKLOG = 100


class Feed:
    """Clicks as they happen."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Queue[Click]] = set()

    @contextmanager
    def listen(self) -> Iterator[asyncio.Queue[Click]]:
        """Listen as long as the block runs.

        Yields:
            Where the clicks arrive.
        """
        queue: asyncio.Queue[Click] = asyncio.Queue(BACKLOG)
        self._listeners.add(queue)
        try:
            yield queue
        finally:
            self._listeners.discard(queue)

    def tell(self, click: Click) -> None:
        """Tell a click to all listeners; never waits for a slow one."""
        for queue in self._listeners:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(click)


def _feed_of(connection: HTTPConnection) -> Feed:
    feed: Feed = connection.app.state.feed
    return feed


LiveFeed = Annotated[Feed, Depends(_feed_of)]
