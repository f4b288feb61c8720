"""The load on a pool while something goes wrong, and what its callers saw of it."""

import asyncio
import itertools
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

LIMIT = 8  # of each pool
PATIENCE = 1.0  # how long a caller waits for a lease at most, in seconds; as each pool is told
GIVES_UP = 3.0  # for how long it waits for its answer altogether

PERIOD = 0.02  # from one caller to the next, in seconds
BURST = 25  # each so many callers, LIMIT come at once, so that a pool has used all it may have a moment ago
ENOUGH = 15  # this many callers served in a row show that all is well
LONGEST_FILL = 30.0  # how long a pool may take to make all its connections before a fault, in seconds


@dataclass(frozen=True)
class Effort:
    """How long a scenario takes, in seconds.

    Attributes:
        before: How long all is well first.
        down: How long something is away or amiss.
        bound: How long anything is waited for at most, such as a recovery or a close.
    """

    before: float = 1.2
    down: float = 3.0
    bound: float = 20.0


FULL = Effort()
TINY = Effort(before=0.2, down=0.3)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A pool of any maker that is open.

    Attributes:
        lease: Leases a connection; waits no longer than PATIENCE.
        work: What a caller does with it.
        close: Closes the pool.
        expire: Has it replace all its connections, in the way that its maker offers.
    """

    lease: Callable[[], AbstractAsyncContextManager[Any]]
    work: Callable[[Any], Awaitable[object]]
    close: Callable[[], Awaitable[object]]
    expire: Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Contestant:
    """A pool of some maker, of at most LIMIT connections; `open` is given where to connect to."""

    name: str
    open: Callable[[Any], Awaitable[Opened]]


def filled(contestant: Contestant) -> Contestant:
    """Return the same with a pool that has made all its connections: a fault then meets none in the making."""

    async def open_and_fill(address: Any) -> Opened:
        leased: list[Any] = []
        opened = await contestant.open(address)
        async with AsyncExitStack() as held:
            async with asyncio.timeout(LONGEST_FILL):
                while len(leased) < LIMIT:
                    with suppress(Exception):  # on a busy machine it may take longer than its own limits allow
                        leased.append(await held.enter_async_context(opened.lease()))
        return opened

    return replace(contestant, open=open_and_fill)


@dataclass
class Call:
    """One caller: when it asked, had its lease (if ever), and was done; and what was raised."""

    asked: float
    leased: float = math.inf
    done: float = math.inf
    error: Exception | None = None

    @property
    def was_refused(self) -> bool:
        return self.error is not None and self.leased == math.inf

    @property
    def waited(self) -> float:
        return min(self.leased, self.done) - self.asked


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a fault has cost.

    Attributes:
        calls: How many callers there were.
        errors_in_use: Errors in leases of callers that had asked by the time the fault was complete.
        errors_later: Errors in leases of callers that asked after that.
        refused: Callers that got no lease.
        timeouts: How many of them had waited for PATIENCE.
        longest_wait: For a lease or a refusal, in seconds.
        recovered_after: How long after the end of the fault the first was served and the last failed, in seconds;
            infinite if that took longer than `Effort.bound`.
        slots: How many leases there can be at once, at the end.
        connections: How many the server counts then.
        closed_within: How long closing the pool took, in seconds; infinite as above.
    """

    calls: int
    errors_in_use: int
    errors_later: int
    refused: int
    timeouts: int
    longest_wait: float
    recovered_after: float
    slots: int
    connections: int
    closed_within: float


@dataclass(frozen=True)
class Row:
    """What a fault has cost one contestant."""

    contestant: str
    outcome: Outcome


Scenario = Callable[[Effort], Coroutine[Any, Any, list[Row]]]  # of all contestants, one after the other


