"""On what was measured: says it beside the results."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

LIBRARIES = (
    "connectionpools-fastapi",
    "aiosqlite",
    "aiosqlitepool",
    "anyio",
    "asyncio-connection-pool",
    "asyncpg",
    "dishka",
    "fastapi",
    "httptools",
    "psycopg",
    "psycopg-pool",
    "redis",
    "sqlalchemy",
    "starlette",
    "svcs",
    "uvicorn",
    "uvloop",
)


def describe() -> dict[str, str]:
    """Return date, interpreter, system and processor, and the versions of all libraries."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "OS": f"{platform.system()} {platform.release()}",
        "CPU": f"{_processor()}, {os.cpu_count()} cores",
        "libraries": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
