"""What a client of PyMongo has told of its pools."""

from typing import Any

from connectionpools_fastapi.stats import ObservedStats


class PymongoPools:
    """The pools of a client; the client itself checks its servers, so a try asks what it has found."""

    def __init__(self, events: Any) -> None:
        self._events = events

    def stats(self, name: str, cause: str | None) -> ObservedStats:
        """Return the numbers of all its pools."""
        found: ObservedStats = self._events.stats(name, cause)
        return found

    def can_lend(self) -> bool:
        """Return True: a try takes no connection."""
        return True

    def still_fails(self) -> bool:
        """Return False: there is always another try."""
        return False

    async def try_out(self, timeout: float) -> None:  # noqa: ARG002 - it does not wait
        """Ask what the client has found out about its servers."""
        if not self._events.is_ready:
            raise ConnectionError
