"""The kinds of application: each answers / with what its database says to SELECT 1."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI

from connectionpools_fastapi import ConnectionPool, Leased, Loan, ResourceManager, install_pools

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


def limit(manager: ResourceManager[Any], ask: Callable[[Any], Any]) -> FastAPI:
    """Make the application that no pool can be faster than: a manager's connections and its reset, without a pool.

    It sends the server what `leasing` sends. Connections lie in a deque, and a caller waits by a bare future. There are
    no time limits, no checks and no statistics, and a caller that is cancelled loses its connection.
    """
    hooks: Any = manager  # all async, but for `lend`
    free: deque[Any] = deque()
    waiting: deque[asyncio.Future[Any]] = deque()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        free.extend([await hooks.create() for _ in range(CONNECTIONS)])
        yield
        for connection in free:
            await hooks.clean(connection)

    async def take() -> Any:
        if free:
            return free.pop()
        waiting.append(asyncio.get_running_loop().create_future())
        return await waiting[-1]

    async def give_back(connection: Any) -> None:
        await hooks.change(connection)
        if waiting:
            waiting.popleft().set_result(connection)
        else:
            free.append(connection)

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def answer(connection: Annotated[Any, Depends(take)]) -> Any:
        loan = Loan("limit", None, None)
        try:
            return await ask(hooks.lend(connection, loan))
        finally:
            loan.is_over = True
            asyncio.create_task(give_back(connection))  # noqa: RUF006 - what it waits for keeps it

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
