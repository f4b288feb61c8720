"""RedisBudget: one total for the processes of all hosts, which a Redis counts; needs the extra `redis`."""

import atexit
import os
import random
import secrets
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any
from weakref import WeakSet

import anyio

from .._runtime.log import facts, logger
from ..budget import Member
from ..errors import PoolConfigError
from ..stats import BudgetStats
from ._common import check_arguments, warn_if_small
from ._share import Share

try:
    from redis import Redis
    from redis.cluster import RedisCluster

    from ._books import NO_ANSWER, Books, reason
except ImportError as _error:
    msg = "connectionpools_fastapi.budgets.redis needs redis-py: pip install 'connectionpools-fastapi[redis]'"
    raise ImportError(msg) from _error

# How often a member says what it needs, in seconds: when it has what it needs, and when not.
SYNC_EVERY = 0.5
SYNC_HUNGRY_EVERY = 0.1
# While all tokens are used, another member may need what this one does not: each asks as often as a hungry one, as long
# as all members together send at most so many calls a second.
MOST_SYNCS = 2000
# A member says so at least this often in a time-to-live.
SYNCS_PER_TTL = 6
SHORTEST_TTL = 1.0
# How long the interpreter waits at its end for members to give their tokens back, in seconds.
LEAVE_WITHIN = 1.0

_MEMBERS: WeakSet["RedisMembership"] = WeakSet()


class RedisBudget:
    """At most `total` resources in all processes, of any host, that name the same budget on the same Redis.

    Redis counts: it keeps the tokens of each member for `ttl` seconds, and each member renews them twice a second. The
    tokens of a process that has crashed or is stopped go to others after `ttl`. While Redis is away, what exists
    goes on, and no pool grows.

    Example:
        ```python
        budget = RedisBudget("redis://localhost", "orders-db", total=90)
        db = ConnectionPool(AsyncpgManager(dsn), limit=20, budget=budget, name="db")
        ```
    """

    def __init__(
        self,
        server: "str | Redis | RedisCluster",
        name: str,
        *,
        total: int,
        floor: int = 1,
        ttl: float = 10.0,
        **options: Any,
    ) -> None:
        """Describe a budget; pools join it as they open.

        Args:
            server: The address of a Redis, as `redis.Redis.from_url` takes it; or a client: a `redis.Redis`, what
                `Sentinel.master_for` returns, or a `redis.RedisCluster`. It must not be an asynchronous one: the
                budget asks from a thread of its own. Give a client a `socket_timeout` below a third of `ttl`.
            name: What the budget is for; all processes write the same.
            total: The most resources that may exist at once, over all pools that join; all processes write the same.
            floor: How many resources each pool may keep, however much the others need them.
            ttl: After how many seconds the tokens of a member that is not heard of go to others; all processes
                write the same.
            options: Of `redis.Redis.from_url`, such as `ssl_ca_certs` or `username`.

        Raises:
            PoolConfigError: If a value cannot work.
        """
        check_arguments(name, total, floor)
        if not isinstance(ttl, (int, float)) or isinstance(ttl, bool) or not SHORTEST_TTL <= ttl < float("inf"):
            msg = f"budget {name!r}: ttl must be a number of seconds, {SHORTEST_TTL:g} or more; got {ttl!r}"
            raise PoolConfigError(msg)
        self.name = name
        self.total = total
        self.floor = floor
        self.ttl = ttl
        self._books = Books(server, options, name=name, total=total, floor=floor, ttl=ttl)

    async def join(self, member: Member) -> "RedisMembership":
        """Become a member; a pool calls this as it opens.

        Args:
            member: The pool.

        Returns:
            The pool's share of the tokens.

        Raises:
            PoolConfigError: If Redis cannot be used, or another member has another total or `ttl`.
        """
        membership = RedisMembership(self, self._books, member)
        await anyio.to_thread.run_sync(membership.sync_first, limiter=anyio.CapacityLimiter(1))
        membership.start()
        return membership


