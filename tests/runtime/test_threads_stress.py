"""Eight threads, two event loops, one pool: everything that may be done at once, with and without the GIL.

The last test has the same on a free-threaded interpreter, if it finds one: `python3.14t` or the like on the PATH, or
among those of pyenv. All that a CI has to do is to put one there; nothing needs to be installed for it, since the core
of the pool and all that this file imports is plain Python, and is taken from where this interpreter has it. A suite
that runs on such an interpreter has the first test without the GIL anyway. By hand, in the root of the repository:
`python3.14t -m tests.runtime.test_threads_stress`.
"""

import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from connectionpools_fastapi import (
    ConnectionPool,
    NotLeased,
    Overloaded,
    PoolListener,
    PoolTimeout,
    ResourceUnavailable,
    WouldDeadlock,
)
from tests.support import PlainBackend, Resource, check, same

ROOT = Path(__file__).parents[2]
PLAIN_THREADS = 6  # and one for each of the two loops
TASKS = 4  # in each loop
TURNS = 150  # of each thread and each task
MOST = 6  # the highest limit
ROUNDS = 400  # after each of them no caller comes that could wake a forgotten waiter
PATIENCE = 60.0  # seconds after which a thread is stuck


class FlakyBackend(PlainBackend):
    """Hooks that fail once in a while, as soon as the pool is open."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._chance = random.Random(seed)  # noqa: S311 - no secret
        self.is_flaky = False

    def _fail(self, share: float) -> None:
        if self.is_flaky and self._chance.random() < share:
            raise ConnectionError

    def create(self) -> Resource:
        self._fail(0.01)
        return super().create()

    def check(self, _: Resource) -> None:
        self._fail(0.1)

    def change(self, resource: Resource) -> None:
        self._fail(0.1)
        super().change(resource)

    def clean(self, resource: Resource) -> None:
        super().clean(resource)
        self._fail(0.1)


@contextmanager
def answers() -> Iterator[None]:
    """Accept any answer but a timeout: no lease lasts so long that twenty seconds could pass."""
    try:
        yield
    except PoolTimeout as error:
        assert "within 20 s" not in str(error), "a waiter was forgotten"  # noqa: PT017 - not what is expected
    except (Overloaded, ResourceUnavailable, WouldDeadlock):
        pass


class Ear(PoolListener):
    """Wants to hear of each lease."""

    def on_acquire(self, pool: str, waited: float) -> None:
        assert waited >= 0, pool

    def on_release(self, pool: str, used: float) -> None:
        assert used >= 0, pool


def all_at_once(calls: Sequence[Callable[[threading.Barrier], Any]], pool: ConnectionPool[Resource]) -> None:
    """Have each call in a thread of its own, with a barrier for them to meet at; the first failure is raised."""
    barrier = threading.Barrier(len(calls), timeout=PATIENCE)
    failures: list[BaseException] = []

    def run(call: Callable[[threading.Barrier], Any]) -> None:
        try:
            barrier.wait()
            call(barrier)
        except BaseException as error:  # noqa: BLE001 - raised again below
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    if failures:
        raise failures[0]
    stuck = [thread.name for thread in threads if thread.is_alive()]
    assert not stuck, f"{stuck} are stuck: {pool.stats()}"


class Users:
    """Sees whether two ever have the same resource."""

    def __init__(self) -> None:
        self._users: dict[int, object] = {}

    @contextmanager
    def using(self, resource: Resource) -> Iterator[None]:
        me = object()
        assert self._users.setdefault(id(resource), me) is me, "two have the same"
        assert len(self._users) <= MOST, "more in use than there may be"
        try:
            yield
        finally:
            assert self._users.pop(id(resource)) is me, "two had the same"


class Stress(Users):
    """What threads and tasks do to one pool, and what they see."""

    def __init__(self, seed: int, *, has_change: bool, turns: int) -> None:
        super().__init__()
        self.seed = seed
        self.turns = turns
        self.backend = FlakyBackend(seed)
        hooks = ("check", "change") if has_change else ("check",)
        self.pool: ConnectionPool[Resource] = self.backend.pool(
            *hooks, limit=4, min_free=1, timeout=20, check_after=0.0005, max_uses=50, max_idle=0.01, max_hold=1
        )
        self.detached: list[Resource] = []

    # --- one turn after the other -------------------------------------------------------------

    def in_thread(self, number: int, _: threading.Barrier) -> None:
        chance = random.Random(self.seed + number)  # noqa: S311 - no secret
        for operation in chance.choices(*PLAIN, k=self.turns):
            with answers():
                operation(self, chance)

    async def in_task(self, number: int) -> None:
        chance = random.Random(self.seed + number)  # noqa: S311 - no secret
        for operation in chance.choices(*ASYNC, k=self.turns):
            with answers():
                await operation(self, chance)
            await anyio.lowlevel.checkpoint()

    async def in_loop(self, number: int) -> None:
        async with anyio.create_task_group() as group:
            for task in range(TASKS):
                group.start_soon(self.in_task, number + task)

    def in_loop_of(self, library: str, number: int, _: threading.Barrier) -> None:
        anyio.run(self.in_loop, number, backend=library)

    # --- the whole ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Do it all at once: in six threads, in a loop of asyncio and in one of trio."""
        self.backend.is_flaky = True
        calls: list[Any] = [partial(self.in_thread, number) for number in range(PLAIN_THREADS)]
        calls += [partial(self.in_loop_of, library, 100 * len(library)) for library in ("asyncio", "trio")]
        all_at_once(calls, self.pool)

    def in_turn_with_the_threads(self) -> None:
        """Open in a plain thread: the pool's own tasks live in a loop of its own."""
        with self.pool:
            self.run()
            self.all_can_be_leased()
        self.nothing_is_lost()

    async def in_a_loop_beside_the_threads(self) -> None:
        """Open in a loop: the pool's own tasks live in it, beside those of the application."""
        async with self.pool:
            await anyio.to_thread.run_sync(self.run)
            await anyio.to_thread.run_sync(self.all_can_be_leased)
        self.nothing_is_lost()

    def all_can_be_leased(self) -> None:
        leased: list[Resource] = []
        while len(leased) < self.pool.limit:
            with suppress(ResourceUnavailable):  # until `create` is tried again
                leased.append(self.pool.acquire_sync(timeout=PATIENCE))
        assert len({id(resource) for resource in leased}) == self.pool.limit
        stats = self.pool.stats()
        assert (stats.leased, stats.waiting) == (self.pool.limit, 0)
        check(self.pool)
        for resource in leased:
            self.pool.release_sync(resource)

    def nothing_is_lost(self) -> None:
        check(self.pool)
        assert same(self.backend.created, [*self.backend.cleaned, *self.detached])
        stats = self.pool.stats()
        assert (stats.free, stats.taken, stats.creating, stats.waiting) == (0, 0, 0, 0)
        assert stats.creates == stats.cleans + stats.detached == len(self.backend.created)
        assert stats.acquires > self.turns, "most were refused: that was no stress"
        assert stats.acquires == stats.releases == stats.wait.count == stats.use.count


