"""The page."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

PAGE = Path(__file__).parent.parent / "static" / "index.html"

router = APIRouter()


@router.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """Send the page; its script does the rest."""
    return FileResponse(PAGE)
