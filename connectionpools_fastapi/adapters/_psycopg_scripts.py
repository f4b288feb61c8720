"""What the managers for psycopg ask a server: generators, as psycopg's own, that its connections wait for."""

# ruff: noqa: SLF001 - resets what psycopg's connections keep in private members

from collections.abc import Generator
from math import inf
from time import monotonic
from typing import Any

from psycopg.errors import error_from_result
from psycopg.generators import execute
from psycopg.pq import ExecStatus, TransactionStatus

from connectionpools_fastapi import Loan, Verdict
from connectionpools_fastapi.errors import PoolError, own

from ._options import Reset
from ._postgres import BACKEND_PID, READ_ONLY, SESSION_STATE, TAKES_NO_WRITES, verdict
from ._psycopg_leases import Wire, fault

Steps = Generator[Any, Any, Any]

# DISCARD ALL must be the only statement. To end a transaction in the same round trip, its parts are sent, which
# PostgreSQL's manual lists.
DISCARD_ALL = b"DISCARD ALL"
_UNLOCK = b"pg_catalog.pg_advisory_unlock_all()"
_ROLLBACK = b"ROLLBACK"
_ROLLBACK_AND_DISCARD_ALL_BUT_LOCKS = b"""
ROLLBACK;
CLOSE ALL;
SET SESSION AUTHORIZATION DEFAULT;
RESET ALL;
DEALLOCATE ALL;
UNLISTEN *;
DISCARD PLANS;
DISCARD TEMP;
DISCARD SEQUENCES
"""
ROLLBACK_AND_DISCARD_ALL = b"%b; SELECT %b" % (_ROLLBACK_AND_DISCARD_ALL_BUT_LOCKS, _UNLOCK)

# Asked before a rollback, in the same round trip: whether the transaction has written anything.
VERSION_13 = 13_00_00
HAS_WRITTEN = b"SELECT pg_catalog.pg_current_xact_id_if_assigned()"
HAS_WRITTEN_BEFORE_13 = b"SELECT pg_catalog.txid_current_if_assigned()"

POOLED_OPTIONS = (
    "reset='transaction', and prepare_threshold=None unless it is PgBouncer 1.22 or newer with "
    "max_prepared_statements above 0 and libpq is of version 17"
)

# How often, at most, all connections are asked whether their server takes writes, in seconds: some never do.
COUNT_EVERY = 1.0
UNKNOWN = -1


def ask(connection: Any, script: bytes) -> Steps:
    """Execute a script in one round trip; psycopg begins no transaction for it."""
    connection.pgconn.send_query(script)
    results = yield from execute(connection.pgconn)
    if results[-1].status == ExecStatus.FATAL_ERROR:  # an error ends a script
        raise error_from_result(results[-1])
    return results


def backend(connection: Any) -> Steps:
    """Return the number of the server's process, even behind a pooler."""
    (found,) = yield from ask(connection, BACKEND_PID.encode())
    return int(found.get_value(0, 0))


def state_of(connection: Any) -> Steps:
    """Return what the session of a connection has that outlasts a transaction."""
    (found,) = yield from ask(connection, SESSION_STATE.encode())
    return {found.get_value(row, 0).decode(): found.get_value(row, 1).decode() for row in range(found.ntuples)}


class Refusals:
    """Counts writes that were refused as read only: connections that know a lower count have to ask their server."""

    def __init__(self) -> None:
        self.count = 0
        self._counted_at = -inf

    def judge(self, wire: Wire, error: Exception) -> Verdict | None:
        """Say what an error means for its connection, and count it."""
        code = getattr(error, "sqlstate", None)
        if code != READ_ONLY:
            return verdict(code)
        wire.refusals = UNKNOWN
        if (now := monotonic()) - self._counted_at >= COUNT_EVERY:
            self._counted_at = now
            self.count += 1
        return "check"

    def check(self, connection: Any) -> Steps:
        """Send an empty query, or ask whether the server takes writes; return whether the connection can be used."""
        wire, count = connection.wire, self.count
        if wire.refusals == count:
            yield from ask(connection, b"")
            return True
        (takes_no_writes,) = yield from ask(connection, TAKES_NO_WRITES.encode())
        wire.refusals = count
        return not takes_no_writes.ntuples


def end_lease(keeper: Any, reset: Reset) -> Steps | None:
    """End a connection's lease.

    Args:
        keeper: The pool's connection.
        reset: How far to reset it.

    Returns:
        What resets it; None if nothing has to be asked of the server.

    Raises:
        PoolError: If it cannot be reset.
    """
    if why := fault(keeper):
        raise own(PoolError(why))
    is_idle = keeper.pgconn.transaction_status == TransactionStatus.IDLE
    loan = keeper.leases.end(keeper)
    if not is_idle:
        return _roll_back(keeper, loan, reset)
    if reset == "session":
        return _discard_all(keeper)
    keeper.leases.restore_preparing(keeper)
    return None


def _discard_all(keeper: Any) -> Steps:
    yield from ask(keeper, DISCARD_ALL)
    keeper.leases.forget_prepared(keeper)


def _roll_back(keeper: Any, loan: Loan | None, reset: Reset) -> Steps:
    has_failed = keeper.pgconn.transaction_status != TransactionStatus.INTRANS
    if loan is None or loan.has_failed or has_failed:  # the loss is intended
        yield from ask(keeper, _ROLLBACK if reset == "transaction" else ROLLBACK_AND_DISCARD_ALL)
    else:
        question = HAS_WRITTEN if keeper.pgconn.server_version >= VERSION_13 else HAS_WRITTEN_BEFORE_13
        script = b"%b; %b" % (question, _ROLLBACK)
        if reset == "session":  # a rollback does not restore these locks, and one SELECT costs half of two
            script = b"%b, %b; %b" % (question, _UNLOCK, _ROLLBACK_AND_DISCARD_ALL_BUT_LOCKS)
        written, *_ = yield from ask(keeper, script)
        if written.get_value(0, 0) is not None:
            loan.warn(keeper.lost)
    if reset == "session":
        keeper.leases.forget_prepared(keeper)
        return
    if keeper._prepared.clear():  # as psycopg does after each rollback
        yield from keeper._prepared.maintain_gen(keeper)
    keeper.leases.restore_preparing(keeper)
