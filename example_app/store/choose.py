"""Choose the kind of database; only the driver that is needed is imported."""

from example_app.settings import SettingsError

from .backend import Backend


def backend_of(url: str) -> Backend:
    """Choose by the URL of the database.

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
