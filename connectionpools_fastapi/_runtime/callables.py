"""What a pool can tell of a callable before it calls it."""

import inspect
from collections.abc import Callable
from typing import Any


def is_async(function: Any) -> bool:
    """Whether a call runs in the event loop: the callable is `async def`, or an object whose `__call__` is."""
    return any(inspect.iscoroutinefunction(kind) or inspect.isasyncgenfunction(kind) for kind in _kinds(function))


def yields(function: Any) -> bool:
    """Whether a call makes a generator, which is truthy and runs nothing."""
    kinds = _kinds(inspect.unwrap(function))
    return any(inspect.isgeneratorfunction(kind) or inspect.isasyncgenfunction(kind) for kind in kinds)


def misfit(function: Callable[..., Any], *arguments: object) -> str | None:
    """Name the parameters of a callable that does not take these arguments; None if it does, as far as known."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a built-in without a signature
        return None
    try:
        signature.bind(*arguments)
    except TypeError:
        return ", ".join(signature.parameters)
    return None


def _kinds(function: Any) -> tuple[Any, Any]:
    return function, getattr(type(function), "__call__", None)  # noqa: B004 - a class's own
