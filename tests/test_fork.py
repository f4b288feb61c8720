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
def test_a_forked_child_is_told_to_open_the_pool_and_leaves_the_parents_resources_alone() -> None:
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
