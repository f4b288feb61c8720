"""PoolSettings: a pool's numbers from the environment; needs the extra `settings`."""

from typing import Any, ClassVar, Self

from ._policy import Reuse

try:
    from pydantic_settings import BaseSettings, SettingsConfigDict
except ImportError as _error:
    msg = "connectionpools_fastapi.settings needs pydantic-settings: pip install 'connectionpools-fastapi[settings]'"
    raise ImportError(msg) from _error


class PoolSettings(BaseSettings):
    """What `ConnectionPool` takes, read from variables such as `POOL_LIMIT` and `POOL_MIN_FREE`.

    Write `ConnectionPool(create=..., name="db", **PoolSettings().options())`. A second pool
    takes another prefix: `PoolSettings.of("CACHE_POOL_")`. What is not set keeps the
    pool's own default. A value that is no number at all raises pydantic's
    ValidationError here, one that makes no sense `PoolConfigError` in the pool.

    Attributes:
        limit: See `ConnectionPool`, as for all others.
        min_free: Resources kept free.
        timeout: Seconds that an acquire waits.
        max_waiting: Callers that may queue.
        max_creating: Calls of `create` at once.
        check_after: Seconds.
        keepalive: Seconds.
        max_lifetime: Seconds.
        max_idle: Seconds.
        max_uses: Times.
        max_hold: Seconds.
        hook_timeout: Seconds.
        close_timeout: Seconds.
        reuse: "lifo" or "fifo".
        debug: True or False.
    """

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(env_prefix="POOL_")

    limit: int | None = None
    min_free: int | None = None
    timeout: float | None = None
    max_waiting: int | None = None
    max_creating: int | None = None
    check_after: float | None = None
    keepalive: float | None = None
    max_lifetime: float | None = None
    max_idle: float | None = None
    max_uses: int | None = None
    max_hold: float | None = None
    hook_timeout: float | None = None
    close_timeout: float | None = None
    reuse: Reuse | None = None
    debug: bool | None = None

    @classmethod
    def of(cls, prefix: str) -> Self:
        """Read variables that begin with another prefix.

        Args:
            prefix: As in "CACHE_POOL_".

        Returns:
            The settings found.

        Raises:
            ValidationError: If a value is of the wrong type; pydantic's.
        """
        return cls(_env_prefix=prefix)  # type: ignore[call-arg] # pydantic-settings takes it, unseen by type checkers

    def options(self) -> dict[str, Any]:
        """Return what is set, as keyword arguments for `ConnectionPool`.

        Returns:
            Only what the environment or the caller has set.
        """
        return self.model_dump(exclude_unset=True)
