"""`SELECT 1` on a real PostgreSQL through uvicorn: `Leased` beside a `yield` dependency over the driver's own pool.

All servers of a driver are up at the same time. Each pool has 10 connections, for 32 clients.
"""

from contextlib import ExitStack
from functools import partial

from benchmarks.load import Order
from benchmarks.rounds import OURS, Benchmark, Claim, Figures, Measure, Rounds
from benchmarks.wire import loading, serving
from tests.wheel_servers import postgres

CLIENTS = 32
SECONDS = 1.0  # of load in a round


def run(driver: str, peer: str, rounds: Rounds) -> None:
    seconds = max(0.1, SECONDS * rounds.effort.share)
    apps = {OURS: "leased", _same(peer): "own_pool_same_reset", peer: "own_pool"}
    with ExitStack() as stack:
        database = stack.enter_context(postgres())
        load = stack.enter_context(loading())
        ports = {
            name: stack.enter_context(serving(f"benchmarks.apps.{driver}:{app}", database.url))
            for name, app in apps.items()
        }
        for figures in rounds:
            for name in rounds.in_any_order(ports):
                answer = load(Order(ports[name], seconds, CLIENTS))
                figures["throughput"][name] = answer.throughput
                figures["p50"][name] = answer.p50
                figures["p99"][name] = answer.p99


def _same(peer: str) -> str:
    return f"{peer}, same reset"


def _throughput(peer: str, at_least: float) -> Claim:
    def value(of: Figures) -> float:
        return of["throughput"][OURS] / of["throughput"][_same(peer)]

    return Claim(f"the requests a second of {_same(peer)}", value, at_least=at_least)


def _benchmark(title: str, driver: str, peer: str, *claims: Claim) -> Benchmark:
    return Benchmark(
        title=f"SELECT 1 over HTTP, {title}",
        run=partial(run, driver, peer),
        measures={
            "throughput": Measure("throughput", "requests/s", best=max),
            "p50": Measure("half of the responses within", "ms", 1e3),
            "p99": Measure("99 % of the responses within", "ms", 1e3),
        },
        claims=claims,
        budget=50,
        notes={peer: "as it comes: resets less"},
    )


ASYNCPG = "asyncpg.Pool"
ASYNCPG_BENCHMARK = _benchmark(
    "asyncpg",
    "asyncpg",
    ASYNCPG,
    _throughput(ASYNCPG, 1.35),
    Claim(f"the p99 of {_same(ASYNCPG)}", lambda of: of["p99"][OURS] / of["p99"][_same(ASYNCPG)], at_most=0.5),
)
PSYCOPG = "psycopg_pool"
PSYCOPG_BENCHMARK = _benchmark("psycopg", "psycopg", PSYCOPG, _throughput(PSYCOPG, 1.5))
SQLALCHEMY = "SQLAlchemy's async engine"
SQLALCHEMY_BENCHMARK = _benchmark("SQLAlchemy on asyncpg", "sqlalchemy", SQLALCHEMY, _throughput(SQLALCHEMY, 2.0))
