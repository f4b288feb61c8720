"""The questions that endpoints ask, whatever database answers them."""

import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from example_app.models import Click, Clicks, Link, LinkPage, Report

# No vowels, so no words, and nothing that is easily taken for something else.
ALPHABET = "23456789bcdfghjkmnpqrstvwxz"
CODE_LENGTH = 7

EXPORT_BATCH = 200
REPORT_DAYS = 14
REPORT_REFERRERS = 5


class CodeTakenError(Exception):
    """There is a link of this code already."""


class StoreAwayError(Exception):
    """The database went away in the midst of a question; ask again in a moment."""


class LinkStore(ABC):
    """Links and their clicks, on one connection, for `async def` endpoints."""

    async def add_link(self, url: str, code: str | None) -> Link:
        """Add a link, under a code of its own or a random one.

        Raises:
            CodeTakenError: If the code is in use.
        """
        link = await self.insert_link(url, code or _random_code())
        while link is None:
            if code is not None:
                raise CodeTakenError
            link = await self.insert_link(url, _random_code())
        return link

    async def every_link(self) -> AsyncIterator[list[Link]]:
        """Yield all links in batches, the oldest first.

        Each batch is a query of its own, so that nothing stays open between two of them: a
        generator that nobody reads to its end is closed whenever the garbage collector comes
        by, and a cursor in it would show the connection's next user what was there before.
        """
        last = 0
        while batch := await self.links_after(last, limit=EXPORT_BATCH):
            yield list(batch.values())
            last = max(batch)

    @abstractmethod
    async def insert_link(self, url: str, code: str) -> Link | None:
        """Add a link; None if the code is in use."""

    @abstractmethod
    async def links_after(self, last: int, *, limit: int) -> dict[int, Link]:
        """Return the first links by their numbers, of those whose number is above `last`."""

    @abstractmethod
    async def find_target(self, code: str) -> str | None:
        """Return where a link leads, or None if there is no such link."""

    @abstractmethod
    async def find_links(self, text: str, *, before: int | None, limit: int) -> LinkPage:
        """Return links whose code or target contains a text, the newest first; all for an empty one."""

    @abstractmethod
    async def remove_link(self, code: str) -> bool:
        """Remove a link and what is known of its visits; False if there is no such link."""

    @abstractmethod
    async def count_click(self, code: str, referrer: str) -> Click | None:
        """Count a click; None if the link was removed meanwhile."""


class ReportStore(ABC):
    """Sums of links and clicks, on one connection that blocks, for `def` endpoints."""

    def make_report(self) -> Report:
        """Sum up links and clicks."""
        links, clicks = self.totals()
        today = datetime.now(UTC).date()
        days = [(today - timedelta(days=back)).isoformat() for back in reversed(range(REPORT_DAYS))]
        by_day = self.clicks_by_day(since=days[0])
        return Report(
            links=links,
            clicks=clicks,
            days=[Clicks(label=day, clicks=by_day.get(day, 0)) for day in days],
            referrers=self.top_referrers(REPORT_REFERRERS),
        )

    @abstractmethod
    def totals(self) -> tuple[int, int]:
        """Return how many links there are, and how many clicks."""

    @abstractmethod
    def clicks_by_day(self, *, since: str) -> dict[str, int]:
        """Return the clicks of each day (UTC, as in ISO 8601) that had any."""

    @abstractmethod
    def top_referrers(self, limit: int) -> list[Clicks]:
        """Return where most of the clicks came from."""


def _random_code() -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(CODE_LENGTH))
