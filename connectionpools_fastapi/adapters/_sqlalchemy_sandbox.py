"""The sandboxes of SQLAlchemy's managers: that of the driver's manager, below SQLAlchemy's connections."""

# ruff: noqa: SLF001 - the connections are of this package

from typing import Any

from connectionpools_fastapi import Loan
from connectionpools_fastapi.manager import ResourceManager, telling

from ..errors import PoolError, own
from ._options import awaited
from ._sqlalchemy_connection import LOST


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
            _tell_of_prepares(lent.sync_connection.connection.dbapi_connection, driven._protocol)
        return lent

    def refuse_prepare(self) -> str | None:
        return self._below.refuse_prepare()

    @staticmethod
    def end_lease(connection: Any) -> None:
        if not connection.is_usable:
            raise own(PoolError("the connection is closed, or was invalidated"))
        loan = connection.end_lease()
        # An isolation level was set on objects of the lease, and not on the connection, which could not set it back.
        connection._fairy._connection_record.finalize_callback.clear()
        if loan is not None:
            loan.warn(LOST)


def _tell_of_prepares(adapter: Any, wire: Any) -> None:
    """Tell the object of a lease what SQLAlchemy prepares beside it, by asyncpg, and undo it there if that fails."""
    own = adapter._prepare

    async def prepare(operation: str, *args: Any) -> Any:
        wire.look_at(operation)
        try:
            return await own(operation, *args)
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

    async def change_and_tell(self, resource: Any) -> list[str]:
        self.end_lease(resource)
        return list(await awaited(telling(self._below)(resource.driven)) or ())

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

    def change_and_tell(self, resource: Any) -> list[str]:
        self.end_lease(resource)
        return list(telling(self._below)(resource.driven) or ())

    def prepared(self, resource: Any) -> None:
        self._manager.prepared(resource)
