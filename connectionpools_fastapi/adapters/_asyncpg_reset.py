"""Resets a session of PostgreSQL by asyncpg, in one round trip."""

# ruff: noqa: SLF001 - sends by asyncpg's protocol, which tells the outcome of a script

from typing import Any

import asyncpg  # type: ignore[import-untyped] # has no types

# Like DISCARD ALL, but it keeps the prepared statements that asyncpg itself has made and relies on (PgBouncer gives
# them other names). The search for other ones comes last, since asyncpg reports the outcome of the last statement;
# it also releases the advisory locks, since a statement of its own would cost more.
_DISCARD = """
SET SESSION AUTHORIZATION DEFAULT;
RESET ALL;
CLOSE ALL;
UNLISTEN *;
DISCARD TEMP;
DISCARD SEQUENCES;
"""
_SEARCH = """
SELECT WHERE pg_catalog.pg_advisory_unlock_all() IS NULL
UNION ALL SELECT FROM pg_catalog.pg_prepared_statement()
WHERE pg_catalog.left(name, 10) OPERATOR(pg_catalog.<>) ALL (ARRAY['__asyncpg_', 'PGBOUNCER_'])
"""
_NONE_FOUND = "SELECT 0"
RESET = f"{_DISCARD}{_SEARCH}"
# To parse and plan the search takes the server longer than all else here, so each session prepares it.
_PREPARED = "__asyncpg_pool_reset__"
RESET_AND_PREPARE = f"{_DISCARD}PREPARE {_PREPARED} AS {_SEARCH};EXECUTE {_PREPARED}"
PREPARED_RESET = f"{_DISCARD}EXECUTE {_PREPARED}"


async def reset_session(connection: Any, before: str, *, shares_sessions: bool | None) -> bool:
    """Reset the session.

    Args:
        connection: The pool's connection, a `Leasable`.
        before: What to execute first, in the same round trip.
        shares_sessions: Whether the next reset may be of another session, behind a pooler.

    Returns:
        Whether it has prepared statements that neither asyncpg nor a pooler has made.
    """
    script = RESET if shares_sessions else connection.reset_script
    try:
        found = await connection._protocol.query(f"{before}{script}", None)
    # A lease has discarded the prepared search (DEALLOCATE ALL), or another client of an unknown pooler has prepared
    # it. All of the script but what comes before it is undone.
    except (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError):
        connection.reset_script = RESET
        found = await connection._protocol.query(RESET, None)
    else:
        if script is RESET_AND_PREPARE:
            connection.reset_script = PREPARED_RESET
    return bool(found != _NONE_FOUND)
