"""Settings: what the environment says, validated."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import unquote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

SQLITE_URL = re.compile(r"sqlite:///(?P<path>[^?#]*[^?#/])")


class SettingsError(ValueError):
    """The environment says something that cannot be used; one line says what, and never shows a DSN."""


def _check_database_url(url: str) -> str:
    found = SQLITE_URL.fullmatch(url)
    if found is None or unquote(found["path"]) == ":memory:" or "\0" in unquote(url):
        raise ValueError
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
        Field(repr=False, description="the URL of an SQLite file: sqlite:///links.db, or sqlite:////srv/links.db"),
    ] = "sqlite:///links.db"
    pool_limit: Annotated[int, Field(ge=1, le=1000, description="a whole number from 1 to 1000")] = 5
    pool_min_free: Annotated[int, Field(ge=0, le=1000, description="a whole number from 0 to POOL_LIMIT")] = 0
    pool_timeout: Annotated[
        float, Field(ge=0, le=600, allow_inf_nan=False, description="a number of seconds from 0 to 600")
    ] = 5.0

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.pool_min_free > self.pool_limit:
            raise ValueError
        return self

    @property
    def database(self) -> Path:
        """The database file."""
        found = SQLITE_URL.fullmatch(self.database_url)
        assert found is not None  # noqa: S101 - it was validated
        return Path(unquote(found["path"]))

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
            name = str(location[0]) if location else "pool_min_free"
            msg = f"{name.upper()} must be {cls.model_fields[name].description}"
            raise SettingsError(msg) from None
