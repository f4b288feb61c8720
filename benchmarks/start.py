"""How long an import takes."""

import os
import subprocess
import sys
from tempfile import TemporaryDirectory

from benchmarks.rounds import OURS, Benchmark, Claim, Measure, Rounds, ratio

IMPORT = """
import asyncio, time  # asyncio, which each server needs anyway, counts for neither
begun = time.process_time()
import fastapi
between = time.process_time()
import connectionpools_fastapi
print(between - begun, time.process_time() - between)
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
    claims=(Claim("time beside fastapi", ratio("time", OURS, "fastapi"), at_most=0.15),),
    budget=10,
)
