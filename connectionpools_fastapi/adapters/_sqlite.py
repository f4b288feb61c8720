"""What both managers for SQLite share: how a database is opened, checked, brought back and closed."""

import inspect
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from ..errors import PoolConfigError, own

Reset = Literal["session", "transaction"]
Location = str | os.PathLike[str]
Pragmas = Mapping[str, str | int | None]
Init = Callable[[sqlite3.Connection], object]

# With WAL readers go on while somebody writes, and NORMAL is as safe there as FULL and spares a sync per commit.
PRAGMAS: Pragmas = {"journal_mode": "wal", "synchronous": "normal", "foreign_keys": "on"}
# What a database that is only read has no use for, or cannot be told.
OF_WRITERS = frozenset({"journal_mode", "synchronous"})

# What SQLite's authorizer is told of that changes a session; of PRAGMA only what has an argument.
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
# These have an argument, and yet change nothing or only what is in the file.
HARMLESS = frozenset(
    """application_id foreign_key_check foreign_key_list incremental_vacuum index_info index_list index_xinfo
    integrity_check optimize quick_check table_info table_list table_xinfo user_version wal_checkpoint""".split()  # noqa: SIM905 - so many strings is no easier to read
)

# Methods that change a session without SQL, nor can what they set be asked for.
REGISTERING = """create_aggregate create_collation create_function create_window_function deserialize
    enable_load_extension set_authorizer set_progress_handler set_trace_callback setconfig setlimit""".split()  # noqa: SIM905 - as above
# In the order in which they are set: `autocommit` may begin a transaction, `isolation_level` may end one.
ATTRIBUTES = ("row_factory", "text_factory", "isolation_level", "autocommit")

# How long one that closes a connection waits for another one to have closed, and one that is to
# switch to WAL for another one to have done so, in seconds.
CLOSE_WITHIN = 1.0
RETRY_AFTER = 0.005
CONNECT_WITHIN = 5.0

# SQLite moves its log into the file when the last connection is closed, and two that are closed
# at the same moment each take the other for the last: so one after the other, of whichever pool.
_closing = threading.Lock()


class Session(sqlite3.Connection):
    """A connection that knows what is to be known of it when it comes back."""

    location: str
    path: str  # as SQLite has found it, absolute; empty of what is in memory
    file: tuple[int, int] | None
    attributes: tuple[tuple[str, Any], ...]
    # What a lease did that only a new connection undoes; always empty where nobody looks.
    changes: set[str]


def _noting(name: str) -> Callable[..., Any]:
    method = getattr(sqlite3.Connection, name)

    def note(self: Session, /, *args: Any, **kwargs: Any) -> Any:
        self.changes.add(name)
        return method(self, *args, **kwargs)

    return note


for _name in REGISTERING:
    if hasattr(sqlite3.Connection, _name):  # some are younger than others, or were left out when Python was built
        setattr(Session, _name, _noting(_name))


