"""The connections of PsycopgManager: each lease has an object of its own, and all of them share one socket."""

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any
from weakref import ref

from psycopg import AsyncConnection, Error, capabilities
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import ConnectionTimeout, error_from_result
from psycopg.generators import execute
from psycopg.pq import ExecStatus, PipelineStatus, TransactionStatus
from psycopg.types import TypeInfo, TypesRegistry
from psycopg.waiting import READY_NONE, READY_R, WAIT_R, wait_async

from connectionpools_fastapi import Loan

from ._postgres import BACKEND_PID
from ._readiness import LOOK_EVERY, Readiness

CLOSE_WITHIN = 1.0
LEAST_OF_PSYCOPG = 2  # seconds to connect

LOST = (
    "it has written within a transaction that was not committed, and that is rolled back: "
    "write `await conn.commit()` at the end, or `async with conn.transaction()` around it"
)

# Attributes that a lease's object does not get.
OF_THE_POOL = frozenset(("_handlers", "_is_tended", "_lendable", "_prepare_manager", "_remembered", "lent"))


class Wire:
    """The socket of one connection; the objects of its leases share it, one after the other."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self.readiness: Readiness | None = None
        self.waits = 0  # how many tasks wait for the server
        self.was_cut_off = False  # whether one of them was cancelled
        self.let_go: asyncio.Event | None = None  # set when a task stops waiting
        self.cancelling: asyncio.Future[None] | None = None
        self.refusals = 0  # the manager's count when the server was last asked
        self.keeper = ref(connection)
        self.listener: ref[Any] = self.keeper  # its handlers get notices and notifications

    def tell(self, handle: Callable[[Any, Any], None], message: Any) -> None:
        """Make psycopg pass on an unsolicited message of the server."""
        handle(self.listener, message)


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


class _Begun:
    """A generator of psycopg that has begun: it yields its last wait again, or first raises an error."""

    def __init__(self, gen: Any, error: BaseException | None = None) -> None:
        self._error = error
        self.send = gen.send

    def __next__(self) -> Any:
        if self._error is None:
            return self.send(READY_NONE)
        try:
            raise self._error
        finally:
            self._error = None


class Connection(AsyncConnection[Any]):
    """A connection of the pool, or the object of one lease: the same socket, and its own state.

    Everything that psycopg sends passes `wait`, also from cursors, transactions and COPY. There an ended lease raises.
    """

    loan: Loan | None = None  # of a lease's object
    lent: "Connection | None" = None  # of the pool's connection: the object of the current lease
    lost = LOST
    _is_tended = False
    _remembered: dict[str, Any]

    def __init__(self, pgconn: Any, *args: Any) -> None:
        super().__init__(pgconn, *args)
        self.wire = wire = Wire(self)
        pgconn.notice_handler = partial(wire.tell, AsyncConnection._notice_handler)  # noqa: SLF001 - psycopg's own handler
        pgconn.notify_handler = partial(wire.tell, AsyncConnection._notify_handler)  # noqa: SLF001 - as above

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **options: Any) -> Any:
        """Apply a time limit below two seconds; psycopg would make it two seconds, or more than two minutes."""
        seconds = float(conninfo_to_dict(conninfo).get("connect_timeout") or 0)
        connecting = super()._connect_gen(conninfo, **options)  # psycopg 3.2 applies the limit here
        if not 0 < seconds < LEAST_OF_PSYCOPG:
            return (yield from connecting)
        deadline = monotonic() + seconds
        try:
            wanted = next(connecting)
            while True:
                ready = yield wanted  # at least ten times a second
                if not ready and monotonic() >= deadline:
                    raise ConnectionTimeout("connection timeout expired")
                wanted = connecting.send(ready)
        except StopIteration as end:
            return end.value
        finally:
            connecting.close()

    # --- leases -----------------------------------------------------------------------------------------

    def remember(self) -> None:
        """Make each lease begin with the present settings of the connection."""
        self._lendable = Adapters(self.adapters)
        kind = type(self._prepared)
        settings = {"prepare_threshold": self._prepared.prepare_threshold, "prepared_max": self._prepared.prepared_max}
        self._prepare_manager: Any = type(kind.__name__, (kind,), settings)
        self._remembered = {name: value for name, value in vars(self).items() if name not in OF_THE_POOL}
        self._handlers = list(self._notice_handlers), list(self._notify_handlers)

    def _fresh(self) -> dict[str, Any]:
        lendable = self._lendable
        if lendable.is_changed or lendable.own_types.is_changed:
            lendable = self._lendable = Adapters(self._remembered["_adapters"])
        on_notice, on_notify = self._handlers
        return {
            **self._remembered,
            "_adapters": lendable,
            "_notice_handlers": [*on_notice],
            "_notify_handlers": [*on_notify],
            "_notifies_backlog": deque(),
            "_prepared": self._prepared,
            "lock": asyncio.Lock(),
        }

    def lend(self, loan: Loan) -> "Connection":
        """Make the object of a lease."""
        self.lent = lent = Connection.__new__(Connection)
        lent.__dict__ = fields = self._fresh()
        fields["loan"] = loan
        self.wire.listener = ref(lent)
        self._notifies_backlog = None  # no lease would read this backlog
        return lent

    def end_lease(self) -> Loan | None:
        """Make the lease's object forget the connection; return its loan.

        None if nothing was lent: then the lease has used the connection itself, as in an engine of SQLAlchemy, and its
        changes are undone.
        """
        lent = self.lent
        if lent is None:
            self.__dict__.update(self._fresh())
            return None
        self.lent = None
        self.wire.listener = self.wire.keeper
        loan = lent.loan
        lent.__dict__ = {"loan": loan}
        return loan

    def __getattr__(self, name: str) -> Any:
        if self.loan is not None:
            self.loan.check()
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        if self.loan is not None and self.loan.is_over:
            return f"<{type(self).__name__} [its lease is over] at 0x{id(self):x}>"
        return super().__repr__()

    def __del__(self, *_: Any) -> None:
        # Another object may still use the socket; the pool closes it.
        if self.lent is None and (self.loan is None or not self.loan.is_over):
            super().__del__()

    def fault(self) -> str | None:
        """Return why another lease cannot use this connection; None if it can."""
        if self.closed:
            return "the connection is closed"
        if self.wire.was_cut_off:
            return "a task was cancelled in the midst of a query"
        if self.pgconn.pipeline_status != PipelineStatus.OFF:
            return "a pipeline was not left"
        if self.wire.waits or self.pgconn.transaction_status == TransactionStatus.ACTIVE:
            return "it is still in use: a query, a COPY or notifies() is not at its end"
        if self.lent is None and (self._num_transactions or self._tpc or self.lock.locked()):
            return "a transaction block, a two-phase transaction or notifies() was not left"
        return None

    # --- waiting for the server -------------------------------------------------------------------------

    async def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        # If a task is cancelled, psycopg asks the server to cancel the query, and the connection may look healthy
        # after that. But the request takes another connection: if it arrives late, it may hit the next lease's query.
        loan = self.loan
        if loan is not None and loan.is_over:
            loan.check()
        wire = self.wire
        wire.waits += 1
        try:
            if args or options or wire.waits > 1:
                return await self._wait_as_psycopg(gen, *args, **options)
            return await self._wait_at_less_cost(gen, wire)
        except asyncio.CancelledError:
            wire.was_cut_off = True
            raise
        except Error as error:
            if loan is not None:
                loan.note(error)
            raise
        finally:
            wire.waits -= 1
            if wire.let_go is not None:
                wire.let_go.set()

    def _wait_as_psycopg(self, gen: Any, *args: Any, **options: Any) -> Awaitable[Any]:
        if self._is_tended:
            if not args:  # by default psycopg would poll without a pause
                options.setdefault("interval", LOOK_EVERY)
            return wait_async(gen, self.pgconn.socket, *args, **options)
        return super().wait(gen, *args, **options)

    async def _wait_at_less_cost(self, gen: Any, wire: Wire) -> Any:
        """Wait for reads, nearly all waits, by `Readiness`; leave other waits to psycopg."""
        readiness = wire.readiness
        if readiness is None or readiness.loop is not asyncio.get_running_loop():
            return await self._wait_as_psycopg(gen)
        _ = self.pgconn.socket  # raises if there is none, and before anything has begun
        has_waited = False
        try:
            wanted = next(gen)
            while wanted == WAIT_R:
                has_waited = True
                try:
                    readable = readiness.wait_readable(self.pgconn.socket)
                except OSError:  # the loop or the operating system cannot watch it
                    break
                wanted = gen.send(READY_R if await readable else READY_NONE)
        except StopIteration as end:
            if has_waited:
                return end.value
            # psycopg counts such calls, and lets other tasks run after some.
            return await self._wait_as_psycopg(_Begun(gen, end))
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit) as error:
            return await self._wait_as_psycopg(_Begun(gen, error))
        return await self._wait_as_psycopg(_Begun(gen))

    async def tend(self, work: Awaitable[Any]) -> Any:
        """Await work of a hook without delaying its cancellation: the connection is closed then.

        psycopg would first ask the server to cancel the query, and wait up to ten seconds if the network stalls.
        """
        self._is_tended = True
        try:
            return await work
        finally:
            self._is_tended = False

    async def ask(self, script: bytes) -> list[Any]:
        """Execute a script in one round trip; psycopg begins no transaction for it."""
        async with self.lock:
            self.pgconn.send_query(script)
            results: list[Any] = await self.wait(execute(self.pgconn))
        if results[-1].status == ExecStatus.FATAL_ERROR:  # an error ends a script
            raise error_from_result(results[-1])
        return results

    async def backend(self) -> int:
        """Return the number of the server's process, even behind a pooler."""
        (found,) = await self.ask(BACKEND_PID.encode())
        return int(found.get_value(0, 0))

    # --- resetting and closing --------------------------------------------------------------------------

    def forget_prepared(self) -> None:
        """Forget the prepared statements, which the server has discarded."""
        self._prepared = self._prepare_manager()

    async def clear_prepared(self) -> None:
        """Discard prepared statements, as psycopg does after each rollback."""
        if self._prepared.clear():
            await self.tend(self.wait(self._prepared.maintain_gen(self)))

    def restore_preparing(self) -> None:
        """Restore the settings for preparing statements, which leases share."""
        self._prepared.prepare_threshold = self._prepare_manager.prepare_threshold
        self._prepared.prepared_max = self._prepare_manager.prepared_max

    def _should_cancel(self) -> bool:
        if self.loan is not None:
            self.loan.check()
        return super()._should_cancel()

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Ask the server to cancel the query, even if the task is cancelled again, as scopes of anyio do.

        psycopg would then give up and close the connection, and the query would go on.
        """
        if self.loan is not None:
            self.loan.check()
        if capabilities.has_cancel_safe() or self.closed:
            work = super().cancel_safe(timeout=timeout)
        else:  # libpq before 17: psycopg would get the cancel object in the thread, perhaps after closing
            work = asyncio.to_thread(self.pgconn.get_cancel().cancel)
        self.wire.cancelling = cancelling = asyncio.ensure_future(work)
        # If this is cut off, no caller needs its failure any more, but asyncio would report it (`shield` always
        # does on Python 3.14).
        cancelling.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait([cancelling])
        cancelling.result()

    async def break_off(self) -> None:
        """Stop the server's work for a connection that is about to be closed."""
        wire = self.wire
        if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
            with suppress(Error, OSError):  # the server notices the end by itself
                await self.cancel_safe(timeout=CLOSE_WITHIN)
        elif wire.cancelling is not None:
            await asyncio.wait([wire.cancelling])
        if wire.waits and not self.closed:
            # Another task listens to this socket. It has to stop, perhaps after it has listened once more, before the
            # operating system gives the socket's number to the next connection: else the loop would not listen to that.
            wire.let_go = asyncio.Event()
            end = socket.socket(fileno=self.pgconn.socket)
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.detach()
            while wire.waits:
                wire.let_go.clear()
                await wire.let_go.wait()
