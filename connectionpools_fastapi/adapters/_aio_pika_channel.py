"""One channel of aio-pika that successive leases share; needs the extra `aio-pika`."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

from aio_pika import Channel, Exchange, Queue
from aio_pika.abc import AbstractIncomingMessage, UnderlayChannel
from aio_pika.exceptions import ChannelInvalidStateError
from aio_pika.queue import QueueIterator
from aiormq.abc import DeliveredMessage

from connectionpools_fastapi import Loan

from ._aio_pika_connection import Link

CLOSE_TIMEOUT = 1.0
# A loan that belongs to no lease and never ends.
FOR_GOOD = Loan("", cast("Any", None), None)
# Methods that leave nothing on a channel. `queue_declare` does: the server takes the name "" for the last queue.
HARMLESS = frozenset(
    {
        "basic_publish",
        "exchange_declare",
        "exchange_delete",
        "exchange_bind",
        "exchange_unbind",
        "queue_bind",
        "queue_unbind",
        "queue_delete",
        "queue_purge",
    }
)


class Wire:
    """A channel at the server, which is closed and opened anew if a lease has left something on it."""

    channel: Any  # of aiormq

    def __init__(self, link: Link, number: int, options: dict[str, bool]) -> None:
        self.link = link
        self.number = number
        self.options = options
        self.lent: LeasedChannel | None = None  # the object of the current lease
        self.exclusive: set[str] = set()  # queues of the lease that last as long as the connection

    async def open(self) -> None:
        """Open a channel on the connection."""
        self.channel = await self.link.connection.channel(self.number, **self.options)
        self.channel.closing.add_done_callback(self._on_closed)

    @property
    def is_open(self) -> bool:
        """Whether it is open, as far as this end knows."""
        return not (self.channel.is_closed or self.link.is_lost)

    async def renew(self) -> None:
        """Go on with a new channel and without the exclusive queues of the lease."""
        await self.close()
        await self.open()
        while self.exclusive:
            await self.channel.queue_delete(self.exclusive.pop())

    async def close(self) -> None:
        """Close the channel; calls that still wait for an answer raise."""
        await self.channel.close(ChannelInvalidStateError("the channel was closed"), timeout=CLOSE_TIMEOUT)

    def _on_closed(self, closing: asyncio.Future[Any]) -> None:
        if self.lent is not None:
            self.lent.tell(None if closing.cancelled() else closing.exception())


class GuardedChannel:
    """What the objects of one lease use as aiormq's channel: it notes what they do, and raises after the lease."""

    def __init__(self, wire: Wire, loan: Loan) -> None:
        self._wire = wire
        self._loan = loan
        self.is_touched = False  # whether something may be left on the channel
        self.in_transaction = False  # of AMQP; one follows the other until the channel is closed
        self.has_uncommitted = False
        self.running = 0  # calls that wait for an answer

    def __getattr__(self, name: str) -> Any:
        self._loan.check()
        found = getattr(self._wire.channel, name)
        return partial(self._call, name, found) if inspect.iscoroutinefunction(found) else found

    async def basic_get(self, queue: str = "", no_ack: bool = False, **options: Any) -> DeliveredMessage:  # noqa: FBT001, FBT002
        self.is_touched = self.is_touched or not no_ack
        message: DeliveredMessage = await self._call(
            "basic_get", self._wire.channel.basic_get, queue, no_ack, **options
        )
        return replace(message, channel=cast("Any", self))

    async def basic_consume(
        self, queue: str, consumer_callback: Callable[[DeliveredMessage], Awaitable[Any]], **options: Any
    ) -> Any:
        async def deliver(message: DeliveredMessage) -> None:
            if not self._loan.is_over:  # what comes later goes back into the queue as the channel is closed
                await consumer_callback(replace(message, channel=cast("Any", self)))

        return await self._call("basic_consume", self._wire.channel.basic_consume, queue, deliver, **options)

    async def queue_declare(self, queue: str = "", **options: Any) -> Any:
        declared = await self._call("queue_declare", self._wire.channel.queue_declare, queue, **options)
        if options.get("exclusive") and not options.get("passive"):
            self._wire.exclusive.add(declared.queue)
        return declared

    async def _call(self, name: str, method: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
        self._loan.check()
        self._note(name)
        self.running += 1
        try:
            return await method(*args, **options)
        except BaseException as error:
            self.is_touched = True
            self._loan.note(error)
            raise
        finally:
            self.running -= 1

    def _note(self, name: str) -> None:
        if name not in HARMLESS and name != "basic_get":
            self.is_touched = True
        if name.startswith("tx_"):
            self.in_transaction, self.has_uncommitted = True, False
        elif self.in_transaction:
            self.has_uncommitted = True


class LeasedChannel(Channel):
    """The channel object of one lease."""

    def __init__(self, wire: Wire, loan: Loan) -> None:
        super().__init__(cast("Any", None), None, **wire.options)
        self.wire = wire
        self.loan = loan
        self.guarded = GuardedChannel(wire, loan)
        self._channel = UnderlayChannel(channel=cast("Any", self.guarded), close_callback=cast("Any", None))
        self.default_exchange = _Exchange(self, "")
        self._telling: asyncio.Future[Any] | None = None

    QUEUE_CLASS: type["_Queue"]
    EXCHANGE_CLASS: type["_Exchange"]

    @property
    def is_closed(self) -> bool:
        """Whether it cannot be used any more."""
        return self.loan.is_over or super().is_closed

    async def close(self, exc: Any = None) -> None:  # noqa: ARG002 - as the base
        """Close the channel itself, which the pool replaces; after the lease nothing happens."""
        if not self.loan.is_over:
            await self.wire.close()

    async def _open(self) -> None:  # by which others are opened again
        self.loan.check()
        raise ChannelInvalidStateError("a leased channel is not opened again; lease another one")

    def tell(self, error: BaseException | None) -> None:
        """Tell consumers and callbacks of the lease that the channel is closed."""
        if not self._closed.done():
            self._telling = asyncio.ensure_future(self.close_callbacks(error))

    def end(self) -> None:
        """End with the lease."""
        if self.guarded.is_touched:
            self.tell(None)
        elif not self._closed.done():
            self._closed.set_result(True)


class _Exchange(Exchange):
    async def publish(self, *args: Any, **options: Any) -> Any:
        cast("LeasedChannel", self.channel).loan.check()
        return await super().publish(*args, **options)


class _Queue(Queue):
    def iterator(self, **options: Any) -> "_Iterator":
        return _Iterator(self, **options)


class _Iterator(QueueIterator):
    async def __anext__(self) -> AbstractIncomingMessage:
        loan = cast("LeasedChannel", self._amqp_queue.channel).loan
        loan.check()
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            loan.check()
            raise


LeasedChannel.QUEUE_CLASS = _Queue
LeasedChannel.EXCHANGE_CLASS = _Exchange
