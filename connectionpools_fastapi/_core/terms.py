"""Terms: what a caller asks for besides a resource, if that differs from the pool's own settings."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..errors import PoolConfigError
from .policy import DEFAULT, Default, check_timeout

Priority = Literal["low", "normal", "high"]

# The order in which lanes of the queue are served.
HIGH, NORMAL, LOW = 0, 1, 2
RANKS: dict[Priority, int] = {"high": HIGH, "normal": NORMAL, "low": LOW}


@dataclass(frozen=True, slots=True)
class CallerTerms:
    """The terms of one caller."""

    timeout: float | None | Default
    priority: Priority

    def __str__(self) -> str:
        """Say it as it is written in a call."""
        timeout = [] if self.timeout is DEFAULT else [f"timeout={self.timeout!r}"]
        priority = [] if self.priority == "normal" else [f"priority={self.priority!r}"]
        return ", ".join((*timeout, *priority))


# Nearly all callers have the default terms, and pay nothing for these.
Terms: TypeAlias = CallerTerms | Default


def terms_of(pool: str, timeout: float | None | Default, priority: Priority) -> Terms:
    """Check the terms of a caller of a pool.

    Raises:
        PoolConfigError: If the timeout is no duration, or the priority is unknown.
    """
    if timeout is not DEFAULT:
        check_timeout(pool, timeout)
    if not isinstance(priority, str) or priority not in RANKS:
        msg = f'pool {pool!r}: priority={priority!r} is unknown; write priority="low", "normal" or "high"'
        raise PoolConfigError(msg)
    return DEFAULT if timeout is DEFAULT and priority == "normal" else CallerTerms(timeout, priority)
