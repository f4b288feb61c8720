"""The leases of one connection of psycopg, sync or async: each has an object of its own, and all share one socket."""

# ruff: noqa: SLF001 - lends psycopg's connections, with their private members

from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from time import monotonic
from typing import Any, ClassVar, Self
from weakref import ref

from psycopg.adapt import AdaptersMap
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import ConnectionTimeout
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.types import TypeInfo, TypesRegistry

from connectionpools_fastapi import Loan
from connectionpools_fastapi.errors import PoolConfigError

CLOSE_WITHIN = 1.0
LEAST_OF_PSYCOPG = 2  # seconds to connect

LOST = (
    "it has written within a transaction that was not committed, and that is rolled back: "
    "write `{0}conn.commit()` at the end, or `{1}with conn.transaction()` around it"
)

# Attributes that a lease's object does not get.
OF_THE_POOL = frozenset(("_is_tended", "leases", "lent"))


class Wire:
    """The socket of one connection; the objects of its leases share it, one after the other."""

    def __init__(self, connection: Any) -> None:
        self.waits: set[Any] = set()  # a generator for each task or thread that waits for the server
        self.was_cut_off = False  # whether one of them was cancelled
        self.let_go: Callable[[], object] | None = None  # called when one of them stops waiting
        self.refusals = 0  # the manager's count when the server was last asked
        self.keeper = ref(connection)
        self.listener: ref[Any] = self.keeper  # its handlers get notices and notifications
        pgconn = connection.pgconn
        pgconn.notice_handler = partial(self._tell, connection._notice_handler)
        pgconn.notify_handler = partial(self._tell, connection._notify_handler)

    def _tell(self, handle: Callable[[Any, Any], None], message: Any) -> None:
        """Make psycopg pass on an unsolicited message of the server."""
        handle(self.listener, message)

    def stop_waiting(self, gen: Any) -> None:
        """Note that a task or thread has stopped waiting."""
        self.waits.discard(gen)
        if self.let_go is not None:
            self.let_go()


class _Types(TypesRegistry):
    is_changed = False

    def add(self, info: TypeInfo) -> None:
        self.is_changed = True
        super().add(info)


class Adapters(AdaptersMap):
    """The adapters of leases, which share them until a lease registers one."""

    is_changed = False

    def __init__(self, template: AdaptersMap) -> None:
        super().__init__(template)
        self.types = self.own_types = _Types(template.types)

    def register_dumper(self, *args: Any, **options: Any) -> None:
        self.is_changed = True
        super().register_dumper(*args, **options)

    def register_loader(self, *args: Any, **options: Any) -> None:
        self.is_changed = True
        super().register_loader(*args, **options)


class Leases:
    """What each lease of a connection begins with: its settings, adapters and handlers at one moment."""

    def __init__(self, keeper: Any, new_lock: Callable[[], Any]) -> None:
        self._new_lock = new_lock
        self._adapters = Adapters(keeper.adapters)
        prepared = keeper._prepared
        kind = type(prepared)
        settings = {"prepare_threshold": prepared.prepare_threshold, "prepared_max": prepared.prepared_max}
        self._new_prepared: Any = type(kind.__name__, (kind,), settings)
        self._fields = {name: value for name, value in vars(keeper).items() if name not in OF_THE_POOL}
        self._handlers = list(keeper._notice_handlers), list(keeper._notify_handlers)

    def _fresh(self, keeper: Any) -> dict[str, Any]:
        lendable = self._adapters
        if lendable.is_changed or lendable.own_types.is_changed:
            lendable = self._adapters = Adapters(self._fields["_adapters"])
        on_notice, on_notify = self._handlers
        return {
            **self._fields,
            "_adapters": lendable,
            "_notice_handlers": [*on_notice],
            "_notify_handlers": [*on_notify],
            "_notifies_backlog": deque(),
            "_prepared": keeper._prepared,
            "lock": self._new_lock(),
        }

    def lend(self, keeper: Any, loan: Loan) -> Any:
        """Make the object of a lease."""
        kind: Any = type(keeper)
        keeper.lent = lent = kind.__new__(kind)
        lent.__dict__ = fields = self._fresh(keeper)
        fields["loan"] = loan
        keeper.wire.listener = ref(lent)
        keeper._notifies_backlog = None  # no lease would read this backlog
        return lent

    def end(self, keeper: Any) -> Loan | None:
        """Make the lease's object forget the connection; return its loan.

        None if nothing was lent: then the lease has used the connection itself, as in an engine of SQLAlchemy, and its
        changes are undone.
        """
        lent = keeper.lent
        if lent is None:
            keeper.__dict__.update(self._fresh(keeper))
            return None
        keeper.lent = None
        keeper.wire.listener = keeper.wire.keeper
        loan: Loan = lent.loan
        lent.__dict__ = {"loan": loan}
        return loan

    def forget_prepared(self, keeper: Any) -> None:
        """Forget the prepared statements, which the server has discarded."""
        keeper._prepared = self._new_prepared()

    def restore_preparing(self, keeper: Any) -> None:
        """Restore the settings for preparing statements, which leases share."""
        keeper._prepared.prepare_threshold = self._new_prepared.prepare_threshold
        keeper._prepared.prepared_max = self._new_prepared.prepared_max


