"""PoolMiddleware: ends leases with the response, answers for the pools, and nothing else.

Pure ASGI: to a request that uses no pool it adds an object, a context variable and a look at each message.
"""

import inspect
import math
import traceback
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._disconnect import ClientGone
from ._exchange import Exchange
from ._front import REQUEST
from ._log import logger
from ._request import SCOPE_KEY, Route, started_pools
from ._wiring import check_dependencies, hidden_routes
from .errors import NotLeased, PoolConfigError, PoolError, WouldDeadlock, WrongEventLoop, describe
from .health import examine_all, worst
from .metrics import render
from .stats import Observable

E = TypeVar("E", bound=BaseException)
Details = Literal["never", "authorized", "always"]
Authorize = Callable[[HTTPConnection], bool | Awaitable[bool]]

# Of the application, and no lack of resources.
MISTAKES = (PoolConfigError, NotLeased, WouldDeadlock, WrongEventLoop)
HERE = Path(__file__).parent
NO_STORE = {"Cache-Control": "no-store"}
TRY_AGAIN_LATER: Message = {"type": "websocket.close", "code": 1013, "reason": "Try again later"}
# As nginx counts them; no client ever sees it.
CLIENT_CLOSED_REQUEST = 499
# Names that are parts of /pool/health/{name} already.
RESERVED = ("live", "ready")


