"""What cannot work is refused as early as can be, and the error says what to write instead."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from connectionpools_fastapi import ConnectionPool, NotLeased, PoolClosed, PoolConfigError, PoolError, ResourceManager
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
        ({"close_timeout": -1}, "0 waits for nobody"),
        ({"reuse": "lru"}, 'write reuse="lifo" or reuse="fifo"'),
        ({"name": ""}, "a pool's name must be a string that is not empty"),
        ({"name": 5}, "a pool's name must be a string that is not empty"),
    ],
)
def test_a_value_that_cannot_work_is_refused_when_the_pool_is_made(options: dict[str, Any], says: str) -> None:
    with pytest.raises(PoolConfigError) as caught:
        pool(**options)
    assert says in str(caught.value)


def test_values_at_their_ends_work() -> None:
    pool(limit=1, min_free=1, timeout=0, max_waiting=0, max_creating=1, check_after=0, close_timeout=0)
    pool(timeout=None, hook_timeout=float("inf"), close_timeout=float("inf"), check_after=float("inf"))


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
def test_a_hook_that_cannot_be_called_is_refused_when_the_pool_is_made(name: str, hook: object, says: str) -> None:
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


@pytest.mark.parametrize("timeout", [-1, float("nan"), "5", True])
def test_a_timeout_that_cannot_work_is_refused_before_anything_is_leased(timeout: Any) -> None:
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
async def test_a_mistake_that_a_manager_tells_is_told_with_the_name_of_the_pool() -> None:
    async def create() -> object:
        raise own(PoolConfigError("the server does not take this password; see what is configured"))

    with pytest.raises(PoolConfigError, match=r"^pool 'db' \(limit 10: .*\): the server does not take this password"):
        await ConnectionPool(create=create, min_free=1, name="db").open()
