"""RedisManager: one connection of redis-py a lease; needs the extra `redis`."""

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Literal, cast

from connectionpools_fastapi import Loan

from ..errors import PoolConfigError, PoolError, own
from ..manager import ResourceManager
from ._options import Reset, check_address, check_reset, current, refuse_prepare
from ._redis_session import NEW, Traces, Transaction
from ._socket import has_news

try:
    import redis
    from redis.asyncio import ConnectionPool, Redis
    from redis.client import CaseInsensitiveDict as Callbacks
    from redis.exceptions import (
        AuthenticationError,
        MasterDownError,
        NoPermissionError,
        ReadOnlyError,
        RedisError,
        ResponseError,
    )

    from ._redis_connection import SingleConnectionPool, Wire
except ImportError as _error:
    msg = "connectionpools_fastapi.adapters.redis needs redis-py: pip install 'connectionpools-fastapi[redis]'"
    raise ImportError(msg) from _error

if tuple(map(int, redis.__version__.split(".")[:2])) < (5, 2):
    raise ImportError(
        f"connectionpools_fastapi.adapters.redis needs redis-py 5.2 or newer, found {redis.__version__}: "
        "pip install --upgrade 'connectionpools-fastapi[redis]'"
    )

CONNECT_TIMEOUT = 5.0
CLOSE_TIMEOUT = 1.0
# Refusals of replicas without an error class in redis-py: of a script by Redis 6, and of a read in older versions.
OF_A_REPLICA = re.compile("-READONLY |^MASTERDOWN ")


