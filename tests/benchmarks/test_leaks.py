"""The leak matrix: a pool that lets things through is found out, and equal answers share a column."""

import asyncio

from benchmarks import leaks


def test_pool_that_lets_things_through_is_found_out() -> None:
    found = asyncio.run(leaks.measured("asyncpg.Pool"))
    assert "## PostgreSQL" in found
    assert "| left: a role (SET ROLE) | seen |" in found
    assert "| left: a failed transaction | gone |" in found
    assert "| callers, while the server is full | fails |" in found
    assert "| TLS, where the server speaks it | is used |" in found


def test_equal_answers_share_a_column() -> None:
    found = leaks.table({"one": {"a": "gone"}, "two": {"a": "seen"}, "three": {"a": "gone"}})
    assert found == "| | `one`<br>`three` | `two` |\n| --- | --- | --- |\n| a | gone | seen |"
