"""PoolStats: a frozen snapshot whose states add up; ObservedStats: as much of it as a driver's own pool knows."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import add
from typing import Protocol, runtime_checkable

WAIT_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
USE_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
CREATE_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many durations fell between which bounds.

    Attributes:
        bounds: Upper bounds in seconds, inclusive, ascending.
        counts: One count a bound, not cumulative, and a last one for what is above.
        sum: All durations together, in seconds.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """How many durations were recorded."""
        return sum(self.counts)


class Recorder:
    """A histogram in the making; whoever records makes sure to be the only one."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds: tuple[float, ...] = bounds
        self.counts: list[int] = [0] * (len(bounds) + 1)
        self.sum: float = 0.0

    def record(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.sum += seconds

    def count(self) -> int:
        """How many durations were recorded."""
        return sum(self.counts)

    def add(self, counts: Iterable[int], seconds: float) -> None:
        """Count all that another one with these bounds has counted."""
        self.counts = list(map(add, self.counts, counts))
        self.sum += seconds

    def snapshot(self) -> Histogram:
        """Return what was counted so far."""
        return Histogram(self.bounds, tuple(self.counts), self.sum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a lease, and since when.

    Attributes:
        name: What its lease was given as `holder`: with `Leased` the route, as "GET /items/{id}";
            else the name of the task or thread in which it began.
        age: For how long, in seconds.
    """

    name: str
    age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """The state of a pool at one moment, and its totals since it was made.

    `free + taken + creating <= limit`, but for a while after `resize` to fewer, and
    `acquires == releases + leased`.

    Attributes:
        name: The pool's name.
        status: "new", "open", "suspended", "closing", "closed", or "forked" in a child process.
        limit: The most that may exist at once.
        free: Resources ready for use.
        taken: Resources leased out, being checked or being changed.
        checking: How many of `taken` are being checked before use.
        changing: How many of `taken` are being changed after use.
        creating: Resources being made.
        cleaning: Resources on their way out; they no longer count against the limit.
        waiting: Callers in the queue.
        failing: Whether the last `create` failed.
        cause: The kind of exception it failed with, never its text; None if not failing.
        retry_after: Seconds until the next try while failing, else None.
        acquires: Leases granted, also to callers that had just given up.
        releases: Leases that ended, whichever way.
        timeouts: Callers that waited in vain.
        withdrawals: Callers that were cancelled while they waited, or as they were granted a lease.
        refusals: Callers turned away at once, by reason: "closed", "deadlock", "full", "unavailable".
        creates: Resources made.
        create_failures: Calls of `create` that failed.
        cleans: Resources cleaned.
        clean_failures: How many of them raised in `clean`.
        detached: Resources given away for good.
        discards: Resources taken out of use, by reason: what was called ("discard", "expire", "resize",
            "retain"), a hook that failed ("check", "change"), a limit that was reached
            ("max_idle", "max_lifetime", "max_uses"), or a lease that was lost ("leak").
        wait: How long callers waited that got a resource (the others: `timeouts`).
        use: How long leases were held.
        create: How long `create` took where it succeeded.
    """

    name: str
    status: str
    limit: int
    free: int
    taken: int
    checking: int
    changing: int
    creating: int
    cleaning: int
    waiting: int
    failing: bool
    cause: str | None
    retry_after: float | None
    acquires: int
    releases: int
    timeouts: int
    withdrawals: int
    refusals: Mapping[str, int]
    creates: int
    create_failures: int
    cleans: int
    clean_failures: int
    detached: int
    discards: Mapping[str, int]
    wait: Histogram
    use: Histogram
    create: Histogram

    @property
    def leased(self) -> int:
        """How many of `taken` are in a user's hands."""
        return self.taken - self.checking - self.changing


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedStats:
    """What a driver's own pool knows of itself at one moment; None is what it does not tell.

    Attributes:
        name: The name under which it is observed.
        status: "new" before it exists or is open, "open", "closing" or "closed".
        limit: The most connections that may exist at once; also None where there is no limit.
        free: Connections ready for use.
        taken: Connections in use. All but asyncpg count those along that are being made.
        waiting: Callers in the queue.
        create_failures: Tries to connect that failed.
        cause: The kind of exception with which the last probe failed, or with which the pool could not be
            found, never its text; None if there was none.
        driver: What the driver counts beyond that, under its own names.
    """

    name: str
    status: str
    limit: int | None = None
    free: int | None = None
    taken: int | None = None
    waiting: int | None = None
    create_failures: int | None = None
    cause: str | None = None
    driver: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class Observable(Protocol):
    """What health and metrics ask of a pool; ConnectionPool has it, and what `observe` returns."""

    @property
    def name(self) -> str:
        """What health and metrics call the pool."""
        ...

    def stats(self) -> PoolStats | ObservedStats:
        """Return a frozen snapshot of the state and all totals. From any thread.

        Returns:
            What is known.
        """
        ...

    def holders(self) -> list[Holder] | None:
        """Return who holds a lease and for how long, the longest first.

        Returns:
            One entry a lease; None if that is not known.
        """
        ...

    async def probe(self, *, max_age: float = 5.0, timeout: float = 2.0) -> bool:
        """Find out whether the back-end answers, without ever queueing for a resource.

        Args:
            max_age: How old what is known may be, in seconds.
            timeout: How long to wait for an answer, in seconds.

        Returns:
            False if the pool is not open, or a try failed or did not end in time.
        """
        ...
