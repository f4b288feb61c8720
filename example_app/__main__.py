"""`python -m example_app`: read the environment, serve, end cleanly."""

import argparse
import logging
import os
import signal
import socket
import sys
import textwrap

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
        _say(
            f"Links is running. Open\n"
            f"  {base}/              the page\n"
            f"  {base}/docs          the API\n"
            f"  {base}/pool/         the pools, live\n"
            f"  {base}/pool/health   the pools' health\n"
            f"  {base}/pool/metrics  the pools' metrics"
        )


def main() -> None:
    """Run the application until a signal ends it."""
    _parser().parse_args()
    # As an exception a signal ends everything that was begun, in its order; and so does the one that has ended Uvicorn,
    # which it raises again after it has shut down. The exit code is 0 and not "terminated by a signal".
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        settings = Settings.from_environment(os.environ)
        app = create_app(settings)
    except SettingsError as error:
        print(f"example_app: {error}", file=sys.stderr)  # noqa: T201 - logging is not set up yet
        sys.exit(BAD_SETTINGS)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,  # as we said above
        timeout_graceful_shutdown=GRACE,
    )
    Server(config).run()


def _parser() -> argparse.ArgumentParser:
    variables = "\n".join(
        textwrap.fill(
            f"{name.upper():<15} {field.description} (default: {'none' if field.default == '' else field.default})",
            width=100,
            initial_indent="  ",
            subsequent_indent=" " * 18,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for name, field in Settings.model_fields.items()
    )
    return argparse.ArgumentParser(
        prog="python -m example_app",
        description="A link shortener on connectionpools_fastapi.",
        epilog=f"environment variables:\n{variables}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _say(text: str) -> None:
    """Print for the person at the terminal."""
    print(text, flush=True)  # noqa: T201 - not a log line


if __name__ == "__main__":
    main()
