"""Control: what a request at /pool/control does to a pool in all workers: expire, suspend, resume or resize it.

A page of another site cannot send such a request: it takes JSON, which no form sends, and for which a browser asks
first and is not allowed; and it says itself where it is from.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .._monitoring.merge import HANGS
from .._runtime.log import facts, logger
from ..errors import PoolClosed
from ..pool import ConnectionPool
from ..stats import Observable
from .page import is_of_another_site
from .responses import HEADERS

CONTROL = "control"
ACTIONS = ("expire", "suspend", "resume", "resize")

# On the stream of a viewer that may act: the page then has buttons.
CONTROL_HEADERS = {"Connectionpools-Control": "allowed"}

LONGEST_BODY = 1000  # bytes
ARRIVES_WITHIN = 10.0  # seconds, for a body

# How long a worker may take to show that its event loop runs, in seconds: a wait is better than an order half done.
ACTS_WITHIN = 2.0

# More is a slip of the finger.
HIGHEST_LIMIT = 10_000

DONE = "done"
NOT_OPEN = "the pool is not open"
UNKNOWN = "no pool of this name, or one that is only observed"

# What is to be done, as plain values: `pool`, `action` and `limit`.
Order = dict[str, Any]

# What became of it in each worker, by its number; None for one that hangs.
Outcomes = Mapping[int, str | None]


class Control:
    """The endpoint, as an ASGI application."""

    def __init__(
        self,
        allows: Callable[[Scope], Awaitable[bool]],
        pools: Callable[[], Iterable[Observable]],
        tell: Callable[[Order, str], Awaitable[Outcomes]],
    ) -> None:
        """Answer requests.

        Args:
            allows: Says whether a request may act.
            pools: Returns the pools of this worker.
            tell: Tells an order to all other workers. Takes what `carry_out` has returned here, and returns what it
                has returned in all workers, None for one that hangs.
        """
        self._allows = allows
        self._pools = pools
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            response = await self._answer(scope, receive)
        except ClientDisconnect:
            return
        except HTTPException as refusal:
            headers = {**HEADERS, **(refusal.headers or {})}
            response = JSONResponse({"detail": refusal.detail}, status_code=refusal.status_code, headers=headers)
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        if scope["method"] != "POST":
            return Response(status_code=405, headers={"Allow": "POST", **HEADERS})
        if is_of_another_site(scope) or not await self._allows(scope):
            raise HTTPException(403, "not authorized")
        request = Request(scope, receive)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "the body must be application/json")
        order = order_of(await _body_of(request))
        own = carry_out(order, self._pools())
        if own == UNKNOWN:
            raise HTTPException(404, UNKNOWN)
        answers = await self._tell(order, own)
        _log(order, answers)
        status = 504 if None in answers.values() else 200 if {*answers.values()} == {DONE} else 409
        workers = {str(number): answer or HANGS for number, answer in answers.items()}
        return JSONResponse({"workers": workers}, status_code=status, headers=HEADERS)


def order_of(body: bytes) -> Order:
    """Read what is to be done.

    Raises:
        HTTPException: If it is no such thing; its text repeats nothing of the body.
    """
    try:
        order = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPException(400, "the body is no JSON") from None
    if (
        not isinstance(order, dict)
        or not isinstance(order.get("pool"), str)
        or order.keys() - {"pool", "action", "limit"}
    ):
        raise HTTPException(400, 'write {"pool": "db", "action": "expire"}')
    action, limit = order.get("action"), order.get("limit")
    if isinstance(limit, float) and limit.is_integer():  # JSON has one kind of number
        limit = int(limit)
    if action not in ACTIONS:
        raise HTTPException(400, f"action must be one of {', '.join(ACTIONS)}")
    if action != "resize" and "limit" in order:
        raise HTTPException(400, "only resize has a limit")
    if action == "resize" and (type(limit) is not int or not 1 <= limit <= HIGHEST_LIMIT):
        raise HTTPException(400, f"limit must be a whole number from 1 to {HIGHEST_LIMIT}")
    return {"pool": order["pool"], "action": action, "limit": limit}


def carry_out(order: Order, pools: Iterable[Observable]) -> str:
    """Act on one of the pools of this worker; return `DONE`, or why it was not done."""
    pool = next((pool for pool in pools if pool.name == order["pool"]), None)
    if not isinstance(pool, ConnectionPool):
        return UNKNOWN
    try:
        if order["action"] == "resize":
            pool.resize(order["limit"])
        else:
            {"expire": pool.expire, "suspend": pool.suspend, "resume": pool.resume}[order["action"]]()
    except PoolClosed:
        return NOT_OPEN
    return DONE


async def _body_of(request: Request) -> bytes:
    body = b""
    with anyio.move_on_after(ARRIVES_WITHIN) as limit:
        async with aclosing(request.stream()) as parts:
            async for part in parts:
                body += part
                if len(body) > LONGEST_BODY:
                    raise HTTPException(413, f"the body must be at most {LONGEST_BODY} bytes")
    if limit.cancelled_caught:
        raise HTTPException(408, "the body did not arrive in time")
    return body


def _log(order: Order, answers: Outcomes) -> None:
    name, action, limit = order["pool"], order["action"], order["limit"]
    done = [number for number, answer in answers.items() if answer == DONE]
    missed = [number for number, answer in answers.items() if answer != DONE]
    logger.warning(
        "pool %r: a request asked to %s: done in %d of %d workers%s",
        name,
        f"{action} it" if limit is None else f"{action} it to {limit}",
        len(done),
        len(answers),
        f", not in {', '.join(map(str, missed))}" if missed else "",
        extra=facts("controlled", name, action=action, limit=limit, done=done, missed=missed),
    )
