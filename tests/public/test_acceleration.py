"""The same sources run compiled or in Python; what runs is never older than they are."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import connectionpools_fastapi
from connectionpools_fastapi import _acceleration, accelerated

ROOT = Path(__file__).parents[2]
SLOT = Path("connectionpools_fastapi/_core/slot.py")
# The smallest part that compiles: a whole build takes a minute.
KEPT = {"slot", "subscriptable"}

pytestmark = [pytest.mark.xdist_group("acceleration")]
compiles = pytest.mark.skipif(not _acceleration.PAYS or shutil.which("cc") is None, reason="needs CPython 3.11 and cc")


def python(*arguments: str, cwd: Path, **variables: str) -> str:
    """Run Python, and return what it printed."""
    ours = {"CONNECTIONPOOLS_PURE", "PIP_QUIET", "PYTHONPATH"}
    env = {name: value for name, value in os.environ.items() if name not in ours}
    line = [sys.executable, *arguments]
    ended = subprocess.run(  # noqa: S603 - ours
        line, check=False, capture_output=True, text=True, cwd=cwd, env=env | variables, timeout=600
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def what_runs(folder: Path, **variables: str) -> list[Any]:
    """Return what a program in a folder finds: `accelerated`, and the file of a module that is compiled."""
    program = """if True:
        import json, sys
        import connectionpools_fastapi as pools
        from connectionpools_fastapi._core import slot
        print(json.dumps([pools.accelerated, slot.__file__]))
    """
    found: list[Any] = json.loads(python("-c", program, cwd=folder, **variables))
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources as an sdist has them, with a small part to compile."""
    folder = tmp_path_factory.mktemp("sdist")
    python("-m", "hatchling", "build", "-t", "sdist", "-d", str(folder), cwd=ROOT)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    archive.unlink()
    (unpacked,) = folder.iterdir()
    for kind in ("pxd", "pyx"):
        for declared in unpacked.rglob(f"*.{kind}"):
            if declared.stem not in KEPT:
                declared.unlink()
    return unpacked


