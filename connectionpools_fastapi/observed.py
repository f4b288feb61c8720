"""ObservedPool: a driver's own pool, seen by health and metrics like ours."""

import inspect
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from ._prober import DriverPool, Prober
from .errors import PoolConfigError, describe, own
from .stats import ObservedStats

# Where a kind of pool is defined, and which class of which adapter knows it.
KINDS = (
    ("asyncpg", "Pool", "_observed_asyncpg", "AsyncpgPool"),
    ("psycopg_pool", "AsyncConnectionPool", "_observed_psycopg", "PsycopgAsyncPool"),
    ("psycopg_pool", "ConnectionPool", "_observed_psycopg", "PsycopgThreadPool"),
    ("sqlalchemy.ext.asyncio", "AsyncEngine", "_observed_sqlalchemy", "AsyncEnginePool"),
    ("sqlalchemy", "Engine", "_observed_sqlalchemy", "ThreadEnginePool"),
)


class ObservedPool:
    """A driver's own pool, for `install_pools`, `PoolMiddleware`, `PoolCollector` and `observe_pools`.

    `observe` makes it. Nothing is leased from it, and nobody opens or closes the driver's
    pool but the application. Every method may be called from any thread.
    """

    def __init__(self, name: str, find: Callable[[], object], clock: Callable[[], float]) -> None:
        self._name = name
        self._find = find
        self._clock = clock
        self._found: tuple[object, Prober] | None = None

    @property
    def name(self) -> str:
        """What health and metrics call the pool."""
        return self._name

    def stats(self) -> ObservedStats:
        """Return a frozen snapshot of what the driver's pool tells.

        Returns:
            Its numbers; None is what it does not tell.
        """
        found = self._prober()
        if not isinstance(found, Prober):
            return ObservedStats(name=self._name, status="new", cause=found)
        return found.driver.stats(self._name, found.cause)

    def holders(self) -> None:
        """Return None: no driver tells who has its connections."""
        return

    async def probe(self, *, max_age: float = 5.0, timeout: float = 2.0) -> bool:
        """Find out whether the back-end answers, without ever queueing for a connection.

        A connection that is free, or for which there is room, is taken from the driver's
        pool, which asks the server. Nothing is tried if that has succeeded in the last
        `max_age` seconds, has failed in the last second, or would have to queue. Calls at the
        same time share one try.

        Args:
            max_age: How old the last success may be, in seconds.
            timeout: How long to wait for an answer, in seconds.

        Returns:
            False if the pool is not open, or the try failed or did not end in time. True says
            only that nothing speaks against the back-end.
        """
        found = self._prober()
        if not isinstance(found, Prober) or found.driver.stats(self._name, None).status != "open":
            return False
        return await found.probe(max_age, timeout)

    def __repr__(self) -> str:
        """Say what it is, and nothing of what the driver would say."""
        return f"ObservedPool {self._name!r} ({self.stats().status})"

    def _prober(self) -> Prober | str | None:
        """Return who asks the pool; before it exists, why it is not there, if that is known."""
        try:
            pool = self._find()
            if pool is None:
                return None
            if self._found is None or self._found[0] is not pool:
                self._found = (pool, Prober(_driver_of(pool), self._clock))
            return self._found[1]
        except Exception as error:  # noqa: BLE001 - health and metrics of the other pools are still to be had
            return describe(error)


def observe(pool: Any, *, name: str, clock: Callable[[], float] = time.monotonic) -> ObservedPool:
    """See a driver's own pool at /pool/health and /pool/metrics, like a ConnectionPool.

    Write `install_pools(app, observe(engine, name="db"))`. A pool that the application makes
    later, say in its lifespan, is observed as `observe(lambda: app.state.pool, name="db")`.
    Until the function returns it, health says that the pool is not open.

    Args:
        pool: An asyncpg.Pool, an AsyncConnectionPool or ConnectionPool of psycopg_pool, an
            AsyncEngine or Engine of SQLAlchemy; or a function without arguments that returns
            one, or None or raises before there is one. It is called each time, from any
            thread, and must not block.
        name: What health and metrics call the pool; unique in an application.
        clock: Where the time comes from, in seconds that never go backwards; called from
            any thread.

    Returns:
        What `install_pools`, `pool_lifespan`, `PoolMiddleware`, `PoolCollector` and
        `otel.observe_pools` take beside a ConnectionPool. It does not open or close the pool.

    Raises:
        PoolConfigError: If `pool` is nothing that can be observed, or `name` is no name.
    """
    if not isinstance(name, str) or not name:
        msg = f"a pool's name must be a string that is not empty, as name='db'; got {name!r}"
        raise PoolConfigError(msg)
    if not inspect.isroutine(pool):
        _driver_of(pool)
        return ObservedPool(name, lambda: pool, clock)
    if inspect.iscoroutinefunction(pool):
        msg = f"pool {name!r}: observe takes a plain function, as observe(lambda: app.state.pool, name={name!r})"
        raise PoolConfigError(msg)
    return ObservedPool(name, pool, clock)


def _driver_of(pool: object) -> DriverPool:
    for module, kind, adapter, driver in KINDS:
        # Looked up and not imported: of a module that nobody has imported there is no pool.
        known = getattr(sys.modules.get(module), kind, None)
        if known is not None and isinstance(pool, known):
            found: DriverPool = getattr(import_module(f"{__package__}.adapters.{adapter}"), driver)(pool)
            return found
    kinds = ", ".join(f"{module}.{kind}" for module, kind, *_ in KINDS)
    given = f"the class {pool.__name__}" if isinstance(pool, type) else type(pool).__name__
    raise own(PoolConfigError(f"observe takes one of {kinds}, or a function that returns one; got {given}"))
