"""Connections that do nothing, for pools which insist on those of their driver: so that only the pool is measured."""

from types import SimpleNamespace, TracebackType
from typing import Any, Self

from psycopg.pq import TransactionStatus


class Stub:
    """What psycopg_pool and SQLAlchemy ask of a connection."""

    pgconn = SimpleNamespace(transaction_status=TransactionStatus.IDLE, _close_notify=None)


class AsyncStub(Stub):
    """A connection for tasks."""

    @classmethod
    async def connect(cls, _conninfo: str, **_options: Any) -> Self:
        return cls()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    async def rollback(self) -> None:
        return None

    async def close(self) -> None:
        return None


class SyncStub(Stub):
    """A connection for threads."""

    @classmethod
    def connect(cls, _conninfo: str, **_options: Any) -> Self:
        return cls()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None

    def rollback(self) -> None:
        return None

    def close(self) -> None:
        return None
