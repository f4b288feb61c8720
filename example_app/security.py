"""Security: the headers that tell browsers what a page may do, and the requests that may see and control the pools."""

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STRICT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# FastAPI's /docs consists of an inline script and files of a content delivery network.
DOCS_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' https://cdn.jsdelivr.net; "
    "style-src 'unsafe-inline' https://cdn.jsdelivr.net; img-src data: https://fastapi.tiangolo.com; "
    "connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def is_on_loopback(connection: HTTPConnection) -> bool:
    """Allow requests from this machine to this machine.

    The second part refuses a page whose own host name was made to mean 127.0.0.1. Behind a proxy on the same machine,
    the proxy has to send X-Forwarded-For, by which Uvicorn knows where a request is from.
    """
    return connection.client is not None and {connection.client.host, connection.url.hostname} <= set(LOOPBACK)


class SecurityHeaders:
    """Adds security headers to every response."""

    def __init__(self, app: ASGIApp, *, docs: str) -> None:
        """Wrap an application whose interactive documentation is at the path `docs`."""
        self.app = app
        self._docs = docs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, as any ASGI application does."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_docs = scope["path"] in (self._docs, scope.get("root_path", "") + self._docs)
        policy = DOCS_POLICY if is_docs else STRICT_POLICY

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = policy
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self.app(scope, receive, send_with_headers)
