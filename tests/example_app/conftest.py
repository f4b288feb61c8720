"""What the tests of the example application share."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest

from connectionpools_fastapi import accelerated
from connectionpools_fastapi.testing import guard

ALLOWED: Any = {
    "stream": "an export reads the next links while it sends, and a client that reads slowly holds a connection"
}


@pytest.fixture(autouse=True)
def _guarded(request: pytest.FixtureRequest) -> Iterator[None]:
    """Look on at all requests, as `pytest --pool-guard` does."""
    marks = request.node.iter_markers("pool_guard_allow")
    allowed = {**ALLOWED, **{kind: mark.kwargs["reason"] for mark in marks for kind in mark.args}}
    with nullcontext() if accelerated else guard(allow=allowed):
        yield
