"""Lets all contestants live through the same faults of real servers, and prints what it has cost them, as Markdown."""

import argparse
import asyncio
import logging
import math
from collections.abc import Callable

from benchmarks.faults import postgres, redis
from benchmarks.faults.load import FULL, TINY, Outcome, Row

SCENARIOS = {**postgres.SCENARIOS, **redis.SCENARIOS}

COLUMNS: dict[str, Callable[[Outcome], object]] = {
    "callers": lambda it: it.calls,
    "errors in use": lambda it: it.errors_in_use,
    "errors later": lambda it: it.errors_later,
    "refused": lambda it: it.refused,
    "longest wait": lambda it: seconds(it.longest_wait),
    "recovered after": lambda it: seconds(it.recovered_after),
    "slots at the end": lambda it: it.slots,
    "connections": lambda it: it.connections,
    "closed within": lambda it: seconds(it.closed_within),
}


def seconds(duration: float) -> str:
    return "never" if duration == math.inf else f"{duration:.2f} s"


def table(rows: list[Row]) -> str:
    lines = [f"| | {' | '.join(COLUMNS)} |", "|" + " --- |" * (len(COLUMNS) + 1)]
    for row in rows:
        cells = (str(cell(row.outcome)) for cell in COLUMNS.values())
        lines.append(f"| {row.contestant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="only see that the code runs")
    parser.add_argument("--only", choices=list(SCENARIOS), help="one scenario")
    options = parser.parse_args()
    logging.disable()  # what all of them say of faults would drown the tables
    for name, scenario in SCENARIOS.items():
        if options.only in {None, name}:
            rows = asyncio.run(scenario(TINY if options.tiny else FULL))
            print(f"\n### {name}\n\n{table(rows)}", flush=True)


if __name__ == "__main__":
    main()
