"""How long an import takes."""

import subprocess
import sys

from benchmarks.rounds import OURS, Benchmark, Claim, Measure, Rounds

IMPORT = """
import time
begun = time.perf_counter()
import fastapi
between = time.perf_counter()
import connectionpools_fastapi
print(between - begun, time.perf_counter() - between)
"""


def run(rounds: Rounds) -> None:
    for figures in rounds:
        said = subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True)  # noqa: S603 - our own words
        figures["time"]["fastapi"], figures["time"][OURS] = map(float, said.stdout.split())


BENCHMARK = Benchmark(
    title="import connectionpools_fastapi after import fastapi",
    run=run,
    measures={"time": Measure("time of the import", "ms", 1e3)},
    claims=(Claim("for the import", lambda of: of["time"][OURS] * 1e3, at_most=30, unit="ms"),),
    budget=20,
)
