"""The endpoints answer as their description at /pool/openapi.json says, to whatever schemathesis makes of it."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok
from starlette.requests import HTTPConnection

from connectionpools_fastapi import ConnectionPool, PoolMiddleware
from tests.web import things

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")  # schemathesis does

TOKEN = "the-token"  # noqa: S105 - no real one


def by_token(connection: HTTPConnection) -> bool:
    return connection.headers.get("authorization") == TOKEN


def refuse() -> object:
    raise ConnectionRefusedError


db, down = things(name="db"), ConnectionPool(create=refuse, name="down", blocking=False, timeout=0)
app = FastAPI()
app.add_middleware(
    PoolMiddleware, pools=[db], optional=[down], authorize=by_token, control=by_token, probe_timeout=0.05
)
operations = schemathesis.openapi.from_asgi("/pool/openapi.json", app).get_all_operations()
described = {found.ok().label: found.ok() for found in operations if isinstance(found, Ok)}


@pytest.fixture(autouse=True, scope="module")
def pools() -> Iterator[None]:
    """Open the pools, one of which has a lease, and one no back-end."""
    with db, down, db.lease(holder="GET /private"):
        yield


@pytest.mark.parametrize("label", described)
def test_answers_are_as_described(label: str) -> None:
    @settings(max_examples=30)
    @given(described[label].as_strategy(), st.booleans())
    def ask(case: Any, is_authorized: bool) -> None:  # noqa: FBT001 - hypothesis draws it
        case.call_and_validate(headers={"Authorization": TOKEN} if is_authorized else {})

    ask()
