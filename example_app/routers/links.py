"""Add, list, search and remove links."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request, Response

from example_app.cache import Redirects
from example_app.models import Link, LinkPage, NewLink
from example_app.pools import Db
from example_app.store import CodeTakenError

LARGEST_ID = 2**63 - 1

router = APIRouter(prefix="/api/links", tags=["links"])


@router.post("", status_code=201, responses={409: {"description": "The code is taken."}})
async def add_link(new: NewLink, db: Db, request: Request, response: Response) -> Link:
    """Shorten a URL, under a code of your choice or a random one."""
    try:
        link = await db.add_link(str(new.url), new.code)
    except CodeTakenError:
        raise HTTPException(409, f"The code {new.code!r} is taken.") from None
    response.headers["Location"] = str(request.url_for("follow", code=link.code))
    return link


@router.get("")
async def find_links(
    db: Db,
    q: Annotated[str, Query(max_length=200, description="What the code or the target must contain.")] = "",
    before: Annotated[int | None, Query(ge=1, le=LARGEST_ID, description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> LinkPage:
    """List links, the newest first."""
    return await db.find_links(q.strip(), before=before, limit=limit)


@router.delete("/{code}", status_code=204, responses={404: {"description": "There is no such link."}})
async def remove_link(code: str, db: Db, cache: Redirects) -> None:
    """Remove a link."""
    if not await db.remove_link(code):
        raise HTTPException(404, "There is no link with this code.")
    await cache.forget(code)
