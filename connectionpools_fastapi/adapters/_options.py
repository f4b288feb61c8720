"""Options that the managers share: where to connect to, and how far to reset."""

import inspect
from collections.abc import Awaitable, Callable
from ssl import SSLCertVerificationError
from typing import Any, Literal, TypeVar

from ..errors import PoolConfigError

T = TypeVar("T")

Reset = Literal["session", "transaction"]


def check_address(manager: str, name: str, address: object) -> None:
    """Refuse an address that is neither a str nor a callable.

    Raises:
        PoolConfigError: If it is neither. The text names manager and option, not the value: it may hold a password.
    """
    if not (isinstance(address, str) or callable(address)):
        raise PoolConfigError(f"{manager}: {name} must be a str or a callable; got {type(address).__name__}")


def check_reset(manager: str, reset: object) -> None:
    """Refuse an unknown kind of reset.

    Raises:
        PoolConfigError: If it is unknown; the text names the manager and the kinds.
    """
    if reset not in {"session", "transaction"}:
        raise PoolConfigError(f"{manager}: reset must be 'session' or 'transaction'; got {reset!r}")


def untrusted(error: SSLCertVerificationError, remedy: str) -> str:
    """Say why a server's certificate does not pass, without the host, and which option names the one to trust."""
    check = str(error.verify_message).partition(",")[0]
    return (
        f"the server's TLS certificate does not pass ({check}). Have the server show one that does, or name the "
        f"authority that has signed it: {remedy}"
    )


def refuse_prepare(*, resets_session: bool, shares_sessions: bool | None = False) -> str | None:
    """Say why what a `prepare` sets would be left for the next lease.

    Args:
        resets_session: Whether the manager resets the whole session.
        shares_sessions: Whether a pooler lends one session to several connections in turn.

    Returns:
        The reason and the remedy; None if a reset undoes it.
    """
    if shares_sessions:
        return (
            "a pooler in transaction or statement mode, such as PgBouncer, would run the next request in a session "
            "that keeps the setting. Let it work in session mode, or leave prepare out and write SET LOCAL in each "
            "transaction: see docs/pgbouncer.md"
        )
    if not resets_session:
        return (
            "the manager's reset='transaction' keeps settings, so that the next request would see those of the last "
            "one. Write reset='session'"
        )
    return None


async def current(source: T | Callable[[], T | Awaitable[T]]) -> Any:
    """Return the address to connect to now: itself, or the result of a callable, plain or async."""
    return await awaited(source() if callable(source) else source)


async def awaited(result: Any) -> Any:
    """Return the result of a call, after awaiting it if it is awaitable."""
    return await result if inspect.isawaitable(result) else result
