"""SmtpManager: connections of aiosmtplib to a mail server; needs the extra `smtp`."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from ..errors import PoolConfigError, PoolError, own
from ..manager import ResourceManager
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
# Commands that leave nothing behind but a mail that was begun.
HARMLESS = frozenset({b"MAIL", b"RCPT", b"RSET", b"NOOP", b"VRFY", b"EXPN", b"HELP"})
OK = 250
FOR_GOOD = 500


class _Noted(SMTP):
    """A client that takes note of what its user makes of the session."""

    has_begun: bool = False  # a mail
    is_touched: bool = False  # in a way that RSET does not undo
    running: int = 0  # commands that wait for their reply

    async def execute_command(self, *args: bytes, **options: Any) -> SMTPResponse:
        word = args[0].split(maxsplit=1)[0].upper()
        self.has_begun = self.has_begun or word == b"MAIL"
        self.is_touched = self.is_touched or word not in HARMLESS
        response = await self._exchange(super().execute_command(*args, **options))
        if word == b"RSET" and response.code == OK:
            self.has_begun = False
        return response

    async def data(self, *args: Any, **options: Any) -> SMTPResponse:
        response = await self._exchange(super().data(*args, **options))
        self.has_begun = False
        return response

    async def starttls(self, *args: Any, **options: Any) -> SMTPResponse:
        self.is_touched = True
        return await self._exchange(super().starttls(*args, **options))

    async def _exchange(self, reply: Awaitable[SMTPResponse]) -> SMTPResponse:
        self.running += 1
        try:
            return await reply
        except BaseException as error:
            was_answered = isinstance(error, SMTPResponseException) and error.code > 0
            was_sent = not isinstance(error, (SMTPNotSupported, ValueError))
            if was_sent and not was_answered:  # what comes late would be taken for the reply to the next command
                self.close()
            raise
        finally:
            self.running -= 1


class SmtpManager(ResourceManager[SMTP]):
    """Leases an `aiosmtplib.SMTP` that is connected, has said hello and is logged in.

    What a lease leaves behind, the next one does not see: a mail that was begun and not
    sent is taken back with RSET, one round trip; where none was begun, giving back costs
    none. Destroyed is a connection on which the user logged in, said hello or turned on
    TLS, since that cannot be undone, or that was still in use or closed as it comes back.

    A command that is cancelled or runs out of time closes its connection: aiosmtplib would
    take the late reply for that to the next command, and a mail for sent that was not.

    Servers close what is idle (often after five minutes) and what has sent too much; so give
    the pool a `max_idle` below that, and a `max_uses`.

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
            url: As in `smtp://user:password@host:25`, `smtp+starttls://...` or `smtps://...`;
                plain `smtp` turns on TLS where the server offers it. Or what returns it, plain
                or async, and is asked at each `create`: for credentials that change.
            connect_timeout: How long to wait for the connection and its greeting, in seconds.
            **options: What `aiosmtplib.SMTP` takes, as `timeout=10` (60 s if not given), `start_tls=False`,
                `local_hostname` or `tls_context`.

        Raises:
            PoolConfigError: If `url` is not what it may be.
        """
        if not (isinstance(url, str) or callable(url)):
            raise PoolConfigError(f"SmtpManager: url must be a str or a callable; got {type(url).__name__}")
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
            SMTPException: aiosmtplib's, if the server cannot be reached or does not serve yet.
        """
        url: Any = self._url() if callable(self._url) else self._url
        client = _client(await url if inspect.isawaitable(url) else url, self._options)
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
        """Look whether the connection is known to be closed, else send NOOP: one round trip.

        Args:
            resource: A free client.

        Returns:
            Whether it is of use.
        """
        if not resource.is_connected:
            return False
        return (await resource.noop()).code == OK

    def doubtful(self, resource: SMTP) -> bool:
        """Say whether a connection was closed, as far as it is known here: no round trip.

        Args:
            resource: The client.

        Returns:
            Whether it has to be checked before it is used.
        """
        return not resource.is_connected or has_news(resource.get_transport_info("socket").fileno())

    async def change(self, resource: SMTP) -> None:
        """Take back a mail that was begun, by RSET; no round trip where there is none.

        Args:
            resource: A client that was given back.

        Raises:
            PoolError: If the connection cannot be used again; it says why.
            SMTPException: aiosmtplib's, if RSET fails.
        """
        client = _noted(resource)
        if not client.is_connected:
            raise own(PoolError("the connection was lost"))
        if client.running:
            raise own(PoolError("the connection was still in use"))
        if client.is_touched:
            raise own(PoolError("the session was changed in a way that RSET does not undo"))
        if client.has_begun:
            await client.rset()

    async def clean(self, resource: SMTP) -> None:
        """Say QUIT, for a second at most, and close.

        Args:
            resource: Any client, connected or not.
        """
        transport = resource.transport
        try:
            if resource.is_connected and not _noted(resource).running:
                with suppress(OSError, SMTPException):  # TimeoutError is one
                    async with asyncio.timeout(CLOSE_TIMEOUT):
                        await resource.quit()
        finally:
            resource.close()
            if isinstance(transport, asyncio.WriteTransport):
                transport.abort()


def _noted(client: SMTP) -> _Noted:
    return cast("_Noted", client)


def _client(url: object, options: dict[str, Any]) -> _Noted:
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
        return _Noted(**{**found, **options})
    except (TypeError, ValueError):
        names = ", ".join(sorted(options))
        raise _refused(f"aiosmtplib does not take these options together: {names} and what is in the URL") from None


def _refused(problem: str) -> PoolConfigError:
    return own(PoolConfigError(f"SmtpManager: {problem}"))


async def _say_hello(client: SMTP) -> None:
    try:
        await client.ehlo()
    except SMTPHeloError:  # it is an old one
        await client.helo()
