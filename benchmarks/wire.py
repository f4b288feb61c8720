"""Processes of our own: servers, and others that answer each line of JSON with one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.request import urlopen

from benchmarks.served import ADDRESS

Ask = Callable[..., Any]
PURE_PYTHON = {"CONNECTIONPOOLS_PURE": "1"}  # the environment in which our pool is not compiled


class Server(NamedTuple):
    """A server that runs."""

    port: int
    process: int


@contextmanager
def _child(*words: str, **environment: str) -> Iterator[tuple[IO[str], IO[str], int]]:
    """Run one of our modules; yield its input, whose end ends it, its output, and its process."""
    with subprocess.Popen(  # noqa: S603 - our own words
        [sys.executable, "-m", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        assert process.stdin is not None  # noqa: S101 - as asked for
        assert process.stdout is not None  # noqa: S101 - likewise
        try:
            yield process.stdin, process.stdout, process.pid
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def serving(
    app: str, database: str = "", *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Serve an application, told as `module:function`, with the options of `benchmarks.served`."""
    with _child("benchmarks.served", app, *options, **{ADDRESS: database}, **(environment or {})) as (
        _,
        output,
        process,
    ):
        port = int(output.readline())
        with urlopen(f"http://127.0.0.1:{port}/", timeout=30):
            pass
        yield Server(port, process)


@contextmanager
def asking(*words: str, **environment: str) -> Iterator[Ask]:
    """Start a process that answers; yield the function that asks it."""
    with _child(*words, **environment) as (orders, answers, _):

        def ask(*order: Any) -> Any:
            orders.write(json.dumps(order) + "\n")
            orders.flush()
            return json.loads(answers.readline())

        yield ask


def answer(work: Callable[..., Any]) -> None:
    """Be such a process, until the input ends."""
    for line in sys.stdin:
        print(json.dumps(work(*json.loads(line))), flush=True)


def cpu_of(*processes: int) -> float:
    """Return the seconds of CPU, the user's and the system's, that processes have had; Linux only."""
    spent = 0
    for process in processes:
        for thread in Path(f"/proc/{process}/task").iterdir():
            spent += int((thread / "schedstat").read_text().split()[0])
    return spent / 1e9
