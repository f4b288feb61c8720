"""The sqlite3 connection that a lease gets, and the lasting one below it."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import repeat
from sqlite3.dump import _iterdump  # type: ignore[attr-defined,import-not-found,unused-ignore] # no stub has it
from types import GeneratorType
from typing import Any
from weakref import ref

from connectionpools_fastapi import Loan

# Methods that change a session without SQL; their settings cannot be read back.
REGISTERING = """create_aggregate create_collation create_function create_window_function deserialize
    enable_load_extension set_authorizer set_progress_handler set_trace_callback setconfig setlimit""".split()  # noqa: SIM905 - so many strings is no easier to read
# After these nothing is uncommitted, even if the next transaction begins at once (`autocommit=False`).
ENDING = ("__exit__", "commit", "rollback")
# Reading these calls SQLite, and so does setting those; all other attributes are stored in sqlite3's own object.
ASKED = frozenset({"in_transaction", "total_changes"})
TOLD = frozenset({"autocommit", "isolation_level"})

INTERRUPT_EVERY = 0.05


class Session(sqlite3.Connection):
    """A connection that tracks what its reset has to know."""

    location: str
    path: str  # absolute, as SQLite reports it; empty for a database in memory
    file: tuple[int, int] | None
    attributes: tuple[tuple[str, Any], ...]
    # Changes of a lease that only a new connection undoes; read only by a "session" reset.
    changes: set[str]
    # Held by the thread that is within SQLite. Another thread must not even ask whether a transaction is
    # open: sqlite3 may then wait for SQLite's own lock while it holds the GIL.
    lock: threading.RLock  # type: ignore[valid-type,unused-ignore] # a function before Python 3.13
    # Cursors that may have unread rows, loops over them, and blobs, while they live.
    unread: set["ref[Any]"]
    loan: Loan | None = None
    # As of the last call; other threads may read these.
    has_transaction = False
    changed_rows = 0
    committed_rows = 0  # how many of these no rollback undoes

    @property
    def has_uncommitted_rows(self) -> bool:
        """Whether an open transaction has written something."""
        return self.in_transaction and self.total_changes != self.committed_rows

    def note_state(self) -> None:
        """Store the values that other threads may read; only under the lock."""
        self.changed_rows = self.total_changes
        self.has_transaction = self.in_transaction
        if not self.has_transaction:
            self.committed_rows = self.changed_rows

    def take(self, within: float) -> bool:
        """Take the lock: interrupt the thread that is still within SQLite, and wait until it has left.

        Args:
            within: How long to wait, in seconds.

        Returns:
            Whether this thread has the lock now.
        """
        if self._try_to_take(0):
            return True
        for _ in range(max(1, round(within / INTERRUPT_EVERY))):
            # Repeatedly: an interruption does not affect a statement that has not begun.
            with suppress(sqlite3.Error):  # it is closed already
                self.interrupt()
            if self._try_to_take(INTERRUPT_EVERY):
                return True
        return False

    def _try_to_take(self, within: float) -> bool:
        lock: Any = self.lock
        if not lock.acquire(timeout=within):
            return False
        if not any(isinstance(loop := unread(), GeneratorType) and loop.gi_running for unread in self.unread.copy()):
            return True
        lock.release()
        time.sleep(within)
        return False

    def close_unread(self) -> None:
        """Close what a lease has not read to its end: it would keep showing an old state."""
        for unread in self.unread.copy():
            thing = unread()
            if isinstance(thing, sqlite3.Cursor):
                sqlite3.Cursor.close(thing)
            elif isinstance(thing, sqlite3.Blob):
                thing.close()
        self.unread.clear()

    def keep_track(self, thing: Any) -> None:
        """Track a cursor, a loop over one, or a blob, to close it when its lease ends."""
        self.unread.add(ref(thing, self.unread.discard))


class Lent(sqlite3.Connection):
    """What a lease gets: it passes calls on to the session, while the lease goes on.

    It is not initialised as a connection, so that sqlite3 itself refuses calls that are not passed on.
    """

    def __init__(self, session: Session, loan: Loan) -> None:
        self.session = session
        self.lock: Any = session.lock
        self.loan = loan

    def run(self, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a method within SQLite; all uses of the connection come through here."""
        lock = self.lock
        lock.acquire()
        try:
            if self.loan.is_over:
                self.loan.check()
            session = self.session
            try:
                return method(*args, **kwargs)
            except sqlite3.Error as error:
                self.loan.note(error)
                raise
            finally:
                session.note_state()
        finally:
            lock.release()

    def cursor(self, factory: Any = None) -> Any:
        """Make a cursor that is closed as the lease ends."""
        if self.loan.is_over:
            self.loan.check()
        session = self.session
        if factory is None:
            cursor: Any = session.cursor(Cursor)
            cursor.lent = self
        elif isinstance(factory, type):
            cursor = _lent_kind(factory)(self)
            if session.row_factory is not None:
                cursor.row_factory = session.row_factory
        else:  # a function: only the session can make its cursors; they are closed with the lease
            cursor = session.cursor(factory)
            session.keep_track(cursor)
        return cursor

    def execute(self, *args: Any) -> Any:
        """Make a cursor, and execute a statement with it."""
        if self.loan.is_over:
            self.loan.check()
        cursor: Any = self.session.cursor(Cursor)
        cursor.lent = self
        return cursor.execute(*args)

    def executemany(self, *args: Any) -> Any:
        """Make a cursor, and execute a statement with it many times."""
        return self.cursor().executemany(*args)

    def executescript(self, *args: Any) -> Any:
        """Make a cursor, and execute a script with it."""
        return self.cursor().executescript(*args)

    def blobopen(self, *args: Any, **kwargs: Any) -> Any:
        """Open a blob that is closed as the lease ends."""
        return self.run(_open_blob, self.session, *args, **kwargs)

    def iterdump(self, **kwargs: Any) -> Any:
        """Return a generator of the statements that rebuild the database."""
        self.loan.check()
        return _iterdump(self, **kwargs)

    def backup(self, target: sqlite3.Connection, *, progress: Any = None, **options: Any) -> None:
        """Copy the database into another one."""

        def go_on(*args: int) -> None:
            self.loan.check()
            if progress is not None:
                progress(*args)

        backup = self.session.backup
        if isinstance(target, Lent):
            self.run(target.run, backup, target.session, progress=go_on, **options)
        else:
            self.run(backup, target, progress=go_on, **options)

    def interrupt(self) -> None:
        """Interrupt the running statement, most likely of another thread; takes no lock, here or in SQLite."""
        self.loan.check()
        self.session.interrupt()

    def close(self) -> None:
        """Close the connection itself, which the pool replaces."""
        with self.lock:
            self.loan.check()
            self.session.close()

    def __enter__(self) -> Any:
        self.loan.check()
        return self


