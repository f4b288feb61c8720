"""Errors and addresses of MySQL and MariaDB, and what they mean; needs no driver."""

import logging
import ssl
from time import monotonic
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from connectionpools_fastapi import Verdict

from ._options import untrusted
from ._postgres import address_hint

# --- errors at connecting --------------------------------------------------------------------------

_REFUSED = "the server refuses this user: check user and password, and from where the account may connect"
NO_TLS = "the server speaks no TLS, which `ssl` demands: switch it on at the server, or check host and port"
_ADVICE = {
    1044: "the user may not use this database: check its name and the user's grants",
    1045: _REFUSED,
    1049: "the server has no such database: check the name at the end of the address, or create it",
    1064: "the server does not understand init_command or sql_mode: check them",
    1115: "the server does not know the charset: check it",
    1130: _REFUSED,
    1193: "the server does not know a variable that init_command sets: check it",
    1231: "the server does not take a value that sql_mode or init_command sets: check them",
    1251: "the server asks for a way to authenticate that the driver does not know: check the account's plugin",
    1698: _REFUSED,
    1862: "the user's password has expired: set a new one",
    2026: NO_TLS,
    2059: "the server asks for a way to authenticate that the driver does not know: check the account's plugin",
    2061: "the account's plugin cannot authenticate: it asks for TLS, pass ssl=ssl.create_default_context()",
    3118: "the user's account is locked: unlock it",
    3159: "the server takes connections by TLS only: pass ssl=ssl.create_default_context()",
    4151: "the user's account is locked: unlock it",
}
TOO_OLD = (
    "the server is too old to reset a session: it needs MySQL 5.7.3 or MariaDB 10.2.4, or write reset='transaction', "
    "if no lease changes its session"
)
UNKNOWN_COMMAND = 1047
CAN_TLS = 2048  # a bit of `server_capabilities`
IN_TRANSACTION = 1  # a bit of `server_status`
NO_SUCH_SESSION = 1094
# What tells one server from another behind the same address.
WHICH_SERVER = "SELECT CONCAT_WS('/', @@hostname, @@port, @@server_id)"

_logger = logging.getLogger("connectionpools_fastapi")


def code_of(error: BaseException) -> int | None:
    """Return the number of an error of the server or the driver; None if it has none."""
    code = error.args[0] if error.args else None
    return code if isinstance(code, int) else None


def refusal(error: BaseException) -> str | None:
    """Say what to check after a refused connection, if waiting does not mend it."""
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return untrusted(cause, "ssl=ssl.create_default_context(cafile=...)")
    return _ADVICE.get(code_of(error) or 0)


# --- errors of a lease -----------------------------------------------------------------------------

# The server ends this session, or is not there any more.
_GONE = frozenset(
    {
        1053,  # it shuts down
        1152,  # aborted
        1184,  # as above
        1927,  # killed
        2006,  # gone away
        2013,  # lost
        2014,  # out of sync
        2027,  # malformed
        2055,  # lost
        4031,  # idle for too long
    }
)
_OPTION_PREVENTS = 1290  # a server's option, which the text names, forbids the statement
_READ_ONLY_MODE = 1836
# How often, at most, all connections are retired because their server takes no writes, in seconds.
RETIRE_EVERY = 1.0


def is_read_only(error: BaseException) -> bool:
    """Whether an error says that the server takes no writes; a transaction of a lease that takes none has others."""
    code = code_of(error)
    return code == _READ_ONLY_MODE or (code == _OPTION_PREVENTS and "read-only" in str(error).replace("_", "-"))


def warn_of_query(manager: str, error: Exception) -> None:
    """Log that the server goes on with a query that was cut off."""
    _logger.warning(
        "%s: a query was cut off, and could not be ended at the server (%s); it goes on there. Leave the server room "
        "for one more connection than `limit`",
        manager,
        type(error).__name__,
        extra={"pool_event": "query_goes_on", "pool": None, "error": type(error).__name__},
    )


class Verdicts:
    """Say what errors mean for their connections."""

    def __init__(self) -> None:
        self._may_retire_at = 0.0

    def of(self, error: BaseException) -> Verdict | None:
        """Say what an error means: all connections are retired if the server takes no writes, once in a while."""
        if not is_read_only(error):
            return "discard" if code_of(error) in _GONE else None
        now = monotonic()
        if now < self._may_retire_at:
            return None
        self._may_retire_at = now + RETIRE_EVERY
        return "expire"


# --- addresses -------------------------------------------------------------------------------------

EXAMPLE = "mysql://user:password@host:3306/database"
_SCHEMES = frozenset({"mysql", "mariadb"})
_IN_QUERY = frozenset({"charset", "unix_socket"})


def read(url: str) -> tuple[dict[str, Any], str | None]:
    """Read an address.

    Args:
        url: As in `mysql://user:password@host:3306/database?charset=utf8mb4`.

    Returns:
        The options that both drivers take, and what is wrong; the latter names no part of the address.
    """
    scheme = url.partition("://")[0]
    if "+" in scheme and scheme.partition("+")[0] in _SCHEMES:
        return {}, "mysql+driver:// is how SQLAlchemy writes it, and for SqlalchemyManager. Write mysql://"
    hint = address_hint(url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # its text may contain the password
        return {}, f"the URL is malformed. {hint or f'Write {EXAMPLE}'}"
    if parts.scheme not in _SCHEMES or hint is not None:
        return {}, f"the URL is malformed. {hint or f'Write {EXAMPLE}'}"
    query = dict(parse_qsl(parts.query))
    if unknown := sorted(query.keys() - _IN_QUERY):
        return (
            {},
            f"after the ? of the URL only charset and unix_socket may stand; pass {', '.join(unknown)} as options",
        )
    named = {
        "host": parts.hostname,
        "port": port,
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "db": unquote(parts.path[1:]),
    }
    return {**{name: value for name, value in named.items() if value}, **query}, None
