"""PoolStats: a frozen snapshot whose counts add up; ObservedStats: the part of it that a driver's own pool knows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

WAIT_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
USE_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
CREATE_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many durations fell between each two bounds.

    Attributes:
        bounds: Upper bounds in seconds, inclusive, ascending.
        counts: One count a bound, not cumulative, and a last one for durations above all.
        sum: All durations together, in seconds.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """How many durations were recorded."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """The holder of a lease, and for how long it has held it.

    Attributes:
        name: The `holder` that its lease was given: with `Leased` the route, as "GET /items/{id}";
            else the name of the task or thread in which it began.
        age: For how long, in seconds.
        wait: How long the caller waited for the lease, in seconds.
        uses: How often the resource was leased, this lease included.
        responding: For how long the request of the lease has been sending its response, in seconds: since the first
            part of a stream, or the first message of a WebSocket. None before that, and if it is not known.
        trace: The id of the trace of OpenTelemetry that the holder belongs to; None if there is none.
    """

    name: str
    age: float
    wait: float = 0.0
    uses: int = 1
    responding: float | None = None
    trace: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetStats:
    """How a budget is used at one moment.

    Attributes:
        name: The budget's name.
        total: The most resources that may exist at once, over all members.
        used: How many tokens all members hold.
        held: How many of them this pool holds.
        members: How many tokens each member holds, by its name.
        trouble: Why the pool cannot get further tokens, in words; None if it can.
    """

    name: str
    total: int
    used: int
    held: int
    members: Mapping[str, int]
    trouble: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorityStats:
    """The callers of one priority. One of low priority that has waited for half its timeout counts as normal.

    Attributes:
        waiting: Callers in the queue.
        oldest_wait: For how long the one that has waited the longest waits, in seconds; 0 if none waits.
        refusals: Callers refused, for any reason.
    """

    waiting: int
    oldest_wait: float
    refusals: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteStats:
    """What the requests of one route have taken from a pool, in totals.

    Attributes:
        leases: Leases that have ended, through `Leased` or in the endpoint's own blocks.
        wait: How long their callers had waited for them, in seconds.
        use: How long these leases were held, in seconds.
        refusals: Callers refused, for any reason.
        timeouts: Callers that waited in vain.
    """

    leases: int
    wait: float
    use: float
    refusals: int
    timeouts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """The state of a pool at one moment, and its totals since it was made.

    `free + taken + creating <= limit`, except for a while after a `resize` to a lower limit, and
    `acquires == releases + leased`.

    Attributes:
        name: The pool's name.
        status: "new", "open", "suspended", "closing", "closed", or "forked" in a child process.
        limit: The most resources that may exist at once.
        min_free: How many free resources the pool keeps ready.
        free: Resources ready for use.
        taken: Resources leased out, being checked or being changed.
        checking: How many of `taken` are being checked before use.
        changing: How many of `taken` are being changed after use.
        creating: Resources being made.
        cleaning: Resources on their way out; they no longer count against the limit.
        waiting: Callers in the queue.
        failing: Whether the last `create` failed.
        down: Whether the back-end is down: no resource exists, and `create` has failed for a second.
        cause: The type of the exception of the last `create`, never its text; None if not failing.
        retry_after: Seconds until the next try while failing, else None.
        acquires: Leases granted, also to callers that had just given up.
        releases: Leases that ended, in any way.
        timeouts: Callers that waited in vain.
        withdrawals: Callers that were cancelled while they waited, or as they were granted a lease.
        refusals: Callers refused, by reason: "closed", "deadlock", "full", "overloaded", "unavailable".
        overloaded: Whether callers were refused within the last second, since they would have left or timed out
            before they were served.
        patience: How long callers wait before they leave, in seconds, as learned from those that left; None if unknown.
        expected_wait: How long a caller that comes now will wait, in seconds; 0 if a resource is free, None if unknown.
        oldest_wait: For how long the caller that has waited the longest waits, in seconds; 0 if none waits.
        longest_lease: For how long the lease that is held the longest is held, in seconds; 0 if there is none.
        peak_taken: The most resources that were taken at once in the last minute, or since the snapshot before if that
            is longer ago, without those that no longer exist; None with reuse="fifo", where it is not known.
        peak_waiting: The most callers that waited at once, in the same time.
        creates: Resources made.
        create_failures: Calls of `create` that failed.
        cleans: Resources cleaned.
        clean_failures: How many of them raised in `clean`.
        detached: Resources given away for good.
        discards: Resources taken out of use, by reason: a method that was called ("discard", "expire", "resize",
            "retain"), a hook that failed ("check", "change"), an error of a lease that
            `broken` judged ("broken"), a limit that was reached ("max_idle", "max_lifetime", "max_uses"),
            a budget that another pool needs ("budget"), or a lease that was lost ("leak").
        wait: How long callers waited that got a resource (`timeouts` counts the others).
        use: How long leases were held.
        create: How long `create` took where it succeeded.
        priorities: The same for callers of each priority: "high", "normal" and "low".
        routes: The same for the requests of each route, as "GET /items/{id}", from the first on that passes
            PoolMiddleware; from the hundredth route on all others are "other".
        budget: The pool's share of its budget; None without a budget, or while the pool is not open.
    """

    name: str
    status: str
    limit: int
    min_free: int
    free: int
    taken: int
    checking: int
    changing: int
    creating: int
    cleaning: int
    waiting: int
    failing: bool
    down: bool
    cause: str | None
    retry_after: float | None
    acquires: int
    releases: int
    timeouts: int
    withdrawals: int
    refusals: Mapping[str, int]
    overloaded: bool
    patience: float | None
    expected_wait: float | None
    oldest_wait: float
    longest_lease: float
    peak_taken: int | None
    peak_waiting: int
    creates: int
    create_failures: int
    cleans: int
    clean_failures: int
    detached: int
    discards: Mapping[str, int]
    wait: Histogram
    use: Histogram
    create: Histogram
    priorities: Mapping[str, PriorityStats]
    routes: Mapping[str, RouteStats]
    budget: BudgetStats | None = None

    @property
    def leased(self) -> int:
        """How many of `taken` are leased to callers."""
        return self.taken - self.checking - self.changing


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedStats:
    """What a driver's own pool knows of itself at one moment; None for a number that it does not know.

    Attributes:
        name: The name under which it is observed.
        status: "new" before it exists or is open, "open", "closing" or "closed".
        limit: The most connections that may exist at once; also None where there is no limit.
        free: Connections ready for use.
        taken: Connections in use. All drivers but asyncpg include those that are being made.
        waiting: Callers in the queue.
        create_failures: Tries to connect that failed.
        cause: The type of the exception of the last probe, or of the search for the pool, never its text;
            None if neither failed.
        driver: Further counters of the driver, under its own names.
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
    """What health and metrics need of a pool; ConnectionPool and ObservedPool have it."""

    @property
    def name(self) -> str:
        """What health and metrics call the pool."""
        ...

    def stats(self) -> PoolStats | ObservedStats:
        """Return a frozen snapshot of the state and all totals. From any thread.

        Returns:
            The numbers that are known.
        """
        ...

    def holders(self) -> list[Holder] | None:
        """Return the holders and ages of leases, the oldest first.

        Returns:
            One entry a lease; None if the holders are not known.
        """
        ...

    async def probe(self, *, max_age: float = 5.0, timeout: float = 2.0) -> bool:
        """Find out whether the back-end answers, without ever queueing for a resource.

        Args:
            max_age: How old the last answer may be, in seconds.
            timeout: How long to wait for an answer, in seconds.

        Returns:
            False if the pool is not open, or a try failed or did not end in time.
        """
        ...
