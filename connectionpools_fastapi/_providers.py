"""Providers: the callables behind Leased and Pooled, which stand for a pool in an application's dependencies."""

from collections.abc import AsyncIterator
from typing import Any, ClassVar, Self

from starlette.requests import HTTPConnection

from ._exchange import Exchange
from ._request import SCOPE_KEY, RequestLeases, Scope, find_pool
from .errors import PoolConfigError
from .pool import ConnectionPool


class Provider(tuple[Any, ...]):
    """A dependency that stands for a pool: equal to each other one of its kind for that pool.

    Equality is what makes FastAPI call it once a request, and `dependency_overrides` find it. It is
    that of tuples, since FastAPI looks a dependency up three times a request.
    """

    __slots__ = ()
    kind: ClassVar[str]

    def __new__(cls, pool: ConnectionPool[Any] | str) -> Self:
        return super().__new__(cls, (cls.kind, pool))

    def resolve(self, scope: Scope) -> ConnectionPool[Any]:
        """Return the pool that it stands for.

        Raises:
            PoolConfigError: If no pool of that name was opened.
        """
        pool: ConnectionPool[Any] | str = self[1]
        return find_pool(scope, pool) if isinstance(pool, str) else pool


class LeaseUntilResponse(Provider):
    """Leases for a request; PoolMiddleware gives back."""

    __slots__ = ()
    kind = "Leased"  # also of the one below: one override serves all scopes

    async def __call__(self, connection: HTTPConnection) -> Any:
        """Lease for this request, once."""
        scope = connection.scope
        pool = self.resolve(scope)
        exchange = scope.get(SCOPE_KEY)
        if not isinstance(exchange, Exchange):
            msg = (
                f"pool {pool.name!r}: nothing here gives the resource back. Call install_pools(app, pool), or "
                'app.add_middleware(PoolMiddleware), or write Leased(pool, scope="request")'
            )
            raise PoolConfigError(msg)
        resource = await exchange.enter(pool, scope)
        exchange.keep_until_response(pool, scope)
        return resource


class LeaseUntilExit(Provider):
    """Leases for a request or a function; FastAPI's own exit gives back."""

    __slots__ = ()
    kind = "Leased"

    async def __call__(self, connection: HTTPConnection) -> AsyncIterator[Any]:
        """Lease until FastAPI leaves the dependency."""
        leases = RequestLeases.of(connection.scope)
        pool = self.resolve(connection.scope)
        resource = await leases.enter(pool, connection.scope)
        try:
            yield resource
        except Exception:
            raise
        except BaseException:
            leases.break_off(connection.scope)
            raise
        finally:
            leases.leave(pool)


class PoolItself(Provider):
    """Provides the pool itself."""

    __slots__ = ()
    kind = "Pooled"

    async def __call__(self, connection: HTTPConnection) -> ConnectionPool[Any]:
        """Return the pool."""
        return self.resolve(connection.scope)
