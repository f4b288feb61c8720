"""The SMTP adapter, on a real mail server: no mail that was begun, and no late reply, reaches the next lease."""

import asyncio
import importlib.util
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.message import EmailMessage
from typing import Any
from urllib.parse import quote

import pytest
from aiosmtpd.smtp import SMTP as SMTPServer  # noqa: N811 - the client is called so as well
from aiosmtpd.smtp import AuthResult
from aiosmtplib import SMTPResponseException, SMTPServerDisconnected

from connectionpools_fastapi import ConnectionPool, PoolConfigError, ResourceManager, ResourceUnavailable
from connectionpools_fastapi.adapters import smtp as adapter
from connectionpools_fastapi.adapters.smtp import SmtpManager

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """aiosmtplib knows asyncio only."""
    return "asyncio"


class Office:
    """What a mail server has received; it answers only while its gates are open."""

    def __init__(self) -> None:
        self.mails: list[tuple[list[str], str]] = []
        self.words: list[str] = []
        self.gates = {word: asyncio.Event() for word in ("DATA", "QUIT")}
        self.reached = asyncio.Event()
        self.servers: list[SMTPServer] = []
        self.password = b"secret"
        self.refusal = "535 5.7.8 Authentication credentials invalid"
        for gate in self.gates.values():
            gate.set()

    async def handle_MAIL(self, _: Any, __: Any, envelope: Any, address: str, options: list[str]) -> str:  # noqa: N802
        self.words.append("MAIL")
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_NOOP(self, *_: Any) -> str:  # noqa: N802
        self.words.append("NOOP")
        return "250 OK"

    async def handle_RSET(self, *_: Any) -> str:  # noqa: N802
        self.words.append("RSET")
        return "250 OK"

    async def handle_QUIT(self, *_: Any) -> str:  # noqa: N802
        await self._pass_through("QUIT")
        return "221 Bye"

    async def handle_DATA(self, _: Any, __: Any, envelope: Any) -> str:  # noqa: N802
        await self._pass_through("DATA")
        self.mails.append((list(envelope.rcpt_tos), envelope.content.decode()))
        return "250 OK"

    async def _pass_through(self, word: str) -> None:
        self.words.append(word)
        self.reached.set()
        await self.gates[word].wait()

    def authenticate(self, *arguments: Any) -> AuthResult:
        success = arguments[-1].password == self.password
        return AuthResult(success=success, handled=False, message=None if success else self.refusal)


@pytest.fixture
async def office() -> Office:
    return Office()


@pytest.fixture
async def url(office: Office) -> AsyncIterator[str]:
    """The address of a mail server of our own."""

    def serve() -> SMTPServer:
        server = SMTPServer(office, hostname="office", authenticator=office.authenticate, auth_require_tls=False)
        office.servers.append(server)
        return server

    server = await asyncio.get_running_loop().create_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"smtp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for gate in office.gates.values():
            gate.set()


@asynccontextmanager
async def mail_of(manager: SmtpManager, **options: Any) -> AsyncIterator[ConnectionPool[Any]]:
    """A pool of one connection."""
    async with ConnectionPool(manager, **{"limit": 1, "name": "mail", **options}) as pool:
        yield pool


def socket_of(client: Any) -> Any:
    """What tells a connection from any other, without asking the server."""
    return client.get_transport_info("sockname")


def mail(to: str, text: str = "Hello") -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "us@office.example", to, "Greeting"
    message.set_content(text)
    return message


class Careless(SmtpManager):
    """One that does nothing as a connection comes back: what shows that there would be something to see."""

    change = ResourceManager.change  # type: ignore[assignment]


@pytest.mark.parametrize("options", [{}, {"start_tls": False}])
async def test_mails_are_sent_over_one_connection_and_nothing_else_is(
    url: str, office: Office, options: dict[str, Any]
) -> None:
    async with mail_of(SmtpManager(url, **options)) as pool:
        for number in range(3):
            async with pool.lease() as client:
                assert await client.send_message(mail("a@office.example", f"number {number}"))
        assert pool.stats().creates == 1
    assert office.words == ["MAIL", "DATA"] * 3 + ["QUIT"]
    assert ["number 2" in text for _, text in office.mails] == [False, False, True]