class RedisMembership:
    """A pool's share of a RedisBudget; a thread of its own speaks with Redis."""

    def __init__(self, budget: RedisBudget, books: Books, member: Member) -> None:
        """Describe a member; `sync_first` makes it one."""
        self._budget = budget
        self._books = books
        self._member = member
        self._name = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        self._share = Share(budget.ttl)
        # Protects the share. A destructor that the garbage collector calls may give a token back, whatever this thread
        # is doing: so it is one that the thread gets again, and so is the queue.
        self._lock = threading.RLock()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._stats = BudgetStats(name=budget.name, total=budget.total, used=0, held=0, members={})
        self._sync_every = SYNC_EVERY
        self._has_left = False
        self._thread = threading.Thread(target=self._run, name=f"budget {budget.name}", daemon=True)
        self._news: anyio.Event  # of the pool's loop
        self._loop_thread: int

    # --- in the pool's loop -------------------------------------------------------------------

    def start(self) -> None:
        """Speak with Redis from now on."""
        self._news = anyio.Event()
        self._loop_thread = threading.get_ident()
        self._member.spawn(self._stay)
        self._thread.start()
        _MEMBERS.add(self)

    async def _stay(self) -> None:
        try:
            while not self._has_left:
                await self._news.wait()
        except BaseException:  # the loop has ended without the pool
            self.leave()
            raise

    async def _tell(self, level: int, count: int) -> None:
        """Give tokens up, and have the tasks that wait look whether there are some now."""
        if count:
            self._member.give_way(level, count)
        self._news.set()
        self._news = anyio.Event()

    async def take(self) -> None:
        """Take a token, and wait for one for as long as it takes; see `Membership`."""
        with self._lock:
            self._share.waiting += 1
            needs_more = self._share.wants_more()
        if needs_more:
            self._wake.put(None)
        try:
            while not self._try_take():
                await self._news.wait()
        finally:
            with self._lock:
                self._share.waiting -= 1

    def _try_take(self) -> bool:
        with self._lock:
            return self._share.take(time.monotonic())

    # --- from any thread ----------------------------------------------------------------------

    def give_back(self) -> None:
        """Give a token back that was taken. From any thread."""
        with self._lock:
            self._share.give_back()
        self._wake.put(None)

    def leave(self) -> None:
        """Give everything back, and end. From any thread."""
        with self._lock:
            self._has_left = True
        if threading.get_ident() == self._loop_thread:
            self._news.set()
        self._wake.put(None)

    def wait_left(self, seconds: float) -> None:
        """Wait until Redis knows that the member has left."""
        self._thread.join(seconds)

    def stats(self) -> BudgetStats:
        """Return how many tokens are used, and by which processes, as Redis said last. From any thread."""
        return replace(self._stats, held=self._share.used)

    # --- in the thread ------------------------------------------------------------------------

    def sync_first(self) -> None:
        """Become a member.

        Raises:
            PoolConfigError: If that is impossible.
        """
        try:
            members = self._sync()
        except NO_ANSWER as error:
            msg = f"budget {self._budget.name!r}: {reason(error)}"
            raise PoolConfigError(msg) from None
        warn_if_small(self._budget.name, self._budget.total, self._budget.floor, members)

    def _run(self) -> None:
        while not self._has_left:
            longest = SYNC_HUNGRY_EVERY if self._share.is_hungry() else self._sync_every
            longest = min(longest, self._budget.ttl / SYNCS_PER_TTL)
            with suppress(Empty):
                self._wake.get(timeout=longest * random.uniform(0.8, 1.0))  # noqa: S311 - members fall out of step
            while not self._wake.empty():
                self._wake.get()
            if not self._has_left:
                self._sync_or_go_on()
        with suppress(Exception):  # a client of the application may be closed by now, also in the midst of this
            self._books.sync(self._name, self._share.ask(time.monotonic()), is_leaving=True)
        self._books.close_idle()

    def _sync_or_go_on(self) -> None:
        try:
            self._sync()
        except NO_ANSWER as error:
            granted = self._share.granted
            self._note(f"the budget {self._budget.name!r} does not grow: {reason(error)}; this pool keeps to {granted}")
        except PoolConfigError as error:
            self._note(str(error))

    def _note(self, trouble: str | None, **news: Any) -> None:
        """Note what Redis said, and whether the budget can grow; the log tells when that changes."""
        name = self._budget.name
        if (trouble is None) != (self._stats.trouble is None) and not self._has_left:
            event = "budget_back" if trouble is None else "budget_away"
            line = trouble or f"the budget {name!r} can grow again"
            logger.warning("%s", line, extra=facts(event, None, budget=name))
        self._stats = replace(self._stats, trouble=trouble, **news)

    def _sync(self) -> int:
        """Say what the pool needs, and do what Redis answers; returns how many members there are."""
        with self._lock:
            request = self._share.ask(time.monotonic())
        try:
            answer = self._books.sync(self._name, request)
        except NO_ANSWER:
            with self._lock:
                self._share.fail(request)
            raise
        if answer[0] == "disagrees":
            raise self._disagreement(*answer[1:])
        if answer[0] == "late":  # redis-py has sent it twice, and the first answer was lost
            with self._lock:
                self._share.fail(request)
            return 0
        granted, asked, level, used, count, grace, *named = answer[1:]
        with self._lock:
            surplus = self._share.grant(request, granted)
        members: Counter[str] = Counter()
        for name, held in zip(named[::2], map(int, named[1::2]), strict=True):
            members[_process(name)] += held
        if used > members.total():
            members["others"] = used - members.total()
        waits = f"does not grow for {grace / 1000:.0f} s: its Redis was away, or is new to it"
        trouble = f"the budget {self._budget.name!r} {waits}" if grace else None
        self._note(trouble, used=used, members=dict(members))
        is_full = used >= self._budget.total
        self._sync_every = min(SYNC_EVERY, max(SYNC_HUNGRY_EVERY, count / MOST_SYNCS)) if is_full else SYNC_EVERY
        if surplus:
            self._tell_soon(granted, surplus)
        elif asked or self._share.waiting:
            self._tell_soon(level, asked)
        return int(count)

    def _tell_soon(self, level: int, count: int) -> None:
        # The pool leaves before its loop ends: under the lock, no task begins after that, which would never run.
        with self._lock, suppress(RuntimeError):  # the loop has ended without the pool
            if not self._has_left:
                self._member.spawn(partial(self._tell, level, count))

    def _disagreement(self, total: str, ttl: str, other: str) -> PoolConfigError:
        budget = self._budget
        return PoolConfigError(
            f"budget {budget.name!r}: total={budget.total}, ttl={budget.ttl:g} here, in {_process(self._name)}, but "
            f"total={total}, ttl={int(ttl) / 1000:g} in {_process(other)}. Give all members the same, or this one "
            "another name"
        )


def _process(member: str) -> str:
    host, process, _ = member.rsplit("/", 2)
    return f"process {process} on {host}"


@atexit.register
def _leave_all() -> None:
    """Give all tokens back at the end of the interpreter, which ends daemon threads at any moment."""
    members = tuple(_MEMBERS)
    for member in members:
        member.leave()
    ends_at = time.monotonic() + LEAVE_WITHIN
    for member in members:
        member.wait_left(max(0.0, ends_at - time.monotonic()))
