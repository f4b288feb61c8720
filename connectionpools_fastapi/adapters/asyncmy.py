"""AsyncmyManager: connections of asyncmy to MySQL and MariaDB; needs the extra `asyncmy`."""

import inspect
from typing import Any

from connectionpools_fastapi.errors import PoolConfigError

from ._mysql_manager import MysqlManager, Url
from ._options import Reset

try:
    import asyncmy.connection

    from ._asyncmy_connection import FIELDS, Connection, Driver

    if not FIELDS:
        raise ImportError("asyncmy is too old")
except ImportError as _error:
    msg = (
        "connectionpools_fastapi.adapters.asyncmy needs asyncmy 0.2.18 or newer: "
        "pip install 'connectionpools-fastapi[asyncmy]'"
    )
    raise ImportError(msg) from _error


class AsyncmyManager(MysqlManager[asyncmy.connection.Connection]):
    """Connects to MySQL or MariaDB by asyncmy, and resets each connection between two leases.

    It does what `AiomysqlManager` does, in all respects. `asyncmy.Pool` leaves the same behind as
    aiomysql's.
    """

    def __init__(self, url: Url | None = None, *, reset: Reset = "session", **options: Any) -> None:
        """Describe the connections; they are made later.

        Args:
            url: Where to connect to, as `mysql://user:password@host:3306/database`. A callable,
                plain or async, is called for each connection, since credentials may have been
                rotated; a plain one must not block. None leaves it to `options`.
            reset: What to reset after a lease: its whole "session", or only its "transaction".
            **options: For `asyncmy.connect`, such as `autocommit`, `cursor_cls` or
                `init_command`, for settings, which each reset makes again. `ssl=True` encrypts but
                does not verify: write `ssl=ssl.create_default_context()`. `password` may be a
                callable, plain or async. `connect_timeout` is 5 seconds by default, `charset`
                utf8mb4. `stmt_cache_size` keeps statements for one lease, and needs
                `reset="session"`.

        Raises:
            PoolConfigError: If `url`, `reset` or an option cannot work or is unknown.
        """
        super().__init__(url, reset=reset, options=options)
        if reset != "session" and options.get("stmt_cache_size"):
            raise PoolConfigError("AsyncmyManager: stmt_cache_size needs reset='session', which discards statements")

    _driver = "asyncmy"
    _known = frozenset(inspect.signature(Driver.__init__).parameters) - {"self"}
    _kind = Connection
