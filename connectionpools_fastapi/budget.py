"""Budget: what pools ask before they create, so that the resources of several processes stay within one total."""

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from .stats import BudgetStats


class Member(Protocol):
    """A pool, as a budget sees it."""

    @property
    def pool(self) -> str:
        """The pool's name."""
        ...

    def spawn(self, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a task in the pool's event loop, beside the caller's. From any thread.

        Args:
            job: Returns the coroutine to run; it has to end once the membership was left.
        """
        ...

    def give_way(self, level: int | None, count: int = 1) -> None:
        """Ask the pool to give tokens back, since another member needs them. From any thread.

        For each, the pool cleans the resource that was unused for the longest time, at least 0.2 s, beyond `min_free`
        and the budget's floor. If there is none, it cleans the next one that is returned, provided that it holds more
        than `level` tokens.

        Args:
            level: How many tokens the pool may hold in any case; None to ask for unused resources only.
            count: How many tokens are needed.
        """
        ...


class Membership(Protocol):
    """A pool's share of a budget, from `open` to the end of `close`."""

    async def take(self) -> None:
        """Take a token, and wait for one for as long as it takes.

        The pool may cancel it, and call it again; a call that is cancelled has taken none. Several tasks may wait.
        """
        ...

    def give_back(self) -> None:
        """Give a token back that was taken. From any thread."""
        ...

    def leave(self) -> None:
        """Give everything back, and end. From any thread."""
        ...

    def stats(self) -> BudgetStats:
        """Return how many tokens are used, and by which members. From any thread; must not block.

        Returns:
            What is known at this moment.
        """
        ...


class Budget(Protocol):
    """The most resources that several pools may have together: one token for each resource that exists.

    A pool takes a token before it calls `create`, and gives it back after `clean`. No lease waits for a token
    while a resource may still come back: a creation that waits for one is like a creation that is slow.
    """

    @property
    def floor(self) -> int:
        """How many tokens each member may keep, however much the others need them."""
        ...

    async def join(self, member: Member) -> Membership:
        """Become a member; called when the pool opens.

        Args:
            member: The pool.

        Returns:
            The pool's share, of no tokens yet.

        Raises:
            PoolConfigError: If the budget cannot work as it is configured; the pool then does not open.
        """
        ...
