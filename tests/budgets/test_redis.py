"""RedisBudget: which servers and clients it works with, and what a pool sees while its Redis is away."""

import asyncio
import logging
import re
import ssl
import subprocess
import sys
import tempfile
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from redis import Redis, RedisCluster
from redis.asyncio import Redis as AsyncRedis
from redis.sentinel import Sentinel

from connectionpools_fastapi import PoolConfigError
from connectionpools_fastapi._monitoring.health import examine
from connectionpools_fastapi.budgets.redis import RedisBudget
from tests.budgets.support import budget_of, grant_at_once, held_by_members, key, new_name, until
from tests.certificates import write_certificate
from tests.support import Backend, PlainBackend
from tests.wheel_servers import free_port, redis, start

pytestmark = pytest.mark.anyio

COMMANDS = ("evalsha", "eval", "time", "del", "hget", "hset", "hmget", "hdel", "zadd", "zrem", "zscore", "zcard")
RANGES = ("zrange", "zrevrange", "zrangebyscore")


@pytest.fixture
def name(redis_url: str) -> str:
    """Return the name of a budget that grants at once."""
    found = new_name()
    grant_at_once(redis_url, found)
    return found


def lease_one(server: Any, name: str, **options: Any) -> None:
    """Lease one resource of a pool with this budget."""
    pool = PlainBackend().pool(limit=1, timeout=10, budget=RedisBudget(server, name, total=1, **options))
    with pool, pool.lease():
        assert budget_of(pool).held == 1


def refusal(server: Any, name: str, **options: Any) -> str:
    """Return the one line with which a pool does not open."""
    with pytest.raises(PoolConfigError) as caught:
        PlainBackend().pool(budget=RedisBudget(server, name, total=1, **options)).open_sync()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- servers and clients --------------------------------------------------------------------------


def test_client_of_ones_own_is_used_and_stays_open(redis_url: str, name: str) -> None:
    with Redis.from_url(redis_url, decode_responses=True, protocol=3) as client:
        lease_one(client, name)
        assert client.ping()


def test_budget_works_in_a_cluster() -> None:
    with tempfile.TemporaryDirectory() as folder, redis("--cluster-enabled", "yes", "--dir", folder) as server:
        with Redis.from_url(server.url) as admin:
            admin.execute_command("CLUSTER ADDSLOTS", *range(16384))
        with RedisCluster.from_url(server.url) as client:
            client.hset(
                key("orders", "books"), mapping=dict.fromkeys(("used", "seen", "grace", "hungry", "lacking"), 0)
            )
            lease_one(client, "orders")


def test_budget_follows_a_sentinel() -> None:
    with redis() as server, tempfile.TemporaryDirectory() as folder:
        grant_at_once(server.url, "orders")
        port = free_port()
        config = Path(folder) / "sentinel.conf"
        config.write_text(f"port {port}\nbind 127.0.0.1\nsentinel monitor main 127.0.0.1 {server.port} 1\n")
        watcher = start([*server._words[:1], str(config), "--sentinel"], "+monitor")
        try:
            sentinel: Any = Sentinel([("127.0.0.1", port)], socket_timeout=2.0)  # type: ignore[no-untyped-call]
            lease_one(sentinel.master_for("main", socket_timeout=2.0), "orders")
            assert "does not run scripts" in refusal(f"redis://127.0.0.1:{port}", "orders")
        finally:
            watcher.communicate()


