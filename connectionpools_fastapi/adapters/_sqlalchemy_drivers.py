"""What SyncSqlalchemyManager knows of the drivers below it: how a session is reset, and what errors mean."""

# ruff: noqa: SLF001 - a reset changes what the drivers keep of a session

import struct
from contextlib import closing, suppress
from threading import Thread
from typing import Any, NoReturn, cast

from sqlalchemy import Engine

from connectionpools_fastapi import Loan, Verdict

from ..errors import PoolConfigError, own
from . import _mysql, _postgres
from ._postgres import BACKEND_PID, LOOK_WITHIN, ROUNDS, shares_sessions, warn_of_shared_sessions
from ._socket import has_news

COM_INIT_DB = 2
COM_QUERY = 3
COM_RESET_CONNECTION = 0x1F


class Driver:
    """Any driver: how to reset its session is not known. Its connections come as `driven`.

    Attributes:
        resets_session: Whether it knows how.
        shares_sessions: Whether a pooler lends one session to several connections in turn.
    """

    resets_session = False
    shares_sessions = False

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._dialect: Any = engine.dialect

    def remember(self, driven: Any, *, resets: bool) -> Any:  # noqa: ARG002 - for drivers that are known
        """Prepare a new connection, whose session is reset or not; returns what `reset` has to know."""
        return None

    def lend(self, driven: Any, loan: Loan) -> Any:  # noqa: ARG002 - as above
        """Make the driver's connection of one lease, or return the connection itself."""
        return driven

    def end_lease(self, driven: Any) -> Loan | None:  # noqa: ARG002 - as above
        """End the lease of a connection; return its loan if writes of the lease will be lost, as far as known here."""
        return None

    def fault(self, driven: Any) -> str | None:  # noqa: ARG002 - as above
        """Return why another lease cannot use a connection; None if it can."""
        return None

    def reset(self, driven: Any, state: Any) -> None:
        """Reset a session whose transaction has ended."""

    def abandon(self, driven: Any) -> None:
        """Prepare a connection for being closed."""

    def refusal(self, error: BaseException) -> str | None:  # noqa: ARG002 - as above
        """Say what to check after a failure to connect, if waiting does not mend it."""
        return None

    def is_doubtful(self, driven: Any) -> bool:
        """Whether a connection was closed, as far as this end knows."""
        return bool(getattr(driven, "closed", False)) or (hasattr(driven, "fileno") and has_news(driven.fileno()))

    def verdict(self, error: Exception, driven: Any) -> Verdict | None:
        """Say what an error of the driver means for its connection."""
        is_lost = isinstance(error, self._dialect.dbapi.Error) and self._dialect.is_disconnect(error, driven, None)
        return "discard" if is_lost else None


class OfPostgres(Driver):
    """psycopg and psycopg2, whose state survives DISCARD ALL; others may go on using statements that it drops."""

    resets_session = True
    _has_looked_for_pooler = False

    def remember(self, driven: Any, *, resets: bool) -> Any:  # noqa: ARG002 - as the base
        """Look for a pooler, once."""
        if not self._has_looked_for_pooler:
            self._look_for_pooler(driven)
            self._has_looked_for_pooler = True

    def reset(self, driven: Any, state: Any) -> None:  # noqa: ARG002 - as the base
        """Send DISCARD ALL, which runs in no transaction."""
        self._dialect.set_isolation_level(driven, "AUTOCOMMIT")
        cursor = driven.cursor()
        cursor.execute("DISCARD ALL")
        cursor.close()
        self._dialect.reset_isolation_level(driven)
        if self._dialect.driver == "psycopg":
            _forget_prepared(driven)

    def refusal(self, error: BaseException) -> str | None:
        """Say what to check after a failure to connect, by its text."""
        return _postgres.advice(str(error))

    def verdict(self, error: Exception, driven: Any) -> Verdict | None:
        """Say what an error means, by its code."""
        code = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        return _postgres.verdict(code) or super().verdict(error, driven)

    def _look_for_pooler(self, driven: Any) -> None:
        """Warn if a pooler gives each transaction another session of the server."""
        shares = False
        with suppress(Exception):  # a failure here must not prevent the connection
            if _backend_pid(driven) != driven.info.backend_pid:
                mine, others = [_backend_pid(driven) for _ in range(ROUNDS)], list[int]()
                # In session mode the pooler may have no session left, and let the second connection wait.
                asking = Thread(target=self._ask_another, args=(others,), daemon=True)
                asking.start()
                asking.join(LOOK_WITHIN)
                shares = bool(others) and shares_sessions(mine, others)
        if shares and not self.shares_sessions:
            self.shares_sessions = True
            warn_of_shared_sessions("SyncSqlalchemyManager", "reset='transaction', no prepared statements")

    def _ask_another(self, pids: list[int]) -> None:
        with suppress(Exception), closing(self._engine.raw_connection()) as other:
            pids.extend(_backend_pid(other.dbapi_connection) for _ in range(ROUNDS))


