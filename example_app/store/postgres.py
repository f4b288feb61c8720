"""The stores on PostgreSQL, by psycopg: each question is one statement, and so all or nothing."""

from typing import Any, LiteralString, NoReturn

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row

from connectionpools_fastapi import ResourceManager
from connectionpools_fastapi.adapters.psycopg import PsycopgManager
from example_app.models import Click, Clicks, Link, LinkPage
from example_app.settings import SettingsError, bad_value

from .backend import Backend
from .questions import LinkStore, ReportStore, StoreAwayError

Row = dict[str, Any]

IS_PREPARED = "SELECT to_regclass('visits') IS NOT NULL AS prepared"
# What a database needs once. Statements that are sent together are one transaction, and the lock, whose number is ours
# alone, lasts as long: of several that start at once one makes the tables, and the others find them.
SCHEMA = """
SELECT pg_advisory_xact_lock(7142603541904);
CREATE TABLE IF NOT EXISTS links (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    code text NOT NULL UNIQUE,
    url text NOT NULL,
    created timestamptz NOT NULL DEFAULT now(),
    clicks bigint NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS visits (
    link bigint NOT NULL REFERENCES links (id) ON DELETE CASCADE,
    day date NOT NULL,
    referrer text NOT NULL,
    clicks bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (link, day, referrer)
);
"""
LINK = """id, code, url, to_char(created AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS created, clicks"""
MATCHES = "(strpos(lower(code), lower(%(text)s)) > 0 OR strpos(lower(url), lower(%(text)s)) > 0)"


def backend(url: str) -> Backend:
    """Store links in the database of a URL such as `postgresql://user:password@host/links`.

    Raises:
        SettingsError: If libpq cannot read the URL.
    """
    try:
        conninfo_to_dict(url)
    except psycopg.ProgrammingError:  # whose text repeats it
        raise SettingsError(bad_value("database_url")) from None
    return Backend(
        # No question changes its session, so only a transaction could be left behind.
        connections=PsycopgManager(url, reset="transaction", init=_prepare, autocommit=True, row_factory=dict_row),
        links=PostgresLinks,
        report_connections=ReportConnections(url),
        report=PostgresReport,
    )


async def _prepare(conn: psycopg.AsyncConnection[Any]) -> None:
    cursor = await conn.execute(IS_PREPARED)
    (row,) = await cursor.fetchall()
    if not row["prepared"]:  # asked first, since whoever may not make tables may still use them
        await conn.execute(SCHEMA)


class ReportConnections(ResourceManager[psycopg.Connection[Row]]):
    """Connections that block and only read: a manager written by hand, with `def` hooks on threads of the pool."""

    def __init__(self, url: str) -> None:
        # A thread cannot be cut off, so the driver needs a time limit of its own.
        options: dict[str, Any] = {"connect_timeout": 5, **conninfo_to_dict(url)}
        self._conninfo = make_conninfo(**options)

    def create(self) -> psycopg.Connection[Row]:
        """Connect, and let each transaction see one state of the database."""
        conn = psycopg.Connection[Row].connect(self._conninfo, row_factory=dict_row)
        try:
            conn.autocommit = True
            (row,) = conn.execute(IS_PREPARED)
            if not row["prepared"]:
                conn.execute(SCHEMA)
            conn.autocommit = False
            conn.read_only = True
            conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        except BaseException:
            conn.close()
            raise
        return conn

    def check(self, resource: psycopg.Connection[Row]) -> None:
        """Ask the server; to raise says that the connection is of no use."""
        resource.execute("SELECT 1")
        resource.rollback()

    def change(self, resource: psycopg.Connection[Row]) -> None:
        """End the transaction of whoever had it."""
        resource.rollback()

    def clean(self, resource: psycopg.Connection[Row]) -> None:
        """Close it."""
        resource.close()