# --- what a thread does: one function a kind ------------------------------------------------------------------


def lease(stress: Stress, chance: random.Random) -> None:
    with stress.pool.lease(timeout=chance.choice([0, 0.0001, 20])) as resource, stress.using(resource):
        pass


def lease_and_end(stress: Stress, chance: random.Random) -> None:
    held = stress.pool.lease()
    with held as resource:
        with stress.using(resource):
            pass
        end = chance.choice([held.release_nowait, held.discard, held.detach])
        if end() is resource:
            stress.detached.append(resource)
        with pytest.raises(NotLeased):
            held.release_nowait()


def acquire_and_release(stress: Stress, _: random.Random) -> None:
    resource = stress.pool.acquire_sync()
    with stress.using(resource):
        pass
    stress.pool.release_sync(resource)


def try_and_discard(stress: Stress, chance: random.Random) -> None:
    resource = stress.pool.try_acquire()
    if resource is None:
        return
    with stress.using(resource):
        pass
    if chance.random() < 0.5:
        stress.pool.discard(resource)
    else:
        stress.pool.release_sync(resource)


def lose(stress: Stress, _: random.Random) -> None:
    dropped = stress.pool.lease()
    with stress.using(dropped.__enter__()):
        pass


def look(stress: Stress, _: random.Random) -> None:
    stats = stress.pool.stats()
    assert stats.acquires == stats.releases + stats.leased
    assert stats.free + stats.taken + stats.creating <= MOST
    assert min(stats.free, stats.taken, stats.leased, stats.waiting) >= 0
    assert stress.pool.limit <= MOST
    stress.pool.holders()
    repr(stress.pool)


def expire(stress: Stress, _: random.Random) -> None:
    stress.pool.expire()