def wheel(source: Path, folder: Path, **variables: str) -> tuple[str, Path, str]:
    """Build a wheel; return its name, the folder that it is unpacked to, and what pip said."""
    options = ["-v", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    said = python("-m", "pip", "wheel", *options, str(source), cwd=folder, **variables)
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as packed:
        packed.extractall(folder / "unpacked")  # noqa: S202 - ours
    return built.name, folder / "unpacked", said


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, str]:
    """A wheel with compiled modules."""
    return wheel(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def installed(built: tuple[str, Path, str], tmp_path: Path) -> Path:
    """What that wheel installs, to be changed."""
    return Path(shutil.copytree(built[1], tmp_path / "installed"))


@compiles
def test_wheel_is_for_one_platform_and_runs_compiled(built: tuple[str, Path, str], installed: Path) -> None:
    assert "-py3-none-any" not in built[0]
    runs, file = what_runs(installed)
    assert runs
    assert "_compiled" in file


@compiles
def test_environment_chooses_python(installed: Path) -> None:
    runs, file = what_runs(installed, CONNECTIONPOOLS_PURE="1")
    assert not runs
    assert file == str(installed / SLOT)
    assert what_runs(installed, CONNECTIONPOOLS_PURE="0")[0]


@compiles
@pytest.mark.parametrize("changed", [SLOT, SLOT.with_suffix(".pxd"), Path("connectionpools_fastapi/_acceleration.py")])
def test_edit_is_what_runs(installed: Path, changed: Path) -> None:
    text = (installed / changed).read_text()
    (installed / changed).write_text(f"{text}\n")
    assert what_runs(installed) == [False, str(installed / SLOT)]
    (installed / changed).write_text(text)
    assert what_runs(installed)[0]


@compiles
def test_extensions_of_another_interpreter_do_not_run(installed: Path) -> None:
    (folder,) = (installed / "connectionpools_fastapi/_compiled").iterdir()
    folder.rename(folder.with_name(folder.name.replace(_acceleration.INTERPRETER, "cpython-27")))
    assert what_runs(installed) == [False, str(installed / SLOT)]


@compiles
def test_package_without_sources_runs_in_python(installed: Path) -> None:
    shutil.make_archive(str(installed), "zip", installed)
    assert not what_runs(installed.parent, PYTHONPATH=f"{installed}.zip")[0]


@pytest.mark.parametrize("missing", ["compiler", "wish"])
def test_wheel_without_compiler_runs_in_python(source: Path, tmp_path: Path, missing: str) -> None:
    asked: Mapping[str, str] = {"CC": "/bin/false"} if missing == "compiler" else {"CONNECTIONPOOLS_PURE": "1"}
    name, folder, said = wheel(source, tmp_path, **asked)
    assert name.endswith("-py3-none-any.whl")
    assert ("its hot path could not be compiled" in said) == (missing == "compiler" and _acceleration.PAYS)
    assert what_runs(folder) == [False, str(folder / SLOT)]


@compiles
def test_compiling_in_place_replaces_older_builds(source: Path, tmp_path: Path) -> None:
    tree = Path(shutil.copytree(source, tmp_path / "tree"))
    python("hatch_build.py", cwd=tree)
    assert what_runs(tree)[0]
    with (tree / SLOT).open("a") as text:
        text.write("\nEDITED = True\n")
    assert not what_runs(tree)[0]
    python("hatch_build.py", cwd=tree)
    assert what_runs(tree)[0]
    assert len(list((tree / "connectionpools_fastapi/_compiled").iterdir())) == 1


@pytest.mark.skipif(not accelerated, reason="runs in Python")
@pytest.mark.parametrize("module", [found for found in _acceleration.sources() if found.suffix == ".py"], ids=str)
def test_all_modules_or_none_are_compiled(module: Path) -> None:
    name = ".".join(module.relative_to(ROOT).with_suffix("").parts)
    assert "_compiled" in str(import_module(name).__file__)


FACES = """
import asyncio, copy, inspect, json, pickle, traceback
import connectionpools_fastapi as pools

def signature(of):
    try:
        found = inspect.signature(of)  # compiled, its annotations are text
        return str([(at.name, at.kind.name, repr(at.default)) for at in found.parameters.values()])
    except ValueError:
        return "none"

def attempt(do, of):
    try:
        return type(do(of)).__name__
    except Exception as error:
        return type(error).__name__

def face(name):
    of = getattr(pools, name)
    methods = {}
    if isinstance(of, type):
        names = [name for name in dir(of) if not name.startswith("_")]
        methods = {name: signature(getattr(of, name)) for name in names if callable(getattr(of, name))}
    text = inspect.getdoc(of) if callable(of) else None
    return {"methods": methods, "text": text, "module": getattr(of, "__module__", "")}

async def create():
    return object()

async def main():
    async with pools.ConnectionPool(create=create, limit=1, name="p") as pool:
        made = {name: face(name) for name in pools.__all__}
        lease = pool.lease()
        async with lease:
            for of in (pool, lease, pool.stats(), pools.Leased("p")):
                made[f"{type(of).__name__} pickled"] = attempt(pickle.dumps, of), attempt(copy.copy, of)
        made["Lease[int]"] = str(pools.Lease[int]), str(pools.ConnectionPool[int])
        try:
            lease.resource
        except pools.NotLeased as error:
            found = traceback.extract_tb(error.__traceback__)[1:]
            made["traceback"] = [[at.filename.split("/")[-1], at.lineno, at.line] for at in found]
        return made

print(json.dumps(asyncio.run(main())))
"""


@pytest.mark.skipif(not accelerated, reason="compares with what runs compiled")
def test_public_face_is_the_same_compiled_and_in_python() -> None:
    compiled = json.loads(python("-W", "ignore", "-c", FACES, cwd=ROOT))
    pure = json.loads(python("-W", "ignore", "-c", FACES, cwd=ROOT, CONNECTIONPOOLS_PURE="1"))
    assert compiled.keys() == pure.keys()
    for name, seen in pure.items():
        assert compiled[name] == seen, name


def test_traceback_shows_source_of_a_lease() -> None:
    made = json.loads(python("-W", "ignore", "-c", FACES, cwd=ROOT))["traceback"]
    file, line, text = made[-1]
    assert file == "lease.py"
    assert text
    assert text == (ROOT / "connectionpools_fastapi/lease.py").read_text().splitlines()[line - 1].strip()


def test_accelerated_is_public() -> None:
    assert "accelerated" in connectionpools_fastapi.__all__
    assert connectionpools_fastapi.accelerated is (_acceleration.CHOSEN is not None)
