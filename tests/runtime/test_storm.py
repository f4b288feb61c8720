"""Storm: many log lines of one kind are one line a second, with a count."""

import threading
import time
from contextlib import suppress
from typing import Any

import anyio
import pytest

from connectionpools_fastapi import ConnectionPool, PoolListener
from connectionpools_fastapi._runtime.storm import MOST_KINDS, MOST_NAMED, Failures, Storm
from tests.web import Thing, things

pytestmark = pytest.mark.anyio


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_one_event_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    storm = Storm("refusals", clock=clock)
    for _ in range(3):
        storm.note("a", "a: no")
        clock.now += 1
        storm.sum_up()
    assert caplog.messages == ["a: no"] * 3


def test_line_of_a_second_names_most_frequent_events(caplog: pytest.LogCaptureFixture) -> None:
    storm = Storm("refusals", clock=Clock())
    for number in range(MOST_NAMED + 3):
        for _ in range(100 - number):
            storm.note(f"route {number}", f"no {number}")
    storm.sum_up()
    first, more = caplog.messages
    assert first == "no 0"
    assert more.startswith("1,221 more refusals within a second: route 0 (99 times), route 1 (99 times), ")
    assert more.endswith("route 9 (91 times) and 3 other kinds; the last: no 12")


def test_without_a_loop_the_next_event_sums_up(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    storm = Storm("refusals", clock=clock)
    for _ in range(30):
        storm.note("a", "no")
        clock.now += 0.25
    assert caplog.messages[0] == "no"
    assert len(caplog.messages) <= 8
    storm.end()
    assert caplog.messages[-1] == "no more refusals for a second; there were 30 within 7.2 s"


@pytest.mark.virtual_time
async def test_a_storm_ends_by_itself_with_its_total(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    storm = Storm("refusals", clock=clock)
    for _ in range(2):
        for _ in range(5):
            storm.note("a", "no")
        await anyio.sleep(5)
        assert caplog.messages == [
            "no",
            "4 more refusals within a second: a (4 times); the last: no",
            "no more refusals for a second; there were 5 within 0.0 s",
        ]
        caplog.clear()


# --- of hooks and listeners ---------------------------------------------------------------------------


class Deaf(PoolListener):
    """Fails each time it is told something."""

    def on_release(self, pool: str, used: float) -> None:
        raise LookupError


def raises(*_: object) -> None:
    raise ConnectionError


async def use(pool: ConnectionPool[Thing]) -> None:
    for _ in range(100):
        with suppress(OSError):
            async with pool.lease():
                if pool.name == "broken":
                    raise OSError
    await anyio.wait_all_tasks_blocked()


@pytest.mark.virtual_time
@pytest.mark.parametrize("hook", ["check", "change", "clean", "broken", "on_release of a listener"])
async def test_a_hook_that_keeps_failing_is_a_line_a_second(hook: str, caplog: pytest.LogCaptureFixture) -> None:
    hooks: dict[str, Any] = {hook: raises}
    if hook == "on_release of a listener":
        hooks = {}
    elif hook == "clean":
        hooks["max_uses"] = 1
    elif hook == "check":
        hooks["check_after"] = 0
    kind = "LookupError" if hook == "on_release of a listener" else "ConnectionError"
    # No worker threads: while the loop waits for one, its time would jump.
    async with things(name=hook, blocking=False, **hooks) as pool:
        if not hooks:
            pool.add_listener(Deaf())
        await use(pool)
        count = 99 if hook == "check" else 100
        line = f"pool {hook!r}: {hook} failed with {kind}"
        assert caplog.messages == [line], "the first is told at once and in full"
        await anyio.sleep(3)
        _, more, last = caplog.messages
        assert more == (
            f"{count - 1} more failures of {hook} in pool {hook!r} within a second: {kind} ({count - 1} times); "
            f"the last: {line}"
        )
        assert last.startswith(f"no more failures of {hook} in pool {hook!r} for a second; there were {count} within ")
        caplog.clear()
        if hook == "clean":
            return
        async with pool.lease(), pool.lease():
            pass
        await anyio.wait_all_tasks_blocked()
        if hook == "change":
            assert caplog.messages == [line], "a new storm begins with a line of its own"


@pytest.mark.virtual_time
async def test_a_new_kind_of_failure_is_told_at_once_in_mid_storm(caplog: pytest.LogCaptureFixture) -> None:
    errors = iter([*[ConnectionError] * 3, LookupError, *[ConnectionError] * 3])

    def fails(_: Thing) -> None:
        raise next(errors)

    async with things(change=fails) as pool:
        for _ in range(7):
            async with pool.lease():
                pass
        assert caplog.messages == [
            "pool 'db': change failed with ConnectionError",
            "pool 'db': change failed with LookupError",
        ]
    assert "5 more failures of change in pool 'db'" in caplog.messages[2], "close leaves nothing untold"


async def test_excess_kinds_of_failures_are_counted_together(caplog: pytest.LogCaptureFixture) -> None:
    failures = Failures("db")
    for number in range(2 * MOST_KINDS):
        failures.say("change", f"Error{number}", f"change failed with Error{number}")
    assert len(caplog.messages) == MOST_KINDS + 1
    failures.end()
    assert f"{MOST_KINDS - 1} more failures of change in pool 'db'" in caplog.text


@pytest.mark.virtual_time
async def test_what_a_thread_counts_is_told_by_the_pool_s_loop(caplog: pytest.LogCaptureFixture) -> None:
    async with things(clock=time.monotonic) as pool:

        def judge() -> None:
            for _ in range(5):
                pool._engine.hooks.failures.note("broken", OSError())

        thread = threading.Thread(target=judge)
        thread.start()
        thread.join(10)
        assert len(caplog.messages) == 1
        await anyio.sleep(3)
    assert "4 more failures of broken" in caplog.messages[1]
