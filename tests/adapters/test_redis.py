"""The Redis adapter, on a real Redis: nothing leaks from one lease to the next, and what is lost is made anew."""

import asyncio
import gc
import importlib.util
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, ReadOnlyError, RedisError, ResponseError, WatchError
from redis.exceptions import ConnectionError as LostError

from connectionpools_fastapi import (
    ConnectionPool,
    NotLeased,
    PoolConfigError,
    PoolError,
    ResourceManager,
    ResourceUnavailable,
)
from connectionpools_fastapi.adapters import _redis_connection
from connectionpools_fastapi.adapters import redis as adapter
from connectionpools_fastapi.adapters._redis_session import HARMLESS
from connectionpools_fastapi.adapters.redis import RedisManager
from tests.wheel_servers import RedisServer, redis

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """redis-py knows asyncio only."""
    return "asyncio"


@pytest.fixture
async def admin(redis_url: str) -> AsyncIterator[Any]:
    """A client beside the pool, which clears up in the end."""
    async with Redis.from_url(redis_url, decode_responses=True, protocol=2) as client:
        yield client
        await client.delete(*KEYS)
        await client.acl_deluser("test:guest")
        await raw(client, "SELECT", 1)
        await client.delete(*KEYS)


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A server that may be killed."""
    with redis() as server:
        yield server


KEYS = ("test:key", "test:other", "test:watched", "test:queue")


@asynccontextmanager
async def cache_of(manager: RedisManager, **options: Any) -> AsyncIterator[ConnectionPool[Any]]:
    """A pool of one connection; its clients are `Any`, since redis-py's types do not tell plain from async."""
    async with ConnectionPool(manager, **{"limit": 1, "name": "cache", **options}) as pool:
        yield pool


def socket_of(client: Any) -> str:
    """What tells a connection from any other, without asking the server."""
    connection = client.connection_pool.connection
    return "{}:{}".format(*connection._writer.get_extra_info("sockname"))


async def raw(client: Any, *words: Any) -> Any:
    """Send a command by its words."""
    return await client.execute_command(*words)


async def send_only(client: Any, *words: str) -> None:
    """Send a command and do not read its reply."""
    connection = await client.connection_pool.get_connection()
    await connection.send_command(*words)
    await client.connection_pool.release(connection)


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    """Ask the server again and again; each time is a round trip."""
    async with asyncio.timeout(10):
        while not await condition():
            pass


async def is_blocked(admin: Any) -> bool:
    return bool((await admin.info("clients"))["blocked_clients"])


async def is_not_blocked(admin: Any) -> bool:
    return not await is_blocked(admin)


# What a lease may leave behind, and what the next one would see of it.

Leave = Callable[[Any, Any], Awaitable[Any]]
Look = Callable[[Any, Any], Awaitable[bool]]


async def select(client: Any, _: Any) -> None:
    await client.select(1)


async def select_by_hand(client: Any, _: Any) -> None:
    await raw(client, b"select", "1")


async def select_in_a_pipeline(client: Any, _: Any) -> None:
    await client.pipeline(transaction=False).execute_command("SELECT", 1).get("test:key").execute()


async def is_in_database_0(client: Any, _: Any) -> bool:
    return bool((await client.client_info())["db"] == 0)


async def set_name(client: Any, _: Any) -> None:
    await client.client_setname("somebody")


async def has_no_name(client: Any, _: Any) -> bool:
    return not await client.client_getname()


async def become_a_guest(client: Any, admin: Any) -> None:
    await admin.acl_setuser("test:guest", enabled=True, passwords=["+open"], commands=["+get", "+reset"], keys=["*"])
    await raw(client, "AUTH", "test:guest", "open")


async def is_default_user(client: Any, _: Any) -> bool:
    with suppress(ResponseError):  # it may not even ask
        return bool(await client.acl_whoami() == "default")
    return False


async def track(client: Any, _: Any) -> None:
    await raw(client, "CLIENT", "TRACKING", "ON")


async def is_not_tracking(client: Any, _: Any) -> bool:
    return "off" in str(await raw(client, "CLIENT", "TRACKINGINFO"))


async def speak_protocol_2(client: Any, _: Any) -> None:
    await raw(client, "HELLO", 2)


async def speaks_protocol_3(client: Any, _: Any) -> bool:
    return isinstance(await raw(client, "HELLO"), dict)


async def watch(client: Any, _: Any) -> None:
    await raw(client, "WATCH", "test:watched")


async def can_run_a_transaction(client: Any, admin: Any) -> bool:
    await admin.incr("test:watched")
    try:
        return bool(await client.pipeline().set("test:key", "1").get("test:key").execute() == [True, "1"])
    except WatchError:
        return False


async def open_multi(client: Any, _: Any) -> None:
    await raw(client, "MULTI")
    await raw(client, "SET", "test:key", "from an open transaction")


async def watch_and_open_multi(client: Any, _: Any) -> None:
    await watch(client, _)
    await open_multi(client, _)


async def watch_within_a_multi(client: Any, _: Any) -> None:
    await open_multi(client, _)
    await raw(client, "UNWATCH")  # is queued
    with pytest.raises(ResponseError):
        await watch(client, _)


async def subscribe(client: Any, _: Any) -> None:
    await raw(client, "SUBSCRIBE", "test:news")


async def subscribe_to_a_pattern(client: Any, _: Any) -> None:
    await raw(client, "PSUBSCRIBE", "test:*")


async def gets_its_replies(client: Any, admin: Any) -> bool:
    await admin.publish("test:news", "news")
    await admin.set("test:key", "value")
    with suppress(RedisError, TimeoutError):
        async with asyncio.timeout(10):
            return bool(await client.get("test:key") == "value")
    return False


