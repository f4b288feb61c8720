"""Page: the live page at /pool/, and the stream of pictures that it reads.

The page's files tell nothing about the pools, so any request may have them; the stream asks `authorize`.
"""

import json
import signal
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from pathlib import Path

import anyio
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .._monitoring.merge import Answers
from .._monitoring.picture import Pictures
from .._runtime.current import current_loop
from .responses import HEADERS

STREAM = "stream"
DESCRIPTION = "openapi.json"
FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
    DESCRIPTION: ("openapi.json", "application/json"),
}
STATIC = Path(__file__).parent / "static"

# The page loads its own two files, reads its own stream, and can turn no text into markup.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
PAGE_HEADERS = {**HEADERS, "Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"}
# As server-sent events, which nothing on the way compresses or collects.
STREAM_HEADERS = {**HEADERS, "Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}

MOST_VIEWERS = 20

# Seconds from one picture to the next.
EVERY = 1.0

# After so many seconds a viewer asks for the next stream: then it is authorized anew, and a server that shuts down
# without telling its applications waits no longer.
LONGEST_STREAM = 20.0

# A viewer that takes nothing for so many seconds hangs.
HANGS_AFTER = 10.0

# For so many seconds after the last viewer has left, the next one finds what has changed in the last minute.
LINGERS = 5.0

# Asks all workers what they know of their pools.
Look = Callable[[], Awaitable[Answers]]


@cache
def page_file(path: str) -> bytes:
    """Return the content of one of the page's files."""
    return (STATIC / FILES[path][0]).read_bytes()


def page_response(path: str) -> Response:
    """Return one of the page's files."""
    return Response(page_file(path), headers={"Content-Type": FILES[path][1], **PAGE_HEADERS})


def description_response(url: str) -> Response:
    """Return the description of the endpoints, which are below a URL, as OpenAPI has it."""
    return JSONResponse({**json.loads(page_file(DESCRIPTION)), "servers": [{"url": url}]}, headers=HEADERS)


def is_of_another_site(scope: Scope) -> bool:
    """Whether a browser says that a page of another site has made a request."""
    headers = Headers(scope=scope)
    if (site := headers.get("sec-fetch-site")) is not None:
        return site not in ("none", "same-origin")
    # Old browsers, and those that came by http:, say only this; a request without has no page.
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != headers.get("host")


class Viewers:
    """The viewers of the page in one process. As an ASGI application it serves one more, until that leaves."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._count = 0
        self._shared: SharedPicture | None = None  # only for viewers: a service without pays nothing
        self._has_ended = False

    def begin(self) -> None:
        """Take viewers, as after a start."""
        self._has_ended = False

    def end(self) -> None:
        """End all streams within a second."""
        self._has_ended = True

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, headers: Mapping[str, str] = STREAM_HEADERS
    ) -> None:
        """Serve one viewer; the one after the last is told to come again."""
        if self._count >= MOST_VIEWERS:
            detail = f"{MOST_VIEWERS} viewers read this page already; try again when one has left"
            refusal = JSONResponse({"detail": detail}, status_code=503, headers={"Retry-After": "5", **HEADERS})
            await refusal(scope, receive, send)
            return
        self._count += 1
        if self._shared is None:
            self._shared = SharedPicture(self._look)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_wait_until_gone, receive, group.cancel_scope)
                await self._show(self._shared, headers, send)
                group.cancel_scope.cancel()
        finally:
            self._count -= 1
            if not self._count and (loop := current_loop()) is not None:
                loop.call_later(LINGERS, self._forget)

    def _forget(self) -> None:
        """Forget the last minute, unless a viewer has come meanwhile, as one does whose stream was at its end."""
        if not self._count:
            self._shared = None

    async def _show(self, shared: "SharedPicture", headers: Mapping[str, str], send: Send) -> None:
        """Send the newest picture each second: a viewer that reads slowly misses those in between."""
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        until = anyio.current_time() + LONGEST_STREAM
        try:
            await send({"type": "http.response.start", "status": 200, "headers": raw})
            while anyio.current_time() < until and not (self._has_ended or _server_stops()):
                body = await shared.newest()
                with anyio.move_on_after(HANGS_AFTER) as limit:
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                if limit.cancelled_caught:
                    return  # it hangs; the server closes a connection whose response does not end
                await anyio.sleep_until(shared.due_at)
            await send({"type": "http.response.body", "body": b""})
        except OSError:
            pass  # it has gone


class SharedPicture:
    """The newest picture, made at most once a second, and only when a viewer asks."""

    def __init__(self, look: Look) -> None:
        self.due_at = anyio.current_time()
        self._look = look
        self._pictures = Pictures()
        self._newest = b""
        self._lock = anyio.Lock()  # one viewer makes it, and the others wait for it

    async def newest(self) -> bytes:
        """Return the newest picture as an event of the stream."""
        async with self._lock:
            now = anyio.current_time()
            if now >= self.due_at:
                picture = self._pictures.picture(await self._look(), now)
                self._newest = b"data: " + json.dumps(picture, allow_nan=False).encode() + b"\n\n"
                self.due_at = now + EVERY
        return self._newest


async def _wait_until_gone(receive: Receive, stream: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    stream.cancel()


def _server_stops() -> bool:
    """Whether uvicorn was told to stop: it tells its applications only after the last response."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return getattr(server, "should_exit", False) is True
