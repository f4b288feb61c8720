"""PoolMiddleware: ends leases with the response, and answers for the pools; it does nothing else.

Pure ASGI: a request that uses no pool costs an object, a context variable and a look at each message.
"""

from collections.abc import Iterable

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .._runtime.log import facts, logger
from .._runtime.request_context import REQUEST
from ..errors import PoolError, only
from ..stats import Observable
from .authorization import Authorize
from .endpoints import Details, Endpoints
from .exchange import Exchange
from .refusals import Refusals
from .request import SCOPE_KEY
from .startup_checks import check_dependencies, check_prepared, hidden_routes


class PoolMiddleware:
    """Gives leases back just before the last part of a response, and adds the endpoints.

    `install_pools` adds it; by hand: `app.add_middleware(PoolMiddleware, pools=[db])`. It
    also turns a `PoolError` that the application did not handle into 503 with `Retry-After` (a WebSocket
    is refused, or closed with code 1013), as long as no response has begun.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        pools: Iterable[Observable] = (),
        optional: Iterable[Observable] = (),
        prefix: str = "/pool",
        details: Details | None = None,
        authorize: Authorize | None = None,
        control: Authorize | None = None,
        probe_max_age: float = 5.0,
        probe_timeout: float = 2.0,
        service: str | None = None,
    ) -> None:
        """Wrap an application.

        Args:
            app: The application.
            pools: Pools to answer for, opened or not, and observed ones. Pools that the
                lifespan has opened are always included.
            optional: More pools, which the application can serve without, such as a cache: if one of
                these fails, /pool/health and /pool/health/ready warn, and only /pool/health/{name} fails.
            prefix: Where the endpoints are.
            details: Which requests see the reason and the holders of leases at /pool/health:
                "never", those that `authorize` allows ("authorized"), or "always". By default "authorized"
                with `authorize`, else "never".
            authorize: Says whether a request may see details, /pool/leases and the live page at /pool/, which exist
                only with it; `def` (which must not block) or `async def`, which has `probe_timeout` seconds. Only
                True means yes; an exception means no.
            control: Says whether a request that `authorize` allows may also act at /pool/control, which exists only
                with it: expire, suspend, resume and resize a pool in all workers, as the buttons of the page do. Asked
                as `authorize` is.
            probe_max_age: How old the last sign of life of a back-end may be, in seconds.
            probe_timeout: How long a health check waits for a back-end, in seconds.
            service: A name, of letters, digits, dots, dashes and underscores, by which the workers of one service
                find each other, on Linux, so that each answers for all. None recognises workers that uvicorn,
                gunicorn, hypercorn or granian has started.

        Raises:
            PoolConfigError: If two pools have one name, or an option cannot work.
        """
        self.app = app
        self._endpoints = Endpoints(
            pools=pools,
            optional=optional,
            prefix=prefix,
            details=details,
            authorize=authorize,
            control=control,
            probe_max_age=probe_max_age,
            probe_timeout=probe_timeout,
            service=service,
        )
        self._prefix = prefix
        self._refusals = Refusals()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, as any ASGI application does."""
        kind = scope["type"]
        if kind == "http":
            if self._prefix in scope["path"] and (path := self._endpoints.own_path(scope)) is not None:
                await (await self._endpoints.answer(scope, path))(scope, receive, send)
                return
        elif kind != "websocket":
            await (self._lifespan if kind == "lifespan" else self.app)(scope, receive, send)
            return
        exchange = scope[SCOPE_KEY] = Exchange(scope, receive, send)
        exchange.token = REQUEST.set(exchange)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except Exception as error:
            exchange.judge(error)
            if not await self._refusals.answer(error, exchange, scope, receive, send):
                if only(ClientDisconnect, error) is None and only(OSError, error) is None:
                    exchange.end_response()  # the application failed, not the client
                raise
        except BaseException:
            exchange.break_off(scope)
            raise
        finally:
            exchange.close()
            scope.pop(SCOPE_KEY, None)  # else a cycle through the server's `send` would be left to the collector
            REQUEST.reset(exchange.token)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the wiring; if the start fails, the server's log gets one clear line, not a traceback."""
        failed: Message | None = None

        async def check_and_send(message: Message) -> None:
            nonlocal failed
            if message["type"] == "lifespan.startup.failed":
                failed = message
                return
            if message["type"] == "lifespan.startup.complete":
                await self._check_wiring(scope)
                await self._endpoints.join_workers(scope)
            elif message["type"].startswith("lifespan.shutdown"):
                self._endpoints.leave_workers()
            await send(message)

        try:
            await self.app(scope, receive, check_and_send)
        except Exception as error:
            if failed is not None and (pool_error := only(PoolError, error)) is not None:
                failed = {**failed, "message": str(pool_error)}
            raise
        finally:
            self._endpoints.leave_workers()
            self._refusals.end()
            if failed is not None:
                await send(failed)

    async def _check_wiring(self, scope: Scope) -> None:
        app = scope.get("app", self.app)
        await check_prepared(check_dependencies(app, scope))
        for path in hidden_routes(app, self._endpoints.paths(scope)):
            logger.warning(
                "the application's own route %s is hidden: pass another prefix=... than %r",
                *(path, self._prefix),
                extra=facts("route_hidden", None, route=path),
            )
