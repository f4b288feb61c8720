"""What it costs to watch the clients of requests that wait, beside the same requests without; each waits for 0.1 s."""

import json
from contextlib import ExitStack
from urllib.request import urlopen

from benchmarks.load import Order
from benchmarks.rounds import Benchmark, Claim, Figures, Measure, Rounds
from benchmarks.wire import loading, serving

CLIENTS = 150
WAIT = 0.08  # seconds; from 0.05 on clients are watched
SECONDS = 1.0  # of load in a round
SERVERS = {"uvloop and httptools": ("uvloop", "httptools"), "asyncio and h11": ("asyncio", "h11")}
APPS = ("watched", "unwatched")


def _spent(port: int) -> tuple[float, int]:
    with urlopen(f"http://127.0.0.1:{port}/spent", timeout=30) as answer:
        user, served = json.load(answer)
        return user, served


def run(rounds: Rounds) -> None:
    seconds = max(0.5, SECONDS * rounds.effort.share)  # shorter, no request would wait for long enough
    with ExitStack() as stack:
        load = stack.enter_context(loading())
        ports = {
            f"{server}, {app}": stack.enter_context(serving(f"benchmarks.apps.watched:{app}", "", *options))
            for server, options in SERVERS.items()
            for app in APPS
        }
        for figures in rounds:
            for name in rounds.in_any_order(ports):
                user, served = _spent(ports[name])
                answer = load(Order(ports[name], seconds, CLIENTS))
                if answer.p50 < WAIT:
                    raise RuntimeError(f"half of the requests took {answer.p50} s: too short to be watched")
                user_then, served_then = _spent(ports[name])
                figures["user"][name] = (user_then - user) / (served_then - served)


def _claim(server: str) -> Claim:
    def value(of: Figures) -> float:
        watched, unwatched = (of["user"][f"{server}, {app}"] for app in APPS)
        return watched / unwatched

    return Claim(f"the user CPU of a request without the watch, {server}", value, at_most=1.05)


BENCHMARK = Benchmark(
    title="Requests whose clients are watched",
    run=run,
    measures={"user": Measure("user CPU of the server for a request", "µs", 1e6)},
    claims=tuple(map(_claim, SERVERS)),
    budget=60,
)
