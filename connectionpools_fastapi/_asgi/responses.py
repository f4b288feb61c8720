"""Responses: the answers of the endpoints and of refusals."""

import math
from typing import Any

from starlette.responses import JSONResponse, Response

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


def unavailable_response(error: PoolError) -> Response:
    """Say that there is no resource for a request now, and when to try again: 503."""
    seconds = max(1, math.ceil(error.retry_after or 1))
    return JSONResponse(
        {"type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": "Try again later."},
        status_code=503,
        headers={"Retry-After": str(seconds), **HEADERS},
        media_type="application/problem+json",
    )
