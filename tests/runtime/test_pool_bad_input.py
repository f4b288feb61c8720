"""What cannot work is refused as early as can be, and the error says what to write instead."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from connectionpools_fastapi import ConnectionPool, NotLeased, PoolClosed, PoolConfigError, PoolError, ResourceManager
from connectionpools_fastapi._core.policy import Policy
from connectionpools_fastapi.errors import own
from tests.support import SECRET, Backend, PlainBackend, Resource


def create() -> Resource:
    return Resource(0)


def pool(**options: Any) -> ConnectionPool[Resource]:
    return ConnectionPool(**{"create": create, **options})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"limit": 0}, "limit must be a positive whole number; got 0"),
        ({"limit": -1}, "limit must be a positive whole number; got -1"),
        ({"limit": 2.5}, "limit must be a positive whole number; got 2.5"),
        ({"limit": True}, "limit must be a positive whole number; got True"),
        ({"limit": "10"}, "limit must be a positive whole number; got '10'"),
        ({"limit": None}, "limit must be a positive whole number; got None"),
        ({"min_free": -1}, "min_free must be a whole number, 0 or more; got -1"),
        ({"min_free": 3, "limit": 2}, "min_free=3 is above limit=2"),
        ({"max_creating": 0}, "max_creating must be a positive whole number"),
        ({"max_waiting": -1}, "None lets any number queue"),
        ({"timeout": -1}, "0 never waits, None waits for ever"),
        ({"timeout": float("nan")}, "timeout must be a number of seconds, 0 or more; got nan"),
        ({"timeout": "5"}, "timeout must be a number"),
        ({"timeout": True}, "timeout must be a number"),
        ({"check_after": -0.1}, "0 checks before every reuse"),
        ({"hook_timeout": 0}, "hook_timeout must be a number of seconds, more than 0"),
        ({"hook_timeout": None}, "hook_timeout must be a number of seconds, more than 0"),
        ({"close_timeout": -1}, "0 does not wait"),
        ({"open_timeout": -1}, "None raises once the back-end is down"),
        ({"keepalive": 0}, "None checks free resources only when they are wanted"),
        ({"max_lifetime": 0}, "None lets resources grow old"),
        ({"max_idle": 0}, "None keeps them however long they are unused"),
        ({"max_hold": 0}, "None lets leases last"),
        ({"max_uses": 0}, "None lets resources be used without end"),
        ({"reuse": "lru"}, 'write reuse="lifo" or reuse="fifo"'),
        ({"overload": "drop"}, 'write overload="shed" or overload="queue"'),
        ({"name": ""}, "a pool's name must be a string that is not empty"),
        ({"name": 5}, "a pool's name must be a string that is not empty"),
    ],
)
def test_bad_value_is_refused_by_constructor(options: dict[str, Any], says: str) -> None:
    with pytest.raises(PoolConfigError) as caught:
        pool(**options)
    assert says in str(caught.value)


def test_values_at_their_ends_work() -> None:
    pool(limit=1, min_free=1, timeout=0, max_waiting=0, max_creating=1, check_after=0, close_timeout=0)
    pool(max_lifetime=1e300)
    pool(timeout=None, hook_timeout=float("inf"), close_timeout=float("inf"), check_after=float("inf"))


def test_defaults_are_what_the_reference_says() -> None:
    policy = Policy()
    assert {field: getattr(policy, field) for field in policy.__slots__} == {
        "name": "default",
        "limit": 10,
        "min_free": 0,
        "timeout": 5.0,
        "max_waiting": None,
        "max_creating": 8,
        "check_after": 1.0,
        "keepalive": None,
        "max_lifetime": None,
        "max_idle": None,
        "max_uses": None,
        "max_hold": None,
        "hook_timeout": 10.0,
        "close_timeout": 10.0,
        "open_timeout": None,
        "reuse": "lifo",
        "overload": "shed",
        "budget": None,
        "debug": False,
    }


def no_argument() -> None: ...


def one(resource: Any) -> None: ...


def two(resource: Any, other: Any) -> None: ...


def keyword(resource: Any, *, dsn: str) -> None: ...


@pytest.mark.parametrize(
    ("name", "hook", "says"),
    [
        ("create", one, "create is called with no argument, but its parameters are (resource); write create=lambda: "),
        ("check", no_argument, "check is called with one argument, the resource, but its parameters are ()"),
        ("change", two, "its parameters are (resource, other); write change=lambda conn: conn.reset()"),
        ("clean", keyword, "its parameters are (resource, dsn); write clean=lambda conn: conn.close()"),
        ("create", "connect", "create must be callable, as create=lambda: connect(...); got str"),
        ("clean", 5, "clean must be callable, as clean=lambda conn: conn.close(); got int"),
    ],
)
def test_uncallable_hook_is_refused_by_constructor(name: str, hook: object, says: str) -> None:
    with pytest.raises(PoolConfigError) as caught:
        pool(**{name: hook}, name="db")
    assert says in str(caught.value)
    assert "pool 'db'" in str(caught.value)


@pytest.mark.parametrize("hook", [partial(keyword, dsn=SECRET), lambda one, two, dsn=SECRET: (one, two, dsn)])
def test_what_a_hook_has_for_defaults_is_never_shown(hook: Callable[..., Any]) -> None:
    with pytest.raises(PoolConfigError) as caught:
        pool(create=hook)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("hook", [lambda *arguments: arguments, lambda resource, more=1: (resource, more), bool, print])
def test_a_hook_that_can_be_called_is_accepted(hook: Callable[..., Any]) -> None:
    pool(check=hook, change=hook, clean=hook)


def test_the_manager_must_be_one_and_not_come_beside_hooks() -> None:
    class Manager(ResourceManager[Resource]):
        def create(self) -> Resource:
            return Resource(0)

    for wrong, says in (
        (Manager, "the manager must be an instance"),
        (create, "a plain callable goes to create="),
        (5, "the manager must be a ResourceManager"),
    ):
        with pytest.raises(PoolConfigError, match=says):
            ConnectionPool(wrong)  # type: ignore[call-overload]
    with pytest.raises(PoolConfigError, match="not both"):
        ConnectionPool(Manager(), clean=print)  # type: ignore[call-overload]
    with pytest.raises(PoolConfigError, match="create is required, as create=lambda"):
        ConnectionPool()  # type: ignore[call-overload]


@pytest.mark.parametrize("priority", ["urgent", "HIGH", "", 1, None, True])
def test_unknown_priority_is_refused_before_lease(priority: Any) -> None:
    with PlainBackend().pool(name="db") as some:
        for call in (some.lease, some.acquire_sync):
            with pytest.raises(PoolConfigError, match=r"'db': priority=.* is unknown"):
                call(priority=priority)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "5", True])
def test_bad_timeout_is_refused_before_lease(timeout: Any) -> None:
    with PlainBackend().pool() as some, pytest.raises(PoolConfigError, match="timeout must be a number"):
        some.lease(timeout=timeout)


@pytest.mark.anyio
async def test_a_pool_that_was_never_opened_says_how_to_open_it() -> None:
    never = Backend().pool(name="db")
    for call in (never.acquire, never.lease().__aenter__):
        with pytest.raises(PoolClosed, match=r"pool 'db' .* was never opened") as caught:
            await call()
        for remedy in ("install_pools", "pool_lifespan", "TestClient", "async with pool:"):
            assert remedy in str(caught.value)
    with pytest.raises(PoolClosed):
        never.try_acquire()
    with pytest.raises(NotLeased):
        await never.release(None)  # type: ignore[arg-type]
    assert never.stats().refusals["closed"] == 3


@pytest.mark.anyio
async def test_a_pool_is_opened_once_only() -> None:
    backend = Backend()
    async with backend.pool() as some:
        with pytest.raises(PoolConfigError, match="is open already"):
            await some.open()
        async with some.lease():
            pass
    assert len(backend.created) == len(backend.cleaned) == 1


@pytest.mark.anyio
async def test_every_error_names_its_pool_and_is_a_pool_error() -> None:
    backend = Backend()
    some = backend.pool(name="billing", limit=1, max_waiting=0)
    seen: list[PoolError] = []

    async def note(call: Callable[[], Any]) -> None:
        with pytest.raises(PoolError) as caught:
            await call()
        seen.append(caught.value)

    await note(some.acquire)
    async with some:
        resource = await some.acquire()
        await note(some.acquire)
        await note(lambda: some.acquire(timeout=0))
        await note(lambda: some.release(Resource(1)))
        backend.fail("create")
        some.discard(resource)
        await note(some.acquire)
    assert [type(error).__name__ for error in seen] == [
        "PoolClosed",
        "TooManyWaiting",
        "PoolTimeout",
        "NotLeased",
        "ResourceUnavailable",
    ]
    assert all("pool 'billing' (limit 1: " in str(error) for error in seen)


@pytest.mark.anyio
async def test_config_error_of_manager_names_the_pool() -> None:
    async def create() -> object:
        raise own(PoolConfigError("the server does not take this password; see what is configured"))

    with pytest.raises(PoolConfigError, match=r"^pool 'db' \(limit 10: .*\): the server does not take this password"):
        await ConnectionPool(create=create, min_free=1, name="db").open()


@pytest.mark.parametrize("field", ["max_lifetime", "timeout", "keepalive", "open_timeout"])
@pytest.mark.parametrize("seconds", [10**400, 10**5000], ids=["400 digits", "5000 digits"])
def test_number_of_seconds_beyond_any_clock_is_refused(field: str, seconds: int) -> None:
    with pytest.raises(PoolConfigError, match=f"{field} must be a number of seconds.*more than any clock can count"):
        pool(**{field: seconds})
