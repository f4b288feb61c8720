"""What requests take from pools during a run of tests: one table, for `--pool-report`."""

from collections.abc import Iterable
from contextlib import ExitStack
from functools import wraps
from threading import Lock
from types import TracebackType
from typing import Any, Self

from .._asgi.exchange import Exchange
from .._core.inventory import Inventory
from .._core.slot import Slot
from .._runtime.request_context import REQUEST

HEAD = ("route", "requests", "pool", "leases", "leases/request", "held (s)", "held at most (s)")

# How often a route was asked for; and, by route and pool: how many leases, for how long in all, for how long at most.
Requests = dict[str, int]
Leases = dict[tuple[str, str], tuple[int, float, float]]
Record = tuple[Requests, Leases]


class recorder:  # noqa: N801 - a context manager that reads as a function, like `guard`
    """Counts, while the block runs, requests by route, and their leases by pool; in all loops and threads."""

    def __init__(self) -> None:
        self._requests: Requests = {}
        self._leases: Leases = {}
        self._lock = Lock()  # protects both
        self._patches = ExitStack()

    def __enter__(self) -> Self:
        own_close, own_end = Exchange.close, Inventory.end

        @wraps(own_close)
        def close(exchange: Exchange) -> None:
            own_close(exchange)
            with self._lock:
                self._requests[str(exchange)] = self._requests.get(str(exchange), 0) + 1

        @wraps(own_end)
        def end(inventory: Inventory[Any], slot: Slot[Any], now: float) -> None:
            since = slot.since
            own_end(inventory, slot, now)
            request = REQUEST.get()
            if request is not None:
                key = str(request), inventory.policy.name
                with self._lock:
                    count, held, longest = self._leases.get(key, (0, 0.0, 0.0))
                    self._leases[key] = (count + 1, held + now - since, max(longest, now - since))

        for kind, name, method in ((Exchange, "close", close), (Inventory, "end", end)):
            self._patches.callback(setattr, kind, name, getattr(kind, name))
            setattr(kind, name, method)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._patches.close()

    def record(self) -> Record:
        """Return what was counted, in what a worker of pytest-xdist can send."""
        return self._requests, self._leases


def table_of(records: Iterable[Record]) -> str:
    """Write one table of what was counted in several processes; the routes that held the longest come first."""
    requests: Requests = {}
    leases: Leases = {}
    for some_requests, some_leases in records:
        for route, count in some_requests.items():
            requests[route] = requests.get(route, 0) + count
        for key, (count, held, longest) in some_leases.items():
            before = leases.get(key, (0, 0.0, 0.0))
            leases[key] = (before[0] + count, before[1] + held, max(before[2], longest))
    rows = []
    for (route, pool), (count, held, longest) in sorted(leases.items(), key=lambda item: -item[1][1]):
        asked = requests.get(route, 0)
        each = f"{count / asked:.2f}" if asked else ""
        rows.append((route, str(asked), pool, str(count), each, f"{held:.3f}", f"{longest:.3f}"))
    used = {route for route, _ in leases}
    rows += [
        (route, str(count), "", "0", "0", "", "") for route, count in sorted(requests.items()) if route not in used
    ]
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    lines = [HEAD, tuple("-" * width for width in widths), *rows]
    return "".join(f"| {' | '.join(map(str.ljust, line, widths))} |\n" for line in lines)
