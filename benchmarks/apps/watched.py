"""Requests that wait for one of few resources: with their clients watched, and without; /spent says what they took."""

import asyncio
import resource
from typing import Any

from fastapi import FastAPI

from benchmarks.apps.common import leasing
from connectionpools_fastapi import ResourceManager
from connectionpools_fastapi._asgi.exchange import Exchange

HOLD = 0.01  # seconds; with as many resources as there are, 1,000 requests a second


class Thing:
    """A resource."""


class Things(ResourceManager[Thing]):
    """Makes them at once."""

    async def create(self) -> Thing:
        return Thing()


def watched(_: str) -> FastAPI:
    served = 0

    async def ask(_: Any) -> bool:
        nonlocal served
        await asyncio.sleep(HOLD)
        served += 1
        return True

    app = leasing(Things(), ask)

    @app.get("/spent")
    async def spent() -> tuple[float, int]:
        return resource.getrusage(resource.RUSAGE_SELF).ru_utime, served

    return app


def unwatched(dsn: str) -> FastAPI:
    Exchange._wait_for = lambda self, lease: lease.enter(owner=self)  # type: ignore[method-assign] # as if there were no watch
    return watched(dsn)
