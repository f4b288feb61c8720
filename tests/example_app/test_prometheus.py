"""A real Prometheus scrapes the example, and says what `stats()` says."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from connectionpools_fastapi._monitoring.families import families
from connectionpools_fastapi._monitoring.metrics import stats_of
from tests.contrib import RULES, queries
from tests.link_places import SqlitePlace
from tests.links import Links, shorten
from tests.prometheus import JOB, Prometheus, Series, prometheus

pytestmark = [pytest.mark.needs_program("prometheus")]

VISITS = 7

# What has no value while nothing is learned or discarded.
ABSENT = ("connectionpool_patience_seconds", "connectionpool_discards_total")


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Prometheus]]:
    """Yield a client of the example, which has served some requests, and a Prometheus that scrapes it."""
    place = SqlitePlace(tmp_path_factory.mktemp("links") / "links.db")
    with Links(place.environment) as links, links.client() as client:
        code = shorten(client)
        for _ in range(VISITS):
            assert client.get(f"/{code}").status_code == 307
        client.get("/api/report")
        with prometheus(urlsplit(str(client.base_url)).netloc, RULES) as server:
            server.wait_for_scrapes(3)
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
    if server.series() != stats_shown(client):  # a scrape may have failed on a busy machine
        server.wait_for_scrapes()
    assert server.series() == stats_shown(client)
    # A visit leases to look its link up, and again to count itself.
    found = server.query('connectionpool_route_leases_total{pool="db", route="GET /{code}"}')
    assert [each["value"][1] for each in found] == [str(2 * VISITS)]


def in_terms_of(query: str) -> str:
    """Fill in the variables of the dashboard, as Grafana does."""
    return query.replace("$__rate_interval", "1m").replace("$job", JOB).replace("$pool", "db|report")


@pytest.mark.parametrize("query", queries())
def test_query_of_dashboard_is_answered(scraped: tuple[httpx.Client, Prometheus], query: str) -> None:
    _, server = scraped
    if not any(name in query for name in ABSENT):
        server.wait_for(lambda: bool(server.query(in_terms_of(query))))  # a scrape may have failed on a busy machine
    result = server.query(in_terms_of(query))
    assert {found["metric"]["pool"] for found in result} <= {"db", "report"}


def test_variables_of_dashboard_find_jobs_and_pools(scraped: tuple[httpx.Client, Prometheus]) -> None:
    _, server = scraped
    match = {"match[]": "connectionpool_limit"}
    assert server.get("label/job/values", **match) == [JOB]
    assert server.get("label/pool/values", **match) == ["db", "report"]


def test_alerts_are_evaluated_and_silent_in_calm_times(scraped: tuple[httpx.Client, Prometheus]) -> None:
    _, server = scraped
    server.wait_for(lambda: all(rule["health"] != "unknown" for rule in server.rules()))
    assert {rule["name"]: (rule["health"], rule["state"]) for rule in server.rules()} == dict.fromkeys(
        (
            "ConnectionPoolExhausted",
            "ConnectionPoolWaitsAreLong",
            "ConnectionPoolBackEndDown",
            "ConnectionPoolLeak",
            "ConnectionPoolLeaseIsStuck",
            "ConnectionPoolSheds",
        ),
        ("ok", "inactive"),
    )
