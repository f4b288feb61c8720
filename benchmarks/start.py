"""How long an import takes."""

import os
import subprocess
import sys
from tempfile import TemporaryDirectory

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
    # As of an installed package, modules are compiled once: in the first round, which does not count.
    with TemporaryDirectory() as compiled:
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": compiled}
        for figures in rounds:
            said = subprocess.run(  # noqa: S603 - our own words
                [sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True, env=environment
            )
            figures["time"]["fastapi"], figures["time"][OURS] = map(float, said.stdout.split())


BENCHMARK = Benchmark(
    title="import connectionpools_fastapi after import fastapi",
    run=run,
    measures={"time": Measure("time of the import", "ms", 1e3)},
    claims=(Claim("for the import", lambda of: of["time"][OURS] * 1e3, at_most=30, unit="ms"),),
    budget=20,
)
