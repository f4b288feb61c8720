"""Backend: what each kind of database brings along."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from connectionpools_fastapi import ResourceManager
from example_app.settings import SettingsError

from .questions import LinkStore, ReportStore


@dataclass(frozen=True, kw_only=True)
class Backend:
    """How to connect, and which store to put on a connection."""

    connections: ResourceManager[Any]
    links: Callable[[Any], LinkStore]
    report_connections: ResourceManager[Any]
    report: Callable[[Any], ReportStore]


def backend_of(url: str) -> Backend:
    """Choose by the URL of the database; only the driver that is needed is imported.

    Raises:
        SettingsError: If the driver is missing, or cannot read the URL.
    """
    if url.startswith("sqlite:"):
        from . import sqlite  # noqa: PLC0415 - needs aiosqlite

        return sqlite.backend(url)
    try:
        from . import postgres  # noqa: PLC0415 - needs psycopg
    except ImportError:
        msg = "DATABASE_URL names a PostgreSQL, which needs psycopg 3.2 or newer: pip install 'psycopg[binary]>=3.2'"
        raise SettingsError(msg) from None
    return postgres.backend(url)
