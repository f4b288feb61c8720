"""What the fixtures of pytest's plugin do; imported when one is used."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import Any

import httpx
from starlette.applications import Starlette

from .._asgi.lifespan import running_pools
from ..errors import PoolConfigError
from ..pool import ConnectionPool
from ._application import started
from ._sandbox import SandboxManager, sandbox

BASE_URL = "http://test"


@asynccontextmanager
async def started_client(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """Run the lifespan of an application, and yield a client that speaks to it in this loop."""
    async with (
        started(app) as served,
        httpx.AsyncClient(transport=httpx.ASGITransport(served), base_url=BASE_URL) as client,
    ):
        yield client


@contextmanager
def started_test_client(app: Starlette) -> Iterator[Any]:
    """Run the lifespan of an application in a thread, and yield a client that speaks to it."""
    from fastapi.testclient import TestClient  # noqa: PLC0415 - it warns of its successor, and async tests have no use for it

    with TestClient(app, base_url=BASE_URL) as client:
        yield client


@asynccontextmanager
async def sandboxes(app: Starlette, names: tuple[str, ...]) -> AsyncIterator[dict[str, ConnectionPool[Any]]]:
    """Put the pools of a running application into sandboxes; yield them by their names."""
    pools = _pools(app, names)
    async with AsyncExitStack() as stack:
        for pool in pools.values():
            await stack.enter_async_context(sandbox(pool))
        yield pools


@contextmanager
def sync_sandboxes(app: Starlette, names: tuple[str, ...]) -> Iterator[dict[str, ConnectionPool[Any]]]:
    """Put the pools of an application that runs in another thread into sandboxes; yield them by their names."""
    pools = _pools(app, names)
    with ExitStack() as stack:
        for pool in pools.values():
            stack.enter_context(sandbox(pool))
        yield pools


def _pools(app: Starlette, names: tuple[str, ...]) -> dict[str, ConnectionPool[Any]]:
    pools = {pool.name: pool for pool in running_pools(app) if isinstance(pool, ConnectionPool)}
    if unknown := sorted(set(names) - set(pools)):
        raise PoolConfigError(
            f"pool_sandbox: the application has no pool named {', '.join(unknown)}; it has {', '.join(sorted(pools))}"
        )
    if not names:
        names = tuple(name for name, pool in pools.items() if isinstance(pool.manager, SandboxManager))
    if not names:
        raise PoolConfigError(
            "pool_sandbox: no pool of the application has a manager with a sandbox; "
            "use override_leased, or leave this fixture out"
        )
    return {name: pools[name] for name in names}
