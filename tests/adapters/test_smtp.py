"""The SMTP adapter, on a real mail server: no mail that was begun, and no late reply, reaches the next lease."""

import asyncio
import gc
import importlib.util
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from email.message import EmailMessage
from typing import Any
from urllib.parse import quote

import pytest
from aiosmtpd.smtp import SMTP as SMTPServer  # noqa: N811 - the client is called so as well
from aiosmtpd.smtp import AuthResult
from aiosmtplib import SMTPResponseException, SMTPServerDisconnected

from connectionpools_fastapi import ConnectionPool, NotLeased, PoolConfigError, ResourceManager, ResourceUnavailable
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
        self.answer = "250 OK"
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
        return self.answer

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
async def test_mails_share_one_connection_without_other_commands(
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
async def test_begun_mail_is_not_continued_by_the_next_lease(url: str, office: Office, kind: type[SmtpManager]) -> None:
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


async def test_refusal_in_mid_mail_leaves_nothing_behind(url: str, office: Office) -> None:
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


Kept = tuple[Callable[[], Awaitable[Any]], Callable[[], Awaitable[Any]]]  # what uses it, and what closes it


async def keep_a_client(client: Any) -> Kept:
    return lambda: client.send_message(mail("b@office.example")), client.quit


async def keep_a_client_to_be_closed(client: Any) -> Kept:
    async def close() -> None:
        client.close()
        assert not client.is_connected

    return client.noop, close


async def keep_an_entered_client(client: Any) -> Kept:
    await client.__aenter__()
    return client.__aenter__, lambda: client.__aexit__(None, None, None)


async def keep_a_mail_that_was_begun(client: Any) -> Kept:
    await client.mail("us@office.example")
    await client.rcpt("b@office.example")
    return lambda: client.data(b"not mine"), client.rset


async def keep_a_coroutine(client: Any) -> Kept:
    sending = client.rcpt("b@office.example")

    async def close() -> None:
        sending.close()

    return lambda: sending, close


async def keep_tls_to_be_begun(client: Any) -> Kept:
    return client.starttls, client.connect


async def keep_a_client_that_was_closed(client: Any) -> Kept:
    client.close()
    return client.connect, client.quit


KEEPERS = [
    keep_a_client,
    keep_a_client_to_be_closed,
    keep_an_entered_client,
    keep_a_mail_that_was_begun,
    keep_a_coroutine,
    keep_tls_to_be_begun,
    keep_a_client_that_was_closed,
]


async def use(kept: list[Kept]) -> None:
    with pytest.raises(NotLeased, match="pool 'mail'"):
        await kept[0][0]()


async def close_late(kept: list[Kept]) -> None:
    with suppress(NotLeased):
        await kept[0][1]()


async def collect(kept: list[Kept]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a coroutine was not awaited
        kept.clear()
        gc.collect(1)  # it is young


@pytest.mark.parametrize("late", [use, close_late, collect])
@pytest.mark.parametrize("keep", KEEPERS)
async def test_next_lease_does_not_notice_what_was_kept(
    url: str, office: Office, keep: Callable[[Any], Awaitable[Kept]], late: Any
) -> None:
    async with mail_of(SmtpManager(url)) as pool:
        async with pool.lease() as client:
            kept = [await keep(client)]
        del client
        async with pool.lease() as client:
            here = socket_of(client)
            await client.mail("us@office.example")
            await client.rcpt("a@office.example")
            await late(kept)
            await client.data(b"mine")
            assert office.mails == [(["a@office.example"], "mine\r\n")]
            assert client.is_connected
            assert socket_of(client) == here
        await collect(kept)
    assert len(office.servers) == pool.stats().creates


async def test_settings_of_a_client_end_with_its_lease(url: str) -> None:
    async with mail_of(SmtpManager(url, timeout=7)) as pool:
        async with pool.lease() as client:
            here = socket_of(client)
            client.timeout = 0.01
        async with pool.lease() as client:
            assert socket_of(client) == here
            assert client.timeout == 7


async def test_detached_client_goes_on(url: str, office: Office) -> None:
    async with mail_of(SmtpManager(url)) as pool:
        client = await pool.acquire()
        pool.detach(client)
        async with pool.lease() as other:
            assert socket_of(other) != socket_of(client)
        await client.send_message(mail("a@office.example"))
        await client.quit()
    assert len(office.mails) == 1


async def begin(client: Any) -> None:
    await client.mail("us@office.example")


async def send(client: Any) -> None:
    await client.send_message(mail("a@office.example"))


async def be_refused(client: Any) -> None:
    await begin(client)
    with pytest.raises(SMTPResponseException):
        await client.data(b"to nobody")


async def take_back(client: Any) -> None:
    await begin(client)
    await client.rset()


async def fail(client: Any) -> None:
    await begin(client)
    raise ZeroDivisionError


@pytest.mark.parametrize(("act", "lines"), [(begin, 1), (send, 0), (be_refused, 0), (take_back, 0), (fail, 0)])
async def test_mail_that_is_not_sent_is_told(
    url: str, act: Callable[[Any], Awaitable[None]], lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with mail_of(SmtpManager(url)) as pool:
        with suppress(ZeroDivisionError):
            async with pool.lease(holder="report") as client:
                await act(client)
    told = "pool 'mail': report: a mail was begun with MAIL and not sent; end it with data(), or use send_message()"
    assert [record.getMessage() for record in caplog.records] == [told] * lines


async def test_connection_that_the_server_closes_is_replaced(
    url: str, office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    office.answer = "421 Closing"
    async with mail_of(SmtpManager(url)) as pool:
        async with pool.lease() as client:
            here = socket_of(client)
            with pytest.raises(SMTPResponseException):
                await client.send_message(mail("a@office.example"))
        async with pool.lease() as client:
            assert socket_of(client) != here
        assert not caplog.records


async def test_client_that_connects_anew_is_destroyed(url: str) -> None:
    async with mail_of(SmtpManager(url, start_tls=False)) as pool:
        async with pool.lease() as client:
            client.close()
            await client.connect()
            here = socket_of(client)
        async with pool.lease() as client:
            assert socket_of(client) != here
        assert pool.stats().discards["change"] == 1


async def test_connecting_ends_with_the_lease(url: str) -> None:
    async with mail_of(SmtpManager(url, start_tls=False)) as pool:
        async with pool.lease() as client:
            client.close()
            connecting = asyncio.create_task(client.connect())
            await asyncio.sleep(0)
        await asyncio.wait_for(connecting, 10)
        assert not client.is_connected


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
            here = socket_of(client)
            await leave(client)
        async with pool.lease() as client:
            assert socket_of(client) != here
            await client.send_message(mail("a@office.example"))
        assert pool.stats().discards["change"] == 1


async def test_late_reply_misses_the_next_lease(url: str, office: Office) -> None:
    """The command was cancelled."""
    office.gates["DATA"].clear()
    async with mail_of(SmtpManager(url)) as pool:
        async with pool.lease() as client:
            here = socket_of(client)
            sending = asyncio.create_task(client.send_message(mail("a@office.example")))
            await asyncio.wait_for(office.reached.wait(), 10)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            office.gates["DATA"].set()
            with pytest.raises(SMTPServerDisconnected):  # nor the next command of the same lease
                await client.vrfy("a@office.example")
        async with pool.lease() as client:
            assert socket_of(client) != here
            assert (await client.vrfy("a@office.example")).code == 252


async def test_connection_returned_in_use_is_destroyed(
    url: str, office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    office.gates["DATA"].clear()
    async with mail_of(SmtpManager(url)) as pool:
        async with pool.lease() as client:
            here = socket_of(client)
            sending = asyncio.create_task(client.send_message(mail("a@office.example")))
            await asyncio.wait_for(office.reached.wait(), 10)
        async with pool.lease() as client:
            assert socket_of(client) != here
            assert "the connection was still in use" in caplog.text
            with pytest.raises(SMTPServerDisconnected):
                await asyncio.wait_for(sending, 10)
            assert (await client.vrfy("a@office.example")).code == 252


async def test_check_sends_noop_and_replaces_a_closed_connection(url: str, office: Office) -> None:
    async with mail_of(SmtpManager(url), check_after=0) as pool:
        for _ in range(2):
            async with pool.lease() as client:
                here, transport = socket_of(client), client.transport
        assert office.words == ["NOOP"]
        transport.abort()
        async with pool.lease() as client:
            assert socket_of(client) != here
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


async def test_clean_sends_quit_without_a_long_wait(url: str, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
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
