"""What the rounds have found: as a file, as tables, and beside what was found before."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.rounds import Benchmark, Claim, Rounds, Spread

AGREE = 0.15  # two runs of the same code may differ by this

Machine = Mapping[str, str]


Measured = Mapping[str, Mapping[str, Spread]]  # by measure and contestant


@dataclass(frozen=True, slots=True)
class Result:
    """What the rounds of one benchmark have found."""

    claimed: Mapping[str, Spread]
    measured: Measured
    compared: Measured

    @classmethod
    def of(cls, rounds: Rounds) -> "Result":
        return cls(rounds.claimed(), rounds.measured(), rounds.compared())

    @classmethod
    def read(cls, said: Any) -> "Result":
        def by_measure(of: Any) -> Measured:
            return {measure: spreads(contestants) for measure, contestants in of.items()}

        def spreads(of: Any) -> Mapping[str, Spread]:
            return {name: Spread(**figures) for name, figures in of.items()}

        return cls(spreads(said["claimed"]), by_measure(said["measured"]), by_measure(said["compared"]))


Results = Mapping[str, Result]


@dataclass(frozen=True, slots=True)
class Run:
    """All that one interpreter has found."""

    machine: Machine
    results: Results


Runs = Mapping[str, Run]  # by version of Python, such as "3.11", the oldest first


def save(path: Path, runs: Runs) -> None:
    """Write everything, for `--compare` and for other programs."""
    said = {python: asdict(run) for python, run in runs.items()}
    path.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path) -> Runs:
    """Read what was saved."""
    said = json.loads(path.read_text(encoding="utf-8"))
    return {
        python: Run(run["machine"], {name: Result.read(result) for name, result in run["results"].items()})
        for python, run in said.items()
    }


def merge(runs: Runs, python: str, run: Run) -> Runs:
    """Put a run in the place of an older one on the same Python."""
    merged = {**runs, python: run}
    return {python: merged[python] for python in sorted(merged, key=lambda name: [*map(int, name.split("."))])}


def figure(value: float) -> str:
    """Write a number with three digits."""
    if abs(value) >= 100:  # noqa: PLR2004 - three digits
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 if abs(value) < 10 else 1)}f}"  # noqa: PLR2004 - likewise


def spread(of: Spread, factor: float = 1.0) -> str:
    """Write a median with its quartiles."""
    low, high = figure(of.low * factor), figure(of.high * factor)
    median = figure(of.median * factor)
    return median if low == high else f"{median} ({low} to {high})"


def targets(benchmarks: Mapping[str, Benchmark], runs: Runs) -> str:
    """Return the table of all that is claimed, in Markdown; what misses its target is bold."""
    columns = ["benchmark", "figure", "target", *(f"Python {python}" for python in runs)]
    rows = [_row(*columns), _row(*["---"] * len(columns))]
    for name, benchmark in benchmarks.items():
        for claim in benchmark.claims:
            cells = [_claimed(claim, python, run.results.get(name)) for python, run in runs.items()]
            if any(cells):
                rows.append(_row(benchmark.title, claim.what, claim.target, *cells))
    return "\n".join(rows)


def _claimed(claim: Claim, python: str, result: Result | None) -> str:
    if result is None or (found := result.claimed.get(claim.what)) is None:
        return ""
    measured = f"{spread(found)} {claim.unit}"
    return measured if claim.is_met_by(found.median, python) else f"**{measured}**"


def contestants(name: str, benchmark: Benchmark, runs: Runs) -> str:
    """Return the figures of all contestants, those best first that the last run found so, in Markdown."""
    tables = []
    results = {python: run.results[name] for python, run in runs.items() if name in run.results}
    for key, measure in benchmark.measures.items():
        order: dict[str, None] = {}
        for result in reversed(results.values()):
            found = result.measured.get(key, {})
            order |= dict.fromkeys(sorted(found, key=lambda name, of=found: of[name].median))  # type: ignore[misc] # bound
        names = list(order)
        if measure.best is max:
            names.reverse()
        beside = f", beside {benchmark.beside}" if benchmark.beside else ""
        rows = [
            _row(f"{measure.title}, {measure.unit}{beside}", *(f"Python {python}" for python in results), ""),
            _row("---", *["---:"] * len(results), "---"),
        ]
        for each in names:
            cells = [_measured(result, key, each, measure.factor) for result in results.values()]
            rows.append(_row(each, *cells, benchmark.notes.get(each, "")))
        tables.append("\n".join(rows))
    return "\n\n".join(tables)


def _measured(result: Result, measure: str, name: str, factor: float) -> str:
    if (found := result.measured.get(measure, {}).get(name)) is None:
        return ""
    compared = result.compared.get(measure, {}).get(name)
    return spread(found, factor) + (f", {figure(compared.median)} x" if compared else "")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


WRITTEN = (
    "Written by `python -m benchmarks`. Medians of all rounds, and the quartiles between which half of them are. "
    "Ratios are medians of the ratios within a round. A bold figure misses its target."
)


def document(benchmarks: Mapping[str, Benchmark], runs: Runs) -> str:
    """Return all tables as a page in Markdown."""
    parts = [
        "# Results",
        WRITTEN,
        *(f"Python {python}\n\n" + machine_of(run) for python, run in runs.items()),
        targets(benchmarks, runs),
    ]
    for name, benchmark in benchmarks.items():
        parts += [f"## {benchmark.title}", contestants(name, benchmark, runs)]
    return "\n\n".join(parts) + "\n"


def machine_of(run: Run) -> str:
    """Return on what it was measured, as a list in Markdown."""
    return "\n".join(f"- {what}: {said}" for what, said in run.machine.items())


BEGIN, END = "<!-- written by python -m benchmarks -->", "<!-- end of what is written -->"


def put_into(page: str, benchmarks: Mapping[str, Benchmark], runs: Runs) -> str:
    """Return a page with what we claim, and on what it was measured, between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    measured = "\n".join(f"- {'; '.join(run.machine.values())}." for run in runs.values())
    return f"{before}{BEGIN}\n{targets(benchmarks, runs)}\n\nMeasured on:\n\n{measured}\n{END}{after}"


@dataclass(frozen=True, slots=True)
class Loss:
    """A figure that has fallen behind."""

    what: str
    share: float
    is_beyond_doubt: bool

    def __str__(self) -> str:
        doubt = "beyond the spread" if self.is_beyond_doubt else "within the spread, or what two runs may differ by"
        return f"{self.what}: {self.share:.0%} behind, {doubt}"


def losses(benchmarks: Mapping[str, Benchmark], before: Results, now: Results) -> list[Loss]:
    """Return what is behind the results of before, the worst first.

    Beyond doubt is what is behind by more than two runs of the same code may differ, and
    whose rounds do not overlap with those of before.
    """
    found = []
    for name, result in now.items():
        for claim in benchmarks[name].claims:
            old = before[name].claimed.get(claim.what) if name in before else None
            new = result.claimed[claim.what]
            if old is None or (share := claim.loss(old.median, new.median)) <= 0:
                continue
            apart = new.low > old.high or new.high < old.low
            said = f"{claim.what}: {figure(new.median)} {claim.unit}, was {figure(old.median)}"
            found.append(Loss(f"{benchmarks[name].title}, {said}", share, apart and share > AGREE))
    return sorted(found, key=lambda loss: -loss.share)
