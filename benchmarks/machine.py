"""On what was measured: says it beside the results."""

import os
import platform
import sysconfig
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import connectionpools_fastapi
from benchmarks.rounds import OURS

LIBRARIES = (
    "connectionpools-fastapi",
    "aiosqlite",
    "aiosqlitepool",
    "asyncpg",
    "fastapi",
    "httptools",
    "psycopg",
    "psycopg-pool",
    "redis",
    "sqlalchemy",
    "starlette",
    "uvicorn",
    "uvloop",
)
IS_COMPILED: bool = getattr(connectionpools_fastapi, "accelerated", False)


def describe() -> dict[str, str]:
    """Return date, interpreter, system and processor, whether our pool is compiled, and the versions of libraries."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "Python": f"{platform.python_implementation()} {platform.python_version()}, {_build()}",
        "pool": f"{OURS} {'compiled' if IS_COMPILED else 'in pure Python'}",
        "OS": f"{platform.system()} {platform.release()}",
        "CPU": f"{_processor()}, {os.cpu_count()} cores",
        "libraries": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    }


def _build() -> str:
    """Say how the interpreter was built: without PGO it is slower, and a compiled pool gains more."""
    said = sysconfig.get_config_vars()
    options, flags = str(said.get("CONFIG_ARGS")), str(said.get("PY_CFLAGS"))
    level = next((flag for flag in reversed(flags.split()) if flag.startswith("-O")), "unknown optimisation")
    asked = {option: option in options for option in ("--enable-optimizations", "--with-lto", "--enable-shared")}
    parts = [f"{'' if is_so else 'no '}{option}" for option, is_so in asked.items()]
    return ", ".join([platform.python_compiler(), level, *parts])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
