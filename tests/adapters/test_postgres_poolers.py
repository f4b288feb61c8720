"""What is said of poolers before a PostgreSQL, and how their mode is found out."""

import pytest

from connectionpools_fastapi.adapters._postgres import shares_sessions, verdict, warn_of_shared_sessions


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ([1, 1, 1], [2, 2, 2], False),
        ([1, 1, 1], [1, 1, 1], True),
        ([1, 2, 3], [4, 5, 6], True),
        ([1], [], False),
        ([1, 1], [2, 1], True),
    ],
)
def test_shares_sessions_compares_processes(one: list[int], other: list[int], *, shared: bool) -> None:
    assert shares_sessions(one, other) is shared


@pytest.mark.parametrize(
    ("code", "verdict_of_it"),
    [
        ("08006", "discard"),
        ("57P01", "discard"),
        ("57P02", "expire"),
        ("25P03", "discard"),
        ("23505", None),
        ("57014", None),
        ("25006", None),
        (None, None),
    ],
)
def test_verdict_follows_the_code(code: str | None, verdict_of_it: str | None) -> None:
    assert verdict(code) == verdict_of_it


def test_warning_names_manager_options_and_page(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_shared_sessions("SomeManager", "reset='transaction'")
    (message,) = caplog.messages
    assert message.startswith("SomeManager: a pooler in transaction or statement mode")
    assert "Write reset='transaction', and SET LOCAL" in message
    assert "docs/pgbouncer.md" in message
