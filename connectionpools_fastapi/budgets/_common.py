"""What the budgets have in common: their arguments, and the warning that a total is too small."""

import re

from .._runtime.log import facts, logger
from ..errors import PoolConfigError

NAME = re.compile(r"[A-Za-z0-9._-]{1,50}")


def check_arguments(name: str, total: int, floor: int) -> None:
    """Check what each budget is described by.

    Raises:
        PoolConfigError: If a value cannot work.
    """
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        msg = f'a budget\'s name must be 1 to 50 letters, digits, ".", "-" or "_", as "orders-db"; got {name!r}'
        raise PoolConfigError(msg)
    for field, value, least in (("total", total, 1), ("floor", floor, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            msg = f"budget {name!r}: {field} must be a whole number, {least} or more; got {value!r}"
            raise PoolConfigError(msg)


def warn_if_small(name: str, total: int, floor: int, members: int) -> None:
    """Warn if the total has not one token, or not `floor` tokens, for each member."""
    needed = max(1, floor)
    if members * needed > total:
        logger.warning(
            "budget %r: total=%d is too small for %d members, each of which needs %d; raise it",
            *(name, total, members, needed),
            extra=facts("budget_too_small", None, budget=name, total=total, members=members),
        )
