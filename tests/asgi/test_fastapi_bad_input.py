"""Bad input to the FastAPI layer: refused where it is written, with what to write instead."""

import inspect
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient

from connectionpools_fastapi import (
    ConnectionPool,
    Leased,
    PoolConfigError,
    Pooled,
    PoolMiddleware,
    install_pools,
    pool_lifespan,
)
from tests.web import Thing, things


def refused(call: Callable[..., Any], *arguments: Any, says: str, **options: Any) -> None:
    with pytest.raises(PoolConfigError) as error:
        call(*arguments, **options)
    text = str(error.value)
    assert says in text, text
    assert "\n" not in text


@pytest.mark.parametrize("function", [Leased, Pooled])
@pytest.mark.parametrize("target", [None, "", 5, Thing, Thing(), ConnectionPool, FastAPI(), ["db"], lambda: "db"])
def test_leased_and_pooled_take_a_pool_or_a_name(function: Callable[..., Any], target: Any) -> None:
    name = function.__name__
    refused(function, target, says=f'{name}(db) or {name}("db")')


@pytest.mark.parametrize("scope", ["", "endpoint", "Function", True, 1])
def test_leased_knows_two_scopes(scope: Any) -> None:
    refused(Leased, "db", scope=scope, says='write scope="function", scope="request" or leave it out')


async def own(_: FastAPI) -> AsyncIterator[None]:
    yield


async def own_coroutine(_: FastAPI) -> None:
    return None


@asynccontextmanager
async def good(_: FastAPI) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize("lifespan", [own, own_coroutine, "own", 5])
def test_a_lifespan_that_is_none_is_refused(lifespan: Any) -> None:
    refused(pool_lifespan, things(), lifespan=lifespan, says="decorated with @asynccontextmanager")


@pytest.mark.parametrize(
    ("pools", "says"),
    [
        ((), "pool_lifespan(db, cache)"),
        (([things()],), "pool_lifespan(db, cache)"),
        (("db",), "pool_lifespan(db, cache)"),
        ((things(), good), "all else by keyword"),
        ((things(), things()), "two pools have the name 'db'; give each its own: ConnectionPool(..., name='cache')"),
        ((things(name="ready"),), "choose another name"),
        ((things(name="live"),), "choose another name"),
        ((things(name="a/b"),), "choose another name"),
    ],
)
def test_pool_lifespan_takes_pools_one_by_one(pools: tuple[Any, ...], says: str) -> None:
    refused(pool_lifespan, *pools, says=says)


@pytest.mark.parametrize(
    ("pools", "says"),
    [
        ((), "install_pools(app, db, cache)"),
        (([things()],), "install_pools(app, db, cache)"),
        ((things(), "/pool"), "all else by keyword"),
        ((things(), things()), "two pools have the name 'db'"),
        ((things(name="ready"),), "choose another name"),
    ],
)
def test_install_pools_changes_nothing_if_it_refuses(pools: tuple[Any, ...], says: str) -> None:
    """It takes pools as separate arguments."""
    app = FastAPI()
    lifespan = app.router.lifespan_context
    refused(install_pools, app, *pools, says=says)
    assert app.router.lifespan_context is lifespan
    assert app.user_middleware == []


@pytest.mark.parametrize("app", [things(), APIRouter(), FastAPI, None, "app"])
def test_install_pools_takes_the_application_first(app: Any) -> None:
    refused(install_pools, app, things(), says="install_pools(app, db)")


def test_install_pools_comes_before_the_start() -> None:
    app = FastAPI()
    with TestClient(app):
        refused(install_pools, app, things(), says="right after FastAPI(...)")


def admin(_: Any) -> Iterator[bool]:
    yield True


async def admin_async(_: Any) -> AsyncIterator[bool]:
    yield True


class Admin:
    def __call__(self, _: Any) -> Iterator[bool]:
        yield True


YIELDING = (admin, admin_async, Admin(), partial(admin), contextmanager(admin))
MISFITS = (lambda: True, lambda _, role: role, lambda *, request: request)
BEYOND = (float("nan"), float("inf"), 10**400)

OPTIONS: list[tuple[dict[str, Any], str]] = [
    *(({"prefix": prefix}, 'such as "/pool"') for prefix in ("pool", "", "/", "/pool/", "/{x}", None, 5)),
    *(({"service": service}, 'as service="orders"') for service in ("", "a b", "a/b", "a\n", "x" * 51, 5, True)),
    *(({"details": details}, 'details="never", "authorized" or "always"') for details in (True, 5, "Always")),
    ({"details": "authorized"}, "needs authorize="),
    ({"details": "authorized", "authorize": "token"}, "must be callable, as authorize=lambda"),
    *(({"details": "authorized", "authorize": yields}, "must not yield") for yields in YIELDING),
    *(({"details": "authorized", "authorize": takes}, "with one argument, the request") for takes in MISFITS),
    *(
        ({"probe_max_age": age}, "probe_max_age=2.0")
        for age in (-1, "5", None, float("nan"), float("inf"), 10**400, True)
    ),
    *(({"probe_timeout": age}, "probe_timeout=2.0") for age in (0, -1, "5", None, *BEYOND, True)),
]


@pytest.mark.parametrize(("options", "says"), OPTIONS)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], says: str) -> None:
    app = FastAPI()
    lifespan = app.router.lifespan_context
    refused(install_pools, app, things(), says=says, **options)
    assert (app.user_middleware, app.router.lifespan_context) == ([], lifespan)
    refused(PoolMiddleware, app, says=says, **options)


@pytest.mark.parametrize("optional", [things(name="cache"), ["cache"], "cache", {"cache": things()}, 5])
def test_optional_pools_are_a_list(optional: Any) -> None:
    refused(install_pools, FastAPI(), things(), optional=optional, says="optional=[cache]")


def test_a_pool_is_needed_or_optional_and_not_both() -> None:
    pool = things()
    refused(install_pools, FastAPI(), pool, optional=[pool], says="two pools have the name 'db'")


@pytest.mark.parametrize("pools", [things(), ["db"], "db", {"db": things()}, 5])
def test_the_middleware_takes_pools_as_a_list(pools: Any) -> None:
    refused(PoolMiddleware, FastAPI(), pools=pools, says="pools=[db]")


def test_probe_max_age_may_be_zero_to_probe_each_time() -> None:
    install_pools(FastAPI(), things(), probe_max_age=0, probe_timeout=1)


def test_every_public_name_says_what_it_raises() -> None:
    for name in (Leased, Pooled, pool_lifespan, install_pools, PoolMiddleware.__init__):
        assert "PoolConfigError: " in textwrap.dedent(inspect.getdoc(name) or "")
