"""All links as CSV."""

import csv
import io
from collections.abc import AsyncIterator, Iterable

from fastapi import APIRouter
from fastapi.responses import StreamingResponse

from example_app.pools import StreamDb
from example_app.store import LinkStore

COLUMNS = ("code", "url", "created", "clicks")

router = APIRouter(prefix="/api", tags=["links"])


@router.get("/links.csv", response_class=StreamingResponse)
async def export(db: StreamDb) -> StreamingResponse:
    """Stream all links. The lease lasts to the last row, and memory does not grow with the rows."""
    return StreamingResponse(
        _lines(db),
        media_type="text/csv",
        headers={"Content-Disposition": 'attachment; filename="links.csv"', "Cache-Control": "no-store"},
    )


async def _lines(db: LinkStore) -> AsyncIterator[str]:
    yield _csv([COLUMNS])
    async for batch in db.every_link():
        yield _csv([getattr(link, column) for column in COLUMNS] for link in batch)


def _csv(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(map(_harmless, row) for row in rows)
    return text.getvalue()


def _harmless(value: object) -> object:
    """Keep spreadsheets from taking a text for a formula."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value
