"""Endpoints: the answers at /pool/health, /pool/metrics and /pool/leases, the live page at /pool/, and its buttons."""

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Scope

from .._core.policy import LONGEST, check_seconds
from .._monitoring.health import PoolHealth, Verdict, examine_all, worst
from .._monitoring.merge import longest, merge_health
from .._monitoring.metrics import Stats, plain_stats, render, stats_of
from .._monitoring.multiprocess import MultiprocessFiles
from .._monitoring.picture import own_part
from .._monitoring.workers import ALIVE_WITHIN, Workers
from .._runtime.current import current_loop
from .._runtime.holders import facts_of
from .._runtime.loop import Loop
from ..errors import PoolConfigError
from ..pool import ConnectionPool
from ..stats import Observable
from .authorization import Authorization, Authorize
from .control import ACTS_WITHIN, CONTROL, CONTROL_HEADERS, Control, Order, carry_out
from .page import (
    DESCRIPTION,
    EVERY,
    FILES,
    STREAM,
    STREAM_HEADERS,
    Viewers,
    description_response,
    is_of_another_site,
    page_response,
)
from .pools import RESERVED, checked_pools, started_pools
from .readiness import Readiness
from .responses import HEADERS, checks_of, health_response

Details = Literal["never", "authorized", "always"]


