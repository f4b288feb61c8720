"""`python -m example_app`: read the environment, serve, end cleanly."""

import logging
import os
import signal
import socket
import sys
from contextlib import suppress

import uvicorn

from .app import create_app
from .settings import Settings, SettingsError

BAD_SETTINGS = 2
# Less than the 30 seconds after which most orchestrators kill.
GRACE = 25


class Server(uvicorn.Server):
    """Uvicorn, which prints where the application is as soon as it is there."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then print the addresses."""
        await super().startup(sockets)
        bound: tuple[str, int] = self.servers[0].sockets[0].getsockname()[:2]
        host, port = bound
        if host in ("0.0.0.0", "::"):  # noqa: S104 - all addresses; a browser wants one
            host = "localhost"
        base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        print(  # noqa: T201 - what a person wants to know first
            f"Links is running. Open\n"
            f"  {base}/              the page\n"
            f"  {base}/docs          the API\n"
            f"  {base}/pool/health   the pools' health\n"
            f"  {base}/pool/metrics  the pools' metrics",
            flush=True,
        )


def main() -> None:
    """Run the application until a signal ends it."""
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        print(f"example_app: {error}", file=sys.stderr)  # noqa: T201 - logging is not set up yet
        sys.exit(BAD_SETTINGS)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    config = uvicorn.Config(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,  # as we said above
        timeout_graceful_shutdown=GRACE,
    )
    # Uvicorn, once it has shut down cleanly, raises the signal that ended it again: with
    # this handler that means exit code 0 and not "terminated by a signal".
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with suppress(KeyboardInterrupt):
        Server(config).run()


if __name__ == "__main__":
    main()
