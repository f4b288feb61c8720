"""An outage of ten seconds, side by side with psycopg_pool and asyncpg, in virtual time.

The pools are the real ones, with their own queues, timers and back-off. Only what goes over
the network is fake, since no server lives in virtual time:

- psycopg_pool gets a connection class of its own that has just what the pool asks of one, and
  the loop's time where it asks for `time.monotonic`.
- asyncpg gets its real `Connection` over a fake wire protocol; it asks the loop for the time.

Each pool may hold 10 connections and lets a caller wait 5 s. What is connected is cut when the
outage begins; no pool ever hands out what was cut. `python -m pytest -s` prints the numbers.
"""

import asyncio
import functools
import itertools
import math
import random
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from statistics import median
from types import SimpleNamespace
from typing import Any, Self

import anyio
import asyncpg  # type: ignore[import-untyped]
import psycopg
import psycopg_pool
import pytest
from psycopg.pq import TransactionStatus

from connectionpools_fastapi import ResourceUnavailable
from tests.support import SECRET, Backend, Resource, jumping, loop_time

LIMIT = 10
MAX_CREATING = 8
PATIENCE = 5.0  # how long a caller waits at most
OUTAGE = 10.0
AFTERWARDS = 10.0  # how long callers keep coming after the return
PERIOD = 0.05  # between two callers of the stream
HOLDS = 0.02  # how long a caller uses what it was given
CONNECTS = 0.05  # how long it takes to connect

SEED = random.randrange(2**32)  # noqa: S311 - of the jitter of all pools


@dataclass(frozen=True)
class Scenario:
    """How the back-end is down, what the pools hold when it goes, and how callers come."""

    name: str
    fails_after: float  # how long a try takes during the outage
    kept: int  # min_free, min_size: connected when the outage begins
    herd: int  # how many ask at once, beside the stream, in the middle of the outage and as it ends
    back_within: float  # ours, after the return; a try that hangs may just have begun
    lasts: float = OUTAGE


SCENARIOS = [
    Scenario("refused", fails_after=0.002, kept=LIMIT, herd=0, back_within=0.6),
    Scenario("refused, with herds", fails_after=0.002, kept=LIMIT, herd=200, back_within=0.6),
    Scenario("refused, with herds, none kept", fails_after=0.002, kept=0, herd=200, back_within=0.6),
    Scenario("silent for 2 s, with herds", fails_after=2, kept=LIMIT, herd=200, back_within=3),
]
TRANSIENT = Scenario("transient: refused for 0.3 s", fails_after=0.002, kept=LIMIT, herd=0, back_within=0.6, lasts=0.3)
each_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
each_library = pytest.mark.parametrize("library", ["asyncio", "trio"])
each_peer = pytest.mark.parametrize("peer", ["psycopg_pool", "asyncpg"])


# --- the back-end --------------------------------------------------------------------------------


@dataclass
class Try:
    """One try to connect."""

    began: float
    ended: float = math.inf
    error: OSError | None = None


class Server(Backend):
    """A back-end that takes its time, and notes each try to connect."""

    def __init__(self, fails_after: float) -> None:
        super().__init__()
        self.fails_after = fails_after
        self.is_down = False
        self.tries: list[Try] = []
        self.hang_ups: list[Callable[[], object]] = []  # for a client that hears at once that it is cut off

    async def create(self) -> Resource:
        this = Try(loop_time())
        self.tries.append(this)
        if self.is_down:
            this.error = ConnectionRefusedError(111, SECRET)
        try:
            await anyio.sleep(CONNECTS if this.error is None else self.fails_after)
            if this.error is not None:
                raise this.error
            return await super().create()
        finally:
            this.ended = loop_time()

    def go_down(self) -> None:
        self.is_down = True
        for resource in self.created:
            resource.is_healthy = False
        for hang_up in self.hang_ups:
            hang_up()


# --- the pools, each as a door that lets a caller in to a Resource -------------------------------

Door = Callable[[], AbstractAsyncContextManager[Resource]]


@asynccontextmanager
async def ours(server: Server, kept: int) -> AsyncGenerator[Door]:
    options = {"limit": LIMIT, "min_free": kept, "max_creating": MAX_CREATING, "timeout": PATIENCE}
    async with server.pool("check", **options) as pool:
        yield pool.lease


