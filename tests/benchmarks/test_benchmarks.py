"""The benchmarks' own arithmetic; what it costs to run them is up to `python -m benchmarks --tiny`."""

import math
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks import plot, report
from benchmarks.rounds import OURS, TINY, Benchmark, Claim, Effort, Measure, Rounds, Spread, throughput_of

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
    )
    rounds = Rounds(benchmark, Effort(rounds=(len(run_ours) - 1,) * 2, moment=0.0, share=1.0))
    benchmark.run(rounds)
    return benchmark, report.Result.of(rounds)


def test_ratio_is_the_median_of_ratios_within_rounds() -> None:
    """The first round does not count."""
    # A machine that is ten times slower in one round is so to both.
    _, result = two([99.0, 1.0, 10.0, 1.0], [1.0, 3.0, 30.0, 4.0])

    assert result.claimed["the throughput of peer"] == Spread(3.0, 3.0, 3.5, 3)
    assert result.measured["time"][OURS].median == 1.0


def test_rounds_end_once_medians_are_known_or_time_is_over() -> None:
    def rounds_of(ratios: list[float], budget: float) -> int:
        benchmark = Benchmark(
            "a race", lambda _: None, {}, (Claim("x", lambda of: of["time"][OURS], at_most=1.0),), budget
        )
        rounds = Rounds(benchmark, Effort(rounds=(3, 9), moment=0.0, share=1.0))
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
        page = report.put_into(page, {"race": benchmark}, MACHINE, {"race": found})
    assert page.splitlines() == [
        "# Title",
        report.BEGIN,
        "| what | measured | target | met |",
        "| --- | --- | --- | --- |",
        "| a race | 3.00 x the throughput of peer | ≥ 2 x | yes |",
        "",
        "Measured on 2026-01-31; CPython 3.13; one <of> two.",
        report.END,
        "The rest.",
    ]


def test_benchmarks_page_shows_the_committed_results() -> None:
    machine, results = report.load(ROOT / "benchmarks" / "results.json")
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    shown = page.split(report.BEGIN)[1].split(report.END)[0]
    assert f"Measured on {'; '.join(machine.values())}." in shown
    for result in results.values():
        for what, found in result.claimed.items():
            assert f"{report.spread(found)} " in shown, what


def test_a_contestant_works_for_a_moment_whatever_it_takes() -> None:
    benchmark = Benchmark("a race", lambda _: None, {})
    rounds = Rounds(benchmark, Effort(rounds=(1, 1), moment=0.1, share=1.0))
    seen = []
    for figures in rounds:
        seen.append((rounds.operations("fast", 10), rounds.operations("slow", 10)))
        figures["time"] = {"fast": 0.001, "slow": 1.0}

    assert seen == [(10, 10), (100, 10)]
    assert Rounds(benchmark, TINY).operations("fast", 500) == 10


def test_table_shows_measurements_and_if_targets_are_met() -> None:
    only_told = Claim("for a lap", lambda of: of["time"][OURS], unit="s")
    at_most = Claim("of the peer", lambda of: of["time"][OURS] / of["time"]["peer"], at_most=0.25)
    benchmark, result = two([1.0] * 4, [3.0] * 4, throughput_of("peer", 2.0), at_most, only_told)

    rows = report.targets({"race": benchmark}, {"race": result}).splitlines()

    assert rows[2:] == [
        "| a race | 3.00 x the throughput of peer | ≥ 2 x | yes |",
        "| a race | 0.33 x of the peer | ≤ 0.25 x | **no** |",
        "| a race | 1.00 s for a lap |  |  |",
    ]


def test_page_lists_contestants_best_first_with_their_notes() -> None:
    benchmark, result = two([2e-6] * 4, [1e-6] * 4)

    page = report.document({"race": benchmark}, MACHINE, {"race": result})

    assert page.index("| peer | 1.00 | a stub |") < page.index(f"| {OURS} | 2.00 |  |")
    assert "- CPU: one <of> two" in page


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    _, result = two([1.0, 1.0, 1.1, 1.2], [3.0] * 4)

    report.save(tmp_path / "results.json", MACHINE, {"race": result})

    assert report.load(tmp_path / "results.json") == (MACHINE, {"race": result})


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


