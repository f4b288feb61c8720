"""Books: what a Redis knows of the tokens of all members; one script keeps them."""

import hashlib
from pathlib import Path
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.exceptions import (
    AuthenticationError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from ..errors import PoolConfigError
from ._share import Request

SCRIPT = Path(__file__).with_name("_sync.lua").read_text(encoding="utf-8")
DIGEST = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
PARTS = ("books", "ends", "held", "hungry")
NO_ANSWER = RedisError, RedisClusterException, OSError

# By default, how long a call may take, in seconds, before it is tried once more; at most a third of the time-to-live.
SOCKET_TIMEOUT = 2.0


class Books:
    """The books of one budget; any thread may ask."""

    def __init__(
        self, server: object, options: dict[str, Any], *, name: str, total: int, floor: int, ttl: float
    ) -> None:
        """Describe the books; nothing is sent yet.

        Raises:
            PoolConfigError: If the server is no address, and no client that waits for its answers.
        """
        # The braces keep all keys on one node of a cluster.
        self._keys = [f"connectionpools:{{{name}}}:{part}" for part in PARTS]
        self._terms = total, floor, int(ttl * 1000)
        self._is_own = isinstance(server, str)
        self._client: Any = server
        if isinstance(server, str):
            within = min(SOCKET_TIMEOUT, ttl / 3)
            usual = {"socket_timeout": within, "socket_connect_timeout": within, "retry": Retry(NoBackoff(), 1)}
            try:
                self._client = Redis.from_url(server, **{**usual, **options})
            except ValueError:  # its text may have the address
                msg = f'budget {name!r}: the address of its Redis must be a URL, as "redis://host:6379/0"'
                raise PoolConfigError(msg) from None
        elif options or not isinstance(server, (Redis, RedisCluster)):
            kind = f"{type(server).__module__}.{type(server).__qualname__}"
            msg = (
                f"budget {name!r}: pass the URL of a Redis, with options, or a redis.Redis or redis.RedisCluster, "
                f"without; got {kind}"
            )
            raise PoolConfigError(msg)

    def sync(self, member: str, request: Request, *, is_leaving: bool = False) -> list[Any]:
        """Run the script for one member; returns its answer.

        Raises:
            RedisError: If Redis does not answer, or refuses; or another error of NO_ANSWER.
        """
        want = 0 if is_leaving else request.want
        arguments = [member, int(is_leaving), request.turn, want, request.has, request.claim, *self._terms]
        try:
            answer = self._client.evalsha(DIGEST, len(self._keys), *self._keys, *arguments)
        except NoScriptError:
            answer = self._client.eval(SCRIPT, len(self._keys), *self._keys, *arguments)
        return [part.decode() if isinstance(part, bytes) else part for part in answer]

    def close_idle(self) -> None:
        """Close the connections that no member uses, unless they are of the user's own client."""
        if self._is_own:
            self._client.connection_pool.disconnect(inuse_connections=False)


def reason(error: Exception) -> str:
    """Say what is wrong with a Redis, without its address."""
    if isinstance(error, AuthenticationError):
        return "its Redis refuses the user or the password"
    if isinstance(error, MovedError):
        return "its Redis is a cluster; pass a redis.RedisCluster"
    if isinstance(error, ReadOnlyError) or "-READONLY " in str(error):
        return "its Redis is a replica; pass the primary, such as Sentinel(...).master_for(...)"
    if isinstance(error, ResponseError) and "unknown command" in str(error).lower():
        return "its server does not run scripts; for a Sentinel, pass Sentinel(...).master_for(...)"
    if isinstance(error, ResponseError):
        return f"its Redis refuses the script: {error}"
    return f"its Redis does not answer ({type(error).__name__})"
