"""Pools: the pools of an application, which its lifespan has opened or its middleware was given."""

from collections.abc import Iterable, MutableMapping
from typing import Any

from ..errors import PoolConfigError
from ..pool import ConnectionPool
from ..stats import Observable

Scope = MutableMapping[str, Any]

STATE_PREFIX = "connectionpools_fastapi."


def find_pool(scope: Scope, name: str) -> ConnectionPool[Any]:
    """Find an open pool by its name.

    Raises:
        PoolConfigError: If there is none (the text names those that exist), or if it is only observed.
    """
    pool: Observable | None = scope.get("state", {}).get(STATE_PREFIX + name)
    if isinstance(pool, ConnectionPool):
        return pool
    if pool is not None:
        raise only_observed(pool)
    names = sorted(pool.name for pool in started_pools(scope))
    if names:
        msg = f"there is no pool named {name!r} here; there are {', '.join(map(repr, names))}"
    else:
        msg = (
            f"there is no pool named {name!r} here, since none was opened. Call install_pools(app, pool), and let the "
            "application's lifespan run: in tests `with TestClient(app)`, or `async with started(app)` of "
            "connectionpools_fastapi.testing; a mounted sub-application's own lifespan never runs, "
            "so install its pools in the outermost application"
        )
    raise PoolConfigError(msg)


def only_observed(pool: Observable) -> PoolConfigError:
    """Say that an observed pool, a driver's own, cannot be leased from."""
    return PoolConfigError(
        f"pool {pool.name!r} is only observed, and an observed pool is not leased from. Take connections from the "
        "driver's own pool as before, or make a ConnectionPool with the driver's manager"
    )


def started_pools(scope: Scope) -> list[Observable]:
    """Return the pools that the lifespan has opened, and the observed ones."""
    state = scope.get("state", {})
    return [pool for key, pool in state.items() if isinstance(key, str) and key.startswith(STATE_PREFIX)]


# Names that /pool/health/{name} already uses.
RESERVED = ("live", "ready")


def checked_pools(pools: Any, write: str) -> tuple[Observable, ...]:
    """Return pools that health and metrics can tell apart.

    Args:
        pools: The pools of one application.
        write: The call that the error text suggests.

    Returns:
        The same pools.

    Raises:
        PoolConfigError: If one is no pool, two have the same name, or one has a name that an endpoint needs.
    """
    found = tuple(pools) if isinstance(pools, Iterable) else (pools,)
    strangers = [type(pool).__name__ for pool in found if isinstance(pool, type) or not isinstance(pool, Observable)]
    if strangers or not isinstance(pools, Iterable):
        msg = (
            f"expected pools, got {', '.join(strangers) or 'one without a list'}; write {write}, "
            "and observe(pool, name=...) for a driver's own pool"
        )
        raise PoolConfigError(msg)
    seen: set[str] = set()
    for pool in found:
        if pool.name in seen:
            raise two_of_one_name(pool)
        if pool.name in RESERVED or "/" in pool.name:
            msg = f"pool {pool.name!r}: /pool/health/{pool.name} means something else; choose another name"
            raise PoolConfigError(msg)
        seen.add(pool.name)
    return found


def two_of_one_name(pool: Observable) -> PoolConfigError:
    """Say that a pool has the same name as another one."""
    return PoolConfigError(
        f"two pools have the name {pool.name!r}; give each its own: ConnectionPool(..., name='cache')"
    )
