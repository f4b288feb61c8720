"""What a lease of an SQLite connection may leave behind, and how the next one would see it."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

# What is left open stays open as long as a variable refers to it.
kept: list[Any] = []


@dataclass(frozen=True)
class Leftover:
    """Left behind by `leave`; `see` tells whether it is there by what it returns or raises."""

    leave: Callable[[sqlite3.Connection], object]
    see: Callable[[sqlite3.Connection], object]
    is_undone_by_either: bool = False

    def seen(self, conn: sqlite3.Connection) -> object:
        try:
            return self.see(conn)
        except sqlite3.Error as error:
            return str(error)


def run(*statements: str) -> Callable[[sqlite3.Connection], None]:
    def leave(conn: sqlite3.Connection) -> None:
        for statement in statements:
            conn.execute(statement).fetchall()

    return leave


def rows(statement: str) -> Callable[[sqlite3.Connection], list[tuple[Any, ...]]]:
    def see(conn: sqlite3.Connection) -> list[tuple[Any, ...]]:
        cursor = conn.cursor()
        cursor.row_factory = None
        return [tuple(row) for row in cursor.execute(statement).fetchall()]

    return see


def pragma(name: str, value: object) -> Leftover:
    return Leftover(run(f"PRAGMA {name} = {value}"), rows(f"PRAGMA {name}"))


def attribute(name: str, value: object) -> Leftover:
    return Leftover(lambda conn: setattr(conn, name, value), lambda conn: getattr(conn, name))


def keep(thing: object) -> None:
    kept.append(thing)


def write_elsewhere(conn: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """Have another connection write, and see what this one knows of it."""
    path = rows("PRAGMA database_list")(conn)[0][2]
    with closing(sqlite3.connect(path, timeout=0)) as other, other:
        other.execute("DELETE FROM notes")
    return rows("SELECT count(*) FROM notes")(conn)


def forbid(action: int, *_: object) -> int:
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_INSERT else sqlite3.SQLITE_OK


class Twice:
    """An aggregate."""

    def __init__(self) -> None:
        self.sum = 0

    def step(self, value: int) -> None:
        self.sum += 2 * value

    def value(self) -> int:
        return self.sum

    finalize = value
    inverse = step


def replace(conn: sqlite3.Connection) -> None:
    with closing(sqlite3.connect(":memory:")) as other:
        other.execute("CREATE TABLE mine (secret)")
        conn.deserialize(other.serialize())


def take_authorizer_away(conn: Any) -> None:
    conn.set_authorizer(None)
    conn.execute("PRAGMA foreign_keys = off")


def begin_at_all_times(conn: Any) -> None:
    conn.autocommit = False
    conn.execute(WRITE)


def forbid_triggers(conn: Any) -> None:
    conn.setconfig(vars(sqlite3)["SQLITE_DBCONFIG_ENABLE_TRIGGER"], False)  # noqa: FBT003 - its only form


def traced(conn: sqlite3.Connection) -> int:
    before = len(kept)
    conn.execute("SELECT 1").fetchall()
    return len(kept) - before


WRITE = "INSERT INTO notes VALUES ('mine')"
WRITING = rows("INSERT INTO notes VALUES ('next') RETURNING 'written'")
COUNT = rows("SELECT count(*) FROM notes")

LEFTOVERS: dict[str, Leftover] = {
    "uncommitted rows": Leftover(run("BEGIN", WRITE), COUNT, is_undone_by_either=True),
    "a savepoint": Leftover(run("SAVEPOINT mine", WRITE), COUNT, is_undone_by_either=True),
    "a lock": Leftover(run("BEGIN EXCLUSIVE"), lambda conn: conn.in_transaction, is_undone_by_either=True),
    "a SELECT that was not read to its end": Leftover(
        lambda conn: keep((cursor := conn.execute("SELECT * FROM notes"), cursor.fetchone())),
        write_elsewhere,
        is_undone_by_either=True,
    ),
    "a write that was not read to its end": Leftover(
        lambda conn: keep((c := conn.execute("INSERT INTO notes VALUES (1), (2) RETURNING 1"), c.fetchone())),
        write_elsewhere,
        is_undone_by_either=True,
    ),
    "an open blob": Leftover(
        lambda conn: keep(conn.blobopen("notes", "text", 1, readonly=True)), write_elsewhere, is_undone_by_either=True
    ),
    "foreign_keys": pragma("foreign_keys", "off"),
    "query_only": pragma("query_only", "on"),
    "synchronous": pragma("synchronous", "off"),
    "journal_mode": pragma("journal_mode", "delete"),
    "locking_mode": pragma("locking_mode", "exclusive"),
    "busy_timeout": pragma("busy_timeout", 0),
    "cache_size": pragma("cache_size", 10),
    "temp_store": pragma("temp_store", 2),
    "max_page_count": pragma("max_page_count", 100),
    "recursive_triggers": pragma("recursive_triggers", "on"),
    "defer_foreign_keys": pragma("defer_foreign_keys", "on"),
    "ignore_check_constraints": pragma("ignore_check_constraints", "on"),
    "writable_schema": pragma("writable_schema", "on"),
    "case_sensitive_like": Leftover(run("PRAGMA case_sensitive_like = on"), rows("SELECT 'a' LIKE 'A'")),
    "a pragma in a script": Leftover(
        lambda conn: conn.executescript("pragma Main.Query_Only(1); SELECT 1;"), rows("PRAGMA query_only")
    ),
    "an attached database": Leftover(run("ATTACH ':memory:' AS mine"), rows("SELECT name FROM pragma_database_list")),
    "a detached database": Leftover(run("DETACH kept"), rows("SELECT name FROM pragma_database_list")),
    "a temporary table": Leftover(run("CREATE TEMP TABLE mine (secret)"), rows("SELECT * FROM temp.mine")),
    "a temporary table of another kind": Leftover(
        run("CREATE VIRTUAL TABLE temp.mine USING fts5(secret)"), rows("SELECT * FROM temp.mine")
    ),
    "a temporary view": Leftover(run("CREATE TEMP VIEW notes AS SELECT 1"), rows("SELECT * FROM notes")),
    "a temporary trigger": Leftover(
        run("CREATE TEMP TRIGGER mine BEFORE INSERT ON main.notes BEGIN SELECT raise(abort, 'mine'); END"), WRITING
    ),
    "row_factory": attribute("row_factory", dict),
    "text_factory": attribute("text_factory", bytes),
    "isolation_level": attribute("isolation_level", "EXCLUSIVE"),
    "a function": Leftover(lambda conn: conn.create_function("mine", 0, lambda: 1), rows("SELECT mine()")),
    "a function in place of another": Leftover(
        lambda conn: conn.create_function("lower", 1, lambda _: "mine"), rows("SELECT lower('A')")
    ),
    "an aggregate": Leftover(lambda conn: conn.create_aggregate("mine", 1, Twice), rows("SELECT mine(1)")),
    "a window function": Leftover(
        lambda conn: conn.create_window_function("mine", 1, Twice), rows("SELECT mine(1) OVER ()")
    ),
    "a collation": Leftover(
        lambda conn: conn.create_collation("mine", lambda _one, _other: 0), rows("SELECT 'a' = 'b' COLLATE mine")
    ),
    "an authorizer": Leftover(lambda conn: conn.set_authorizer(forbid), WRITING),
    "no authorizer": Leftover(take_authorizer_away, rows("PRAGMA foreign_keys")),
    "a progress handler": Leftover(lambda conn: conn.set_progress_handler(lambda: 1, 1), COUNT),
    "a trace callback": Leftover(lambda conn: conn.set_trace_callback(kept.append), traced),
    "a limit": Leftover(
        lambda conn: conn.setlimit(sqlite3.SQLITE_LIMIT_COLUMN, 1),
        lambda conn: conn.getlimit(sqlite3.SQLITE_LIMIT_COLUMN),
    ),
    "another database in its place": Leftover(replace, rows("SELECT name FROM main.sqlite_schema")),
}
if hasattr(sqlite3.Connection, "autocommit"):  # since Python 3.12
    LEFTOVERS["autocommit"] = attribute("autocommit", True)  # noqa: FBT003 - a value
    LEFTOVERS["a transaction at all times"] = Leftover(begin_at_all_times, COUNT, is_undone_by_either=True)
    LEFTOVERS["a setting"] = Leftover(forbid_triggers, rows("INSERT INTO guarded VALUES (1)"))


SCHEMA = """
CREATE TABLE IF NOT EXISTS notes (text);
CREATE TABLE IF NOT EXISTS guarded (text);
CREATE TRIGGER IF NOT EXISTS guard BEFORE INSERT ON guarded BEGIN SELECT raise(abort, 'guarded'); END;
INSERT OR REPLACE INTO notes (rowid, text) VALUES (1, 'one'), (2, 'two'), (3, 'three');
ATTACH ':memory:' AS kept;
"""


def prepare(conn: sqlite3.Connection) -> None:
    """Make a connection and its database what the leftovers count on: three notes."""
    conn.executescript(SCHEMA)
