"""Authorization: only True lets a request see details, within a time limit, and with one log line a minute."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from starlette.requests import HTTPConnection

from connectionpools_fastapi._asgi.authorization import LOG_EVERY, Authorization

pytestmark = pytest.mark.anyio

REQUEST = HTTPConnection({"type": "http", "headers": []})


async def later(answer: object) -> Any:
    await anyio.lowlevel.checkpoint()
    return answer


@pytest.mark.parametrize("answer", [True, False])
async def test_a_bool_is_the_answer(answer: bool, caplog: pytest.LogCaptureFixture) -> None:  # noqa: FBT001
    assert await Authorization(lambda _: answer, 2.0).allows(REQUEST) is answer
    assert await Authorization(lambda _: later(answer), 2.0).allows(REQUEST) is answer
    assert not caplog.records


@pytest.mark.parametrize("make", [lambda: 1, lambda: "yes", lambda: None, lambda: (True for _ in "1"), object])
async def test_anything_else_means_no(make: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> None:
    assert await Authorization(lambda _: make(), 2.0).allows(REQUEST) is False
    assert await Authorization(lambda _: later(make()), 2.0).allows(REQUEST) is False
    assert "only True means yes" in caplog.messages[0]


@pytest.mark.virtual_time
async def test_an_authorize_that_hangs_means_no_after_its_time(caplog: pytest.LogCaptureFixture) -> None:
    async def hangs(_: HTTPConnection) -> bool:
        await anyio.sleep_forever()
        raise AssertionError

    began = anyio.current_time()
    assert await Authorization(hangs, 2.0).allows(REQUEST) is False
    assert anyio.current_time() - began == pytest.approx(2.0)
    assert caplog.messages == ["no details or leases were shown, since authorize took longer than probe_timeout=2 s"]


async def test_what_fails_at_each_probe_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 1000.0

    def fails(_: HTTPConnection) -> bool:
        raise LookupError("secret")

    authorization = Authorization(fails, 2.0, clock=lambda: now)
    for _ in range(int(2 * LOG_EVERY) + 1):
        assert await authorization.allows(REQUEST) is False
        now += 1
    line = "no details or leases were shown, since authorize failed with LookupError"
    assert caplog.messages == [line, *[f"{line} (59 more times since the last such line)"] * 2]