class Cursor(sqlite3.Cursor):
    """A cursor of a leased connection."""

    lent: Lent

    @property
    def connection(self) -> Lent:
        """The leased connection, which made this cursor."""
        return self.lent

    def __iter__(self) -> Any:
        """Return a loop over the rows: a generator, which costs less than a lock for each of them."""
        rows = _loop(self)
        self.lent.session.keep_track(rows)
        return rows


def _loop(cursor: Cursor) -> Iterator[Any]:
    # While this runs, `Session.take` fails, so that the cursor is not closed in the middle of a row.
    loan = cursor.lent.loan
    loan.check()
    try:
        for row in map(_next, repeat(cursor)):
            yield row
            if loan.is_over:
                loan.check()
    except sqlite3.Error as error:
        loan.note(error)
        raise


_next = sqlite3.Cursor.__next__


class _OwnCursor(Cursor):
    """A cursor of a class of the application."""

    def __init__(self, connection: Lent, /) -> None:
        self.lent = connection
        super().__init__(connection.session)


@lru_cache
def _lent_kind(kind: type) -> Any:
    if issubclass(_OwnCursor, kind):
        return _OwnCursor
    return type(kind.__name__, (kind, _OwnCursor), {})


def _open_blob(session: Session, *args: Any, **kwargs: Any) -> Any:
    blob = session.blobopen(*args, **kwargs)
    session.keep_track(blob)
    return blob


