"""RedisManager: one connection of redis-py a lease; needs the extra `redis`."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Literal, cast

from ..errors import PoolConfigError, PoolError, own
from ..manager import ResourceManager
from ._redis_session import NEW, Traces, Transaction
from ._socket import has_news

try:
    import redis
    from redis.asyncio import ConnectionPool, Redis
    from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError

    from ._redis_connection import Noted, Only, Term
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
    read, or whose session was changed in a way that RESET does not undo (SCRIPT DEBUG,
    CLIENT NO-EVICT). Where the server has said READONLY to one, as after a failover, all
    are destroyed that were made before: the new ones are where the address leads by then.

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
        self._term = Term()
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
        if self._term.is_over:
            self._term = Term()
        pool.connection.term = self._term
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
        """Look whether the connection is known to be of no use, else send PING: one round trip.

        Args:
            resource: A free client.

        Returns:
            Whether it is of use.
        """
        connection = _only(resource).connection
        if connection.term.is_over or not connection.is_quiet:
            return False
        await _ping(resource)
        return True

    def doubtful(self, resource: Redis) -> bool:
        """Say whether a connection was closed or its server demoted, as far as it is known here: no round trip.

        Args:
            resource: The client.

        Returns:
            Whether it has to be checked before it is used.
        """
        connection = _only(resource).connection
        return connection.term.is_over or not connection.is_quiet or has_news(connection.fileno)

    def change(self, resource: Redis) -> Awaitable[None] | None:
        """Bring the session back to what connecting made it; no round trip where it still is.

        Args:
            resource: A client that was given back.

        Returns:
            What there is to wait for, if anything.

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
        if connection.term.is_over:
            raise own(PoolError("the server is a read-only replica"))
        if connection.unanswered or not connection.is_quiet:
            left = "was lost" if connection.is_lost else "held replies that nobody had read"
            raise own(PoolError(f"the connection {left}"))
        must_reset = self._reset == "session" and connection.session.traces is not Traces.NONE
        if must_reset or connection.session.transaction is not Transaction.NONE:
            return _alone(pool, _reset if self._reset == "session" else _end_transaction)
        return None

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


def _only(client: Redis) -> Only:
    return cast("Only", client.connection_pool)


def _pool(url: object, options: dict[str, Any]) -> Only:
    try:
        return Only.from_url(cast("str", url), **options)
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


async def _alone(pool: Only, act: Callable[[Noted], Awaitable[None]]) -> None:
    await pool.get_connection()  # so that nobody comes in between
    try:
        await act(pool.connection)
    finally:
        await pool.release(pool.connection)


async def _reset(connection: Noted) -> None:
    if connection.session.traces is Traces.LASTING:
        raise own(PoolError("the session was changed in a way that RESET does not undo"))
    await connection.send_command("RESET", check_health=False)
    if await connection.read_response(disable_decoding=True) != b"RESET":
        raise own(PoolError("the connection held what nobody had read"))
    # It is as if it had just been accepted; so what comes next is what comes next there.
    if connection.redis_connect_func is None:
        await connection.on_connect()
    elif inspect.isawaitable(connected := cast("Any", connection.redis_connect_func)(connection)):
        await connected
    connection.session = NEW


async def _end_transaction(connection: Noted) -> None:
    word = "DISCARD" if connection.session.transaction is Transaction.OPEN else "UNWATCH"
    await connection.send_command(word, check_health=False)
    await connection.read_response()


async def _close(pool: Only) -> None:
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
