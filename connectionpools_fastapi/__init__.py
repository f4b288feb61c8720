"""A generic, thread-safe pool of any resource, for FastAPI: fair, cancel-safe, visible."""

from ._acceleration import accelerated, compiled_path

__path__[:0] = compiled_path(__name__)

from ._asgi.dependencies import Leased, LeaseOptions, Pooled
from ._asgi.lifespan import install_pools, pool_lifespan
from ._asgi.middleware import PoolMiddleware
from ._asgi.readiness import mark_unready
from ._core.slot import Verdict
from ._monitoring.metrics import PoolCollector
from ._monitoring.observed import ObservedPool, observe
from ._runtime.loan import Loan
from .errors import (
    HookTimeout,
    NotLeased,
    Overloaded,
    PoolClosed,
    PoolConfigError,
    PoolError,
    PoolTimeout,
    ResourceUnavailable,
    TooManyWaiting,
    WouldDeadlock,
    WrongEventLoop,
)
from .lease import Lease
from .listener import PoolListener
from .manager import ResourceManager
from .pool import ConnectionPool
from .stats import Histogram, Holder, Observable, ObservedStats, PoolStats, PriorityStats, RouteStats

__all__ = [
    "ConnectionPool",
    "Histogram",
    "Holder",
    "HookTimeout",
    "Lease",
    "LeaseOptions",
    "Leased",
    "Loan",
    "NotLeased",
    "Observable",
    "ObservedPool",
    "ObservedStats",
    "Overloaded",
    "PoolClosed",
    "PoolCollector",
    "PoolConfigError",
    "PoolError",
    "PoolListener",
    "PoolMiddleware",
    "PoolStats",
    "PoolTimeout",
    "Pooled",
    "PriorityStats",
    "ResourceManager",
    "ResourceUnavailable",
    "RouteStats",
    "TooManyWaiting",
    "Verdict",
    "WouldDeadlock",
    "WrongEventLoop",
    "accelerated",
    "install_pools",
    "mark_unready",
    "observe",
    "pool_lifespan",
]
