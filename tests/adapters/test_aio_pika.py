"""AioPikaManager on a real RabbitMQ: what a lease leaves on its channel, or keeps of it, is gone or dead after it."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import pytest
from aio_pika import Channel, Message
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity, ChannelPreconditionFailed, PublishError

from benchmarks.faults.proxy import Proxy
from connectionpools_fastapi import ConnectionPool, NotLeased, PoolConfigError, PoolError
from connectionpools_fastapi.adapters.aio_pika import AioPikaManager
from tests.back_ends import until
from tests.certificates import write_certificate
from tests.rabbitmq_servers import RabbitmqServer, rabbitmq

pytestmark = [pytest.mark.anyio, pytest.mark.needs_program("rabbitmq-server")]

Pool = ConnectionPool[Channel]
LIMIT = 3
NUMBERS = count()


@pytest.fixture
def anyio_backend() -> str:
    """aio-pika knows asyncio only."""
    return "asyncio"


@pytest.fixture
async def pool(rabbitmq_url: str) -> AsyncIterator[Pool]:
    async with ConnectionPool(AioPikaManager(rabbitmq_url), limit=1, timeout=10, name="queue") as pool:
        yield pool


@pytest.fixture
async def other(rabbitmq_url: str) -> AsyncIterator[Channel]:
    """Yield a channel of another connection, to look at the server with."""
    async with await aio_pika.connect(rabbitmq_url) as connection, connection.channel() as channel:
        assert isinstance(channel, Channel)
        yield channel


@pytest.fixture
async def name(other: Channel) -> AsyncIterator[str]:
    """Yield the name of a queue that exists during the test."""
    name = f"test-{next(NUMBERS)}"
    await other.queue_delete(name)
    await other.declare_queue(name, durable=True)
    yield name
    await other.queue_delete(name)


@pytest.fixture
async def proxy(rabbitmq_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(urlsplit(rabbitmq_url).port or 5672) as proxy:
        yield proxy


def through(proxy: Proxy, query: str = "") -> str:
    return f"amqp://guest:guest@127.0.0.1:{proxy.port}/{query}"


async def publish(channel: Any, name: str, body: bytes = b"hello") -> Any:
    return await channel.default_exchange.publish(Message(body), routing_key=name)


async def counts(other: Channel, name: str) -> tuple[int | None, int | None]:
    """Return the number of messages in a queue that wait, and that of its consumers."""
    found = (await other.declare_queue(name, passive=True)).declaration_result
    return found.message_count, found.consumer_count


def into(seen: list[Any]) -> Callable[[Any], Awaitable[None]]:
    async def see(message: Any) -> None:
        seen.append(message)

    return see


def wire_of(channel: Any) -> Any:
    """Return aiormq's channel beneath a lease's."""
    return channel.wire.channel


# What a lease leaves behind.


async def test_prefetch_limit_ends_with_its_lease(pool: Pool, name: str) -> None:
    async with pool.lease() as channel:
        await channel.set_qos(prefetch_count=1)
    seen: list[Any] = []
    async with pool.lease() as channel:
        for _ in range(3):
            await publish(channel, name)
        await (await channel.get_queue(name)).consume(into(seen))
        await until(lambda: len(seen) == 3)


async def test_exclusive_queue_ends_with_its_lease(pool: Pool) -> None:
    async with pool.lease() as channel:
        queue = await channel.declare_queue(exclusive=True)
    async with pool.lease() as channel:
        with pytest.raises(ChannelNotFoundEntity):
            await channel.get_queue(queue.name)


async def test_exclusive_queue_ends_with_a_closed_channel(rabbitmq_url: str) -> None:
    """The server closes the channel, and the connection that owns the queue goes on."""
    async with (
        ConnectionPool(AioPikaManager(rabbitmq_url), limit=2) as pool,
        pool.lease() as other,
    ):
        with suppress(ChannelNotFoundEntity):
            async with pool.lease() as channel:
                queue = await channel.declare_queue(exclusive=True)
                await channel.get_queue("test-missing")
        await until(lambda: pool.stats().cleans == 1)
        with pytest.raises(ChannelNotFoundEntity):
            await other.get_queue(queue.name)


async def test_last_declared_queue_is_forgotten(pool: Pool, name: str) -> None:
    """The server takes an empty name for it."""
    async with pool.lease() as channel:
        await channel.get_queue(name)
        await publish(channel, name)
    async with pool.lease() as channel:
        with pytest.raises(AMQPError):
            await (await channel.get_queue("", ensure=False)).get()


async def test_return_callback_ends_with_its_lease(pool: Pool) -> None:
    first: list[Any] = []
    second: list[Any] = []
    async with pool.lease() as channel:
        channel.return_callbacks.add(lambda _, message: first.append(message))
        await publish(channel, "test-missing")
    async with pool.lease() as channel:
        channel.return_callbacks.add(lambda _, message: second.append(message))
        await publish(channel, "test-missing")
        await until(lambda: bool(second))
    assert (len(first), len(second)) == (1, 1)


async def test_open_transaction_is_told_and_lost(
    rabbitmq_url: str, other: Channel, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager = AioPikaManager(rabbitmq_url, publisher_confirms=False)
    async with ConnectionPool(manager, limit=1, name="queue") as pool:
        async with pool.lease() as channel, channel.transaction():
            await publish(channel, name)
        assert caplog.messages == []
        assert await counts(other, name) == (1, 0)
        async with pool.lease() as channel:
            await channel.transaction().select()
            await publish(channel, name, b"lost")
        async with pool.lease() as channel:
            await publish(channel, name)
            queue = await channel.get_queue(name)
            found = [await queue.get(no_ack=True, fail=False) for _ in range(3)]
            assert [message and message.body for message in found] == [b"hello", b"hello", None]
    assert [message for message in caplog.messages if "transaction was left open" in message]


async def test_harmless_lease_keeps_its_channel(pool: Pool, name: str) -> None:
    async with pool.lease() as channel:
        first = wire_of(channel)
        exchange = await channel.declare_exchange("test-exchange", auto_delete=True)
        queue = await channel.get_queue(name, ensure=False)
        await queue.bind(exchange, "key")
        await exchange.publish(Message(b"hello"), "key")
        assert await queue.get(no_ack=True)
        await queue.unbind(exchange, "key")
    async with pool.lease() as channel:
        assert wire_of(channel) is first
        await channel.get_queue(name)
    async with pool.lease() as channel:
        assert wire_of(channel) is not first
    assert pool.stats().creates == 1


async def test_channel_numbers_stay_low(rabbitmq_url: str, name: str) -> None:
    """aiormq's own would grow to the server's highest one, which costs the connection."""
    async with ConnectionPool(AioPikaManager(rabbitmq_url), limit=2) as pool:
        numbers = set()
        for _ in range(4):
            async with pool.lease() as one, pool.lease(timeout=5) as two:
                numbers |= {one.number, two.number}
                await one.get_queue(name)
                await two.get_queue(name)
        assert numbers == {1, 2}


# What a lease keeps in hand.


async def test_what_a_lease_keeps_in_hand_is_dead(pool: Pool, other: Channel, name: str) -> None:
    async with pool.lease() as channel:
        queue = await channel.get_queue(name)
        exchange = await channel.get_exchange("amq.direct")
        await publish(channel, name)
        message = await queue.get()
        iterator = queue.iterator()
        beneath = await channel.get_underlay_channel()
        purge = beneath.queue_purge
    late: list[Callable[[], Awaitable[Any]]] = [
        lambda: publish(channel, name),
        lambda: channel.declare_queue("test-late"),
        lambda: channel.set_qos(1),
        channel.reopen,
        lambda: exchange.publish(Message(b""), "key"),
        exchange.delete,
        queue.get,
        queue.purge,
        queue.delete,
        lambda: queue.consume(into([])),
        iterator.__anext__,
        message.ack,
        message.reject,
        message.nack,
        lambda: beneath.basic_publish(b"", routing_key=name),
        lambda: purge(name),
    ]
    for use in late:
        with pytest.raises(NotLeased, match="pool 'queue'"):
            await use()
    await channel.close()
    assert channel.is_closed
    assert await asyncio.wait_for(asyncio.shield(channel.closed()), 5)
    assert await counts(other, name) == (1, 0)
    assert pool.stats().creates == 1


async def test_iterator_that_outlives_its_lease_raises(pool: Pool, name: str) -> None:
    begun = asyncio.Event()

    async def consume(channel: Channel) -> None:
        async with (await channel.get_queue(name)).iterator() as messages:
            async for message in messages:
                await message.ack()
                begun.set()

    async with pool.lease() as channel:
        task = asyncio.create_task(consume(channel))
        await publish(channel, name)
        await begun.wait()
    with pytest.raises(NotLeased):
        await asyncio.wait_for(task, 10)


async def test_message_of_a_consumer_is_dead_too(pool: Pool, name: str) -> None:
    seen: list[Any] = []
    async with pool.lease() as channel:
        await publish(channel, name)
        await (await channel.get_queue(name)).consume(into(seen))
        await until(lambda: bool(seen))
    with pytest.raises(NotLeased):
        await seen[0].ack()
    async with pool.lease() as channel:
        assert (await (await channel.get_queue(name)).get(no_ack=True)).redelivered


async def test_detached_channel_stays_usable(pool: Pool, other: Channel, name: str) -> None:
    channel = await pool.acquire()
    pool.detach(channel)
    async with pool.lease():
        pass
    await publish(channel, name)
    assert await counts(other, name) == (1, 0)
    await channel.close()


# What goes wrong.


async def test_channel_closed_by_the_server_is_discarded(pool: Pool, name: str) -> None:
    with pytest.raises(ChannelNotFoundEntity):
        async with pool.lease() as channel:
            await publish_to(channel, "test-missing")
    with pytest.raises(ChannelPreconditionFailed):
        async with pool.lease() as channel:
            await channel.declare_queue(name, durable=False)
    async with pool.lease() as channel:
        await publish(channel, name)
    assert pool.stats().discards["broken"] == 2


async def publish_to(channel: Channel, exchange: str) -> None:
    await (await channel.get_exchange(exchange, ensure=False)).publish(Message(b""), "key")


async def test_message_for_no_queue_raises(rabbitmq_url: str, name: str) -> None:
    async with ConnectionPool(AioPikaManager(rabbitmq_url, on_return_raises=True), limit=1) as pool:
        with pytest.raises(PublishError):
            async with pool.lease() as channel:
                await publish(channel, "test-missing")
        async with pool.lease() as channel:
            assert type(await publish(channel, name)).__name__ == "Ack"
        assert pool.stats().creates == 1


async def test_closing_the_leased_channel_is_no_loss(pool: Pool, name: str) -> None:
    async with pool.lease() as channel:
        await channel.close()
        assert channel.is_closed
    async with pool.lease() as channel:
        await publish(channel, name)


async def test_cancelled_call_does_not_reach_the_next_lease(proxy: Proxy, other: Channel, name: str) -> None:
    async with ConnectionPool(AioPikaManager(through(proxy)), limit=1, timeout=10) as pool:
        for call in (lambda channel: publish(channel, name), lambda channel: channel.get_queue(name)):
            async with pool.lease() as channel:
                proxy.slow(0.1)
                task = asyncio.create_task(call(channel))
                await until(lambda channel=channel: channel.guarded.running == 1)  # type: ignore[misc]
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                proxy.resume()
            async with pool.lease() as channel:
                await publish(channel, name)
        assert (await counts(other, name))[0] in {2, 3}


async def test_call_without_answer_is_told(proxy: Proxy, name: str, caplog: pytest.LogCaptureFixture) -> None:
    async with ConnectionPool(AioPikaManager(through(proxy)), limit=1, timeout=10, name="queue") as pool:
        async with pool.lease() as channel:
            proxy.slow(0.05)
            task = asyncio.create_task(publish(channel, name))
            await until(lambda: channel.guarded.running == 1)  # type: ignore[attr-defined]
        with suppress(AMQPError, RuntimeError):
            await task
        proxy.resume()
        async with pool.lease() as channel:
            await publish(channel, name)
    assert [message for message in caplog.messages if "had no answer yet" in message]


async def test_killed_connection_costs_its_leases_only(proxy: Proxy, name: str) -> None:
    """What is free is found dead without a round trip, and is not leased."""
    async with ConnectionPool(AioPikaManager(through(proxy)), limit=LIMIT, timeout=10, check_after=3600) as pool:
        async with AsyncExitStack() as leases:
            for _ in range(LIMIT):
                await publish(await leases.enter_async_context(pool.lease()), name)
        assert proxy.connections == 1
        with suppress(AMQPError, ConnectionError, RuntimeError):
            async with pool.lease() as channel:
                proxy.reset()
                await publish(channel, name)
        async with AsyncExitStack() as leases:
            for _ in range(LIMIT):
                await publish(await leases.enter_async_context(pool.lease()), name)
        assert (proxy.accepted, proxy.connections) == (2, 1)
    await until(lambda: proxy.connections == 0)


async def test_silent_server_holds_up_nothing(proxy: Proxy, name: str) -> None:
    before = asyncio.all_tasks()
    manager = AioPikaManager(through(proxy), connect_timeout=0.5)
    async with ConnectionPool(manager, limit=2, timeout=10, close_timeout=1, check_after=0) as pool:
        async with pool.lease() as channel:
            await channel.get_queue(name)
            proxy.stall()
        with pytest.raises(PoolError):
            async with pool.lease(timeout=3):
                pass
        loop = asyncio.get_running_loop()
        begun = loop.time()
    assert loop.time() - begun < 10
    proxy.resume()
    await until(lambda: asyncio.all_tasks() - before <= {asyncio.current_task()} or proxy.connections == 0)


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("amqp://guest:secret@127.0.0.1:{port}/", "the user or the password"),
        ("amqp://guest:guest@127.0.0.1:{port}/secret", "the virtual host"),
    ],
)
async def test_refusal_says_what_to_change(rabbitmq_url: str, url: str, part: str) -> None:
    manager = AioPikaManager(url.format(port=urlsplit(rabbitmq_url).port))
    with pytest.raises(PoolError, match=part) as raised:
        await manager.create()
    assert "secret" not in str(raised.value)


async def test_address_is_asked_for_each_connection(rabbitmq_url: str, name: str) -> None:
    asked: list[int] = []

    async def address() -> str:
        asked.append(1)
        return rabbitmq_url

    pool = ConnectionPool(AioPikaManager(address), limit=2)
    for _ in range(2):  # closed with the pool, and made again
        async with pool, pool.lease() as one, pool.lease(timeout=5) as two:
            await publish(one, name)
            await publish(two, name)
    assert len(asked) == 2


async def test_restarted_server_costs_one_error_at_most(full: RabbitmqServer) -> None:
    async with ConnectionPool(AioPikaManager(full.url), limit=2, timeout=60) as pool:
        errors = 0

        async def work(channel: Channel, gate: asyncio.Event) -> None:
            await channel.declare_queue("test-restart", durable=True)
            gate.set()
            while True:
                await publish(channel, "test-restart")

        async def lease() -> None:
            nonlocal errors
            try:
                async with pool.lease() as channel:
                    await work(channel, gates.pop())
            except (AMQPError, ConnectionError, RuntimeError):
                errors += 1

        gates = begun = [asyncio.Event(), asyncio.Event()]
        begun = list(gates)
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(lease())
            for gate in begun:
                await gate.wait()
            await asyncio.to_thread(full.kill)
        assert errors == 2
        await asyncio.to_thread(full.start)
        async with pool.lease() as one, pool.lease(timeout=60) as two:
            await publish(one, "test-restart")
            await publish(two, "test-restart")
            await two.queue_delete("test-restart")


async def test_server_with_few_channels_is_shared(full: RabbitmqServer) -> None:
    """More would make it close the connection, and with it all channels."""
    async with ConnectionPool(AioPikaManager(full.url), limit=9, timeout=30) as pool:

        async def work() -> None:
            async with pool.lease() as channel:
                await channel.declare_exchange("test-few", auto_delete=True)

        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(work())
        stats = pool.stats()
        assert (stats.acquires, stats.timeouts, sum(stats.refusals.values())) == (20, 0, 0)


async def test_tls_is_used_and_a_fault_of_it_told(full: RabbitmqServer, certificate: Path) -> None:
    trusting = ssl.create_default_context(cafile=certificate)
    async with ConnectionPool(AioPikaManager(full.secure_url, ssl_context=trusting)) as pool, pool.lease() as channel:
        await channel.declare_exchange("test-tls", auto_delete=True)
    with pytest.raises(PoolConfigError, match=r"certificate does not pass.*ssl_context="):
        await AioPikaManager(full.secure_url).create()
    with pytest.raises(PoolConfigError, match="speaks no TLS at this port"):
        await AioPikaManager(full.url.replace("amqp:", "amqps:"), ssl_context=trusting).create()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_certificate(tmp_path_factory.mktemp("rabbitmq") / "both.pem", "127.0.0.1")


@pytest.fixture(scope="module")
def full(certificate: Path) -> Any:
    """Yield a RabbitMQ of this module's own, which allows few channels, and speaks TLS too."""
    with rabbitmq(certificate, channel_max=4) as server:
        yield server


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"url": 3}, "url must be a str or a callable"),
        ({"url": "redis://localhost"}, "no URL of a RabbitMQ"),
        ({"url": "amqp://user:secret@[::1"}, "no URL of a RabbitMQ"),
        ({"url": "amqp://host", "publisher_confirms": False, "on_return_raises": True}, "needs publisher_confirms"),
    ],
)
def test_bad_options_are_refused_at_once(options: dict[str, Any], part: str) -> None:
    with pytest.raises(PoolConfigError, match=part) as raised:
        AioPikaManager(**options)
    assert "secret" not in str(raised.value)


async def test_no_secret_reaches_the_log(rabbitmq_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    port = urlsplit(rabbitmq_url).port
    for url in (f"amqp://guest:secret@127.0.0.1:{port}/", "amqp://guest:secret@127.0.0.1:1/"):
        with suppress(Exception):
            await AioPikaManager(url).create()
    assert "secret" not in caplog.text