class PsycopgConnection:
    """What psycopg_pool asks of a connection: it learns only by use that it was cut off."""

    autocommit = True

    def __init__(self, resource: Resource) -> None:
        self.resource = resource
        self.pgconn = SimpleNamespace(transaction_status=TransactionStatus.IDLE)

    @classmethod
    async def connect(cls, _conninfo: str, *, server: Server, **_: object) -> Self:
        return cls(await server.create())

    async def execute(self, _query: str) -> None:
        if not self.resource.is_healthy:
            self.pgconn.transaction_status = TransactionStatus.UNKNOWN
            raise psycopg.OperationalError(SECRET)

    async def close(self) -> None:
        self.pgconn.transaction_status = TransactionStatus.UNKNOWN

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Commit: there is no transaction."""


@asynccontextmanager
async def psycopgs(server: Server, kept: int) -> AsyncGenerator[Door]:
    connection_class: Any = PsycopgConnection
    with pytest.MonkeyPatch.context() as patch:
        for module in ("base", "pool_async", "sched_async"):
            patch.setattr(f"psycopg_pool.{module}.monotonic", loop_time)
        pool = psycopg_pool.AsyncConnectionPool(
            connection_class=connection_class,
            kwargs={"server": server},
            min_size=kept,
            max_size=LIMIT,
            timeout=PATIENCE,
            check=psycopg_pool.AsyncConnectionPool.check_connection,
            open=False,
        )

        @asynccontextmanager
        async def door() -> AsyncGenerator[Resource]:
            async with pool.connection() as connection:
                resource: Resource = connection.resource
                yield resource

        async with pool:
            yield door


class AsyncpgWire:
    """What a connection of asyncpg asks of its protocol: that it is told at once when it is cut off."""

    queries_count = 0

    def __init__(self, resource: Resource) -> None:
        self.resource = resource
        self._is_closed = False

    def get_settings(self) -> SimpleNamespace:
        return SimpleNamespace(server_version="17.0")

    def is_connected(self) -> bool:
        return bool(self.resource.is_healthy) and not self._is_closed

    def is_in_transaction(self) -> bool:
        return False

    def _is_cancelling(self) -> bool:
        return False

    async def query(self, _query: str, _timeout: float | None) -> str:
        return ""

    async def close(self, _timeout: float | None) -> None:
        self._is_closed = True

    def abort(self) -> None:
        self._is_closed = True


@asynccontextmanager
async def asyncpgs(server: Server, kept: int) -> AsyncGenerator[Door]:
    config = SimpleNamespace(statement_cache_size=0, max_cached_statement_lifetime=0, command_timeout=None)

    async def connect(_dsn: object, *, loop: asyncio.AbstractEventLoop, **_: object) -> Any:
        wire = AsyncpgWire(await server.create())
        connection = asyncpg.Connection(wire, None, loop, "", config, None)
        server.hang_ups.append(connection._cleanup)  # as its own protocol does when the connection is lost
        return connection

    pool = asyncpg.create_pool(connect=connect, min_size=kept, max_size=LIMIT)

    @asynccontextmanager
    async def door() -> AsyncGenerator[Resource]:
        async with pool.acquire(timeout=PATIENCE) as connection:
            resource: Resource = connection._protocol.resource
            yield resource

    async with pool:
        yield door


POOLS = {"ours": ours, "psycopg_pool": psycopgs, "asyncpg": asyncpgs}
REFUSALS: dict[str, tuple[type[Exception], ...]] = {
    "ours": (ResourceUnavailable,),
    "psycopg_pool": (psycopg_pool.PoolTimeout,),
    "asyncpg": (ConnectionRefusedError, TimeoutError),
}


# --- the outage ----------------------------------------------------------------------------------


@dataclass
class Call:
    """One caller: when it asked, and when it knew."""

    asked: float
    answered: float = math.inf
    error: Exception | None = None

    @property
    def waited(self) -> float:
        return self.answered - self.asked


@dataclass
class Story:
    """What happened; the outage begins at 0 and ends at `returned`."""

    pool: str
    scenario: Scenario
    returned: float = 0.0
    calls: list[Call] = field(default_factory=list)
    tries: list[Try] = field(default_factory=list)

    @property
    def during(self) -> list[Try]:
        return [this for this in self.tries if this.began < self.returned]

    @property
    def afterwards(self) -> list[Try]:
        return [this for this in self.tries if this.began >= self.returned]

    @property
    def waits(self) -> list[float]:
        """Of the callers during the outage."""
        return [call.waited for call in self.calls if call.asked < self.returned]

    @property
    def waited_in_total(self) -> float:
        return sum(call.waited for call in self.calls)

    @property
    def in_first_second(self) -> int:
        return sum(this.began < self.returned + 1 for this in self.afterwards)

    @property
    def in_busiest_second(self) -> int:
        began = [this.began for this in self.afterwards]
        return max((sum(start <= each < start + 1 for each in began) for start in began), default=0)

    @property
    def refused_afterwards(self) -> int:
        return sum(call.error is not None for call in self.calls if call.asked >= self.returned)

    @property
    def first_served(self) -> float:
        """How long after the return the first caller is served."""
        return min(call.answered for call in self.calls if call.error is None) - self.returned

    @property
    def all_served_at_once(self) -> float:
        """How long after the return a caller is refused, or waits for longer than others use a connection."""
        late = (call.answered for call in self.calls if call.error is not None or call.waited > HOLDS)
        return max(late, default=self.returned) - self.returned


def at_once(tries: list[Try]) -> int:
    """Return how many tries were under way at the same time, at most."""
    steps = sorted([(this.began, 1) for this in tries] + [(this.ended, -1) for this in tries])
    return max(itertools.accumulate(step for _, step in steps), default=0)


async def live_through(story: Story) -> None:
    server = Server(story.scenario.fails_after)

    async def call(door: Door) -> None:
        this = Call(loop_time() - began)
        story.calls.append(this)
        try:
            async with door() as resource:
                this.answered = loop_time() - began
                assert resource.is_healthy, "was handed out, though cut"
                await anyio.sleep(HOLDS)
        except Exception as error:  # noqa: BLE001 - a test looks at it
            this.answered = min(this.answered, loop_time() - began)
            this.error = error

    async with POOLS[story.pool](server, story.scenario.kept) as door:
        await anyio.sleep(5)
        assert len(server.created) == story.scenario.kept
        server.tries.clear()
        server.go_down()
        began = loop_time()
        async with anyio.create_task_group() as group:
            for number in range(round((OUTAGE + AFTERWARDS) / PERIOD)):
                if number == round(story.scenario.lasts / PERIOD):
                    server.is_down = False
                    story.returned = loop_time() - began
                is_herd = number in (round(OUTAGE / 2 / PERIOD), round(OUTAGE / PERIOD))
                for _ in range(1 + is_herd * story.scenario.herd):
                    group.start_soon(call, door)
                await anyio.sleep(PERIOD)
                assert len(server.tries) < 1000, "the back-end is overrun"
    for this in server.tries:
        story.tries.append(Try(this.began - began, this.ended - began, this.error))


@functools.cache
def story_of(pool: str, scenario: Scenario, library: str = "asyncio") -> Story:
    story = Story(pool, scenario)
    backend, options = jumping(library)
    state = random.getstate()
    random.seed(SEED)
    try:
        anyio.run(live_through, story, backend=backend, backend_options=options)
    finally:
        random.setstate(state)
    wrong = [call.error for call in story.calls if not isinstance(call.error, (type(None), *REFUSALS[pool]))]
    assert not wrong, f"{pool} fails as no outage makes it fail: {wrong[0]!r}"
    assert story.first_served >= 0, "a caller was served during the outage"
    return story


def table() -> str:
    """Say in numbers what all pools did."""
    columns = [
        *("outage", "pool", "tries in it", "in the first s after it", "in the busiest s after it", "at once after it"),
        *("median wait", "longest wait", "total wait", "refused", "of these asked after it"),
        *("first served after", "all served at once after"),
    ]
    lines = [
        f"seed {SEED}; waits in s: median and longest of the callers during the outage, total of all",
        f"| {' | '.join(columns)} |",
        "|" + " --- |" * len(columns),
    ]
    for scenario, pool in itertools.product([TRANSIENT, *SCENARIOS], POOLS):
        story = story_of(pool, scenario)
        refused = sum(call.error is not None for call in story.calls)
        lines.append(
            f"| {scenario.name} | {pool} | {len(story.during)} | {story.in_first_second} | {story.in_busiest_second} "
            f"| {at_once(story.afterwards)} | {median(story.waits):.3f} | {max(story.waits):.2f} "
            f"| {story.waited_in_total:.1f} | {refused} of {len(story.calls)} | {story.refused_afterwards} "
            f"| {story.first_served:.2f} | {story.all_served_at_once:.2f} |"
        )
    return "\n".join(lines)


@pytest.fixture(scope="module", autouse=True)
def numbers() -> Iterator[None]:
    yield
    print(f"\n{table()}")  # noqa: T201 - shown with -s


# --- what ours promises --------------------------------------------------------------------------


def known_at(story: Story) -> float:
    """Return when the first try failed."""
    return min(this.ended for this in story.tries if this.error is not None)


def unaware(story: Story) -> list[Try]:
    """Return the tries that began before anybody knew."""
    return [this for this in story.tries if this.began <= known_at(story)]


def probes(story: Story) -> list[Try]:
    """Return the tries that were made to see whether the back-end is back, with the one that found it so."""
    after = [this for this in story.tries if this.began > known_at(story)]
    found = next(number for number, this in enumerate(after) if this.error is None)
    return after[: found + 1]


@each_library
@each_scenario
def test_ours_retries_one_at_a_time_with_bounded_pauses(scenario: Scenario, library: str) -> None:
    """This holds once the outage is known."""
    story = story_of("ours", scenario, library)
    assert at_once(unaware(story)) <= MAX_CREATING
    assert len(story.during) <= 40, table()
    first, *later = probes(story)
    assert any(this.began == known_at(story) for this in story.tries), "the first try again is made at once"
    pauses = [this.began - before.ended for before, this in itertools.pairwise([first, *later])]
    assert all(0 <= pause <= 0.5 + 1e-6 for pause in pauses), f"seed {SEED}: {pauses}"
    if scenario.fails_after < 1:
        settled = pauses[-16:]
        assert all(pause >= 0.35 - 1e-6 for pause in settled), f"seed {SEED}: {pauses}"
        assert max(settled) - min(settled) > 0.005, f"nothing was left to chance: {settled}"


def test_transient_outage_is_seen_by_no_caller_of_ours() -> None:
    story = story_of("ours", TRANSIENT)
    assert all(call.error is None for call in story.calls), table()
    assert story.first_served <= TRANSIENT.back_within, table()
    assert max(story.waits) <= TRANSIENT.lasts + TRANSIENT.back_within, table()


@each_library
@each_scenario
def test_ours_refuses_at_once_with_cause_and_retry_time(scenario: Scenario, library: str) -> None:
    """This holds once the outage is known."""
    story = story_of("ours", scenario, library)
    tries, back_at = story.tries, probes(story)[-1].ended
    down_at = min(call.answered for call in story.calls if call.error is not None)
    if scenario.fails_after < 1:
        assert down_at <= 1.2, table()
    refused = [call for call in story.calls if down_at < call.asked < back_at]
    assert len(refused) >= (OUTAGE - down_at) / PERIOD + 2 * scenario.herd - 1
    for call in refused:
        assert isinstance(call.error, ResourceUnavailable)
        assert call.waited == 0, table()
        last = max((this for this in tries if this.error and this.ended <= call.asked), key=lambda this: this.ended)
        assert call.error.__cause__ in [this.error for this in tries if this.ended == last.ended]
        assert call.error.retry_after is not None
        if any(this.began <= call.asked <= this.ended for this in tries):
            assert 0 <= call.error.retry_after <= 0.1, "it is being tried"
        else:
            next_try = min(this.began for this in tries if this.began > call.asked)
            assert call.error.retry_after == pytest.approx(max(0.05, next_try - call.asked), abs=1e-6)


@each_library
@each_scenario
def test_ours_is_back_soon_without_overrunning_the_server(scenario: Scenario, library: str) -> None:
    story = story_of("ours", scenario, library)
    found = probes(story)[-1]
    assert story.first_served <= scenario.back_within, table()
    assert story.all_served_at_once <= scenario.back_within, table()
    assert all(call.error is None for call in story.calls if call.asked > found.ended)
    assert at_once([this for this in story.tries if this.began >= found.ended]) <= MAX_CREATING, table()
    assert at_once([this for this in story.tries if known_at(story) < this.began < found.ended]) <= 1, table()
    connected = [this for this in story.tries if this.error is None]
    assert max(scenario.kept, 1) <= len(connected) <= LIMIT, table()
    assert story.in_busiest_second <= LIMIT, table()


# --- beside the peers ----------------------------------------------------------------------------


@each_peer
@each_scenario
def test_callers_of_ours_wait_less_for_their_answer(scenario: Scenario, peer: str) -> None:
    own, other = story_of("ours", scenario), story_of(peer, scenario)
    assert median(own.waits) == 0, table()
    assert median(own.waits) < median(other.waits), table()
    # The price of not taking each failure for an outage: callers that come in its first second wait for its end.
    first_second = 1 if peer == "asyncpg" else 0
    assert own.waited_in_total < other.waited_in_total + first_second / PERIOD, table()
    assert max(own.waits) <= max(other.waits) + first_second + 1e-6, table()


@each_peer
@each_scenario
def test_ours_tries_no_more_often_during_the_outage(scenario: Scenario, peer: str) -> None:
    own, other = story_of("ours", scenario), story_of(peer, scenario)
    if (peer, scenario.kept) == ("psycopg_pool", 0):  # its only back-off has no bound: few tries, and back late
        assert other.first_served > own.first_served + 1, table()
    else:
        assert len(own.during) <= len(other.during), table()


@each_peer
@each_scenario
def test_ours_is_back_little_later_at_most(scenario: Scenario, peer: str) -> None:
    own, other = story_of("ours", scenario), story_of(peer, scenario)
    assert own.first_served <= other.first_served + scenario.back_within, table()
    assert own.all_served_at_once <= other.all_served_at_once + scenario.back_within, table()
