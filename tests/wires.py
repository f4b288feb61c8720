"""A proxy before a database server, to see what a driver sends, and when."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import anyio.abc
import pytest

LOCAL_PORT = anyio.abc.SocketAttribute.local_port


@dataclass
class Proxy:
    """Stands between driver and server."""

    url: str
    # What the driver sent; as it waits for each answer, one for each round trip.
    sent: list[bytes] = field(default_factory=list)
    stalls: bool = False
    # Set when a driver has closed its connection.
    left: asyncio.Event = field(default_factory=asyncio.Event)


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncIterator[Proxy]:
    """Yield a proxy before the PostgreSQL, on the loopback."""
    async with proxied(postgres_url) as proxy:
        yield proxy


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[Proxy]:
    """Run a proxy before the server of an address, on the loopback."""
    server = urlsplit(url)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(LOCAL_PORT)  # noqa: S610 - not of Django
    account = server.netloc.rpartition("@")[0]
    seen = Proxy(server._replace(netloc=f"{account}@127.0.0.1:{port}").geturl())

    async def serve(driver: anyio.abc.SocketStream) -> None:
        async with (
            driver,
            await anyio.connect_tcp(server.hostname or "", server.port or 5432) as stream,
            anyio.create_task_group() as both,
        ):
            both.start_soon(answer, stream, driver, both.cancel_scope)
            with suppress(anyio.BrokenResourceError):
                async for chunk in driver:
                    seen.sent.append(chunk)
                    if not seen.stalls:
                        await stream.send(chunk)
            seen.left.set()
            both.cancel_scope.cancel()

    async def answer(stream: anyio.abc.SocketStream, driver: anyio.abc.SocketStream, scope: anyio.CancelScope) -> None:
        with suppress(anyio.BrokenResourceError):
            async for chunk in stream:
                await driver.send(chunk)
        scope.cancel()

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield seen
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def speaking_tls(certificate: Path, url: str) -> AsyncIterator[str]:
    """Speak TLS, as PostgreSQL does, before the server of an address: that of the wheel cannot. Yield the address."""
    server = urlsplit(url)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(65_536):
                writer.write(chunk)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(8)  # asks for TLS
            writer.write(b"S")
            await writer.start_tls(context)
            own_reader, own_writer = await asyncio.open_connection(server.hostname, server.port)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()
            return
        async with asyncio.TaskGroup() as both:
            both.create_task(pass_on(reader, own_writer))
            both.create_task(pass_on(own_reader, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        account = server.netloc.rpartition("@")[0]
        yield server._replace(netloc=f"{account}@127.0.0.1:{port}").geturl()
