"""ResourceManager: the hooks of a pool as one object."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from ._core.slot import T, Verdict
from ._runtime.hooks import EXAMPLES, FOR_PREPARE
from ._runtime.loan import Loan

Change = TypeVar("Change", bound=Callable[..., Awaitable[None]])


def needs_no_task(change: Change) -> Change:
    """Mark an `async def change` that the pool may run without a task of its own, which takes less time.

    It must await nothing but futures of asyncio, as most drivers do, and not ask for its task, as
    `asyncio.timeout` does. On trio the mark means nothing.

    Args:
        change: The method of a manager, or the hook.

    Returns:
        The same.
    """
    change.needs_no_task = True  # type: ignore[attr-defined]
    return change


class ResourceManager(ABC, Generic[T]):
    """How to make, check, change and clean one kind of resource.

    Subclass it if the hooks share state or deserve a name; else plain callables suffice.
    Each hook may be `def` or `async def`. A `def` hook runs on a worker thread of the pool's
    own (inline with `blocking=False`), and an awaitable that it returns is awaited. Only
    `create` is required; a hook that is not overridden costs nothing.
    """

    @abstractmethod
    def create(self) -> T | Awaitable[T]:
        """Make a resource.

        Returns:
            A new one at each call, and never None.
        """

    def check(self, resource: T) -> bool | None | Awaitable[bool | None]:
        """Say whether a free resource may be used again.

        Args:
            resource: One that is not in use at this moment.

        Returns:
            A falsy value other than None if not: then the pool cleans it and tries the next one.
            An exception means the same.
        """

    def doubtful(self, resource: T) -> bool:  # noqa: ARG002 - for subclasses
        """Say whether a resource has to be checked now, although it was used a moment ago.

        The pool asks before each lease. The hook tells what the driver knows without asking its
        back-end: that the connection was closed, or that unexpected data has arrived. It is always a
        plain `def`, is called in the thread or loop that leases or gives back, and must not block.
        It needs `check`.

        Args:
            resource: One that no other caller uses at this moment.

        Returns:
            True to have it checked before its next use, whatever `check_after` is; callers
            get others meanwhile. An exception means the same.
        """
        return False

    def change(self, resource: T) -> None | Awaitable[None]:
        """Make a resource that comes back ready for its next user; an exception discards it.

        Args:
            resource: One that was just given back.
        """

    def lend(self, resource: T, loan: Loan) -> T:  # noqa: ARG002 - for subclasses
        """Make what the caller gets for one lease: by default the resource itself.

        Override it to lend an object that stands for the resource and cannot be used after the lease:
        that object calls `loan.check()` before each use, and `loan.note(error)` with each error of the
        driver. Callers pass it to `release`, `discard` and `detach`. This hook is always a plain `def`,
        is called in the thread or loop that leases, and must not block.

        Args:
            resource: The resource.
            loan: The lease, as the lent object sees it; a new one for each.

        Returns:
            What the caller gets: the resource, or a new object for each lease. An exception
            discards the resource, and the caller gets it.
        """
        return resource

    def broken(self, resource: T, error: Exception) -> Verdict | None:  # noqa: ARG002 - for subclasses
        """Say what an error during a lease means for its resource.

        The pool asks about each error that the lent object notes, and about one that ends a block of
        `lease` or a request. This hook is always a plain `def`, and must not block.

        Args:
            resource: The resource, still in use.
            error: The error, raised by the driver or by the application.

        Returns:
            "keep", or None, if the error tells nothing about the resource; "check" to have it checked before its
            next use; "discard" to have it cleaned when it comes back; "expire" if no resource made until
            now can be used any more, as after a failover.
        """
        return None

    def prepared(self, resource: T) -> None | Awaitable[None]:
        """Make what a `prepare` of `Leased` has set on a resource last as long as the lease.

        Override it if that takes a step of its own: a commit, where a rollback would undo it.

        Args:
            resource: What the caller gets, as `prepare` has left it. An exception means that it has failed.
        """

    def refuse_prepare(self) -> str | None:
        """Say why `Leased(prepare=...)` is refused: what it sets would be left for the next lease.

        It is always a plain `def`, and must not block. A pool without `change` refuses by itself.

        Returns:
            The reason and the remedy, to follow a colon; None if `change` undoes what a lease sets.
        """
        return None

    def clean(self, resource: T) -> None | Awaitable[None]:
        """Destroy a resource; whatever happens, the pool never uses it again.

        Args:
            resource: One that is not in use any more.
        """


def hooks_of(manager: ResourceManager[T]) -> dict[str, Any]:
    """Return a manager's hooks by name; None for each that it does not override."""
    return {
        name: getattr(manager, name)
        if getattr(getattr(manager, name), "__func__", None) is not getattr(ResourceManager, name)
        else None
        for name in (*EXAMPLES, *FOR_PREPARE)
    }


def telling(manager: Any) -> Callable[[Any], Any]:
    """Return a manager's `change_and_tell`, for the guard of tests; else its `change`, which returns nothing.

    `change_and_tell` does what `change` does, and returns the names of what it had to undo that outlasts a transaction.
    """
    # Not that of a base class, if the manager overrides only `change`.
    names = ("change_and_tell", "change")
    name = next((name for kind in type(manager).__mro__ for name in names if name in vars(kind)), "change")
    tell: Callable[[Any], Any] = getattr(manager, name)
    return tell
