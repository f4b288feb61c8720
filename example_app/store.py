"""The stores: all that is asked of the database, each on a session of SQLAlchemy."""

import secrets
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, cast

from sqlalchemy import ColumnElement, CursorResult, delete, desc, func, or_, select, true, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from .models import Click, Clicks, Link, LinkPage, Report
from .tables import LinkRow, VisitRow, now

# No vowels, so no words, and nothing that is easily taken for something else.
ALPHABET = "23456789bcdfghjkmnpqrstvwxz"
CODE_LENGTH = 7

EXPORT_BATCH = 200
REPORT_DAYS = 14
REPORT_REFERRERS = 5


class CodeTakenError(Exception):
    """There is a link of this code already."""


class LinkStore:
    """Links and their clicks, for `async def` endpoints."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add_link(self, url: str, code: str | None) -> Link:
        """Add a link, under a code of its own or a random one.

        Raises:
            CodeTakenError: If the code is in use.
        """
        row = await self._insert(url, code or _random_code())
        while row is None:
            if code is not None:
                raise CodeTakenError
            row = await self._insert(url, _random_code())
        return _link(row)

    async def _insert(self, url: str, code: str) -> LinkRow | None:
        row = LinkRow(url=url, code=code)
        self._session.add(row)
        try:
            await self._session.flush()
        except IntegrityError:
            await self._session.rollback()
            return None
        return row

    async def every_link(self) -> AsyncIterator[list[Link]]:
        """Yield all links in batches, the oldest first.

        Each batch is a transaction of its own, so that none stays open while a client reads slowly.
        """
        last = 0
        batch = select(LinkRow).order_by(LinkRow.id).limit(EXPORT_BATCH)
        while rows := (await self._session.scalars(batch.where(LinkRow.id > last))).all():
            last = rows[-1].id
            links = [_link(row) for row in rows]
            self._session.expunge_all()
            await self._session.commit()
            yield links

    async def find_target(self, code: str) -> str | None:
        """Return where a link leads, or None if there is no such link."""
        return await self._session.scalar(select(LinkRow.url).where(LinkRow.code == _storable(code)))

    async def find_links(self, text: str, *, before: int | None, limit: int) -> LinkPage:
        """Return links whose code or target contains a text, the newest first; all for an empty one."""
        total = await self._session.scalar(select(func.count()).select_from(LinkRow).where(_contains(text)))
        page = select(LinkRow).where(_contains(text)).order_by(LinkRow.id.desc())
        if before is not None:
            page = page.where(LinkRow.id < before)
        # One more than asked for, to know whether there is another page.
        rows = (await self._session.scalars(page.limit(limit + 1))).all()
        return LinkPage(
            links=[_link(row) for row in rows[:limit]],
            total=total or 0,
            next=rows[limit - 1].id if len(rows) > limit else None,
        )

    async def remove_link(self, code: str) -> bool:
        """Remove a link and its visits, and commit, since the cache hears of it next; False if there is none."""
        removed = await self._session.execute(delete(LinkRow).where(LinkRow.code == _storable(code)))
        await self._session.commit()
        return cast("CursorResult[Any]", removed).rowcount == 1

    async def count_click(self, code: str, referrer: str) -> Click | None:
        """Count a click; None if the link was removed meanwhile."""
        # It writes first: SQLite then waits for its turn here, where waiting is safe.
        await self._session.execute(update(LinkRow).where(LinkRow.code == code).values(clicks=LinkRow.clicks + 1))
        row = (await self._session.execute(select(LinkRow.id, LinkRow.clicks).where(LinkRow.code == code))).first()
        if row is None:
            return None
        self._session.add(VisitRow(link=row.id, day=now().date(), referrer=referrer))
        return Click(code=code, clicks=row.clicks)


class ReportStore:
    """Sums of links and clicks, for `def` endpoints."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def make_report(self) -> Report:
        """Sum up links and clicks."""
        links, clicks = self._session.execute(select(func.count(), func.coalesce(func.sum(LinkRow.clicks), 0))).one()
        today = now().date()
        days = [today - timedelta(days=back) for back in reversed(range(REPORT_DAYS))]
        by_day = (
            select(VisitRow.day, func.count().label("clicks")).where(VisitRow.day >= days[0]).group_by(VisitRow.day)
        )
        counted = {row.day: row.clicks for row in self._session.execute(by_day)}
        by_referrer = select(VisitRow.referrer, func.count().label("clicks")).group_by(VisitRow.referrer)
        top = by_referrer.order_by(desc("clicks"), VisitRow.referrer).limit(REPORT_REFERRERS)
        return Report(
            links=links,
            clicks=clicks,
            days=[Clicks(label=day.isoformat(), clicks=counted.get(day, 0)) for day in days],
            referrers=[Clicks(label=referrer, clicks=count) for referrer, count in self._session.execute(top)],
        )


def _link(row: LinkRow) -> Link:
    return Link(code=row.code, url=row.url, created=f"{row.created:%Y-%m-%dT%H:%M:%SZ}", clicks=row.clicks)


def _contains(text: str) -> ColumnElement[bool]:
    """Match every character of a text literally, in any case."""
    if not text:
        return true()
    text = _storable(text)
    return or_(LinkRow.code.icontains(text, autoescape=True), LinkRow.url.icontains(text, autoescape=True))


def _storable(text: str) -> str:
    """Let nothing be found for a text with NUL, which not every database knows: no link has this character."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _random_code() -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(CODE_LENGTH))
