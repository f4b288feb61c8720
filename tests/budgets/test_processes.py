"""Budgets over processes: a real server never sees more connections than the total, whatever ends, stops or is away."""

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from benchmarks.faults.proxy import Proxy
from tests.budgets.worker import TOTAL, TTL, Workers
from tests.wheel_servers import redis


def test_workers_share_a_servers_connections(postgres_url: str, tmp_path: Path) -> None:
    """Load moves from worker to worker; one is stopped, and goes on, and one is killed."""
    with Workers(postgres_url, tmp_path) as workers:
        for _ in range(3):
            workers.start(str(tmp_path / "tokens"))
        workers.watch_until((1, 1, 1))
        workers.make_busy(0)
        workers.watch_until((4, 1, 1))
        workers.make_busy(1)
        workers.watch_until((1, 4, 1))
        workers.make_busy(0, 1, 2)
        workers.watch_until((2, 2, 2))

        workers.running[0].process.send_signal(signal.SIGSTOP)  # what it holds, it keeps
        workers.make_busy(1)
        workers.watch_until((2, 3, 1))
        workers.running[0].process.send_signal(signal.SIGCONT)
        workers.watch_until((1, 4, 1))
        assert workers.most <= TOTAL

        workers.running[1].process.kill()
        workers.running[1].wait()
        workers.make_busy(0)
        workers.watch_until((5, None, 1))
        for worker in (workers.running[0], workers.running[2]):
            assert "Error" not in worker.log, worker.log


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_hosts_share_a_servers_connections(postgres_url: str, tmp_path: Path) -> None:
    """Load moves from host to host while their Redis is emptied, restarted, paused, and cut off from one of them."""
    async with AsyncExitStack() as stack:
        server = stack.enter_context(redis())
        workers = stack.enter_context(Workers(postgres_url, tmp_path))
        proxies = [await stack.enter_async_context(Proxy(server.port)) for _ in range(3)]
        for proxy in proxies:
            workers.start(f"redis://127.0.0.1:{proxy.port}/0")

        async def hold(*expected: int) -> None:
            await asyncio.to_thread(workers.watch_until, expected)

        await hold(1, 1, 1)
        workers.make_busy(0)
        await hold(4, 1, 1)

        await asyncio.to_thread(server.stop)  # and so empty as it comes back
        workers.make_busy(0, 1, 2)
        await asyncio.to_thread(workers.watch, 2 * TTL)
        assert workers.held() == (4, 1, 1)
        await asyncio.to_thread(server.start)
        await hold(2, 2, 2)

        for proxy in proxies:
            proxy.stall()
        workers.make_busy(1)
        await asyncio.to_thread(workers.watch, 2 * TTL)
        assert workers.held() == (2, 2, 2)
        for proxy in proxies:
            proxy.resume()
        await hold(1, 4, 1)
        assert workers.most <= TOTAL

        proxies[1].refuse()
        proxies[1].reset()
        workers.make_busy(0, 1)
        await hold(5, 4, 1)  # after one time-to-live; what the host that is cut off holds, goes on
        proxies[1].resume()
        await asyncio.to_thread(workers.watch_until, (3, 2, 1), (2, 3, 1))

        workers.running[0].process.send_signal(signal.SIGSTOP)
        workers.make_busy(1)
        await asyncio.to_thread(workers.watch_until, (None, 5, 1))
        workers.running[0].process.send_signal(signal.SIGCONT)
        await hold(1, 4, 1)
        for worker in workers.running:
            assert "Error" not in worker.log.replace("(ConnectionError)", "").replace("(TimeoutError)", ""), worker.log
