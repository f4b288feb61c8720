"""Metrics: what /pool/metrics says agrees with stats, in each format that a scraper may ask for."""

import json
from collections.abc import Iterable
from typing import Any

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
    PoolCollector,
    PoolTimeout,
    install_pools,
)
from connectionpools_fastapi._monitoring import metrics
from connectionpools_fastapi._monitoring.metrics import render
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
        for name in ("limit", "waiting", "failing", "overloaded", "peak_taken", "peak_waiting"):
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
        for priority, each in stats.priorities.items():
            assert one(found, "priority_waiting", priority=priority, **db) == each.waiting
            assert one(found, "priority_oldest_wait_seconds", priority=priority, **db) == each.oldest_wait
            assert one(found, "priority_refusals_total", priority=priority, **db) == each.refusals
        assert (stats.acquires, stats.timeouts, stats.discards["discard"], stats.detached) == (4, 1, 1, 1)
        pool.discard(next(iter(pool._engine.inventory.taken.values())).resource)


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


async def test_peak_that_is_not_known_is_absent() -> None:
    async with things(reuse="fifo") as pool:
        assert ("connectionpool_peak_taken", frozenset({("pool", "db")})) not in scrape(pool)


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


@pytest.mark.parametrize(
    "wishes",
    [
        [JSON + "," * 1_000_000],
        [JSON, "," * 1_000_000],
        [f"{JSON};{'q=1;' * 1_000_000}"],
        [f"{OPENMETRICS};version={'1.' * 1_000_000}"],
        [JSON] * 10_000,
    ],
)
async def test_an_accept_header_beyond_all_measure_is_not_read(
    wishes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[str] = []
    monkeypatch.setattr(metrics, "_quality_of", parts.append)
    app = FastAPI()
    install_pools(app, things())
    answer = await ask(app, "/pool/metrics", headers=[("accept", wish) for wish in wishes])
    assert answer.headers["content-type"].startswith(TEXT)
    assert parts == []


@pytest.mark.parametrize("version", ["1" * 1000, "1.\xa00", "1_0.0", "01.x"])
async def test_invalid_version_is_not_part_of_the_content_type(version: str) -> None:
    _, content_type = render([], f"{OPENMETRICS};version={version}")
    assert content_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"


async def test_prometheus_own_header_is_read() -> None:
    wishes = (
        f"{OPENMETRICS};version=1.0.0;escaping=allow-utf-8;q=0.6",
        f"{OPENMETRICS};version=0.0.1;q=0.5,{TEXT};version=1.0.0;escaping=allow-utf-8;q=0.4,{TEXT};version=0.0.4;q=0.3",
        "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,*/*;q=0.2",
    )
    assert OPENMETRICS in render([], ",".join(wishes))[1]


async def test_no_accept_header_gets_usual_prometheus_text() -> None:
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
        pool.discard(next(iter(pool._engine.inventory.taken.values())).resource)


def installed(*pools: ConnectionPool[Any]) -> FastAPI:
    app = FastAPI()
    install_pools(app, *pools)
    return app


# --- as prometheus-client has it -----------------------------------------------------------------------

SELDOM = [
    f"{kind};version={version}{escaping}"
    for kind in (TEXT, OPENMETRICS)
    for version in ("0.0.1", "0.0.4", "1.0.0", "1.0.1", "1.1.0", "2.0.0", "3.0.0")
    for escaping in ("", *(f";escaping={way}" for way in ("allow-utf-8", "underscores", "dots", "values", "none")))
]


@pytest.mark.parametrize("accept", ["", BROWSER, PROMETHEUS, TEXT, OPENMETRICS, *SELDOM])
def test_version_and_escaping_asked_for_are_used(accept: str) -> None:
    pools = [things()]
    encode, content_type = choose_encoder(accept)
    assert render(pools, accept) == (encode(PoolCollector(pools)), content_type)


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


def test_a_registry_refuses_a_second_collector_for_a_pool() -> None:
    registry = CollectorRegistry()
    db, cache = things(), things(name="cache")
    registry.register(PoolCollector([db]))
    with pytest.raises(ValueError, match="the PoolCollector of pool 'db'"):
        registry.register(PoolCollector([cache, db]))
    registry.register(PoolCollector([cache]))
    assert b'connectionpool_limit{pool="cache"}' in generate_latest(registry)
