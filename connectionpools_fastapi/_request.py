"""RequestLeases: the leases of one request, at most one a pool; and how a request finds its pools."""

import inspect
from collections.abc import MutableMapping
from contextlib import suppress
from http import HTTPMethod
from typing import Any

from ._disconnect import Inbox
from ._owner import current_task
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


class _Shared:
    """A lease and how many users of it are left."""

    __slots__ = ("lease", "users")

    def __init__(self, lease: Lease[Any]) -> None:
        self.lease = lease
        self.users = 0


class RequestLeases:
    """Shares one lease a pool among all dependencies of a request; the last user gives it back.

    Two leases of one pool in one request would deadlock as soon as all requests hold
    their first and wait for their second.
    """

    __slots__ = ("_inbox", "_leases", "_running", "_until_response")

    def __init__(self, inbox: Inbox | None) -> None:
        self._inbox = inbox  # the middleware's, where there is one
        self._leases: dict[ConnectionPool[Any], _Shared] = {}
        self._until_response: list[ConnectionPool[Any]] = []
        self._running = 0  # endpoints that use them and have not returned

    @classmethod
    def of(cls, scope: Scope) -> "RequestLeases":
        """Return those of a request."""
        leases: RequestLeases | None = scope.get(SCOPE_KEY)
        if leases is None:
            leases = scope[SCOPE_KEY] = cls(None)
        return leases

    def is_holding(self) -> bool:
        """Whether it holds a lease, of whichever pool."""
        return bool(self._leases)

    @property
    def ends_with_response(self) -> bool:
        """Whether somebody (the middleware) will call `end_response`."""
        return self._inbox is not None

    async def enter(self, pool: ConnectionPool[T], scope: Scope) -> T:
        """Use this request's lease of a pool, which is acquired for the first user.

        Raises:
            PoolError: What acquiring raises.
            ClientGone: If the client went away while this waited.
        """
        if pool not in self._leases:
            lease = pool.lease(holder=Route(scope))
            slot = pool._take()
            if self._inbox is None:
                # Nobody can tell which of its waits are this request's, but those of this task.
                task = current_task()
                lease._hold(slot or await pool._stand_in_line(DEFAULT, task), task)
            else:
                lease._hold(slot or await self._inbox.wait_for(pool, current_task()), self)
            if pool in self._leases:  # another task of this request was faster
                lease.release_nowait()
            else:
                self._leases[pool] = _Shared(lease)
        shared = self._leases[pool]
        resource: T = shared.lease.resource
        shared.users += 1
        return resource

    def leave(self, pool: ConnectionPool[Any]) -> None:
        """Be one user less; never waits and cannot be interrupted."""
        shared = self._leases[pool]
        shared.users -= 1
        if not shared.users:
            del self._leases[pool]
            with suppress(NotLeased):  # the application has discarded or detached it
                shared.lease.release_nowait()

    def break_off(self, scope: Scope) -> None:
        """Take note that the request was cancelled.

        A thread cannot be cancelled: what a `def` endpoint may still be using is destroyed,
        and not leased to others.
        """
        if not _is_async(scope.get("endpoint")):
            for shared in self._leases.values():
                with suppress(NotLeased):
                    shared.lease.discard()

    async def enter_until_response(self, pool: ConnectionPool[T], scope: Scope) -> T:
        """Use the lease until just before the last part of the response."""
        resource = await self.enter(pool, scope)
        # FastAPI's own stack of what ends with the endpoint; not documented, as old as scopes of dependencies.
        if not self._until_response and (stack := scope.get("fastapi_function_astack")) is not None:
            self._running += 1
            stack.callback(self._returned)
        self._until_response.append(pool)
        return resource

    def _returned(self) -> None:
        self._running -= 1

    def end_body(self) -> None:
        """End the response, unless it is not the endpoint's: a middleware may answer while that still runs."""
        if not self._running:
            self.end_response()

    def end_response(self) -> None:
        """Give back what was only leased until now."""
        while self._until_response:
            self.leave(self._until_response.pop())


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
