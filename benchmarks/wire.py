"""Servers and the load on them as processes of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import IO
from urllib.request import urlopen

from benchmarks.load import Answer, Order
from benchmarks.served import ADDRESS

Load = Callable[[Order], Answer]


@contextmanager
def _child(*words: str, **environment: str) -> Iterator[tuple[IO[str], IO[str]]]:
    """Run one of our modules; yield its input, whose end ends it, and its output."""
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
            yield process.stdin, process.stdout
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def serving(app: str, database: str = "") -> Iterator[int]:
    """Serve an application, told as `module:function`; yield its port."""
    with _child("benchmarks.served", app, **{ADDRESS: database}) as (_, output):
        port = int(output.readline())
        with urlopen(f"http://127.0.0.1:{port}/", timeout=30):
            pass
        yield port


@contextmanager
def loading() -> Iterator[Load]:
    """Start the process that puts load on servers; yield the object that gives it orders."""
    with _child("benchmarks.load") as (orders, answers):

        def load(order: Order) -> Answer:
            orders.write(json.dumps(asdict(order)) + "\n")
            orders.flush()
            return Answer(**json.loads(answers.readline()))

        yield load