class PostgresLinks(LinkStore):
    """Links in a database."""

    def __init__(self, conn: psycopg.AsyncConnection[Row]) -> None:
        self._conn = conn

    async def insert_link(self, url: str, code: str) -> Link | None:
        """Add a link; None if the code is in use."""
        rows = await self._ask(
            f"INSERT INTO links (url, code) VALUES (%(url)s, %(code)s)"  # noqa: S608 - a constant
            f" ON CONFLICT (code) DO NOTHING RETURNING {LINK}",
            url=url,
            code=code,
        )
        return Link(**rows[0]) if rows else None

    async def links_after(self, last: int, *, limit: int) -> dict[int, Link]:
        """Return the first links by their numbers, of those whose number is above `last`."""
        rows = await self._ask(
            f"SELECT {LINK} FROM links WHERE id > %(last)s ORDER BY id LIMIT %(limit)s",  # noqa: S608 - as above
            last=last,
            limit=limit,
        )
        return {row["id"]: Link(**row) for row in rows}

    async def find_target(self, code: str) -> str | None:
        """Return where a link leads, or None if there is no such link."""
        rows = await self._ask("SELECT url FROM links WHERE code = %(code)s", code=code)
        return rows[0]["url"] if rows else None

    async def find_links(self, text: str, *, before: int | None, limit: int) -> LinkPage:
        """Return links whose code or target contains a text, the newest first; all for an empty one."""
        counted = await self._ask(f"SELECT count(*) AS total FROM links WHERE {MATCHES}", text=text)  # noqa: S608 - as above
        rows = await self._ask(
            f"""
            SELECT {LINK} FROM links
            WHERE {MATCHES} AND (%(before)s::bigint IS NULL OR id < %(before)s) ORDER BY id DESC LIMIT %(limit)s
            """,  # noqa: S608 - as above
            text=text,
            before=before,
            limit=limit + 1,  # one more than asked for, to know whether there is another page
        )
        return LinkPage(
            links=[Link(**row) for row in rows[:limit]],
            total=counted[0]["total"],
            next=rows[limit - 1]["id"] if len(rows) > limit else None,
        )

    async def remove_link(self, code: str) -> bool:
        """Remove a link and what is known of its visits; False if there is no such link."""
        return bool(await self._ask("DELETE FROM links WHERE code = %(code)s RETURNING id", code=code))

    async def count_click(self, code: str, referrer: str) -> Click | None:
        """Count a click; None if the link was removed meanwhile."""
        rows = await self._ask(
            """
            WITH link AS (
                UPDATE links SET clicks = clicks + 1 WHERE code = %(code)s RETURNING id, code, clicks
            ), visit AS (
                INSERT INTO visits (link, day, referrer, clicks)
                SELECT id, (now() AT TIME ZONE 'UTC')::date, %(referrer)s, 1 FROM link
                ON CONFLICT (link, day, referrer) DO UPDATE SET clicks = visits.clicks + 1
            )
            SELECT code, clicks FROM link
            """,
            code=code,
            referrer=referrer,
        )
        return Click(**rows[0]) if rows else None

    async def _ask(self, sql: LiteralString, **values: str | int | None) -> list[Row]:
        try:
            cursor = await self._conn.execute(sql, {name: _storable(value) for name, value in values.items()})
            return await cursor.fetchall()
        except psycopg.OperationalError as error:
            _away(error)


class PostgresReport(ReportStore):
    """Sums over a database."""

    def __init__(self, conn: psycopg.Connection[Row]) -> None:
        self._conn = conn

    def totals(self) -> tuple[int, int]:
        """Return how many links there are, and how many clicks."""
        (row,) = self._ask("SELECT count(*) AS links, coalesce(sum(clicks), 0)::bigint AS clicks FROM links")
        return row["links"], row["clicks"]

    def clicks_by_day(self, *, since: str) -> dict[str, int]:
        """Return the clicks of each day (UTC, as in ISO 8601) that had any."""
        rows = self._ask(
            "SELECT day::text, sum(clicks)::bigint AS clicks FROM visits WHERE day >= %(since)s::date GROUP BY day",
            since=since,
        )
        return {row["day"]: row["clicks"] for row in rows}

    def top_referrers(self, limit: int) -> list[Clicks]:
        """Return where most of the clicks came from."""
        rows = self._ask(
            """
            SELECT referrer AS label, sum(clicks)::bigint AS clicks FROM visits GROUP BY referrer
            ORDER BY sum(clicks) DESC, referrer COLLATE "C" LIMIT %(limit)s
            """,
            limit=limit,
        )
        return [Clicks(**row) for row in rows]

    def _ask(self, sql: LiteralString, **values: str | int) -> list[Row]:
        try:
            return self._conn.execute(sql, values).fetchall()
        except psycopg.OperationalError as error:
            _away(error)


def _storable(value: str | int | None) -> str | int | None:
    """Let nothing be found for a text with NUL, which PostgreSQL does not know: no link has this character."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}") if isinstance(value, str) else value


def _away(error: psycopg.OperationalError) -> NoReturn:
    """Keep to ourselves what the driver says, since it may name the server."""
    msg = f"the database went away ({type(error).__name__})"
    raise StoreAwayError(msg) from None
