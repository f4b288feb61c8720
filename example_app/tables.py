"""Tables: what the database keeps, the same on SQLite, PostgreSQL and MariaDB."""

from datetime import UTC, date, datetime

from sqlalchemy import BigInteger, Connection, Engine, ForeignKey, Integer, String, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from .models import LONGEST_URL

# SQLite numbers its rows only in a column of this very type.
Number = BigInteger().with_variant(Integer, "sqlite")
# MySQL and MariaDB take "Code" and "code" for the same, unless a column says otherwise.
Code = String(32).with_variant(String(32, collation="utf8mb4_bin"), "mysql", "mariadb")
# Several processes may start at once: then a table that was missing a moment ago is there.
TRIES = 3


def now() -> datetime:
    """Return the time in UTC, as the tables have it: without a time zone, to the second."""
    return datetime.now(UTC).replace(tzinfo=None, microsecond=0)


class Table(DeclarativeBase):
    """A table."""


class LinkRow(Table):
    """A link."""

    __tablename__ = "links"
    __table_args__ = {"sqlite_autoincrement": True, "mysql_charset": "utf8mb4", "mariadb_charset": "utf8mb4"}  # noqa: RUF012 - as SQLAlchemy wants it

    id: Mapped[int] = mapped_column(Number, primary_key=True)
    code: Mapped[str] = mapped_column(Code, unique=True)
    url: Mapped[str] = mapped_column(String(LONGEST_URL))
    created: Mapped[datetime] = mapped_column(default=now)
    clicks: Mapped[int] = mapped_column(BigInteger, default=0)


class VisitRow(Table):
    """A click on a link."""

    __tablename__ = "visits"
    __table_args__ = {"mysql_charset": "utf8mb4", "mariadb_charset": "utf8mb4"}  # noqa: RUF012 - as above

    id: Mapped[int] = mapped_column(Number, primary_key=True)
    link: Mapped[int] = mapped_column(ForeignKey(LinkRow.id, ondelete="CASCADE"), index=True)
    day: Mapped[date]
    referrer: Mapped[str] = mapped_column(String(253))


def make_tables_on(engine: Engine) -> None:
    """Let the first connection of an engine make the tables that are missing.

    Not at the start, since the application starts and waits if its database is away.
    """
    is_done = False

    @event.listens_for(engine, "engine_connect")
    def make_tables(connection: Connection) -> None:
        nonlocal is_done
        if not is_done:
            try:
                _make_tables(connection)
            except BaseException:
                connection.close()
                raise
            is_done = True


def _make_tables(connection: Connection) -> None:
    for tries_left in reversed(range(TRIES)):
        try:
            Table.metadata.create_all(connection)
            connection.commit()
        except DBAPIError:
            connection.rollback()
            if not tries_left:
                raise
        else:
            return