class Database:
    """One database, and how connections to it are to be; blocks, so all of it is for worker threads."""

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
        """Take what a manager was given, and see that it makes sense.

        Raises:
            PoolConfigError: If it does not.
        """
        self._subject = subject
        if reset not in {"session", "transaction"}:
            raise PoolConfigError(f"{subject}: reset must be 'session' or 'transaction'; got {reset!r}")
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
        # An option that there is not is TypeError here, rather than each time that somebody waits for a connection.
        with closing(sqlite3.connect(":memory:", **self._options)) as conn:
            known = {name for (name,) in conn.execute("PRAGMA pragma_list")}
        unknown = sorted(name for name in self._pragmas if known and name.lower() not in known)
        if unknown:  # of which SQLite says nothing
            raise PoolConfigError(f"{self._subject}: this SQLite has no PRAGMA {', '.join(unknown)}")

    def locate(self, location: object) -> str:
        """Return the URI or path to open.

        Raises:
            PoolConfigError: If it cannot be shared by several connections, or is no path.
        """
        try:
            text = os.fspath(location)  # type: ignore[call-overload] # it says itself what it does not take
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
            PoolConfigError: If the file is none that can be opened.
            sqlite3.Error: As SQLite says, if waiting may help.
        """
        conn = Session.__new__(Session)
        try:
            self._connect(conn, location)
        except BaseException:
            with suppress(sqlite3.Error):
                conn.close()
            raise
        return conn

    def _connect(self, conn: Session, location: str) -> None:
        try:
            # The very same object may be connected more than once, which takes away its attributes.
            sqlite3.Connection.__init__(
                conn, location, uri=location.startswith("file:"), check_same_thread=False, **self._options
            )
            conn.location = location
            conn.changes = set()
            conn.path = conn.execute("PRAGMA database_list").fetchone()[2]
            self._set_pragmas(conn)
        except sqlite3.Error as error:
            advice = _advice(error, location)
            if advice is not None:
                raise self._mistake(advice) from None
            raise
        conn.file = _identify(conn.path)
        for name, value in self._autocommit.items():  # not earlier: within a transaction no PRAGMA has an effect
            setattr(conn, name, value)
        if self._init is not None:
            self._init(conn)
            conn.commit()
        conn.attributes = tuple((name, getattr(conn, name)) for name in ATTRIBUTES if hasattr(conn, name))
        changes: set[str] = set()
        conn.changes = changes
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
                    # Of those that switch a new file to WAL at the same time SQLite refuses all but one at once.
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= patience:
                        raise
                    time.sleep(RETRY_AFTER)

    def check(self, conn: Session) -> bool:
        """Say whether a connection works, and its file is still the one under that name."""
        conn.execute("SELECT 1")
        return conn.file == _identify(conn.path)

    def bring_back(self, conn: Session) -> None:
        """Undo all that a lease has left, at the worst by connecting anew."""
        if not conn.changes:
            self.roll_back(conn)
            if _is_quiet(conn):
                for name, value in conn.attributes:
                    setattr(conn, name, value)
                return
        conn.close()
        self._connect(conn, conn.location)

    @staticmethod
    def roll_back(conn: Any) -> None:
        """Undo a transaction."""
        if conn.in_transaction:
            conn.execute("ROLLBACK")  # not `rollback()`: it does nothing where `autocommit` is True
            if getattr(conn, "autocommit", None) is False:
                conn.autocommit = False  # begins the next one

    def close(self, conn: Session) -> None:
        """Close a connection, even if somebody still uses it."""
        with suppress(sqlite3.Error):  # it is closed already
            conn.interrupt()
            conn.execute("SELECT 1")  # or what was not there to be interrupted is what comes next: moving the log
        has_turn = _closing.acquire(timeout=CLOSE_WITHIN)
        try:
            conn.close()
        finally:
            if has_turn:
                _closing.release()

    def _mistake(self, text: str) -> PoolConfigError:
        return own(PoolConfigError(f"{self._subject}: {text}"))


def _watch(changes: set[str]) -> Callable[[int, str | None, str | None, str | None, str | None], int]:
    def note(action: int, first: str | None, second: str | None, _database: str | None, _by: str | None) -> int:
        # Called as a statement is compiled: once for those that sqlite3 keeps, which are most.
        if action in CHANGES and (action != sqlite3.SQLITE_PRAGMA or (second is not None and first not in HARMLESS)):
            changes.add(str(first))
        return sqlite3.SQLITE_OK

    return note


def _is_quiet(conn: Session) -> bool:
    # A SELECT that was not read to its end is no transaction to SQLite, and yet goes on showing
    # an old state. VACUUM looks for any statement under way before it looks at what it is given.
    try:
        conn.execute("VACUUM INTO 0")
    except sqlite3.OperationalError as error:
        return "filename" in str(error)
    return False


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
    """Say what to check if it is a mistake that waiting does not mend; the location is not repeated."""
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
