"""Calls an application as a server does, without a server: so that microseconds are seen."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.types import Message

BODY = {"type": "http.request", "body": b"", "more_body": False}


class Caller:
    """Asks a running application for one path, again and again."""

    def __init__(self, app: FastAPI, path: str, state: dict[str, Any]) -> None:
        self._app = app
        self._state = state
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"accept", b"*/*")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }

    def to(self, path: str) -> "Caller":
        """Ask the same application for another path."""
        return Caller(self._app, path, self._state)

    async def ask(self) -> int:
        """Send one request, and wait for all of its response; return its status."""
        status = 0

        async def receive() -> Message:
            return BODY

        async def send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)

        await self._app({**self._scope, "state": self._state.copy()}, receive, send)
        return status


@asynccontextmanager
async def running(app: FastAPI, path: str = "/") -> AsyncIterator[Caller]:
    """Run an application's lifespan, and yield a client that calls it."""
    async with app.router.lifespan_context(app) as state:
        caller = Caller(app, path, dict(state or {}))
        status = await caller.ask()
        if status != 200:  # noqa: PLR2004 - OK
            raise RuntimeError(f"{path} answers {status}")
        yield caller
