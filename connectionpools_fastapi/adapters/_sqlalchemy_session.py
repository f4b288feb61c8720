"""LeasedSession: a session of SQLAlchemy on a leased connection; needs SQLAlchemy."""

import inspect
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, TypeVar, Unpack, overload

import anyio
from anyio.lowlevel import RunVar
from fastapi import Depends
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from connectionpools_fastapi import Leased, LeaseOptions

from ..errors import PoolConfigError
from ..pool import ConnectionPool

AnySession = TypeVar("AnySession", bound=AsyncSession | Session)

# Sync sessions end on threads of this limiter: those of endpoints may all be waiting for a connection.
THREADS = 40
_threads = RunVar[anyio.CapacityLimiter]("connectionpools_fastapi_session_threads")


@overload
def LeasedSession(
    pool: ConnectionPool[AsyncConnection] | ConnectionPool[Connection] | str,
    make: None = None,
    *,
    class_: type[AnySession],
    **options: Unpack[LeaseOptions],
) -> AnySession: ...


@overload
def LeasedSession(
    pool: ConnectionPool[AsyncConnection], make: None = None, **options: Unpack[LeaseOptions]
) -> AsyncSession: ...


@overload
def LeasedSession(pool: ConnectionPool[Connection], make: None = None, **options: Unpack[LeaseOptions]) -> Session: ...


@overload
def LeasedSession(pool: str, make: None = None, **options: Unpack[LeaseOptions]) -> Any: ...


@overload
def LeasedSession(
    pool: ConnectionPool[AsyncConnection] | ConnectionPool[Connection] | str,
    make: Callable[..., AnySession],
    **options: Unpack[LeaseOptions],
) -> AnySession: ...


def LeasedSession(  # noqa: N802 - as Leased
    pool: ConnectionPool[AsyncConnection] | ConnectionPool[Connection] | str,
    make: Callable[..., Any] | None = None,
    *,
    class_: type[Any] | None = None,
    **options: Unpack[LeaseOptions],
) -> Any:
    """Declare that an endpoint or dependency needs a session on a leased connection.

    Write `Session = Annotated[AsyncSession, LeasedSession(db)]` once: all dependencies of a
    request that declare it share one session. A pool of SqlalchemyManager gives an AsyncSession,
    one of SyncSqlalchemyManager a Session, for `def` endpoints. It commits after the endpoint has
    returned and before the first part of the response is sent: if the commit fails, the client gets
    an error, never a success. An exception, also an HTTPException, rolls back. An error that is
    returned as a response commits, since the endpoint has returned.

    Then the session ends, and the connection is given back. A stream or a background task that
    still uses the session gets NotLeased. It has to lease for itself:
    `async with db.lease() as conn, AsyncSession(conn) as session`, or
    `with db.lease() as conn, Session(conn) as session`.

    A request waits for a connection in the event loop, and holds no worker thread meanwhile. A
    `def` endpoint uses its session on its own thread; commit and rollback come after it, on another.

    Args:
        pool: The pool, or its name, which is looked up among the pools that the lifespan opened.
        make: Makes a session from its `bind` and other options: `async_sessionmaker(...)` or
            `sessionmaker(...)`. By default it is `class_`.
        class_: The class of the session, as `sqlmodel.Session`; by default AsyncSession or Session.
            Its objects stay as they are after the commit (`expire_on_commit=False`).
        **options: `timeout`, `priority`, `on_disconnect` and `prepare` of the lease, as `Leased` takes them;
            `prepare` gets the connection, before it has a session. A client that hangs up during the commit cancels it
            too, and it may have happened.

    Returns:
        A FastAPI dependency.

    Raises:
        PoolConfigError: If an argument is none of these, or both `make` and `class_` are given.
    """
    if make is not None and class_ is not None:
        raise PoolConfigError("LeasedSession: pass make or class_, not both")
    if make is not None and not callable(make):
        raise PoolConfigError(f"LeasedSession: make must be callable, as async_sessionmaker(); got {make!r}")
    if class_ is not None and not (isinstance(class_, type) and issubclass(class_, (Session, AsyncSession))):
        raise PoolConfigError(f"LeasedSession: class_ must be a kind of Session or AsyncSession; got {class_!r}")
    return Depends(_SessionUntilReturn(pool, make, class_, options), scope="function")


class _SessionUntilReturn:
    """Provides a session; equal to any other one with the same arguments, like `Leased`."""

    def __init__(
        self, pool: Any, make: Callable[..., Any] | None, class_: type[Any] | None, options: LeaseOptions
    ) -> None:
        lease = Leased(pool, scope="function", **options)
        self._make, self._class = make, class_
        self._key = (lease.dependency, make, class_)
        # FastAPI reads from this signature that it has to lease first.
        self.__signature__ = inspect.Signature(
            [inspect.Parameter("connection", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[Any, lease])]
        )

    def _made(self, connection: Any) -> Any:
        # The mode holds even if the endpoint has used the connection before.
        options = {"bind": connection, "join_transaction_mode": "control_fully"}
        if self._make is not None:
            return self._make(**options)
        default = AsyncSession if isinstance(connection, AsyncConnection) else Session
        kind: Callable[..., Any] = default if self._class is None else self._class
        return kind(**options, expire_on_commit=False)

    async def __call__(self, connection: Any) -> AsyncIterator[Any]:
        session = self._made(connection)
        if isinstance(session, AsyncSession):
            async with session:
                yield session
                await session.commit()
            return
        try:
            yield session
            await _in_thread(session.commit)
        finally:
            with anyio.CancelScope(shield=True):
                await _in_thread(session.close)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SessionUntilReturn) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


async def _in_thread(act: Callable[[], None]) -> None:
    try:
        threads = _threads.get()
    except LookupError:
        _threads.set(threads := anyio.CapacityLimiter(THREADS))
    await anyio.to_thread.run_sync(act, limiter=threads)
