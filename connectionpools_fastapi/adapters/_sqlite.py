"""What both managers for SQLite share: how a database is opened, checked, reset and closed."""

import inspect
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from connectionpools_fastapi import Verdict

from ..errors import PoolConfigError, PoolError, own
from ._options import Reset, check_reset, refuse_prepare
from ._sqlite_lent import Session

Location = str | os.PathLike[str]
Pragmas = Mapping[str, str | int | None]
Init = Callable[[sqlite3.Connection], object]

# With WAL, readers go on while another connection writes; there NORMAL is as safe as FULL and spares a sync per commit.
PRAGMAS: Pragmas = {"journal_mode": "wal", "synchronous": "normal", "foreign_keys": "on"}
# Settings that a database opened for reading does not need, or refuses.
OF_WRITERS = frozenset({"journal_mode", "synchronous"})

# Actions, as the authorizer sees them, that change a session; a PRAGMA only does with an argument.
CHANGES = frozenset(
    {
        sqlite3.SQLITE_ATTACH,
        sqlite3.SQLITE_CREATE_TEMP_INDEX,
        sqlite3.SQLITE_CREATE_TEMP_TABLE,
        sqlite3.SQLITE_CREATE_TEMP_TRIGGER,
        sqlite3.SQLITE_CREATE_TEMP_VIEW,
        sqlite3.SQLITE_CREATE_VTABLE,
        sqlite3.SQLITE_DETACH,
        sqlite3.SQLITE_PRAGMA,
    }
)
# PRAGMAs with an argument that change nothing, or only the file.
HARMLESS = frozenset(
    """application_id foreign_key_check foreign_key_list incremental_vacuum index_info index_list index_xinfo
    integrity_check optimize quick_check table_info table_list table_xinfo user_version wal_checkpoint""".split()  # noqa: SIM905 - so many strings is no easier to read
)

# In the order in which they are set: `autocommit` may begin a transaction, `isolation_level` may end one.
ATTRIBUTES = ("row_factory", "text_factory", "isolation_level", "autocommit")

# What an error means for its connection, by kind; a lock, a constraint, a full disk or an interruption means nothing.
VERDICTS: Mapping[int, Verdict] = {
    sqlite3.SQLITE_CANTOPEN: "check",  # the log or another file beside it: the directory may be gone
    sqlite3.SQLITE_CORRUPT: "discard",  # the file, or this connection's cache of it
    sqlite3.SQLITE_IOERR: "discard",
    sqlite3.SQLITE_NOTADB: "discard",
}

LOST = "rows that were not committed were rolled back; end with `conn.commit()`, or use `with conn:`"

# How long an interrupted statement may take to end, in seconds.
END_WITHIN = 1.0

# How long closing waits for another connection that is being closed, how often a refused switch to
# WAL is tried again, and how long SQLite waits for a lock, in seconds.
CLOSE_WITHIN = 1.0
RETRY_AFTER = 0.005
CONNECT_WITHIN = 5.0

# SQLite moves its log into the file when the last connection is closed, and of two that are closed at the
# same moment each takes the other for the last. So connections are closed one by one, also of several pools.
_closing = threading.Lock()


