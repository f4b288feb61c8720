"""The two kinds of application: each answers / with what its database says to SELECT 1."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI

from connectionpools_fastapi import ConnectionPool, Leased, ResourceManager, install_pools

CONNECTIONS = 10

Lend = Callable[[], AbstractAsyncContextManager[Any]]


def leasing(manager: ResourceManager[Any], ask: Callable[[Any], Any], limit: int = CONNECTIONS) -> FastAPI:
    pool = ConnectionPool(manager, limit=limit)
    app = FastAPI()
    install_pools(app, pool)

    @app.get("/")
    async def answer(connection: Annotated[Any, Leased(pool)]) -> Any:
        return await ask(connection)

    return app


def yielding(run: Callable[[], AbstractAsyncContextManager[Lend]], ask: Callable[[Any], Any]) -> FastAPI:
    """Make an application in the way that drivers' docs show: a pool in the lifespan, a dependency that yields."""
    lend: Lend

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal lend
        async with run() as lend:
            yield

    async def provide() -> AsyncIterator[Any]:
        async with lend() as connection:
            yield connection

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def answer(connection: Annotated[Any, Depends(provide)]) -> Any:
        return await ask(connection)

    return app
