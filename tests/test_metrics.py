"""Metrics: what /pool/metrics says agrees with stats, in each format that a scraper may ask for."""

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NoReturn

import anyio
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from connectionpools_fastapi import (
    ConnectionPool,
    Histogram,
    Holder,
    Observable,
    ObservedStats,
    PoolCollector,
    PoolStats,
    PoolTimeout,
    install_pools,
)
from connectionpools_fastapi.metrics import render
from connectionpools_fastapi.testing import started
from tests.web import Thing, ask, things

pytestmark = pytest.mark.anyio

TEXT = "text/plain"
OPENMETRICS = "application/openmetrics-text"
JSON = "application/json"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(families: Iterable[Metric]) -> Samples:
    found: Samples = {}
    for family in families:
        assert family.documentation
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def one(samples: Samples, name: str, **labels: str) -> float:
    return samples["connectionpool_" + name, frozenset(labels.items())]


def scrape(*pools: ConnectionPool[Any], accept: str = TEXT) -> Samples:
    body, content_type = render(pools, accept)
    parse = parse_openmetrics if OPENMETRICS in content_type else parse_text
    return samples_of(parse(body.decode()))


async def use(pool: ConnectionPool[Thing]) -> None:
    """Do what there is to do with a pool of limit 2 and max_waiting 0."""
    one = await pool.acquire()
    two = await pool.acquire()
    with pytest.raises(PoolTimeout):
        await pool.acquire(timeout=0)
    await pool.release(one)
    pool.discard(two)
    pool.detach(await pool.acquire())
    await pool.acquire()


@pytest.mark.parametrize("accept", [TEXT, OPENMETRICS])
async def test_every_value_agrees_with_the_stats(accept: str) -> None:
    pool = things(limit=2)
    async with pool:
        await use(pool)
        await anyio.wait_all_tasks_blocked()
        stats = pool.stats()
        found = scrape(pool, accept=accept)
        db = {"pool": "db"}
        for state in ("free", "taken", "creating", "cleaning"):
            assert one(found, "resources", state=state, **db) == getattr(stats, state)
        for name in ("limit", "waiting", "failing"):
            assert one(found, name, **db) == getattr(stats, name)
        assert one(found, "open", **db) == 1
        for name in (
            "acquires",
            "releases",
            "timeouts",
            "withdrawals",
            "creates",
            "create_failures",
            "cleans",
            "clean_failures",
            "detached",
        ):
            assert one(found, name + "_total", **db) == getattr(stats, name)
        for name in ("refusals", "discards"):
            by_reason: dict[str, int] = dict(getattr(stats, name))
            for reason, number in by_reason.items():
                assert one(found, name + "_total", reason=reason, **db) == number
        assert (stats.acquires, stats.timeouts, stats.discards["discard"], stats.detached) == (4, 1, 1, 1)
        pool.discard(next(iter(pool._state.taken.values())).resource)


@pytest.mark.parametrize("accept", [TEXT, OPENMETRICS])
@pytest.mark.parametrize("name", ["wait", "use", "create"])
async def test_histograms_are_cumulative_and_add_up(accept: str, name: str) -> None:
    now = 0.0
    pool = things(limit=2, clock=lambda: now)
    async with pool:
        for seconds in (0.0, 0.0, 0.002, 0.3, 3.0, 1000.0):
            async with pool.lease():
                now += seconds
        histogram: Histogram = getattr(pool.stats(), name)
        found = scrape(pool, accept=accept)
    series = f"connectionpool_{name}_seconds"
    buckets = [
        (float(dict(labels)["le"]), value) for (sample, labels), value in found.items() if sample == series + "_bucket"
    ]
    assert [bound for bound, _ in buckets] == [*histogram.bounds, float("inf")]
    values = [value for _, value in buckets]
    assert values == sorted(values)
    assert values == [sum(histogram.counts[: index + 1]) for index in range(len(histogram.counts))]
    assert one(found, f"{name}_seconds_count", pool="db") == values[-1] == histogram.count > 0
    assert one(found, f"{name}_seconds_sum", pool="db") == pytest.approx(histogram.sum)
    if name == "use":
        assert values[-1] == 6
        assert values[-2] == 5
        assert histogram.sum == pytest.approx(1003.302)