def test_plot_has_best_on_top_and_cuts_a_bar_too_long() -> None:
    """Our bar is highlighted; a bar is cut where it would hide the others."""
    found = {
        "slow": Spread(100.0, 90.0, 110.0, 3),
        OURS: Spread(1.0, 0.9, 1.1, 3),
        "a & b": Spread(4.0, 3.0, 5.0, 3),
    }

    drawn = ET.fromstring(plot.bars("a <race>", Measure("time", "µs"), found, "one <of> two"))  # noqa: S314 - our own

    widths = [float(bar.attrib["width"]) for bar in drawn.iter(f"{SVG}rect")]
    assert [bar.get("class") for bar in drawn.iter(f"{SVG}rect")] == ["ours", None, None]
    assert widths[1] == pytest.approx(4 * widths[0], rel=0.01)
    assert widths[2] == pytest.approx(plot.LONGEST * widths[0], rel=0.01)
    assert [line.get("class") for line in drawn.iter(f"{SVG}path")].count("cut") == 1
    words = ["".join(text.itertext()) for text in drawn.iter(f"{SVG}text")]
    assert words == [
        *("a <race>", "time in µs, less is better"),
        *(OURS, "1.00", "a & b", "4.00", "slow", "100", "one <of> two"),
    ]


def test_plot_with_best_max_has_the_most_on_top() -> None:
    found = {"less": Spread(1.0, 1.0, 1.0, 3), OURS: Spread(2.0, 2.0, 2.0, 3)}

    drawn = ET.fromstring(plot.bars("a race", Measure("laps", "1/s", best=max), found, ""))  # noqa: S314 - our own

    assert [bar.get("class") for bar in drawn.iter(f"{SVG}rect")] == ["ours", None]


def test_overview_marks_what_is_behind_its_peer() -> None:
    rows = [
        plot.Compared("a & b", "a race", Spread(2.0, 1.5, 3.0, 3)),
        plot.Compared("faster", "a race", Spread(0.6, 0.5, 0.7, 3)),
        plot.Compared("far away", "a race", Spread(20.0, 10.0, 30.0, 3)),
    ]

    drawn = ET.fromstring(plot.overview("Beside <others>", {"all": rows}, "one <of> two"))  # noqa: S314 - our own

    points = list(drawn.iter(f"{SVG}circle"))
    places = [float(point.attrib["cx"]) for point in points]
    assert [point.get("class") for point in points] == [None, "behind", None]
    assert places[1] < places[0] < places[2] == plot.NAMES + plot.AXIS
    words = ["".join(text.itertext()) for text in drawn.iter(f"{SVG}text")]
    assert {"Beside <others>", "all", "a & b", "2.00 x", "0.60 x", "20.0 x", "one <of> two"} <= set(words)


def test_curves_end_where_their_points_do() -> None:
    lines = {"ours": [(0.0, 0.0), (2.0, 1.0)], "<other>": [(0.0, 0.0), (2.0, 0.5)]}
    drawn = ET.fromstring(plot.curves("shares", "load", lines, "one <of> two"))  # noqa: S314 - our own
    paths = [element.get("d") or "" for element in drawn.iter() if (element.get("class") or "").startswith("curve")]
    ends = [tuple(map(float, path.split()[-2:])) for path in paths]
    assert ends[0][0] == ends[1][0] == 620.0
    assert ends[1][1] - ends[0][1] == 120.0
    assert {"ours", "<other>", "one <of> two", "2"} <= {element.text for element in drawn.iter()}


def test_overview_has_all_that_is_compared_with_a_peer() -> None:
    _, results = report.load(ROOT / "benchmarks" / "results.json")
    benchmark, _ = two([1.0, 1.0], [1.0, 1.0])
    groups = plot.compared(dict.fromkeys(results, benchmark), results)
    peers = [each.peer for group in groups.values() for each in group]
    assert len(peers) == 12
    assert {"asyncpg.Pool", "psycopg_pool", "asyncio.Queue", "redis-py's BlockingConnectionPool"} <= set(peers)
