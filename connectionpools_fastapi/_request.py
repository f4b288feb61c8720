"""RequestLeases: the leases of one request, at most one a pool."""

from collections.abc import MutableMapping
from typing import Any

from .errors import PoolConfigError
from .lease import Lease
from .manager import T
from .pool import ConnectionPool

Scope = MutableMapping[str, Any]

# Where they are kept in the ASGI scope, and where the lifespan keeps an open pool in its state.
SCOPE_KEY = "connectionpools_fastapi"
STATE_PREFIX = "connectionpools_fastapi."


class Route:
    """Names the holder of a lease by its route, once somebody asks."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __str__(self) -> str:
        # The route's template and not the request's path, which may hold what users typed.
        path = getattr(self._scope.get("route"), "path", "unknown route")
        return f"{self._scope.get('method', 'WEBSOCKET')} {path}"


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

    __slots__ = ("_leases", "_until_response", "ends_with_response")

    def __init__(self, *, ends_with_response: bool) -> None:
        # Whether somebody (the middleware) will call `end_response`.
        self.ends_with_response = ends_with_response
        self._leases: dict[ConnectionPool[Any], _Shared] = {}
        self._until_response: list[ConnectionPool[Any]] = []

    @classmethod
    def of(cls, scope: Scope) -> "RequestLeases":
        """Return those of a request."""
        leases: RequestLeases | None = scope.get(SCOPE_KEY)
        if leases is None:
            leases = scope[SCOPE_KEY] = cls(ends_with_response=False)
        return leases

    async def enter(self, pool: ConnectionPool[T], scope: Scope) -> T:
        """Use this request's lease of a pool, which is acquired for the first user."""
        shared = self._leases.get(pool)
        if shared is None:
            shared = _Shared(pool.lease(holder=Route(scope)))
            await shared.lease.__aenter__()
            self._leases[pool] = shared
        shared.users += 1
        resource: T = shared.lease.resource
        return resource

    def leave(self, pool: ConnectionPool[Any]) -> None:
        """Be one user less; never waits and cannot be interrupted."""
        shared = self._leases[pool]
        shared.users -= 1
        if not shared.users:
            del self._leases[pool]
            shared.lease.release_soon()

    async def enter_until_response(self, pool: ConnectionPool[T], scope: Scope) -> T:
        """Use the lease until just before the last part of the response."""
        resource = await self.enter(pool, scope)
        self._until_response.append(pool)
        return resource

    def end_response(self) -> None:
        """Give back what was only leased until now."""
        while self._until_response:
            self.leave(self._until_response.pop())


def find_pool(scope: Scope, name: str) -> ConnectionPool[Any]:
    """Find an open pool by its name.

    Raises:
        PoolConfigError: If there is none; it names those that there are.
    """
    pool: ConnectionPool[Any] | None = scope.get("state", {}).get(STATE_PREFIX + name)
    if pool is not None:
        return pool
    names = sorted(pool.name for pool in started_pools(scope))
    if names:
        msg = f"Leased({name!r}): the application has no pool of this name; it has {', '.join(map(repr, names))}"
    else:
        msg = (
            f"Leased({name!r}): the application has no open pool. Call install_pools(app, pool), and let its lifespan "
            "run: in tests `with TestClient(app)`; a mounted sub-application's own lifespan never runs, "
            "so install its pools in the outermost application"
        )
    raise PoolConfigError(msg)


def started_pools(scope: Scope) -> list[ConnectionPool[Any]]:
    """Return the pools that the lifespan has opened."""
    state = scope.get("state", {})
    return [pool for key, pool in state.items() if isinstance(key, str) and key.startswith(STATE_PREFIX)]