class OfMysql(Driver):
    """PyMySQL: reset by COM_RESET_CONNECTION, as by the managers of aiomysql and asyncmy."""

    resets_session = True

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._verdicts = _mysql.Verdicts()

    def remember(self, driven: Any, *, resets: bool) -> Any:
        """Note the settings that the connection was made with, and begin as each lease does.

        Raises:
            PoolConfigError: If the server speaks no TLS, which was asked for, or is too old for a reset.
        """
        # PyMySQL before 1.2 goes on without TLS; later ones refuse that, unless TLS was not asked for.
        if getattr(driven, "_ssl_required", driven.ssl) and not driven.server_capabilities & _mysql.CAN_TLS:
            raise _mistake(_mysql.NO_TLS)
        if hasattr(driven, "lend"):
            driven.server = _value(driven, _mysql.WHICH_SERVER)
        names = ("charset", "encoding", "collation", "autocommit_mode")
        state = driven.get_autocommit(), {name: getattr(driven, name) for name in names}
        if not resets:
            return state
        try:
            self.reset(driven, state)
        except Exception as error:
            if _mysql.code_of(error) == _mysql.UNKNOWN_COMMAND:
                raise _mistake(_mysql.TOO_OLD) from None
            raise
        return state

    def lend(self, driven: Any, loan: Loan) -> Any:
        """Make PyMySQL's connection of one lease; one that an engine of the application has made is lent itself."""
        return driven.lend(loan) if hasattr(driven, "lend") else driven

    def end_lease(self, driven: Any) -> Loan | None:
        """End the lease of a connection; return its loan if writes of the lease will be lost."""
        return driven.end_lease() if hasattr(driven, "lend") else None

    def fault(self, driven: Any) -> str | None:
        """Say so if a thread waits for an answer, or rows are left, which would all have to be read."""
        lent = getattr(driven, "lent", None) or driven
        if lent is not driven and lent.is_waiting:
            return "it is still in use: a query is not at its end"
        if not lent.open:
            return "the connection is closed"
        result = lent._result
        unread = result is not None and bool(result.unbuffered_active)
        return "the rows of an SSCursor were not read to their end" if unread else None

    def reset(self, driven: Any, state: Any) -> None:
        """Reset the session, and make its settings again: one round trip, and one for `init_command`."""
        autocommits, attributes = state
        for name, value in attributes.items():
            setattr(driven, name, value)
        names = f"NAMES '{driven.charset}'" + (f" COLLATE '{driven.collation}'" if driven.collation else "")
        settings = [names, f"autocommit = {int(autocommits)}"]
        if driven.sql_mode is not None:
            settings.append(f"sql_mode = {driven.escape(driven.sql_mode)}")
        commands = [(COM_RESET_CONNECTION, b""), (COM_QUERY, f"SET {', '.join(settings)}".encode(driven.encoding))]
        if driven.db:
            commands.append((COM_INIT_DB, driven.db if isinstance(driven.db, bytes) else driven.db.encode()))
        _exchange(driven, commands)
        if driven.init_command is not None:
            driven.query(driven.init_command)
        if self._dialect._on_connect_isolation_level not in (None, "AUTOCOMMIT"):
            self._dialect.reset_isolation_level(driven)

    def abandon(self, driven: Any) -> None:
        """End a query at the server, and give up rows that were not read: their cursor would read on when collected."""
        lent = getattr(driven, "lent", None)
        if lent is not None and lent.is_waiting and not lent._closed:
            try:
                self._end_session(driven)
            except Exception as error:  # noqa: BLE001 - of the driver, or an address's callable
                _mysql.warn_of_query("SyncSqlalchemyManager", error)
        self.end_lease(driven)
        result = driven._result
        if result is not None and result.unbuffered_active:
            result.unbuffered_active = False
            result._read_rowdata_packet_unbuffered = _refuse_rows

    def _end_session(self, driven: Any) -> None:
        """End a session over another connection, unless the address leads to another server by now."""
        with closing(self._engine.raw_connection()) as other:
            below: Any = other.dbapi_connection
            # Numbers grow: a greater one than the new connection's is of a server that has restarted since.
            if _value(below, _mysql.WHICH_SERVER) == driven.server and driven.thread_id() < below.thread_id():
                try:
                    below.query(f"KILL {driven.thread_id()}")
                except Exception as error:
                    if _mysql.code_of(error) != _mysql.NO_SUCH_SESSION:
                        raise

    def is_doubtful(self, driven: Any) -> bool:
        """Whether a connection was closed, as far as this end knows."""
        return not driven.open or has_news(driven._sock.fileno())

    def refusal(self, error: BaseException) -> str | None:
        """Say what to check after a failure to connect, by its number."""
        return _mysql.refusal(error)

    def verdict(self, error: Exception, driven: Any) -> Verdict | None:
        """Say what an error means, by its number."""
        return self._verdicts.of(error) or super().verdict(error, driven)


def driver_of(engine: Engine) -> Driver:
    """Return what is known of an engine's driver."""
    dialect = engine.dialect
    if dialect.name == "postgresql" and dialect.driver in {"psycopg", "psycopg2"}:
        return OfPostgres(engine)
    if dialect.name in {"mysql", "mariadb"} and dialect.driver == "pymysql":
        return OfMysql(engine)
    return Driver(engine)


def _mistake(what: str) -> PoolConfigError:
    return own(PoolConfigError(f"SyncSqlalchemyManager: {what}"))


def _refuse_rows() -> NoReturn:
    raise ConnectionError("the connection was closed before all rows were read")


def _exchange(driven: Any, commands: list[tuple[int, bytes]]) -> None:
    """Send commands of MySQL's protocol in one write, and read the server's OK to each."""
    while driven._result is not None and driven._result.has_next:
        driven.next_result()
    driven._result = None
    driven._write_bytes(b"".join(struct.pack("<iB", len(text) + 1, code) + text for code, text in commands))
    for _ in commands:
        driven._next_seq_id = 1
        driven._read_ok_packet()


def _value(driven: Any, query: str) -> Any:
    cursor = driven.cursor()
    cursor.execute(query)
    (value,) = cursor.fetchone()
    cursor.close()
    driven.rollback()
    return value


def _backend_pid(driven: Any) -> int:
    return cast("int", _value(driven, BACKEND_PID))


def _forget_prepared(driven: Any) -> None:
    """Make psycopg forget the prepared statements, which the server has discarded."""
    old = driven._prepared
    driven._prepared = new = type(old)()
    new.prepare_threshold, new.prepared_max = old.prepare_threshold, old.prepared_max
