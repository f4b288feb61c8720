"""Policy: the numbers a user sets, with their defaults and their validation."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypedDict

from ..budget import Budget
from ..errors import PoolConfigError

Reuse = Literal["lifo", "fifo"]

OnOverload = Literal["shed", "queue"]

FOREVER = float("inf")

LONGEST = sys.float_info.max  # some whole numbers are beyond it, and below infinity


class Options(TypedDict, total=False):
    """The options of a pool besides its hooks, for type checkers; see `ConnectionPool`."""

    name: str
    limit: int
    min_free: int
    timeout: float | None
    max_waiting: int | None
    max_creating: int
    check_after: float
    keepalive: float | None
    max_lifetime: float | None
    max_idle: float | None
    max_uses: int | None
    max_hold: float | None
    hook_timeout: float
    close_timeout: float
    open_timeout: float | None
    reuse: Reuse
    overload: OnOverload
    budget: Budget | None
    blocking: bool
    debug: bool
    clock: Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a pool may do and for how long; see `ConnectionPool` for each field."""

    name: str = "default"
    limit: int = 10
    min_free: int = 0
    timeout: float | None = 5.0
    max_waiting: int | None = None
    max_creating: int = 8
    check_after: float = 1.0
    keepalive: float | None = None
    max_lifetime: float | None = None
    max_idle: float | None = None
    max_uses: int | None = None
    max_hold: float | None = None
    hook_timeout: float = 10.0
    close_timeout: float = 10.0
    open_timeout: float | None = None
    reuse: Reuse = "lifo"
    overload: OnOverload = "shed"
    budget: Budget | None = None
    debug: bool = False

    def __post_init__(self) -> None:
        check_name(self.name)
        self.check_limit(self.limit)
        self._whole("min_free", at_least=0, hint="0 creates on demand")
        self._whole("max_creating", at_least=1, hint="it is how many `create` may run at once")
        if self.max_waiting is not None:
            self._whole("max_waiting", at_least=0, hint="None lets any number queue")
        if self.min_free > self.limit:
            msg = f"pool {self.name!r}: min_free={self.min_free} is above limit={self.limit}; lower it or raise limit"
            raise PoolConfigError(msg)
        check_timeout(self.name, self.timeout)
        self._seconds("check_after", hint="0 checks before every reuse")
        for field, hint in (
            ("keepalive", "None checks free resources only when they are wanted"),
            ("max_lifetime", "None lets resources grow old"),
            ("max_idle", "None keeps them however long they are unused"),
            ("max_hold", "None lets leases last"),
        ):
            if getattr(self, field) is not None:
                self._seconds(field, hint=hint, positive=True)
        if self.max_uses is not None:
            self._whole("max_uses", at_least=1, hint="None lets resources be used without end")
        self._seconds("hook_timeout", hint="it limits each call of a hook", positive=True)
        self._seconds("close_timeout", hint="0 does not wait")
        if self.open_timeout is not None:
            self._seconds("open_timeout", hint="None raises once the back-end is down, 0 opens without waiting")
        if self.reuse not in ("lifo", "fifo"):
            msg = f'pool {self.name!r}: reuse={self.reuse!r} is unknown; write reuse="lifo" or reuse="fifo"'
            raise PoolConfigError(msg)
        if self.overload not in ("shed", "queue"):
            remedy = 'write overload="shed" or overload="queue"'
            msg = f"pool {self.name!r}: overload={self.overload!r} is unknown; {remedy}"
            raise PoolConfigError(msg)
        if self.budget is not None and not hasattr(self.budget, "join"):
            kind = type(self.budget).__name__
            msg = f'pool {self.name!r}: budget must be a Budget, as HostBudget("orders-db", total=45); got {kind}'
            raise PoolConfigError(msg)

    def check_limit(self, limit: object) -> None:
        """Refuse a value that cannot be a limit."""
        self._check_whole("limit", limit, at_least=1, hint="it is the most resources that may exist at once")

    def _whole(self, field: str, *, at_least: int, hint: str) -> None:
        self._check_whole(field, getattr(self, field), at_least=at_least, hint=hint)

    def _check_whole(self, field: str, value: object, *, at_least: int, hint: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
            kind = "positive whole number" if at_least else "whole number, 0 or more"
            msg = f"pool {self.name!r}: {field} must be a {kind}; got {value!r} ({hint})"
            raise PoolConfigError(msg)

    def _seconds(self, field: str, *, hint: str, positive: bool = False) -> None:
        check_seconds(f"pool {self.name!r}", field, getattr(self, field), hint=hint, positive=positive)


def check_name(name: object) -> None:
    """Refuse a name that is empty or no string."""
    if not isinstance(name, str) or not name:
        msg = f"a pool's name must be a string that is not empty, as name='db'; got {name!r}"
        raise PoolConfigError(msg)


def check_timeout(pool: str, timeout: object) -> None:
    """Refuse a timeout that is neither None nor a duration."""
    if timeout is not None and not is_duration(timeout):
        check_seconds(f"pool {pool!r}", "timeout", timeout, hint="0 never waits, None waits for ever")


def check_seconds(
    subject: str, field: str, value: object, *, hint: str, positive: bool = False, longest: float = FOREVER
) -> None:
    """Refuse a value that is not a duration.

    Raises:
        PoolConfigError: If it is none; its text begins with the subject.
    """
    if not is_duration(value, longest) or (positive and value == 0):
        least = "more than 0" if positive else "0 or more"
        got = "more than any clock can count" if isinstance(value, int) and value > LONGEST else repr(value)
        msg = f"{subject}: {field} must be a number of seconds, {least}; got {got} ({hint})"
        raise PoolConfigError(msg)


def is_duration(value: object, longest: float = FOREVER) -> bool:
    """Whether a value is a number of seconds: not negative, not NaN, not beyond what a clock can count."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return 0 <= value <= LONGEST or value == longest


class Default(Enum):
    """Stands for "use the pool's own setting"."""

    DEFAULT = "default"


DEFAULT = Default.DEFAULT
