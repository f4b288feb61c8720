"""Follow a link."""

import logging
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import aiosqlite
from fastapi import APIRouter, BackgroundTasks, Header, HTTPException
from fastapi.responses import FileResponse, RedirectResponse, Response

from connectionpools_fastapi import ConnectionPool, PoolError
from example_app import store
from example_app.feed import Feed, LiveFeed
from example_app.pools import Db, DbPool

UNKNOWN = Path(__file__).parent.parent / "static" / "unknown.html"
# Nobody waits for a click to be counted, so it may queue for longer than a request.
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
    conn: Db,
    pool: DbPool,
    feed: LiveFeed,
    background: BackgroundTasks,
    accept: Annotated[str, Header()] = "",
    referer: Annotated[str, Header()] = "",
) -> Response:
    """Redirect to where a link leads, and count the click."""
    target = await store.find_target(conn, code)
    if target is None:
        if "text/html" in accept:  # somebody with a browser
            return FileResponse(UNKNOWN, status_code=404)
        raise HTTPException(404, "There is no link with this code.")
    background.add_task(count_click, pool, feed, code, _host_of(referer))
    return RedirectResponse(target, headers={"Cache-Control": "no-store"})


async def count_click(pool: ConnectionPool[aiosqlite.Connection], feed: Feed, code: str, referrer: str) -> None:
    """Count a click and tell it to all pages.

    It runs after the response, when the request's own lease has ended already.
    """
    try:
        async with pool.lease(holder="count_click", timeout=PATIENCE) as conn:
            click = await store.count_click(conn, code, referrer)
    except PoolError as error:
        logger.warning("a click was not counted: %s", error)
        return
    if click is not None:
        feed.tell(click)


def _host_of(referer: str) -> str:
    """Of where a click came from keep the host only: the rest is nobody's business."""
    try:
        return (urlsplit(referer).hostname or "direct")[:253]
    except ValueError:
        return "direct"
