"""`Leased(prepare=...)`: a request gets its resource prepared, or no lease."""

import threading
import time
from collections.abc import Iterator
from typing import Annotated, Any

import anyio
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Request, WebSocket
from fastapi.testclient import TestClient
from starlette.requests import HTTPConnection

from connectionpools_fastapi import (
    ConnectionPool,
    Leased,
    PoolConfigError,
    ResourceManager,
    install_pools,
    pool_lifespan,
)
from connectionpools_fastapi.testing import override_leased, started
from tests.support import check, settled
from tests.web import Thing, ask

pytestmark = pytest.mark.anyio


class Client(Thing):
    """A resource that serves a tenant at a time."""

    tenant = ""

    def forget(self) -> None:
        self.tenant = ""


def tenant_of(x_tenant: Annotated[str, Header()]) -> str:
    if x_tenant == "stranger":
        raise HTTPException(403)
    return x_tenant


async def set_tenant(client: Client, tenant: Annotated[str, Depends(tenant_of)]) -> None:
    assert client.tenant == ""
    client.tenant = tenant


async def set_nothing(client: Client) -> None:
    """Prepare for no tenant in particular."""


def clients(**options: Any) -> ConnectionPool[Client]:
    hooks: dict[str, Any] = {"create": Client, "change": Client.forget, "clean": Client.clean, "blocking": False}
    return ConnectionPool(limit=1, name="db", **{**hooks, **options})


def make(pool: ConnectionPool[Client] | None = None, prepare: Any = set_tenant, **terms: Any) -> tuple[FastAPI, Any]:
    pool = pool or clients()
    app = FastAPI()
    install_pools(app, pool)
    Db = Annotated[Client, Leased(pool, prepare=prepare, **terms)]  # noqa: N806 - as an application writes it

    async def inner(client: Db) -> Client:
        return client

    @app.get("/tenant")
    async def tenant(client: Db, same: Annotated[Client, Depends(inner)]) -> str:
        assert client is same
        return client.tenant

    @app.get("/anonymous")
    async def anonymous(client: Annotated[Client, Leased(pool)]) -> str:
        return client.tenant

    return app, pool


def by(tenant: str) -> dict[str, str]:
    return {"x-tenant": tenant}


each_scope = pytest.mark.parametrize("scope", [None, "function", "request"])


@each_scope
def test_prepare_runs_once_and_ends_with_the_lease(scope: Any) -> None:
    app, pool = make(scope=scope)
    with TestClient(app) as client:
        for tenant in ("anna", "bert"):
            assert client.get("/tenant", headers=by(tenant)).json() == tenant
            assert client.get("/anonymous").json() == ""
        assert pool.stats().creates == 1


def test_request_that_is_refused_before_prepare_leases_nothing() -> None:
    app, pool = make()
    with TestClient(app) as client:
        before = pool.stats().acquires
        assert client.get("/tenant", headers=by("stranger")).status_code == 403
        assert pool.stats().acquires == before


@each_scope
def test_failing_prepare_costs_its_resource(scope: Any) -> None:
    """The request gets the exception of `prepare`, and no lease."""

    def fail(client: Client, request: HTTPConnection) -> None:
        client.tenant = "half"
        raise HTTPException(418, request.url.path)

    app, pool = make(prepare=fail, scope=scope)
    with TestClient(app) as client:
        answer = client.get("/tenant")
        assert (answer.status_code, answer.json()) == (418, {"detail": "/tenant"})
        assert client.get("/anonymous").json() == ""
        assert pool.stats().discards["discard"] == 1
        check(pool)


@pytest.mark.virtual_time
async def test_prepare_that_hangs_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    async def hang(_: Client) -> None:
        await anyio.sleep_forever()

    app, pool = make(clients(hook_timeout=3), hang)
    async with started(app) as served:
        assert (await ask(served, "/tenant")).status == 503
        assert "pool 'db': prepare took longer than hook_timeout=3 s" in caplog.text
        assert pool.stats().discards["discard"] == 1


async def test_cancelled_prepare_costs_its_resource() -> None:
    begun = anyio.Event()

    async def hang(_: Client) -> None:
        begun.set()
        await anyio.sleep_forever()

    app, pool = make(prepare=hang)
    async with started(app) as served, anyio.create_task_group() as group:
        group.start_soon(ask, served, "/tenant")
        await begun.wait()
        group.cancel_scope.cancel()
    await settled()
    assert pool.stats().discards["discard"] == 1
    assert (pool.taken, pool.free) == (0, 0)


@pytest.mark.parametrize("is_async", [False, True])
def test_def_prepare_runs_where_a_def_hook_does(*, is_async: bool) -> None:
    threads: list[str] = []

    def note(_: Client) -> None:
        threads.append(threading.current_thread().name)

    async def connect() -> Client:
        return Client()

    app, _ = make(clients(create=connect if is_async else Client, blocking=True), note)

    @app.get("/thread")
    async def thread() -> str:
        return threading.current_thread().name

    with TestClient(app) as client:
        assert client.get("/tenant").status_code == 200
        assert (client.get("/thread").json() in threads) is is_async


def test_websocket_is_prepared() -> None:
    app, pool = make()

    @app.websocket("/tenant")
    async def tenant(socket: WebSocket, client: Annotated[Client, Leased(pool, prepare=set_tenant)]) -> None:
        await socket.accept()
        await socket.send_text(client.tenant)

    with TestClient(app) as client, client.websocket_connect("/tenant", headers=by("anna")) as socket:
        assert socket.receive_text() == "anna"


