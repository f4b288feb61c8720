"""SmtpManager: connections of aiosmtplib to a mail server; needs the extra `smtp`."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Literal, cast
from urllib.parse import unquote, urlsplit

from connectionpools_fastapi import Loan

from ..errors import PoolConfigError, PoolError, own
from ..manager import ResourceManager
from ._options import check_address, current
from ._socket import has_news

try:
    from aiosmtplib import SMTP, SMTPAuthenticationError, SMTPException, SMTPHeloError, SMTPResponse
    from aiosmtplib.errors import SMTPNotSupported, SMTPResponseException
except ImportError as _error:
    msg = "connectionpools_fastapi.adapters.smtp needs aiosmtplib: pip install 'connectionpools-fastapi[smtp]'"
    raise ImportError(msg) from _error

CONNECT_TIMEOUT = 5.0
CLOSE_TIMEOUT = 1.0

SCHEMES: dict[str, dict[str, Any]] = {
    "smtp": {},
    "smtp+starttls": {"start_tls": True},
    "smtps": {"use_tls": True},
}
# Commands that leave nothing behind but an unfinished mail.
HARMLESS = frozenset({b"MAIL", b"RCPT", b"RSET", b"NOOP", b"VRFY", b"EXPN", b"HELP"})
OK = 250
NOT_NOW = 400
CLOSING = 421
FOR_GOOD = 500


class _TrackedConnection(SMTP):
    """A client that notes changes of its session, and raises after its lease."""

    loan: Loan | None = None
    lent: "_TrackedConnection | None" = None  # the client of the current lease
    has_begun: bool = False  # whether a mail was begun
    was_refused: bool = False  # whether the server refused a part of it
    is_touched: bool = False  # changed in a way that RSET does not undo
    running: int = 0  # commands that wait for their reply

    def lend(self, loan: Loan) -> "_TrackedConnection":
        """Make a client of the same connection, with its own settings."""
        self.lent = lent = _TrackedConnection.__new__(_TrackedConnection)
        vars(lent).update(vars(self), loan=loan, lent=None)
        return lent

    def take_back(self) -> "_TrackedConnection":
        """Take the connection over from the lease's client; returns that client."""
        lent, self.lent = self.lent, None
        if lent is None:
            return self
        self.protocol, self.transport, self.running = lent.protocol, lent.transport, lent.running
        lent.protocol = lent.transport = None
        return lent

    async def connect(self, **options: Any) -> SMTPResponse:
        self._check()
        response = await super().connect(**options)
        self.is_touched = True
        if self.loan is not None and self.loan.is_over:  # it has ended meanwhile
            self.close()
        return response

    async def execute_command(self, *args: bytes, **options: Any) -> SMTPResponse:
        self._check()
        word = args[0].split(maxsplit=1)[0].upper()
        self.is_touched = self.is_touched or word not in HARMLESS
        response = await self._exchange(super().execute_command(*args, **options))
        if response.code >= NOT_NOW:
            self.was_refused = True
        elif word in {b"MAIL", b"RSET"}:
            self.has_begun, self.was_refused = word == b"MAIL", False
        return response

    async def data(self, *args: Any, **options: Any) -> SMTPResponse:
        self._check()
        response = await self._exchange(super().data(*args, **options))
        self.has_begun = False
        return response

    async def starttls(self, *args: Any, **options: Any) -> SMTPResponse:
        self._check()
        self.is_touched = True
        return await self._exchange(super().starttls(*args, **options))

    def _check(self) -> None:
        if self.loan is not None:
            self.loan.check()

    async def _exchange(self, reply: Awaitable[SMTPResponse]) -> SMTPResponse:
        self.running += 1
        try:
            return await reply
        except BaseException as error:
            was_answered = isinstance(error, SMTPResponseException) and error.code > 0
            was_sent = not isinstance(error, (SMTPNotSupported, ValueError))
            if was_sent and not was_answered:  # a late reply would be taken for that to the next command
                self.close()
            self.was_refused = True
            if self.loan is not None:
                self.loan.note(error)
            raise
        finally:
            self.running -= 1


