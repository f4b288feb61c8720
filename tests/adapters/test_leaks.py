"""All managers on one table: what a lease leaves, keeps and breaks does not reach the next one."""

from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from connectionpools_fastapi import NotLeased, PoolConfigError
from tests import leaks
from tests.certificates import write_certificate
from tests.leak_others import RABBITMQ, REDIS, SQLITE
from tests.leak_servers import MARIADB, POSTGRES, Place, limited, place_at, restart
from tests.leaks import Contestant, managers
from tests.wires import speaking_tls

pytestmark = pytest.mark.anyio


PROGRAMS = {id(MARIADB): "mariadbd", id(RABBITMQ): "rabbitmq-server"}  # which no wheel brings


def each_of(trait: str) -> pytest.MarkDecorator:
    """Run a test for each manager whose server has a trait."""
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(
                one.name,
                marks=[pytest.mark.needs_program(PROGRAMS[id(one.server)])] if id(one.server) in PROGRAMS else [],
            )
            for one in managers()
            if getattr(one.server, trait)
        ],
    )


each = each_of("leftovers")
each_with_sessions = each_of("session")
each_with_sql = each_of("write")
each_reset = pytest.mark.parametrize("reset", ["session", "transaction"])


def named(name: str, reset: str = "session") -> Contestant:
    (found,) = [contestant for contestant in managers(reset) if contestant.name == name]
    return found


@pytest.fixture(name="anyio_backend")
def fixture_anyio_backend() -> str:
    """Run on asyncio only, as the drivers do."""
    return "asyncio"


async def place_of(request: pytest.FixtureRequest, contestant: Contestant) -> Place:
    """Return the server of the session, or a new file."""
    server = contestant.server
    if server is MARIADB:
        running = request.getfixturevalue("mariadb_server")
        place = Place(server, running.url, running.root_url)
    elif server is SQLITE:
        url = f"sqlite:///{request.getfixturevalue('tmp_path') / 'app.db'}"
        place = Place(server, url, url)
    else:
        names = {id(POSTGRES): "postgres_url", id(REDIS): "redis_url", id(RABBITMQ): "rabbitmq_url"}
        url = request.getfixturevalue(names[id(server)])
        place = Place(server, url, url)
    await place.ask_all(server.prepare)
    return place


@each_reset
@each
async def test_next_lease_sees_nothing_the_last_one_left(request: Any, name: str, reset: str) -> None:
    contestant = named(name, reset)
    leftovers = contestant.server.leftovers
    seen: set[str] = set()
    place = await place_of(request, contestant)
    for what, leftover in leftovers.items():
        async with contestant.pool(place) as pool:
            if await leaks.what_remains(pool, leftover) == "seen":
                seen.add(what)
    of_session = {what for what, leftover in leftovers.items() if leftover.of_session}
    keeps_session = reset == "transaction" and contestant.server is not RABBITMQ
    assert seen == (of_session if keeps_session else set())


@each
async def test_leased_connection_is_refused_in_the_next_lease(request: Any, name: str) -> None:
    contestant = named(name)
    async with contestant.pool(await place_of(request, contestant)) as pool:
        assert isinstance(await leaks.what_is_kept(pool, leaks.itself(pool)), NotLeased)


@each
async def test_what_was_made_from_it_is_refused_in_the_next_lease(request: Any, name: str) -> None:
    contestant = named(name)
    async with contestant.pool(await place_of(request, contestant)) as pool:
        assert isinstance(await leaks.what_is_kept(pool, contestant.driver.made), NotLeased)


@each_reset
@each_of("sleep")
async def test_cancelled_query_ends_on_the_server(request: Any, name: str, reset: str) -> None:
    contestant = named(name, reset)
    async with contestant.pool(await place_of(request, contestant)) as pool:
        answer, _ = await leaks.how_a_cancelled_query_ends(pool)
        assert answer == "ends"
        assert await leaks.is_served(pool) == "served"