class RedisManager(ResourceManager[Redis]):
    """Leases a `redis.asyncio.Redis` that is bound to one connection.

    All methods of the client work: commands, pipelines, transactions, locks, scripts. Each uses
    the one connection of the lease. Commands that run at the same time take turns. A PubSub, a
    Monitor and a pipeline that watches keep the connection until they are closed, and other
    commands raise meanwhile; give them a lease of their own.

    The manager resets what a lease leaves in its session: another database, user, name or
    protocol, WATCH, MULTI, subscriptions, tracking, READONLY. It looks at the names of the
    commands. If a lease has sent only commands that leave nothing behind (GET, SET, EVAL, whole
    pipelines and transactions, ...), giving back costs no round trip; else it costs two to four,
    for RESET and redis-py's own handshake. RESET came with Redis 6.2; without it, or without the
    permission to send it, the reset costs a new connection instead.

    Each lease gets its own client with its own settings (`set_retry`, `set_response_callback`).
    After the lease the client, and everything made from it, raise `NotLeased` and send nothing.
    The log warns of a MULTI that was left open.

    A connection is destroyed if it is still in use when it comes back (an open PubSub, a pipeline
    that watches), if its command was cancelled, if it holds unread replies, or if its session was
    changed in a way that RESET does not undo (SCRIPT DEBUG, CLIENT NO-EVICT). If the server
    answers a lease with READONLY or MASTERDOWN, as after a failover, all existing connections are
    destroyed: new ones go where the address leads by then.

    If a connection is lost while its session is empty, the next command connects again, so that
    no lease begins with an error after a restart of the server. If the session is not empty, each
    further command of the lease raises `ConnectionError` instead of going on in another database
    or as another user. Closing a PubSub closes its connection.

    Example:
        ```python
        cache = ConnectionPool(RedisManager("redis://localhost:6379/0"), limit=20, name="cache")

        async with cache, cache.lease() as client:
            await client.set("greeting", "hello", ex=60)
        ```
    """

    def __init__(
        self,
        url: str | Callable[[], str | Awaitable[str]],
        *,
        reset: Reset = "session",
        **options: Any,
    ) -> None:
        """Say where the server is.

        Args:
            url: As in `redis://user:password@host:6379/0`, `rediss://...` with TLS, or
                `unix:///path?db=0`. A callable that returns it, plain or async, is called at each
                `create`: for credentials that change.
            reset: What to reset after a lease: its whole "session"; or only its "transaction", an
                open WATCH or MULTI, which takes one round trip if there is one. Then a database
                or a name that was set stays set.
            **options: For redis-py's connection, as `decode_responses=True`, `protocol=3`,
                `client_name` or `socket_timeout`. `socket_connect_timeout` is 5 s if not given.
                Failed commands are not sent again, unless `retry` is given.

        Raises:
            PoolConfigError: If `url` or `reset` cannot work.
        """
        check_address("RedisManager", "url", url)
        check_reset("RedisManager", reset)
        self._url = url
        self._reset = reset
        self._options: dict[str, Any] = {"socket_connect_timeout": CONNECT_TIMEOUT, **_without_moves(), **options}

    async def create(self) -> Redis:
        """Connect, and check that the server answers.

        Returns:
            A client that is connected.

        Raises:
            PoolConfigError: If the URL cannot be read, or the server refuses the user, the
                password, the database or the protocol.
            RedisError: redis-py's own error, if the server cannot be reached or does not serve yet.
        """
        pool = _pool(await current(self._url), self._options)
        client = Redis(connection_pool=pool)
        try:
            await pool.wire.open()
            await _ping(client)
        except BaseException as error:
            await _close(pool)
            if isinstance(error, (AuthenticationError, ResponseError)):
                raise _refused(error) from None  # the server's text may contain the password
            raise
        return client

    async def check(self, resource: Redis) -> bool:
        """Send PING, one round trip, unless the driver knows that the connection cannot be used.

        Args:
            resource: A free client.

        Returns:
            Whether it can be used.
        """
        if not _only(resource).wire.is_quiet:
            return False
        await _ping(resource)
        return True

    def doubtful(self, resource: Redis) -> bool:
        """Whether a connection was closed, as far as this end knows, without a round trip.

        Args:
            resource: The client.

        Returns:
            Whether it has to be checked before it is used.
        """
        wire = _only(resource).wire
        return not wire.is_quiet or has_news(wire.fileno)

    def lend(self, resource: Redis, loan: Loan) -> Redis:
        """Make a client of the same connection, with its own settings.

        Args:
            resource: The client.
            loan: The lease.

        Returns:
            A client that raises `NotLeased` after the lease, like everything made from it.
        """
        kind = type(resource)
        client = kind.__new__(kind)
        callbacks = Callbacks.__new__(Callbacks)
        dict.update(callbacks, resource.response_callbacks)  # its own method copies one by one
        pool = _only(resource).lend(loan)
        client.__dict__.update(resource.__dict__, connection_pool=pool, response_callbacks=callbacks)
        return client

    def broken(self, resource: Redis, error: Exception) -> Literal["expire"] | None:  # noqa: ARG002
        """Say whether an error shows that the server is not a master any more.

        Args:
            resource: The client.
            error: The error.

        Returns:
            "expire" if so, since the address may lead to another server by now.
        """
        if not isinstance(error, ResponseError):
            return None
        is_told = isinstance(error, (ReadOnlyError, MasterDownError)) or OF_A_REPLICA.search(str(error))
        return "expire" if is_told else None

    def change(self, resource: Redis) -> Awaitable[None] | None:
        """Reset the session to its state after connecting; no round trip if it is unchanged.

        Args:
            resource: A client that was given back.

        Returns:
            An awaitable, if there is something to wait for.

        Raises:
            PoolError: If the connection cannot be used again; the text says why.
            RedisError: redis-py's own error, if the reset fails.
        """
        pool = _only(resource)
        wire, lent = pool.wire, pool.lent or pool
        pool.lent = None
        if lent.is_held:
            raise own(PoolError("the connection was still in use, by a PubSub, a pipeline that watches or a command"))
        if pool.fieldsets:
            raise own(PoolError("fields were declared for HIMPORT"))
        if wire.unanswered or not wire.is_quiet:
            left = "was lost" if wire.is_lost else "held replies that were never read"
            raise own(PoolError(f"the connection {left}"))
        loan = lent.loan
        if wire.session.transaction is Transaction.OPEN and loan is not None and not loan.has_failed:
            loan.warn(
                "MULTI was sent and EXEC was not, so what was queued is lost; send EXEC, or use client.pipeline()"
            )
        if self._reset == "session" and wire.session.traces is not Traces.NONE:
            return _reset(wire)
        if wire.session.transaction is not Transaction.NONE:
            return _reset(wire) if self._reset == "session" else _end_transaction(wire)
        return None

    def refuse_prepare(self) -> str | None:
        """Say why a request may not prepare its connection.

        Returns:
            The reason, if a reset does not undo settings: with `reset="transaction"`.
        """
        return refuse_prepare(resets_session=self._reset == "session")

    def sandbox(self, resource: Redis) -> ResourceManager[Redis]:
        """Make the manager of a sandbox, for `connectionpools_fastapi.testing.sandbox`.

        Leases use an empty database of the server, which is emptied at the end. Redis undoes nothing, so a lease that
        fails leaves what it has written until then. What a server has once for all databases, such as channels,
        scripts, its configuration and FLUSHALL, is not kept apart, nor is a lease that sends SELECT.

        Args:
            resource: The client.

        Returns:
            Its hooks.
        """
        from ._redis_sandbox import RedisSandbox  # noqa: PLC0415 - only tests need it

        return RedisSandbox(self, resource)

    async def clean(self, resource: Redis) -> None:
        """Close the connection for good, within a second, even if an object still uses it.

        Args:
            resource: Any client, connected or not.
        """
        await _close(_only(resource))


