"""PreparedLease: a lease that a function of the user's prepares before the request gets it."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, params
from starlette.requests import HTTPConnection

from .._runtime.callables import yields
from ..errors import PoolConfigError
from .request import RequestLeases

BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

# Names of parameters that no `prepare` of a user's has.
LENT, CONNECTION = "connectionpools_fastapi_lent", "connectionpools_fastapi_connection"


class PreparedLease:
    """A dependency on a lease, and on what its `prepare` asks for; equal to any other one of the same two.

    FastAPI solves what `prepare` asks for first, so a request that is refused there leases nothing.

    Attributes:
        lease: The dependency that leases.
        prepare: The callable.
    """

    def __init__(self, lease: params.Depends, prepare: Callable[..., object]) -> None:
        """Read the parameters of `prepare`; the first one takes the resource.

        Raises:
            PoolConfigError: If it is no such callable.
        """
        self.lease: Any = lease.dependency
        self.prepare = prepare
        self._key = (lease.dependency, lease.scope, prepare)
        keyword = inspect.Parameter.KEYWORD_ONLY
        self.__signature__ = inspect.Signature(
            [
                *_asked_for(prepare),
                inspect.Parameter(CONNECTION, keyword, annotation=Annotated[Any, Depends(_connection)]),
                inspect.Parameter(LENT, keyword, annotation=Annotated[Any, lease]),
            ]
        )

    async def __call__(self, **values: Any) -> Any:
        """Prepare what was leased."""
        lent, scope = values.pop(LENT), values.pop(CONNECTION).scope
        pool = self.lease.resolve(scope)
        await RequestLeases.of(scope).prepare(pool, self.prepare, partial(self.prepare, **values))
        return lent

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PreparedLease) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


async def _connection(connection: HTTPConnection) -> HTTPConnection:
    # A dependency of its own: FastAPI fills one such parameter of a function, and `prepare` may have it.
    return connection


def _asked_for(prepare: Any) -> list[inspect.Parameter]:
    """Return the parameters that FastAPI has to fill, by keyword."""
    if not callable(prepare) or yields(prepare):
        raise _misfit(f"must be a function that takes the resource and does not yield; got {prepare!r}")
    parameters = list(inspect.signature(prepare).parameters.values())
    if not parameters or parameters[0].kind not in BY_POSITION:
        raise _misfit("takes the resource first, as `async def set_tenant(conn, request: Request)`")
    names = getattr(inspect.unwrap(prepare), "__globals__", None) or getattr(type(prepare).__call__, "__globals__", {})
    asked: list[inspect.Parameter] = []
    for each in parameters[1:]:
        if each.kind not in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
            raise _misfit(f"must not take {each}: FastAPI has to know its parameters")
        annotation = each.annotation
        if isinstance(annotation, str):  # as `from __future__ import annotations` makes it
            try:
                annotation = eval(annotation, names)  # noqa: S307 - the user's own code
            except NameError:
                raise _misfit(f"has a parameter whose type is not known here: {each}; import it") from None
        if annotation is each.empty and each.default is each.empty:
            raise _misfit(
                f"does not say what {each.name} is: write `{each.name}: Request`, or "
                f"`{each.name}: Annotated[str, Depends(current_tenant)]`"
            )
        asked.append(each.replace(kind=each.KEYWORD_ONLY, annotation=annotation))
    return asked


def _misfit(what: str) -> PoolConfigError:
    return PoolConfigError(f"Leased: prepare {what}")