@each_with_sessions
async def test_free_connection_the_server_ended_is_not_leased(request: Any, name: str) -> None:
    contestant = named(name)
    async with contestant.pool(await place_of(request, contestant)) as pool:
        assert await leaks.how_the_next_is_served(pool, leaks.end_session) == "served"


@each_with_sessions
async def test_leased_connection_the_server_ended_is_not_reused(request: Any, name: str) -> None:
    contestant = named(name)
    driver, server = contestant.driver, contestant.server
    async with contestant.pool(await place_of(request, contestant)) as pool:
        async with pool.lease() as connection:
            session = await driver.ask(connection, server.session)
            await leaks.end_session(pool, session)
            with suppress(Exception):  # of any driver
                await driver.ask(connection, server.seven)
        async with pool.lease() as connection:
            assert await driver.ask(connection, server.session) != session


# --- what befalls the server -------------------------------------------------------------------------


@pytest.fixture(name="server_of", scope="module")
def fixture_server_of() -> Iterator[Callable[[Contestant], Any]]:
    """Start servers that a test may fill, change and kill, as they are needed; they speak no TLS."""
    with ExitStack() as stack:
        started: dict[bool, Any] = {}

        def server_of(contestant: Contestant) -> Any:
            of_postgres = contestant.server is POSTGRES
            if of_postgres not in started:
                started[of_postgres] = stack.enter_context(limited(contestant.server))
            return started[of_postgres]

        yield server_of


@each_with_sql
async def test_server_that_was_restarted_fails_no_caller(server_of: Any, name: str) -> None:
    contestant = named(name)
    server = server_of(contestant)
    async with contestant.pool(await place_at(server)) as pool:
        assert await leaks.how_the_next_is_served(pool, lambda *_: restart(server)) == "served"


@each_with_sql
async def test_full_server_refuses_no_caller(server_of: Any, name: str) -> None:
    contestant = named(name)
    async with contestant.pool(await place_at(server_of(contestant)), limit=3) as pool:
        assert await leaks.how_a_full_server_is_met(pool) == "served"


@each_reset
@each_with_sql
async def test_server_that_takes_no_writes_costs_one_error(request: Any, server_of: Any, name: str, reset: str) -> None:
    contestant = named(name, reset)
    other = await place_of(request, contestant)
    async with contestant.pool(await place_at(server_of(contestant)), limit=3) as pool:
        assert await leaks.how_a_failover_is_met(pool, other) == "served"


@each_with_sql
async def test_new_password_is_used_and_a_wrong_one_told(server_of: Any, name: str) -> None:
    contestant = named(name)
    async with contestant.pool(await place_at(server_of(contestant)), limit=2) as pool:
        assert await leaks.how_a_new_password_is_met(pool) == "served"
    async with contestant.pool(await place_at(server_of(contestant)), limit=2) as pool:
        told = await leaks.how_a_wrong_password_is_told(pool)
        assert isinstance(told, PoolConfigError)
        assert "the server refuses" in str(told)


@each_with_sql
async def test_tls_is_used_if_it_is_asked_for(request: Any, tmp_path: Path, name: str) -> None:
    contestant = named(name)
    place = await place_of(request, contestant)
    async with AsyncExitStack() as stack:
        if contestant.server is POSTGRES:
            certificate = write_certificate(tmp_path / "both.pem", "127.0.0.1")
            place.url = await stack.enter_async_context(speaking_tls(certificate, place.url))
        else:
            certificate = request.getfixturevalue("mariadb_server").certificate
        pool = await stack.enter_async_context(contestant.pool(place, **contestant.asking_for_tls(certificate)))
        assert await leaks.is_encrypted(pool)


@each_with_sql
async def test_server_without_tls_is_refused_if_tls_is_asked_for(server_of: Any, tmp_path: Path, name: str) -> None:
    contestant = named(name)
    options = contestant.asking_for_tls(write_certificate(tmp_path / "both.pem", "127.0.0.1"))
    async with contestant.pool(await place_at(server_of(contestant)), **options) as pool:
        with pytest.raises(PoolConfigError, match="speaks no TLS"):
            await leaks.is_encrypted(pool)
