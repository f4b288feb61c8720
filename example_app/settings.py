"""Settings: what the environment says, validated."""

import re
from collections.abc import Mapping
from typing import Annotated, Self
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

SQLITE_URL = re.compile(r"sqlite:///[^?#]*[^?#/]")
SERVER_URL = re.compile(r"(postgres(ql)?|mysql|mariadb)://[^\s\0]*")
REDIS_URL = re.compile(r"rediss?://[^\s\0/?#]+(/\d*)?")


class SettingsError(ValueError):
    """The environment says something that cannot be used; one line says what, and never shows a DSN."""


def _check_database_url(url: str) -> str:
    if SERVER_URL.fullmatch(url):
        return _check_ports(url)
    if not SQLITE_URL.fullmatch(url) or unquote(url).endswith("/:memory:") or "\0" in unquote(url):
        raise ValueError
    return url


def _check_cache_url(url: str) -> str:
    if url and not REDIS_URL.fullmatch(url):
        raise ValueError
    return _check_ports(url)


def _check_ports(url: str) -> str:
    """Raise ValueError for one that is no number, as where a password should have been percent-encoded."""
    for host in urlsplit(url).netloc.rpartition("@")[2].split(","):
        _ = urlsplit(f"//{host}").port
    return url


class Settings(BaseModel):
    """Everything that can be set, each by the environment variable of the same name in capitals."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    host: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9_.:-]+$", description="an address or a host name, such as 127.0.0.1")
    ] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="a whole number from 0 (any free port) to 65535")] = 8000
    database_url: Annotated[
        str,
        AfterValidator(_check_database_url),
        Field(
            repr=False,
            description="the URL of an SQLite file, as sqlite:///links.db or sqlite:////srv/links.db, "
            "or of a PostgreSQL or a MariaDB, as postgresql://user:password@host:5432/database "
            "or mysql://user:password@host:3306/database, "
            "with special characters of the password percent-encoded",
        ),
    ] = "sqlite:///links.db"
    cache_url: Annotated[
        str,
        AfterValidator(_check_cache_url),
        Field(
            repr=False,
            description="the URL of a Redis that remembers where links lead, as redis://user:password@host:6379/0, "
            "with special characters of the password percent-encoded; or empty",
        ),
    ] = ""
    cache_prefix: Annotated[
        str,
        Field(
            pattern=r"^[!-~]{1,100}$",
            description="1 to 100 visible ASCII characters with which each key in the cache begins",
        ),
    ] = "links:"
    cache_timeout: Annotated[
        float,
        Field(
            gt=0,
            le=60,
            allow_inf_nan=False,
            description="a number of seconds above 0 and up to 60, which a redirect waits for the cache at most",
        ),
    ] = 0.1
    pool_limit: Annotated[int, Field(ge=1, le=1000, description="a whole number from 1 to 1000")] = 5
    pool_min_free: Annotated[int, Field(ge=0, le=1000, description="a whole number from 0 to POOL_LIMIT")] = 0
    pool_timeout: Annotated[
        float,
        Field(
            ge=0,
            le=600,
            allow_inf_nan=False,
            description="a number of seconds from 0 to 600, which a request waits for a connection at most",
        ),
    ] = 5.0

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.pool_min_free > self.pool_limit:
            raise ValueError
        return self

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Read the settings; a variable that is missing or empty leaves the default.

        Args:
            environment: The variables, as `os.environ`.

        Returns:
            Valid settings.

        Raises:
            SettingsError: If a variable cannot be used; the message is one line that says what to write.
        """
        given = {name: value for name in cls.model_fields if (value := environment.get(name.upper()))}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            # Of what was given nothing is shown: it may be a DSN that holds a password.
            location = error.errors(include_input=False, include_context=False)[0]["loc"]
            raise SettingsError(bad_value(str(location[0]) if location else "pool_min_free")) from None


def bad_value(name: str) -> str:
    """Say what a setting must be; never what it is."""
    return f"{name.upper()} must be {Settings.model_fields[name].description}"