def test_override_replaces_what_is_prepared() -> None:
    app, pool = make()
    fake = Client()
    fake.tenant = "fake"
    with TestClient(app) as client, override_leased(app, pool, lambda: fake):
        assert client.get("/tenant", headers=by("anna")).json() == "fake"


# --- what is refused --------------------------------------------------------------------------


def start(app: FastAPI) -> None:
    with TestClient(app):
        """It starts and ends."""


def test_pool_without_change_is_refused_at_start_up() -> None:
    app, _ = make(clients(change=None))
    with pytest.raises(PoolConfigError, match=r"/tenant: pool 'db' .* there is no change.*Write change="):
        start(app)


@pytest.mark.parametrize("prepare", [None, set_nothing])
def test_two_prepares_in_a_route_are_refused(prepare: Any) -> None:
    app, pool = make()

    async def inner(client: Annotated[Client, Leased(pool, prepare=prepare)]) -> None: ...

    @app.get("/two")
    async def two(
        client: Annotated[Client, Leased(pool, prepare=set_tenant)], _: Annotated[None, Depends(inner)]
    ) -> None: ...

    with pytest.raises(PoolConfigError, match=r"/two: .*pool 'db' with .*prepare=set_tenant.*write the same prepare"):
        start(app)


def test_what_prepare_asks_for_may_lease_without_it() -> None:
    """It comes first, as where a tenant is looked up in the same database."""
    pool = clients()

    async def look_up(client: Annotated[Client, Leased(pool)]) -> str:
        return f"found by {type(client).__name__}"

    async def prepare(client: Client, tenant: Annotated[str, Depends(look_up)]) -> None:
        client.tenant = tenant

    app, _ = make(pool, prepare)
    with TestClient(app) as client:
        assert client.get("/tenant").json() == "found by Client"


def test_def_endpoint_of_a_pool_of_the_loop_is_refused() -> None:
    async def connect() -> Client:
        return Client()

    app, pool = make(clients(create=connect))

    @app.get("/useless")
    def useless(client: Annotated[Client, Leased(pool, prepare=set_tenant)]) -> None: ...

    with pytest.raises(PoolConfigError, match=r"/useless: useless is a `def`"):
        start(app)


async def test_second_prepare_is_refused_where_no_start_up_is_checked() -> None:
    pool = clients()
    app = FastAPI(lifespan=pool_lifespan(pool))  # without the middleware

    @app.get("/two")
    async def two(
        one: Annotated[Client, Leased(pool, scope="request", prepare=set_tenant)],
        other: Annotated[Client, Leased(pool, scope="request", prepare=set_nothing)],
    ) -> None: ...

    async with started(app) as served:
        with pytest.raises(PoolConfigError, match=r"pool 'db': .*prepared by another prepare"):
            await ask(served, "/two", headers=[("x-tenant", "anna")])
        assert pool.taken == 0


class Shared(ResourceManager[Client]):
    """Finds out at its first connection that its settings last."""

    is_shared = False
    is_down = True

    def create(self) -> Client:
        if self.is_down:
            raise OSError
        self.is_shared = True
        return Client()

    def change(self, resource: Client) -> None:
        resource.forget()

    def refuse_prepare(self) -> str | None:
        return "sessions are shared. Write something else" if self.is_shared else None


def test_refusal_that_only_a_connection_shows_comes_at_start_up() -> None:
    manager = Shared()
    manager.is_down = False
    app, _ = make(ConnectionPool(manager, limit=1, name="db", blocking=False))
    with pytest.raises(PoolConfigError, match=r"/tenant: pool 'db' .*sessions are shared. Write something else"):
        start(app)


def test_refusal_comes_with_a_request_if_the_server_is_down_first(caplog: pytest.LogCaptureFixture) -> None:
    manager = Shared()
    pool = ConnectionPool(manager, limit=1, name="db", blocking=False, timeout=0.1)
    app, _ = make(pool)
    with TestClient(app) as client:
        manager.is_down = False
        deadline = time.monotonic() + 20
        while "prepare is refused: sessions are shared" not in caplog.text:  # until the pool tries again
            assert time.monotonic() < deadline
            assert client.get("/tenant", headers=by("anna")).status_code == 503


def generator(_: Client) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ("set_tenant", "must be a function"),
        (generator, "does not yield"),
        (lambda: None, "takes the resource first"),
        (lambda _, request: request, r"does not say what request is: write `request: Request`"),
        (lambda _, *tenants: tenants, r"must not take \*tenants"),
    ],
)
def test_callable_that_cannot_prepare_is_refused(prepare: Any, said: str) -> None:
    with pytest.raises(PoolConfigError, match=f"Leased: prepare .*{said}"):
        Leased(clients(), prepare=prepare)


def test_types_of_prepare_may_be_written_as_strings() -> None:
    def prepare(client: "Unknown", request: "Request") -> None:  # type: ignore[name-defined]  # noqa: F821
        client.tenant = request.url.path

    app, _ = make(prepare=prepare)
    with TestClient(app) as client:
        assert client.get("/tenant").json() == "/tenant"

    def misprint(client: Client, request: "Requst") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(PoolConfigError, match="type is not known here: request"):
        Leased(clients(), prepare=misprint)
