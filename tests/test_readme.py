"""What the README shows works as shown."""

import ast
import asyncio
import inspect
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from connectionpools_fastapi import ConnectionPool
from connectionpools_fastapi._queue import WATCH_AFTER

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_the_code_of_the_readme_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shared: dict[str, Any] = {"__name__": "readme"}
    assert len(blocks("python")) >= 6
    for number, block in enumerate(blocks("python"), 1):
        code = compile(block, f"<README block {number}>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, shared))  # noqa: S307 - our own README
        else:
            exec(code, shared)  # noqa: S102 - our own README


def test_the_first_example_has_ten_lines_of_code_and_is_a_whole_application() -> None:
    first = [line for line in blocks("python")[0].splitlines() if line and not line.startswith(("from ", "import "))]
    assert len(first) <= 10


def test_the_three_commands_name_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    commands = [block.strip() for block in blocks("sh")]
    assert commands == [
        "pip install -e '.[example]' && python -m example_app",
        "pip install -e '.[test]' && python -m pytest",
        "pip install -e '.[bench]' && python -m benchmarks",
    ]
    for command in commands:
        (extra,) = re.findall(r"\[(\w+)\]", shlex.split(command)[3])
        assert extra in extras


def test_who_gives_up_leaves_the_queue_as_soon_as_the_readme_says() -> None:
    (milliseconds,) = re.findall(r"leaves the queue within (\d+) ms", README)
    assert int(milliseconds) / 1000 >= WATCH_AFTER


def test_every_file_that_the_readme_points_to_exists() -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_every_parameter_of_a_pool_is_in_the_table_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", README.split("### Settings")[1], flags=re.MULTILINE))
    parameters = inspect.signature(ConnectionPool).parameters
    hooks = {"manager", "create", "check", "doubtful", "change", "clean", "clock"}
    assert {name for name in parameters if name not in hooks} <= set(rows)
    for name, parameter in parameters.items():
        if name not in hooks:
            shown = rows[name].removesuffix(" s").strip('"')
            assert shown in (
                str(parameter.default),
                f"{parameter.default:g}" if isinstance(parameter.default, float) else "",
            )