LEFTOVERS: list[tuple[Leave, Look, tuple[int, ...]]] = [
    (select, is_in_database_0, (2, 3)),
    (select_by_hand, is_in_database_0, (2, 3)),
    (select_in_a_pipeline, is_in_database_0, (2, 3)),
    (set_name, has_no_name, (2, 3)),
    (become_a_guest, is_default_user, (2, 3)),
    (track, is_not_tracking, (3,)),
    (speak_protocol_2, speaks_protocol_3, (3,)),
    (watch, can_run_a_transaction, (2, 3)),
    (open_multi, gets_its_replies, (2, 3)),
    (watch_and_open_multi, can_run_a_transaction, (2, 3)),
    (watch_within_a_multi, gets_its_replies, (2, 3)),
    (subscribe, gets_its_replies, (2,)),
    (subscribe_to_a_pattern, gets_its_replies, (2,)),
]
CASES = [
    pytest.param(leave, look, protocol, id=f"{leave.__name__}-{protocol}")
    for leave, look, protocols in LEFTOVERS
    for protocol in protocols
]


class Careless(RedisManager):
    """One that does nothing as a connection comes back: what shows that there would be something to see."""

    change = ResourceManager.change


async def two_leases(manager: RedisManager, admin: Any, leave: Leave, look: Look) -> tuple[bool, bool]:
    """Return whether the second lease sees nothing of the first, and whether it is the same connection."""
    async with cache_of(manager, check_after=3600) as pool:  # a check would find some of it
        async with pool.lease() as client:
            assert await look(client, admin)
            first = socket_of(client)
            await leave(client, admin)
        async with pool.lease() as client:
            second = socket_of(client)
            return await look(client, admin), first == second


@pytest.mark.parametrize(("leave", "look", "protocol"), CASES)
async def test_lease_sees_nothing_the_previous_one_left(
    redis_url: str, admin: Any, leave: Leave, look: Look, protocol: int
) -> None:
    """Both leases have the same connection."""
    manager = RedisManager(redis_url, decode_responses=True, protocol=protocol)
    assert await two_leases(manager, admin, leave, look) == (True, True)


@pytest.mark.parametrize(("leave", "look", "protocol"), CASES)
async def test_without_change_it_would_see_it(
    redis_url: str, admin: Any, leave: Leave, look: Look, protocol: int
) -> None:
    manager = Careless(redis_url, decode_responses=True, protocol=protocol)
    assert await two_leases(manager, admin, leave, look) == (False, True)


TRANSACTIONS = {watch, open_multi, watch_and_open_multi, watch_within_a_multi}
IN_A_TRANSACTION = [case for case in CASES if case.values[0] in TRANSACTIONS]
OUTSIDE = [case for case in CASES if case not in IN_A_TRANSACTION]


@pytest.mark.parametrize(("leave", "look", "protocol"), IN_A_TRANSACTION)
async def test_reset_transaction_ends_what_is_watched_or_open(
    redis_url: str, admin: Any, leave: Leave, look: Look, protocol: int
) -> None:
    manager = RedisManager(redis_url, reset="transaction", decode_responses=True, protocol=protocol)
    assert await two_leases(manager, admin, leave, look) == (True, True)


@pytest.mark.parametrize(("leave", "look", "protocol"), OUTSIDE)
async def test_reset_transaction_keeps_all_else(
    redis_url: str, admin: Any, leave: Leave, look: Look, protocol: int
) -> None:
    manager = RedisManager(redis_url, reset="transaction", decode_responses=True, protocol=protocol)
    assert await two_leases(manager, admin, leave, look) == (False, True)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_user_without_permission_to_reset_is_not_seen(redis_url: str, admin: Any, protocol: int) -> None:
    async def become_nobody(client: Any, admin: Any) -> None:
        await admin.acl_setuser("test:guest", enabled=True, passwords=["+open"], commands=["+get"], keys=["*"])
        await raw(client, "AUTH", "test:guest", "open")

    manager = RedisManager(redis_url, decode_responses=True, protocol=protocol)
    is_gone, _ = await two_leases(manager, admin, become_nobody, is_default_user)  # Redis 6 discards, 7 resets
    assert is_gone


@pytest.mark.parametrize("reset", ["session", "transaction"])
async def test_what_leaves_nothing_behind_costs_no_round_trip(redis_url: str, admin: Any, reset: Any) -> None:
    async with cache_of(RedisManager(redis_url, reset=reset)) as pool, admin.monitor() as monitor:
        async with pool.lease() as client:
            here = socket_of(client)
            await client.set("test:key", "1")
            await client.pipeline().incr("test:key").execute()
            async with client.pipeline() as pipe:
                await pipe.watch("test:key")
                pipe.multi()
                await pipe.incr("test:key").execute()
            with pytest.raises(ResponseError):
                await client.lpush("test:key", "no list")
            with pytest.raises(RedisError):
                await client.pipeline().set("test:key", object()).execute()
            await client.lock("test:other", timeout=1).acquire()
        async with pool.lease() as client:
            assert socket_of(client) == here
            assert await client.get("test:key") == b"3"
        said: list[str] = []
        async with asyncio.timeout(10):
            while not said or said[-1] != "GET test:key":
                heard = await monitor.next_command()
                if f"{heard['client_address']}:{heard['client_port']}" == here:
                    said.append(heard["command"])
    multi = ["MULTI", "INCRBY test:key 1", "EXEC"]
    said = said[said.index("SET test:key 1") :]
    assert said.pop(-2).startswith("SET test:other")  # the lock, with a token
    assert said == ["SET test:key 1", *multi, "WATCH test:key", *multi, "LPUSH test:key no list", "GET test:key"]


async def test_touched_session_matches_its_options_again(redis_url: str, admin: Any) -> None:
    manager = RedisManager(redis_url.rsplit("/", 1)[0], db=1, client_name="test:named", protocol=3)
    async with cache_of(manager) as pool:
        for _ in range(2):
            async with pool.lease() as client:
                here = socket_of(client)
                info = await client.client_info()
                assert (info["db"], info["name"]) == (1, "test:named")
                assert isinstance(await raw(client, "HELLO"), dict)
                await client.select(0)
                await client.client_setname("another")
                await speak_protocol_2(client, admin)
        async with pool.lease() as client:
            assert socket_of(client) == here


