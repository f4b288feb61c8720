"""RedisManager: one connection of redis-py a lease; needs the extra `redis`."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from enum import Enum
from functools import cache
from typing import Any, Literal, cast

from ..errors import PoolConfigError, PoolError, own
from ..manager import ResourceManager
from ._socket import has_news

try:
    import redis
    from redis.asyncio import ConnectionPool, Redis
    from redis.asyncio.connection import AbstractConnection, Connection
    from redis.exceptions import (
        AuthenticationError,
        ConnectionError,  # noqa: A004 - as redis-py calls it
        NoPermissionError,
        ReadOnlyError,
        RedisError,
        ResponseError,
    )
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
# How long a command waits for another one of the same lease.
TURN_TIMEOUT = 10.0

# Commands that leave no trace in the session. Any other, also one that is not known here, means a reset.
HARMLESS = frozenset(
    """
    ACL APPEND BGREWRITEAOF BGSAVE BITCOUNT BITFIELD BITFIELD_RO BITOP BITPOS BLMOVE BLMPOP BLPOP BRPOP BRPOPLPUSH
    BZMPOP BZPOPMAX BZPOPMIN CLUSTER COMMAND CONFIG COPY DBSIZE DECR DECRBY DEL DELEX DIGEST DUMP ECHO EVAL EVALSHA
    EVALSHA_RO EVAL_RO EXISTS EXPIRE EXPIREAT EXPIRETIME FCALL FCALL_RO FLUSHALL FLUSHDB FUNCTION GEOADD GEODIST
    GEOHASH GEOPOS GEORADIUS GEORADIUSBYMEMBER GEORADIUSBYMEMBER_RO GEORADIUS_RO GEOSEARCH GEOSEARCHSTORE GET GETBIT
    GETDEL GETEX GETRANGE GETSET HDEL HEXISTS HEXPIRE HEXPIREAT HEXPIRETIME HGET HGETALL HGETDEL HGETEX HINCRBY
    HINCRBYFLOAT HKEYS HLEN HMGET HMSET HPERSIST HPEXPIRE HPEXPIREAT HPEXPIRETIME HPTTL HRANDFIELD HSCAN HSET HSETEX
    HSETNX HSTRLEN HTTL HVALS INCR INCRBY INCRBYFLOAT INFO KEYS LASTSAVE LATENCY LCS LINDEX LINSERT LLEN LMOVE LMPOP
    LPOP LPOS LPUSH LPUSHX LRANGE LREM LSET LTRIM MEMORY MGET MIGRATE MODULE MOVE MSET MSETEX MSETNX OBJECT PERSIST
    PEXPIRE PEXPIREAT PEXPIRETIME PFADD PFCOUNT PFMERGE PING PSETEX PTTL PUBLISH PUBSUB RANDOMKEY RENAME RENAMENX
    RESTORE ROLE RPOP RPOPLPUSH RPUSH RPUSHX SADD SAVE SCAN SCARD SDIFF SDIFFSTORE SET SETBIT SETEX SETNX SETRANGE
    SINTER SINTERCARD SINTERSTORE SISMEMBER SLOWLOG SMEMBERS SMISMEMBER SMOVE SORT SORT_RO SPOP SPUBLISH SRANDMEMBER
    SREM SSCAN STRLEN SUBSTR SUNION SUNIONSTORE SWAPDB TIME TOUCH TTL TYPE UNLINK VADD VCARD VDIM VEMB VGETATTR VINFO
    VISMEMBER VLINKS VRANDMEMBER VRANGE VREM VSETATTR VSIM WAIT WAITAOF XACK XACKDEL XADD XAUTOCLAIM XCLAIM XDEL XDELEX
    XGROUP XINFO XLEN XPENDING XRANGE XREAD XREADGROUP XREVRANGE XSETID XTRIM ZADD ZCARD ZCOUNT ZDIFF ZDIFFSTORE
    ZINCRBY ZINTER ZINTERCARD ZINTERSTORE ZLEXCOUNT ZMPOP ZMSCORE ZPOPMAX ZPOPMIN ZRANDMEMBER ZRANGE ZRANGEBYLEX
    ZRANGEBYSCORE ZRANGESTORE ZRANK ZREM ZREMRANGEBYLEX ZREMRANGEBYRANK ZREMRANGEBYSCORE ZREVRANGE ZREVRANGEBYLEX
    ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE ZUNION ZUNIONSTORE
    """.split()  # noqa: SIM905 - a list of this many strings is no easier to read
) | frozenset(
    f"{word} {part}"
    for word, parts in {
        "CLIENT": "GETNAME GETREDIR ID INFO KILL LIST PAUSE TRACKINGINFO UNBLOCK UNPAUSE",
        "SCRIPT": "EXISTS FLUSH KILL LOAD",
    }.items()
    for part in parts.split()
)
HARMLESS_MODULES = ("BF.", "CF.", "CMS.", "FT.", "JSON.", "TDIGEST.", "TOPK.", "TS.")

# Not all that a command leaves behind does RESET undo: not, say, SCRIPT DEBUG nor, in Redis 7.0, CLIENT NO-EVICT.
LASTING = ("CLIENT", "HIMPORT", "PSYNC", "REPLCONF", "SCRIPT", "SYNC")
NOT_LASTING = ("CLIENT CACHING", "CLIENT REPLY", "CLIENT SETNAME", "CLIENT TRACKING")


class _Transaction(Enum):
    NONE = "none"
    WATCHED = "WATCH was sent"
    OPEN = "MULTI was sent"


class _Traces(Enum):
    NONE = "none"
    SOME = "what RESET undoes"
    LASTING = "what it does not"


class _Noted(AbstractConnection):
    """A connection that takes note of what its user makes of the session: all commands pass `pack_command`."""

    is_retired: bool = False  # it was cleaned
    may_connect: bool = True
    is_demoted: bool = False  # the server at the other end only reads
    traces: _Traces = _Traces.NONE  # of what its user made of the session, but for transactions
    transaction: _Transaction = _Transaction.NONE
    unanswered: int = 0  # commands that were packed minus replies that were asked for

    async def open(self) -> None:
        """Connect, where that is allowed."""
        await cast("Any", self).connect()
        self.forget()

    def forget(self) -> None:
        """The session is as connecting made it."""
        self.traces = _Traces.NONE
        self.transaction = _Transaction.NONE

    @property
    def is_pristine(self) -> bool:
        """Whether a new connection would be in the same state."""
        return self.traces is _Traces.NONE and self.transaction is _Transaction.NONE

    @property
    def is_lost(self) -> bool:
        """Whether it is known here that it is closed."""
        return not self.is_connected or cast("Any", self._reader).at_eof()

    @property
    def is_quiet(self) -> bool:
        """Whether it is open, as far as is known here, and nothing has come that nobody has read."""
        return not self.is_lost and not cast("Any", self._reader)._buffer

    @property
    def fileno(self) -> int:
        """The number of its socket."""
        number: int = cast("Any", self._writer).get_extra_info("socket").fileno()
        return number

    def pack_command(self, *args: Any) -> list[bytes]:
        packed: list[bytes] = super().pack_command(*args)
        self.unanswered += 1
        if args[0] not in HARMLESS:
            self._note(*args[:2])
        return packed

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        before = self.traces, self.transaction, self.unanswered
        try:
            packed: list[bytes] = super().pack_commands(cast("Any", commands))
        except BaseException:  # nothing of it is sent
            self.traces, self.transaction, self.unanswered = before
            raise
        return packed

    async def read_response(self, *args: Any, **options: Any) -> Any:
        self.unanswered -= 1
        try:
            return await super().read_response(*args, **options)
        except ReadOnlyError:
            self.is_demoted = True
            raise

    async def disconnect(self, *args: Any, **options: Any) -> None:
        self.unanswered = 0
        await super().disconnect(*args, **options)

    async def _connect(self) -> None:
        if not self.may_connect:
            raise ConnectionError("the connection was lost, and what was in its session with it; lease another one")
        await cast("Any", super())._connect()  # each kind of connection has its own

    def _note(self, *words: Any) -> None:
        # "CLIENT SETNAME" is one word or two.
        name, *rest = " ".join(
            word.decode("latin-1") if isinstance(word, bytes) else str(word) for word in words
        ).split()
        match name.upper():
            case "MULTI":
                self.transaction = _Transaction.OPEN
            case "WATCH" if self.transaction is _Transaction.NONE:
                self.transaction = _Transaction.WATCHED
            case "UNWATCH" if self.transaction is _Transaction.WATCHED:
                self.transaction = _Transaction.NONE
            case "EXEC" | "DISCARD":
                self.transaction = _Transaction.NONE
            case "WATCH" | "UNWATCH":
                pass
            case name:
                both = " ".join((name, *rest[:1])).upper()
                if name in HARMLESS or both in HARMLESS or name.startswith(HARMLESS_MODULES):
                    return
                if name in LASTING and both not in NOT_LASTING:
                    self.traces = _Traces.LASTING
                elif self.traces is _Traces.NONE:
                    self.traces = _Traces.SOME


class _Only(ConnectionPool):
    """What a `Redis` takes for a pool: one connection, for one command, pipeline or PubSub after the other."""

    def __init__(self, connection_class: type[AbstractConnection] = Connection, **options: Any) -> None:
        super().__init__(connection_class=_noted(cast("Any", connection_class)), **{**options, "max_connections": 1})
        self.connection: _Noted = cast("Any", self).get_available_connection()
        self.retry = self.connection.retry
        self.callbacks: dict[Any, Any] = {}
        self._turn = asyncio.Lock()
        self._holder: asyncio.Task[Any] | None = None

    @property
    def is_held(self) -> bool:
        """Whether somebody has the connection, and may still use it."""
        return self._turn.locked()

    def has_same_settings(self, client: Redis) -> bool:
        """Whether nobody has called `set_retry` or `set_response_callback`."""
        return self.connection.retry is self.retry and client.response_callbacks == self.callbacks

    async def get_connection(self, *_: Any, **__: Any) -> AbstractConnection:
        await self._take_turn()
        connection = self.connection
        # Whoever has it knows what to do when it is lost (a PubSub subscribes again, a pipeline says that it no longer
        # watches), but nobody knows what others had put into the session before.
        connection.may_connect = not connection.is_retired and connection.is_pristine
        try:
            if connection.is_lost:
                await connection.disconnect(nowait=True)
                await connection.open()
        except BaseException:
            await self.release(connection)
            raise
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        if not (connection is self.connection and self.is_held):
            return
        if self.connection.is_lost and self.connection.may_connect:
            self.connection.forget()
        self._holder = None
        self._turn.release()

    async def _take_turn(self) -> None:
        task = asyncio.current_task()
        try:
            if self._holder is task and self.is_held:  # it would wait for itself
                raise TimeoutError
            async with asyncio.timeout(TURN_TIMEOUT):
                await self._turn.acquire()
        except TimeoutError:
            raise ConnectionError(
                "the one connection of this lease is in use, by a PubSub, a Monitor, a pipeline that watches or a "
                "command that waits: close it first, or lease another one"
            ) from None
        self._holder = task


@cache
def _noted(kind: type) -> type[_Noted]:
    return type(kind.__name__, (_Noted, kind), {})


class RedisManager(ResourceManager[Redis]):
    """Leases a `redis.asyncio.Redis` that is bound to one connection.

    Commands, pipelines, transactions, locks, scripts: all of the client's methods work, and
    each uses the connection of the lease; there never is a second one. Commands that run
    at once take turns. A PubSub, a Monitor and a pipeline that watches keep the connection
    until they are closed, so that other commands then raise; give them a lease of their own.

    What a lease leaves in its session, the next one does not see: another database, user,
    name or protocol, WATCH, MULTI, subscriptions, tracking, READONLY. The manager looks at
    the names of the commands. Where only those were sent that leave nothing behind (GET,
    SET, EVAL, whole pipelines and transactions, ...), giving back costs no round trip; else
    it costs two to four, for RESET and redis-py's own handshake. RESET came with Redis 6.2;
    a server that has none, or a user who may not send it, costs a new connection instead.

    Destroyed is a connection that is still in use as it comes back (an open PubSub, a
    pipeline that watches), whose command was cancelled, that holds replies that nobody has
    read, whose session was changed in a way that RESET does not undo (SCRIPT DEBUG,
    CLIENT NO-EVICT), or whose server has said READONLY, as after a failover.

    A connection that is lost while nothing is in its session is made anew by the next
    command, so that no lease begins with an error after the server was restarted. Once there
    is something, each further command of the lease raises `ConnectionError` instead of going
    on in another database or as another user. To close a PubSub closes its connection.

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
        reset: Literal["session", "transaction"] = "session",
        **options: Any,
    ) -> None:
        """Say where the server is.

        Args:
            url: As in `redis://user:password@host:6379/0`, `rediss://...` with TLS, or
                `unix:///path?db=0`; or what returns it, plain or async, and is asked at
                each `create`: for credentials that change.
            reset: What a lease must not leave behind: "session", anything at all; or
                "transaction", an open WATCH or MULTI only, one round trip and only where
                there is one. Then a database or a name that was set stays set.
            **options: What redis-py's connection takes, as `decode_responses=True`, `protocol=3`,
                `client_name` or `socket_timeout`. `socket_connect_timeout` is 5 s if not given.
                Failed commands are not sent again, unless `retry` is given.

        Raises:
            PoolConfigError: If `url` or `reset` is not what it may be.
        """
        if not (isinstance(url, str) or callable(url)):
            raise PoolConfigError(f"RedisManager: url must be a str or a callable; got {type(url).__name__}")
        if reset not in {"session", "transaction"}:
            raise PoolConfigError(f"RedisManager: reset must be 'session' or 'transaction'; got {reset!r}")
        self._url = url
        self._reset = reset
        self._options: dict[str, Any] = {"socket_connect_timeout": CONNECT_TIMEOUT, **_without_moves(), **options}

    async def create(self) -> Redis:
        """Connect, and see that the server answers.

        Returns:
            A client that is connected.

        Raises:
            PoolConfigError: If the URL cannot be read, or the server refuses the user, the
                password, the database or the protocol.
            RedisError: redis-py's, if it cannot be reached or does not serve yet.
        """
        url: Any = self._url() if callable(self._url) else self._url
        pool = _pool(await url if inspect.isawaitable(url) else url, self._options)
        client = Redis(connection_pool=pool)
        try:
            await pool.connection.open()
            await _ping(client)
        except BaseException as error:
            await _close(pool)
            if isinstance(error, (AuthenticationError, ResponseError)):
                raise _refused(error) from None  # what the server says may repeat the password
            raise
        pool.callbacks = dict(client.response_callbacks)
        return client

    async def check(self, resource: Redis) -> bool:
        """Look whether the connection is known to be closed, else send PING: one round trip.

        Args:
            resource: A free client.

        Returns:
            Whether it is of use.
        """
        if not _only(resource).connection.is_quiet:
            return False
        await _ping(resource)
        return True

    def doubtful(self, resource: Redis) -> bool:
        """Say whether a connection was closed, as far as it is known here: no round trip.

        Args:
            resource: The client.

        Returns:
            Whether it has to be checked before it is used.
        """
        connection = _only(resource).connection
        return not connection.is_quiet or has_news(connection.fileno)

    async def change(self, resource: Redis) -> None:
        """Bring the session back to what connecting made it; no round trip where it still is.

        Args:
            resource: A client that was given back.

        Raises:
            PoolError: If the connection cannot be used again; it says why.
            RedisError: redis-py's, if the reset fails.
        """
        pool = _only(resource)
        connection = pool.connection
        if pool.is_held:
            raise own(PoolError("the connection was still in use, by a PubSub, a pipeline that watches or a command"))
        if not pool.has_same_settings(resource):
            raise own(PoolError("the settings of the client were changed"))
        if connection.is_demoted:
            raise own(PoolError("the server is a read-only replica"))
        if connection.is_lost:
            raise own(PoolError("the connection was lost"))
        if connection.unanswered or not connection.is_quiet:
            raise own(PoolError("the connection held replies that nobody had read"))
        must_reset = self._reset == "session" and connection.traces is not _Traces.NONE
        if must_reset or connection.transaction is not _Transaction.NONE:
            await pool.get_connection()  # so that nobody comes in between
            try:
                await (_reset(connection) if self._reset == "session" else _end_transaction(connection))
            finally:
                await pool.release(connection)

    async def clean(self, resource: Redis) -> None:
        """Close the connection, within a second; for good, whoever may still have it.

        Args:
            resource: Any client, connected or not.
        """
        await _close(_only(resource))


