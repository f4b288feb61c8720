"""Connections of PyMySQL that can be lent for one lease, for SyncSqlalchemyManager."""

# ruff: noqa: SLF001 - the objects of one connection see each other's private members

from typing import Any, NoReturn, Self

import pymysql  # type: ignore[import-untyped] # has no types

from connectionpools_fastapi import Loan

from ._mysql import IN_TRANSACTION

_Connection: Any = pymysql.connections.Connection


class Connection(_Connection):  # type: ignore[misc] # untyped
    """A connection of the pool, or the object of one lease: the same socket, and its own state."""

    loan: Loan | None = None  # of a lease's object
    lent: Self | None = None  # of the pool's connection: the object of the current lease
    server = ""  # as WHICH_SERVER names it
    is_waiting = False  # whether an answer is not read to its end
    has_written = False  # in this transaction, as far as known here
    server_status: int
    _result: Any
    _next_seq_id: int

    def __getattr__(self, name: str) -> NoReturn:
        self._check_lease()
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __del__(self) -> None:
        if self.loan is None and self.lent is None:  # else another object uses the socket
            self._force_close()

    def _check_lease(self) -> None:
        if self.loan is not None:
            self.loan.check()

    def connect(self, sock: Any = None) -> None:
        if self.loan is not None:  # to a session without the settings of this lease
            self.loan.check()
            raise ConnectionError("this connection is closed or was lost; lease another one")
        super().connect(sock)

    def close(self) -> None:
        self._check_lease()
        super().close()

    def _write_bytes(self, data: bytes) -> None:
        # A lease ends before `fault` looks. So either this sees its end, or that sees `is_waiting`.
        self.is_waiting = True
        self._check_lease()
        super()._write_bytes(data)

    def _read_query_result(self, unbuffered: bool = False) -> Any:  # noqa: FBT001, FBT002 - as PyMySQL's
        answer = self._read(super()._read_query_result, unbuffered)
        result = self._result
        if result.description is None:
            self.has_written = bool(self.server_status & IN_TRANSACTION and (result.affected_rows or self.has_written))
        return answer

    def _read_ok_packet(self) -> Any:
        answer = self._read(super()._read_ok_packet)
        if not self.server_status & IN_TRANSACTION:
            self.has_written = False
        return answer

    def _read(self, method: Any, *args: Any) -> Any:
        try:
            answer = method(*args)
        except pymysql.MySQLError:  # the server has answered, or the socket is closed
            self.is_waiting = False
            raise
        self.is_waiting = False
        return answer

    def lend(self, loan: Loan) -> Self:
        """Make the object of a lease."""
        self.lent = lent = object.__new__(type(self))
        lent.__dict__.update(self.__dict__, lent=None, loan=loan, is_waiting=False, has_written=False)
        return lent

    def end_lease(self) -> Loan | None:
        """Make the lease's object forget the connection; return its loan if writes of the lease will be lost."""
        lent, self.lent = self.lent, None
        if lent is None:
            return None
        self.server_status, self._result, self._next_seq_id = lent.server_status, lent._result, lent._next_seq_id
        has_lost, loan = lent.has_written, lent.loan
        lent.__dict__ = {"loan": loan, "_result": None}
        return loan if has_lost else None
