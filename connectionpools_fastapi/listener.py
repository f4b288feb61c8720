"""Listeners: who wants to be told what happens in a pool."""

from ._log import logger
from .errors import describe


class PoolListener:
    """What a pool tells while it works; override what you want to hear of.

    The methods are called after the fact and outside the pool's lock, in whatever thread or
    task carries it out (a waiter's `on_acquire` in that which gave back, say), so they must
    not block or wait; to call the pool is fine. What they raise is logged and does no harm.
    `pool` is the pool's name; all times are in seconds.

    A method that is not overridden costs nothing. Only `on_acquire` and `on_release` are
    heard at each lease, which then takes the way through the pool's lock.

    Example:
        ```python
        class Alarm(PoolListener):
            def on_timeout(self, pool: str, waited: float) -> None:
                alert(f"{pool}: nothing came free within {waited:.1f} s")


        db.add_listener(Alarm())
        ```
    """

    def on_create(self, pool: str, took: float) -> None:
        """Hear that a resource was made, and how long `create` took."""

    def on_create_failed(self, pool: str, error: BaseException) -> None:
        """Hear that `create` failed, and how; the text of what a driver raised may hold an address or a credential."""

    def on_acquire(self, pool: str, waited: float) -> None:
        """Hear that a lease began, and how long its caller has waited."""

    def on_release(self, pool: str, used: float) -> None:
        """Hear that a lease ended, whichever way, and how long it lasted."""

    def on_timeout(self, pool: str, waited: float) -> None:
        """Hear that a caller waited in vain, and for how long."""

    def on_withdraw(self, pool: str, waited: float) -> None:
        """Hear that a caller was cancelled while it waited, and after how long."""

    def on_refuse(self, pool: str, reason: str) -> None:
        """Hear that a caller was turned away at once: "closed", "deadlock", "full" or "unavailable"."""

    def on_discard(self, pool: str, reason: str) -> None:
        """Hear that a resource is taken out of use; the reasons are those of `PoolStats.discards`."""

    def on_detach(self, pool: str) -> None:
        """Hear that a resource was given away for good."""

    def on_clean(self, pool: str) -> None:
        """Hear that a resource was cleaned, whether `clean` raised or not."""


EVENTS = tuple(name for name in vars(PoolListener) if name.startswith("on_"))


class Listeners:
    """Those of one pool."""

    def __init__(self, pool: str) -> None:
        self._pool = pool
        self._all: tuple[PoolListener, ...] = ()  # replaced and never changed: `tell` needs no lock

    def add(self, listener: PoolListener) -> None:
        """Tell this one too."""
        self._all = (*self._all, listener)

    def remove(self, listener: PoolListener) -> None:
        """Tell this one no more.

        Raises:
            ValueError: If it is not one of them.
        """
        place = self._all.index(listener)
        self._all = self._all[:place] + self._all[place + 1 :]

    def heard(self) -> frozenset[str]:
        """Return the events that at least one of them has a method of its own for."""
        return frozenset(
            event
            for event in EVENTS
            for listener in self._all
            if getattr(getattr(listener, event), "__func__", None) is not getattr(PoolListener, event)
        )

    def tell(self, event: str, facts: tuple[object, ...]) -> None:
        """Tell all of them; from any thread."""
        for listener in self._all:
            try:
                getattr(listener, event)(self._pool, *facts)
            except BaseException as error:  # noqa: BLE001 - whatever it raises: decisions are still to be carried out
                logger.error("pool %r: %s of a listener failed with %s", self._pool, event, describe(error))