def test_user_of_an_acl_needs_the_keys_of_the_budget(redis_url: str, name: str) -> None:
    user, commands = f"test:{name}", [f"+{command}" for command in COMMANDS + RANGES]
    with Redis.from_url(redis_url) as admin:
        admin.acl_setuser(
            user, enabled=True, passwords=["+secret"], keys=[key(name, "*")], commands=[*commands, "+client|setinfo"]
        )
        try:
            lease_one(redis_url, name, username=user, password="secret")  # noqa: S106
            assert "refuses the script" in refusal(redis_url, "other", username=user, password="secret")  # noqa: S106
            assert "refuses the user or the password" in refusal(redis_url, name, username=user, password="wrong")  # noqa: S106
        finally:
            admin.acl_deluser(user)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_budget_speaks_tls(redis_url: str, name: str, tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path / "both.pem", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while piece := await source.read(65_536):
                sink.write(piece)
        sink.close()
        with suppress(ConnectionError):
            await sink.wait_closed()
        open_ends.remove(sink)

    open_ends: list[asyncio.StreamWriter] = []

    async def decrypt(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", urlsplit(redis_url).port)
        open_ends.extend((writer, far_writer))
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    async with await asyncio.start_server(decrypt, "127.0.0.1", 0, ssl=context) as server:
        url = f"rediss://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        await asyncio.to_thread(lease_one, url, name, ssl_ca_certs=str(certificate))
        await until(lambda: not open_ends)


def test_replica_is_refused() -> None:
    with redis() as server, Redis.from_url(server.url) as admin:
        admin.replicaof("127.0.0.1", "1")
        assert "its Redis is a replica; pass the primary" in refusal(server.url, "orders")


def test_unreachable_redis_is_one_line_without_its_address() -> None:
    port = free_port()
    message = refusal(f"redis://user:secret@127.0.0.1:{port}/0", "orders")
    assert message == "budget 'orders': its Redis does not answer (ConnectionError)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total": 0}, "total must be a whole number, 1 or more; got 0"),
        ({"ttl": 0.5}, "ttl must be a number of seconds, 1 or more; got 0.5"),
        ({"ttl": True}, "ttl must be a number of seconds"),
        ({"server": "localhost:secret"}, "its Redis must be a URL"),
        ({"server": AsyncRedis()}, "pass the URL of a Redis, .*; got redis.asyncio.client.Redis"),
        ({"server": Redis(), "password": "secret"}, "pass the URL of a Redis, with options, or"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PoolConfigError, match=message) as caught:
        RedisBudget(**{"server": "redis://localhost", "name": "orders", "total": 1, **arguments})
    assert "secret" not in str(caught.value)


def test_first_start_on_an_empty_redis_says_why_it_waits(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    name = new_name()
    lease_one(redis_url, name, ttl=1)
    assert caplog.messages == [
        f"the budget {name!r} does not grow for 1 s: its Redis was away, or is new to it",
        f"the budget {name!r} can grow again",
    ]


def test_both_processes_that_disagree_are_named(redis_url: str, name: str) -> None:
    with PlainBackend().pool(budget=RedisBudget(redis_url, name, total=2)):
        message = refusal(redis_url, name)
    assert re.search(r"total=1, ttl=10 here, in process \d+ on \S+, but total=2, ttl=10 in process \d+ on ", message)


# --- while Redis is away --------------------------------------------------------------------------


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_pool_goes_on_while_redis_is_away(caplog: pytest.LogCaptureFixture) -> None:
    back_end = Backend()
    with redis() as server:
        grant_at_once(server.url, "orders")
        pool = back_end.pool(limit=3, budget=RedisBudget(server.url, "orders", total=3, ttl=3))
        async with pool:
            async with pool.lease():
                server.stop()
                await until(lambda: budget_of(pool).trouble)
            health = await examine(pool)
            assert health.verdict == "warn"
            answers_not = r"the budget 'orders' does not grow: its Redis does not answer \(\w+\); this pool keeps to 1"
            assert re.fullmatch(answers_not, health.reason)
            for _ in range(40):  # longer than the time-to-live, and one resource after the other
                async with pool.lease(timeout=20):
                    await anyio.sleep(0.1)
                pool.expire()
            assert pool.stats().creates >= 40
            async with pool.lease(timeout=20):
                server.start()  # knows nothing
                await until(lambda: held_by_members(server.url, "orders") == [1])
            async with pool.lease(timeout=20), pool.lease(timeout=20):
                assert (await examine(pool)).verdict == "pass"
    logged = [record.pool_event for record in caplog.records if record.levelno >= logging.WARNING]  # type: ignore[attr-defined]
    assert (logged[0], logged[-1]) == ("budget_away", "budget_back")


def test_process_gives_its_tokens_back_as_it_ends(redis_url: str, name: str) -> None:
    """It closes its pool at the last moment, or not at all."""
    program = f"""
        import sys
        from connectionpools_fastapi import ConnectionPool
        from connectionpools_fastapi.budgets.redis import RedisBudget
        pool = ConnectionPool(create=object, budget=RedisBudget({redis_url!r}, {name!r}, total=3))
        pool.open_sync()
        with pool.lease():
            if sys.argv[1] == "open":
                sys.exit()
        pool.close_sync()
    """
    for how in ("open", "closed"):
        subprocess.run([sys.executable, "-c", textwrap.dedent(program), how], check=True, timeout=60)  # noqa: S603
        assert held_by_members(redis_url, name) == []
