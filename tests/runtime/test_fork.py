"""A forked child does not touch what is its parent's."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import os
import sqlite3
from connectionpools_fastapi import ConnectionPool, NotLeased, PoolClosed

class Connection:
    def __init__(self):
        self.owner = os.getpid()
    def __del__(self):
        if self.owner != os.getpid():
            os.write(1, b"destroyed by another process\\n")

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

cleaned = []
pool = ConnectionPool(create=Connection, clean=cleaned.append, limit=2, name="db")
pool.open_sync()
free, held = pool.acquire_sync(), pool.acquire_sync()
pool.release_sync(free)
lease = pool.lease()
lease.__enter__()
child = os.fork()
if not child:
    for attempt in (pool.acquire_sync, pool.try_acquire, lambda: pool.release_sync(held)):
        try:
            attempt()
        except (PoolClosed, NotLeased) as error:
            say(type(error).__name__, "after the fork" in str(error))
    lease.__exit__(None, None, None)
    del free, held, lease
    with pool, pool.lease() as own:
        say("own", own.owner == os.getpid())
    say("cleaned", len(cleaned))
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
lease.__exit__(None, None, None)
pool.release_sync(held)
pool.close_sync()
say("parent cleaned", len(cleaned))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_child_must_open_pool_and_spares_parents_resources() -> None:
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "PoolClosed True",
        "PoolClosed True",
        "NotLeased False",
        "own True",
        "cleaned 1",
        "parent cleaned 2",
    ]


def run(script: str, *arguments: str) -> list[str]:
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, "-W", "ignore", "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


INHERITED = """
import asyncio
import os
import sys
from connectionpools_fastapi import ConnectionPool

class Connection:
    def __init__(self):
        self.owner = os.getpid()
    def __del__(self, getpid=os.getpid, write=os.write):
        if getpid() != self.owner:
            write(1, b"destroyed by another process\\n")

async def create():
    return Connection()

async def clean(connection):
    os.write(1, f"cleaned by its owner: {os.getpid() == connection.owner}\\n".encode())

pool = ConnectionPool(create=create, clean=clean, limit=2, min_free=1, name="db")

async def fork_within_the_block():
    async with pool:
        if not (child := os.fork()):
            sys.exit(0)
        os.waitpid(child, 0)

with asyncio.Runner() as runner:
    if sys.argv[1] == "within a task":
        runner.run(fork_within_the_block())
    else:
        runner.run(pool.open())
        if child := os.fork():
            os.waitpid(child, 0)
        elif sys.argv[1] == "without closing":
            sys.exit(0)
        runner.run(pool.close())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize(
    "how",
    [
        "after closing",
        "without closing",
        pytest.param(
            "within a task",
            marks=pytest.mark.skipif(
                sys.version_info >= (3, 14), reason="Python 3.14 ends no task of a child that was forked in its loop"
            ),
        ),
    ],
)
def test_parents_resource_outlives_orderly_child(how: str) -> None:
    """A driver's destructor would say goodbye to the server, and end the parent's session."""
    assert run(INHERITED, how) == ["cleaned by its owner: True"]


IN_TRIO = """
import os
import trio
from connectionpools_fastapi import ConnectionPool, PoolClosed

pool = ConnectionPool(create=object, limit=1, name="db")

async def main():
    async with pool:
        if not (child := os.fork()):
            try:
                pool.acquire_sync()
            except PoolClosed as error:
                print("with pool:" in str(error), flush=True)
            with pool, pool.lease():
                print("own", flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        async with pool.lease():
            print("parent", flush=True)

trio.run(main)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_child_forked_in_trio_task_is_not_taken_for_one() -> None:
    assert run(IN_TRIO) == ["True", "own", "parent"]


NEVER_OPENED = """
import os
from connectionpools_fastapi import ConnectionPool, PoolClosed

never, closed = ConnectionPool(create=object, name="db"), ConnectionPool(create=object, name="cache")
with closed:
    pass
if not os.fork():
    for pool in (never, closed):
        try:
            pool.acquire_sync()
        except PoolClosed as error:
            print(pool.status, "fork" in str(error), flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_unopened_or_closed_pool_is_unchanged_in_child() -> None:
    assert run(NEVER_OPENED) == ["new False", "closed False"]