def drain(stress: Stress, _: random.Random) -> None:
    stress.pool.drain_sync()


def resize(stress: Stress, chance: random.Random) -> None:
    stress.pool.resize(chance.randint(2, MOST))


def suspend(stress: Stress, chance: random.Random) -> None:
    stress.pool.suspend()
    look(stress, chance)
    stress.pool.resume()


def retain(stress: Stress, chance: random.Random) -> None:
    def keep(resource: Resource) -> bool:
        with stress.using(resource):
            return chance.random() < 0.5

    stress.pool.retain(keep)


def listen(stress: Stress, chance: random.Random) -> None:
    ear = Ear()
    stress.pool.add_listener(ear)
    lease(stress, chance)
    stress.pool.remove_listener(ear)


# --- what a task does ---------------------------------------------------------------------------------------------


async def lease_async(stress: Stress, chance: random.Random) -> None:
    async with stress.pool.lease(timeout=chance.choice([0, 0.0001, 20])) as resource:
        with stress.using(resource):
            await anyio.lowlevel.checkpoint()


async def lease_and_be_cancelled(stress: Stress, chance: random.Random) -> None:
    with anyio.move_on_after(chance.choice([0, 0.0001, 0.001])):
        await lease_async(stress, chance)


async def acquire_and_end(stress: Stress, chance: random.Random) -> None:
    resource = await stress.pool.acquire()
    with stress.using(resource):
        pass
    how = chance.random()
    if how < 0.1:
        stress.pool.discard(resource)
    elif how < 0.2:
        stress.detached.append(stress.pool.detach(resource))
    else:
        await stress.pool.release(resource)


async def lose_async(stress: Stress, _: random.Random) -> None:
    dropped = stress.pool.lease()
    with stress.using(await dropped.__aenter__()):
        pass


async def drain_async(stress: Stress, _: random.Random) -> None:
    await stress.pool.drain()


async def probe(stress: Stress, _: random.Random) -> None:
    await stress.pool.probe(max_age=0, timeout=0.01)


async def do_as_threads_do(stress: Stress, chance: random.Random) -> None:
    chance.choice([expire, resize, suspend, retain, look])(stress, chance)


Operation = Callable[[Stress, random.Random], Any]
AsyncOperation = Callable[[Stress, random.Random], Awaitable[None]]

# How often each is drawn. One that is new is one function and one line.
PLAIN_TABLE: list[tuple[int, Operation]] = [
    (30, lease),
    (10, lease_and_end),
    (20, acquire_and_release),
    (10, try_and_discard),
    (2, lose),
    (6, look),
    (2, expire),
    (1, drain),
    (2, resize),
    (2, suspend),
    (2, retain),
    (2, listen),
]
ASYNC_TABLE: list[tuple[int, AsyncOperation]] = [
    (20, lease_async),
    (20, lease_and_be_cancelled),
    (20, acquire_and_end),
    (2, lose_async),
    (1, drain_async),
    (4, probe),
    (4, do_as_threads_do),
]


def drawn(table: list[tuple[int, Any]]) -> tuple[list[Any], list[int]]:
    """Return what `choices` takes: what there is, and how often."""
    return [operation for _, operation in table], [weight for weight, _ in table]


PLAIN, ASYNC = drawn(PLAIN_TABLE), drawn(ASYNC_TABLE)


# --- the tests ------------------------------------------------------------------------------------------------------


