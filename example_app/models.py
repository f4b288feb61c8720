"""Models: what goes in and out, validated."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, HttpUrl, StringConstraints

LONGEST_URL = 2000

# Paths that mean something else, now or before long.
RESERVED_CODES = frozenset({"api", "docs", "live", "openapi", "pool", "redoc", "static"})


def _refuse_reserved(code: str) -> str:
    if code.lower() in RESERVED_CODES:
        msg = f"the code {code!r} is reserved, choose another one"
        raise ValueError(msg)
    return code


def _refuse_credentials(url: HttpUrl) -> HttpUrl:
    if url.username is not None or url.password is not None:
        msg = "a link must not contain a user name or a password"
        raise ValueError(msg)
    if len(str(url)) > LONGEST_URL:
        msg = f"a link may have at most {LONGEST_URL} characters"
        raise ValueError(msg)
    return url


Target = Annotated[HttpUrl, AfterValidator(_refuse_credentials)]
Code = Annotated[
    str,
    StringConstraints(min_length=3, max_length=32, pattern=r"^[A-Za-z0-9_-]+$"),
    AfterValidator(_refuse_reserved),
]


class NewLink(BaseModel):
    """A link to be shortened."""

    url: Annotated[Target, Field(description="Where the link leads; http and https only.")]
    code: Annotated[Code | None, Field(description="A code of your own; one is made up if it is missing.")] = None


class Link(BaseModel):
    """A short link."""

    code: str
    url: str
    created: Annotated[str, Field(description="When, in UTC, as in ISO 8601.")]
    clicks: int


class LinkPage(BaseModel):
    """Some of the links, the newest first."""

    links: list[Link]
    total: Annotated[int, Field(description="How many links match, on all pages.")]
    next: Annotated[int | None, Field(description="Pass it as `before` to get the next page; null on the last one.")]


class Click(BaseModel):
    """A click on a link."""

    code: str
    clicks: Annotated[int, Field(description="How many there are now.")]


class Clicks(BaseModel):
    """Clicks that have something in common."""

    label: str
    clicks: int


class Report(BaseModel):
    """What happened so far."""

    links: int
    clicks: int
    days: Annotated[list[Clicks], Field(description="The last 14 days (UTC), the oldest first.")]
    referrers: Annotated[list[Clicks], Field(description="Where most of the clicks came from.")]
