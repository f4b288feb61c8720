"""Says what is wrong with an address or an option for psycopg, without any secret."""

import inspect
import re
from collections.abc import Iterable
from typing import Any

from psycopg import AsyncConnection, ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

from connectionpools_fastapi.errors import PoolConfigError, own

from ._options import check_address
from ._postgres import address_hint, advice

_ENCODE = "percent-encode special characters of the password, as urllib.parse.quote(password, safe='') does"
# Words in libpq's errors about an address, and the advice for them.
_WORDS = {
    re.compile("invalid URI query parameter|missing key/value separator"): (
        "what follows the ? is none of libpq's options, such as sslmode=require, application_name=... "
        f"or connect_timeout=5; or {_ENCODE}"
    ),
    re.compile("percent-encoded"): _ENCODE,
}
_FORM = "write postgresql://user:password@host:5432/database, or host=... dbname=..."


CONNECT_WITHIN = 5


class Target:
    """Where a manager connects to, and with which options."""

    def __init__(self, manager: str, driver: str, dsn: object, options: dict[str, Any]) -> None:
        """Refuse what cannot work.

        Raises:
            PoolConfigError: If the DSN is neither a str nor a callable, or an option is unknown.
        """
        check_address(manager, "dsn", dsn)
        if unknown := _unknown_options(options):
            raise PoolConfigError(f"{manager}: psycopg.{driver}.connect takes no {', '.join(unknown)}")
        self._manager = manager
        self._options = options

    def options_for(self, dsn: object) -> dict[str, Any]:
        """Return the options to connect with.

        Raises:
            PoolConfigError: If the DSN, now known, cannot be read.
        """
        if not isinstance(dsn, str):
            raise self.mistake(f"the callable given as dsn must return a str, and returned {type(dsn).__name__}")
        parts, found = read(dsn)
        if found is not None:
            raise self.mistake(found)
        return self._options if "connect_timeout" in parts else {"connect_timeout": CONNECT_WITHIN, **self._options}

    def explain(self, error: Exception) -> Exception:
        """Return what to raise for a failure to connect: PoolConfigError if waiting does not mend it, else itself."""
        found = _refusal(error)
        return error if found is None else self.mistake(found)

    def mistake(self, what: str) -> PoolConfigError:
        """Say why the manager cannot connect."""
        return own(PoolConfigError(f"{self._manager} cannot connect: {what}"))


def _unknown_options(names: Iterable[str]) -> list[str]:
    """Return the names that neither psycopg nor libpq knows."""
    of_psycopg = inspect.signature(AsyncConnection.connect).parameters.keys() - {"conninfo", "kwargs"}
    of_libpq = {option.keyword.decode() for option in Conninfo.get_defaults()}
    return sorted(set(names) - of_psycopg - of_libpq)


def read(dsn: str) -> tuple[dict[str, Any], str | None]:
    """Split an address into its parts.

    Args:
        dsn: The address.

    Returns:
        Its parts, and what is wrong with it; None if nothing is.
    """
    said = ""
    try:
        parts: dict[str, Any] = conninfo_to_dict(dsn)
        is_read = "://" not in dsn or not _is_torn(parts)
    except ProgrammingError as error:
        parts, said, is_read = {}, str(error), False
    if is_read:
        return parts, None
    hint = address_hint(dsn) or next((hint for words, hint in _WORDS.items() if words.search(said)), None)
    if hint is None:
        hint = f"{_FORM}; in a URL, {_ENCODE}"
    return {}, f"the DSN cannot be read: {hint}"


def _is_torn(parts: dict[str, Any]) -> bool:
    """Whether a piece of the password got into another part."""
    database = str(parts.get("dbname", ""))
    in_database = "@" in database and ("/" in database or "user" not in parts)
    return in_database or any("@" in str(parts.get(name, "")) for name in ("host", "port"))


def _refusal(error: Exception) -> str | None:
    """Say what to do about a failure to connect, if waiting does not mend it."""
    if isinstance(error, ProgrammingError):  # raised before anything is sent; its text may contain a part of the DSN
        return "an option has a value that psycopg cannot read: check the options, as connect_timeout"
    return advice(str(error))
