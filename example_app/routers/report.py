"""Statistics."""

from fastapi import APIRouter

from example_app.models import Report
from example_app.pools import ReportDb

router = APIRouter(prefix="/api", tags=["statistics"])


@router.get("/report")
def report(db: ReportDb) -> Report:
    """Sum up links and clicks.

    A `def` endpoint: it runs on a worker thread, so its connection comes from a pool of a
    driver that blocks.
    """
    return db.make_report()
