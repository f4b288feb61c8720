"""RequestLeases: the leases of one request, at most one a pool; and how a request finds its pools."""

import inspect
from collections.abc import Awaitable, MutableMapping
from contextlib import suppress
from http import HTTPMethod
from typing import Any

from ._owner import current_task
from ._slot import Slot
from .errors import NotLeased, PoolConfigError
from .lease import DEFAULT, Lease
from .manager import T
from .pool import ConnectionPool
from .stats import Observable

Scope = MutableMapping[str, Any]

# Where they are kept in the ASGI scope, and where the lifespan keeps an open pool in its state.
SCOPE_KEY = "connectionpools_fastapi"
STATE_PREFIX = "connectionpools_fastapi."


class Route:
    """Names a request by its route, once somebody asks: never by what users typed."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __str__(self) -> str:
        route = self._scope.get("route")
        # Newer versions of FastAPI keep the prefixes of included routers beside the route.
        context = self._scope.get("fastapi", {}).get("effective_route_context")
        if context is not None and context.original_route is route:
            route = context.starlette_route or context
        method = self._scope.get("method", "WEBSOCKET")
        known = method == "WEBSOCKET" or method in HTTPMethod.__members__
        return f"{method if known else 'OTHER'} {getattr(route, 'path', 'unknown route')}"


# Those of a request that uses no pool: one for all, never added to.
NO_LEASES: dict[ConnectionPool[Any], Lease[Any]] = {}


class RequestLeases:
    """Shares one lease a pool among all dependencies of a request; the last user gives it back.

    Two leases of one pool in one request would deadlock as soon as all requests hold
    their first and wait for their second.
    """

    __slots__ = ("_again", "_leases")

    def __init__(self) -> None:
        self._leases = NO_LEASES
        self._again: tuple[ConnectionPool[Any], ...] = ()  # of each user but a lease's first

    @classmethod
    def of(cls, scope: Scope) -> "RequestLeases":
        """Return those of a request."""
        leases: RequestLeases | None = scope.get(SCOPE_KEY)
        if leases is None:
            leases = scope[SCOPE_KEY] = RequestLeases()
        return leases

    def is_holding(self) -> bool:
        """Whether it holds a lease, of whichever pool."""
        return bool(self._leases)

    async def enter(self, pool: ConnectionPool[T], scope: Scope) -> T:
        """Use this request's lease of a pool, which is acquired for the first user.

        Raises:
            PoolError: What acquiring raises.
            ClientGone: If the client went away while this waited.
        """
        lease: Lease[T] | None = self._leases.get(pool)
        if lease is None:
            lease = pool.lease(holder=Route(scope))
            resource = lease._hold(pool._take() or await self._wait_for(pool), self._owner())
            if pool not in self._leases:
                self._leases = {**self._leases, pool: lease}
                return resource
            lease.release_nowait()  # another task of this request was faster
            lease = self._leases[pool]
        resource = lease.resource
        self._again += (pool,)
        return resource

    def leave(self, pool: ConnectionPool[Any]) -> None:
        """Be one user less; never waits and cannot be interrupted."""
        if pool in self._again:
            again = list(self._again)
            again.remove(pool)
            self._again = tuple(again)
            return
        lease = self._leases.pop(pool)
        try:  # noqa: SIM105 - `suppress` takes as long as giving back
            lease.release_nowait()
        except NotLeased:  # the application has discarded or detached it
            pass

    def break_off(self, scope: Scope) -> None:
        """Take note that the request was cancelled.

        A thread cannot be cancelled: what a `def` endpoint may still be using is destroyed,
        and not leased to others.
        """
        if not _is_async(scope.get("endpoint")):
            for lease in self._leases.values():
                with suppress(NotLeased):
                    lease.discard()

    def _owner(self) -> object:
        # Without the middleware nobody can tell which of its waits are this request's, but those of this task.
        return current_task()

    def _wait_for(self, pool: ConnectionPool[T]) -> Awaitable[Slot[T]]:
        return pool._stand_in_line(DEFAULT, current_task())


def _is_async(endpoint: Any) -> bool:
    return any(
        inspect.iscoroutinefunction(kind) or inspect.isasyncgenfunction(kind)
        for kind in (inspect.unwrap(endpoint), getattr(endpoint, "__call__", None))  # noqa: B004 - a class's own
    )


def find_pool(scope: Scope, name: str) -> ConnectionPool[Any]:
    """Find an open pool by its name.

    Raises:
        PoolConfigError: If there is none, and it names those that there are; or if it is only observed.
    """
    pool: Observable | None = scope.get("state", {}).get(STATE_PREFIX + name)
    if isinstance(pool, ConnectionPool):
        return pool
    if pool is not None:
        raise only_observed(pool)
    names = sorted(pool.name for pool in started_pools(scope))
    if names:
        msg = f"there is no pool named {name!r} here; there are {', '.join(map(repr, names))}"
    else:
        msg = (
            f"there is no pool named {name!r} here, since none was opened. Call install_pools(app, pool), and let the "
            "application's lifespan run: in tests `with TestClient(app)`, or `async with started(app)` of "
            "connectionpools_fastapi.testing; a mounted sub-application's own lifespan never runs, "
            "so install its pools in the outermost application"
        )
    raise PoolConfigError(msg)


def only_observed(pool: Observable) -> PoolConfigError:
    """Say that nothing can be leased from a driver's own pool through us."""
    return PoolConfigError(
        f"pool {pool.name!r} is only observed, and an observed pool is not leased from. Take connections from the "
        "driver's own pool as before, or make a ConnectionPool with the driver's manager"
    )


def started_pools(scope: Scope) -> list[Observable]:
    """Return the pools that the lifespan has opened, and those that it observes."""
    state = scope.get("state", {})
    return [pool for key, pool in state.items() if isinstance(key, str) and key.startswith(STATE_PREFIX)]
