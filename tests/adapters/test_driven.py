"""A coroutine that is awaited as a future, without a task of its own."""

import asyncio

import pytest

from connectionpools_fastapi.adapters._driven import Driven

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)]


async def test_coroutine_runs_at_once_up_to_first_future() -> None:
    gate: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    seen = []

    async def work() -> int:
        seen.append("begun")
        return await gate + await gate

    driven = Driven(work())
    assert seen == ["begun"]
    gate.set_result(2)
    assert await driven == 4


async def test_coroutine_that_awaits_nothing_is_done_at_once() -> None:
    async def work() -> str:
        return "done"

    assert Driven(work()).result() == "done"


async def test_coroutine_may_let_others_go_first() -> None:
    async def work() -> str:
        await asyncio.sleep(0)
        return "done"

    driven = Driven(work())
    assert not driven.done()
    assert await driven == "done"


async def test_error_of_coroutine_is_that_of_future() -> None:
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        try:
            await gate
        except ConnectionError:
            raise ValueError("as it ends") from None

    driven = Driven(work())
    gate.set_exception(ConnectionError())
    with pytest.raises(ValueError, match="as it ends"):
        await driven


async def test_cancelling_cancels_what_is_awaited() -> None:
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    driven = Driven(gate_of(gate))
    assert driven.cancel()
    with pytest.raises(asyncio.CancelledError):
        await driven
    assert gate.cancelled()
    assert driven.cancelled()
    assert not driven.cancel()


async def test_coroutine_may_end_otherwise_when_cancelled() -> None:
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work() -> str:
        try:
            await gate
        except asyncio.CancelledError:
            return "tidied"
        return "not cancelled"

    driven = Driven(work())
    driven.cancel()
    assert await driven == "tidied"


async def gate_of(gate: asyncio.Future[None]) -> None:
    await gate
