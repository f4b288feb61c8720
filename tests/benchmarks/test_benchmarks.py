"""The benchmarks' own arithmetic; what it costs to run them is up to `python -m benchmarks --tiny`."""

import asyncio
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks import arena, plot, report, tasks
from benchmarks.apps.common import CONNECTIONS, limit
from benchmarks.asgi import running
from benchmarks.rounds import OURS, PURE, TINY, Benchmark, Claim, Effort, Measure, Rounds, Spread, throughput_of
from benchmarks.wire import cpu_of
from connectionpools_fastapi import ResourceManager

MACHINE = {"date": "2026-01-31", "Python": "CPython 3.13", "CPU": "one <of> two"}
ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def two(run_ours: list[float], run_theirs: list[float], *claims: Claim) -> tuple[Benchmark, report.Result]:
    """Let us compete with one peer, whose times are given round by round."""
    times = iter(zip(run_ours, run_theirs, strict=True))

    def run(rounds: Rounds) -> None:
        for figures in rounds:
            ours, theirs = next(times)
            figures["time"] = {OURS: ours, "peer": theirs}

    benchmark = Benchmark(
        title="a race",
        run=run,
        measures={"time": Measure("time of a lap", "µs", 1e6)},
        claims=claims or (throughput_of("peer", 2.0),),
        notes={"peer": "a stub"},
        beside="peer",
    )
    rounds = Rounds(benchmark, Effort(rounds=(len(run_ours) - 1,) * 2, moment=0.0))
    benchmark.run(rounds)
    return benchmark, report.Result.of(rounds)


def runs_of(*found: report.Result, pythons: tuple[str, ...] = ("3.11", "3.13")) -> report.Runs:
    """Tell what each interpreter has found in one benchmark."""
    return {python: report.Run(MACHINE, {"race": result}) for python, result in zip(pythons, found, strict=False)}


def test_ratio_is_the_median_of_ratios_within_rounds() -> None:
    """The first round does not count."""
    # A machine that is ten times slower in one round is so to both.
    _, result = two([99.0, 1.0, 10.0, 1.0], [1.0, 3.0, 30.0, 4.0])

    assert result.claimed["throughput beside peer"] == Spread(3.0, 3.0, 3.5, 3)
    assert result.compared["time"][OURS].median == pytest.approx(1 / 3)
    assert result.measured["time"][OURS].median == 1.0


def test_rounds_end_once_medians_are_known_or_time_is_over() -> None:
    def rounds_of(ratios: list[float], budget: float) -> int:
        benchmark = Benchmark(
            "a race", lambda _: None, {}, (Claim("x", lambda of: of["time"][OURS], at_most=1.0),), budget=budget
        )
        rounds = Rounds(benchmark, Effort(rounds=(3, 9), moment=0.0))
        for figures in rounds:
            figures["time"][OURS] = ratios[len(rounds.played) % len(ratios)]
        return len(rounds.played)

    assert rounds_of([1.0], budget=math.inf) == 7
    assert rounds_of([1.0, 2.0], budget=math.inf) == 9
    assert rounds_of([1.0, 2.0], budget=0.0) == 3


def test_page_shows_the_last_measurement_and_keeps_the_rest() -> None:
    benchmark, result = two([1.0, 1.0, 1.0], [3.0, 3.0, 3.0])
    _, worse = two([1.0, 1.0, 1.0], [1.5, 1.5, 1.5])
    page = f"# Title\n{report.BEGIN}\nold\n{report.END}\nThe rest.\n"
    for found in (worse, result):
        page = report.put_into(page, {"race": benchmark}, runs_of(found))
    assert page.splitlines() == [
        "# Title",
        report.BEGIN,
        "| benchmark | figure | target | Python 3.11 |",
        "| --- | --- | --- | --- |",
        "| a race | throughput beside peer | ≥ 2 x | 3.00 x |",
        "",
        "Measured on:",
        "",
        "- 2026-01-31; CPython 3.13; one <of> two.",
        report.END,
        "The rest.",
    ]


def test_benchmarks_page_shows_the_committed_results() -> None:
    runs = report.load(ROOT / "benchmarks" / "results.json")
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    shown = page.split(report.BEGIN)[1].split(report.END)[0]
    for run in runs.values():
        assert f"- {'; '.join(run.machine.values())}." in shown
        for result in run.results.values():
            for what, found in result.claimed.items():
                assert f"{report.spread(found)} " in shown, what