def _without_moves() -> dict[str, Any]:
    """Turn off what newer versions ask a server for at each connect, so that their own pools may move to another."""
    if "maint_notifications_config" not in inspect.signature(ConnectionPool).parameters:
        return {}
    from redis.maint_notifications import MaintNotificationsConfig  # noqa: PLC0415 - older versions have none

    return {"maint_notifications_config": MaintNotificationsConfig(enabled=False)}


def _only(client: Redis) -> _Only:
    return cast("_Only", client.connection_pool)


def _pool(url: object, options: dict[str, Any]) -> _Only:
    try:
        return _Only.from_url(cast("str", url), **options)
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
    with suppress(NoPermissionError):  # it has answered
        await cast("Any", client).execute_command("PING")


async def _reset(connection: _Noted) -> None:
    if connection.traces is _Traces.LASTING:
        raise own(PoolError("the session was changed in a way that RESET does not undo"))
    await connection.send_command("RESET", check_health=False)
    if await connection.read_response(disable_decoding=True) != b"RESET":
        raise own(PoolError("the connection held what nobody had read"))
    # It is as if it had just been accepted; so what comes next is what comes next there.
    if connection.redis_connect_func is None:
        await connection.on_connect()
    elif inspect.isawaitable(connected := cast("Any", connection.redis_connect_func)(connection)):
        await connected
    connection.forget()


async def _end_transaction(connection: _Noted) -> None:
    is_open = connection.transaction is _Transaction.OPEN
    await connection.send_command("DISCARD" if is_open else "UNWATCH", check_health=False)
    await connection.read_response()


async def _close(pool: _Only) -> None:
    connection = pool.connection
    connection.is_retired = True
    connection.may_connect = False  # nor for whoever still has it
    writer = cast("Any", connection)._writer
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await pool.aclose()
    except (OSError, RedisError):  # TimeoutError is one
        if writer is not None:
            writer.transport.abort()
