"""A real RabbitMQ for tests, of the program `rabbitmq-server`, which no wheel brings."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.programs import path_of
from tests.wheel_servers import free_port, start

# Debian's program of that name changes the user, and wants folders of the system.
DEBIANS = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
LOOPBACK = "127.0.0.1"


class RabbitmqServer:
    """A RabbitMQ on free ports of the loopback; `rabbitmq` makes it."""

    def __init__(self, folder: Path, certificate: Path | None, settings: dict[str, object]) -> None:
        self.port = free_port()
        self.url = f"amqp://guest:guest@{LOOPBACK}:{self.port}/"
        if certificate is not None:
            port = free_port()
            self.secure_url = f"amqps://guest:guest@{LOOPBACK}:{port}/"
            files = dict.fromkeys(("ssl_options.certfile", "ssl_options.keyfile"), certificate)
            settings = {"listeners.ssl.1": f"{LOOPBACK}:{port}", **files, **settings}
        # Nothing reads its output once it is ready, and it would wait for that with all connections.
        lines = {"log.console.level": "critical", **settings}
        (folder / "rabbitmq.conf").write_text("".join(f"{name} = {value}\n" for name, value in lines.items()))
        (folder / "plugins").write_text("[].\n")
        names = free_port()  # of epmd, which knows the ports of Erlang's nodes
        # Started by ourselves, since the one that Erlang would start outlives it.
        self._epmd = [str(path_of("epmd")), "-debug", "-port", str(names), "-address", LOOPBACK]
        environment = {
            "HOME": folder,
            "ERL_EPMD_PORT": names,
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RABBITMQ_NODENAME": "test@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": self.port,
            "RABBITMQ_DIST_PORT": free_port(),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": folder / "rabbitmq",
            "RABBITMQ_ADVANCED_CONFIG_FILE": folder / "advanced",
            "RABBITMQ_ENABLED_PLUGINS_FILE": folder / "plugins",
            "RABBITMQ_MNESIA_BASE": folder / "data",
            "RABBITMQ_LOG_BASE": folder / "log",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1} "
            "+S 1:1 +sbwt none",  # one thread that does not spin
            "detached": "yes",  # the program replaces the shell, so that its number is that of the process
        }
        program = DEBIANS if DEBIANS.exists() else path_of("rabbitmq-server")
        self._words = ["/usr/bin/env", *(f"{name}={value}" for name, value in environment.items()), str(program)]
        self._shells: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        """Start it, with all the data it had, and wait until it takes connections."""
        self._shells.append(start(self._epmd, "epmd running"))
        self._shells.append(start(self._words, " completed with "))

    def kill(self) -> None:
        """Kill it with SIGKILL, as an accident would; `start` recovers it at the same address."""
        while self._shells:
            self._shells.pop().communicate()  # closes its input, and waits


@contextmanager
def rabbitmq(certificate: Path | None = None, **settings: object) -> Iterator[RabbitmqServer]:
    """Run a RabbitMQ of our own; mark the test with needs_program("rabbitmq-server").

    Args:
        certificate: With its key, for a second port, which speaks TLS.
        settings: Of its configuration, such as `channel_max=10`.

    Yields:
        The server, which is started.
    """
    with tempfile.TemporaryDirectory(prefix="rabbitmq-", ignore_cleanup_errors=True) as name:
        server = RabbitmqServer(Path(name), certificate, settings)
        server.start()
        try:
            yield server
        finally:
            server.kill()
