"""The connections of PsycopgManager: each lease has an object of its own, and all of them share one socket."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any

import anyio
from psycopg import AsyncConnection, Error, capabilities
from psycopg.pq import TransactionStatus
from psycopg.waiting import READY_NONE, READY_R, WAIT_R, wait_async

from ._psycopg_leases import CLOSE_WITHIN, LOST, Leasable
from ._readiness import LOOK_EVERY, Readiness
from ._socket import shut_down


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


class Tasks:
    """The tasks of one connection that wait for the server."""

    def __init__(self) -> None:
        self.readiness: Readiness | None = None
        self.cancelling: asyncio.Future[None] | None = None


class Connection(Leasable, AsyncConnection[Any]):
    """A connection of the pool, or the object of one lease."""

    new_lock = asyncio.Lock
    lost = LOST.format("await ", "async ")
    _is_tended = False

    def __init__(self, pgconn: Any, *args: Any) -> None:
        super().__init__(pgconn, *args)
        self.tasks = Tasks()

    # --- waiting for the server -------------------------------------------------------------------------

    async def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        loan = self.loan
        if loan is not None and loan.is_over:
            loan.check()
        wire = self.wire
        wire.waits.add(gen)
        try:
            if args or options or len(wire.waits) > 1:
                return await self._wait_as_psycopg(gen, *args, **options)
            return await self._wait_at_less_cost(gen)
        except asyncio.CancelledError:
            wire.was_cut_off = wire.was_cut_off or not self._has_ended_query()
            raise
        except Error as error:
            if loan is not None:
                loan.note(error)
            raise
        finally:
            wire.stop_waiting(gen)

    def _has_ended_query(self) -> bool:
        """Whether a cancelled query has ended, and the request to cancel it, which takes another connection, has too.

        A request of libpq before 17 may arrive later, and hit the next lease's query.
        """
        request = self.tasks.cancelling
        is_sent = request is None or (request.done() and not request.cancelled() and request.exception() is None)
        has_ended = self.pgconn.transaction_status not in (TransactionStatus.ACTIVE, TransactionStatus.UNKNOWN)
        return has_ended and is_sent and (request is None or capabilities.has_cancel_safe())

    def _wait_as_psycopg(self, gen: Any, *args: Any, **options: Any) -> Awaitable[Any]:
        if self._is_tended:
            if not args:  # by default psycopg would poll without a pause
                options.setdefault("interval", LOOK_EVERY)
            # In a task, which `change` does without: psycopg sets a time limit for each wait.
            return asyncio.create_task(wait_async(gen, self.pgconn.socket, *args, **options))
        return super().wait(gen, *args, **options)

    async def _wait_at_less_cost(self, gen: Any) -> Any:
        """Wait for reads, nearly all waits, by `Readiness`; leave other waits to psycopg."""
        readiness = self.tasks.readiness
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
            if self._is_tended:
                return await self._wait_as_psycopg(_Begun(gen, error))
            # Scopes of anyio cancel a task until it has ended, and a second time makes psycopg close the connection,
            # and write a warning: any client that leaves a stream could fill the log.
            with anyio.move_on_after(CLOSE_WITHIN, shield=True):
                return await self._wait_as_psycopg(_Begun(gen, error))
            raise
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

    async def run(self, steps: Any) -> Any:
        """Do what a script of the manager says."""
        async with self.lock:
            return await self.wait(steps)

    # --- closing ----------------------------------------------------------------------------------------

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
        self.tasks.cancelling = cancelling = asyncio.ensure_future(work)
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
        elif self.tasks.cancelling is not None:
            await asyncio.wait([self.tasks.cancelling])
        if wire.waits and not self.closed:
            # Another task listens to this socket. It has to stop, perhaps after it has listened once more, before the
            # operating system gives the socket's number to the next connection: else the loop would not listen to that.
            let_go = asyncio.Event()
            wire.let_go = let_go.set
            shut_down(self.pgconn.socket)
            while wire.waits:
                let_go.clear()
                await let_go.wait()