def clock() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Load:
    """Callers that come at a steady rate, and the moments of the fault, which its scenario notes.

    Attributes:
        struck: When the fault was complete.
        returned: When the fault was over.
        recovers: Whether all were served again within the bound.
    """

    opened: Opened
    effort: Effort
    calls: list[Call] = field(default_factory=list)
    struck: float = math.inf
    returned: float = math.inf
    recovers: bool = False

    def strike(self) -> None:
        """Note that the fault is complete."""
        self.struck = clock()

    def end(self) -> None:
        """Note that it is over."""
        self.returned = clock()

    async def _call(self) -> None:
        call = Call(clock())
        self.calls.append(call)
        try:
            async with asyncio.timeout(GIVES_UP), self.opened.lease() as resource:
                call.leased = clock()
                await self.opened.work(resource)
        except Exception as error:  # noqa: BLE001 - whatever a pool or a driver raises
            call.error = error
        call.done = clock()

    async def _send_callers(self, group: asyncio.TaskGroup) -> None:
        for number in itertools.count():
            for _ in range(1 if number % BURST else LIMIT):
                group.create_task(self._call())
            await asyncio.sleep(PERIOD)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Send callers while the block runs, and wait for all of them at its end."""
        async with asyncio.TaskGroup() as group:
            sender = group.create_task(self._send_callers(group))
            yield
            sender.cancel()

    def _answers(self) -> list[Call]:
        """Return the calls that were answered after the fault was over, in order of their answers."""
        return sorted(
            (call for call in self.calls if self.returned <= call.done < math.inf), key=lambda call: call.done
        )

    async def until_well(self) -> None:
        """Wait until many in a row were served after the return, or until that takes too long."""
        while not self.recovers and clock() < self.returned + self.effort.bound:
            await asyncio.sleep(PERIOD)
            last = self._answers()[-ENOUGH:]
            self.recovers = len(last) == ENOUGH and all(call.error is None for call in last)

    async def slots(self) -> int:
        """Count how many leases that work there can be at once, up to LIMIT."""
        working = 0
        async with AsyncExitStack() as held:
            for _ in range(LIMIT):
                with suppress(Exception):
                    async with asyncio.timeout(GIVES_UP):
                        await self.opened.work(await held.enter_async_context(self.opened.lease()))
                        working += 1
        return working

    async def close(self) -> float:
        """Close the pool; returns how long that took, in seconds, infinite if it was given up."""
        began = clock()
        try:
            async with asyncio.timeout(self.effort.bound):
                await self.opened.close()
        except TimeoutError:
            return math.inf
        return clock() - began

    def outcome(self, *, slots: int, connections: int, closed_within: float) -> Outcome:
        """Sum up; the callers are done."""
        failed = [call for call in self.calls if call.error is not None and not call.was_refused]
        first_served = min((call.done for call in self._answers() if call.error is None), default=math.inf)
        last_bad = max((call.done for call in self._answers() if call.error is not None), default=self.returned)
        return Outcome(
            calls=len(self.calls),
            # By when they asked: a caller may note its lease a turn of the loop after the pool has granted it.
            errors_in_use=sum(call.asked <= self.struck for call in failed),
            errors_later=sum(call.asked > self.struck for call in failed),
            refused=sum(call.was_refused for call in self.calls),
            timeouts=sum(call.was_refused and call.waited >= PATIENCE for call in self.calls),
            longest_wait=max(call.waited for call in self.calls),
            recovered_after=max(first_served, last_bad) - self.returned if self.recovers else math.inf,
            slots=slots,
            connections=connections,
            closed_within=closed_within,
        )


async def outcome_of(
    contestant: Contestant,
    address: Any,
    fault: Callable[[Load], Awaitable[object]],
    count: Callable[[], Awaitable[int]],
    effort: Effort,
    *,
    before_close: Callable[[], object] = lambda: None,
) -> Outcome:
    """Open a pool and send callers: while all is well, through the fault, and until all is well again.

    Args:
        contestant: Whose pool.
        address: Where it connects to.
        fault: Makes the fault, and notes with `strike` and `end` when it is complete and when it is over.
        count: Asks the server how many connections of the pool there are.
        effort: For how long.
        before_close: Called before the pool is closed.

    Returns:
        What the fault has cost.
    """
    load = Load(await contestant.open(address), effort)
    async with AsyncExitStack() as whatever_happens:
        whatever_happens.push_async_callback(load.close)
        async with load.running():
            await asyncio.sleep(effort.before)
            await fault(load)
            await load.until_well()
        slots, connections = await load.slots(), await count()
        before_close()
        whatever_happens.pop_all()
        return load.outcome(slots=slots, connections=connections, closed_within=await load.close())
