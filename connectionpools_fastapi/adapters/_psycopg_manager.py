"""What the managers for psycopg, async and sync, share; needs psycopg."""

from collections.abc import Callable
from typing import Any, TypeVar

from psycopg import BaseConnection
from psycopg.pq import TransactionStatus

from connectionpools_fastapi import Loan, Verdict
from connectionpools_fastapi.manager import ResourceManager

from ._options import Reset, check_reset, refuse_prepare
from ._postgres import warn_of_shared_sessions
from ._psycopg_address import Target
from ._psycopg_leases import leasable
from ._psycopg_scripts import POOLED_OPTIONS, Refusals
from ._socket import has_news

T = TypeVar("T", bound=BaseConnection[Any])


class BasePsycopgManager(ResourceManager[T]):
    """The hooks that wait for nothing."""

    def __init__(
        self,
        dsn: str | Callable[[], Any],
        *,
        reset: Reset,
        kinds: tuple[type[Any], type[Any], type[Any]],
        options: dict[str, Any],
    ) -> None:
        """Describe the connections, which are made later.

        `kinds` are the class of the application, that of psycopg, and ours.
        """
        self._name = type(self).__name__
        check_reset(self._name, reset)
        self._target = Target(self._name, kinds[1].__name__, dsn, options)
        self._kind = leasable(self._name, *kinds)
        self._dsn = dsn
        self._reset: Reset = reset
        self.shares_sessions: bool | None = None  # not known before the first connection
        self._refusals = Refusals()

    def _note_pooler(self, *, shares: bool) -> None:
        if shares and not self.shares_sessions:
            warn_of_shared_sessions(self._name, POOLED_OPTIONS)
        self.shares_sessions = shares or bool(self.shares_sessions)

    def _can_be_asked(self, resource: T) -> bool:
        return not resource.closed and resource.pgconn.transaction_status == TransactionStatus.IDLE

    def doubtful(self, resource: T) -> bool:
        """Whether a connection was closed, as far as this end knows, without a round trip.

        Args:
            resource: The connection.

        Returns:
            Whether it has to be checked before it is used.
        """
        connection: Any = resource
        return connection.wire.refusals != self._refusals.count or resource.closed or has_news(connection.fileno())

    def lend(self, resource: T, loan: Loan) -> T:
        """Make the connection that a lease gets; after the lease it raises `NotLeased`.

        Args:
            resource: The connection.
            loan: The lease.

        Returns:
            A connection with its own state on the same socket.
        """
        connection: Any = resource
        lent: T = connection.leases.lend(connection, loan)
        return lent

    def broken(self, resource: T, error: Exception) -> Verdict | None:
        """Say what an error means for its connection.

        Args:
            resource: The connection.
            error: The error.

        Returns:
            "discard" if the server ends the session, "expire" if it ends all of them, "check" if a
            write was refused: `doubtful` then sends every connection to `check`, which asks the
            server whether it takes writes at all. None for other errors.
        """
        connection: Any = resource
        return self._refusals.judge(connection.wire, error)

    def refuse_prepare(self) -> str | None:
        """Say why a request may not prepare its connection.

        Returns:
            The reason, if a reset does not undo settings: with `reset="transaction"`, and behind a pooler in
            transaction mode.
        """
        return refuse_prepare(resets_session=self._reset == "session", shares_sessions=self.shares_sessions)
