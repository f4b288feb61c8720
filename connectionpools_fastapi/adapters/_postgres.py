"""Errors of PostgreSQL, libpq and poolers, and what they mean; needs no driver."""

import logging
import re
from collections.abc import Collection

from connectionpools_fastapi import Verdict

_logger = logging.getLogger("connectionpools_fastapi")

# libpq does not pass on the code of an error at connecting, so only its text is left. A text in another language
# than English is not recognised, and such a refusal counts as any other failure.
_REFUSED = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|pg_hba\.conf rejects|"
    r'role ".*" does not exist|is not permitted to log in|permission denied for database'
)
_UNKNOWN_DATABASE = re.compile(r'database ".*" does not exist|no such database')
_BAD_OPTION = re.compile(
    r"invalid (?:integer |\w+ )?value|invalid port number|unrecognized configuration parameter|"
    r"invalid value for parameter|could not match \d+ "
)
_CERTIFICATE = re.compile(r"certificate verify failed|root certificate file|server certificate for .* does not match")
_NO_TLS = re.compile(r"server does not support SSL")

# The same kinds, by the codes of the server's own errors (SQLSTATE).
_CODES = {"28P01": _REFUSED, "28000": _REFUSED, "3D000": _UNKNOWN_DATABASE, "42704": _BAD_OPTION, "22023": _BAD_OPTION}
_ADVICE = {
    _REFUSED: "the server refuses this user: check user and password, and pg_hba.conf on the server",
    _UNKNOWN_DATABASE: "the server has no such database: check the name at the end of the address, or create it",
    _BAD_OPTION: "an option has a value that is not understood: check the port and what follows the ? of the address",
    _CERTIFICATE: "the server's TLS certificate does not verify: check the host name of the address, and that "
    "sslrootcert names the certificate of the authority that has signed it",
    _NO_TLS: "the server speaks no TLS, which sslmode demands: switch it on at the server, or check host and port",
}


def advice(said: str, code: str | None = None) -> str | None:
    """Say what to check after a refused connection, if waiting does not mend it.

    Args:
        said: The text of the error; the result contains no part of it.
        code: Its SQLSTATE, if there is one.

    Returns:
        What is wrong and what to check; None if trying again may help.
    """
    if code is not None:
        kind = _CODES.get(code)
        return _ADVICE[kind] if kind is not None else None
    return next((text for kind, text in _ADVICE.items() if kind.search(said)), None)


def address_hint(address: object) -> str | None:
    """Say what is wrong with an address that a driver does not understand, or whose host it does not find.

    Args:
        address: The address as a URL; the result contains no part of it but its scheme, and the wrong character.

    Returns:
        What to write instead; None if it shows no mistake.
    """
    if not isinstance(address, str):
        return None
    scheme, mark, rest = address.partition("://")
    if not mark:
        return None
    if _TWO_SCHEMES.fullmatch(scheme):
        return f"{scheme}:// is how SQLAlchemy writes it, and for SqlalchemyManager. Write postgresql://"
    account, mark, others = rest.partition("@")
    raw = next((sign for sign in account if sign in "/#?[]"), None) if mark else None
    if raw is None and "@" in re.split("[/#?]", others)[0]:
        raw = "@"
    if raw is None:
        return None
    return (
        f"a {raw} stands as it is in the user or the password. Write %{ord(raw):02X} for it, as "
        "urllib.parse.quote(password, safe='') does"
    )


_TWO_SCHEMES = re.compile(r"[a-z0-9]+\+[a-z0-9]+")

# --- errors of a lease ---------------------------------------------------------------------

READ_ONLY = "25006"  # a write in a transaction that is read only

# Yields a row if the server itself takes no writes, as a standby or by its configuration. Settings of a lease, a
# role or the address do not count.
TAKES_NO_WRITES = """
SELECT WHERE pg_catalog.pg_is_in_recovery() OR EXISTS (
    SELECT FROM pg_catalog.pg_settings
    WHERE name OPERATOR(pg_catalog.=) 'default_transaction_read_only' AND setting OPERATOR(pg_catalog.=) 'on'
    AND source OPERATOR(pg_catalog.=) ANY (ARRAY['configuration file', 'command line'])
)
"""

_VERDICTS: dict[str, Verdict] = {
    "57P01": "discard",  # the administrator ends this session, or the server: then its siblings notice that too
    "57P02": "expire",  # another session has crashed, and the server ends all
    "57P03": "discard",
    "57P05": "discard",  # idle for too long
    "25P03": "discard",  # as above, within a transaction
    "25P04": "discard",  # so is a transaction that took too long
}


def verdict(code: str | None) -> Verdict | None:
    """Say what an error means for its connection.

    Args:
        code: Its SQLSTATE, if there is one. READ_ONLY alone means nothing, since a lease may have
            asked for a transaction that is read only: TAKES_NO_WRITES tells.

    Returns:
        What `broken` returns; None if the connection is as good as before.
    """
    if code is None:
        return None
    return "discard" if code.startswith("08") else _VERDICTS.get(code)


# --- sandbox -------------------------------------------------------------------------------

