"""Listeners: objects that a pool notifies of what happens in it."""


class PoolListener:
    """The events of a pool; override the methods that you need.

    The pool calls these methods after the fact and outside its lock, in the thread or task that
    caused the event (a waiter's `on_acquire` in the one that gave back, for example). So they
    must not block or wait; they may call the pool. What they raise is logged and does no harm.
    `pool` is the pool's name; all times are in seconds.

    A method that is not overridden costs nothing. Only `on_acquire` and `on_release` are called
    at each lease, which then has to take the pool's lock.

    Example:
        ```python
        class Alarm(PoolListener):
            def on_timeout(self, pool: str, waited: float) -> None:
                alert(f"{pool}: nothing came free within {waited:.1f} s")


        db.add_listener(Alarm())
        ```
    """

    def on_create(self, pool: str, took: float) -> None:
        """A resource was made; `create` took this long."""

    def on_create_failed(self, pool: str, error: BaseException) -> None:
        """`create` failed with this error; the text of a driver's error may contain an address or a credential."""

    def on_acquire(self, pool: str, waited: float) -> None:
        """A lease began; its caller has waited this long."""

    def on_wait(self, pool: str, waited: float, position: int, outcome: str) -> None:
        """A caller has left the queue, and goes on: in its own task or thread, so context variables are its own.

        Args:
            pool: The pool's name.
            waited: How long it waited, in seconds.
            position: Its place in the queue as it joined, from 1 on.
            outcome: "acquired", or the type of the error that it gets, as "PoolTimeout" or "CancelledError".
        """

    def on_release(self, pool: str, used: float) -> None:
        """A lease ended, in any way; it lasted this long."""

    def on_timeout(self, pool: str, waited: float) -> None:
        """A caller waited in vain, for this long."""

    def on_withdraw(self, pool: str, waited: float) -> None:
        """A caller was cancelled while it waited, after this long."""

    def on_refuse(self, pool: str, reason: str) -> None:
        """A caller was refused: "closed", "deadlock", "full", "overloaded" or "unavailable"."""

    def on_discard(self, pool: str, reason: str) -> None:
        """A resource is taken out of use; the reasons are those of `PoolStats.discards`."""

    def on_detach(self, pool: str) -> None:
        """A resource was detached: its caller keeps it for good."""

    def on_clean(self, pool: str) -> None:
        """A resource was cleaned, whether `clean` raised or not."""


EVENTS = tuple(name for name in vars(PoolListener) if name.startswith("on_"))
