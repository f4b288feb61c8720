"""Loan: what a lent object knows of its lease."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, ref

from ..errors import NotLeased
from .holders import holder_name
from .log import facts, logger

if TYPE_CHECKING:
    from .._core.slot import Slot

Judge = Callable[[Any, Exception], None]


class Loan:
    """Tells a lent object whether its lease goes on, and takes the errors that its driver raises.

    The pool makes one for each lease and passes it to the manager's `lend`. Any thread may use it.

    Attributes:
        pool: The pool's name.
        is_over: Whether the lease has ended. The pool sets it as the lease ends, before `change` is called.
        has_failed: Whether the block or the request of the lease has ended with an error: then undoing its work is
            intended.
        lent: The object that `lend` returned, while the lease goes on.
    """

    is_over: bool = False
    has_failed: bool = False
    lent: Any = None
    # The slot's values, kept after the lease: by then the slot may be leased again.
    _holder: object = None
    _lease: ReferenceType[Any] | None = None

    def __init__(self, pool: str, slot: Any, judge: Judge | None) -> None:
        """Begin with a lease; only the pool calls this."""
        self.pool: str = pool
        self._slot: Slot[Any] | None = slot
        self._judge = judge

    def check(self) -> None:
        """Check that the lease goes on; the lent object calls this before each use.

        Raises:
            NotLeased: If the lease has ended; the text says what to write instead.
        """
        if self.is_over:
            msg = (
                f"pool {self.pool!r}: a resource was used after its lease had ended, and nothing was sent. Lease one "
                "where it is used, as `async with pool.lease() as resource`; a background task, and all else that "
                "outlives its request, leases for itself"
            )
            raise NotLeased(msg)

    def note(self, error: BaseException) -> None:
        """Let the manager's `broken` judge an error that the driver raised during the lease.

        Args:
            error: The error. It is judged at once and not kept. An error that comes after the
                lease has ended, or is no Exception, is ignored.
        """
        slot = self._slot
        if slot is not None and self._judge is not None and isinstance(error, Exception):
            self._judge(slot, error)

    def warn(self, text: str) -> None:
        """Write one line into the log; it names the pool and the holder of the lease.

        Args:
            text: The rest of the line; it must not contain a driver's own text.
        """
        slot = self._slot
        holder, lease = (self._holder, self._lease) if slot is None else (slot.holder, slot.lease)
        name = holder_name(holder, lease)
        logger.warning("pool %r: %s: %s", self.pool, name, text, extra=facts("work_lost", self.pool, holder=name))

    def end(self, holder: object, lease: ReferenceType[Any] | None) -> None:
        """Note that the lease has ended; only the pool calls this."""
        self.is_over = True
        self._holder = holder
        if holder is None and lease is not None and (ending := lease()) is not None:
            self._lease = ref(ending)  # not `lease` itself: its callback would report a lost lease
        self._slot = self.lent = None

    def keep(self) -> None:
        """Stay usable for good, since the pool has let the resource go; only the pool calls this."""
        self.is_over = False
