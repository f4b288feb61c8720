"""Several processes: each has pools of its own, none touches what another one made, and each answers for all."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from tests.processes import Process

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

PATIENCE = 30.0  # seconds, for whatever is awaited
LIMIT = 2

# What each process makes is named after it, and the books say which process did what with it.
APP = """
import asyncio
import os
from itertools import count
from typing import Annotated

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from connectionpools_fastapi import ConnectionPool, Leased, install_pools

MASTER = os.environ["MASTER"]
held = ()


class Thing:
    numbers = count()

    def __init__(self):
        self.name = f"{os.getpid()}-{next(self.numbers)}"
        self.note("created")

    def note(self, what, *, os=os):
        file = os.open("books", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{os.getpid()} {what} {self.name}\\n".encode())
        os.close(file)

    def clean(self):
        self.note("cleaned")

    def __del__(self):
        self.note("destroyed")


async def create():
    return Thing()


async def clean(thing):
    thing.clean()


options = {"limit": 2, "min_free": 1, "max_waiting": 0}
db = ConnectionPool(create=Thing, clean=Thing.clean, name="db", **options)
cache = ConnectionPool(create=create, clean=clean, name="cache", **options)


async def migrate():
    async with cache, cache.lease() as thing:
        thing.note("used")


if MASTER == "uses its pools, and closes them":
    with db, db.lease() as thing:
        thing.note("used")
    asyncio.run(migrate())

if MASTER == "leaves its pools open":
    loop = asyncio.new_event_loop()
    db.open_sync()
    loop.run_until_complete(cache.open())
    held = db.acquire_sync(), loop.run_until_complete(cache.acquire())


def close_in_master():
    for thing in held:
        thing.note("used")
    db.release_sync(held[0])
    db.close_sync()
    loop.run_until_complete(cache.release(held[1]))
    loop.run_until_complete(cache.close())
    loop.close()


app = FastAPI()
install_pools(app, db, cache)


@app.middleware("http")
async def say_which_process(request, call_next):
    response = await call_next(request)
    response.headers.update({"process": str(os.getpid()), "parent": str(os.getppid())})
    return response


@app.get("/use")
async def use(thing: Annotated[Thing, Leased(db)], other: Annotated[Thing, Leased(cache)]):
    for each in (thing, other):
        each.note("used")
    return [thing.name, other.name]


@app.get("/hold")
async def hold(request: Request, thing: Annotated[Thing, Leased(db)], other: Annotated[Thing, Leased(cache)]):
    async def until_the_client_has_gone():
        yield "held"
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return StreamingResponse(until_the_client_has_gone())
"""

UVICORN = ("uvicorn", "--workers", "2", "--host", "127.0.0.1", "--port", "0", "app:app")
# At its end a master closes what it left open.
GUNICORN_CONF = """
def on_exit(server):
    import app

    if app.held:
        app.close_in_master()
"""

GUNICORN = ("gunicorn", "--preload", "-k", "uvicorn_worker.UvicornWorker", "-w", "2", "-b", "127.0.0.1:0", "app:app")
SERVERS = {
    "uvicorn": UVICORN,
    "gunicorn, preloaded, whose master uses its pools, and closes them": GUNICORN,
    "gunicorn, preloaded, whose master leaves its pools open": GUNICORN,
}


class Server(Process):
    """A master with two workers."""

    def __init__(self, directory: Path, command: tuple[str, ...], master: str) -> None:
        (directory / "app.py").write_text(APP)
        (directory / "gunicorn.conf.py").write_text(GUNICORN_CONF)
        super().__init__(directory, command, {"MASTER": master})

    def wait_for_address(self) -> str:
        """Wait until both workers are ready; returns where."""
        self.wait_until(lambda: self._started() == 2 or "startup failed" in self.log)
        found = re.search(r"http://127\.0\.0\.1:\d+", self.log)
        if found is None or self._started() < 2:
            pytest.fail(f"it did not start: {self.log}")
        return found[0]

    def _started(self) -> int:
        return self.log.count("Application startup complete")


def tries() -> Iterator[None]:
    """Go on until PATIENCE is at its end."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        yield
    pytest.fail("it did not happen in time")


Counts = dict[str, Any]


@dataclass
class Life:
    """What was seen of a server from its start to its end."""

    master: int
    parents: set[int] = field(default_factory=set)
    used: defaultdict[int, set[str]] = field(
        default_factory=lambda: defaultdict(set)
    )  # things, by the worker that used them
    held: Counter[int] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    seen_held: Counter[int] = field(default_factory=Counter)  # as of the next two
    health: list[Counts] = field(default_factory=list)  # the answers of both workers
    stats: list[Counts] = field(default_factory=list)
    killed: int = 0
    new: int = 0
    new_stats: list[Counts] = field(default_factory=list)
    code: int | None = None
    log: str = ""
    books: list[tuple[int, str, str]] = field(default_factory=list)  # the worker, its act and the thing

    @property
    def workers(self) -> set[int]:
        return set(self.held)

    def number_of(self, worker: int) -> str:
        """Return a worker's number: it held something else than the other one."""
        held = self.seen_held[worker]
        (number,) = (number for number, stats in self.stats[0]["workers"].items() if held_in(stats) == [held, held])
        return str(number)

    def things(self, what: str) -> list[str]:
        return [thing for _, done, thing in self.books if done == what]


def held_in(stats: Counts) -> list[int]:
    """Return how many things of each pool a worker had leased out."""
    return [each["acquires"] - each["releases"] for each in stats["pools"]]


def maker(thing: str) -> int:
    return int(thing.partition("-")[0])


class Visitor:
    """Asks a server, each time on a new connection, and so now one worker and now the other."""

    def __init__(self, base: str, life: Life) -> None:
        self._life = life
        self._client = httpx.Client(
            base_url=base, timeout=PATIENCE, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(self, path: str) -> tuple[int, Any]:
        """Return the worker that answers, and its answer; None where all is still held."""
        response = self._client.get(path, headers={"accept": "application/json"})
        assert response.status_code in (200, 503), response.text
        self._life.parents.add(int(response.headers["parent"]))
        return int(response.headers["process"]), response.json() if response.status_code == 200 else None

    def ask_both(self, path: str) -> dict[int, Any]:
        """Ask until both workers have answered."""
        answers: dict[int, Any] = {}
        for _ in tries():
            process, answer = self.ask(path)
            answers[process] = answer
            if len(answers) == 2:
                break
        return answers

    def use_until_new(self) -> int:
        """Use things until a worker answers that never did before; returns which."""
        for _ in tries():
            with suppress(httpx.TransportError):  # the connection of one that was just killed
                process, things = self.ask("/use")
                is_new = process not in self._life.used
                if things is not None:
                    self._life.used[process].update(things)
                    if is_new:
                        return process
        raise AssertionError

    def hold(self, responses: ExitStack) -> None:
        """Hold one more of each worker's things, or be refused."""
        response = responses.enter_context(self._client.stream("GET", "/hold"))
        process = int(response.headers["process"])
        (self._life.held if response.status_code == 200 else self._life.refused)[process] += 1

    def hold_all(self) -> None:
        """Hold things until both workers refuse, and look at the numbers once they differ."""
        life = self._life
        with ExitStack() as responses:
            for _ in tries():
                if not life.health and sorted(life.held.values()) == [1, 2]:
                    life.seen_held = life.held.copy()
                    life.health = [*self.ask_both("/pool/health").values()]
                    life.stats = [*self.ask_both("/pool/metrics").values()]
                if len(life.refused) == 2:
                    break
                self.hold(responses)


def live(server: Server) -> Life:
    """Ask both workers, fill them, kill one, ask the new one, and end it all."""
    life = Life(server.process.pid)
    with Visitor(server.wait_for_address(), life) as visitor:
        workers = [visitor.use_until_new() for _ in range(2)]
        visitor.hold_all()
        assert life.parents == {life.master}, "only what was started here may be killed"
        life.killed = workers[0]
        os.kill(life.killed, signal.SIGKILL)
        life.new = visitor.use_until_new()
        life.new_stats = visitor.ask("/pool/metrics")[1]["workers"][life.number_of(life.killed)]["pools"]
    server.process.send_signal(signal.SIGTERM)
    life.code, life.log = server.wait(), server.log
    return life


@pytest.fixture(scope="module", params=SERVERS)
def life(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Life:
    directory = tmp_path_factory.mktemp("server")
    master = request.param.partition("whose master ")[2]
    with Server(directory, SERVERS[request.param], master) as server:
        life = live(server)
    for line in (directory / "books").read_text().splitlines():
        process, what, thing = line.split()
        life.books.append((int(process), what, thing))
    return life


def test_each_worker_has_resources_of_its_own(life: Life) -> None:
    assert len(life.used) == 3  # two, and the one that replaced the killed one
    assert life.master not in life.used
    assert {process: {maker(thing) for thing in things} for process, things in life.used.items()} == {
        process: {process} for process in life.used
    }


def test_no_process_touches_what_another_one_made(life: Life) -> None:
    assert [entry for entry in life.books if entry[0] != maker(entry[2])] == []


def test_the_limit_counts_per_process(life: Life) -> None:
    assert len(life.held) == 2
    assert set(life.held.values()) == {LIMIT}
    assert set(life.refused) == life.workers


def test_each_worker_answers_for_all(life: Life) -> None:
    assert sorted(life.seen_held.values()) == [1, 2]
    for health in life.health:
        assert health["workers"].keys() == {"0", "1"}
        assert [health["pools"][pool]["taken"] for pool in ("db", "cache")] == [3, 3]
        assert [health["pools"][pool]["limit"] for pool in ("db", "cache")] == [2 * LIMIT, 2 * LIMIT]
    for stats in life.stats:
        assert sorted(held_in(worker) for worker in stats["workers"].values()) == [[1, 1], [2, 2]]


def test_killed_worker_is_replaced_by_a_fresh_one(life: Life) -> None:
    assert life.new not in life.workers
    created = [maker(thing) for thing in life.things("created")].count(life.new)
    assert sum(stats["creates"] for stats in life.new_stats) <= created <= 2 * LIMIT
    for stats in life.new_stats:
        assert stats["status"] == "open"
        assert stats["acquires"] == stats["releases"] >= 1
        assert stats["cleans"] == 0


def test_sigterm_ends_all_processes_and_each_cleans_its_own(life: Life) -> None:
    assert life.code == 0
    assert "Traceback" not in life.log, life.log
    created = [thing for thing in life.things("created") if maker(thing) != life.killed]
    assert sorted(life.things("cleaned")) == sorted(created)
    assert {maker(thing) for thing in created} >= {*life.workers, life.new} - {life.killed}


# --- forks without a server --------------------------------------------------------------------------

# What a child does: it asks its parent's pool, then opens it for itself.
FORK = """
import asyncio
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor

from connectionpools_fastapi import ConnectionPool, PoolClosed, PoolTimeout

LONGEST_RUN = 20


class Thing:
    def __init__(self):
        self.maker = os.getpid()

    def __del__(self, *, getpid=os.getpid, write=os.write):
        if getpid() != self.maker:
            write(1, b"destroyed by another process\\n")


def told(call):
    try:
        call()
    except PoolClosed as error:
        return str(error)
    return "nothing"


def use():
    with pool.lease() as thing:
        return thing.maker == os.getpid()


def use_as_child(pool):
    pool.drain_sync()  # there is nothing to wait for
    pool.close_sync()
    assert "Open it in each process, after the fork" in told(pool.acquire_sync), told(pool.acquire_sync)
    assert (pool.free, pool.taken, pool.creating, pool.waiting) == (0, 0, 0, 0)
    with pool, pool.lease() as thing:
        assert thing.maker == os.getpid()
        assert pool.stats().creates == 1


def fork(child, *args):
    process = os.fork()
    if not process:
        signal.alarm(LONGEST_RUN)
        status = 1
        try:
            child(*args)
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(status)
    assert os.waitpid(process, 0)[1] == 0


signal.alarm(LONGEST_RUN)
"""


def run(script: str) -> list[str]:
    """Run a script after FORK; returns what it prints."""
    done = subprocess.run(  # noqa: S603 - our own script
        # From Python 3.12 on a fork warns where threads run, as they do here on purpose.
        [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", FORK + script],
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout.splitlines()


def test_forked_executor_must_open_the_pool_per_process() -> None:
    """The error says so; then the pool works."""
    told, *rest = run("""
pool = ConnectionPool(create=Thing, limit=1, name="db")
forking = multiprocessing.get_context("fork")
with pool, pool.lease():
    with ProcessPoolExecutor(1, forking) as executor:
        print(executor.submit(told, use).result())
    with ProcessPoolExecutor(2, forking, initializer=pool.open_sync) as executor:
        print(all([future.result() for future in [executor.submit(use) for _ in range(10)]]))
with pool:
    print(use())
""")
    assert told == (
        "pool 'db' (limit 1: 0 free, 0 taken, 0 creating, 0 waiting) was opened by the process that this one was "
        "forked from, and its resources cannot be shared. Open it in each process, after the fork: by the "
        "application's lifespan, `with pool:` or ProcessPoolExecutor(initializer=pool.open_sync)"
    )
    assert rest == ["True", "True"]


def test_forked_child_begins_without_the_threads() -> None:
    """The threads decide, wait and create in the parent."""
    assert (
        run("""
parent = os.getpid()
creating, deciding, forked = threading.Event(), threading.Event(), threading.Event()


def create():
    if os.getpid() == parent:
        creating.set()
        forked.wait()
    return Thing()


def decide():  # under the lock
    deciding.set()
    forked.wait()


pool = ConnectionPool(create=create, limit=1, name="db")
with pool:
    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    creating.wait()
    while pool.waiting < 3:
        pass
    threads.append(threading.Thread(target=pool._engine.apply, args=(decide,)))
    threads[-1].start()
    deciding.wait()
    fork(use_as_child, pool)
    forked.set()
    for thread in threads:
        thread.join()
    assert pool.stats().acquires == 3
""")
        == []
    )


def test_a_hook_may_fork_on_a_worker_thread_and_in_the_loop() -> None:
    assert (
        run("""
parent = os.getpid()


def create():
    if os.getpid() == parent:
        fork(use_as_child, pool)
    return Thing()


for blocking in (True, False):
    pool = ConnectionPool(create=create, limit=1, name="db", blocking=blocking)
    with pool:
        assert use()
""")
        == []
    )


def test_a_child_forked_in_a_task_may_use_a_loop_of_its_own() -> None:
    assert (
        run("""
async def create():
    return Thing()


async def clean(thing):
    assert thing.maker == os.getpid()


pool = ConnectionPool(create=create, clean=clean, limit=1, name="db")


async def use_in_task():
    async with pool, pool.lease() as thing:
        assert thing.maker == os.getpid()
        try:
            await asyncio.create_task(pool.acquire(timeout=0.001))  # the timer is its own as well
        except PoolTimeout:
            return
    raise AssertionError


def use_in_child():
    assert "Open it in each process, after the fork" in told(pool.acquire_sync)
    asyncio.run(use_in_task())


async def main():
    async with pool:
        async with pool.lease():
            waiting = asyncio.create_task(pool.acquire(timeout=LONGEST_RUN))
            while not pool.waiting:
                await asyncio.sleep(0)
            fork(use_in_child)
        await pool.release(await waiting)
        assert pool.stats().creates == 1


asyncio.run(main())
""")
        == []
    )