class PoolMiddleware:
    """Gives leases back just before the last part of a response, and adds the endpoints.

    `install_pools` adds it; by hand: `app.add_middleware(PoolMiddleware, pools=[db])`. It
    also turns a `PoolError` that nobody handled into 503 with `Retry-After` (a WebSocket
    is refused, or closed with code 1013), as long as no response has begun.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        pools: Iterable[Observable] = (),
        prefix: str = "/pool",
        details: Details = "never",
        authorize: Authorize | None = None,
        probe_max_age: float = 5.0,
        probe_timeout: float = 2.0,
    ) -> None:
        """Wrap an application.

        Args:
            app: The application.
            pools: Pools to answer for, opened or not, and observed ones; those that the
                lifespan has opened are always among them.
            prefix: Where the endpoints are.
            details: Who is told by /pool/health why, and who holds what: nobody, those
                whom `authorize` lets, or everybody.
            authorize: Says whether a request may see details; `def` (which must not block)
                or `async def`. To raise means no.
            probe_max_age: How old the last sign of life of a back-end may be, in seconds.
            probe_timeout: How long a health check waits for a back-end, in seconds.

        Raises:
            PoolConfigError: If two pools have one name, or an option cannot work.
        """
        if not isinstance(prefix, str) or not prefix.startswith("/") or prefix.endswith("/") or "{" in prefix:
            msg = f'prefix={prefix!r} must be a path such as "/pool": it begins with "/" and does not end with one'
            raise PoolConfigError(msg)
        if details not in ("never", "authorized", "always"):
            msg = f'details={details!r} is unknown; write details="never", "authorized" or "always"'
            raise PoolConfigError(msg)
        if (details == "authorized") != (authorize is not None):
            msg = 'details="authorized" and authorize=... go together: pass both or neither'
            raise PoolConfigError(msg)
        if authorize is not None and not callable(authorize):
            msg = f"authorize={authorize!r} must be callable, as authorize=lambda request: is_admin(request)"
            raise PoolConfigError(msg)
        _check_seconds("probe_max_age", probe_max_age, "0 or more", zero=True)
        _check_seconds("probe_timeout", probe_timeout, "more than 0", zero=False)
        self.app = app
        self._pools = checked_pools(pools, "app.add_middleware(PoolMiddleware, pools=[db])")
        self._prefix = prefix
        self._details = details
        self._authorize = authorize
        self._probe = {"max_age": probe_max_age, "timeout": probe_timeout}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, as any ASGI application does."""
        kind = scope["type"]
        if kind == "http":
            if self._prefix in scope["path"] and (path := self._own_path(scope)) is not None:
                await (await self._answer(scope, path))(scope, receive, send)
                return
        elif kind != "websocket":
            await (self._lifespan if kind == "lifespan" else self.app)(scope, receive, send)
            return
        exchange = scope[SCOPE_KEY] = Exchange(receive, send)
        before = REQUEST.set(exchange)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except Exception as error:
            if not await _answered_for(error, exchange, scope, receive, send):
                raise
        except BaseException:
            exchange.break_off(scope)
            raise
        finally:
            exchange.close()
            scope.pop(SCOPE_KEY, None)  # or a server's `send`, which may know it, is only freed by the collector
            REQUEST.reset(before)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the wiring, and let what cannot start be one clear line in the server's log, not a traceback."""
        failed: Message | None = None

        async def check_and_send(message: Message) -> None:
            nonlocal failed
            if message["type"] == "lifespan.startup.failed":
                failed = message
                return
            if message["type"] == "lifespan.startup.complete":
                self._check_wiring(scope)
            await send(message)

        try:
            await self.app(scope, receive, check_and_send)
        except Exception as error:
            if failed is not None and (pool_error := _only(PoolError, error)) is not None:
                failed = {**failed, "message": str(pool_error)}
            raise
        finally:
            if failed is not None:
                await send(failed)

    def _check_wiring(self, scope: Scope) -> None:
        app = scope.get("app", self.app)
        check_dependencies(app, scope)
        each = [f"health/{name}" for name in (*RESERVED, *(pool.name for pool in self._all_pools(scope)))]
        for path in hidden_routes(app, [f"{self._prefix}/{own}" for own in ("health", "metrics", *each)]):
            logger.warning(
                "the application's own route %s is hidden: pass another prefix=... than %r", path, self._prefix
            )

    # --- the endpoints --------------------------------------------------------------------

    def _own_path(self, scope: Scope) -> str | None:
        """Return what follows the prefix if the request is for one of our endpoints."""
        path: str = scope["path"]
        path = path.removeprefix(scope.get("root_path", ""))
        if not path.startswith(self._prefix + "/"):
            return None
        path = path[len(self._prefix) + 1 :].removesuffix("/")
        return path if path in ("health", "metrics") or path.removeprefix("health/") not in ("", path) else None

    async def _answer(self, scope: Scope, path: str) -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            return Response(status_code=405, headers={"Allow": "GET, HEAD", **NO_STORE})
        pools = self._all_pools(scope)
        if path == "metrics":
            accept = ",".join(HTTPConnection(scope).headers.getlist("accept"))
            body, content_type = render(pools, accept)
            response = Response(body, headers={"Content-Type": content_type, "Vary": "Accept", **NO_STORE})
        else:
            response = await self._health(scope, pools, path.removeprefix("health").removeprefix("/"))
        if scope["method"] == "HEAD":
            response.body = b""  # and the content length stays, as for GET
        return response

    async def _health(self, scope: Scope, pools: list[Observable], which: str) -> Response:
        if which == "live":
            return _health_response("pass", {})
        chosen = pools if which in ("", "ready") else [pool for pool in pools if pool.name == which]
        if not chosen and which not in ("", "ready"):
            return JSONResponse({"detail": "no pool of this name"}, status_code=404, headers=NO_STORE)
        found = await examine_all(chosen, **self._probe)
        status = worst(health.verdict for health in found)
        if which == "ready":
            return _health_response(status, {})
        details = await self._may_see_details(scope)
        each = {health.stats.name: health.as_dict(details=details) for health in found}
        return _health_response(status, {"pools": each} if which == "" else each[which])

    async def _may_see_details(self, scope: Scope) -> bool:
        if self._authorize is None:
            return self._details == "always"
        try:
            allowed = self._authorize(HTTPConnection(scope))
            return bool(await allowed) if inspect.isawaitable(allowed) else bool(allowed)
        except Exception as error:  # noqa: BLE001 - who could not be authorized sees less; health answers all the same
            logger.warning("health shows no details, since authorize failed with %s", describe(error))
            return False

    def _all_pools(self, scope: Scope) -> list[Observable]:
        return list({pool.name: pool for pool in (*started_pools(scope), *self._pools)}.values())