async def test_after_a_reset_it_is_the_user_of_the_url_again(redis_url: str, admin: Any) -> None:
    await admin.acl_setuser("test:guest", enabled=True, passwords=["+open"], commands=["+@all"], keys=["*"])
    parts = urlsplit(redis_url)
    for protocol in (2, 3):
        manager = RedisManager(f"redis://test%3Aguest:open@{parts.netloc}/0", protocol=protocol)
        async with cache_of(manager) as pool:
            async with pool.lease() as client:
                here = socket_of(client)
                await client.select(1)
            async with pool.lease() as client:
                assert socket_of(client) == here
                assert await client.acl_whoami() in {b"test:guest", "test:guest"}


async def test_readonly_in_a_cluster_lasts_one_lease() -> None:
    async def reads_from_replicas(client: Any) -> bool:
        return "r" in (await client.client_info())["flags"]

    with tempfile.TemporaryDirectory() as folder, redis("--cluster-enabled", "yes", "--dir", folder) as server:
        async with cache_of(RedisManager(server.url)) as pool:
            async with pool.lease() as client:
                here = socket_of(client)
                await client.readonly()
                assert await reads_from_replicas(client)
            async with pool.lease() as client:
                assert socket_of(client) == here
                assert not await reads_from_replicas(client)


# What cannot be reset is destroyed.


async def leave_a_pubsub_open(client: Any, _: Any) -> Any:
    pubsub = client.pubsub()
    await pubsub.subscribe("test:news")
    return pubsub.get_message


async def leave_a_pattern_open(client: Any, _: Any) -> Any:
    pubsub = client.pubsub()
    await pubsub.psubscribe("test:*")
    return pubsub.get_message


async def leave_a_pipeline_watching(client: Any, _: Any) -> Any:
    pipe = client.pipeline()
    await pipe.watch("test:watched")

    async def use() -> None:
        try:
            await pipe.get("test:key")
        finally:
            await pipe.aclose()

    return use


async def leave_a_client_of_the_client(client: Any, _: Any) -> Any:
    other = await client.client()

    async def use() -> None:
        try:
            await other.get("test:key")
        finally:
            await other.aclose()

    return use


async def leave_a_message_unread(client: Any, admin: Any) -> None:
    await raw(client, "SUBSCRIBE", "test:news")
    await admin.publish("test:news", "news")


async def leave_a_reply_unread(client: Any, _: Any) -> None:
    await send_only(client, "ECHO", "late")


async def leave_a_reply_unread_that_is_not_there_yet(client: Any, _: Any) -> None:
    await send_only(client, "BLPOP", "test:queue", "0")


async def leave_replies_turned_off(client: Any, _: Any) -> None:
    await send_only(client, "CLIENT REPLY", "OFF")


async def leave_it_closed(client: Any, _: Any) -> None:
    await client.connection_pool.disconnect()


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("reset", ["session", "transaction"])
@pytest.mark.parametrize(
    "leave",
    [
        leave_a_pubsub_open,
        leave_a_pattern_open,
        leave_a_pipeline_watching,
        leave_a_client_of_the_client,
        leave_a_message_unread,
        leave_a_reply_unread,
        leave_a_reply_unread_that_is_not_there_yet,
        leave_replies_turned_off,
        leave_it_closed,
    ],
)
async def test_connection_still_in_use_is_destroyed(
    redis_url: str, admin: Any, leave: Leave, reset: Any, protocol: int
) -> None:
    if protocol == 3 and leave is leave_a_message_unread:
        return  # there no reply follows SUBSCRIBE
    async with cache_of(RedisManager(redis_url, reset=reset, decode_responses=True, protocol=protocol)) as pool:
        async with pool.lease() as client:
            here = socket_of(client)
            use = await leave(client, admin)
        async with pool.lease() as client:
            assert socket_of(client) != here
            assert await gets_its_replies(client, admin)
            assert await can_run_a_transaction(client, admin)
            if use is not None:  # nor does it connect behind the pool's back
                with pytest.raises(NotLeased):
                    await use()
        discards = pool.stats().discards
        assert discards["change"] + discards["check"] == 1  # by the latter if a message came that late


async def is_not_debugging(client: Any, _: Any) -> bool:
    return bool(await client.eval("return 1", 0) == 1)


async def debug_scripts(client: Any, _: Any) -> None:
    await raw(client, "SCRIPT DEBUG", "YES")


async def test_lease_sees_nothing_that_a_server_reset_keeps(redis_url: str, admin: Any) -> None:
    assert await two_leases(RedisManager(redis_url), admin, debug_scripts, is_not_debugging) == (True, False)
    assert await two_leases(Careless(redis_url), admin, debug_scripts, is_not_debugging) == (False, True)
    transaction = RedisManager(redis_url, reset="transaction")
    assert await two_leases(transaction, admin, debug_scripts, is_not_debugging) == (False, True)


@pytest.mark.parametrize(
    "words",
    [
        ("CLIENT", "NO-EVICT", "ON"),  # of Redis 7, whose RESET keeps it
        ("client no-touch", "ON"),
        ("CLIENT SETINFO", "LIB-NAME", "another"),
        ("CLIENT", "SOMETHING-NEW"),
        ("REPLCONF", "listening-port", "1"),
        ("HIMPORT", "PREPARE", "fields"),
    ],
)
async def test_nor_is_what_it_may_not_undo(redis_url: str, words: tuple[str, ...]) -> None:
    async with cache_of(RedisManager(redis_url)) as pool:
        async with pool.lease() as client:
            with suppress(ResponseError):  # not each server knows each of them
                await raw(client, *words)
        async with pool.lease() as client:
            assert await client.get("test:key") is None
        assert pool.stats().discards["change"] == 1


async def test_unsent_pipeline_is_never_sent(redis_url: str) -> None:
    async with cache_of(RedisManager(redis_url)) as pool:
        async with pool.lease() as client:
            here = socket_of(client)
            client.pipeline().set("test:key", "never").set("test:other", "never")
        async with pool.lease() as client:
            assert socket_of(client) == here
            assert await client.pipeline().get("test:key").execute() == [None]


