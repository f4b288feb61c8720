"""Type checkers know what a pool holds; they check this file too."""

from typing import Annotated, Any, assert_type

import aiosqlite
from fastapi import FastAPI
from fastapi.testclient import TestClient

from connectionpools_fastapi import ConnectionPool, Leased, Pooled, ResourceManager, install_pools


class Thing:
    """Something to lease."""


async def make_later() -> Thing:
    return Thing()


class Things(ResourceManager[Thing]):
    async def create(self) -> Thing:
        return Thing()

    def clean(self, resource: Thing) -> None:
        assert isinstance(resource, Thing)


def test_pool_infers_its_resource_from_any_kind_of_create() -> None:
    assert_type(ConnectionPool(create=make_later), ConnectionPool[Thing])
    assert_type(ConnectionPool(create=Thing, check=lambda thing: thing is not None), ConnectionPool[Thing])
    assert_type(ConnectionPool(Things(), limit=3), ConnectionPool[Thing])
    awaitable = ConnectionPool(create=lambda: aiosqlite.connect("app.db"), clean=lambda conn: conn.close())
    assert_type(awaitable, ConnectionPool[aiosqlite.Connection])


def test_leases_and_dependencies_keep_the_type() -> None:
    pool = ConnectionPool(Things(), name="things")
    app = FastAPI()
    install_pools(app, pool)

    async def by_hand() -> None:
        async with pool.lease() as thing:
            assert_type(thing, Thing)
        assert_type(pool.lease().resource, Thing)
        assert_type(await pool.acquire(), Thing)
        assert_type(pool.try_acquire(), Thing | None)

    @app.get("/default")
    async def default(thing: Thing = Leased(pool)) -> str:
        return type(thing).__name__

    @app.get("/annotated")
    async def annotated(
        thing: Annotated[Thing, Leased("things")], itself: Annotated[ConnectionPool[Thing], Pooled(pool)]
    ) -> str:
        return f"{type(thing).__name__} {itself.name}"

    leased: Any = Leased("things")
    assert leased is not None
    assert by_hand is not None
    with TestClient(app) as client:
        assert client.get("/default").json() == "Thing"
        assert client.get("/annotated").json() == "Thing things"
