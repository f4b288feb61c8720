"""Authorization: asks the application whether a request may see details of health, and leases."""

import inspect
import time
from collections.abc import Awaitable, Callable

import anyio
from starlette.requests import HTTPConnection

from .._core.slot import LONG_AGO
from .._runtime.callables import misfit, yields
from .._runtime.log import facts, logger
from ..errors import PoolConfigError, describe

Authorize = Callable[[HTTPConnection], bool | Awaitable[bool]]

EXAMPLE = "authorize=lambda request: is_admin(request)"

# Probes come every few seconds, so a failure is logged at most once in this many seconds.
LOG_EVERY = 60.0


class Authorization:
    """Asks `authorize`; only True means yes."""

    def __init__(self, authorize: Authorize, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Check `authorize` as far as possible before the first request.

        Raises:
            PoolConfigError: If `authorize` cannot be called with a request, or yields.
        """
        check_authorize(authorize)
        self._authorize = authorize
        self._timeout = timeout
        self._clock = clock
        self._logged_at = LONG_AGO
        self._unlogged = 0

    async def allows(self, connection: HTTPConnection) -> bool:
        """Say whether a request may see details."""
        answer: object = None
        try:
            with anyio.move_on_after(self._timeout) as limit:
                answer = self._authorize(connection)
                if inspect.isawaitable(answer):
                    answer = await answer
        except Exception as error:  # noqa: BLE001 - a failure means no details, not an error response
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
        line = "no details or leases were shown, since authorize %s%s"
        logger.warning(line, what, more, extra=facts("authorize_failed", None))


def check_authorize(authorize: object) -> None:
    """Check that `authorize` can be called with a request.

    Raises:
        PoolConfigError: If it cannot, or if it yields.
    """
    if not callable(authorize):
        msg = f"authorize={authorize!r} must be callable, as {EXAMPLE}"
        raise PoolConfigError(msg)
    if yields(authorize):
        msg = (
            "authorize must not yield: it is called as it is, and not as a dependency of FastAPI. "
            f"Return True for a request that may see details, as {EXAMPLE}"
        )
        raise PoolConfigError(msg)
    if (parameters := misfit(authorize, "the request")) is not None:
        msg = (
            f"authorize is called with one argument, the request, but its parameters are ({parameters}); "
            f"write {EXAMPLE}"
        )
        raise PoolConfigError(msg)
