"""A real Prometheus scrapes the example, and says what `stats()` says."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from connectionpools_fastapi._monitoring.families import families
from connectionpools_fastapi._monitoring.metrics import stats_of
from tests.link_places import SqlitePlace
from tests.links import Links, shorten
from tests.prometheus import Prometheus, Series, prometheus

pytestmark = [pytest.mark.needs_program("prometheus")]

VISITS = 7


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Prometheus]]:
    """Yield a client of the example, which has served some requests, and a Prometheus that scrapes it."""
    place = SqlitePlace(tmp_path_factory.mktemp("links") / "links.db")
    with Links(place.environment) as links, links.client() as client:
        code = shorten(client)
        for _ in range(VISITS):
            assert client.get(f"/{code}").status_code == 307
        client.get("/api/report")
        with prometheus(urlsplit(str(client.base_url)).netloc) as server:
            server.wait_for_scrapes(2)
            yield client, server


def stats_shown(client: httpx.Client) -> Series:
    """Return the stats of all pools, as the series that they should be."""
    pools = client.get("/pool/metrics", headers={"Accept": "application/json"}).json()["pools"]
    every = [((stats["name"],), stats_of(stats)) for stats in pools]
    return {
        frozenset({"__name__": sample.name, **sample.labels}.items()): sample.value
        for family in families(every)
        for sample in family.samples
    }


def test_query_api_returns_what_stats_shows(scraped: tuple[httpx.Client, Prometheus]) -> None:
    client, server = scraped
    server.wait_for_scrapes()
    assert server.series() == stats_shown(client)
    # A visit leases to look its link up, and again to count itself.
    found = server.query('connectionpool_route_leases_total{pool="db", route="GET /{code}"}')
    assert [each["value"][1] for each in found] == [str(2 * VISITS)]
