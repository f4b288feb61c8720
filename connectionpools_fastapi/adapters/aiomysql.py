"""AiomysqlManager: connections of aiomysql to MySQL and MariaDB; needs the extra `aiomysql`."""

import inspect
from typing import Any

from ._mysql_manager import MysqlManager, Url
from ._options import Reset

try:
    import aiomysql  # type: ignore[import-untyped] # has no types

    from ._aiomysql_connection import Connection
except ImportError as _error:
    msg = (
        "connectionpools_fastapi.adapters.aiomysql needs aiomysql 0.2 or newer: "
        "pip install 'connectionpools-fastapi[aiomysql]'"
    )
    raise ImportError(msg) from _error


class AiomysqlManager(MysqlManager[aiomysql.Connection]):
    """Connects to MySQL or MariaDB by aiomysql, and resets each connection between two leases.

    Write `ConnectionPool(AiomysqlManager("mysql://user:password@host/database"), limit=10,
    name="db")`, on asyncio. Each lease gets its own connection object for the session. After
    the lease it raises `NotLeased` and sends nothing, and so does every cursor made from it;
    rows that have arrived can still be fetched.

    Each `reset` rolls back an open transaction, and warns if writes are lost by that: end it with
    `await conn.commit()`, or connect with `autocommit=True`. The two differ in the rest:

    - "session" resets everything to its state after connecting: `@variables`, settings, the
      database that was chosen, temporary tables, GET_LOCK, LOCK TABLES, prepared statements. It
      costs one round trip: COM_RESET_CONNECTION, and the settings that the connection was made
      with, in one write. Without a database in the URL it costs a second one, since MySQL cannot
      go back to none. `aiomysql.Pool` leaves all of these behind.
    - "transaction" leaves these as they are, and makes no round trip if no transaction is open
      and `autocommit` is on. Use it if no lease changes its session.

    A connection is destroyed instead of being reset if it is busy, if rows of an SSCursor are left
    unread, or if a running query was cancelled. The server would go on with that query until its
    end, so the manager has it end the session (KILL), over one more connection for all
    cancelled queries of the moment: leave the server room for `limit + 1`. If the address leads
    to another server by then, nothing is ended there.

    If the server answers a write with "running with the --read-only option", as after a failover,
    all existing connections are replaced, at most once a second. A transaction that a lease has
    made read only does not affect other leases.

    A silent server keeps its lease, and with it a place in the pool: write
    `async with asyncio.timeout(...)` around what a request may wait for.
    """

    def __init__(self, url: Url | None = None, *, reset: Reset = "session", **options: Any) -> None:
        """Describe the connections; they are made later.

        Args:
            url: Where to connect to, as `mysql://user:password@host:3306/database`. A callable,
                plain or async, is called for each connection, since credentials may have been
                rotated; a plain one must not block. None leaves it to `options`.
            reset: What to reset after a lease: its whole "session", or only its "transaction".
            **options: For `aiomysql.connect`, such as `autocommit`, `cursorclass` or
                `init_command`, for settings, which each reset makes again. With `ssl`, an
                SSLContext, a server without TLS is refused. `password` may be a callable, plain or
                async. `connect_timeout` is 5 seconds by default, `charset` utf8mb4.

        Raises:
            PoolConfigError: If `url`, `reset` or an option cannot work or is unknown.
        """
        super().__init__(url, reset=reset, options=options)

    _driver = "aiomysql"
    _known = frozenset(inspect.signature(aiomysql.connect).parameters) - {"loop"}
    _kind = Connection
