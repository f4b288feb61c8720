"""Requests that wait for one of few resources: with their clients watched, and without."""

import asyncio
from typing import Any

from fastapi import FastAPI

from benchmarks.apps.common import leasing
from connectionpools_fastapi import Lease, ResourceManager
from connectionpools_fastapi._asgi import middleware
from connectionpools_fastapi._asgi.exchange import Exchange

HOLD = 0.01  # seconds; with as many resources as there are, 1,000 requests a second


class Thing:
    """A resource."""


class Things(ResourceManager[Thing]):
    """Makes them at once."""

    async def create(self) -> Thing:
        return Thing()


class Unwatched(Exchange):
    """Waits as if there were no watch."""

    def _wait_for(self, lease: Lease[Any]) -> Any:
        return lease.enter(owner=self)


def watched(_: str) -> FastAPI:
    async def ask(_: Any) -> bool:
        await asyncio.sleep(HOLD)
        return True

    return leasing(Things(), ask)


def unwatched(dsn: str) -> FastAPI:
    setattr(middleware, "Exchange", Unwatched)  # noqa: B010 - a class of its own, since a compiled one cannot be patched
    return watched(dsn)