def _without_moves() -> dict[str, Any]:
    """Turn off the maintenance notifications of newer versions, by which their own pools move to another server."""
    if "maint_notifications_config" not in inspect.signature(ConnectionPool).parameters:
        return {}
    from redis.maint_notifications import MaintNotificationsConfig  # noqa: PLC0415 - older versions have none

    return {"maint_notifications_config": MaintNotificationsConfig(enabled=False)}


def _only(client: Any) -> SingleConnectionPool:
    pool: SingleConnectionPool = client.connection_pool
    return pool


def _pool(url: object, options: dict[str, Any]) -> SingleConnectionPool:
    try:
        return SingleConnectionPool.from_url(cast("str", url), **options)
    except (ValueError, AttributeError):
        problem = "this is no URL of a Redis; write redis://user:password@host:6379/0, rediss://... or unix:///path"
    except (TypeError, RedisError):
        problem = f"redis-py does not take these options together: {', '.join(sorted(options))} and what is in the URL"
    raise own(PoolConfigError(f"RedisManager: {problem}"))


def _refused(error: RedisError) -> PoolConfigError:
    what = (
        "the user or the password; see that both are right, and whether the server asks for them"
        if isinstance(error, AuthenticationError)
        else "the database, the protocol or a permission; see that the database exists and what the user may do"
    )
    return own(PoolConfigError(f"RedisManager: the server is there, but refuses {what}"))


async def _ping(client: Redis) -> None:
    with suppress(NoPermissionError):  # a refusal is an answer too
        await cast("Any", client).execute_command("PING")


async def _reset(wire: Wire) -> None:
    if wire.session.traces is Traces.LASTING:
        raise own(PoolError("the session was changed in a way that RESET does not undo"))
    await wire.send_command("RESET", check_health=False)
    if await wire.read_response(disable_decoding=True) != b"RESET":
        raise own(PoolError("the connection held what was never read"))
    # RESET makes the session like a newly accepted one, so the handshake follows.
    if wire.redis_connect_func is None:
        await wire.on_connect()
    elif inspect.isawaitable(connected := cast("Any", wire.redis_connect_func)(wire)):
        await connected
    wire.session = NEW


async def _end_transaction(wire: Wire) -> None:
    word = "DISCARD" if wire.session.transaction is Transaction.OPEN else "UNWATCH"
    await wire.send_command(word, check_health=False)
    await wire.read_response()
    wire.session = wire.session.after(word)


async def _close(pool: SingleConnectionPool) -> None:
    pool.wire.is_retired = True
    pool.wire.may_connect = False  # also not for an object that still uses it
    writer = cast("Any", pool.wire)._writer  # noqa: SLF001 - redis-py has no other word for it
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await pool.aclose()
    except (OSError, RedisError):  # TimeoutError is one
        if writer is not None:
            writer.transport.abort()
