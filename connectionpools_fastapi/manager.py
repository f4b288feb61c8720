"""ResourceManager: the hooks that tell a pool how to treat its resources."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable
from typing import Generic, TypeVar

T = TypeVar("T")


class ResourceManager(ABC, Generic[T]):
    """How to make, check, change and clean one kind of resource.

    Subclass it where the hooks share state or deserve a name; plain callables do for the
    rest. Each hook may be `def` or `async def`. A `def` hook runs on a worker thread of
    the pool's own (inline with `blocking=False`), and what it returns is awaited if it is
    awaitable. Only `create` is required; a hook that is not overridden costs nothing.
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
            resource: One that nobody uses at this moment.

        Returns:
            Anything falsy but None: it is cleaned and the next one tried. To raise says
            the same.
        """

    def doubtful(self, resource: T) -> bool:  # noqa: ARG002 - for subclasses
        """Say whether a resource is to be checked now, although it was used a moment ago.

        Asked before each lease, for what the driver knows without asking its back-end: that the
        connection was closed, or that something unexpected has arrived. Unlike the other hooks
        it is always a plain `def`, is called in whichever thread or loop leases or gives back,
        and must not block. It needs `check`.

        Args:
            resource: One that nobody else uses at this moment.

        Returns:
            True to have it checked before its next use, whatever `check_after` says; callers
            get others meanwhile. To raise says the same.
        """
        return False

    def change(self, resource: T) -> None | Awaitable[None]:
        """Make a resource that comes back ready for its next user; to raise discards it.

        Args:
            resource: One that was just given back.
        """

    def clean(self, resource: T) -> None | Awaitable[None]:
        """Destroy a resource; whatever happens, the pool never uses it again.

        Args:
            resource: One that nobody uses any more.
        """