@pytest.mark.parametrize("kind", [SmtpManager, Careless])
async def test_a_mail_that_was_begun_is_not_continued_by_the_next_lease(
    url: str, office: Office, kind: type[SmtpManager]
) -> None:
    async with mail_of(kind(url)) as pool:
        async with pool.lease() as client:
            here = socket_of(client)
            await client.mail("us@office.example")
            await client.rcpt("somebody@else.example")
        async with pool.lease() as client:
            assert socket_of(client) == here
            if kind is Careless:
                await client.rcpt("a@office.example")  # and the mail would go to both
            else:
                with pytest.raises(SMTPResponseException) as caught:
                    await client.rcpt("a@office.example")
                assert caught.value.code == 503
                await client.send_message(mail("a@office.example"))
                assert office.mails[0][0] == ["a@office.example"]
    assert ("RSET" in office.words) is (kind is SmtpManager)


async def test_what_is_refused_in_the_middle_of_a_mail_leaves_nothing_behind(url: str, office: Office) -> None:
    async with mail_of(SmtpManager(url)) as pool:
        async with pool.lease() as client:
            here = socket_of(client)
            with pytest.raises(ValueError, match="prohibited"):
                await client.execute_command(b"NOOP", b"a\r\nb")
            await client.mail("us@office.example")
            with pytest.raises(SMTPResponseException):
                await client.data(b"to nobody")
        async with pool.lease() as client:
            assert socket_of(client) == here
            await client.send_message(mail("a@office.example"))
    assert len(office.mails) == 1


async def log_in(client: Any) -> Any:
    await client.login("user", "secret")


async def say_hello(client: Any) -> Any:
    await client.ehlo(hostname="another.example")


async def say_hello_the_old_way(client: Any) -> Any:
    await client.helo(hostname="another.example")


async def turn_on_tls(client: Any) -> Any:
    with pytest.raises(Exception, match="STARTTLS"):  # this server has none
        await client.starttls()


async def say_goodbye(client: Any) -> Any:
    await client.quit()


async def close(client: Any) -> Any:
    client.close()


@pytest.mark.parametrize("leave", [log_in, say_hello, say_hello_the_old_way, turn_on_tls, say_goodbye, close])
async def test_what_cannot_be_undone_costs_the_connection(url: str, leave: Callable[[Any], Awaitable[Any]]) -> None:
    async with mail_of(SmtpManager(url)) as pool:
        async with pool.lease() as client:
            first = client
            await leave(client)
        async with pool.lease() as client:
            assert client is not first
            await client.send_message(mail("a@office.example"))
        assert pool.stats().discards["change"] == 1


async def test_the_late_reply_of_a_cancelled_command_reaches_nobody(url: str, office: Office) -> None:
    office.gates["DATA"].clear()
    async with mail_of(SmtpManager(url)) as pool:
        async with pool.lease() as client:
            first = client
            sending = asyncio.create_task(client.send_message(mail("a@office.example")))
            await asyncio.wait_for(office.reached.wait(), 10)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            office.gates["DATA"].set()
            with pytest.raises(SMTPServerDisconnected):  # nor the next command of the same lease
                await client.vrfy("a@office.example")
        async with pool.lease() as client:
            assert client is not first
            assert (await client.vrfy("a@office.example")).code == 252


