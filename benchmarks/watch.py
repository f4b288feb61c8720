"""What it costs to watch the clients of requests that wait, beside the same requests without; each waits for 0.1 s."""

from contextlib import ExitStack

from benchmarks.load import Answer
from benchmarks.rounds import Benchmark, Claim, Figures, Measure, Rounds
from benchmarks.wire import asking, cpu_of, serving

CLIENTS = 150
WAIT = 0.08  # seconds that a request takes on average; from 0.05 on clients are watched
SECONDS = 1.0  # of load in a round
SERVERS = {"uvloop and httptools": ("uvloop", "httptools"), "asyncio and h11": ("asyncio", "h11")}
APPS = ("watched", "unwatched")


def run(rounds: Rounds) -> None:
    seconds = max(0.5, SECONDS * rounds.effort.share)  # shorter, no request would wait for long enough
    with ExitStack() as stack:
        load = stack.enter_context(asking("benchmarks.load"))
        servers = {
            f"{server}, {app}": stack.enter_context(serving(f"benchmarks.apps.watched:{app}", "", *options))
            for server, options in SERVERS.items()
            for app in APPS
        }
        for figures in rounds:
            for name in rounds.in_any_order(servers):
                server = servers[name]
                before = cpu_of(server.process)
                answer = Answer(**load(server.port, seconds, CLIENTS))
                if CLIENTS / answer.throughput < WAIT:
                    raise RuntimeError("requests take too short a time to be watched")
                figures["cpu"][name] = (cpu_of(server.process) - before) / answer.requests


def _claim(server: str) -> Claim:
    def value(of: Figures) -> float:
        watched, unwatched = (of["cpu"][f"{server}, {app}"] for app in APPS)
        return watched / unwatched

    return Claim(f"the CPU of a request without the watch, {server}", value, at_most=1.05)


BENCHMARK = Benchmark(
    title="Requests whose clients are watched",
    run=run,
    measures={"cpu": Measure("CPU of the server for a request", "µs", 1e6)},
    claims=tuple(map(_claim, SERVERS)),
    budget=60,
)