class Database:
    """One database, and the settings of its connections; its methods block, so they are for worker threads."""

    def __init__(
        self,
        subject: str,
        *,
        reset: Reset,
        read_only: bool,
        pragmas: Pragmas | None,
        init: Init | None,
        options: dict[str, Any],
    ) -> None:
        """Take the arguments of a manager, and check them.

        Raises:
            PoolConfigError: If one of them cannot work.
        """
        self._subject = subject
        check_reset(subject, reset)
        ours = {"check_same_thread", "database", "factory", "uri"} & options.keys()
        if ours:
            raise PoolConfigError(f"{subject}: {', '.join(sorted(ours))} cannot be set, since the manager does")
        if init is not None and (not callable(init) or inspect.iscoroutinefunction(init)):
            raise PoolConfigError(f"{subject}: init must be a `def` that takes an sqlite3.Connection")
        self._reads_only = read_only
        self._watches = reset == "session"
        self._init = init
        self._options = {"timeout": CONNECT_WITHIN, **options}
        self._autocommit = {name: self._options.pop(name) for name in ("autocommit",) if name in options}
        wanted = {name: value for name, value in PRAGMAS.items() if not (read_only and name in OF_WRITERS)}
        wanted.update(pragmas or {})
        self._pragmas = {name: value for name, value in wanted.items() if value is not None}
        self._try_out()

    def _try_out(self) -> None:
        # An unknown option raises TypeError here, instead of each time that a caller waits for a connection.
        with closing(sqlite3.connect(":memory:", **self._options)) as conn:
            known = {name for (name,) in conn.execute("PRAGMA pragma_list")}
        unknown = sorted(name for name in self._pragmas if known and name.lower() not in known)
        if unknown:  # SQLite ignores them without an error
            raise PoolConfigError(f"{self._subject}: this SQLite has no PRAGMA {', '.join(unknown)}")

    def locate(self, location: object) -> str:
        """Return the URI or path to open.

        Raises:
            PoolConfigError: If it cannot be shared by several connections, or is no path.
        """
        try:
            text = os.fspath(location)  # type: ignore[call-overload] # it raises TypeError for other types
        except TypeError:
            text = None
        if not isinstance(text, str) or "\0" in text:
            raise self._mistake("the database must be a path or a URI, as 'app.db' or 'file:app.db?mode=rw'")
        if _is_private(text):
            raise self._mistake(
                "each connection to a database in memory would have one of its own. Write 'file:/app?vfs=memdb', "
                "which connections share for as long as one is open (min_free=1), or the path of a file"
            )
        if not self._reads_only:
            return text
        if text.startswith("file:"):
            return f"{text}{'&' if '?' in text else '?'}mode=ro"
        return f"{Path(text).absolute().as_uri()}?mode=ro"

    def open(self, location: str) -> Session:
        """Connect.

        Raises:
            PoolConfigError: If the file cannot be opened as it is.
            sqlite3.Error: SQLite's own error, if waiting may help.
        """
        conn = Session.__new__(Session)
        conn.lock = threading.RLock()
        try:
            self._connect(conn, location)
        except BaseException:
            with suppress(sqlite3.Error):
                conn.close()
            raise
        return conn

    def _connect(self, conn: Session, location: str) -> None:
        lock = conn.lock
        try:
            # A reset connects the same object again, which clears its attributes.
            sqlite3.Connection.__init__(
                conn, location, uri=location.startswith("file:"), check_same_thread=False, **self._options
            )
            conn.location = location
            conn.lock = lock
            conn.unread = set()
            conn.changes = set()
            conn.path = conn.execute("PRAGMA database_list").fetchone()[2]
            self._set_pragmas(conn)
        except sqlite3.Error as error:
            advice = _advice(error, location)
            if advice is not None:
                raise self._mistake(advice) from None
            raise
        conn.file = _identify(conn.path)
        for name, value in self._autocommit.items():  # only now: within a transaction PRAGMAs have no effect
            setattr(conn, name, value)
        if self._init is not None:
            self._init(conn)
            conn.commit()
        conn.attributes = tuple((name, getattr(conn, name)) for name in ATTRIBUTES if hasattr(conn, name))
        changes: set[str] = set()
        conn.changes = changes
        _start_afresh(conn)
        if self._watches:
            sqlite3.Connection.set_authorizer(conn, _watch(changes))

    def _set_pragmas(self, conn: Session) -> None:
        patience = time.monotonic() + self._options["timeout"]
        for name, value in self._pragmas.items():
            while True:
                try:
                    conn.execute(f"PRAGMA {name} = {value}")
                    break
                except sqlite3.OperationalError as error:
                    # If several connections switch a new file to WAL together, SQLite at once refuses all but one.
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= patience:
                        raise
                    time.sleep(RETRY_AFTER)

    def check(self, conn: Session) -> bool:
        """Say whether a connection works, and its file is still the one under that name."""
        with conn.lock:
            conn.execute("SELECT 1")
            return conn.file == _identify(conn.path)

    def reset(self, conn: Session) -> bool:
        """Undo what a lease has left, if need be by connecting anew; return whether rows were lost."""
        lock = _take(conn)
        try:
            conn.close_unread()
            is_loss = conn.has_uncommitted_rows
            if self._watches and conn.changes:  # one of them may forbid a ROLLBACK
                conn.close()
                self._connect(conn, conn.location)
            else:
                _end_transaction(conn)
                if self._watches:
                    for name, value in conn.attributes:
                        setattr(conn, name, value)
        finally:
            lock.release()
        return is_loss

    def changes_of(self, conn: Session) -> frozenset[str]:
        """Name what a lease has changed that the next reset undoes."""
        return frozenset(conn.changes.copy()) if self._watches else frozenset()

    def refuse_prepare(self) -> str | None:
        """Say why a request may not prepare its connection."""
        return refuse_prepare(resets_session=self._watches)

    def close(self, conn: Session) -> None:
        """Close a connection: interrupt the thread that still uses it, or else wait for it in the background."""
        if conn.take(CLOSE_WITHIN):
            self._close_taken(conn)
        else:  # while a thread is within SQLite, the connection must not be closed
            threading.Thread(
                target=self._close_later, args=(conn,), name=f"{self._subject}: close", daemon=True
            ).start()

    def _close_later(self, conn: Session) -> None:
        cast("Any", conn.lock).acquire()
        self._close_taken(conn)

    @staticmethod
    def _close_taken(conn: Session) -> None:
        has_turn = False
        try:
            with suppress(sqlite3.Error):  # it is closed already
                conn.close_unread()
                conn.execute("SELECT 1")  # consumes a late interruption, which would else stop the moving of the log
            has_turn = _closing.acquire(timeout=CLOSE_WITHIN)
            conn.close()
        finally:
            if has_turn:
                _closing.release()
            conn.lock.release()

    def _mistake(self, text: str) -> PoolConfigError:
        return own(PoolConfigError(f"{self._subject}: {text}"))


