"""The stores on SQLite, by aiosqlite and the standard library."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote

import aiosqlite

from connectionpools_fastapi.adapters.aiosqlite import AiosqliteManager
from connectionpools_fastapi.adapters.sqlite import SqliteManager
from example_app.models import Click, Clicks, Link, LinkPage

from .backend import Backend
from .questions import LinkStore, ReportStore

# What a file needs once. WAL lets readers go on while somebody writes, and the file remembers it.
SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS links (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    code TEXT NOT NULL UNIQUE,
    url TEXT NOT NULL,
    created TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now')),
    clicks INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS visits (
    link INTEGER NOT NULL REFERENCES links (id) ON DELETE CASCADE,
    day TEXT NOT NULL,
    referrer TEXT NOT NULL,
    clicks INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (link, day, referrer)
) WITHOUT ROWID;
"""


def backend(url: str) -> Backend:
    """Store links in the file of a URL such as `sqlite:///links.db`."""
    path = file_of(url)
    return Backend(
        # Without an isolation level nothing begins a transaction behind our back.
        connections=AiosqliteManager(path, init=_set_up, isolation_level=None),
        links=SqliteLinks,
        report_connections=SqliteManager(
            lambda: prepare(path), init=_read_rows, pragmas={"query_only": "on"}, isolation_level=None
        ),
        report=SqliteReport,
    )


def file_of(url: str) -> Path:
    """Return the file that a URL names."""
    return Path(unquote(url.removeprefix("sqlite:///")))


def prepare(path: Path) -> Path:
    """Make sure that the file has its schema; whoever connects first makes it."""
    manager = SqliteManager(path, init=_set_up)
    manager.clean(manager.create())
    return path


def _set_up(conn: sqlite3.Connection) -> None:
    conn.executescript(SCHEMA)
    conn.row_factory = sqlite3.Row


def _read_rows(conn: sqlite3.Connection) -> None:
    conn.row_factory = sqlite3.Row


class SqliteLinks(LinkStore):
    """Links in a file."""

    def __init__(self, conn: aiosqlite.Connection) -> None:
        self._conn = conn

    async def insert_link(self, url: str, code: str) -> Link | None:
        """Add a link; None if the code is in use."""
        insert = "INSERT INTO links (url, code) VALUES (?, ?) ON CONFLICT (code) DO NOTHING"
        async with transaction(self._conn):
            async with self._conn.execute(insert, [url, code]) as cursor:
                if cursor.rowcount == 0:
                    return None
            # RETURNING came with SQLite 3.35.
            row = await self._row("SELECT code, url, created, clicks FROM links WHERE code = ?", code)
        assert row is not None  # noqa: S101 - it was inserted a moment ago
        return Link(**dict(row))

    async def links_after(self, last: int, *, limit: int) -> dict[int, Link]:
        """Return the first links by their numbers, of those whose number is above `last`."""
        sql = "SELECT id, code, url, created, clicks FROM links WHERE id > ? ORDER BY id LIMIT ?"
        return {row["id"]: Link(**dict(row)) for row in await self._conn.execute_fetchall(sql, [last, limit])}

    async def find_target(self, code: str) -> str | None:
        """Return where a link leads, or None if there is no such link."""
        row = await self._row("SELECT url FROM links WHERE code = ?", code)
        return None if row is None else str(row["url"])

    async def find_links(self, text: str, *, before: int | None, limit: int) -> LinkPage:
        """Return links whose code or target contains a text, the newest first; all for an empty one."""
        matches = "(instr(lower(code), lower(:text)) OR instr(lower(url), lower(:text)))"
        count = f"SELECT count(*) FROM links WHERE {matches}"  # noqa: S608 - a constant
        page = f"""
            SELECT id, code, url, created, clicks FROM links
            WHERE {matches} AND (:before IS NULL OR id < :before) ORDER BY id DESC LIMIT :limit
        """  # noqa: S608 - as above
        # One more than asked for, to know whether there is another page.
        values = {"text": text, "before": before, "limit": limit + 1}
        ((total,),) = await self._conn.execute_fetchall(count, values)
        rows = list(await self._conn.execute_fetchall(page, values))
        return LinkPage(
            links=[Link(**dict(row)) for row in rows[:limit]],
            total=total,
            next=rows[limit - 1]["id"] if len(rows) > limit else None,
        )

    async def remove_link(self, code: str) -> bool:
        """Remove a link and what is known of its visits; False if there is no such link."""
        delete = "DELETE FROM links WHERE code = ?"
        async with transaction(self._conn), self._conn.execute(delete, [code]) as cursor:
            return cursor.rowcount == 1

    async def count_click(self, code: str, referrer: str) -> Click | None:
        """Count a click; None if the link was removed meanwhile."""
        async with transaction(self._conn):
            await self._conn.execute("UPDATE links SET clicks = clicks + 1 WHERE code = ?", [code])
            await self._conn.execute(
                "INSERT INTO visits (link, day, referrer, clicks)"
                " SELECT id, date('now'), ?, 1 FROM links WHERE code = ?"
                " ON CONFLICT (link, day, referrer) DO UPDATE SET clicks = clicks + 1",
                [referrer, code],
            )
            row = await self._row("SELECT code, clicks FROM links WHERE code = ?", code)
        return None if row is None else Click(**dict(row))

    async def _row(self, sql: str, code: str) -> sqlite3.Row | None:
        async with self._conn.execute(sql, [code]) as cursor:
            return await cursor.fetchone()


@asynccontextmanager
async def transaction(conn: aiosqlite.Connection) -> AsyncIterator[None]:
    """Commit what the block writes, all of it or nothing.

    IMMEDIATE waits for its turn to write here, where waiting is safe: a transaction that
    only begins to write halfway fails at once if somebody else has written meanwhile.

    Yields:
        Nothing.
    """
    await conn.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        await conn.rollback()
        raise
    await conn.commit()


class SqliteReport(ReportStore):
    """Sums over a file."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn

    def totals(self) -> tuple[int, int]:
        """Return how many links there are, and how many clicks."""
        links, clicks = self._conn.execute("SELECT count(*), coalesce(sum(clicks), 0) FROM links").fetchone()
        return links, clicks

    def clicks_by_day(self, *, since: str) -> dict[str, int]:
        """Return the clicks of each day (UTC, as in ISO 8601) that had any."""
        sql = "SELECT day, sum(clicks) FROM visits WHERE day >= ? GROUP BY day"
        return dict(self._conn.execute(sql, [since]).fetchall())

    def top_referrers(self, limit: int) -> list[Clicks]:
        """Return where most of the clicks came from."""
        rows = self._conn.execute(
            "SELECT referrer AS label, sum(clicks) AS clicks FROM visits GROUP BY referrer"
            " ORDER BY sum(clicks) DESC, referrer LIMIT ?",
            [limit],
        )
        return [Clicks(**dict(row)) for row in rows.fetchall()]
