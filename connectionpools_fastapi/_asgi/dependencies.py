"""Leased and Pooled: how endpoints declare that they need a resource or a pool, and the dependencies behind them."""

from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar, Concatenate, Literal, Self, TypedDict, TypeVar, overload

from fastapi import Depends, params
from starlette.requests import HTTPConnection

from .._core.policy import DEFAULT, Default
from .._core.terms import Priority, Terms, terms_of
from ..errors import PoolConfigError
from ..lease import Lease
from ..pool import ConnectionPool
from ..stats import Observable
from .exchange import Exchange
from .hang_up import HangUpScope
from .pools import Scope, find_pool, only_observed
from .prepared import PreparedLease
from .request import SCOPE_KEY, RequestLeases, runs_in_loop

T = TypeVar("T")

LeaseScope = Literal["function", "request"]
OnDisconnect = Literal["cancel"]


class LeaseOptions(TypedDict, total=False):
    """The options that each dependency on a lease takes, as `LeasedSession`; see `Leased`."""

    timeout: float | None
    priority: Priority
    on_disconnect: OnDisconnect | None
    prepare: Callable[..., object] | None


@overload
def Leased(
    pool: ConnectionPool[T],
    scope: LeaseScope | None = None,
    *,
    timeout: float | None | Default = DEFAULT,
    priority: Priority = "normal",
    on_disconnect: OnDisconnect | None = None,
    prepare: Callable[Concatenate[T, ...], object] | None = None,
) -> T: ...


@overload
def Leased(
    pool: str,
    scope: LeaseScope | None = None,
    *,
    timeout: float | None | Default = DEFAULT,
    priority: Priority = "normal",
    on_disconnect: OnDisconnect | None = None,
    prepare: Callable[..., object] | None = None,
) -> Any: ...


def Leased(  # noqa: N802 - as Depends
    pool: ConnectionPool[Any] | str,
    scope: LeaseScope | None = None,
    *,
    timeout: float | None | Default = DEFAULT,
    priority: Priority = "normal",
    on_disconnect: OnDisconnect | None = None,
    prepare: Callable[..., object] | None = None,
) -> Any:
    """Declare that an endpoint or dependency needs a leased resource.

    Write `conn: Annotated[Connection, Leased(db)]`, in HTTP and WebSocket endpoints,
    `def` or `async def`. A request holds one lease a pool, however many dependencies declare it.
    It waits in the event loop, never on a worker thread.

    Args:
        pool: The pool, or its name, which is looked up among the pools that the lifespan opened.
        scope: When to give the resource back. None: just before the last part of the response
            is sent (a stream keeps it to its end, background tasks cannot use it any more);
            needs PoolMiddleware. "function" and "request": like FastAPI's own scopes for
            dependencies with yield, after the endpoint or after the whole request.
        timeout: How long to wait at most, in seconds; by default the pool's `timeout`. None for
            ever, 0 not at all.
        priority: "high" is served before "normal", and that before "low"; see `ConnectionPool.lease`. All
            dependencies of a route that lease from one pool must agree on timeout and priority.
        on_disconnect: "cancel" cancels an `async def` HTTP endpoint whose client hangs up while it runs, so that the
            driver cancels its query on the server; the resource is then checked or destroyed. The client is watched
            from 50 ms on, and at most four cancels of an event loop are under way at once, since each may open a
            connection. None: the endpoint runs to its end. A `def` endpoint always does; a streaming response
            ends by itself when its client hangs up. Needs PoolMiddleware, and another scope than "request".
        prepare: Prepares the resource for the request, as `async def set_tenant(conn, tenant: Annotated[str,
            Depends(current_tenant)])` does. It takes the resource, and what else it needs as a dependency does;
            FastAPI solves that before it leases. It has `hook_timeout` seconds, and a `def` runs where a `def` hook
            does. If it fails, the resource is destroyed and the request gets the exception. The pool's `change` has to
            undo what it sets: a pool that does not is refused at start-up, and so are two `prepare` in one route.

    Returns:
        A FastAPI dependency, typed as the resource that it provides.

    Raises:
        PoolConfigError: If `pool`, `scope`, `timeout`, `priority`, `on_disconnect` or `prepare` is none of these.
    """
    lease = _leased(pool, scope, timeout, priority, on_disconnect)
    return lease if prepare is None else Depends(PreparedLease(lease, prepare), scope=lease.scope)


def _leased(
    pool: ConnectionPool[Any] | str,
    scope: LeaseScope | None,
    timeout: float | None | Default,
    priority: Priority,
    on_disconnect: OnDisconnect | None,
) -> params.Depends:
    _check_target("Leased", pool)
    terms = terms_of(pool if isinstance(pool, str) else pool.name, timeout, priority)
    if on_disconnect not in (None, "cancel"):
        msg = f'Leased: on_disconnect={on_disconnect!r} is unknown; write on_disconnect="cancel" or leave it out'
        raise PoolConfigError(msg)
    if on_disconnect is not None and scope == "request":
        msg = 'Leased: on_disconnect="cancel" cancels the endpoint, and scope="request" outlasts it; leave scope out'
        raise PoolConfigError(msg)
    if scope is None:
        kind = LeaseUntilResponse if on_disconnect is None else LeaseWhileConnected
        # FastAPI would else work out this scope anew for each request.
        return params.Depends(kind(pool, terms, on_disconnect), scope="request")
    if scope not in ("function", "request"):
        msg = f'Leased: scope={scope!r} is unknown; write scope="function", scope="request" or leave it out'
        raise PoolConfigError(msg)
    # Each dependency needs its own exit, even if another `Leased` of this pool came first.
    return params.Depends(LeaseUntilExit(pool, terms, on_disconnect), use_cache=False, scope=scope)


