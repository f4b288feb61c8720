"""Store: all the SQL. Whoever calls brings the connection."""

import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import aiosqlite

from .models import Click, Clicks, Link, LinkPage, Report

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

# No vowels, so no words, and nothing that is easily taken for something else.
ALPHABET = "23456789bcdfghjkmnpqrstvwxz"
CODE_LENGTH = 7

EXPORT_BATCH = 200
REPORT_DAYS = 14
REPORT_REFERRERS = 5


class CodeTakenError(Exception):
    """There is a link of this code already."""


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


async def add_link(conn: aiosqlite.Connection, url: str, code: str | None) -> Link:
    """Add a link, under a code of its own or a random one.

    Raises:
        CodeTakenError: If the code is in use.
    """
    async with transaction(conn):
        wanted = code or _random_code()
        while not await _insert(conn, url, wanted):
            if code is not None:
                raise CodeTakenError
            wanted = _random_code()
        async with conn.execute("SELECT code, url, created, clicks FROM links WHERE code = ?", [wanted]) as cursor:
            row = await cursor.fetchone()
    assert row is not None  # noqa: S101 - it was inserted a moment ago
    return Link(**dict(row))


async def _insert(conn: aiosqlite.Connection, url: str, code: str) -> bool:
    sql = "INSERT INTO links (url, code) VALUES (?, ?) ON CONFLICT (code) DO NOTHING"
    async with conn.execute(sql, [url, code]) as cursor:
        return cursor.rowcount == 1


def _random_code() -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(CODE_LENGTH))


async def find_target(conn: aiosqlite.Connection, code: str) -> str | None:
    """Return where a link leads, or None if there is no such link."""
    async with conn.execute("SELECT url FROM links WHERE code = ?", [code]) as cursor:
        row = await cursor.fetchone()
    return None if row is None else str(row["url"])


async def find_links(conn: aiosqlite.Connection, text: str, *, before: int | None, limit: int) -> LinkPage:
    """Return links whose code or target contains a text, the newest first; all for an empty one."""
    matches = "(instr(lower(code), lower(:text)) OR instr(lower(url), lower(:text)))"
    count = f"SELECT count(*) FROM links WHERE {matches}"  # noqa: S608 - a constant
    page = f"""
        SELECT id, code, url, created, clicks FROM links
        WHERE {matches} AND (:before IS NULL OR id < :before) ORDER BY id DESC LIMIT :limit
    """  # noqa: S608 - as above
    # One more than asked for, to know whether there is another page.
    values = {"text": text, "before": before, "limit": limit + 1}
    async with conn.execute(count, values) as cursor:
        total = await cursor.fetchone()
    async with conn.execute(page, values) as cursor:
        rows = list(await cursor.fetchall())
    assert total is not None  # noqa: S101 - count always has one row
    return LinkPage(
        links=[Link(**dict(row)) for row in rows[:limit]],
        total=total[0],
        next=rows[limit - 1]["id"] if len(rows) > limit else None,
    )


async def every_link(conn: aiosqlite.Connection) -> AsyncIterator[list[Link]]:
    """Yield all links in batches, the oldest first.

    Each batch is a query of its own, so that nothing stays open between two of them: a
    generator that nobody reads to its end is closed whenever the garbage collector comes
    by, and a cursor in it would show the connection's next user what was there before.
    """
    sql = "SELECT id, code, url, created, clicks FROM links WHERE id > ? ORDER BY id LIMIT ?"
    last = 0
    while rows := list(await conn.execute_fetchall(sql, [last, EXPORT_BATCH])):
        yield [Link(**dict(row)) for row in rows]
        last = rows[-1]["id"]


async def remove_link(conn: aiosqlite.Connection, code: str) -> bool:
    """Remove a link and what is known of its visits; False if there is no such link."""
    async with transaction(conn), conn.execute("DELETE FROM links WHERE code = ?", [code]) as cursor:
        return cursor.rowcount == 1


async def count_click(conn: aiosqlite.Connection, code: str, referrer: str) -> Click | None:
    """Count a click; None if the link was removed meanwhile."""
    async with transaction(conn):
        await conn.execute("UPDATE links SET clicks = clicks + 1 WHERE code = ?", [code])
        await conn.execute(
            "INSERT INTO visits (link, day, referrer, clicks)"
            " SELECT id, date('now'), ?, 1 FROM links WHERE code = ?"
            " ON CONFLICT (link, day, referrer) DO UPDATE SET clicks = clicks + 1",
            [referrer, code],
        )
        async with conn.execute("SELECT code, clicks FROM links WHERE code = ?", [code]) as cursor:
            row = await cursor.fetchone()
    return None if row is None else Click(**dict(row))


def make_report(conn: sqlite3.Connection) -> Report:
    """Sum up links and clicks. Blocks, so it is for worker threads."""
    links, clicks = conn.execute("SELECT count(*), coalesce(sum(clicks), 0) FROM links").fetchone()
    today = datetime.now(UTC).date()
    days = [(today - timedelta(days=back)).isoformat() for back in reversed(range(REPORT_DAYS))]
    by_day = dict(conn.execute("SELECT day, sum(clicks) FROM visits WHERE day >= ? GROUP BY day", [days[0]]).fetchall())
    referrers = conn.execute(
        "SELECT referrer AS label, sum(clicks) AS clicks FROM visits GROUP BY referrer"
        " ORDER BY sum(clicks) DESC, referrer LIMIT ?",
        [REPORT_REFERRERS],
    ).fetchall()
    return Report(
        links=links,
        clicks=clicks,
        days=[Clicks(label=day, clicks=by_day.get(day, 0)) for day in days],
        referrers=[Clicks(**dict(row)) for row in referrers],
    )
