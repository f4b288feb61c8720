"""A pool's numbers come from the environment."""

import inspect
from dataclasses import fields
from typing import get_type_hints

import pytest
from pydantic import ValidationError

from connectionpools_fastapi import ConnectionPool, PoolConfigError
from connectionpools_fastapi._core.policy import Options, Policy
from connectionpools_fastapi.settings import PoolSettings


def test_environment_overrides_only_the_options_it_sets(
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


def test_options_are_the_same_wherever_stated() -> None:
    """The signature and the settings are what a user reads in an editor, so they state the options again."""
    hooks = {"manager", "create", "check", "doubtful", "change", "clean", "lend", "broken"}
    of_the_code = {"name", "budget", "blocking", "clock"}
    stated = {name: of for name, of in inspect.signature(ConnectionPool).parameters.items() if name not in hooks}
    types = {name: of.annotation for name, of in stated.items()}
    assert types == get_type_hints(Options)
    policy = {field.name: (field.type, field.default) for field in fields(Policy)}
    assert policy == {name: (types[name], stated[name].default) for name in stated if name in policy}
    assert stated.keys() - policy.keys() == {"blocking", "clock"}
    settings = {name: field.annotation for name, field in PoolSettings.model_fields.items()}
    assert settings == {name: kind | None for name, kind in types.items() if name not in of_the_code}