async def test_each_pool_has_series_of_its_own() -> None:
    async with things(limit=3, name='q"uote\\d') as one_pool, things(limit=4, name="ünï code") as other:
        for accept in (TEXT, OPENMETRICS):
            found = scrape(one_pool, other, accept=accept)
            assert one(found, "limit", pool='q"uote\\d') == 3
            assert one(found, "limit", pool="ünï code") == 4


def test_a_pool_that_is_not_open_is_reported_as_well() -> None:
    found = scrape(things())
    assert one(found, "open", pool="db") == 0
    assert one(found, "limit", pool="db") == 2


def test_no_pool_is_no_error() -> None:
    assert scrape() == {}
    assert scrape(accept=OPENMETRICS) == {}
    assert json.loads(render([], JSON)[0]) == {"pools": []}


# --- which format -----------------------------------------------------------------------------------

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        (BROWSER, TEXT),
        ("text/html", TEXT),  # nothing that we have: better than an error
        (PROMETHEUS, OPENMETRICS),
        (OPENMETRICS, OPENMETRICS),
        ("APPLICATION/OpenMetrics-Text", OPENMETRICS),
        (JSON, JSON),
        ("application/json;charset=utf-8", JSON),
        ("application/json, text/plain, */*", JSON),
        ("text/plain, application/json", TEXT),
        ("application/json;q=0.1, text/plain", TEXT),
        ("text/plain;q=0.1, application/json", JSON),
        ("text/plain;q=0.5, application/json;q=0.50001", JSON),
        ("application/json ; q=0 , text/plain;q=0.001", TEXT),
        ("application/json;q=0", TEXT),
        ("text/plain;q=0, */*", OPENMETRICS),
        ("text/plain;q=0, application/openmetrics-text;q=0, */*;q=0.1", JSON),
        ("text/*;q=0.2, application/json;q=0.3", JSON),
        ("text/*;q=0.4, application/json;q=0.3", TEXT),
        ("*/*;q=0.9, application/json;q=0.3", TEXT),
        ("application/*", OPENMETRICS),
        ("application/json;Q=0.1, text/plain", TEXT),
        ("application/json;q=nonsense, text/plain;q=0.1", TEXT),
        ("application/json;q=-1", TEXT),
        ("application/json;q=nan, text/plain;q=0.1", JSON),
        (",,;;q=,", TEXT),
        ("text/html, text/plain;q=0", TEXT),
        ("text/html, text/plain;q=-1", TEXT),
        ("application/openmetrics-text;version=nonsense", OPENMETRICS),
        ("text/plain;version=nonsense", TEXT),
    ],
)
async def test_the_format_is_the_one_preferred(accept: str, kind: str) -> None:
    async with started(installed(things())) as served:
        answer = await ask(served, "/pool/metrics", headers=[("accept", accept)])
    assert answer.status == 200
    assert answer.headers["content-type"].split(";")[0] == kind
    assert answer.headers["vary"] == "Accept"
    text = answer.body.decode()
    if kind == JSON:
        assert json.loads(text)["pools"][0]["name"] == "db"
    else:
        parse = parse_openmetrics if kind == OPENMETRICS else parse_text
        assert samples_of(parse(text))


async def test_several_accept_headers_count_as_one() -> None:
    headers = [("accept", "text/plain;q=0.1"), ("accept", JSON)]
    async with started(installed(things())) as served:
        answer = await ask(served, "/pool/metrics", headers=headers)
    assert answer.headers["content-type"] == JSON


