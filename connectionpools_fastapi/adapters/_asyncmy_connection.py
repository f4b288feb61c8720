"""Connections of asyncmy that can be lent for one lease, and be reset after it."""

# ruff: noqa: SLF001 - stands for a connection of asyncmy, with its private members

import asyncio
from typing import Any, Self

import asyncmy.connection

from ._mysql_connection import Leasable, reads_result, waits

Driver: Any = asyncmy.connection.Connection
# The attributes that asyncmy keeps outside of the object's dictionary.
FIELDS = [
    name
    for kind in Driver.__mro__[1:-1]
    for name, value in vars(kind).items()
    if type(value).__name__ == "getset_descriptor" and not name.startswith("__")
]


class Connection(Leasable, Driver):  # type: ignore[misc] # typed in part
    """A connection of the pool, or the object of one lease."""

    _proto: Any

    read_packet = waits(Driver.read_packet)
    _fill_buffer = waits(Driver._fill_buffer)
    _read_query_result = reads_result(Driver._read_query_result)

    async def open(self) -> None:
        """Connect."""
        await super().connect()

    async def connect(self) -> None:
        self.refuse_reconnecting()

    def cursor(self, *args: Any) -> Any:
        self.check_lease()
        return super().cursor(*args)

    def close(self) -> None:
        if self.loan is None or not self.loan.is_over:  # asyncmy also closes when unread rows are collected
            super().close()

    @property
    def transport(self) -> asyncio.Transport | None:
        transport: asyncio.Transport | None = self._transport
        return transport

    @property
    def is_open(self) -> bool:
        return not self._stream_broken

    @property
    def is_quiet(self) -> bool:
        return bool(self._proto.length == self._proto.pos)

    def new(self) -> Self:
        lent = type(self).__new__(type(self))
        lent.__dict__.update(self.__dict__, lent=None, _unpreparable=set())
        for name in FIELDS:
            setattr(lent, name, getattr(self, name))
        lent._stmt_cache = {}  # each statement knows its connection
        return lent

    def forget(self) -> None:
        loan = self.loan
        self.__dict__.clear()
        self.loan = loan
        self._transport = self._proto = self._result = None
        self._connected = False

    def settings(self) -> dict[str, Any]:
        db = self._db
        return {
            "charset": self._charset,
            "autocommit": self.autocommit_mode,
            "sql_mode": self._sql_mode,
            "init_command": self._init_command,
            "db": db.decode(self._encoding) if isinstance(db, bytes) else db,  # which it encodes when it connects
        }
