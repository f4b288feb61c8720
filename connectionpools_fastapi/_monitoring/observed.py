"""ObservedPool: a driver's own pool, which health and metrics show like a ConnectionPool."""

import inspect
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from .._core.policy import check_name
from ..errors import PoolConfigError, describe, own
from ..stats import ObservedStats
from .prober import DriverPool, Prober

# For each kind of pool: its module and class, and the module and class in `drivers` that read it.
KINDS = (
    ("asyncpg", "Pool", "asyncpg", "AsyncpgPool"),
    ("psycopg_pool", "AsyncConnectionPool", "psycopg", "PsycopgAsyncPool"),
    ("psycopg_pool", "ConnectionPool", "psycopg", "PsycopgThreadPool"),
    ("sqlalchemy.ext.asyncio", "AsyncEngine", "sqlalchemy", "AsyncEnginePool"),
    ("sqlalchemy", "Engine", "sqlalchemy", "ThreadEnginePool"),
    ("redis.asyncio", "ConnectionPool", "redis", "RedisAsyncPool"),
    ("redis", "ConnectionPool", "redis", "RedisThreadPool"),
    ("aiomysql", "Pool", "mysql", "MysqlPool"),
    ("asyncmy", "Pool", "mysql", "MysqlPool"),
    ("connectionpools_fastapi.adapters.pymongo", "PoolEvents", "pymongo", "PymongoPools"),
)


class ObservedPool:
    """A driver's own pool, for `install_pools`, `PoolMiddleware`, `PoolCollector` and `observe_pools`.

    `observe` makes it. It lends nothing, and only the application opens and closes the driver's
    pool. Every method may be called from any thread.
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
        """Return a frozen snapshot of the driver's pool.

        Returns:
            Its numbers; None for one that the driver does not know.
        """
        found = self._prober()
        if not isinstance(found, Prober):
            return ObservedStats(name=self._name, status="new", cause=found)
        return found.driver.stats(self._name, found.cause)

    def holders(self) -> None:
        """Return None: no driver knows the holders of its connections."""
        return

    async def probe(self, *, max_age: float = 5.0, timeout: float = 2.0) -> bool:
        """Find out whether the back-end answers, without ever queueing for a connection.

        It takes a connection that is free, or for which there is room, from the driver's pool, and
        asks the server. It tries nothing if a try has succeeded in the last `max_age` seconds, has
        failed in the last second, or would have to queue. Calls at the same time share one try.

        Args:
            max_age: How old the last success may be, in seconds.
            timeout: How long to wait for an answer, in seconds.

        Returns:
            False if the pool is not open, or the try failed or did not end in time. True means
            only that nothing speaks against the back-end.
        """
        found = self._prober()
        if not isinstance(found, Prober) or found.driver.stats(self._name, None).status != "open":
            return False
        return await found.probe(max_age, timeout)

    def __repr__(self) -> str:
        """Name the pool and its status, without the driver's own text."""
        return f"ObservedPool {self._name!r} ({self.stats().status})"

    def _prober(self) -> Prober | str | None:
        """Return the prober of the pool; before the pool exists, the reason, or None if it is not known."""
        try:
            pool = self._find()
            if pool is None:
                return None
            if self._found is None or self._found[0] is not pool:
                self._found = (pool, Prober(_driver_of(pool), self._clock))
            return self._found[1]
        except Exception as error:  # noqa: BLE001 - health and metrics of the other pools must go on
            return describe(error)


def observe(pool: Any, *, name: str, clock: Callable[[], float] = time.monotonic) -> ObservedPool:
    """Show a driver's own pool at /pool/health and /pool/metrics, like a ConnectionPool.

    Write `install_pools(app, observe(engine, name="db"))`. A pool that the application makes
    later, say in its lifespan, is observed as `observe(lambda: app.state.pool, name="db")`.
    Until the function returns it, health says that the pool is not open.

    Args:
        pool: An asyncpg.Pool, an AsyncConnectionPool or ConnectionPool of psycopg_pool, an
            AsyncEngine or Engine of SQLAlchemy, a ConnectionPool of redis or redis.asyncio, a Pool
            of aiomysql or asyncmy, the PoolEvents of a client of PyMongo; or a function without
            arguments that returns one, and before there is one returns None or raises. It is called
            each time, from any thread, and must not block.
        name: What health and metrics call the pool; unique in an application.
        clock: Returns the time in seconds, which never goes backwards; called from any
            thread.

    Returns:
        An object that `install_pools`, `pool_lifespan`, `PoolMiddleware`, `PoolCollector` and
        `otel.observe_pools` take like a ConnectionPool. It does not open or close the pool.

    Raises:
        PoolConfigError: If `pool` cannot be observed, or `name` is no name.
    """
    check_name(name)
    if not inspect.isroutine(pool):
        _driver_of(pool)
        return ObservedPool(name, lambda: pool, clock)
    if inspect.iscoroutinefunction(pool):
        msg = f"pool {name!r}: observe takes a plain function, as observe(lambda: app.state.pool, name={name!r})"
        raise PoolConfigError(msg)
    return ObservedPool(name, pool, clock)


def _driver_of(pool: object) -> DriverPool:
    for module, kind, adapter, driver in KINDS:
        # Looked up, not imported: if a module was never imported, there is no pool of it.
        known = getattr(sys.modules.get(module), kind, None)
        if known is not None and isinstance(pool, known):
            found: DriverPool = getattr(import_module(f"{__package__}.drivers.{adapter}"), driver)(pool)
            return found
    kinds = ", ".join(f"{module}.{kind}" for module, kind, *_ in KINDS)
    given = f"the class {pool.__name__}" if isinstance(pool, type) else type(pool).__name__
    raise own(PoolConfigError(f"observe takes one of {kinds}, or a function that returns one; got {given}"))
