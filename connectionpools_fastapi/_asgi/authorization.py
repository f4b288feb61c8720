"""Authorization: asks the application whether a request may see details of health and leases, or control pools."""

import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Literal

import anyio
from starlette.requests import HTTPConnection

from .._core.slot import LONG_AGO
from .._runtime.callables import misfit, yields
from .._runtime.log import facts, logger
from ..errors import PoolConfigError, describe

Authorize = Callable[[HTTPConnection], bool | Awaitable[bool]]

# What is lost if the answer is no.
WITHOUT = {"authorize": "no details or leases were shown", "control": "no request could control a pool"}

# Probes come every few seconds, so a failure is logged at most once in this many seconds.
LOG_EVERY = 60.0


class Authorization:
    """Asks `authorize`, or `control`; only True means yes."""

    def __init__(
        self,
        authorize: Authorize,
        timeout: float,
        option: Literal["authorize", "control"] = "authorize",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check what the option was given as far as possible before the first request.

        Raises:
            PoolConfigError: If it cannot be called with a request, or yields.
        """
        check_authorize(authorize, option)
        self._authorize = authorize
        self._timeout = timeout
        self._option = option
        self._clock = clock
        self._logged_at = LONG_AGO
        self._unlogged = 0

    async def allows(self, connection: HTTPConnection) -> bool:
        """Say whether a request is allowed."""
        answer: object = None
        try:
            with anyio.move_on_after(self._timeout) as limit:
                answer = self._authorize(connection)
                if inspect.isawaitable(answer):
                    answer = await answer
        except Exception as error:  # noqa: BLE001 - a failure means no, not an error response
            self._log(f"failed with {describe(error)}")
            return False
        if limit.cancelled_caught:
            self._log(f"took longer than probe_timeout={self._timeout:g} s")
            return False
        if not isinstance(answer, bool):
            self._log(f"returned {type(answer).__name__}, and only True means yes")
            return False
        return answer

    def _log(self, what: str) -> None:
        now = self._clock()
        if now - self._logged_at < LOG_EVERY:
            self._unlogged += 1
            return
        more = f" ({self._unlogged} more times since the last such line)" if self._unlogged else ""
        self._logged_at, self._unlogged = now, 0
        option = self._option
        line = f"{WITHOUT[option]}, since {option} %s%s"
        logger.warning(line, what, more, extra=facts(f"{option}_failed", None))


def check_authorize(authorize: object, option: str) -> None:
    """Check that `authorize` or `control` can be called with a request.

    Raises:
        PoolConfigError: If it cannot, or if it yields.
    """
    example = f"{option}=lambda request: is_admin(request)"
    if not callable(authorize):
        msg = f"{option}={authorize!r} must be callable, as {example}"
        raise PoolConfigError(msg)
    if yields(authorize):
        msg = (
            f"{option} must not yield: it is called as it is, and not as a dependency of FastAPI. "
            f"Return True for a request that is allowed, as {example}"
        )
        raise PoolConfigError(msg)
    if (parameters := misfit(authorize, "the request")) is not None:
        msg = (
            f"{option} is called with one argument, the request, but its parameters are ({parameters}); write {example}"
        )
        raise PoolConfigError(msg)