def checked_pools(pools: Any, write: str) -> tuple[Observable, ...]:
    """Return pools that health and metrics can tell apart.

    Args:
        pools: The pools of one application.
        write: How they are to be passed.

    Returns:
        The same pools.

    Raises:
        PoolConfigError: If one is no pool, two have one name, or one has a name that an endpoint needs.
    """
    found = tuple(pools) if isinstance(pools, Iterable) else (pools,)
    strangers = [type(pool).__name__ for pool in found if isinstance(pool, type) or not isinstance(pool, Observable)]
    if strangers or not isinstance(pools, Iterable):
        msg = (
            f"expected pools, got {', '.join(strangers) or 'one without a list'}; write {write}, "
            "and observe(pool, name=...) for a driver's own pool"
        )
        raise PoolConfigError(msg)
    seen: set[str] = set()
    for pool in found:
        if pool.name in seen:
            raise two_of_one_name(pool)
        if pool.name in RESERVED or "/" in pool.name:
            msg = f"pool {pool.name!r}: /pool/health/{pool.name} means something else; choose another name"
            raise PoolConfigError(msg)
        seen.add(pool.name)
    return found


def two_of_one_name(pool: Observable) -> PoolConfigError:
    """Say that a pool has the same name as another one."""
    return PoolConfigError(
        f"two pools have the name {pool.name!r}; give each its own: ConnectionPool(..., name='cache')"
    )


def _check_seconds(what: str, value: object, least: str, *, zero: bool) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):  # type: ignore[operator] # a number by now
        msg = f"{what}={value!r} must be a number of seconds, {least}, such as {what}=2.0"
        raise PoolConfigError(msg)


def _only(kind: type[E], error: BaseException) -> E | None:
    """Find an error of a kind in what was raised: itself, or a group with nothing else in it."""
    if isinstance(error, BaseExceptionGroup):
        found = [_only(kind, inner) for inner in error.exceptions]
        return None if None in found else found[0]
    return error if isinstance(error, kind) else None


async def _answered_for(error: Exception, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> bool:
    """Answer in the application's place if what it raised is ours and no response has begun."""
    if _only(ClientGone, error) is not None:
        exchange.end_response()
        if exchange.begun is None:
            await _answer_nobody(scope, receive, send)
        return True
    pool_error = _only(PoolError, error)
    if pool_error is None or exchange.begun not in (None, "websocket.accept"):
        return False
    exchange.end_response()
    _log_refusal(pool_error, scope)
    if scope["type"] == "websocket":
        await _refuse_websocket(pool_error, scope, send, accepted=exchange.begun is not None)
    else:
        await _problem(pool_error)(scope, receive, send)
    return True


def _log_refusal(error: PoolError, scope: Scope) -> None:
    if isinstance(error, MISTAKES):
        logger.error("%s answered with 503: %s (%s)", Route(scope), error, _place(error))
    else:
        logger.warning("%s answered with 503: %s", Route(scope), error)


def _place(error: BaseException) -> str:
    """Say where the application made a mistake; a whole traceback would show what other errors said."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent != HERE]
    return f'"{frames[-1].filename}", line {frames[-1].lineno}' if frames else "before any code of the application"


def _health_response(status: str, body: dict[str, Any]) -> Response:
    return JSONResponse(
        {**body, "status": status},
        status_code=503 if status == "fail" else 200,
        headers=NO_STORE,
        media_type="application/health+json",
    )


def _problem(error: PoolError) -> Response:
    seconds = max(1, math.ceil(error.retry_after or 1))
    return JSONResponse(
        {"type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": "Try again later."},
        status_code=503,
        headers={"Retry-After": str(seconds), **NO_STORE},
        media_type="application/problem+json",
    )


async def _refuse_websocket(error: PoolError, scope: Scope, send: Send, *, accepted: bool) -> None:
    if accepted or "websocket.http.response" not in scope.get("extensions", {}):
        await send(TRY_AGAIN_LATER)
        return
    response = _problem(error)
    await send({"type": "websocket.http.response.start", "status": 503, "headers": response.raw_headers})
    await send({"type": "websocket.http.response.body", "body": response.body})


async def _answer_nobody(scope: Scope, receive: Receive, send: Send) -> None:
    """Send what no client will see: servers, and middleware around, take no answer for a mistake."""
    with suppress(OSError):  # as newer servers say that the client has gone
        if scope["type"] == "websocket":
            await send(TRY_AGAIN_LATER)
        else:
            await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, send)