async def test_without_an_accept_header_it_is_prometheus_text_of_the_usual_version() -> None:
    async with started(installed(things())) as served:
        answer = await ask(served, "/pool/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


async def test_json_has_the_stats_with_finite_numbers() -> None:
    pool = things(limit=2)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    async with started(installed(pool)) as served:
        await use(pool)
        answer = await ask(served, "/pool/metrics", headers=[("accept", JSON)])
        (body,) = json.loads(answer.body, parse_constant=refuse)["pools"]
        stats = pool.stats()
        assert (body["name"], body["limit"], body["acquires"]) == ("db", stats.limit, stats.acquires)
        assert body["discards"] == dict(stats.discards)
        assert body["use"]["counts"] == list(stats.use.counts)
        pool.discard(next(iter(pool._state.taken.values())).resource)


def installed(*pools: ConnectionPool[Any]) -> FastAPI:
    app = FastAPI()
    install_pools(app, *pools)
    return app


# --- to the byte ------------------------------------------------------------------------------------

COMMON = ["", BROWSER, PROMETHEUS, TEXT, OPENMETRICS, f"{OPENMETRICS};version=1.0.0", "text/plain;version=0.0.4"]
SELDOM = [
    f"{kind};version={version}{escaping}"
    for kind in (TEXT, OPENMETRICS)
    for version in ("0.0.1", "0.0.4", "1.0.0", "1.0.1", "1.1.0", "2.0.0", "3.0.0")
    for escaping in ("", *(f";escaping={way}" for way in ("allow-utf-8", "underscores", "dots", "values", "none")))
]


class Told:
    """A pool that has said all that it will ever say."""

    def __init__(self, stats: PoolStats | ObservedStats) -> None:
        self.name = stats.name
        self.stats = lambda: stats

    def holders(self) -> list[Holder] | None:
        return None

    async def probe(self, *, max_age: float = 5.0, timeout: float = 2.0) -> bool:
        return max_age > timeout


async def told() -> list[Observable]:
    """Return pools that differ in all that may be written differently."""
    pool = things(limit=2)
    async with pool:
        await use(pool)
        used = pool.stats()
        pool.discard(next(iter(pool._state.taken.values())).resource)
    durations = Histogram(used.use.bounds, (3, *range(len(used.use.bounds))), 12345678.9)
    unheard_of = Histogram(used.wait.bounds, (0,) * (len(used.wait.bounds) + 1), float("inf"))
    every: list[PoolStats | ObservedStats] = [
        used,
        things(name="new").stats(),
        replace(used, name="failing", failing=True, cause="OSError", retry_after=0.5, create_failures=7),
        replace(used, name='q"uote\\d, in two\nlines {}, 100 %', acquires=10**6, releases=123_456_789, cleans=10**21),
        replace(used, name="ünï 🏊 code", use=durations, wait=unheard_of, create=replace(durations, sum=1e-7)),
        replace(used, name="no reasons", refusals={}, discards={'fo\\r \n"this"': 2}),
        ObservedStats(name="unknown", status="open"),
        ObservedStats(name="partly", status="closed", limit=3, waiting=0, driver={'one"': 1, "zwöl\nf\\": 12}),
    ]
    return [Told(stats) for stats in every]


@pytest.mark.parametrize("accept", [*COMMON, *SELDOM])
async def test_the_text_is_to_the_byte_what_prometheus_client_makes_of_the_collector(accept: str) -> None:
    pools = await told()
    encode, content_type = choose_encoder(accept)
    assert render(pools, accept) == (encode(PoolCollector(pools)), content_type)
    assert render([], accept) == (encode(PoolCollector([])), content_type)


@pytest.mark.parametrize("accept", COMMON)
async def test_what_is_commonly_asked_for_does_not_take_the_slow_way(
    accept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collect(_: PoolCollector) -> NoReturn:
        pytest.fail("prometheus-client's own objects are made for each number")

    monkeypatch.setattr(PoolCollector, "collect", collect)
    assert b"connectionpool_limit" in render(await told(), accept)[0]


# --- registries ---------------------------------------------------------------------------------------


async def test_nothing_is_registered_globally() -> None:
    before = set(REGISTRY._names_to_collectors)
    async with started(installed(things())) as served:
        await ask(served, "/pool/metrics")
    assert set(REGISTRY._names_to_collectors) == before
    assert b"connectionpool" not in generate_latest(REGISTRY)


async def test_a_collector_may_be_registered_on_purpose() -> None:
    pool = things()
    registry = CollectorRegistry(auto_describe=True)
    registry.register(PoolCollector([pool]))
    async with pool, pool.lease():
        found = samples_of(parse_text(generate_latest(registry).decode()))
    assert one(found, "resources", pool="db", state="taken") == 1


def test_a_collector_is_read_anew_at_each_scrape() -> None:
    pools = [things(name="one")]
    registry = CollectorRegistry()
    registry.register(PoolCollector(pools))
    pools.append(things(name="two"))
    assert one(samples_of(registry.collect()), "limit", pool="two") == 2


async def test_metrics_may_be_rendered_from_any_thread() -> None:
    pool = things()
    async with pool:
        body, _ = await anyio.to_thread.run_sync(render, [pool])
    assert b'connectionpool_limit{pool="db"} 2.0' in body
