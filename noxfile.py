"""Sessions by name, each in an environment of its own: `nox --list` shows them, `nox -s lint` runs one.

The versions of tools are in .ci/tools.txt, those of the oldest supported libraries in .ci/oldest.txt.
"""

import os
from pathlib import Path

import nox

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
OLDEST = PYTHONS[0]
CI = Path(".ci")
# Tests wait more than they compute: four at a time keep two cores busy.
PARALLEL = ["-n", "4"]
# What starts a server, browser or worker.
SLOW = (
    "adapters asgi/test_workers.py benchmarks budgets/test_processes.py budgets/test_redis.py budgets/test_share.py "
    "docs example_app monitoring/test_multiprocess.py testing"
)
# What looks at lines of Python, or runs nothing.
PURE = {"CONNECTIONPOOLS_PURE": "1"}
FAST = [*(f"--ignore=tests/{name}" for name in SLOW.split()), "-k", "not (test_pools and redis)"]
# Interpreters of pyenv that are not on the PATH.
PYENV = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], *map(str, sorted(PYENV.glob("3.*/bin")))])

nox.needs_version = ">=2026.1"
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "types", "fast"]


def tools(*names: str) -> list[str]:
    """Return the pinned requirements of tools."""
    lines = (CI / "tools.txt").read_text().splitlines()
    found = {line.partition("==")[0].partition("[")[0]: line for line in lines if line and not line.startswith("#")}
    return [found[name] for name in names]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run all tests; arguments after -- go to pytest."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *PARALLEL, *session.posargs)


@nox.session(python=OLDEST)
def tests_oldest(session: nox.Session) -> None:
    """Run all tests on the oldest supported libraries."""
    session.install("-e", ".[test]", "-c", str(CI / "oldest.txt"))
    session.run("python", "-m", "pytest", *PARALLEL, *session.posargs)


@nox.session(python=PYTHONS)
def fast(session: nox.Session) -> None:
    """Run the tests that start no server."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *PARALLEL, *FAST, *session.posargs)


@nox.session(python=OLDEST)
def coverage(session: nox.Session) -> None:
    """See that the fast tests reach every line and branch of the core."""
    session.install("-e", ".[test]", *tools("coverage"), env=PURE)
    session.run("coverage", "run", "-m", "pytest", *FAST, *session.posargs, env=PURE)
    session.run("coverage", "report")


@nox.session(python=OLDEST)
def mutants(session: nox.Session) -> None:
    """Change the core in one place at a time, and say which changes no test notices."""
    session.install("-e", ".[test]", env=PURE)
    session.run("python", str(CI / "mutants.py"), *session.posargs, env=PURE)


@nox.session(python=OLDEST)
def lint(session: nox.Session) -> None:
    """Look at format and style; `nox -s lint -- --fix` mends what can be mended."""
    session.install(*tools("ruff"))
    fix = "--fix" in session.posargs
    session.run("ruff", "format", *([] if fix else ["--check"]))
    session.run("ruff", "check", *(["--fix"] if fix else []))


@nox.session(python=OLDEST)
def types(session: nox.Session) -> None:
    """Check all types, that the public ones are complete, and the direction of imports."""
    session.install("-e", ".[test,bench]", *tools("import-linter", "mypy", "pyright"), env=PURE)
    session.run("lint-imports")
    session.run("mypy")
    session.run("pyright")
    session.run("pyright", "--verifytypes", "connectionpools_fastapi", "--ignoreexternal")


@nox.session(python=OLDEST)
def docs(session: nox.Session) -> None:
    """Build the pages; a warning or a dead link fails."""
    session.install("-e", ".[docs]", env=PURE)
    session.run("python", "-m", "docs", env=PURE)


@nox.session(python=OLDEST)
def wheel(session: nox.Session) -> None:
    """Build the wheel, and import it where nothing else is installed."""
    session.install(*tools("build"))
    built = Path(session.create_tmp()).resolve()
    session.run("python", "-m", "build", "--outdir", str(built), silent=True)
    empty = built / "empty"
    session.run("python", "-m", "venv", "--clear", str(empty))
    (found,) = built.glob("*.whl")
    session.run(str(empty / "bin" / "pip"), "install", "--quiet", str(found), external=True)
    program = (
        "import os, connectionpools_fastapi as pools; print(sorted(pools.__all__), pools.accelerated); "
        "assert os.environ.get('EXPECT_ACCELERATED', '') in {'', str(int(pools.accelerated))}; "
        "from connectionpools_fastapi._asgi.page import FILES, page_file; assert all(map(page_file, FILES))"
    )
    with session.chdir(built):
        session.run(str(empty / "bin" / "python"), "-W", "error", "-c", program, external=True)


@nox.session(python=OLDEST)
def example(session: nox.Session) -> None:
    """Start the example as a new user would, and ask for its health."""
    session.install("-e", ".[example]")
    smoke, here = Path(CI / "smoke.py").resolve(), Path.cwd()
    with session.chdir(session.create_tmp()):
        session.run("python", str(smoke), env={"PYTHONPATH": str(here)})


@nox.session(python=["3.11", "3.13"])
def bench(session: nox.Session) -> None:
    """Measure everything beside its peers on two interpreters; -- --quick does in a third of the time."""
    session.install("-e", ".[bench]")
    session.run("python", "-m", "benchmarks", *session.posargs)
