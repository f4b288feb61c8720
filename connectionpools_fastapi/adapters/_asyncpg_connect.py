"""Connects by asyncpg, and says what to write if the arguments are wrong."""

import inspect
import socket
import ssl
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import asyncpg  # type: ignore[import-untyped] # has no types

from connectionpools_fastapi.errors import PoolConfigError, own

from ._options import untrusted
from ._postgres import address_hint

KNOWN = inspect.signature(asyncpg.connect).parameters.keys()
# Options of other pools and drivers, and what to write for them here.
INSTEAD = {
    "application_name": "server_settings={'application_name': ...}",
    "connect_timeout": "timeout=...",
    "dbname": "database=...",
    "max_inactive_connection_lifetime": "ConnectionPool(..., max_idle=...)",
    "max_overflow": "ConnectionPool(..., limit=...)",
    "max_queries": "ConnectionPool(..., max_uses=...)",
    "max_size": "ConnectionPool(..., limit=...)",
    "min_size": "ConnectionPool(..., min_free=...)",
    "options": "server_settings={...}",
    "pool_recycle": "ConnectionPool(..., max_lifetime=...)",
    "pool_size": "ConnectionPool(..., limit=...)",
    "prepare_threshold": "statement_cache_size=...",
    "setup": "init=..., or what it does at the beginning of a lease",
    "sslmode": "ssl=...",
    "statement_timeout": "command_timeout=..., or server_settings={'statement_timeout': ...}",
    "username": "user=...",
}


async def connect_by(function: Callable[..., Any], dsn: str | None, options: dict[str, Any]) -> Any:
    """Connect by asyncpg's function or another one; the error about a wrong argument contains no secrets."""
    try:
        return await function(dsn, **options)
    except ssl.SSLCertVerificationError as error:  # it is also a ValueError
        text = untrusted(error, "ssl=ssl.create_default_context(cafile=...), or sslrootcert in the DSN")
        raise mistake(text) from error
    except (ValueError, OverflowError):  # their text may contain secrets
        hint = address_hint(dsn) or (
            "Write postgresql://user:password@host:port/database, "
            "with percent-encoding where the password has special characters"
        )
        text = f"the DSN or an option is malformed. {hint}"
    except socket.gaierror:
        seen = address_hint(dsn)
        if seen is None:
            raise
        text = f"the DSN is malformed. {seen}"
    except ConnectionError as error:
        if "rejected SSL upgrade" not in str(error):
            raise
        text = "the server speaks no TLS, which ssl demands: switch it on at the server, or check host and port"
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InsufficientPrivilegeError) as error:
        text = f"the server refuses user or password ({_kind(error)}). Check them, and the server's pg_hba.conf"
    except asyncpg.InvalidCatalogNameError as error:
        text = f"the server has no such database ({_kind(error)}). Check its name, or create it"
    except (asyncpg.UndefinedObjectError, asyncpg.InvalidParameterValueError) as error:
        text = f"the server does not take a setting ({_kind(error)}). Check server_settings and the DSN"
    raise mistake(text)


def instead(unknown: list[str]) -> str:
    """Say what to write for unknown options."""
    hints = []
    for name in unknown:
        near = get_close_matches(name, KNOWN, n=1)
        hint = INSTEAD.get(name) or (f"{near[0]}=..." if near else None)
        if hint is not None:
            hints.append(f"for {name} write {hint}")
    return f": {'; '.join(hints)}" if hints else ""


def _kind(error: Exception) -> str:
    return type(error).__name__


def mistake(text: str) -> PoolConfigError:
    """Make the error that says what to correct."""
    return own(PoolConfigError(f"AsyncpgManager: {text}"))
