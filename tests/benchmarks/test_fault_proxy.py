"""The proxy that tests and benchmarks put between a driver and its server does what it says, and no more."""

import asyncio
import errno
import os
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest

from benchmarks.faults.proxy import LOOPBACK, Proxy

pytestmark = pytest.mark.anyio

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
def anyio_backend() -> str:
    """It is one for asyncio."""
    return "asyncio"


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """A proxy before a server that says everything twice and, when the other side has ended, "bye"."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(100):
                writer.write(piece * 2)
            writer.write(b"bye")
        except ConnectionResetError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, LOOPBACK)
    async with server, Proxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy


async def connect(proxy: Proxy) -> Ends:
    return await asyncio.open_connection(LOOPBACK, proxy.port)


async def ask(ends: Ends, *, within: float = 10) -> bytes:
    reader, writer = ends
    writer.write(b"a")
    async with asyncio.timeout(within):
        return await reader.readexactly(2)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - a socket sets no event
            await asyncio.sleep(0)


def close(*connections: Ends) -> None:
    for _, writer in connections:
        writer.close()


async def test_it_passes_on_what_comes_and_that_a_side_has_ended(proxy: Proxy) -> None:
    one, other = await connect(proxy), await connect(proxy)
    assert await ask(one) == await ask(other) == b"aa"
    assert (proxy.accepted, proxy.connections) == (2, 2)
    one[1].write_eof()
    assert await one[0].read() == b"bye"
    close(one)
    await until(lambda: proxy.connections == 1)
    assert await ask(other) == b"aa"
    close(other)
    assert proxy.accepted == 2


async def test_stall_passes_nothing_and_loses_nothing(proxy: Proxy) -> None:
    old = await connect(proxy)
    await ask(old)
    proxy.stall()
    new = await connect(proxy)
    for ends in (old, new):
        with pytest.raises(TimeoutError):
            await ask(ends, within=0.1)
    proxy.resume()
    for ends in (old, new):
        assert await ends[0].readexactly(2) == b"aa"
    close(old, new)


async def test_reset_reaches_both_sides_and_newcomers_are_served(proxy: Proxy) -> None:
    old = await connect(proxy)
    await ask(old)
    proxy.reset()
    with socket.socket(fileno=os.dup(old[1].get_extra_info("socket").fileno())) as end:
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET  # it has come already
    with pytest.raises(ConnectionError):
        await ask(old)
    await until(lambda: proxy.connections == 0)
    new = await connect(proxy)
    assert await ask(new) == b"aa"
    close(old, new)


async def test_what_is_stalled_can_be_reset(proxy: Proxy) -> None:
    proxy.stall()
    ends = await connect(proxy)
    await until(lambda: proxy.connections == 1)
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await ends[0].read()
    close(ends)


async def test_reset_before_service_closes_the_connection(proxy: Proxy) -> None:
    with socket.create_connection((LOOPBACK, proxy.port)) as end:
        end.settimeout(0)
        await until(lambda: proxy.accepted)  # before the link takes its first step
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(end, 1)


async def test_refuse_spares_old_connections_and_keeps_the_port(proxy: Proxy) -> None:
    port, old = proxy.port, await connect(proxy)
    proxy.refuse()
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await connect(proxy)
    assert await ask(old) == b"aa"
    proxy.resume()
    new = await connect(proxy)
    assert await ask(new) == b"aa"
    assert proxy.port == port
    close(old, new)


async def test_slowness_counts_for_each_way(proxy: Proxy) -> None:
    ends = await connect(proxy)
    await ask(ends)
    proxy.slow(0.1)
    began = time.monotonic()
    assert await ask(ends) == b"aa"
    assert time.monotonic() - began >= 0.2
    proxy.resume()
    close(ends)


async def test_missing_target_resets_the_connection() -> None:
    nowhere = await asyncio.start_server(lambda *_: None, LOOPBACK)
    port = nowhere.sockets[0].getsockname()[1]
    nowhere.close()
    async with Proxy(port) as proxy:
        ends = await connect(proxy)
        with pytest.raises(ConnectionResetError):
            await ends[0].read()
        close(ends)


async def test_leaving_it_ends_what_is_open(proxy: Proxy) -> None:
    async with Proxy(proxy.port) as before:
        before.stall()
        ends = await connect(before)
        await until(lambda: before.connections == 1)
    assert before.connections == 0
    assert await ends[0].read() == b""
    with pytest.raises(ConnectionRefusedError):
        await connect(before)
    close(ends)
