"""Reads an address for SQLAlchemy, and says what is wrong with it without any secret; needs SQLAlchemy."""

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from ..errors import PoolConfigError, own


def read(manager: str, address: object) -> URL:
    """Return an address as a URL.

    Raises:
        PoolConfigError: If it is none. The text names the manager, and contains no part of the address.
    """
    if not isinstance(address, (str, URL)):
        raise _mistake(
            manager, f"the callable given as source must return a URL, and returned {type(address).__name__}"
        )
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):  # their text may contain the password
        text = (
            "the URL cannot be read: write postgresql+asyncpg://user:password@host:5432/database, "
            "with special characters of the password percent-encoded"
        )
    else:
        if "@" not in (url.host or ""):
            return url
        text = (
            "the URL has a raw @ in user or password, which ends them: write %40 for it, or "
            "sqlalchemy.URL.create(..., password=...), which needs no encoding"
        )
    raise _mistake(manager, text)


def _mistake(manager: str, what: str) -> PoolConfigError:
    return own(PoolConfigError(f"{manager}: {what}"))
