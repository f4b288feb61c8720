"""Programs that no wheel brings: a test is skipped where its program is missing, unless REQUIRE_PROGRAMS is set."""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.wheel_servers import free_port, start

ENOUGH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
MISSING = "needs a program that is missing"  # what a skipped test reports, from whichever process runs it


def path_of(program: str) -> str | None:
    """Return where a program is: where the variable of its name says (PGBOUNCER), or on the PATH."""
    return os.environ.get(_variable(program)) or shutil.which(program, path=ENOUGH_PATH)


def _variable(program: str) -> str:
    return program.upper().replace("-", "_")


def see_to_programs(item: pytest.Item) -> None:
    """Skip a test, or fail it, if a program that its marks name is missing."""
    for mark in item.iter_markers("needs_program"):
        (program,) = mark.args
        if path_of(program) is None:
            if os.environ.get("REQUIRE_PROGRAMS"):
                pytest.fail(f"{program} is missing, and REQUIRE_PROGRAMS is set: install it", pytrace=False)
            item.user_properties.append((MISSING, program))
            pytest.skip(f"needs {program}")


def closing_lines(skipped: Iterable[pytest.TestReport]) -> list[str]:
    """Say what was not run, a line for each missing program."""
    missed = Counter(str(value) for report in skipped for name, value in report.user_properties if name == MISSING)
    return [
        f"NOT RUN: {count} tests need {program}, which is missing; install it, or set {_variable(program)} to its path"
        for program, count in missed.items()
    ]


PGBOUNCER = """
[databases]
* = host={host} port={server} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
log_connections = 0
log_disconnections = 0
log_stats = 0
"""


@contextmanager
def pgbouncer(postgres_url: str, mode: str, **settings: object) -> Iterator[str]:
    """Run a PgBouncer before a PostgreSQL.

    Args:
        postgres_url: The address of the server.
        mode: "session", "transaction" or "statement".
        settings: Of its configuration, such as `default_pool_size=2`.

    Yields:
        Its address, with a user and a password, which it ignores.
    """
    program = path_of("pgbouncer")
    assert program is not None, "mark the test with needs_program('pgbouncer')"
    server = urlsplit(postgres_url)
    port = free_port()
    text = PGBOUNCER.format(
        host=server.hostname, server=server.port, user=server.username, password=server.password, port=port
    )
    lines = [f"{name} = {value}" for name, value in {"pool_mode": mode, **settings}.items()]
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as folder:
        file = Path(folder) / "pgbouncer.ini"
        file.write_text(text + "\n".join(lines) + "\n")
        user = None
        if os.geteuid() == 0:  # as which it refuses to run
            user = "nobody"
            shutil.chown(folder, user)
            shutil.chown(file, user)
        shell = start([program, str(file)], "process up", user)
        try:
            yield f"postgresql://postgres:none-needed@127.0.0.1:{port}{server.path}"
        finally:
            shell.communicate()  # closes its input, and waits
