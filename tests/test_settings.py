"""A pool's numbers come from the environment."""

import inspect

import pytest
from pydantic import ValidationError

from connectionpools_fastapi import ConnectionPool, PoolConfigError
from connectionpools_fastapi.settings import PoolSettings


def test_what_the_environment_sets_reaches_the_pool_and_the_rest_keeps_its_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POOL_LIMIT", "7")
    monkeypatch.setenv("POOL_TIMEOUT", "0.5")
    assert PoolSettings().options() == {"limit": 7, "timeout": 0.5}
    assert ConnectionPool(create=object, **PoolSettings().options()).limit == 7


def test_each_pool_can_have_a_prefix_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_POOL_LIMIT", "3")
    assert PoolSettings.of("CACHE_POOL_").options() == {"limit": 3}
    assert PoolSettings().options() == {}


def test_nonsense_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POOL_LIMIT", "many")
    with pytest.raises(ValidationError, match="limit"):
        PoolSettings()
    monkeypatch.setenv("POOL_LIMIT", "0")
    with pytest.raises(PoolConfigError, match="limit must be a positive whole number"):
        ConnectionPool(create=object, **PoolSettings().options())


def test_every_number_of_a_pool_can_be_set() -> None:
    parameters = set(inspect.signature(ConnectionPool).parameters)
    hooks = {"manager", "create", "check", "doubtful", "change", "clean"}
    of_the_code = {"name", "blocking", "clock"}
    assert set(PoolSettings.model_fields) == parameters - hooks - of_the_code
