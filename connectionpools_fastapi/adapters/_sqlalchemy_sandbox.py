"""The sandboxes of SQLAlchemy's managers: that of the driver's manager, below SQLAlchemy's connections."""

# ruff: noqa: SLF001 - the connections are of this package

from typing import Any

from connectionpools_fastapi import Loan
from connectionpools_fastapi.manager import ResourceManager

from ..errors import PoolError, own
from ._options import awaited


class _SqlalchemySandbox(ResourceManager[Any]):
    """What both sandboxes do."""

    def __init__(self, manager: ResourceManager[Any], connection: Any, below: ResourceManager[Any]) -> None:
        self._manager = manager
        self._connection = connection
        self._below = below

    def lend(self, resource: Any, loan: Loan) -> Any:
        driven = self._below.lend(resource.driven, loan)
        lent = resource.lend(driven, loan)
        if hasattr(getattr(driven, "_protocol", None), "undo_alone"):
            _undo_failed_prepares(lent.sync_connection.connection.dbapi_connection, driven._protocol)
        return lent

    def refuse_prepare(self) -> str | None:
        return self._below.refuse_prepare()

    @staticmethod
    def end_lease(connection: Any) -> None:
        if not connection.is_usable:
            raise own(PoolError("the connection is closed, or was invalidated"))
        connection.end_lease()
        # An isolation level was set on objects of the lease, and not on the connection, which could not set it back.
        connection._fairy._connection_record.finalize_callback.clear()


def _undo_failed_prepares(adapter: Any, wire: Any) -> None:
    """Undo a statement of asyncpg that SQLAlchemy fails to prepare: it prepares beside the object of the lease."""
    own = adapter._prepare

    async def prepare(*args: Any) -> Any:
        try:
            return await own(*args)
        except Exception:
            await wire.undo_alone()
            raise

    adapter._prepare = prepare


class SqlalchemySandbox(_SqlalchemySandbox):
    """The hooks of one sandbox of SqlalchemyManager."""

    async def create(self) -> Any:
        await awaited(self._below.create())
        return self._connection

    async def change(self, resource: Any) -> None:
        self.end_lease(resource)
        await awaited(self._below.change(resource.driven))

    async def prepared(self, resource: Any) -> None:
        await awaited(self._manager.prepared(resource))


class SyncSqlalchemySandbox(_SqlalchemySandbox):
    """The hooks of one sandbox of SyncSqlalchemyManager."""

    def create(self) -> Any:
        self._below.create()
        return self._connection

    def change(self, resource: Any) -> None:
        self.end_lease(resource)
        self._below.change(resource.driven)

    def prepared(self, resource: Any) -> None:
        self._manager.prepared(resource)