@pytest.mark.parametrize("protocol", [2, 3])
async def test_late_reply_misses_the_next_lease(redis_url: str, admin: Any, protocol: int) -> None:
    """The command was cancelled."""
    async with cache_of(RedisManager(redis_url, decode_responses=True, protocol=protocol)) as pool:

        async def wait_for_work() -> None:
            async with pool.lease() as client:
                await client.blpop(["test:queue"], 0)

        waiting = asyncio.create_task(wait_for_work())
        await until(lambda: is_blocked(admin))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with pool.lease() as client:
            await until(lambda: is_not_blocked(admin))
            await admin.rpush("test:queue", "work")
            assert await gets_its_replies(client, admin)
            assert await client.lpop("test:queue") == "work"


async def test_late_reply_misses_the_next_command_of_the_lease(redis_url: str, admin: Any) -> None:
    async with cache_of(RedisManager(redis_url, decode_responses=True)) as pool, pool.lease() as client:
        waiting = asyncio.create_task(client.blpop(["test:queue"], 0))
        await until(lambda: is_blocked(admin))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await admin.rpush("test:queue", "work")
        assert await gets_its_replies(client, admin)


async def test_pending_command_ends_with_its_lease(redis_url: str, admin: Any) -> None:
    async with cache_of(RedisManager(redis_url, decode_responses=True)) as pool:
        async with pool.lease() as client:
            waiting = asyncio.create_task(client.blpop(["test:queue"], 0))
            await until(lambda: is_blocked(admin))
        async with pool.lease() as client:
            with pytest.raises((RedisError, OSError, NotLeased)):
                await asyncio.wait_for(waiting, 10)
            assert await gets_its_replies(client, admin)


# What a lease keeps in hand is dead as it ends.


async def send_queued(client: Any) -> None:
    """Begin what each further command on the connection would show in, and each lost reply would break."""
    await raw(client, "WATCH", "test:watched")
    await raw(client, "MULTI")
    await raw(client, "SET", "test:key", "mine")


Step = Callable[[], Awaitable[Any]]
Kept = tuple[Step, Step]  # what uses it, and what closes it


async def nothing() -> None:
    pass


async def keep_a_client(client: Any, _: Any) -> Kept:
    return lambda: client.get("test:key"), client.aclose


async def keep_an_entered_client(client: Any, _: Any) -> Kept:
    await client.__aenter__()
    return lambda: client.incr("test:other"), lambda: client.__aexit__(None, None, None)


async def keep_a_client_of_the_client(client: Any, _: Any) -> Kept:
    other = await client.client()
    return lambda: other.get("test:key"), other.aclose


async def keep_a_pool(client: Any, _: Any) -> Kept:
    pool = client.connection_pool
    return pool.get_connection, pool.aclose


async def keep_a_connection(client: Any, _: Any) -> Kept:
    connection = await client.connection_pool.get_connection()
    await client.connection_pool.release(connection)
    return lambda: connection.send_command("PING"), connection.disconnect


async def keep_an_unread_connection(client: Any, _: Any) -> Kept:
    connection = await client.connection_pool.get_connection()
    await client.connection_pool.release(connection)
    return connection.read_response, connection.disconnect


async def keep_packed_commands(client: Any, _: Any) -> Kept:
    connection = await client.connection_pool.get_connection()
    packed = connection.pack_commands([("PING",), ("PING",)])
    for _ in range(2):
        await connection.send_command("PING")
    for _ in range(2):
        await connection.read_response()
    await client.connection_pool.release(connection)
    return lambda: connection.send_packed_command(packed), connection.disconnect


async def keep_a_pipeline(client: Any, _: Any) -> Kept:
    pipe = client.pipeline().set("test:key", "not mine")
    return pipe.execute, pipe.aclose


async def keep_a_pipeline_that_watches(client: Any, _: Any) -> Kept:
    pipe = client.pipeline()
    await pipe.watch("test:other")
    return lambda: pipe.get("test:key"), pipe.aclose


async def keep_a_pipeline_in_multi(client: Any, _: Any) -> Kept:
    pipe = client.pipeline()
    await pipe.watch("test:other")
    pipe.multi()
    pipe.set("test:key", "not mine")
    return pipe.execute, pipe.aclose


async def keep_a_subscription(client: Any, _: Any) -> Kept:
    pubsub = client.pubsub()
    await pubsub.subscribe("test:news")
    return lambda: pubsub.get_message(timeout=None), pubsub.aclose


async def keep_a_subscription_to_be_changed(client: Any, _: Any) -> Kept:
    pubsub = client.pubsub()
    await pubsub.subscribe("test:news")
    return lambda: pubsub.unsubscribe("test:news"), pubsub.aclose


async def keep_a_listener(client: Any, _: Any) -> Kept:
    pubsub = client.pubsub()
    await pubsub.subscribe("test:news")
    messages = pubsub.listen()
    await anext(messages)
    return messages.__anext__, messages.aclose


async def keep_a_closed_pubsub(client: Any, _: Any) -> Kept:
    pubsub = client.pubsub()
    await pubsub.subscribe("test:news")
    await pubsub.aclose()
    return lambda: pubsub.subscribe("test:news"), pubsub.aclose


async def keep_a_monitor(client: Any, _: Any) -> Kept:
    monitor = await client.monitor().__aenter__()
    return monitor.next_command, lambda: monitor.__aexit__(None, None, None)


async def keep_a_closed_monitor(client: Any, _: Any) -> Kept:
    async with client.monitor() as monitor:
        pass
    return monitor.next_command, lambda: monitor.__aexit__(None, None, None)


async def keep_a_scan(client: Any, admin: Any) -> Kept:
    await admin.mset({"test:key": "1", "test:other": "2"})
    keys = client.scan_iter(count=1)
    await anext(keys)

    async def exhaust() -> None:
        async for _ in keys:
            pass
        await client.get("test:key")  # where all were in the first reply

    return exhaust, keys.aclose


async def keep_a_lock(client: Any, _: Any) -> Kept:
    lock = client.lock("test:other", timeout=10)
    assert await lock.acquire()
    return lambda: lock.extend(10), lock.release


async def keep_a_script(client: Any, _: Any) -> Kept:
    script = client.register_script("return redis.call('GET', KEYS[1])")
    await script(["test:key"])
    return lambda: script(["test:key"]), nothing


async def keep_a_coroutine(client: Any, _: Any) -> Kept:
    command = client.get("test:key")
    return lambda: command, lambda: closed(command)


