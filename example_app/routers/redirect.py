"""Follow a link."""

import logging
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, BackgroundTasks, Header, HTTPException
from fastapi.responses import FileResponse, RedirectResponse, Response
from sqlalchemy.exc import DBAPIError

from connectionpools_fastapi import PoolError
from example_app.cache import Redirects
from example_app.feed import Feed, LiveFeed
from example_app.pools import Database, Databases

UNKNOWN = Path(__file__).parent.parent / "static" / "unknown.html"
# No client waits for a click to be counted, so this lease may queue for longer than a request.
PATIENCE = 20.0

logger = logging.getLogger(__name__)
router = APIRouter(tags=["links"])


@router.get(
    "/{code}",
    status_code=307,
    response_class=RedirectResponse,
    responses={404: {"description": "There is no such link."}},
)
async def follow(
    code: str,
    *,
    cache: Redirects,
    database: Databases,
    feed: LiveFeed,
    background: BackgroundTasks,
    accept: Annotated[str, Header()] = "",
    referer: Annotated[str, Header()] = "",
) -> Response:
    """Redirect to where a link leads, and count the click. It leases only what the cache does not know."""

    async def look_up(code: str) -> str | None:
        async with database.lease() as db:
            return await db.find_target(code)

    target = await cache.target(code, look_up)
    if target is None:
        if "text/html" in accept:  # a browser
            return FileResponse(UNKNOWN, status_code=404)
        raise HTTPException(404, "There is no link with this code.")
    background.add_task(count_click, database, feed, code, _host_of(referer))
    return RedirectResponse(target, headers={"Cache-Control": "no-store"})


async def count_click(database: Database, feed: Feed, code: str, referrer: str) -> None:
    """Count a click and tell it to all pages.

    It runs after the response, when no lease of the request is left.
    """
    try:
        async with database.lease(holder="count_click", timeout=PATIENCE) as db:
            click = await db.count_click(code, referrer)
    except (PoolError, DBAPIError) as error:
        logger.warning("a click was not counted: %s", error if isinstance(error, PoolError) else type(error).__name__)
        return
    if click is not None:
        feed.tell(click)


def _host_of(referer: str) -> str:
    """Return only the host of the page that a click came from: the rest is private."""
    try:
        return (urlsplit(referer).hostname or "direct")[:253]
    except ValueError:
        return "direct"