def _watch(changes: set[str]) -> Callable[[int, str | None, str | None, str | None, str | None], int]:
    def note(action: int, first: str | None, second: str | None, _database: str | None, _by: str | None) -> int:
        # Called when a statement is compiled: once for each that sqlite3 caches, as it does most.
        if action in CHANGES and (action != sqlite3.SQLITE_PRAGMA or (second is not None and first not in HARMLESS)):
            changes.add(str(first))
        return sqlite3.SQLITE_OK

    return note


def judge(error: Exception) -> Verdict | None:
    """Say what an error means for a connection that has met it."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
    if code == sqlite3.SQLITE_READONLY_DBMOVED:
        return "expire"  # the file was moved or deleted, for all connections to it
    return VERDICTS.get(code & 0xFF)  # the low byte is the kind of error; the rest is detail


def _end_transaction(conn: Session) -> None:
    if conn.in_transaction:
        conn.execute("ROLLBACK")  # not `rollback()`: it does nothing if `autocommit` is True
        if getattr(conn, "autocommit", None) is False:
            setattr(conn, "autocommit", False)  # noqa: B010 - begins the next one; Python 3.11 has no such attribute
        _start_afresh(conn)


def _start_afresh(conn: Session) -> None:
    conn.note_state()
    conn.committed_rows = conn.changed_rows  # even if a transaction has begun at once


def _take(conn: Session) -> Any:
    """Take a connection from a thread that may still use it, as after a cancelled request; return its lock."""
    if not conn.take(END_WITHIN):
        raise own(PoolError("a statement of the lease still runs, and cannot be interrupted"))
    return conn.lock


def _is_private(location: str) -> bool:
    if location.startswith("file:"):
        in_memory = location.startswith("file::memory:") or "mode=memory" in location
        return in_memory and "cache=shared" not in location
    return location in {"", ":memory:"}


def _identify(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - a string, from SQLite
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _advice(error: sqlite3.Error, location: str) -> str | None:
    """Say what to check if waiting does not mend the error; the text does not contain the location."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return "the file is no SQLite database, or is encrypted. Check that it is the right one"
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}:
        return "the file must not be written. Check the permissions of file and directory, or pass read_only=True"
    if code == sqlite3.SQLITE_CANTOPEN:
        path = unquote(urlsplit(location).path) if location.startswith("file:") else location
        if not os.path.isdir(os.path.dirname(path) or "."):  # noqa: PTH112, PTH120 - strings
            return "the directory of the file does not exist. Check the path, or create it"
        if not os.path.isfile(path):  # noqa: PTH113 - as above
            return "the file does not exist or is none, and must not be created. Check path, mode and permissions"
        if not os.access(path, os.R_OK):
            return "the file must not be read. Check its permissions"
    return None
