"""Measures everything, side by side: `python -m benchmarks`."""

import argparse
import sys

from benchmarks import postgres, tasks, threads, web
from benchmarks.rounds import FULL, TINY, Benchmark, Rounds

BENCHMARKS: dict[str, Benchmark] = {
    "alone": tasks.ALONE,
    "crowd": tasks.CROWD,
    "threads": threads.BENCHMARK,
    "leased": web.LEASED,
    "idle": web.IDLE,
    "release": web.RELEASE,
    "http-asyncpg": postgres.ASYNCPG_BENCHMARK,
    "http-psycopg": postgres.PSYCOPG_BENCHMARK,
    "http-sqlalchemy": postgres.SQLALCHEMY_BENCHMARK,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="only see that the code runs")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="only this one; may be said several times")
    said = parser.parse_args()
    for name in said.only or BENCHMARKS:
        benchmark = BENCHMARKS[name]
        rounds = Rounds(benchmark, TINY if said.tiny else FULL)
        benchmark.run(rounds)
        print("\n", benchmark.title, len(rounds.played))
        for measure, by_name in rounds.measured().items():
            unit = benchmark.measures[measure]
            for who, s in sorted(by_name.items(), key=lambda item: item[1].median):
                print(
                    f"  {measure:10} {who:40} {s.median * unit.factor:10.2f} "
                    f"{s.low * unit.factor:8.2f}-{s.high * unit.factor:.2f} {unit.unit}"
                )
        for claim in benchmark.claims:
            s = rounds.claimed()[claim.what]
            print(f"  {claim.what:50} {s.median:6.2f} {s.low:6.2f}-{s.high:.2f}   {claim.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
