"""Measures everything, side by side in one run, and writes tables and pictures: `python -m benchmarks`.

The results of other versions of Python stay. Nothing is written with --only, --compare or --tiny.
"""

import argparse
import platform
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import (
    drivers,
    machine,
    plot,
    postgres,
    report,
    reset,
    scale,
    start,
    tasks,
    threads,
    watch,
    web,
)
from benchmarks.rounds import FULL, QUICK, TINY, Benchmark, Effort, Rounds

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
PAGE = FOLDER.parent / "docs" / "benchmarks.md"
PYTHON = ".".join(platform.python_version_tuple()[:2])
BENCHMARKS: dict[str, Benchmark] = {
    "alone": tasks.ALONE,
    "crowd": tasks.CROWD,
    "threads": threads.BENCHMARK,
    "leased": web.LEASED,
    "watch": watch.BENCHMARK,
    "http-asyncpg": postgres.ASYNCPG_BENCHMARK,
    "http-psycopg": postgres.PSYCOPG_BENCHMARK,
    "http-sqlalchemy": postgres.SQLALCHEMY_BENCHMARK,
    "reset": reset.BENCHMARK,
    "redis": drivers.REDIS,
    "sqlite": drivers.SQLITE,
    "scale": scale.BENCHMARK,
    "scrape": web.SCRAPE,
    "import": start.BENCHMARK,
}
DRIVERS = {"asyncpg": "http-asyncpg", "psycopg": "http-psycopg", "SQLAlchemy on asyncpg": "http-sqlalchemy"}
SERVICE = "SELECT 1 on PostgreSQL through FastAPI, 32 clients, 10 connections"
# What a picture shows: its title, and the groups of its bars, each with a benchmark and one of its measures.
PICTURES = {
    "http": (SERVICE, {driver: (name, "throughput") for driver, name in DRIVERS.items()}),
    "http-p99": (SERVICE, {driver: (name, "p99") for driver, name in DRIVERS.items()}),
    "crowd": (tasks.CROWD.title, {loop: ("crowd", loop) for loop in tasks.MEASURES}),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", action="store_true", help="know less exactly, in a third of the time")
    effort.add_argument("--tiny", action="store_true", help="only see that the code runs")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="only this one; may be said several times")
    parser.add_argument(
        "--compare", action="store_true", help="say what is behind the committed results; fail if it is beyond doubt"
    )
    said = parser.parse_args()
    run = measure(said.only or list(BENCHMARKS), TINY if said.tiny else QUICK if said.quick else FULL)
    runs = report.load(RESULTS)
    print(report.targets(BENCHMARKS, {PYTHON: run}))
    if said.compare:
        behind = report.losses(BENCHMARKS, runs[PYTHON].results if PYTHON in runs else {}, run.results)
        print("\nBehind the committed results:", *map(str, behind), sep="\n- ")
        return int(any(loss.is_beyond_doubt for loss in behind))
    if said.tiny:
        with TemporaryDirectory() as folder:
            write(Path(folder), {PYTHON: run})
    elif not said.only:
        runs = report.merge(runs, PYTHON, run)
        write(FOLDER, runs)
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(report.put_into(page, BENCHMARKS, runs), encoding="utf-8")
    return 0


def measure(names: list[str], effort: Effort) -> report.Run:
    """Run benchmarks, and print what each has found."""
    results: dict[str, report.Result] = {}
    run = report.Run(machine.describe(), results)
    print(report.machine_of(run), end="\n\n")
    for name in names:
        rounds = Rounds(BENCHMARKS[name], effort)
        BENCHMARKS[name].run(rounds)
        results[name] = report.Result.of(rounds)
        print(f"## {BENCHMARKS[name].title}, {len(rounds.played)} rounds\n")
        print(report.contestants(name, BENCHMARKS[name], {PYTHON: run}), end="\n\n", flush=True)
    return run


def write(folder: Path, runs: report.Runs) -> None:
    """Write all results to a folder: for programs, as tables, and those of the newest Python as pictures."""
    report.save(folder / RESULTS.name, runs)
    (folder / "results.md").write_text(report.document(BENCHMARKS, runs), encoding="utf-8")
    (folder / "plots").mkdir(exist_ok=True)
    *_, run = runs.values()
    below = ", ".join(said for what, said in run.machine.items() if what != "libraries")
    for picture, (title, shown) in PICTURES.items():
        groups = []
        for label, (name, key) in shown.items():
            result = run.results[name]
            if key in result.measured:
                groups.append(plot.Group(label, result.measured[key], result.compared.get(key, {})))
        *_, (name, key) = shown.values()
        drawn = plot.bars(title, BENCHMARKS[name].measures[key], BENCHMARKS[name].beside, groups, below)
        (folder / "plots" / f"{picture}.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