class Endpoints:
    """Answers for an application's pools; the options are those of `PoolMiddleware`."""

    def __init__(
        self,
        *,
        pools: Iterable[Observable],
        optional: Iterable[Observable],
        prefix: str,
        details: Details | None,
        authorize: Authorize | None,
        control: Authorize | None,
        probe_max_age: float,
        probe_timeout: float,
        service: str | None,
    ) -> None:
        """Check the options.

        Raises:
            PoolConfigError: If two pools have one name, or an option cannot work.
        """
        if not isinstance(prefix, str) or not prefix.startswith("/") or prefix.endswith("/") or "{" in prefix:
            msg = f'prefix={prefix!r} must be a path such as "/pool": it begins with "/" and does not end with one'
            raise PoolConfigError(msg)
        if details is None:
            details = "never" if authorize is None else "authorized"
        if details not in ("never", "authorized", "always"):
            msg = f'details={details!r} is unknown; write details="never", "authorized" or "always"'
            raise PoolConfigError(msg)
        if details == "authorized" and authorize is None:
            msg = 'details="authorized" needs authorize=..., which says whether a request may see them'
            raise PoolConfigError(msg)
        if control is not None and authorize is None:
            msg = "control=... needs authorize=..., which says whether a request may see the page with its buttons"
            raise PoolConfigError(msg)
        check_finite = partial(check_seconds, "PoolMiddleware", longest=LONGEST)
        check_finite("probe_max_age", probe_max_age, hint="as probe_max_age=2.0")
        check_finite("probe_timeout", probe_timeout, hint="as probe_timeout=2.0", positive=True)
        write = "app.add_middleware(PoolMiddleware, pools=[db], optional=[cache])"
        needed, spare = checked_pools(pools, write), checked_pools(optional, write)
        self.prefix = prefix
        self._optional = frozenset(pool.name for pool in spare)
        self._pools = checked_pools((*needed, *spare), write)
        self._details = details
        self._authorization = None if authorize is None else Authorization(authorize, probe_timeout)
        self._control_authorization = None if control is None else Authorization(control, probe_timeout, "control")
        private = () if authorize is None else ("leases", *FILES, STREAM)
        acting = () if control is None else (CONTROL,)
        self._exact = ("health", "metrics", *private, *acting)
        self._probe = {"max_age": probe_max_age, "timeout": probe_timeout}
        self._scope: Scope = {}
        _count_by_route(self._pools)
        self._workers = Workers(service, self._tell)
        self._loop: Loop | None = None
        self._readiness = Readiness(self._tell_unready)
        self._viewers = Viewers(self._look)
        self._control = Control(self._may_control, lambda: self._all_pools(self._scope), self._tell_order)
        self._files = MultiprocessFiles()

    async def join_workers(self, scope: Scope) -> None:
        """Answer for the other workers of the service as well, and for this one when they ask."""
        self._scope = scope
        _count_by_route(self._all_pools(scope))
        self._viewers.begin()
        self._files.start(self._all_pools(scope))
        await self._workers.join()
        self._loop = current_loop()
        self._readiness.begin()

    def leave_workers(self) -> None:
        """Answer for this process alone, and end the page's streams."""
        self._readiness.end()
        self._files.stop()
        self._workers.leave()
        self._viewers.end()

    def paths(self, scope: Scope) -> list[str]:
        """Return the paths of all endpoints."""
        names = (*RESERVED, *(pool.name for pool in self._all_pools(scope)))
        return [f"{self.prefix}/{own}" for own in (*self._exact, *(f"health/{name}" for name in names))]

    def own_path(self, scope: Scope) -> str | None:
        """Return the path below the prefix if a request is for one of these endpoints."""
        path = _route_path(scope)
        if not path.startswith(self.prefix + "/"):
            return None
        path = path[len(self.prefix) + 1 :].removesuffix("/")
        return path if path in self._exact or path.removeprefix("health/") not in ("", path) else None

    async def answer(self, scope: Scope, path: str) -> ASGIApp:
        """Return the response to a request for the endpoint at a path below the prefix."""
        if path == CONTROL:
            return self._control
        if scope["method"] not in ("GET", "HEAD"):
            return Response(status_code=405, headers={"Allow": "GET, HEAD", **HEADERS})
        pools = self._all_pools(scope)
        response: ASGIApp
        if path == STREAM:
            response = await self._stream(scope)
        elif path == "metrics":
            accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
            details = self._details == "always" or await self._is_authorized(scope)
            found = await self._stats_of_all(pools)
            body, content_type = render(pools, accept.decode("latin-1"), found, details=details)
            response = Response(body, headers={"Content-Type": content_type, "Vary": "Accept", **HEADERS})
        elif path == "leases":
            response = await self._leases(scope, pools)
        elif path == DESCRIPTION:
            response = description_response(scope.get("root_path", "") + self.prefix)
        elif path in FILES:
            response = page_response(path)
        else:
            response = await self._health(scope, pools, path.removeprefix("health").removeprefix("/"))
        if scope["method"] == "HEAD" and isinstance(response, Response):
            response.body = b""  # the content length stays that of GET
        return response

    async def _health(self, scope: Scope, pools: list[Observable], which: str) -> Response:
        if which == "live":
            return health_response("pass", {})
        if which == "ready":
            if self._readiness.is_unready:
                return health_response("fail", {})
            return health_response((await self._own_health(pools, details=False))["status"], {})
        chosen = pools if which == "" else [pool for pool in pools if pool.name == which]
        if not chosen and which:
            return JSONResponse({"detail": "no pool of this name"}, status_code=404, headers=HEADERS)
        details = await self._is_authorized(scope) if self._details == "authorized" else self._details == "always"
        found = await self._own_health(chosen, details=details)
        if self._workers.number is not None:
            question = {"path": "health", "which": which, "details": details}
            found = merge_health(await self._ask(question, found))
        found = found["pools"][which] if which else {**found, "checks": checks_of(found["pools"])}
        return health_response(found.pop("status"), found)

    async def _own_health(self, pools: list[Observable], *, details: bool) -> dict[str, Any]:
        found = await examine_all(pools, **self._probe)
        each = {health.stats.name: health.as_dict(details=details) for health in found}
        return {"pools": each, "status": worst(map(self._weighed, found))}

    async def _stats_of_all(self, pools: list[Observable]) -> dict[int, list[Stats]] | None:
        if self._workers.number is None:
            return None
        answers = await self._ask({"path": "metrics"}, plain_stats(pools))
        return {number: [*map(stats_of, answer)] for number, answer in answers.items() if answer is not None}

    async def _leases(self, scope: Scope, pools: list[Observable]) -> Response:
        if not await self._is_authorized(scope):
            return JSONResponse({"detail": "not authorized"}, status_code=403, headers=HEADERS)
        leases = _own_leases(pools)
        if self._workers.number is not None:
            answers = await self._ask({"path": "leases"}, leases)
            leases = longest({number: answer for number, answer in answers.items() if answer is not None})
        return JSONResponse({"leases": leases}, headers=HEADERS)

    async def _stream(self, scope: Scope) -> ASGIApp:
        if is_of_another_site(scope) or not await self._is_authorized(scope):
            return JSONResponse({"detail": "not authorized"}, status_code=403, headers=HEADERS)
        headers = {**STREAM_HEADERS, **(CONTROL_HEADERS if await self._may_control(scope) else {})}
        return partial(self._viewers, headers=headers) if scope["method"] == "GET" else Response(headers=headers)

    async def _look(self) -> dict[int, Any]:
        """Return what all workers know of their pools, by their numbers."""
        own = await self._own_part()
        return {0: own} if self._workers.number is None else await self._ask({"path": "page"}, own)

    async def _tell_order(self, order: Order, own: str) -> dict[int, Any]:
        """Have the other workers carry out an order, and return what became of it in all of them."""
        if self._workers.number is None:
            return {0: own}
        return await self._ask({"path": CONTROL, **order}, own, alive_within=ACTS_WITHIN)

    async def _own_part(self) -> dict[str, Any]:
        timeout = min(self._probe["timeout"], EVERY)
        return await own_part(self._all_pools(self._scope), max_age=self._probe["max_age"], timeout=timeout)

    async def _ask(self, question: dict[str, Any], own: Any, *, alive_within: float = ALIVE_WITHIN) -> dict[int, Any]:
        """Return the answers of all workers to a question, this one's included, by their numbers."""
        assert self._workers.number is not None  # noqa: S101 - the callers have seen it
        others = await self._workers.ask(question, self._probe["timeout"] + 1.0, alive_within)
        return dict(sorted({**others, self._workers.number: own}.items()))

    async def _tell(self, question: dict[str, Any]) -> Any:
        """Answer a question of another worker about this one."""
        pools = self._all_pools(self._scope)
        if question["path"] == "metrics":
            return plain_stats(pools)
        if question["path"] == "leases":
            return _own_leases(pools)
        if question["path"] == "unready":
            self._readiness.is_unready = True
            return True
        if question["path"] == CONTROL:
            return carry_out(question, pools)
        if question["path"] == "page":
            return await self._own_part()
        chosen = [pool for pool in pools if question["which"] in ("", pool.name)]
        return await self._own_health(chosen, details=question["details"])

    def _tell_unready(self) -> None:
        """Tell the other workers that the service is unready; from any thread."""

        async def tell() -> None:
            await self._ask({"path": "unready"}, None)

        if self._loop is not None and self._workers.number is not None:
            self._loop.call_soon(partial(self._loop.spawn, tell))

    def _weighed(self, health: PoolHealth) -> Verdict:
        """Return a pool's verdict as it counts for the application."""
        return "warn" if health.verdict == "fail" and health.stats.name in self._optional else health.verdict

    async def _is_authorized(self, scope: Scope) -> bool:
        return self._authorization is not None and await self._authorization.allows(HTTPConnection(scope))

    async def _may_control(self, scope: Scope) -> bool:
        """Whether a request may act; one that may not see the page may not."""
        asked = self._control_authorization
        return asked is not None and await self._is_authorized(scope) and await asked.allows(HTTPConnection(scope))

    def _all_pools(self, scope: Scope) -> list[Observable]:
        return list({pool.name: pool for pool in (*started_pools(scope), *self._pools)}.values())


def _count_by_route(pools: Iterable[Observable]) -> None:
    for pool in pools:
        if isinstance(pool, ConnectionPool):
            pool.count_by_route()


def _own_leases(pools: list[Observable]) -> list[dict[str, Any]]:
    """Return the leases of this process, the longest first."""
    found = [(pool.name, holder) for pool in pools for holder in pool.holders() or ()]
    return [
        {"pool": pool, **facts_of(holder), "worker": None}  # as of a process that is alone
        for pool, holder in sorted(found, key=lambda each: -each[1].age)
    ]


def _route_path(scope: Scope) -> str:
    """Return the path below `root_path`; a proxy may have stripped whole segments already."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root + "/") else path