BEGIN_SANDBOX = "BEGIN; SAVEPOINT pool_lease;"
# Checks deferred constraints, as a COMMIT does, and leaves them deferred.
COMMIT_IN_SANDBOX = (
    "SAVEPOINT pool_checked; SET CONSTRAINTS ALL IMMEDIATE; ROLLBACK TO SAVEPOINT pool_checked; "
    "RELEASE SAVEPOINT pool_lease; SAVEPOINT pool_lease;"
)

# --- state of a session --------------------------------------------------------------------

# What a session has that outlasts a transaction: names and values. The server does not list settings with a dot in
# their names, such as app.tenant, so it is asked about those that policies, functions, defaults and prepared statements
# name.
SESSION_STATE = r"""
SELECT 'the setting ' || name, setting FROM pg_catalog.pg_settings WHERE source = 'session'
UNION ALL SELECT 'the setting ' || name, value FROM (
    SELECT name, pg_catalog.current_setting(name, true) FROM (
        SELECT DISTINCT found[1] FROM (
            SELECT pg_catalog.concat(qual, with_check) FROM pg_catalog.pg_policies
            UNION ALL SELECT prosrc FROM pg_catalog.pg_proc WHERE pronamespace <> 'pg_catalog'::pg_catalog.regnamespace
            UNION ALL SELECT pg_catalog.pg_get_expr(adbin, adrelid) FROM pg_catalog.pg_attrdef
            UNION ALL SELECT statement FROM pg_catalog.pg_prepared_statements
        ) AS texts(content),
        pg_catalog.regexp_matches(content, '(?:current_setting|set_config)\(\s*''(\w+\.[\w.]+)''', 'gi') AS m(found)
    ) AS names(name)
) AS custom(name, value) WHERE value <> ''
UNION ALL SELECT 'the role', current_user
UNION ALL SELECT 'the user', session_user
UNION ALL SELECT 'LISTEN ' || channel, '' FROM pg_catalog.pg_listening_channels() AS channels(channel)
UNION ALL SELECT 'an advisory lock', pg_catalog.count(*)::text FROM pg_catalog.pg_locks
    WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()
UNION ALL SELECT 'the temporary table ' || relname, '' FROM pg_catalog.pg_class
    WHERE relnamespace = pg_catalog.pg_my_temp_schema() AND relkind IN ('r', 'p', 'v')
UNION ALL SELECT 'the prepared statement ' || name, '' FROM pg_catalog.pg_prepared_statements
    WHERE from_sql AND pg_catalog.left(name, 10) <> '__asyncpg_' -- as of the reset itself
UNION ALL SELECT 'the cursor ' || name, '' FROM pg_catalog.pg_cursors WHERE is_holdable
"""

# Statements that write, by their text.
WRITES = re.compile(
    r"\s*(?:insert|update|delete|merge|create|alter|drop|truncate|with\b.*\b(?:insert|update|delete|merge))\b",
    re.IGNORECASE | re.DOTALL,
)
# Statements that leave something in a session, by their text. In a sandbox the server cannot tell: what ends with a
# transaction, as SET LOCAL, lasts as long as the one of the sandbox.
LEAVES_STATE = re.compile(
    r"\s*SET\s+(?!LOCAL\b|TRANSACTION\b|CONSTRAINTS\b)|\s*CREATE\s+TEMP(?!.*\bON\s+COMMIT\s+DROP\b)|\s*PREPARE\b|"
    r"\s*DECLARE\b.*\bWITH\s+HOLD\b|.*\bset_config\s*\([^;]*\bfalse\b|.*\bpg_(?:try_)?advisory_lock",
    re.IGNORECASE | re.DOTALL,
)

# --- poolers -------------------------------------------------------------------------------

BACKEND_PID = "SELECT pg_catalog.pg_backend_pid()"
# How often to ask two connections in turn for the process that serves them: see `shares_sessions`.
ROUNDS = 3
# For how long to ask, in seconds: a pooler without a session for the second connection makes it wait.
LOOK_WITHIN = 2.0


def shares_sessions(one: Collection[int], other: Collection[int]) -> bool:
    """Say whether a pooler lends the server's sessions to its clients for one transaction or statement at a time.

    A pooler gives each client a process number of its own, so a number that differs from BACKEND_PID shows that there
    is a pooler. Its mode shows if two connections, open at the same time, ask in turn. In session mode each keeps its
    own process. In the other modes both get the same process or, if others use the pooler too, each gets several.

    Args:
        one: The process numbers that one connection got.
        other: Those that the other one got.

    Returns:
        True if so.
    """
    processes = set(one)
    return len(processes) > 1 or not processes.isdisjoint(other)


def warn_of_shared_sessions(manager: str, options: str) -> None:
    """Log what the pool cannot promise behind a pooler in transaction mode.

    Args:
        manager: The name of the manager's class.
        options: The options to recommend.
    """
    _logger.warning(
        "%s: a pooler in transaction or statement mode, such as PgBouncer, is between the pool and PostgreSQL. What is "
        "promised: a transaction is one lease's alone, and is rolled back if it is left open. What is not: SET, "
        "SET ROLE, LISTEN, advisory locks, temporary tables and PREPARE may be seen by other leases, whatever `reset` "
        "says, since each transaction may run in another session of the server. Write %s, and SET LOCAL within "
        "transactions; or let the pooler work in session mode. See docs/pgbouncer.md",
        manager,
        options,
        extra={"pool_event": "pooler_found", "pool": None},
    )