async def test_a_connection_that_is_still_in_use_as_it_comes_back_is_destroyed(
    url: str, office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    office.gates["DATA"].clear()
    async with mail_of(SmtpManager(url)) as pool:
        async with pool.lease() as client:
            first = client
            sending = asyncio.create_task(client.send_message(mail("a@office.example")))
            await asyncio.wait_for(office.reached.wait(), 10)
        async with pool.lease() as client:
            assert client is not first
            assert "the connection was still in use" in caplog.text
            with pytest.raises(SMTPServerDisconnected):
                await asyncio.wait_for(sending, 10)
            assert (await client.vrfy("a@office.example")).code == 252


async def test_a_check_sends_noop_and_one_that_was_closed_is_replaced(url: str, office: Office) -> None:
    async with mail_of(SmtpManager(url), check_after=0) as pool:
        for _ in range(2):
            async with pool.lease() as client:
                first = client
        assert office.words == ["NOOP"]
        client.transport.abort()
        async with pool.lease() as client:
            assert client is not first
            await client.send_message(mail("a@office.example"))
    assert pool.stats().discards["check"] == 1


async def test_credentials_are_asked_for_anew_at_each_create(url: str, office: Office) -> None:
    def address() -> str:
        return url.replace("//", f"//user%40office:{quote(office.password.decode(), safe='')}@")

    async def address_later() -> str:
        return address()

    for ask in (address, address_later):
        async with mail_of(SmtpManager(ask)) as pool:
            for password in (b"secret", b"p@ss/word"):
                office.password = password
                pool.expire()
                async with pool.lease() as client:
                    await client.send_message(mail("a@office.example"))
    assert len(office.mails) == 4


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (lambda _: "mail.example", {}, "no URL of a mail server"),
        (lambda _: "http://user:hidden@mail.example", {}, "no URL of a mail server"),
        (lambda _: "smtp://user:hidden@mail.example:port", {}, "no URL of a mail server"),
        (lambda _: "smtp://user:hidden@mail.example/path", {}, "no URL of a mail server"),
        (lambda _: 7, {}, "no URL of a mail server"),
        (lambda url: url, {"passwort": "hidden"}, "does not take these options together: passwort"),
        (lambda url: url.replace("smtp:", "smtps:"), {"start_tls": True}, "does not take these options together"),
        (lambda url: url.replace("//", "//user:hidden@"), {}, "refuses the user or the password"),
        (lambda url: url.replace("smtp:", "smtp+starttls:"), {}, "does not offer the TLS"),
    ],
)
async def test_a_mistake_is_told_in_one_line_without_the_password(
    url: str, change: Callable[[str], Any], options: Any, says: str
) -> None:
    pool = ConnectionPool(SmtpManager(lambda: change(url), **options), min_free=1, name="mail")
    with pytest.raises(PoolConfigError, match=says) as caught:
        await pool.open()
    assert "hidden" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_manager_is_made_of_a_url() -> None:
    with pytest.raises(PoolConfigError, match="url must be a str or a callable; got int"):
        SmtpManager(7)  # type: ignore[arg-type]
    assert "hidden" not in repr(SmtpManager("smtp://user:hidden@mail.example"))


async def test_a_server_that_is_not_there_is_an_outage() -> None:
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with mail_of(SmtpManager(f"smtp://127.0.0.1:{port}")) as pool:
        with pytest.raises(ResourceUnavailable):
            await pool.acquire()


async def test_a_login_that_fails_for_now_is_an_outage(url: str, office: Office) -> None:
    office.refusal = "454 4.7.0 Temporary authentication failure"
    async with mail_of(SmtpManager(url.replace("//", "//user:hidden@"))) as pool:
        with pytest.raises(ResourceUnavailable) as caught:
            await pool.acquire()
        assert "hidden" not in str(caught.value)


async def test_to_clean_ends_what_cannot_be_sent_any_more(url: str, office: Office) -> None:
    manager = SmtpManager(url)
    client = await manager.create()
    transport: Any = client.transport
    server: Any = office.servers[0].transport
    server.pause_reading()
    sending = asyncio.create_task(client.execute_command(b"VRFY", b"x" * 32_000_000))
    await asyncio.sleep(0)
    assert transport.get_write_buffer_size()
    await manager.clean(client)
    with pytest.raises(SMTPServerDisconnected):
        await asyncio.wait_for(sending, 5)
    assert not transport.get_write_buffer_size()
    server.abort()


async def test_to_clean_says_quit_but_waits_for_no_answer_for_long(
    url: str, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "CLOSE_TIMEOUT", 0.05)
    manager = SmtpManager(url)
    client = await manager.create()
    transport: Any = client.transport
    office.gates["QUIT"].clear()
    async with asyncio.timeout(5):
        await manager.clean(client)
    assert office.words == ["QUIT"]
    assert transport.is_closing()
    await manager.clean(client)  # and takes one that is closed


def test_a_missing_driver_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiosmtplib", None)
    spec = importlib.util.find_spec(adapter.__name__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=r"pip install 'connectionpools-fastapi\[smtp\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
