"""The cache of the example application: it may help, and must never be in the way."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import httpx
import pytest
from fastapi.testclient import TestClient
from redis import Redis

from example_app.redis_cache import PATIENCE, REMEMBERED, RedisCache
from tests.link_places import Place, SqlitePlace, cache_on, fixture_sqlite_place  # noqa: F401 - pytest finds it
from tests.wheel_servers import RedisServer, free_port, redis

PAUSE = 60  # seconds: of a server that does not answer
SOON = 2.0  # 0.1, and what a slow machine needs
URL = "https://example.com/"


@pytest.fixture
def anyio_backend() -> str:
    """Use asyncio only: redis-py knows nothing else."""
    return "asyncio"


@pytest.fixture
def redis_client(redis_url: str, sqlite_place: SqlitePlace) -> Iterator[Redis]:
    """Add a cache to the place; yields a client that reads it."""
    with cache_on(redis_url, sqlite_place) as client:
        yield client


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server that may be stopped."""
    with redis() as server:
        yield server


@contextmanager
def visiting(place: Place, **settings: float) -> Iterator[TestClient]:
    with TestClient(place.app(**settings), follow_redirects=False) as client:
        yield client


def shorten(client: TestClient, url: str = URL, code: str = "mine") -> None:
    response = client.post("/api/links", json={"url": url, "code": code})
    assert response.status_code == 201, response.text


def clicks(client: TestClient) -> int:
    return sum(link["clicks"] for link in client.get("/api/links").json()["links"])


def status_of(client: TestClient, pool: str) -> str:
    return str(client.get(f"/pool/health/{pool}").json()["status"])


def follow(client: TestClient, code: str = "mine") -> str | None:
    response: httpx.Response = client.get(f"/{code}")
    assert response.status_code in (307, 404), response.text
    location: str | None = response.headers.get("location")
    return location


# --- what it remembers ---


@pytest.mark.usefixtures("redis_client")
def test_cached_redirect_counts_its_click_without_database(sqlite_place: SqlitePlace) -> None:
    with visiting(sqlite_place) as client:
        shorten(client)
        assert follow(client) == URL
        sqlite_place.execute("UPDATE links SET url = 'https://example.com/behind-its-back'")

        assert follow(client) == URL
        assert clicks(client) == 2


def test_keys_begin_with_the_prefix_and_do_not_stay(sqlite_place: SqlitePlace, redis_client: Redis) -> None:
    prefix = sqlite_place.settings["cache_prefix"]
    with visiting(sqlite_place) as client:
        for code in ("mine", "removed"):
            shorten(client, code=code)
            follow(client, code)
        client.delete("/api/links/removed")
        follow(client, "nothing")

    keys = list(redis_client.scan_iter(f"{prefix}*"))
    assert sorted(keys) == [f"{prefix}mine", f"{prefix}removed"]
    for key in keys:
        assert 0 < redis_client.ttl(key) <= REMEMBERED


@pytest.mark.usefixtures("redis_client")
def test_removed_link_leads_nowhere_although_cached(sqlite_place: SqlitePlace) -> None:
    with visiting(sqlite_place) as one, visiting(sqlite_place) as other:
        shorten(one)
        assert (follow(one), follow(other)) == (URL, URL)

        assert one.delete("/api/links/mine").status_code == 204

        assert (follow(one), follow(other)) == (None, None)


@pytest.mark.usefixtures("redis_client")
def test_readded_code_leads_to_its_new_target(sqlite_place: SqlitePlace) -> None:
    with visiting(sqlite_place) as client:
        shorten(client)
        follow(client)
        client.delete("/api/links/mine")

        shorten(client, "https://example.com/second")

        assert [follow(client), follow(client)] == ["https://example.com/second"] * 2


@pytest.mark.anyio
@pytest.mark.usefixtures("redis_client")
async def test_read_before_a_removal_is_not_cached_after_it(sqlite_place: SqlitePlace) -> None:
    cache = RedisCache(
        sqlite_place.settings["cache_url"], prefix=sqlite_place.settings["cache_prefix"], timeout=PATIENCE
    )

    async def removed_meanwhile(code: str) -> str:
        await cache.forget(code)
        return URL

    async def gone(_: str) -> None:
        return None

    async with cache.pools[0]:
        assert await cache.target("mine", removed_meanwhile) == URL
        assert await cache.target("mine", gone) is None


# --- when it is down ---


def test_app_works_without_its_cache(sqlite_place: SqlitePlace) -> None:
    sqlite_place.settings["cache_url"] = f"redis://127.0.0.1:{free_port()}"
    with visiting(sqlite_place) as client:
        shorten(client)

        assert [follow(client) for _ in range(10)] == [URL] * 10

        assert clicks(client) == 10
        assert (status_of(client, "db"), status_of(client, "cache")) == ("pass", "fail")
        assert client.delete("/api/links/mine").status_code == 204
        assert follow(client) is None


def test_silent_cache_delays_a_redirect_by_its_timeout(
    sqlite_place: SqlitePlace, own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with cache_on(own_redis.url, sqlite_place), closing(Redis.from_url(own_redis.url)) as other:
        sqlite_place.settings["cache_timeout"] = 0.1
        with visiting(sqlite_place) as client:
            shorten(client)
            follow(client)
            other.client_pause(PAUSE * 1000)

            took = []
            for _ in range(10):
                begun = time.monotonic()
                assert follow(client) == URL
                took.append(time.monotonic() - begun)
            assert client.delete("/api/links/mine").status_code == 204

            assert max(took) < SOON
            assert "a link that was removed may lead on for up to 30 s" in caplog.text
        own_redis.stop()
        own_redis.start()  # for requests that still wait for an answer


def test_cache_outage_in_mid_traffic_costs_no_redirect(sqlite_place: SqlitePlace, own_redis: RedisServer) -> None:
    with cache_on(own_redis.url, sqlite_place) as other, visiting(sqlite_place) as client:
        key = f"{sqlite_place.settings['cache_prefix']}mine"
        shorten(client)

        def visit() -> None:
            assert [follow(client) for _ in range(50)] == [URL] * 50

        visit()
        own_redis.stop()
        visit()
        assert status_of(client, "cache") == "fail"
        own_redis.start()
        assert not other.exists(key)
        rounds = 2
        while not other.exists(key):
            visit()
            rounds += 1
            assert rounds < 1000  # about a minute
        assert status_of(client, "cache") == "pass"
        assert clicks(client) == 50 * rounds