def _noting(name: str) -> Callable[..., Any]:
    method = getattr(sqlite3.Connection, name)

    def note(self: Session, /, *args: Any, **kwargs: Any) -> Any:
        self.changes.add(name)
        return method(self, *args, **kwargs)

    return note


def _ending(name: str) -> Callable[..., Any]:
    method = getattr(sqlite3.Connection, name)

    def end(self: Session, /, *args: Any) -> Any:
        result = method(self, *args)
        self.committed_rows = self.total_changes
        return result

    return end


def _pass_on(name: str) -> Callable[..., Any]:
    method = getattr(Session, name)

    def call(self: Lent, /, *args: Any, **kwargs: Any) -> Any:
        return self.run(method, self.session, *args, **kwargs)

    return call


def _pass_on_attribute(name: str) -> property:
    def get(self: Lent) -> Any:
        if name in ASKED:
            return self.run(getattr, self.session, name)
        self.loan.check()
        return getattr(self.session, name)

    def put(self: Lent, value: Any) -> None:
        if name in TOLD:
            self.run(setattr, self.session, name, value)
            return
        self.loan.check()
        setattr(self.session, name, value)

    return property(get, put)


# Most calls of a lease come through the next two: they are `Lent.run`, inlined into one function each.


def _opening(name: str) -> Callable[..., Any]:
    method = getattr(sqlite3.Cursor, name)

    def call(self: Cursor, /, *args: Any) -> Any:
        lent = self.lent
        lock = lent.lock
        lock.acquire()
        try:
            if lent.loan.is_over:
                lent.loan.check()
            session = lent.session
            try:
                method(self, *args)
            except BaseException as error:
                lent.loan.note(error)
                session.keep_track(self)  # it may still have its statement
                raise
            finally:
                session.note_state()
            if self.description is not None:
                session.keep_track(self)
            return self
        finally:
            lock.release()

    return call


def _reading(name: str) -> Callable[..., Any]:
    method = getattr(sqlite3.Cursor, name)

    def call(self: Cursor, /, *args: Any, **kwargs: Any) -> Any:
        lent = self.lent
        lock = lent.lock
        lock.acquire()
        try:
            if lent.loan.is_over:
                lent.loan.check()
            return method(self, *args, **kwargs)
        except sqlite3.Error as error:
            lent.loan.note(error)
            raise
        finally:
            lock.release()

    return call


def _finishing(name: str) -> Callable[..., Any]:
    read = _reading(name)

    def call(self: Cursor, /) -> Any:
        result = read(self)
        self.lent.session.unread.discard(ref(self))
        return result

    return call


for _name in REGISTERING:
    if hasattr(sqlite3.Connection, _name):  # some are newer than others, or not part of this build of Python
        setattr(Session, _name, _noting(_name))
for _name in ENDING:
    setattr(Session, _name, _ending(_name))
for _name, _what in vars(sqlite3.Connection).items():
    if _name not in vars(Lent) and (not _name.startswith("__") or _name in {"__call__", "__exit__"}):
        setattr(Lent, _name, _pass_on(_name) if callable(_what) else _pass_on_attribute(_name))
for _how, _names in {
    _opening: ("execute", "executemany", "executescript"),
    _reading: ("__next__", "fetchmany", "fetchone"),
    _finishing: ("close", "fetchall"),
}.items():
    for _name in _names:
        setattr(Cursor, _name, _how(_name))
