"""`SELECT 1` on a real PostgreSQL through uvicorn: `Leased` beside a `yield` dependency over the driver's own pool.

Both are compared with the limit, the same application without a pool. All servers of a driver are up at the same time.
Each has 10 connections, for 32 clients.
"""

from contextlib import ExitStack
from functools import partial

import psycopg

from benchmarks.load import Answer
from benchmarks.machine import IS_COMPILED
from benchmarks.rounds import OURS, PURE, Benchmark, Claim, Figures, Measure, Rounds, ratio
from benchmarks.wire import PURE_PYTHON, asking, cpu_of, serving
from tests.wheel_servers import postgres

CLIENTS = 32
SECONDS = 0.25  # of load on one server in a round: short, so that all see the same noise of the machine
LIMIT = "the limit, without a pool"
BACKENDS = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"


def run(driver: str, peer: str, rounds: Rounds) -> None:
    seconds = max(0.1, SECONDS * rounds.effort.share)
    apps = {OURS: "leased", LIMIT: "without_pool", _same(peer): "own_pool_same_reset", peer: "own_pool"}
    if IS_COMPILED:
        apps[PURE] = apps[OURS]
    with ExitStack() as stack:
        database = stack.enter_context(postgres())
        load = stack.enter_context(asking("benchmarks.load"))
        servers = {
            name: stack.enter_context(
                serving(
                    f"benchmarks.apps.{driver}:{app}", database.url, environment=PURE_PYTHON if name == PURE else {}
                )
            )
            for name, app in apps.items()
        }
        for figures in rounds:
            with psycopg.connect(database.url) as connection:
                backends = [pid for (pid,) in connection.execute(BACKENDS)]
            for name in rounds.in_any_order(servers):
                server = servers[name]
                before = cpu_of(server.process), cpu_of(*backends)
                answer = Answer(**load(server.port, seconds, CLIENTS))
                figures["throughput"][name] = answer.throughput
                figures["p99"][name] = answer.p99
                figures["cpu"][name] = (cpu_of(server.process) - before[0]) / answer.requests
                figures["database"][name] = (cpu_of(*backends) - before[1]) / answer.requests


def _same(peer: str) -> str:
    return f"{peer}, same reset"


def _share(of: Figures) -> float:
    """Return the percentage of a request's CPU that our pool takes."""
    return 100 * (1 - of["cpu"][LIMIT] / of["cpu"][OURS])


def _requests(title: str, peer: str, at_least: float | None = None) -> Claim:
    return Claim(f"requests/s beside {title}", ratio("throughput", OURS, peer), at_least=at_least)


def _benchmark(title: str, driver: str, peer: str, *claims: Claim) -> Benchmark:
    return Benchmark(
        title=f"SELECT 1 over HTTP, {title}",
        run=partial(run, driver, peer),
        measures={
            "throughput": Measure("throughput", "requests/s", best=max),
            "p99": Measure("99 % of the responses within", "ms", 1e3),
            "cpu": Measure("CPU of the application for a request", "µs", 1e6),
            "database": Measure("CPU of PostgreSQL for a request", "µs", 1e6),
        },
        beside=LIMIT,
        claims=(
            _requests(LIMIT, LIMIT, 0.9),
            _requests(_same(peer), _same(peer)),
            _requests(f"{peer}, defaults of both", peer),
            *claims,
            Claim("CPU of a request that the pool takes", _share, at_most=10, unit="%"),
        ),
        budget=55,
        notes={peer: "its defaults: resets less", LIMIT: "a deque, a future for each waiter, and our reset"},
    )


ASYNCPG = "asyncpg.Pool"
ASYNCPG_BENCHMARK = _benchmark(
    "asyncpg",
    "asyncpg",
    ASYNCPG,
    Claim(f"p99 beside {_same(ASYNCPG)}", ratio("p99", OURS, _same(ASYNCPG)), at_most=0.45),
)
PSYCOPG_BENCHMARK = _benchmark("psycopg", "psycopg", "psycopg_pool")
SQLALCHEMY_BENCHMARK = _benchmark("SQLAlchemy on asyncpg", "sqlalchemy", "SQLAlchemy's async engine")