class SmtpManager(ResourceManager[SMTP]):
    """Leases an `aiosmtplib.SMTP` that is connected, has said hello and is logged in.

    The manager resets a connection between two leases: RSET takes back a mail that was begun and
    not sent, in one round trip, and the log warns of it; without one, giving back costs no round
    trip. Each lease gets its own client with its own settings. After the lease that client raises
    `NotLeased` and sends nothing.

    A connection is destroyed if a lease has logged in, said hello or turned on TLS on it, since
    that cannot be undone; if it is still in use or closed when it comes back; or if the server has
    announced that it closes it (421).

    A command that is cancelled or times out closes its connection: aiosmtplib would take the late
    reply for that to the next command, and might report an unsent mail as sent.

    Servers close connections that are idle (often after five minutes) or have sent too much. So
    give the pool a `max_idle` below that, and a `max_uses`.

    Example:
        ```python
        mail = ConnectionPool(SmtpManager("smtp+starttls://user:password@mail.example:587"), max_idle=60, name="mail")

        async with mail, mail.lease() as smtp:
            await smtp.send_message(message)
        ```
    """

    def __init__(
        self, url: str | Callable[[], str | Awaitable[str]], *, connect_timeout: float = CONNECT_TIMEOUT, **options: Any
    ) -> None:
        """Say where the server is.

        Args:
            url: As in `smtp://user:password@host:25`, `smtp+starttls://...` or `smtps://...`; plain
                `smtp` turns on TLS if the server offers it. A callable that returns it, plain or
                async, is called at each `create`: for credentials that change.
            connect_timeout: How long to wait for the connection and its greeting, in seconds.
            **options: For `aiosmtplib.SMTP`, as `timeout=10` (60 s if not given), `start_tls=False`,
                `local_hostname` or `tls_context`.

        Raises:
            PoolConfigError: If `url` is neither a str nor a callable.
        """
        check_address("SmtpManager", "url", url)
        self._url = url
        self._connect_timeout = connect_timeout
        self._options = options

    async def create(self) -> SMTP:
        """Connect, say hello, and log in if the URL has a user.

        Returns:
            A client that is ready to send.

        Raises:
            PoolConfigError: If the URL cannot be read, or the server refuses the user or the
                password, or does not offer the TLS or the login that is asked for.
            SMTPException: aiosmtplib's own error, if the server cannot be reached or does not serve yet.
        """
        client = _client(await current(self._url), self._options)
        try:
            await client.connect(timeout=self._connect_timeout)
            if client.is_ehlo_or_helo_needed:
                await _say_hello(client)
        except BaseException as error:
            client.close()
            if isinstance(error, SMTPAuthenticationError) and error.code >= FOR_GOOD:
                raise _refused("the server refuses the user or the password") from None
            if isinstance(error, SMTPNotSupported) or type(error) is SMTPException:
                raise _refused("the server does not offer the TLS or the login that is asked for") from None
            raise
        client.is_touched = False
        return client

    async def check(self, resource: SMTP) -> bool:
        """Send NOOP, one round trip, unless the driver knows that the connection is closed.

        Args:
            resource: A free client.

        Returns:
            Whether it can be used.
        """
        if not resource.is_connected:
            return False
        return (await resource.noop()).code == OK

    def doubtful(self, resource: SMTP) -> bool:
        """Whether a connection was closed, as far as this end knows, without a round trip.

        Args:
            resource: The client.

        Returns:
            Whether it has to be checked before it is used.
        """
        return not resource.is_connected or has_news(resource.get_transport_info("socket").fileno())

    def lend(self, resource: SMTP, loan: Loan) -> SMTP:
        """Make a client of the same connection, with its own settings.

        Args:
            resource: The client.
            loan: The lease.

        Returns:
            A client that raises `NotLeased` after the lease.
        """
        return _noted(resource).lend(loan)

    def broken(self, resource: SMTP, error: Exception) -> Literal["discard"] | None:  # noqa: ARG002
        """Say whether an error shows that the server closes the connection.

        Args:
            resource: The client.
            error: The error.

        Returns:
            "discard" if so.
        """
        return "discard" if isinstance(error, SMTPResponseException) and error.code == CLOSING else None

    async def change(self, resource: SMTP) -> None:
        """Take back a mail that was begun, by RSET; no round trip if there is none.

        Args:
            resource: A client that was given back.

        Raises:
            PoolError: If the connection cannot be used again; the text says why.
            SMTPException: aiosmtplib's own error, if RSET fails.
        """
        lent = _noted(resource).take_back()
        if not resource.is_connected:
            raise own(PoolError("the connection was lost"))
        if lent.running:
            raise own(PoolError("the connection was still in use"))
        if lent.is_touched:
            raise own(PoolError("the session was changed in a way that RSET does not undo"))
        if lent.has_begun:
            if lent.loan is not None and not (lent.loan.has_failed or lent.was_refused):
                lent.loan.warn("a mail was begun with MAIL and not sent; end it with data(), or use send_message()")
            await resource.rset()

    async def clean(self, resource: SMTP) -> None:
        """Send QUIT, wait a second at most, and close.

        Args:
            resource: Any client, connected or not.
        """
        client = _noted(resource)
        client.take_back()
        transport = client.transport
        try:
            if client.is_connected and not client.running:
                with suppress(OSError, SMTPException):  # TimeoutError is one
                    async with asyncio.timeout(CLOSE_TIMEOUT):
                        await client.quit()
        finally:
            client.close()
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()


def _noted(client: SMTP) -> _TrackedConnection:
    return cast("_TrackedConnection", client)


def _client(url: object, options: dict[str, Any]) -> _TrackedConnection:
    try:
        parts = urlsplit(cast("str", url))
        if not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError
        found: dict[str, Any] = {"hostname": parts.hostname, "port": parts.port, **SCHEMES[parts.scheme]}
        for key, value in (("username", parts.username), ("password", parts.password)):
            if value is not None:
                found[key] = unquote(value)
    except (AttributeError, KeyError, ValueError):
        raise _refused(
            "this is no URL of a mail server; write smtp://user:password@host:25, smtp+starttls://... or smtps://..."
        ) from None
    try:
        return _TrackedConnection(**{**found, **options})
    except (TypeError, ValueError):
        names = ", ".join(sorted(options))
        raise _refused(f"aiosmtplib does not take these options together: {names} and what is in the URL") from None


def _refused(problem: str) -> PoolConfigError:
    return own(PoolConfigError(f"SmtpManager: {problem}"))


async def _say_hello(client: SMTP) -> None:
    try:
        await client.ehlo()
    except SMTPHeloError:  # an old server
        await client.helo()
