"""RouteUsage: what the requests of each route take from a pool, and how long they wait for it."""

from threading import RLock

from ..errors import Overloaded, PoolClosed, PoolTimeout, ResourceUnavailable, TooManyWaiting, WouldDeadlock
from ..stats import RouteStats
from .request_context import REQUEST

# So many routes are told apart; further ones count as one, so that metrics do not grow without end.
MOST_ROUTES = 100
OTHER = "other"

REFUSALS = (Overloaded, PoolClosed, ResourceUnavailable, TooManyWaiting, WouldDeadlock)


class _Totals:
    """The totals of one route."""

    __slots__ = ("leases", "refusals", "timeouts", "use", "wait")

    def __init__(self) -> None:
        self.leases = self.refusals = self.timeouts = 0
        self.wait = self.use = 0.0


class RouteUsage:
    """Totals by the route of the running request; what runs for no request is not counted. From any thread."""

    def __init__(self) -> None:
        # It protects the totals. Re-entrant, since the garbage collector may end a lease at any moment.
        self._lock = RLock()
        self._routes: dict[str, _Totals] = {}

    def note_lease(self, used: float, waited: float) -> None:
        """Count a lease that ends, and how long its caller had waited for it."""
        request = REQUEST.get()
        if request is not None:
            route = str(request)
            with self._lock:
                totals = self._routes.get(route) or self._of(route)
                totals.leases += 1
                totals.use += used
                totals.wait += waited

    def note_failure(self, error: BaseException) -> None:
        """Count a caller that got no resource."""
        request = REQUEST.get()
        if request is not None:
            with self._lock:
                totals = self._of(str(request))
                totals.timeouts += isinstance(error, PoolTimeout)
                totals.refusals += isinstance(error, REFUSALS)

    def _of(self, route: str) -> _Totals:
        if route not in self._routes and len(self._routes) >= MOST_ROUTES:
            route = OTHER
        return self._routes.setdefault(route, _Totals())

    def snapshot(self) -> dict[str, RouteStats]:
        """Return the totals of all routes."""
        with self._lock:
            return {
                route: RouteStats(
                    leases=totals.leases,
                    wait=totals.wait,
                    use=totals.use,
                    refusals=totals.refusals,
                    timeouts=totals.timeouts,
                )
                for route, totals in self._routes.items()
            }