@overload
def Pooled(pool: ConnectionPool[T]) -> ConnectionPool[T]: ...


@overload
def Pooled(pool: str) -> Any: ...


def Pooled(pool: ConnectionPool[Any] | str) -> Any:  # noqa: N802 - as Depends
    """Declare that an endpoint needs the pool itself, to lease in short blocks or only sometimes.

    Write `pool: Annotated[ConnectionPool[Connection], Pooled("db")]`.

    Args:
        pool: The pool, or its name.

    Returns:
        A FastAPI dependency, typed as the pool that it provides.

    Raises:
        PoolConfigError: If `pool` is neither.
    """
    _check_target("Pooled", pool)
    return Depends(PoolItself(pool))


def _check_target(what: str, pool: object) -> None:
    if isinstance(pool, Observable) and not isinstance(pool, (ConnectionPool, type)):
        raise only_observed(pool)
    if not isinstance(pool, (ConnectionPool, str)) or pool == "":
        msg = f'{what} takes a ConnectionPool or the name of one, as {what}(db) or {what}("db"); got {pool!r}'
        raise PoolConfigError(msg)


class Provider(tuple[Any, ...]):  # noqa: SLOT001 - it keeps `terms`
    """A dependency that stands for a pool: equal to each other one of its kind for that pool and its options.

    Because of equality FastAPI calls it once a request, `dependency_overrides` finds it, and
    `Annotated` tells two types apart. It is a tuple's equality, which is fast: FastAPI looks a
    dependency up three times a request.
    """

    kind: ClassVar[str]
    terms: Terms = DEFAULT  # of the lease
    on_disconnect: OnDisconnect | None = None

    def __new__(
        cls, pool: ConnectionPool[Any] | str, terms: Terms = DEFAULT, on_disconnect: OnDisconnect | None = None
    ) -> Self:
        if terms is DEFAULT and on_disconnect is None:
            return super().__new__(cls, (cls.kind, pool))
        self = super().__new__(cls, (cls.kind, pool, terms, on_disconnect))
        self.terms, self.on_disconnect = terms, on_disconnect
        return self

    @property
    def options(self) -> str:
        """Return the options of the lease as they are written; two dependencies agree if these are equal."""
        terms = "" if isinstance(self.terms, Default) else str(self.terms)
        on_disconnect = "" if self.on_disconnect is None else f'on_disconnect="{self.on_disconnect}"'
        return ", ".join(filter(None, (terms, on_disconnect)))

    def resolve(self, scope: Scope) -> ConnectionPool[Any]:
        """Return the pool that this dependency stands for.

        Raises:
            PoolConfigError: If no pool of that name was opened.
        """
        pool: ConnectionPool[Any] | str = self[1]
        return find_pool(scope, pool) if isinstance(pool, str) else pool


class LeaseUntilResponse(Provider):
    """Leases for a request; PoolMiddleware gives back."""

    kind = "Leased"  # `LeaseUntilExit` has it too: one override serves all scopes

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
        resource = await exchange.enter(pool, scope, self.terms)
        exchange.keep_until_response(pool, scope)
        return resource


class LeaseWhileConnected(LeaseUntilResponse):
    """The same; a client that hangs up cancels the endpoint."""

    async def __call__(self, connection: HTTPConnection) -> Any:
        """Lease for this request, once, and watch its client."""
        resource = await super().__call__(connection)
        _cancel_on_hang_up(connection.scope)
        return resource


def _cancel_on_hang_up(scope: Scope) -> None:
    exchange = scope.get(SCOPE_KEY)
    stack = scope.get("fastapi_function_astack")
    if (
        scope["type"] == "http"
        and isinstance(exchange, Exchange)
        and stack is not None
        and runs_in_loop(scope.get("endpoint"))
    ):
        stack.enter_context(HangUpScope(exchange))


class LeaseUntilExit(Provider):
    """Leases for a request or a function; FastAPI's own exit gives back."""

    kind = "Leased"

    async def __call__(self, connection: HTTPConnection) -> AsyncIterator[Any]:
        """Lease until FastAPI leaves the dependency."""
        leases = RequestLeases.of(connection.scope)
        pool = self.resolve(connection.scope)
        resource = await leases.enter(pool, connection.scope, self.terms)
        if self.on_disconnect is not None:
            _cancel_on_hang_up(connection.scope)
        end = Lease.release_nowait
        try:
            yield resource
            if leases.was_left(None):
                end = Lease.release_cut_off
        except Exception as error:
            if leases.was_left(error):
                end = Lease.release_cut_off
            leases.judge(error)
            raise
        except BaseException:
            leases.break_off(connection.scope)
            end = Lease.release_cut_off
            raise
        finally:
            leases.leave(pool, end)


class PoolItself(Provider):
    """Provides the pool itself."""

    kind = "Pooled"

    async def __call__(self, connection: HTTPConnection) -> ConnectionPool[Any]:
        """Return the pool."""
        return self.resolve(connection.scope)
