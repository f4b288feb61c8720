"""What a thousand times as many waiters cost."""

from benchmarks.arena import opened
from benchmarks.rounds import OURS, Benchmark, Claim, Measure, Rounds
from benchmarks.tasks import QUEUE, RESOURCES, a_bare_queue, crowd, our_pool

WAITERS = {"few": 10, "many": 10_000}  # beyond those that hold a resource
OPERATIONS = 20_000


def run(rounds: Rounds) -> None:
    with opened({OURS: our_pool, QUEUE: a_bare_queue}) as arena:
        for figures in rounds:
            for name in rounds.in_any_order(arena.names):
                for measure, waiters in WAITERS.items():
                    tasks = RESOURCES + rounds.size(waiters)
                    each = max(1, rounds.size(OPERATIONS) // tasks)
                    figures[measure][name] = arena.measure(name, crowd, tasks, each)


BENCHMARK = Benchmark(
    title="10 to 10,000 waiters",
    run=run,
    measures={
        measure: Measure(f"time of a lease, {waiters:,} waiters", "µs", 1e6) for measure, waiters in WAITERS.items()
    },
    beside=QUEUE,
    claims=(Claim("cost beside 10 waiters", lambda of: of["many"][OURS] / of["few"][OURS], at_most=1.3),),
    budget=20,
)
