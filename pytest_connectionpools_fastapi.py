"""The pytest plugin of connectionpools_fastapi: fixtures for the tests of an application; needs the extra `pytest`.

It imports the package, and FastAPI, only in tests that use one of its fixtures.
"""

import inspect
import os
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

MARKS = (
    "pool_guard_allow(*kinds, reason): what --pool-guard allows this test, and why",
    "pool_sandbox(*names): the pools that the fixture pool_sandbox puts into a sandbox; without it all that can be",
)


LOOP_SCOPES: Any = ("function", "class", "module", "package", "session")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("connectionpools_fastapi")
    group.addoption(
        "--pool-guard",
        action="store_true",
        help="fail a test whose requests hold a lease through a stream or an HTTP call, lose it, use it late, or leave "
        "work or state",
    )
    group.addoption(
        "--pool-report",
        metavar="FILE",
        help="write a table of the leases of each route, and for how long they were held, as Markdown",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Have the pool run in Python where it is looked on at: it is not imported yet, and workers inherit this."""
    asked = early_config.known_args_namespace
    if asked.pool_guard or asked.pool_report:
        os.environ["CONNECTIONPOOLS_PURE"] = "1"


class _Report:
    """Counts what requests take, in each process of the run, and writes one table at its end."""

    def __init__(self, file: str) -> None:
        from connectionpools_fastapi.testing._report import recorder

        self._file = file
        self._recorder = recorder()
        self._records: list[Any] = []

    def pytest_sessionstart(self) -> None:
        self._recorder.__enter__()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:  # of pytest-xdist: a worker has ended
        if "pool_report" in getattr(node, "workeroutput", {}):
            self._records.append(node.workeroutput["pool_report"])

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        from connectionpools_fastapi.testing._report import table_of

        self._recorder.__exit__(None, None, None)
        record = self._recorder.record()
        output = getattr(session.config, "workeroutput", None)  # in a worker of pytest-xdist
        if output is not None:
            output["pool_report"] = record
        else:
            Path(self._file).write_text(table_of([record, *self._records]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Look on at the leases of a test."""
    if not item.config.getoption("--pool-guard"):
        return (yield)
    from connectionpools_fastapi.testing import GuardError, guard

    allowed = {
        kind: mark.kwargs.get("reason", "") for mark in item.iter_markers("pool_guard_allow") for kind in mark.args
    }
    try:
        with guard(allow=allowed):
            return (yield)
    except GuardError as error:
        pytest.fail(str(error), pytrace=False)  # a traceback would show the guard, and not the route


@pytest.fixture
def started_app(request: pytest.FixtureRequest, app: Any) -> Iterator[Any]:  # noqa: ARG001 - which may have parameters
    """Run the lifespan of the application that your fixture `app` returns, and yield a client that speaks to it.

    In an `async def` test it is an httpx.AsyncClient, and all runs in the loop of the test, of pytest-asyncio or
    anyio's plugin. In a `def` test it is a TestClient.
    """
    yield from _provide(request, "started_app")


@pytest.fixture
def pool_sandbox(request: pytest.FixtureRequest, started_app: Any) -> Iterator[Any]:  # noqa: ARG001 - for its effect
    """Put the pools of the started application into sandboxes until the test ends; yield them by their names.

    The mark `pool_sandbox("db")` names the pools; without it these are all whose managers have a sandbox.
    """
    yield from _provide(request, "pool_sandbox")


def _provide(request: pytest.FixtureRequest, name: str) -> Iterator[Any]:
    """Provide the fixture that fits the test: of anyio's plugin, of pytest-asyncio, or without a loop."""
    if not inspect.iscoroutinefunction(request.function):
        kind = "sync"
    elif type(request.node).__module__.startswith("pytest_asyncio"):  # also in its mode "auto"
        kind = f"asyncio_{getattr(request.node, '_loop_scope', 'function')}"
    elif "anyio_backend" in request.fixturenames:
        kind = "anyio"
    else:
        pytest.fail(f"{name} in an async test needs @pytest.mark.anyio, or pytest-asyncio and its mark")
    yield request.getfixturevalue(f"_{name}_of_{kind}")


def _names_of(request: pytest.FixtureRequest) -> tuple[str, ...]:
    mark = request.node.get_closest_marker("pool_sandbox")
    return () if mark is None else mark.args


async def _started_app(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    from connectionpools_fastapi.testing._fixtures import started_client

    async with started_client(request.getfixturevalue("app")) as client:
        yield client


async def _pool_sandbox(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    from connectionpools_fastapi.testing._fixtures import sandboxes

    async with sandboxes(request.getfixturevalue("app"), _names_of(request)) as pools:
        yield pools


# anyio's plugin takes async fixtures of plain pytest, in tests with its mark.
_started_app_of_anyio = pytest.fixture(_started_app, name="_started_app_of_anyio")
_pool_sandbox_of_anyio = pytest.fixture(_pool_sandbox, name="_pool_sandbox_of_anyio")


@pytest.fixture
def _started_app_of_sync(request: pytest.FixtureRequest) -> Iterator[Any]:
    from connectionpools_fastapi.testing._fixtures import started_test_client

    with started_test_client(request.getfixturevalue("app")) as client:
        yield client


@pytest.fixture
def _pool_sandbox_of_sync(request: pytest.FixtureRequest) -> Iterator[Any]:
    from connectionpools_fastapi.testing._fixtures import sync_sandboxes

    with sync_sandboxes(request.getfixturevalue("app"), _names_of(request)) as pools:
        yield pools


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks, and the fixtures for pytest-asyncio where it is there."""
    for mark in MARKS:
        config.addinivalue_line("markers", mark)
    if (file := config.getoption("--pool-report")) is not None:
        config.pluginmanager.register(_Report(file))
    if config.pluginmanager.has_plugin("asyncio"):
        import pytest_asyncio

        fixtures = ModuleType("connectionpools_fastapi_asyncio")  # pytest-asyncio takes its own fixtures only
        for scope in LOOP_SCOPES:  # the loop of a test may be that of its module, or of all tests
            for what, of in (("started_app", _started_app), ("pool_sandbox", _pool_sandbox)):
                name = f"_{what}_of_asyncio_{scope}"
                copy: Any = FunctionType(of.__code__, of.__globals__)  # pytest-asyncio notes the scope on the function
                setattr(fixtures, name, pytest_asyncio.fixture(copy, name=name, loop_scope=scope))
        config.pluginmanager.register(fixtures)