def test_a_contestant_works_for_a_moment_whatever_it_takes() -> None:
    benchmark = Benchmark("a race", lambda _: None, {})
    rounds = Rounds(benchmark, Effort(rounds=(1, 1), moment=0.1))
    seen = []
    for figures in rounds:
        seen.append((rounds.operations("fast", 10), rounds.operations("slow", 10)))
        figures["time"] = {"fast": 0.001, "slow": 1.0}

    assert seen == [(10, 10), (100, 10)]
    assert Rounds(benchmark, TINY).operations("fast", 500) == 10


def test_table_shows_measurements_and_if_targets_are_met() -> None:
    only_told = Claim("time of a lap", lambda of: of["time"][OURS], unit="s")
    at_most = Claim("time beside the peer", lambda of: of["time"][OURS] / of["time"]["peer"], at_most=0.25)
    benchmark, result = two([1.0] * 4, [3.0] * 4, throughput_of("peer", 2.0), at_most, only_told)

    rows = report.targets({"race": benchmark}, runs_of(result)).splitlines()

    assert rows[2:] == [
        "| a race | throughput beside peer | ≥ 2 x | 3.00 x |",
        "| a race | time beside the peer | ≤ 0.25 x | **0.33 x** |",
        "| a race | time of a lap |  | 1.00 s |",
    ]


def test_table_has_each_python_with_its_own_target() -> None:
    claim = throughput_of("peer", 4.0, at_least_on={"3.13": 3.0})
    benchmark, result = two([1.0] * 4, [3.5] * 4, claim)

    rows = report.targets({"race": benchmark}, runs_of(result, result)).splitlines()

    assert rows[0] == "| benchmark | figure | target | Python 3.11 | Python 3.13 |"
    assert rows[2:] == ["| a race | throughput beside peer | ≥ 4 x, 3 on 3.13 | **3.50 x** | 3.50 x |"]


def test_page_lists_contestants_best_first_with_their_notes() -> None:
    benchmark, result = two([2e-6] * 4, [1e-6] * 4)
    unknown = report.Result({}, {}, {})

    page = report.document({"race": benchmark}, runs_of(result, unknown))

    ours = f"| {OURS} | 2.00, 2.00 x |  |  |"
    assert page.index("| peer | 1.00, 1.00 x |  | a stub |") < page.index(ours)
    assert "- CPU: one <of> two" in page


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    _, result = two([1.0, 1.0, 1.1, 1.2], [3.0] * 4)

    report.save(tmp_path / "results.json", runs_of(result, result))

    assert report.load(tmp_path / "results.json") == runs_of(result, result)


def test_run_replaces_the_one_of_its_python() -> None:
    _, before = two([1.0] * 4, [3.0] * 4)
    _, now = two([1.0] * 4, [4.0] * 4)
    runs = runs_of(before, before, pythons=("3.9", "3.13"))

    runs = report.merge(report.merge(runs, "3.11", runs["3.9"]), "3.9", report.Run(MACHINE, {"race": now}))

    assert runs == runs_of(now, before, before, pythons=("3.9", "3.11", "3.13"))
    assert list(runs) == ["3.9", "3.11", "3.13"]


@pytest.mark.parametrize(
    ("theirs_before", "theirs_now", "share", "is_beyond_doubt"),
    [
        ([3.0, 3.1, 3.2], [2.0, 2.1, 2.2], 3.1 / 2.1 - 1, True),
        ([3.0, 3.1, 3.2], [2.9, 2.95, 2.9], 3.1 / 2.9 - 1, False),  # as two runs may differ
        ([1.0, 3.1, 6.0], [1.5, 2.1, 4.0], 3.1 / 2.1 - 1, False),  # the rounds overlap
    ],
)
def test_losses_are_reported_and_sure_if_the_rounds_agree(
    theirs_before: list[float], theirs_now: list[float], share: float, *, is_beyond_doubt: bool
) -> None:
    benchmark, before = two([1.0] * 4, [1.0, *theirs_before])
    _, now = two([1.0] * 4, [1.0, *theirs_now])

    (loss,) = report.losses({"race": benchmark}, {"race": before}, {"race": now})

    assert loss.share == pytest.approx(share)
    assert loss.is_beyond_doubt is is_beyond_doubt
    assert "a race" in str(loss)
    assert report.losses({"race": benchmark}, {"race": now}, {"race": before}) == []
    assert report.losses({"race": benchmark}, {}, {"race": now}) == []


def test_figure_that_should_be_small_is_a_loss_if_it_grows() -> None:
    claim = Claim("for a lap", lambda of: of["time"][OURS], at_most=1.0, unit="s")
    benchmark, before = two([1.0] * 4, [1.0] * 4, claim)
    _, now = two([2.0] * 4, [1.0] * 4, claim)

    assert [loss.share for loss in report.losses({"race": benchmark}, {"race": before}, {"race": now})] == [1.0]
    assert report.losses({"race": benchmark}, {"race": now}, {"race": before}) == []


