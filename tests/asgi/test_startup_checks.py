"""A dependency with yield still has what it leased when it goes on, or the application does not start."""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from connectionpools_fastapi import ConnectionPool, Leased, PoolConfigError, install_pools
from connectionpools_fastapi.testing import override_leased


class Connection:
    """Notes what is done with it, and the thread that uses it."""

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


def test_dependency_outliving_the_response_is_refused() -> None:
    """The error names its path and the remedy."""
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
def test_transaction_ends_on_the_connection_it_began_on(lease_until: Any, leave: Any) -> None:
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


@pytest.mark.parametrize("scope", [None, "request", "function"])
def test_async_resource_in_def_endpoint_is_refused(scope: Any) -> None:
    app, pool = make()

    @app.get("/add")
    def add(conn: Annotated[Connection, Leased(pool, scope)]) -> None:
        conn.log.append("add")

    with pytest.raises(PoolConfigError, match=r"/add: add is a `def`.*pool 'db'.*Write `async def add`"):
        start(app)


def test_a_def_dependency_may_wrap_an_async_resource() -> None:
    app, _ = make()

    def log_of(conn: Annotated[Connection, Leased("db")]) -> list[str]:
        return conn.log

    @app.get("/log")
    def log(lines: Annotated[list[str], Depends(log_of)]) -> list[str]:
        return lines

    with TestClient(app) as client:
        assert client.get("/log").json() == []


def test_two_timeouts_of_one_pool_in_one_route_are_refused() -> None:
    app, pool = make()

    async def user(conn: Annotated[Connection, Leased("db")]) -> str:
        raise NotImplementedError

    @app.get("/me")
    async def me(name: Annotated[str, Depends(user)], conn: Annotated[Connection, Leased(pool, timeout=0.2)]) -> str:
        raise NotImplementedError

    with pytest.raises(PoolConfigError, match=r"/me.*pool 'db' with (none|timeout=0.2) and "):
        start(app)


def test_two_priorities_of_one_pool_in_one_route_are_refused() -> None:
    app, pool = make()

    async def user(_: Annotated[Connection, Leased("db", timeout=1, priority="low")]) -> str:
        return "name"

    @app.get("/me")
    async def me(name: Annotated[str, Depends(user)], _: Annotated[Connection, Leased(pool, timeout=1)]) -> str:
        return name

    words = r"/me.*pool 'db' with .*timeout=1, priority='low'"
    with pytest.raises(PoolConfigError, match=words), TestClient(app):
        pass


def test_two_answers_to_a_disconnect_in_one_route_are_refused() -> None:
    app, pool = make()

    async def user(_: Annotated[Connection, Leased("db", on_disconnect="cancel")]) -> str:
        return "name"

    @app.get("/me")
    async def me(name: Annotated[str, Depends(user)], _: Annotated[Connection, Leased(pool)]) -> str:
        return name

    words = r"/me.*pool 'db' with .*on_disconnect=\"cancel\".*the same timeout"
    with pytest.raises(PoolConfigError, match=words), TestClient(app):
        pass


def test_leased_passes_its_priority_on() -> None:
    app, pool = make(min_free=1)
    seen: list[Any] = []
    lease = pool.lease

    def look(**options: Any) -> Any:
        seen.append(options.get("priority"))
        return lease(**options)

    pool.lease = look  # type: ignore[method-assign]

    @app.get("/high")
    async def high(_: Annotated[Connection, Leased("db", priority="high")]) -> None: ...

    @app.get("/exit")
    async def until_exit(_: Annotated[Connection, Leased(pool, "function", priority="low")]) -> None: ...

    with TestClient(app) as client:
        for path in ("/high", "/exit"):
            assert client.get(path).status_code == 200
    assert seen == ["high", "low"]


def test_routes_may_have_timeouts_of_their_own() -> None:
    """A route has one timeout for all its leases of a pool."""
    app, pool = make(timeout=60, min_free=1)

    async def user(conn: Annotated[Connection, Leased("db", timeout=0)]) -> Connection:
        return conn

    @app.get("/quick")
    async def quick(
        conn: Annotated[Connection, Leased(pool, timeout=0)], same: Annotated[Connection, Depends(user)]
    ) -> bool:
        return conn is same

    @app.get("/exit")
    async def exits(conn: Annotated[Connection, Leased(pool, "request", timeout=0)]) -> None:
        raise NotImplementedError

    @app.get("/patient")
    async def patient(conn: Annotated[Connection, Leased(pool)]) -> list[str]:
        return conn.log

    with TestClient(app) as client:
        assert client.get("/quick").json() is True
        assert client.get("/patient").json() == ["change"]
        assert client.portal is not None
        held = client.portal.call(pool.acquire)
        assert client.get("/quick").status_code == client.get("/exit").status_code == 503
        client.portal.call(pool.release, held)


def test_an_override_finds_a_lease_with_a_timeout() -> None:
    app, pool = make()

    @app.get("/log")
    async def log(conn: Annotated[list[str], Leased(pool, timeout=0.2)]) -> list[str]:
        return conn

    with TestClient(app) as client, override_leased(app, pool, lambda: ["fake"]):
        assert client.get("/log").json() == ["fake"]


@pytest.mark.parametrize("timeout", [-1, "5", True, float("nan")])
def test_a_timeout_that_is_none_is_refused(timeout: Any) -> None:
    for target in (make()[1], "db"):
        with pytest.raises(PoolConfigError, match="pool 'db': timeout must be a number of seconds"):
            Leased(target, timeout=timeout)