@contextmanager
def frequent_switches() -> Iterator[None]:
    """Let threads take turns as often as can be, so that races show; where there is a GIL."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def stress_a_pool(opened_in: str, *, has_change: bool, turns: int = TURNS) -> None:
    seed = random.randrange(10**6)  # noqa: S311 - no secret
    print(f"seed {seed}, opened in a {opened_in}, {has_change=}")  # noqa: T201 - shown when it fails
    stress = Stress(seed, has_change=has_change, turns=turns)
    with frequent_switches():
        if opened_in == "thread":
            stress.in_turn_with_the_threads()
        else:
            anyio.run(stress.in_a_loop_beside_the_threads)


@pytest.mark.parametrize(("opened_in", "has_change"), [("thread", True), ("loop", False)])
def test_stress_keeps_one_user_for_each_resource(opened_in: str, *, has_change: bool) -> None:
    """Threads and loops use one pool at once, and no resource is lost."""
    stress_a_pool(opened_in, has_change=has_change)


@pytest.mark.parametrize("limit", [2, 6])
def test_last_waiter_is_woken_without_a_successor(limit: int) -> None:
    wait_in_rounds(limit)


def wait_in_rounds(limit: int, rounds: int = ROUNDS) -> None:
    """Use the fast path in short rounds: in a longer run the next to come would hide that one was forgotten."""
    backend, users = PlainBackend(), Users()

    def in_thread(barrier: threading.Barrier) -> None:
        for _ in range(rounds):
            barrier.wait()
            for _ in range(3):
                with pool.lease(timeout=5) as resource, users.using(resource):
                    pass

    async def in_task() -> None:
        for _ in range(3):
            async with pool.lease(timeout=5) as resource:
                with users.using(resource):
                    pass

    async def in_loop(barrier: threading.Barrier) -> None:
        for _ in range(rounds):
            barrier.wait()
            async with anyio.create_task_group() as group:
                group.start_soon(in_task)
                group.start_soon(in_task)

    def in_asyncio(barrier: threading.Barrier) -> None:
        anyio.run(in_loop, barrier, backend="asyncio")

    def in_trio(barrier: threading.Barrier) -> None:
        anyio.run(in_loop, barrier, backend="trio")

    with frequent_switches(), backend.pool(limit=limit) as pool:
        all_at_once([in_thread] * PLAIN_THREADS + [in_asyncio, in_trio], pool)
        check(pool)
        assert pool.stats().acquires == 3 * rounds * (PLAIN_THREADS + 2 * 2)
    assert same(backend.created, backend.cleaned)


# --- without the GIL ------------------------------------------------------------------------------------------------

# FastAPI has compiled parts, which are of another interpreter: the core is taken out of the package.
WITHOUT_FASTAPI = """
import importlib, runpy, sys, types
package = sys.modules["connectionpools_fastapi"] = types.ModuleType("connectionpools_fastapi")
package.__path__ = [sys.argv.pop(1)]
for name in ("errors", "listener", "pool"):
    module = importlib.import_module(f"connectionpools_fastapi.{name}")
    vars(package).update((name, value) for name, value in vars(module).items() if not name.startswith("_"))
runpy.run_module("tests.runtime.test_threads_stress", run_name="__main__")
"""


def has_gil() -> bool:
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def free_threaded_interpreters() -> list[str]:
    """Find those on the PATH, and those of pyenv."""
    named = [shutil.which(f"python3.{minor}t") for minor in range(13, 20)]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [*filter(None, named), *map(str, sorted(pyenv.glob("versions/3.*t/bin/python")))]
    return [each for each in found if "t" in abiflags(each)]


def abiflags(python: str) -> str:
    """Ask an interpreter what it is: a shim of pyenv may stand for one that is not there."""
    ask = [python, "-c", "import sys; print(sys.abiflags)"]
    return subprocess.run(ask, capture_output=True, text=True, check=False, timeout=60).stdout  # noqa: S603 - our own


def stress_with(python: str, turns: int) -> str:
    """Have another interpreter run this file, with the packages of this one."""
    packages = Path(pytest.__file__).parent.parent
    done = subprocess.run(  # noqa: S603 - our own
        [python, "-c", WITHOUT_FASTAPI, str(ROOT / "connectionpools_fastapi"), str(turns)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(packages)])},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=4 * PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_same_holds_without_the_gil() -> None:
    interpreters = free_threaded_interpreters()
    if not interpreters:
        pytest.skip("NOT RUN WITHOUT THE GIL: no python3.13t to python3.19t on the PATH, nor in pyenv's versions")
    for python in interpreters:
        assert "with no GIL" in stress_with(python, TURNS), f"{python} has switched its GIL on"


def test_bare_interpreter_can_run_this_stress() -> None:
    bare = getattr(sys, "_base_executable", sys.executable)
    assert "all was well" in stress_with(bare, 10)


def main() -> None:
    """Say what runs, and have it."""
    print(f"{sys.version}, with {'the' if has_gil() else 'no'} GIL")  # noqa: T201 - a script
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else TURNS
    for opened_in in ("thread", "loop"):
        for has_change in (False, True):
            stress_a_pool(opened_in, has_change=has_change, turns=turns)
    for limit in (2, 6):
        wait_in_rounds(limit, turns)
    print(f"all was well, with {'the' if has_gil() else 'no'} GIL")  # noqa: T201 - a script


if __name__ == "__main__":
    main()
