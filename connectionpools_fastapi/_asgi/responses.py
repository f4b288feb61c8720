"""Responses: the answers of the endpoints and of refusals."""

import math
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Send

from ..errors import PoolError

# On each answer of the package: it is not stored, is what its type says, and is shown in no other site's frame.
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


def health_response(status: str, body: dict[str, Any]) -> Response:
    """Report the health of the pools: 503 if they fail."""
    return JSONResponse(
        {**body, "status": status},
        status_code=503 if status == "fail" else 200,
        headers=HEADERS,
        media_type="application/health+json",
    )


def checks_of(pools: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the health of pools in the words of draft-inadarei-api-health-check, for application/health+json."""
    checks = {}
    for name, pool in pools.items():
        check = {
            "componentType": "component",
            "observedValue": pool["taken"],
            "observedUnit": "connections",
            "status": pool["status"],
        }
        if pool.get("reason"):  # with details
            check["output"] = pool["reason"]
        checks[f"{name.replace(':', '_')}:connections"] = [check]  # a colon ends the name
    return checks


# Made once: under overload, the refusals are most of what a server does.
_UNAVAILABLE = JSONResponse(
    {"type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": "Try again later."},
    status_code=503,
    headers=HEADERS,
    media_type="application/problem+json",
)


async def send_unavailable(error: PoolError, send: Send, kind: str = "http.response") -> None:
    """Say that there is no resource for a request now, and when to try again: 503.

    Args:
        error: Why.
        send: The server's.
        kind: What the types of the messages begin with: "websocket.http.response" denies a WebSocket.
    """
    retry_after = b"%d" % max(1, math.ceil(error.retry_after or 1))
    headers = [(b"retry-after", retry_after), *_UNAVAILABLE.raw_headers]
    await send({"type": f"{kind}.start", "status": 503, "headers": headers})
    await send({"type": f"{kind}.body", "body": _UNAVAILABLE.body})