def fault(keeper: Any) -> str | None:
    """Return why another lease cannot use this connection; None if it can."""
    if keeper.closed:
        return "the connection is closed"
    if keeper.wire.was_cut_off:
        return "it was cut off in the midst of a query"
    if keeper.pgconn.pipeline_status != PipelineStatus.OFF:
        return "a pipeline was not left"
    if keeper.wire.waits or keeper.pgconn.transaction_status == TransactionStatus.ACTIVE:
        return "it is still in use: a query, a COPY or notifies() is not at its end"
    if keeper.lent is None and (keeper._num_transactions or keeper._tpc or keeper.lock.locked()):
        return "a transaction block, a two-phase transaction or notifies() was not left"
    return None


# --- methods of a connection, which is the pool's or the object of one lease ------------------------


def leasable(manager: str, kind: Any, of_driver: Any, pooled: Any) -> Any:
    """Derive the pool's kind of connection from the application's.

    Args:
        manager: The name of the manager.
        kind: The application's class.
        of_driver: The class of psycopg that it is, or derives from.
        pooled: The pool's own class, which derives from that too.

    Raises:
        PoolConfigError: If the application's class does not derive from psycopg's.
    """
    if not (isinstance(kind, type) and issubclass(kind, of_driver)):
        raise PoolConfigError(f"{manager}: connection_class must be a subclass of psycopg.{of_driver.__name__}")
    return pooled if kind is of_driver else type(kind.__name__, (pooled, kind), {})


class Leasable:
    """A connection of the pool, or the object of one lease: the same socket, and its own state.

    It comes before psycopg's class. Everything that psycopg sends passes `wait`, also from cursors, transactions and
    COPY. There an ended lease raises.
    """

    new_lock: ClassVar[Any]  # makes one, of asyncio or of threads
    loan: Loan | None = None  # of a lease's object
    lent: Self | None = None  # of the pool's connection: the object of the current lease
    leases: Leases

    def __init__(self, pgconn: Any, *args: Any) -> None:
        super().__init__(pgconn, *args)  # type: ignore[call-arg] # of psycopg's class, which follows
        self.wire = Wire(self)

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **options: Any) -> Any:
        connecting = super()._connect_gen(conninfo, **options)  # type: ignore[misc] # as above
        return limited(connecting, conninfo)  # psycopg 3.2 applies the limit here

    @property
    def is_given_back(self) -> bool:
        """Whether the lease of the pool's connection is over, and its object still has what it needs for use."""
        return self.lent is not None and (self.lent.loan is None or self.lent.loan.is_over)

    def remember(self) -> None:
        """Make each lease begin with the present settings of the connection."""
        self.leases = Leases(self, type(self).new_lock)

    def __getattr__(self, name: str) -> Any:
        if self.loan is not None:  # over, it has no attributes any more
            self.loan.check()
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        if self.loan is None or not self.loan.is_over:
            return super().__repr__()
        return f"<{type(self).__name__} [its lease is over] at 0x{id(self):x}>"

    def __del__(self, *_: Any) -> None:
        if self.lent is None and (self.loan is None or not self.loan.is_over):  # else another one uses the socket
            super().__del__()  # type: ignore[misc] # as above

    def _should_cancel(self) -> bool:
        if self.loan is not None:
            self.loan.check()
        should: bool = super()._should_cancel()  # type: ignore[misc] # as above
        return should


def limited(connecting: Any, conninfo: str) -> Generator[Any, Any, Any]:
    """Apply a time limit below two seconds; psycopg would make it two seconds, or more than two minutes."""
    seconds = float(conninfo_to_dict(conninfo).get("connect_timeout") or 0)
    if not 0 < seconds < LEAST_OF_PSYCOPG:
        return (yield from connecting)
    return (yield from within(seconds, connecting))


def within(seconds: float, steps: Any) -> Generator[Any, Any, Any]:
    """Pass on what one of psycopg's generators does, for so long at most.

    Raises:
        ConnectionTimeout: If it takes longer.
    """
    deadline = monotonic() + seconds
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted  # at least ten times a second
            if not ready and monotonic() >= deadline:
                raise ConnectionTimeout("connection timeout expired")
            wanted = steps.send(ready)
    except StopIteration as end:
        return end.value
    finally:
        steps.close()
