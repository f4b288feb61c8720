"""Connections of aiomysql that can be lent for one lease, and be reset after it."""

# ruff: noqa: SLF001 - stands for a connection of aiomysql, with its private members

import asyncio
from typing import Any, Self

import aiomysql  # type: ignore[import-untyped] # has no types

from ._mysql_connection import Leasable, reads_result, waits


class Connection(Leasable, aiomysql.Connection):  # type: ignore[misc] # untyped
    """A connection of the pool, or the object of one lease."""

    _reader: Any
    _writer: Any
    _read_packet = waits(aiomysql.Connection._read_packet)
    _read_query_result = reads_result(aiomysql.Connection._read_query_result)

    async def open(self) -> None:
        """Connect."""
        await super()._connect()

    async def _connect(self) -> None:
        self.refuse_reconnecting()

    def _ensure_alive(self) -> None:
        self.check_lease()
        super()._ensure_alive()

    def __del__(self) -> None:
        # Else another object uses the socket, or there is none.
        if self.loan is None and self.lent is None and "_writer" in vars(self):
            super().__del__()

    @property
    def transport(self) -> asyncio.Transport | None:
        return None if self._writer is None else self._writer.transport

    @property
    def is_open(self) -> bool:
        transport = self.transport
        return not (transport is None or transport.is_closing() or self._reader.at_eof())

    @property
    def is_quiet(self) -> bool:
        return not self._reader._buffer

    def new(self) -> Self:
        lent = object.__new__(type(self))
        lent.__dict__.update(self.__dict__, lent=None)
        return lent

    def forget(self) -> None:
        self.__dict__ = {"loan": self.loan}

    def settings(self) -> dict[str, Any]:
        return {
            "charset": self._charset,
            "autocommit": self.autocommit_mode,
            "sql_mode": self.sql_mode,
            "init_command": self.init_command,
            "db": self._db,
        }
