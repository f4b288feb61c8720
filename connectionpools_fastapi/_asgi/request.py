"""RequestLeases: the leases of one request, at most one a pool; and how a request finds its pools."""

import inspect
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPMethod
from typing import Any

from starlette.requests import ClientDisconnect

from .._core.policy import DEFAULT, Default
from .._core.slot import T
from .._core.terms import Terms
from .._runtime.callables import is_async
from .._runtime.caller import current_task
from ..errors import NotLeased, only
from ..lease import Lease
from ..pool import ConnectionPool
from .pools import Scope

# The key of a request's leases in the ASGI scope.
SCOPE_KEY = "connectionpools_fastapi"


METHODS = frozenset((*HTTPMethod.__members__, "WEBSOCKET"))


def route_name(scope: Scope) -> str:
    """Name a request by its route, never by its actual path."""
    route = scope.get("route")
    # Newer versions of FastAPI store the prefixes of included routers beside the route.
    context = scope.get("fastapi", {}).get("effective_route_context")
    if context is not None and context.original_route is route:
        route = context.starlette_route or context
    method = scope.get("method", "WEBSOCKET")
    return f"{method if method in METHODS else 'OTHER'} {getattr(route, 'path', 'unknown route')}"


class Route:
    """Names a request by its route, never by its actual path, and only when the name is needed."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __str__(self) -> str:
        return route_name(self._scope)


# The leases of a request that uses no pool: one shared dict, never added to.
NO_LEASES: dict[ConnectionPool[Any], Lease[Any]] = {}


class RequestLeases:
    """Shares one lease a pool among all dependencies of a request; the last user gives it back.

    Two leases of one pool in one request would deadlock as soon as all requests hold
    their first and wait for their second.
    """

    __slots__ = ("_again", "_leases")

    def __init__(self) -> None:
        self._leases = NO_LEASES
        self._again: tuple[ConnectionPool[Any], ...] = ()  # one entry for each user of a lease after its first

    @classmethod
    def of(cls, scope: Scope) -> "RequestLeases":
        """Return the leases of a request."""
        leases: RequestLeases | None = scope.get(SCOPE_KEY)
        if leases is None:
            leases = scope[SCOPE_KEY] = RequestLeases()
        return leases

    def is_answered(self) -> bool:
        """Whether its response has begun; not known without PoolMiddleware."""
        return False

    def is_holding(self) -> bool:
        """Whether the request holds a lease of any pool."""
        return bool(self._leases)

    async def enter(self, pool: ConnectionPool[T], scope: Scope, terms: Terms = DEFAULT) -> T:
        """Use this request's lease of a pool; the first user acquires it.

        Args:
            pool: The pool.
            scope: The request's scope.
            terms: Those of the first user.

        Raises:
            PoolError: What acquiring raises.
            ClientGone: If the client goes away meanwhile.
        """
        lease: Lease[T] | None = self._leases.get(pool)
        if lease is None:
            lease = (
                pool.lease(holder=Route(scope))
                if isinstance(terms, Default)
                else pool.lease(timeout=terms.timeout, priority=terms.priority, holder=Route(scope))
            )
            resource = lease.resource if lease.try_enter(self._owner()) else await self._wait_for(lease)
            if pool not in self._leases:
                self._leases = {**self._leases, pool: lease}
                return resource
            lease.release_nowait()  # another task of this request was faster
            lease = self._leases[pool]
        resource = lease.resource
        self._again += (pool,)
        return resource

    def leave(self, pool: ConnectionPool[Any], end: Callable[[Lease[Any]], None] = Lease.release_nowait) -> None:
        """Remove one user; the last one ends the lease. It never waits and cannot be interrupted."""
        if pool in self._again:
            again = list(self._again)
            again.remove(pool)
            self._again = tuple(again)
            return
        lease = self._leases.pop(pool)
        try:  # noqa: SIM105 - `suppress` takes as long as giving back
            end(lease)
        except NotLeased:  # the application has discarded or detached it
            pass

    async def prepare(self, pool: ConnectionPool[T], prepare: object, act: Callable[[T], object]) -> None:
        """Have this request's lease of a pool prepared; if the lease is overridden, there is nothing to prepare."""
        lease: Lease[T] | None = self._leases.get(pool)
        if lease is not None:
            await lease.prepare(prepare, act)

    def was_left(self, error: BaseException | None) -> bool:
        """Whether the client has gone away during the response; without the middleware, only the error tells."""
        return error is not None and only(ClientDisconnect, error) is not None

    def judge(self, error: BaseException) -> None:
        """Note, for each lease, an error that ends the endpoint or the request."""
        for lease in self._leases.values():
            lease.judge(error)

    def break_off(self, scope: Scope) -> None:
        """Note that the request was cancelled.

        A thread cannot be cancelled: a resource that a `def` endpoint may still use is destroyed,
        and not leased again.
        """
        if not runs_in_loop(scope.get("endpoint")):
            for lease in self._leases.values():
                with suppress(NotLeased):
                    lease.discard()

    def _owner(self) -> object:
        # Without the middleware the request is not known, so its task stands for it.
        return current_task()

    def _wait_for(self, lease: Lease[T]) -> Awaitable[T]:
        return lease.enter(owner=self._owner())


def runs_in_loop(endpoint: Any) -> bool:
    """Whether an endpoint runs in the event loop, and not on a worker thread."""
    return is_async(endpoint) or is_async(inspect.unwrap(endpoint))
