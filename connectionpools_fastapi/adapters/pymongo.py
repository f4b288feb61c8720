"""PoolEvents: what a client of PyMongo tells of its pools, for `observe`; needs the extra `pymongo`."""

import threading
from collections import Counter
from typing import Any

from connectionpools_fastapi import ObservedStats

try:
    from pymongo import monitoring
except ImportError as _error:
    msg = "connectionpools_fastapi.adapters.pymongo needs PyMongo: pip install 'connectionpools-fastapi[pymongo]'"
    raise ImportError(msg) from _error

# A client has this limit for each server, if its options name no other; then the event names none.
DEFAULT_LIMIT = 100
# Counted under the names of the specification (Connection Monitoring and Pooling).
COUNTED = ("connectionCheckedOut", "connectionCheckOutFailed", "connectionClosed", "connectionCreated", "poolCleared")


class _ServerPool:
    """The connections to one server, by their numbers."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.limit = options.get("maxPoolSize", DEFAULT_LIMIT)
        self.is_ready = False  # whether the server answers, as the client's own checks have found
        self.made: set[int] = set()
        self.ready: set[int] = set()
        self.taken: set[int] = set()
        self.waiting = 0


class PoolEvents(monitoring.ConnectionPoolListener):
    """Counts the connections of one MongoClient or AsyncMongoClient, of all its servers together.

    A client has a pool for each server and tells of them only by events, to listeners that it
    got when it was made. So make one of these for each client, give it to the client, and
    observe it. All methods may be called from any thread; PyMongo calls those for its events.

    Health passes while the client's own checks find a server that answers; it sends no
    command. A client is open from its first connection on: connect at start-up, as by
    `await client.aconnect()`, or health says until then that the pool is not open.

    Example:
        ```python
        events = PoolEvents()
        client = AsyncMongoClient("mongodb://localhost", event_listeners=[events])
        install_pools(app, observe(events, name="mongo"))
        ```
    """

    def __init__(self) -> None:
        """Begin with a client that has no pool yet."""
        self._lock = threading.Lock()  # protects all below; nothing waits while holding it
        self._pools: dict[Any, _ServerPool] = {}
        self._is_opened = False
        self._create_failures = 0
        self._counts: Counter[str] = Counter(dict.fromkeys(COUNTED, 0))

    @property
    def is_ready(self) -> bool:
        """Whether the client can reach a server, as its own checks have found."""
        with self._lock:
            return any(pool.is_ready for pool in self._pools.values())

    def stats(self, name: str, cause: str | None = None) -> ObservedStats:
        """Return a frozen snapshot of the numbers.

        Args:
            name: The name under which the client is observed.
            cause: The type of the error of the last probe.

        Returns:
            The numbers of all servers together.
        """
        with self._lock:
            pools = list(self._pools.values())
            limits = [pool.limit for pool in pools]
            free = sum(len(pool.ready - pool.taken) for pool in pools)
            return ObservedStats(
                name=name,
                status="open" if pools else "closed" if self._is_opened else "new",
                limit=sum(limits) if limits and all(limits) else None,
                free=free,
                taken=sum(len(pool.made) for pool in pools) - free,
                waiting=sum(pool.waiting for pool in pools),
                create_failures=self._create_failures,
                cause=cause,
                driver=dict(self._counts),
            )

    def pool_created(self, event: monitoring.PoolCreatedEvent) -> None:
        """Note a new pool."""
        with self._lock:
            self._is_opened = True
            self._pools[event.address] = _ServerPool(event.options or {})

    def pool_ready(self, event: monitoring.PoolReadyEvent) -> None:
        """Note that a server answers."""
        with self._lock:
            self._of(event).is_ready = True

    def pool_cleared(self, event: monitoring.PoolClearedEvent) -> None:
        """Note that a server does not answer any more."""
        with self._lock:
            self._counts["poolCleared"] += 1
            self._of(event).is_ready = False

    def pool_closed(self, event: monitoring.PoolClosedEvent) -> None:
        """Forget a pool."""
        with self._lock:
            self._pools.pop(event.address, None)

    def connection_created(self, event: monitoring.ConnectionCreatedEvent) -> None:
        """Note a connection that is being made."""
        with self._lock:
            self._counts["connectionCreated"] += 1
            self._of(event).made.add(event.connection_id)

    def connection_ready(self, event: monitoring.ConnectionReadyEvent) -> None:
        """Note that a connection is made."""
        with self._lock:
            self._of(event).ready.add(event.connection_id)

    def connection_closed(self, event: monitoring.ConnectionClosedEvent) -> None:
        """Forget a connection."""
        with self._lock:
            self._counts["connectionClosed"] += 1
            pool = self._of(event)
            if event.reason == monitoring.ConnectionClosedReason.ERROR and event.connection_id not in pool.ready:
                self._create_failures += 1
            for connections in (pool.made, pool.ready, pool.taken):
                connections.discard(event.connection_id)

    def connection_check_out_started(self, event: monitoring.ConnectionCheckOutStartedEvent) -> None:
        """Note a caller that waits."""
        with self._lock:
            self._of(event).waiting += 1

    def connection_check_out_failed(self, event: monitoring.ConnectionCheckOutFailedEvent) -> None:
        """Note a caller that got no connection."""
        with self._lock:
            self._counts["connectionCheckOutFailed"] += 1
            self._of(event).waiting -= 1

    def connection_checked_out(self, event: monitoring.ConnectionCheckedOutEvent) -> None:
        """Note a connection in use."""
        with self._lock:
            self._counts["connectionCheckedOut"] += 1
            pool = self._of(event)
            pool.waiting -= 1
            pool.taken.add(event.connection_id)

    def connection_checked_in(self, event: monitoring.ConnectionCheckedInEvent) -> None:
        """Note that a connection is not in use any more."""
        with self._lock:
            self._of(event).taken.discard(event.connection_id)

    def _of(self, event: Any) -> _ServerPool:
        """Return the pool of an event; what comes after its end is counted nowhere."""
        return self._pools.get(event.address) or _ServerPool({})
