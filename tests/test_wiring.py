"""A dependency with yield still has what it leased when it goes on, or the application does not start."""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from connectionpools_fastapi import ConnectionPool, Leased, PoolConfigError, install_pools


class Connection:
    """Notes what is done with it, and by whom it is used."""

    def __init__(self) -> None:
        self.log: list[str] = []


async def connect() -> Connection:
    return Connection()


def make(**options: Any) -> tuple[FastAPI, ConnectionPool[Connection]]:
    pool = ConnectionPool(create=connect, change=lambda conn: conn.log.append("change"), name="db", limit=1, **options)
    app = FastAPI()
    install_pools(app, pool)
    return app, pool


def start(app: FastAPI) -> None:
    with TestClient(app):
        """It starts and ends."""


def test_a_dependency_that_goes_on_after_the_response_is_refused_with_its_path_and_the_remedy() -> None:
    app, pool = make()

    async def inner(conn: Annotated[Connection, Leased("db")]) -> Connection:
        return conn

    def transaction(conn: Annotated[Connection, Depends(inner)]) -> Iterator[Connection]:
        yield conn

    @app.post("/add")
    async def add(conn: Annotated[Connection, Depends(transaction)]) -> None:
        conn.log.append("add")

    with pytest.raises(PoolConfigError, match=r'/add.*transaction.*scope="request".*scope="function"'):
        start(app)
    assert pool.status == "closed"


@pytest.mark.parametrize(("lease_until", "leave"), [("request", None), (None, "function"), ("function", "function")])
def test_a_transaction_ends_on_the_connection_that_it_began_on(lease_until: Any, leave: Any) -> None:
    app, pool = make()
    made: list[Connection] = []

    async def transaction(conn: Annotated[Connection, Leased(pool, scope=lease_until)]) -> AsyncIterator[Connection]:
        made.append(conn)
        conn.log.append("begin")
        yield conn
        conn.log.append("commit")

    @app.post("/add")
    async def add(conn: Annotated[Connection, Depends(transaction, scope=leave)]) -> None:
        conn.log.append("add")

    with TestClient(app) as client:
        for _ in range(2):
            assert client.post("/add").status_code == 200
    assert made[0].log == ["begin", "add", "commit", "change"] * 2


def test_a_plain_dependency_may_use_what_it_leases() -> None:
    app, _ = make()

    async def user(conn: Annotated[Connection, Leased("db")]) -> str:
        conn.log.append("read")
        return "somebody"

    @app.get("/me")
    async def me(name: Annotated[str, Depends(user)]) -> str:
        return name

    with TestClient(app) as client:
        assert client.get("/me").json() == "somebody"
