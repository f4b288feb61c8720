"""The application: its parts put together."""

import logging
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import InterfaceError, OperationalError

from connectionpools_fastapi import install_pools

from .feed import Feed
from .pools import Database, make_cache
from .routers import export, links, live, page, redirect, report
from .security import SecurityHeaders, is_on_loopback
from .settings import Settings

STATIC = Path(__file__).parent / "static"

logger = logging.getLogger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """Make the application. Its pools are opened by its lifespan.

    Args:
        settings: What may differ from one installation to the other.

    Returns:
        An application for any ASGI server.

    Raises:
        SettingsError: If the database or the cache cannot be used; one line says why.
    """
    app = FastAPI(title="Links", description="A link shortener on connectionpools_fastapi.", redoc_url=None)
    app.state.feed = Feed()
    app.state.database = Database(settings)
    app.state.cache = make_cache(settings)
    pools = (*app.state.database.pools, *app.state.cache.pools)
    install_pools(app, *pools, authorize=is_on_loopback, control=is_on_loopback)
    app.add_middleware(SecurityHeaders, docs="/docs")
    app.add_exception_handler(RequestValidationError, _say_what_is_wrong)
    for kind in (OperationalError, InterfaceError):
        app.add_exception_handler(kind, _ask_to_come_again)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    for module in (page, links, export, report, live):
        app.include_router(module.router)
    app.include_router(redirect.router)  # the last one: /{code} would match everything
    return app


def _say_what_is_wrong(_: Request, error: Exception) -> JSONResponse:
    """Answer 422 as FastAPI does, but do not send back what was sent to us."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - it is registered for these only
    detail = [{key: problem[key] for key in ("loc", "msg", "type")} for problem in error.errors()]
    return JSONResponse({"detail": detail}, status_code=422)


def _ask_to_come_again(request: Request, error: Exception) -> JSONResponse:
    """Answer as the pools do while they have no connection: this request had one, and lost it."""
    # What the driver says may name the server.
    logger.warning("%s answered with 503: the database went away (%s)", request.method, type(error).__name__)
    return JSONResponse(
        {"type": "about:blank", "title": "Service Unavailable", "status": 503, "detail": "Try again later."},
        status_code=503,
        headers={"Retry-After": "1", "Cache-Control": "no-store"},
        media_type="application/problem+json",
    )
