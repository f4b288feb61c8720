"""What the tests of the web layer share."""

from collections.abc import Callable, Iterable
from typing import Any

import anyio
from starlette.types import ASGIApp, Message

from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi._queue import WATCH_AFTER
from tests.support import settled

Headers = Iterable[tuple[str, str]]


class Thing:
    """A resource that knows whether it was cleaned."""

    def __init__(self) -> None:
        self.cleaned = False

    def clean(self) -> None:
        self.cleaned = True


def things(limit: int = 2, *, name: str = "db", **options: Any) -> ConnectionPool[Thing]:
    """Make a pool whose hooks never block."""
    hooks: dict[str, Any] = {"create": Thing, "clean": Thing.clean, "blocking": False}
    return ConnectionPool(limit=limit, name=name, **{**hooks, **options})


async def watched() -> None:
    """Let so much time go by, virtual time, that the client of whoever waits is watched."""
    await settled()
    await anyio.sleep(WATCH_AFTER)
    await settled()


class Answer:
    """What an application sent, message by message."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


async def ask(
    app: ASGIApp,
    path: str = "/",
    *,
    method: str = "GET",
    headers: Headers = (),
    root_path: str = "",
    extensions: Iterable[str] = (),
    on_send: Callable[[Message], Any] = lambda _: None,
    receive: Callable[[], Any] | None = None,
    spec_version: str = "2.3",
) -> Answer:
    """Speak ASGI to an application as a server does, and look in at each message that it sends."""
    answer = Answer()
    received = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive_body() -> Message:
        message = next(received, None)
        if message is None:
            await anyio.sleep_forever()
        assert message is not None
        return message

    async def send(message: Message) -> None:
        on_send(message)
        answer.messages.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": spec_version},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": root_path,
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
        "client": ("test", 1),
        "server": ("test", 80),
        "extensions": {name: {} for name in extensions},
    }
    await app(scope, receive or receive_body, send)
    return answer
