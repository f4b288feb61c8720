"""Measures all contestants in one run, in turn, and prints ratios: absolute times say little on a shared machine."""

import argparse
import statistics
from collections.abc import Callable

from benchmarks import tasks, threads

Contest = dict[str, Callable[[int], float]]


def compete(contest: Contest, operations: int, rounds: int) -> dict[str, list[float]]:
    """Let each contestant do the same number of operations in each round; returns seconds an operation."""
    times: dict[str, list[float]] = {name: [] for name in contest}
    for _ in range(rounds):
        for name, run in contest.items():
            times[name].append(run(operations) / operations)
    return times


def table(title: str, times: dict[str, list[float]]) -> None:
    base = next(iter(times))
    print(f"\n{title}\n  {'':36}{'ratio':>8}{'spread':>16}{'median':>12}")
    for name, own in times.items():
        ratios = sorted(mine / other for mine, other in zip(own, times[base], strict=True))
        spread = f"{ratios[0]:.2f}-{ratios[-1]:.2f}"
        print(f"  {name:36}{statistics.median(ratios):8.2f}{spread:>16}{statistics.median(own) * 1e6:9.2f} us")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="only see that the code runs")
    tiny = parser.parse_args().tiny
    rounds = 2 if tiny else 9
    for title, contest, operations in (
        ("lease and return, nobody waiting", tasks.ALONE, 20_000),
        ("500 tasks on 10 resources", tasks.CROWD, 20_000),
        ("8 threads on 4 resources", threads.CROWD, 8_000),
    ):
        table(title, compete(contest, 1_000 if tiny else operations, rounds))


if __name__ == "__main__":
    main()
