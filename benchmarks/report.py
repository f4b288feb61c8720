"""What the rounds have found: as a file, as tables, and beside what was found before."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.rounds import Benchmark, Rounds, Spread

AGREE = 0.15  # two runs of the same code may differ by this

Machine = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Result:
    """What the rounds of one benchmark have found."""

    claimed: Mapping[str, Spread]
    measured: Mapping[str, Mapping[str, Spread]]

    @classmethod
    def of(cls, rounds: Rounds) -> "Result":
        return cls(rounds.claimed(), rounds.measured())

    @classmethod
    def read(cls, said: Any) -> "Result":
        return cls(
            {what: Spread(**figures) for what, figures in said["claimed"].items()},
            {
                measure: {name: Spread(**figures) for name, figures in contestants.items()}
                for measure, contestants in said["measured"].items()
            },
        )


Results = Mapping[str, Result]


def save(path: Path, machine: Machine, results: Results) -> None:
    """Write everything, for `--compare` and for other programs."""
    said = {"machine": dict(machine), "results": {name: asdict(result) for name, result in results.items()}}
    path.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path) -> tuple[Machine, Results]:
    """Read what was saved."""
    said = json.loads(path.read_text(encoding="utf-8"))
    return said["machine"], {name: Result.read(result) for name, result in said["results"].items()}


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


def targets(benchmarks: Mapping[str, Benchmark], results: Results) -> str:
    """Return the table of all that is claimed, in Markdown."""
    rows = ["| what | measured | target | met |", "| --- | --- | --- | --- |"]
    for name, result in results.items():
        benchmark = benchmarks[name]
        for claim in benchmark.claims:
            found = result.claimed[claim.what]
            met = ("yes" if claim.is_met_by(found.median) else "**no**") if claim.target else ""
            measured = f"{spread(found)} {claim.unit} {claim.what}"
            rows.append(f"| {benchmark.title} | {measured} | {claim.target} | {met} |")
    return "\n".join(rows)


def contestants(benchmark: Benchmark, result: Result) -> str:
    """Return the figures of all contestants, best first, in Markdown."""
    tables = []
    for key, measure in benchmark.measures.items():
        found = result.measured[key]
        order = sorted(found, key=lambda name, found=found: found[name].median)  # type: ignore[misc] # bound
        if measure.best is max:
            order.reverse()
        rows = [f"| {measure.title} | {measure.unit} | |", "| --- | ---: | --- |"]
        rows += [
            f"| {name} | {spread(found[name], measure.factor)} | {benchmark.notes.get(name, '')} |" for name in order
        ]
        tables.append("\n".join(rows))
    return "\n\n".join(tables)


def document(benchmarks: Mapping[str, Benchmark], machine: Machine, results: Results) -> str:
    """Return all tables as a page in Markdown."""
    parts = [
        "# Results",
        "Written by `python -m benchmarks`. Medians of all rounds, and the quartiles between which half of them are.",
        "\n".join(f"- {what}: {said}" for what, said in machine.items()),
        targets(benchmarks, results),
    ]
    for name, result in results.items():
        parts += [f"## {benchmarks[name].title}", contestants(benchmarks[name], result)]
    return "\n\n".join(parts) + "\n"


BEGIN, END = "<!-- written by python -m benchmarks -->", "<!-- end of what is written -->"


def put_into(page: str, benchmarks: Mapping[str, Benchmark], machine: Machine, results: Results) -> str:
    """Return a page with what we claim, and on what it was measured, between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    measured = "; ".join(machine.values())
    return f"{before}{BEGIN}\n{targets(benchmarks, results)}\n\nMeasured on {measured}.\n{END}{after}"


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
            title = (
                f"{benchmarks[name].title}: {figure(new.median)} {claim.unit} {claim.what}, was {figure(old.median)}"
            )
            found.append(Loss(title, share, apart and share > AGREE))
    return sorted(found, key=lambda loss: -loss.share)
