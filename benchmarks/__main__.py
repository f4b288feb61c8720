"""Measures everything, side by side in one run, and writes tables and plots: `python -m benchmarks`.

Nothing is written with --only, --compare or --tiny.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import (
    drivers,
    machine,
    plot,
    postgres,
    report,
    scale,
    scrape,
    start,
    tasks,
    threads,
    web,
)
from benchmarks.rounds import FULL, TINY, Benchmark, Effort, Rounds

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
PAGE = FOLDER.parent / "docs" / "benchmarks.md"
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
    "redis": drivers.REDIS,
    "sqlite": drivers.SQLITE,
    "scale": scale.SCALE,
    "memory": scale.MEMORY,
    "scrape": scrape.BENCHMARK,
    "import": start.BENCHMARK,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="only see that the code runs")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, help="only this one; may be said several times")
    parser.add_argument(
        "--compare", action="store_true", help="say what is behind the committed results; fail if it is beyond doubt"
    )
    said = parser.parse_args()
    results = measure(said.only or list(BENCHMARKS), TINY if said.tiny else FULL)
    print(report.targets(BENCHMARKS, results))
    if said.compare:
        _, before = report.load(RESULTS)
        behind = report.losses(BENCHMARKS, before, results)
        print("\nBehind the committed results:", *map(str, behind), sep="\n- ")
        return int(any(loss.is_beyond_doubt for loss in behind))
    if said.tiny:
        with TemporaryDirectory() as folder:
            write(Path(folder), results)
    elif not said.only:
        write(FOLDER, results)
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(report.put_into(page, BENCHMARKS, machine.describe(), results), encoding="utf-8")
    return 0


def measure(names: list[str], effort: Effort) -> dict[str, report.Result]:
    """Run benchmarks, and print what each has found."""
    results = {}
    for name in names:
        rounds = Rounds(BENCHMARKS[name], effort)
        BENCHMARKS[name].run(rounds)
        results[name] = report.Result.of(rounds)
        print(f"## {BENCHMARKS[name].title}, {len(rounds.played)} rounds\n")
        print(report.contestants(BENCHMARKS[name], results[name]), end="\n\n", flush=True)
    return results


def write(folder: Path, results: report.Results) -> None:
    """Write all results to a folder: for programs, as tables and as plots."""
    here = machine.describe()
    report.save(folder / RESULTS.name, here, results)
    (folder / "results.md").write_text(report.document(BENCHMARKS, here, results), encoding="utf-8")
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    below = ", ".join(here.values())
    (plots / "overview.svg").write_text(
        plot.overview(
            "Throughput beside what you would use instead",
            plot.compared(BENCHMARKS, results),
            below.removesuffix(f", {here['libraries']}"),
        ),
        encoding="utf-8",
    )
    for name, result in results.items():
        for key, found in result.measured.items():
            if len(found) > 2:  # noqa: PLR2004 - a table says two
                picture = plot.bars(BENCHMARKS[name].title, BENCHMARKS[name].measures[key], found, below)
                (plots / f"{name}-{key.replace(' ', '-')}.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
