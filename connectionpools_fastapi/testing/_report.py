"""What requests take from pools during a run of tests: one table, for `--pool-report`."""

import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial, wraps
from threading import Lock
from types import TracebackType
from typing import Any, Self

from .._asgi.exchange import Exchange
from .._core.inventory import Inventory
from .._core.slot import Slot
from .._runtime.engine import Engine
from .._runtime.request_context import REQUEST

HEAD = (
    *("route", "requests", "pool", "leases", "leases/request", "held (s)", "held at most (s)", "unused (s)"),
    "queries",
)

# How often a route was asked for; and, by route and pool, how many queries; how many leases, for how long in all, for
# how long at most, and for how long after the response had begun.
Requests = dict[str, int]
Queries = dict[tuple[str, str], int]
Leases = dict[tuple[str, str], tuple[int, float, float, float]]
Record = tuple[Requests, Queries, Leases]


class recorder:  # noqa: N801 - a context manager that reads as a function, like `guard`
    """Counts, while the block runs, requests by route, and their leases by pool; in all loops and threads."""

    def __init__(self) -> None:
        self._requests: Requests = {}
        self._queries: Queries = {}
        self._leases: Leases = {}
        self._lock = Lock()  # protects these
        self._patches = ExitStack()

    def __enter__(self) -> Self:
        own_close, own_end, own_lend = Exchange.close, Inventory.end, Engine.lend

        @wraps(own_close)
        def close(exchange: Exchange) -> None:
            own_close(exchange)
            with self._lock:
                self._requests[str(exchange)] = self._requests.get(str(exchange), 0) + 1

        @wraps(own_end)
        def end(inventory: Inventory[Any], slot: Slot[Any], now: float) -> None:
            since, lease = slot.since, None if slot.lease is None else slot.lease()
            own_end(inventory, slot, now)
            request = REQUEST.get()
            if request is not None:
                unused = now - getattr(lease, "_responding_since", now)
                key, more = (str(request), inventory.policy.name), (1, now - since, now - since, unused)
                with self._lock:
                    self._leases[key] = _sum(self._leases.get(key), more)

        @wraps(own_lend)
        def lend(engine: Engine[Any], slot: Slot[Any]) -> Any:
            lent = own_lend(engine, slot)
            request = REQUEST.get()
            if request is not None:
                self._listen(lent, (str(request), engine.name))
            return lent

        for kind, name, method in ((Exchange, "close", close), (Inventory, "end", end), (Engine, "lend", lend)):
            self._patches.callback(setattr, kind, name, getattr(kind, name))
            setattr(kind, name, method)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._patches.close()

    def _listen(self, lent: Any, key: tuple[str, str]) -> None:
        """Count the queries of a lease, if its driver tells them: asyncpg, or any below SQLAlchemy."""
        count = partial(self._count, key)
        sqlalchemy: Any = sys.modules.get("sqlalchemy")
        connection = getattr(lent, "sync_connection", lent)
        if sqlalchemy is not None and isinstance(connection, sqlalchemy.Connection):
            sqlalchemy.event.listen(connection, "before_cursor_execute", lambda *_: count(1))
        elif hasattr(lent, "add_query_logger"):
            lent.add_query_logger(lambda _: count(1))
        else:
            return
        count(0)

    def _count(self, key: tuple[str, str], queries: int) -> None:
        with self._lock:
            self._queries[key] = self._queries.get(key, 0) + queries

    def record(self) -> Record:
        """Return what was counted, in what a worker of pytest-xdist can send."""
        return self._requests, self._queries, self._leases


def _sum(
    one: tuple[int, float, float, float] | None, other: tuple[int, float, float, float]
) -> tuple[int, float, float, float]:
    if one is None:
        return other
    return one[0] + other[0], one[1] + other[1], max(one[2], other[2]), one[3] + other[3]


def table_of(records: Iterable[Record]) -> str:
    """Write one table of what was counted in several processes; the routes that held the longest come first."""
    requests: Counter[str] = Counter()
    queries: Counter[tuple[str, str]] = Counter()
    leases: Leases = {}
    for some_requests, some_queries, some_leases in records:
        requests.update(some_requests)
        queries.update(some_queries)
        for key, more in some_leases.items():
            leases[key] = _sum(leases.get(key), more)
    rows = []
    for (route, pool), (count, held, longest, unused) in sorted(leases.items(), key=lambda item: -item[1][1]):
        asked = requests[route]
        each = f"{count / asked:.2f}" if asked else ""
        seconds = f"{held:.3f}", f"{longest:.3f}", f"{unused:.3f}"
        rows.append((route, str(asked), pool, str(count), each, *seconds, str(queries.get((route, pool), ""))))
    used = {route for route, _ in leases}
    rows += [
        (route, str(count), "", "0", "0", "", "", "", "")
        for route, count in sorted(requests.items())
        if route not in used
    ]
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    lines = [HEAD, tuple("-" * width for width in widths), *rows]
    return "".join(f"| {' | '.join(map(str.ljust, line, widths))} |\n" for line in lines)