async def keep_a_coroutine_of_a_connection(client: Any, _: Any) -> Kept:
    connection = await client.connection_pool.get_connection()
    command = connection.send_command("PING")
    await client.connection_pool.release(connection)
    return lambda: command, lambda: closed(command)


async def closed(coroutine: Any) -> None:
    coroutine.close()


KEEPERS = [
    keep_a_client,
    keep_an_entered_client,
    keep_a_client_of_the_client,
    keep_a_pool,
    keep_a_connection,
    keep_an_unread_connection,
    keep_packed_commands,
    keep_a_pipeline,
    keep_a_pipeline_that_watches,
    keep_a_pipeline_in_multi,
    keep_a_subscription,
    keep_a_subscription_to_be_changed,
    keep_a_listener,
    keep_a_closed_pubsub,
    keep_a_monitor,
    keep_a_closed_monitor,
    keep_a_scan,
    keep_a_lock,
    keep_a_script,
    keep_a_coroutine,
    keep_a_coroutine_of_a_connection,
]


async def use(kept: list[Kept]) -> None:
    with pytest.raises(NotLeased, match="pool 'cache'"):
        await kept[0][0]()


async def close(kept: list[Kept]) -> None:
    with suppress(NotLeased):
        await kept[0][1]()


async def collect(kept: list[Kept]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # redis-py tells of what was not closed
        kept.clear()
        gc.collect(1)  # it is young


@pytest.fixture(params=["session", "transaction"])
def reset(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[2, 3])
def manager(request: pytest.FixtureRequest, redis_url: str, reset: Any) -> RedisManager:
    return RedisManager(redis_url, reset=reset, protocol=request.param)


@pytest.mark.parametrize("late", [use, close, collect])
@pytest.mark.parametrize("keep", KEEPERS)
async def test_next_lease_does_not_notice_what_was_kept(
    manager: RedisManager, admin: Any, keep: Callable[[Any, Any], Awaitable[Kept]], late: Any
) -> None:
    async with cache_of(manager) as pool:
        async with pool.lease() as client:
            kept = [await keep(client, admin)]
        del client
        async with pool.lease() as client:
            here = socket_of(client)
            await send_queued(client)
            await late(kept)
            assert await raw(client, "EXEC") == [b"OK"]
            assert await client.get("test:key") == b"mine"
            assert socket_of(client) == here
        await collect(kept)


async def test_pipeline_that_watches_may_be_closed_late(redis_url: str) -> None:
    async with cache_of(RedisManager(redis_url)) as pool:
        async with pool.lease() as client:
            pipe = client.pipeline()
            await pipe.watch("test:key")
        async with pool.lease() as client:
            await send_queued(client)
            await pipe.aclose()
            del pipe  # and redis-py would tell of one that is open
            assert await raw(client, "EXEC") == [b"OK"]


async def test_command_in_line_ends_with_its_lease(redis_url: str, admin: Any) -> None:
    async with cache_of(RedisManager(redis_url)) as pool:
        async with pool.lease() as client:
            first = asyncio.create_task(client.blpop(["test:queue"], 0))
            await until(lambda: is_blocked(admin))
            second = asyncio.create_task(client.set("test:key", "late"))
            await asyncio.sleep(0)
            first.cancel()
        async with pool.lease() as client:
            await send_queued(client)
            with pytest.raises(NotLeased):
                await second
            assert await raw(client, "EXEC") == [b"OK"]


async def test_settings_of_a_client_end_with_its_lease(redis_url: str, admin: Any, reset: Any) -> None:
    await admin.set("test:key", "value")
    async with cache_of(RedisManager(redis_url, reset=reset)) as pool:
        async with pool.lease() as client:
            here, retry = socket_of(client), client.get_retry()
            client.set_response_callback("get", lambda _: "whatever")
            assert await client.get("test:key") == "whatever"
            client.set_retry(Retry(NoBackoff(), 3))
            assert client.get_retry() is client.connection_pool.connection.retry is not retry
        async with pool.lease() as client:
            assert socket_of(client) == here
            assert await client.execute_command("get", "test:key") == b"value"
            assert client.get_retry() is retry
            assert client.connection_pool.connection.retry._retries == 0


async def test_handler_of_a_pubsub_ends_with_its_lease(redis_url: str) -> None:
    heard = []

    async def hear(message: Any) -> None:
        heard.append(message)

    async with cache_of(RedisManager(redis_url, protocol=3)) as pool:
        for handler in (hear, None):
            async with pool.lease() as client, client.pubsub(push_handler_func=handler) as pubsub:
                await pubsub.subscribe("test:news")
                await pubsub.get_message(timeout=10)
                await pubsub.aclose()
                await client.get("test:key")  # connects anew
        assert len(heard) == 1
        assert pool.stats().creates == 1


async def test_fields_declared_for_himport_end_with_their_lease(redis_url: str, reset: Any) -> None:
    async with cache_of(RedisManager(redis_url, reset=reset)) as pool, pool.lease() as client:
        if not hasattr(client, "himport_prepare"):
            pytest.skip("this redis-py knows no HIMPORT")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is an experiment of redis-py
            await client.himport_prepare("fields", ["one", "two"])
        await pool.release(client)
        async with pool.lease() as next_client:
            assert not next_client.himport_registry


async def test_detached_client_goes_on(redis_url: str) -> None:
    async with cache_of(RedisManager(redis_url)) as pool:
        client = await pool.acquire()
        here = socket_of(client)
        assert pool.detach(client) is client
        async with pool.lease() as other:
            assert socket_of(other) != here
            assert await client.get("test:key") is None
        assert socket_of(client) == here
        await client.connection_pool.aclose()


async def test_open_multi_is_told(redis_url: str, admin: Any, reset: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with cache_of(RedisManager(redis_url, reset=reset)) as pool:
        async with pool.lease() as client:
            await open_multi(client, admin)
            await raw(client, "EXEC")
            await client.pipeline().set("test:key", "1").execute()
            await watch(client, admin)
        assert not caplog.records
        async with pool.lease(holder="report") as client:
            here = socket_of(client)
            await open_multi(client, admin)
        for _ in range(2):
            async with pool.lease() as client:
                assert socket_of(client) == here
        (record,) = caplog.records
        assert record.getMessage() == (
            "pool 'cache': report: MULTI was sent and EXEC was not, so what was queued is lost; send EXEC, or use "
            "client.pipeline()"
        )


# One connection, never two.


async def test_a_lease_is_one_connection_whatever_is_done_with_it(redis_url: str, admin: Any) -> None:
    async with cache_of(RedisManager(redis_url, client_name="test:one")) as pool, pool.lease() as client:
        here = socket_of(client)
        await asyncio.gather(*(client.incr("test:key") for _ in range(50)))
        await asyncio.gather(*(client.pipeline().incr("test:key").execute() for _ in range(50)))
        async with client.lock("test:other"):
            assert await client.register_script("return redis.call('GET', KEYS[1])")(["test:key"]) == b"100"
        async with client.pubsub() as pubsub:
            await pubsub.subscribe("test:news")
            await admin.publish("test:news", "news")
            heard: Any = None
            while heard is None or heard["type"] != "message":
                heard = await pubsub.get_message(timeout=10)
            assert heard["data"] == b"news"
            names = [entry["name"] for entry in await admin.client_list()]
            assert names.count("test:one") == 1
        assert await client.get("test:key") == b"100"
        assert [entry["name"] for entry in await admin.client_list()].count("test:one") == 1
        assert socket_of(client) != here  # redis-py closes the connection of a PubSub


async def test_closed_pubsub_leaves_lease_and_connection_usable(redis_url: str) -> None:
    async with cache_of(RedisManager(redis_url)) as pool:
        async with pool.lease() as client:
            pubsub = client.pubsub()
            await pubsub.subscribe("test:news")  # and its reply is not read
            await pubsub.aclose()
            assert await client.get("test:key") is None
            here = socket_of(client)
        async with pool.lease() as client:
            assert socket_of(client) == here


async def test_caller_that_would_wait_for_itself_is_refused(redis_url: str) -> None:
    async with cache_of(RedisManager(redis_url)) as pool, pool.lease() as client:
        pipe = client.pipeline()
        await pipe.watch("test:key")
        with pytest.raises(LostError, match="the one connection of this lease is in use"):
            await client.get("test:key")
        await pipe.aclose()
        assert await client.get("test:key") is None


async def test_waiting_for_another_task_in_vain_raises(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_redis_connection, "TURN_TIMEOUT", 0.01)
    async with cache_of(RedisManager(redis_url)) as pool, pool.lease() as client:
        pipe = client.pipeline()
        await asyncio.create_task(pipe.watch("test:key"))
        with pytest.raises(LostError, match="the one connection of this lease is in use"):
            await client.get("test:key")
        await pipe.aclose()


async def test_options_stay_from_lease_to_lease(redis_url: str, admin: Any) -> None:
    await admin.set("test:key", "value")
    for decode, value in ((True, "value"), (False, b"value")):
        async with cache_of(RedisManager(redis_url, decode_responses=decode)) as pool:
            for _ in range(2):
                async with pool.lease() as client:
                    assert await client.get("test:key") == value
                    await client.select(1)


async def test_a_unix_socket_serves_as_well() -> None:
    with tempfile.TemporaryDirectory() as folder, redis("--unixsocket", f"{folder}/redis") as _:
        async with cache_of(RedisManager(f"unix://{folder}/redis?db=1", protocol=3)) as pool:
            async with pool.lease() as client:
                await client.select(0)
            async with pool.lease() as client:
                assert await is_in_database_0(client, None) is False
            assert pool.stats().creates == 1


# The list of commands that leave nothing behind.


async def test_commands_that_change_a_session_are_not_harmless(admin: Any) -> None:
    of_the_session = {"connection", "transaction", "pubsub"}
    known = set()
    for category in of_the_session:
        known |= {name.split("|")[0].upper() for name in await raw(admin, "ACL CAT", category)}
    assert {"WATCH", "SUBSCRIBE", "CLIENT", "AUTH", "HELLO", "RESET"} <= known
    assert not {"SELECT", "SCRIPT"} & HARMLESS  # these are of other categories to Redis 6
    # WAIT belongs to the connection since Redis 7, WAITAOF since Redis 8, and both only wait.
    assert known & HARMLESS <= {"PING", "ECHO", "COMMAND", "PUBLISH", "SPUBLISH", "PUBSUB", "WAIT", "WAITAOF"}


async def test_a_script_cannot_change_the_session_of_its_caller(redis_url: str, admin: Any) -> None:
    async with cache_of(RedisManager(redis_url)) as pool, pool.lease() as client:
        await client.eval("redis.call('SELECT', 1)", 0)
        assert await is_in_database_0(client, admin)
        for words in ("'WATCH', 'test:key'", "'MULTI'", "'SUBSCRIBE', 'test:news'", "'CLIENT', 'SETNAME', 'x'"):
            with pytest.raises(ResponseError):
                await client.eval(f"redis.call({words})", 0)


# What is lost is made anew.


async def restart(server: RedisServer) -> None:
    """Kill it and start it; meanwhile the loop hears of it."""
    server.stop()
    await asyncio.to_thread(server.start)


async def test_restarted_server_begins_no_lease_with_an_error(own_server: RedisServer) -> None:
    for check_after in (0.0, 60.0):  # with a check, and without
        async with cache_of(RedisManager(own_server.url), check_after=check_after) as pool:
            async with pool.lease() as client:
                await client.set("test:key", "1")
            await restart(own_server)
            async with pool.lease() as client:
                assert await client.get("test:key") is None


async def test_a_lease_that_was_in_use_has_one_error_and_goes_on(own_server: RedisServer) -> None:
    async with cache_of(RedisManager(own_server.url)) as pool:
        async with pool.lease() as client:
            waiting = asyncio.create_task(client.blpop(["test:queue"], 0))
            async with Redis.from_url(own_server.url) as admin:
                await until(lambda: is_blocked(admin))
            own_server.stop()
            with pytest.raises((LostError, OSError)):
                await waiting
            with pytest.raises(LostError):
                await client.get("test:key")
            own_server.start()
            assert await client.get("test:key") is None
            await client.select(1)
        async with pool.lease() as client:
            assert await client.get("test:key") is None


async def test_lost_session_does_not_return_as_another(own_server: RedisServer) -> None:
    async with cache_of(RedisManager(own_server.url)) as pool:
        async with pool.lease() as client:
            await client.select(1)
            await restart(own_server)
            for _ in range(3):  # neither the first command nor a later one goes to database 0
                with pytest.raises(LostError):
                    await client.set("test:key", "1")
        async with pool.lease() as client:
            assert await client.dbsize() == 0


async def test_lost_session_is_not_reconnected_for_a_retry(own_server: RedisServer) -> None:
    async with cache_of(RedisManager(own_server.url, retry=Retry(NoBackoff(), 3))) as pool:
        async with pool.lease() as client:
            await restart(own_server)
            assert await client.get("test:key") is None
            await client.select(1)
            await restart(own_server)
            with pytest.raises(LostError):
                await client.set("test:key", "1")
        async with pool.lease() as client:
            assert await client.dbsize() == 0


async def test_a_pubsub_subscribes_again_within_its_lease(own_server: RedisServer) -> None:
    async with cache_of(RedisManager(own_server.url)) as pool, pool.lease() as client:
        async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe("test:news")
            await restart(own_server)
            async with Redis.from_url(own_server.url) as admin:

                async def hears() -> bool:
                    await admin.publish("test:news", "news")
                    with suppress(LostError):  # once
                        return await pubsub.get_message(timeout=0) is not None
                    return False

                await until(hears)
        assert await client.get("test:key") is None


async def test_stopped_server_is_an_outage_until_it_returns(own_server: RedisServer) -> None:
    async with cache_of(RedisManager(own_server.url), check_after=0) as pool:
        async with pool.lease() as client:
            await client.set("test:key", "1")
        own_server.stop()
        with pytest.raises(ResourceUnavailable) as caught:
            await pool.acquire()
        assert isinstance(caught.value.__cause__, LostError)
        own_server.start()
        pool.suspend()
        pool.resume()  # try at once
        async with pool.lease() as client:
            assert await client.get("test:key") is None
    assert pool.stats().creates == pool.stats().cleans == 2


async def test_a_server_that_became_a_replica_is_left(own_server: RedisServer) -> None:
    async with cache_of(RedisManager(own_server.url)) as pool, Redis.from_url(own_server.url) as admin:
        async with pool.lease() as client:
            here = socket_of(client)
            await admin.replicaof("127.0.0.1", "1")
            with pytest.raises(ReadOnlyError):
                await client.set("test:key", "1")
        await admin.replicaof("NO", "ONE")
        async with pool.lease() as client:
            assert socket_of(client) != here
            await client.set("test:key", "1")


async def read_of_a_stale_replica(client: Any) -> None:
    await client.get("test:key")


async def write_in_a_pipeline(client: Any) -> None:
    await client.pipeline().set("test:key", "1").execute()


async def write_in_a_script(client: Any) -> None:
    await client.eval("return redis.call('SET', KEYS[1], '1')", 1, "test:key")


@pytest.mark.parametrize("meet", [read_of_a_stale_replica, write_in_a_pipeline, write_in_a_script])
async def test_replica_error_expires_all_although_it_is_caught(own_server: RedisServer, meet: Any) -> None:
    async with cache_of(RedisManager(own_server.url), limit=3) as pool, Redis.from_url(own_server.url) as admin:
        one, other = await pool.acquire(), await pool.acquire()
        await admin.config_set("replica-serve-stale-data", "no")
        await admin.replicaof("127.0.0.1", "1")
        for client in (one, other):
            with pytest.raises(ResponseError):
                await meet(client)
        await admin.replicaof("NO", "ONE")
        for client in (one, other):
            await pool.release(client)
        for client in [await pool.acquire() for _ in range(2)]:
            await client.set("test:key", "1")
            await pool.release(client)
        assert pool.stats().creates == 4


async def test_a_check_needs_one_answer_and_no_permission(redis_url: str, admin: Any) -> None:
    await admin.acl_setuser("test:guest", enabled=True, passwords=["+open"], commands=["+get", "+client"], keys=["*"])
    manager = RedisManager(redis_url, username="test:guest", password="open", protocol=2)  # noqa: S106
    async with cache_of(manager, check_after=0) as pool:
        for _ in range(2):
            async with pool.lease() as client:
                assert await client.get("test:key") is None
        assert pool.stats().creates == 1


async def test_what_is_known_to_be_closed_is_said_without_asking(redis_url: str) -> None:
    manager = RedisManager(redis_url)
    client: Any = await manager.create()
    assert await manager.check(client)
    await client.connection_pool.disconnect()
    assert not await manager.check(client)
    with pytest.raises(PoolError, match="the connection was lost"):
        manager.change(client)
    await manager.clean(client)


async def test_loading_server_counts_as_unavailable() -> None:
    slowly = ("--key-load-delay", "10000", "--rdbcompression", "no")  # 10 ms a key, and it looks up every 2 MB
    with tempfile.TemporaryDirectory() as folder, redis("--dir", folder, *slowly) as server:
        async with Redis.from_url(server.url) as admin:
            await admin.mset({f"test:{number}": "x" * 2**20 for number in range(20)})
            await admin.save()
        server.stop()
        manager = RedisManager(server.url, protocol=2)
        starting = asyncio.create_task(asyncio.to_thread(server.start))
        errors = []
        async with asyncio.timeout(10):
            while not starting.done():
                try:
                    await manager.clean(await manager.create())
                except RedisError as error:
                    errors.append(type(error))
        assert BusyLoadingError in errors


async def test_credentials_are_asked_for_anew_at_each_create(redis_url: str, admin: Any) -> None:
    passwords = ["one", "two"]
    netloc = urlsplit(redis_url).netloc

    async def url() -> str:
        return f"redis://test%3Aguest:{passwords[0]}@{netloc}/0"

    rules: dict[str, Any] = {"enabled": True, "commands": ["+@all"], "keys": ["*"]}
    await admin.acl_setuser("test:guest", passwords=["+one"], **rules)
    for manager in (RedisManager(url), RedisManager(lambda: f"redis://test%3Aguest:{passwords[0]}@{netloc}/0")):
        async with cache_of(manager) as pool:
            async with pool.lease() as client:
                await client.get("test:key")
            passwords.reverse()
            await admin.acl_setuser("test:guest", passwords=[f"+{passwords[0]}", f"-{passwords[1]}"], **rules)
            pool.expire()
            async with pool.lease() as client:
                await client.get("test:key")
            assert pool.stats().creates == 2


# Bad input, and the end.


@pytest.mark.parametrize(
    ("url", "options", "says"),
    [
        ("redis//secret@nowhere", {}, "no URL of a Redis"),
        ("http://user:secret@127.0.0.1/0", {}, "no URL of a Redis"),
        ("redis://user:secret@127.0.0.1:port/0", {}, "no URL of a Redis"),
        (7, {}, "no URL of a Redis"),
        ("{}/0", {"passwort": "secret"}, "redis-py does not take these options together: .*passwort"),
        ("redis://user:secret@127.0.0.1/0?colour=red", {}, "redis-py does not take these options"),
        ("{}/0", {"protocol": 7}, "redis-py does not take these options together: .*protocol"),
        ("{}/0", {"username": "test:nobody", "password": "secret"}, "refuses the user or the password"),
        ("{}/0", {"username": "test:nobody", "password": "secret", "protocol": 2}, "refuses the user or the password"),
        ("{}/99999", {}, "refuses the database"),
    ],
)
async def test_a_mistake_is_told_in_one_line_without_the_password(
    redis_url: str, url: Any, options: Any, says: str
) -> None:
    if isinstance(url, str):
        url = url.format(redis_url.rsplit("/", 1)[0])
    pool = ConnectionPool(RedisManager(lambda: url, **options), min_free=1, name="cache")
    with pytest.raises(PoolConfigError, match=says) as caught:
        await pool.open()
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_server_that_asks_for_a_password_says_so_at_once() -> None:
    with redis("--requirepass", "secret") as server:
        for protocol in (2, 3):
            async with cache_of(RedisManager(server.url, protocol=protocol)) as pool:
                with pytest.raises(PoolConfigError, match="whether the server asks for them"):
                    await pool.acquire()
            async with cache_of(RedisManager(server.url, protocol=protocol, password="secret")) as pool:  # noqa: S106
                async with pool.lease() as client:
                    assert "secret" not in repr(client)
                    await client.select(1)
                async with pool.lease() as client:
                    assert await client.get("test:key") is None
                assert pool.stats().creates == 1


def test_a_manager_is_made_of_a_url_and_a_kind_of_reset() -> None:
    with pytest.raises(PoolConfigError, match="url must be a str or a callable; got int"):
        RedisManager(7)  # type: ignore[arg-type]
    with pytest.raises(PoolConfigError, match="reset must be 'session' or 'transaction'; got 'none'"):
        RedisManager("redis://", reset="none")  # type: ignore[arg-type]
    assert "secret" not in repr(RedisManager("redis://user:secret@127.0.0.1"))


def load(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    """Import the adapter again, as if redis-py were another one."""
    monkeypatch.setitem(sys.modules, name, value) if value is None else monkeypatch.setattr(name, value)
    spec = importlib.util.find_spec(adapter.__name__)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_a_missing_driver_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match=r"pip install 'connectionpools-fastapi\[redis\]'"):
        load(monkeypatch, "redis", None)


def test_old_driver_error_names_the_oldest_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match=r"needs redis-py 5\.2 or newer, found 5\.0\.1"):
        load(monkeypatch, "redis.__version__", "5.0.1")


async def test_to_clean_takes_any_connection_and_ends_it_for_good(own_server: RedisServer) -> None:
    manager = RedisManager(own_server.url)
    client, other = await manager.create(), await manager.create()
    await manager.clean(client)
    await manager.clean(client)
    with pytest.raises(LostError):
        await client.get("test:key")
    own_server.stop()
    await manager.clean(other)


async def test_to_clean_does_not_wait_for_a_server_that_hangs(
    own_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "CLOSE_TIMEOUT", 0.05)
    manager = RedisManager(own_server.url)
    client: Any = await manager.create()
    process: int = (await client.info("server"))["process_id"]
    os.kill(process, signal.SIGSTOP)
    try:
        sending = asyncio.create_task(client.set("test:key", b"x" * 32_000_000))
        writer = client.connection_pool.connection._writer
        await until(lambda: asyncio.sleep(0, writer.transport.get_write_buffer_size()))
        async with asyncio.timeout(5):
            await manager.clean(client)
        assert writer.transport.get_write_buffer_size() == 0
        with pytest.raises((RedisError, OSError)):
            await asyncio.wait_for(sending, 5)
    finally:
        os.kill(process, signal.SIGCONT)


async def test_cancelled_create_leaves_no_connection_behind(own_server: RedisServer) -> None:
    connected = asyncio.Event()

    async def shake_hands(_: Any) -> None:
        connected.set()
        await asyncio.Event().wait()

    creating = asyncio.create_task(RedisManager(own_server.url, redis_connect_func=shake_hands).create())
    await asyncio.wait_for(connected.wait(), 10)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    async with Redis.from_url(own_server.url) as admin:

        async def is_alone() -> bool:
            return len(await admin.client_list()) == 1

        await until(is_alone)


async def test_a_handshake_of_ones_own_is_repeated_by_a_reset(redis_url: str) -> None:
    shaken = 0

    async def shake_hands(connection: Any) -> None:
        nonlocal shaken
        shaken += 1
        await connection.on_connect()
        await connection.send_command("CLIENT", "SETNAME", "by-hand")
        await connection.read_response()

    def count(connection: Any) -> None:
        nonlocal shaken
        shaken += 1
        connection._parser.on_connect(connection)

    for function in (shake_hands, count):
        shaken = 0
        async with cache_of(RedisManager(redis_url, protocol=2, redis_connect_func=function)) as pool:
            async with pool.lease() as client:
                here = socket_of(client)
                await client.client_setname("another")
            async with pool.lease() as client:
                assert socket_of(client) == here
                assert shaken == 2
                assert await client.client_getname() == ("by-hand" if function is shake_hands else None)
