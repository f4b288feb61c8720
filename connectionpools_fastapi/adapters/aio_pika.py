"""AioPikaManager: channels of RabbitMQ by aio-pika; needs the extra `aio-pika`."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ssl import SSLCertVerificationError, SSLContext, SSLError
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

from connectionpools_fastapi import Loan

from ..errors import PoolConfigError, PoolError, own
from ..manager import ResourceManager
from ._options import check_address, current, untrusted

try:
    import aiormq
    from aio_pika import Channel
    from aio_pika.exceptions import (
        AMQPChannelError,
        AMQPConnectionError,
        ChannelInvalidStateError,
        InvalidFrameError,
        ProbableAuthenticationError,
    )
    from aiormq.exceptions import ConnectionNotAllowed
    from pamqp.exceptions import PAMQPException
    from yarl import URL

    from ._aio_pika_channel import CLOSE_TIMEOUT, FOR_GOOD, LeasedChannel, Wire
    from ._aio_pika_connection import SharedConnection
except ImportError as _error:
    msg = (
        "connectionpools_fastapi.adapters.aio_pika needs aio-pika 9.5 or newer: "
        "pip install 'connectionpools-fastapi[aio-pika]'"
    )
    raise ImportError(msg) from _error

CONNECT_TIMEOUT = 5.0


class AioPikaManager(ResourceManager[Channel]):
    """Leases a channel of RabbitMQ, an `aio_pika.Channel`, with publisher confirms.

    All channels of a pool share one connection, which is made with the first channel and closed
    after the last one. If it is lost, the next channel connects again.

    A lease that only publishes, binds, unbinds, deletes, purges, declares exchanges, or gets
    messages with `no_ack`, leaves nothing on its channel, and giving it back costs no round trip.
    After any other one the channel is closed and opened again on the same connection, three
    round trips that no caller waits for while other channels are free: consumers end,
    messages that were not acknowledged go back into their queues, and prefetch limits are gone.
    Exclusive queues, which would last as long as the connection, are deleted.

    After the lease the channel raises `NotLeased` and sends nothing, and so does everything made
    from it: exchanges, queues, iterators, messages that are acknowledged too late.

    A channel that the server has closed, as after a publish to an exchange that does not exist, is
    not leased again. If a publish is not confirmed when its lease ends, the channel is closed, and
    the log warns. While the server accepts no messages (its memory or disk is full), a publish
    waits: write `async with asyncio.timeout(...)` around what a request may wait for.

    Some mistakes make RabbitMQ close the whole connection, such as an unknown type of exchange, or
    `immediate=True`: then each lease of the moment gets one error.

    Example:
        ```python
        queue = ConnectionPool(AioPikaManager("amqp://user:password@localhost/"), limit=10, name="queue")

        async with queue, queue.lease() as channel:
            await channel.default_exchange.publish(Message(b"hello"), routing_key="greetings")
        ```
    """

    def __init__(
        self,
        url: str | Callable[[], str | Awaitable[str]],
        *,
        publisher_confirms: bool = True,
        on_return_raises: bool = False,
        connect_timeout: float = CONNECT_TIMEOUT,
        ssl_context: SSLContext | None = None,
        client_properties: dict[str, Any] | None = None,
    ) -> None:
        """Say where the server is.

        Args:
            url: As in `amqp://user:password@host:5672/vhost?heartbeat=30`, or `amqps://...` with
                TLS. A callable that returns it, plain or async, is called for each connection:
                for credentials that change.
            publisher_confirms: Whether `publish` returns only when the server has taken the
                message. False allows transactions of AMQP instead.
            on_return_raises: Whether `publish` raises `PublishError` if no queue gets the
                message; else it returns that message.
            connect_timeout: How long to wait for the connection, in seconds.
            ssl_context: The certificates to trust, for `amqps://`.
            client_properties: What the server shows of this client, as
                `{"connection_name": "orders"}`.

        Raises:
            PoolConfigError: If `url` cannot be read, or the options exclude each other.
        """
        check_address("AioPikaManager", "url", url)
        if isinstance(url, str):
            _parse(url)
        if on_return_raises and not publisher_confirms:
            raise _mistake("on_return_raises needs publisher_confirms")
        self._url = url
        self._channels = {"publisher_confirms": publisher_confirms, "on_return_raises": on_return_raises}
        self._connect_timeout = connect_timeout
        self._context = ssl_context
        self._properties = client_properties or {}
        self._shared: WeakKeyDictionary[asyncio.AbstractEventLoop, SharedConnection] = WeakKeyDictionary()

    async def create(self) -> Channel:
        """Open a channel; connect before, if there is no connection yet or any more.

        Returns:
            A channel that is open.

        Raises:
            PoolConfigError: If the URL cannot be read, the server refuses the user or the password,
                its certificate does not pass, or it speaks no TLS; or if the event loop is not
                asyncio's.
            PoolError: If the server refuses the virtual host, or allows no more channels.
            Exception: aio-pika's own error, if the server cannot be reached.
        """
        shared = self._here()
        link, number = await shared.join(self._connect)
        wire = Wire(link, number, self._channels)
        try:
            await wire.open()
        except BaseException:
            await shared.leave(link, number)
            raise
        return LeasedChannel(wire, FOR_GOOD)

    async def check(self, resource: Channel) -> bool:
        """Ask the server on this channel, one round trip, unless it is known to be closed.

        Args:
            resource: A free channel.

        Returns:
            Whether it can be used.
        """
        wire = _wire(resource)
        if wire.is_open:
            await wire.channel.basic_qos()
        return wire.is_open

    def doubtful(self, resource: Channel) -> bool:
        """Whether the channel or its connection was closed, as far as this end knows.

        Args:
            resource: The channel.

        Returns:
            Whether it has to be checked before it is used.
        """
        return not _wire(resource).is_open

    def lend(self, resource: Channel, loan: Loan) -> Channel:
        """Make the channel object of one lease.

        Args:
            resource: The channel.
            loan: The lease.

        Returns:
            A channel that raises `NotLeased` after the lease, like everything made from it.
        """
        wire = _wire(resource)
        wire.lent = lent = LeasedChannel(wire, loan)
        wire.channel.on_return_callbacks.clear()
        wire.channel.on_return_callbacks.add(lent._on_return)  # noqa: SLF001 - as aio-pika does when it opens one
        return lent

    def broken(self, resource: Channel, error: Exception) -> Literal["discard"] | None:  # noqa: ARG002
        """Say whether an error shows that the server has closed the channel or the connection.

        Args:
            resource: The channel.
            error: The error.

        Returns:
            "discard" if so.
        """
        closed = (AMQPChannelError, AMQPConnectionError, ChannelInvalidStateError)
        return "discard" if isinstance(error, closed) else None

    def change(self, resource: Channel) -> Awaitable[None] | None:
        """Open the channel anew, unless the lease has left nothing on it.

        Args:
            resource: A channel that was given back.

        Returns:
            An awaitable, if there is something to wait for.

        Raises:
            Exception: aio-pika's own error, if the connection was lost.
        """
        wire = _wire(resource)
        lent, wire.lent = cast("LeasedChannel", wire.lent), None
        lent.end()
        guarded = lent.guarded
        if not (guarded.is_touched or guarded.running) and wire.is_open:
            return None
        if not lent.loan.has_failed:
            if guarded.running:
                lent.loan.warn("a call on the channel had no answer yet when the lease ended; await each publish")
            if guarded.has_uncommitted:
                lent.loan.warn("a transaction was left open, so what was in it is lost; end it with commit()")
        return wire.renew()

    async def clean(self, resource: Channel) -> None:
        """Close the channel, within a second, and after the last one the connection.

        Args:
            resource: Any channel, open or not.
        """
        wire = _wire(resource)
        if wire.lent is not None:
            wire.lent.end()
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    if wire.exclusive and len(wire.link.numbers) > 1 and not wire.link.is_lost:
                        await wire.renew()
                    await wire.close()
        finally:
            await self._here().leave(wire.link, wire.number)

    def _here(self) -> SharedConnection:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise _mistake("aio-pika needs asyncio, and this is another event loop") from None
        if loop not in self._shared:
            self._shared[loop] = SharedConnection()
        return self._shared[loop]

    async def _connect(self) -> Any:
        url = _parse(await current(self._url))
        try:
            async with asyncio.timeout(self._connect_timeout):
                return await aiormq.connect(url, context=self._context, client_properties=self._properties)
        except ProbableAuthenticationError:
            raise _mistake("the server is there, but refuses the user or the password") from None
        except AMQPConnectionError as error:
            if (found := _fault_of_tls(error.__cause__)) is None:
                raise
            raise _mistake(found) from None
        except (ConnectionNotAllowed, InvalidFrameError, PAMQPException):  # aiormq does not tell what the server says
            text = "the server refuses the virtual host: see that it exists, that the user may use it, and its limits"
            raise own(PoolError(f"AioPikaManager: {text}")) from None


def _wire(channel: Channel) -> Wire:
    return cast("LeasedChannel", channel).wire


def _fault_of_tls(error: object) -> str | None:
    if isinstance(error, SSLCertVerificationError):
        return untrusted(error, "ssl_context=ssl.create_default_context(cafile=...)")
    if isinstance(error, SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "the server speaks no TLS at this port: write that of its TLS listener, as 5671, or amqp://"
    return None


def _parse(url: object) -> URL:
    with suppress(TypeError, ValueError):
        found = URL(cast("str", url))
        if found.scheme in {"amqp", "amqps"} and found.host:
            return found
    raise _mistake("this is no URL of a RabbitMQ; write amqp://user:password@host:5672/vhost or amqps://...")


def _mistake(problem: str) -> PoolConfigError:
    return own(PoolConfigError(f"AioPikaManager: {problem}"))
