"""All managers on one table: what a lease leaves, keeps and breaks does not reach the next one."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import asyncpg  # type: ignore[import-untyped] # has no types
import pytest

from connectionpools_fastapi import NotLeased
from tests import leaks
from tests.leaks import MARIADB, POSTGRES, Contestant, managers
from tests.mariadb_servers import MariadbServer, mariadb
from tests.mysql_drivers import outside
from tests.wheel_servers import PostgresServer, postgres

pytestmark = pytest.mark.anyio

NEEDS_MARIADB = pytest.mark.needs_program("mariadbd")
AT_ONCE = 1.0  # seconds, for what takes 0.1 s on a machine with nothing else to do


each = pytest.mark.parametrize(
    "name",
    [
        pytest.param(contestant.name, marks=[NEEDS_MARIADB] if contestant.server is MARIADB else [])
        for contestant in managers()
    ],
)


def named(name: str, reset: str = "session") -> Contestant:
    (found,) = [contestant for contestant in managers(reset) if contestant.name == name]
    return found


@pytest.fixture(name="anyio_backend")
def fixture_anyio_backend() -> str:
    """Run on asyncio only, as the drivers do."""
    return "asyncio"


@asynccontextmanager
async def asking(contestant: Contestant, url: str, root_url: str) -> AsyncIterator[Any]:
    """Yield how to ask a server by a connection of no pool."""
    if contestant.server is POSTGRES:
        connection = await asyncpg.connect(url)
        yield connection.fetchval
        await connection.close()
    else:
        async with outside(root_url) as root:
            for table in ("left_behind", "other"):
                await leaks.ask_mysql(root, f"CREATE OR REPLACE TABLE {table} (n int) ENGINE InnoDB")
            yield lambda query: leaks.ask_mysql(root, query)


@asynccontextmanager
async def place(request: pytest.FixtureRequest, contestant: Contestant) -> AsyncIterator[tuple[str, Any]]:
    """Yield the address of the server of the session, and how to ask it."""
    if contestant.server is POSTGRES:
        url = root_url = request.getfixturevalue("postgres_url")
    else:
        server = request.getfixturevalue("mariadb_server")
        url, root_url = server.url, server.root_url
    async with asking(contestant, url, root_url) as ask:
        yield url, ask


@pytest.mark.parametrize("reset", ["session", "transaction"])
@each
async def test_next_lease_sees_nothing_the_last_one_left(request: Any, name: str, reset: str) -> None:
    contestant = named(name, reset)
    leftovers = contestant.server.leftovers
    seen: set[str] = set()
    async with place(request, contestant) as (url, ask):
        for what, leftover in leftovers.items():
            async with contestant.pool(url, ask) as pool:
                if await leaks.what_remains(pool, leftover) == "seen":
                    seen.add(what)
    of_session = {what for what, leftover in leftovers.items() if leftover.of_session}
    assert seen == (of_session if reset == "transaction" else set())


@each
async def test_leased_connection_is_refused_in_the_next_lease(request: Any, name: str) -> None:
    contestant = named(name)
    async with place(request, contestant) as (url, ask), contestant.pool(url, ask) as pool:
        assert isinstance(await leaks.what_is_kept(pool, leaks.itself(pool)), NotLeased)


@each
async def test_what_was_made_from_it_is_refused_in_the_next_lease(request: Any, name: str) -> None:
    contestant = named(name)
    async with place(request, contestant) as (url, ask), contestant.pool(url, ask) as pool:
        assert isinstance(await leaks.what_is_kept(pool, contestant.driver.made), NotLeased)


@pytest.mark.parametrize("reset", ["session", "transaction"])
@each
async def test_cancelled_query_ends_on_the_server(request: Any, name: str, reset: str) -> None:
    contestant = named(name, reset)
    async with place(request, contestant) as (url, ask), contestant.pool(url, ask) as pool:
        answer, took = await leaks.how_a_cancelled_query_ends(pool)
        assert answer == "ends"
        assert took < AT_ONCE
        async with pool.lease() as connection:
            assert await contestant.driver.ask(connection, "SELECT 7") == 7


@each
async def test_free_connection_the_server_ended_is_not_leased(request: Any, name: str) -> None:
    contestant = named(name)
    async with place(request, contestant) as (url, ask), contestant.pool(url, ask) as pool:
        assert await leaks.how_the_next_is_served(pool, leaks.end_session) == "served"


@each
async def test_leased_connection_the_server_ended_is_not_reused(request: Any, name: str) -> None:
    contestant = named(name)
    driver = contestant.driver
    async with place(request, contestant) as (url, ask), contestant.pool(url, ask) as pool:
        async with pool.lease() as connection:
            session = await driver.ask(connection, pool.server.session)
            await leaks.end_session(pool, session)
            with pytest.raises(Exception, match=r"\w"):  # of any driver
                await driver.ask(connection, "SELECT 1")
        async with pool.lease() as connection:
            assert await driver.ask(connection, pool.server.session) != session


@pytest.fixture(name="mortal", scope="module")
def fixture_mortal() -> Iterator[Callable[[Contestant], Any]]:
    """Start servers that a test may kill, as they are needed."""
    with ExitStack() as stack:
        started: dict[int, Any] = {}

        def server_of(contestant: Contestant) -> Any:
            of_postgres = contestant.server is POSTGRES
            if of_postgres not in started:
                started[of_postgres] = stack.enter_context(postgres() if of_postgres else mariadb())
            return started[of_postgres]

        yield server_of


@each
async def test_server_that_was_restarted_fails_no_caller(mortal: Any, name: str) -> None:
    contestant = named(name)
    server: PostgresServer | MariadbServer = mortal(contestant)

    def killed_and_started() -> None:
        server.kill()
        server.start()

    async def restart(*_: object) -> None:
        await asyncio.to_thread(killed_and_started)

    async def no_tidying(_: str) -> None: ...

    async with contestant.pool(server.url, no_tidying) as pool:
        assert await leaks.how_the_next_is_served(pool, restart) == "served"
