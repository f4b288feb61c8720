"""A real MariaDB for tests, of the program `mariadbd`, which no wheel brings."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.programs import path_of
from tests.wheel_servers import PASSWORD, free_port, start

# Read at each start. `app` may do what an application may; `root` has no password.
ACCOUNTS = f"""
CREATE DATABASE IF NOT EXISTS test CHARACTER SET utf8mb4;
CREATE USER IF NOT EXISTS app@127.0.0.1 IDENTIFIED BY '{PASSWORD}';
GRANT ALL ON test.* TO app@127.0.0.1;
"""
# It may lose all it has: nothing is written to the disk for safety, and buffers are small.
FAST = [
    "--no-defaults",
    "--bind-address=127.0.0.1",
    "--skip-name-resolve",
    "--skip-log-bin",
    "--skip-performance-schema",
    "--innodb-flush-log-at-trx-commit=0",
    "--loose-innodb-flush-method=nosync",
    "--skip-innodb-doublewrite",
    "--innodb-log-file-size=4M",
    "--innodb-buffer-pool-size=8M",
    "--key-buffer-size=64K",
    "--log-warnings=0",  # nothing reads its output once it is ready
]


class MariadbServer:
    """A MariaDB on a free port of the loopback; `mariadb` makes it."""

    certificate: Path | None = None  # if it speaks TLS, that and its key

    def __init__(self, folder: Path, options: list[str]) -> None:
        self.port = free_port()
        place = f"127.0.0.1:{self.port}/test"
        self.url = f"mysql://app:{PASSWORD}@{place}"
        self.root_url = f"mysql://root@{place}"
        accounts = folder / "accounts.sql"
        accounts.write_text(ACCOUNTS)
        self._words = [
            str(path_of("mariadbd")),
            *FAST,
            f"--datadir={folder}/data",
            f"--tmpdir={folder}",  # a server that starts removes what others have in theirs
            f"--socket={folder}/socket",
            f"--pid-file={folder}/pid",
            f"--port={self.port}",
            f"--init-file={accounts}",
            *_as_root(),
            *options,
        ]
        self._shell: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, with all the data it had, and wait until it takes connections."""
        self._shell = start(self._words, "ready for connections")

    def kill(self) -> None:
        """Kill it with SIGKILL, as an accident would; `start` recovers it at the same address."""
        if self._shell is not None:
            self._shell.communicate()  # closes its input, and waits
            self._shell = None


@contextmanager
def mariadb(*options: str) -> Iterator[MariadbServer]:
    """Run a MariaDB of our own; mark the test with needs_program("mariadbd").

    Args:
        options: Of its command line, such as `--max-connections=20`.

    Yields:
        The server, which is started.
    """
    with tempfile.TemporaryDirectory(prefix="mariadb-") as name:
        folder = Path(name)
        made = subprocess.run(  # noqa: S603 - our own words
            [
                str(path_of("mariadb-install-db")),
                *FAST,
                f"--datadir={folder}/data",
                f"--tmpdir={folder}",
                *_as_root(),
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        server = MariadbServer(folder, list(options))
        server.start()
        try:
            yield server
        finally:
            server.kill()


def _as_root() -> list[str]:
    return ["--user=root"] if os.geteuid() == 0 else []
