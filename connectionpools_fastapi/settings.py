"""PoolSettings: a pool's numbers from the environment; needs the extra `settings`."""

from typing import Any, ClassVar, Self

from ._core.policy import OnOverload, Reuse

try:
    from pydantic_settings import BaseSettings, SettingsConfigDict
except ImportError as _error:
    msg = "connectionpools_fastapi.settings needs pydantic-settings: pip install 'connectionpools-fastapi[settings]'"
    raise ImportError(msg) from _error


class PoolSettings(BaseSettings):
    """Arguments of `ConnectionPool`, read from variables such as `POOL_LIMIT` and `POOL_MIN_FREE`.

    Write `ConnectionPool(create=..., name="db", **PoolSettings().options())`. A second pool
    takes another prefix: `PoolSettings.of("CACHE_POOL_")`. Each field means the same as the argument of
    that name, and a field that is not set keeps the pool's own default. A value that is no number
    raises pydantic's ValidationError here; one that cannot work raises `PoolConfigError` in the pool.
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
    open_timeout: float | None = None
    reuse: Reuse | None = None
    overload: OnOverload | None = None
    debug: bool | None = None

    @classmethod
    def of(cls, prefix: str) -> Self:
        """Read variables that begin with another prefix.

        Args:
            prefix: As in `CACHE_POOL_`.

        Returns:
            The settings found.

        Raises:
            ValidationError: If a value is of the wrong type; pydantic's.
        """
        return cls(_env_prefix=prefix)  # type: ignore[call-arg] # pydantic-settings takes it, unseen by type checkers

    def options(self) -> dict[str, Any]:
        """Return the fields that are set, as keyword arguments for `ConnectionPool`.

        Returns:
            Only the fields that the environment or the caller has set.
        """
        return self.model_dump(exclude_unset=True)
