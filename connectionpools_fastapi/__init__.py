"""A generic, thread-safe pool of any resource, for FastAPI: fair, cancel-safe, visible."""

from .errors import (
    HookTimeout,
    NotLeased,
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
from .metrics import PoolCollector
from .middleware import PoolMiddleware
from .observed import ObservedPool, observe
from .pool import ConnectionPool
from .provider import Leased, Pooled, install_pools, pool_lifespan
from .stats import Histogram, Holder, Observable, ObservedStats, PoolStats

__all__ = [
    "ConnectionPool",
    "Histogram",
    "Holder",
    "HookTimeout",
    "Lease",
    "Leased",
    "NotLeased",
    "Observable",
    "ObservedPool",
    "ObservedStats",
    "PoolClosed",
    "PoolCollector",
    "PoolConfigError",
    "PoolError",
    "PoolListener",
    "PoolMiddleware",
    "PoolStats",
    "PoolTimeout",
    "Pooled",
    "ResourceManager",
    "ResourceUnavailable",
    "TooManyWaiting",
    "WouldDeadlock",
    "WrongEventLoop",
    "install_pools",
    "observe",
    "pool_lifespan",
]
