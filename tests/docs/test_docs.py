"""What the README and the pages of docs/ show works as shown; the recipes and PgBouncer have tests of their own."""

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
from connectionpools_fastapi._core.wait_queue import WATCH_AFTER

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
MOST_BYTES = 8_000  # of the README
RUN_ELSEWHERE = {
    "recipes.md": "docs/test_recipes.py",
    "pgbouncer.md": "adapters/test_pgbouncer.py",
    "tutorial.md": "docs/test_tutorial.py",
    "tenants.md": "docs/test_tenants.py",
    "from-get-db.md": "docs/test_from_get_db.py",
}
# Nothing is there: pools on these pages are made and not opened.
ADDRESSES = {
    "DATABASE_URL": "postgresql://app@db.example/app",
    "CACHE_URL": "redis://cache.example/0",
    "SHOP_URL": "mysql://shop@db.example/shop",
    "QUEUE_URL": "amqp://queue.example/",
    "SMTP_URL": "smtp://mail.example:25",
}


def pages() -> list[Path]:
    return [path for path in [README, *sorted(DOCS.rglob("*.md"))] if "_build" not in path.parts]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.needs_python] if page.name == "testing.md" else [], id=name_of(page))
        for page in pages()
        if blocks(page, "python") and page.name not in RUN_ELSEWHERE
    ],
)
def test_page_runs_from_top_to_bottom(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable, value in ADDRESSES.items():
        monkeypatch.setenv(variable, value)
    shared: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(blocks(page, "python"), 1):
        code = compile(block, f"<{name_of(page)}, block {number}>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, shared))  # noqa: S307 - our own pages
        else:
            exec(code, shared)  # noqa: S102 - our own pages


def test_pages_that_run_elsewhere_do() -> None:
    for page, test in RUN_ELSEWHERE.items():
        assert f'"{page}"' in (ROOT / "tests" / test).read_text()


def test_no_block_is_hidden_from_the_tests() -> None:
    """Such as one whose language is written otherwise."""
    for page in pages():
        languages = set(re.findall(r"^ *```(\S+)$", page.read_text(), flags=re.MULTILINE))
        assert languages <= {"python", "sh", "console", "text", "ini", "yaml", "{eval-rst}", "{toctree}"}, page


def test_readme_is_short() -> None:
    assert len(README.read_bytes()) <= MOST_BYTES


def test_readme_first_example_has_ten_lines() -> None:
    (example,) = blocks(README, "python")
    assert len([line for line in example.splitlines() if line and not line.startswith(("from ", "import "))]) <= 10


def test_readme_commands_name_extras_that_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    commands = [block.strip() for block in blocks(README, "sh")]
    assert commands == [
        "pip install -e '.[example]' && python -m example_app",
        "pip install -e '.[test]' && python -m pytest -n 4",
    ]
    commands += [block.splitlines()[0] for block in blocks(ROOT / "benchmarks" / "README.md", "sh")]
    assert commands[2:] == ["pip install -e '.[bench]' && python -m benchmarks"]
    for command in commands:
        (extra,) = re.findall(r"\[(\w+)\]", shlex.split(command)[3])
        assert extra in extras


def test_readme_says_when_a_gone_client_leaves_the_queue() -> None:
    (milliseconds,) = re.findall(r"leaves the queue within (\d+) ms", README.read_text())
    assert int(milliseconds) / 1000 >= WATCH_AFTER


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_page_points_to_places_that_exist(page: Path) -> None:
    """Sphinx says the same of the built pages; this also holds where they are read as files."""
    text = page.read_text()
    assert [name for name in re.findall(r"`(tests/[\w/]+\.py)`", text) if not (ROOT / name).exists()] == []
    for target in re.findall(r"\]\((?!http)([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        place = page.parent / path if path else page
        assert place.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", place.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, target


def test_settings_page_has_every_parameter_with_its_default() -> None:
    rows = dict(
        re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", (DOCS / "guide" / "settings.md").read_text(), flags=re.MULTILINE)
    )
    parameters = inspect.signature(ConnectionPool).parameters
    hooks = {"manager", "create", "check", "doubtful", "change", "clean", "lend", "broken", "clock"}
    assert {name for name in parameters if name not in hooks} <= set(rows)
    for name, parameter in parameters.items():
        if name not in hooks:
            shown = rows[name].removesuffix(" s").strip('"')
            assert shown in (
                str(parameter.default),
                f"{parameter.default:g}" if isinstance(parameter.default, float) else "",
            )
