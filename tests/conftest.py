"""What all tests share."""

import gc
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis.strategies import none

from connectionpools_fastapi import accelerated
from tests import programs
from tests.servers import mariadb_server, postgres_url, rabbitmq_url, redis_url  # noqa: F401 - fixtures
from tests.support import jumping
from tests.wires import proxy  # noqa: F401 - as above

# A failure prints how to run it again; random runs stay random.
settings.register_profile("default", print_blob=True, deadline=None)
settings.load_profile("default")


@pytest.fixture(scope="session", autouse=True)
def _random_generator_of_hypothesis() -> None:
    """Have hypothesis make its generator first: it asks the collector for referrers, and frozen objects are none."""
    given(none())(lambda _: None)()


@pytest.fixture(scope="module", autouse=True)
def _few_to_collect(_random_generator_of_hypothesis: None) -> None:
    """Have collections of garbage pass over what is there by now, imports above all: most of it stays."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run each async test on both libraries; in virtual time where it is marked `virtual_time`."""
    if request.node.get_closest_marker("virtual_time") is not None:
        return jumping(request.param)
    return request.param


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers; end a run that would test something else than it is for."""
    expected = os.environ.get("EXPECT_ACCELERATED")
    if expected not in {None, str(int(accelerated))}:
        pytest.exit(f"EXPECT_ACCELERATED={expected}, but connectionpools_fastapi.accelerated is {accelerated}", 3)
    config.addinivalue_line("markers", "virtual_time: the time of the loop jumps to the next timer when idle")
    config.addinivalue_line(
        "markers", "needs_python: skipped where the hot path runs compiled; it patches methods, or steps through lines"
    )
    config.addinivalue_line("markers", "needs_program(name): skipped where the program is missing; no wheel brings it")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """See to the programs that a test needs."""
    programs.see_to_programs(item)
    if accelerated and item.get_closest_marker("needs_python") is not None:
        pytest.skip("needs the hot path in Python: CONNECTIONPOOLS_PURE=1")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end what was not run."""
    for line in programs.closing_lines(terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(line, yellow=True)
