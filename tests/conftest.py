"""What all tests share."""

from typing import Any

import pytest
from hypothesis import settings

from tests.servers import postgres_url, redis_url  # noqa: F401 - fixtures
from tests.support import jumping

# A failure prints how to run it again; random runs stay random.
settings.register_profile("default", print_blob=True, deadline=None)
settings.load_profile("default")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run each async test on both libraries; in virtual time where it is marked `virtual_time`."""
    if request.node.get_closest_marker("virtual_time") is not None:
        return jumping(request.param)
    return request.param


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "virtual_time: the time of the loop jumps to the next timer when idle")