def test_growth_from_zero_is_a_loss_beyond_doubt() -> None:
    claim = Claim("started", lambda of: of["time"][OURS], at_most=0.0, unit="tasks")
    benchmark, before = two([0.0] * 4, [1.0] * 4, claim)
    _, now = two([1.0] * 4, [1.0] * 4, claim)

    (loss,) = report.losses({"race": benchmark}, {"race": before}, {"race": now})

    assert loss.is_beyond_doubt
    assert report.losses({"race": benchmark}, {"race": before}, {"race": before}) == []


def drawn(best: Callable[[Iterable[float]], float], *groups: plot.Group) -> ET.Element:
    """Draw bars, and read the picture."""
    return ET.fromstring(plot.bars("a <race>", Measure("time", "µs", best=best), "peer", groups, "one <of> two"))  # noqa: S314 - our own


def test_picture_has_groups_and_our_bar_highlighted() -> None:
    one = plot.Group("a & b", {"slow": Spread(4.0, 3.0, 5.0, 3), OURS: Spread(1.0, 0.9, 1.1, 3)}, {})
    other = plot.Group("next", {OURS: Spread(2.0, 2.0, 2.0, 3)}, {OURS: Spread(0.5, 0.5, 0.5, 3)})

    picture = drawn(min, one, other)

    bars = list(picture.iter(f"{SVG}rect"))
    assert [bar.get("class") for bar in bars] == ["ours", None, "ours"]
    assert [float(bar.attrib["width"]) / plot.BARS for bar in bars] == [0.25, 1.0, 0.5]
    tops = [float(bar.attrib["y"]) for bar in bars]
    assert tops == sorted(tops)
    words = ["".join(text.itertext()) for text in picture.iter(f"{SVG}text")]
    assert words == [
        *("a <race>", "time in µs, less is better; in brackets the ratio to peer"),
        *("a & b", OURS, "1.00", "slow", "4.00", "next", OURS, "2.00 (0.50)", "one <of> two"),
    ]


def test_picture_has_the_most_on_top_where_more_is_better() -> None:
    group = plot.Group("laps", {"less": Spread(1.0, 1.0, 1.0, 3), OURS: Spread(2.0, 2.0, 2.0, 3)}, {})

    assert [bar.get("class") for bar in drawn(max, group).iter(f"{SVG}rect")] == ["ours", None]


def test_curves_end_where_their_points_do() -> None:
    lines = {"ours": [(0.0, 0.0), (2.0, 1.0)], "<other>": [(0.0, 0.0), (2.0, 0.5)]}
    drawn = ET.fromstring(plot.curves("shares", "load", lines, "one <of> two"))  # noqa: S314 - our own
    paths = [element.get("d") or "" for element in drawn.iter() if (element.get("class") or "").startswith("curve")]
    ends = [tuple(map(float, path.split()[-2:])) for path in paths]
    assert ends[0][0] == ends[1][0] == 620.0
    assert ends[1][1] - ends[0][1] == 120.0
    assert {"ours", "<other>", "one <of> two", "2"} <= {element.text for element in drawn.iter()}


def test_pure_python_takes_part_beside_a_compiled_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "IS_COMPILED", True)
    with arena.opened({OURS: tasks.our_pool, tasks.QUEUE: tasks.a_bare_queue}, arena.LOOPS) as contestants:
        assert contestants.names == [OURS, tasks.QUEUE, PURE]
        for name in contestants.names:
            for loop in arena.LOOPS:
                assert contestants.measure(name, tasks.crowd, 20, 2, loop=loop) > 0


def test_cpu_of_a_process_grows_as_it_works() -> None:
    before = cpu_of(os.getpid())
    began = time.process_time()
    while time.process_time() < began + 0.05:
        pass
    assert 0.04 < cpu_of(os.getpid()) - before < 5


def test_limit_uses_all_its_connections_and_no_more() -> None:
    used: list[object] = []
    peaks: list[int] = []

    class Manager(ResourceManager[object]):
        async def create(self) -> object:
            return object()

        async def change(self, resource: object) -> None:
            used.remove(resource)

        async def clean(self, resource: object) -> None: ...

    async def ask(connection: object) -> None:
        used.append(connection)
        peaks.append(len(used))
        await asyncio.sleep(0)

    async def run() -> list[int]:
        async with running(limit(Manager(), ask)) as caller, asyncio.timeout(10):
            return await asyncio.gather(*[caller.ask() for _ in range(3 * CONNECTIONS)])

    assert asyncio.run(run()) == [200] * 3 * CONNECTIONS
    assert max(peaks) == CONNECTIONS
    assert used == []
