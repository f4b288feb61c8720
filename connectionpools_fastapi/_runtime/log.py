"""The one logger of this package, and what its lines carry for a structured log."""

import logging
from typing import Any

logger: logging.Logger = logging.getLogger("connectionpools_fastapi")


def facts(event: str, pool: str | None, **more: object) -> dict[str, Any]:
    """Return the `extra` of a line: numbers and names that the text has too, for logs that are read by programs.

    Args:
        event: What has happened; one word for each kind of line.
        pool: The pool's name; None if the line is about no single pool.
        more: Further facts; never an address, a credential or anything that a client has sent.
    """
    return {"pool_event": event, "pool": pool, **more}
