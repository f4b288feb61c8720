"""Compiles the hot path: each module that has a .pxd beside it, from the same source that runs in Python.

The build back end calls this; `python hatch_build.py` compiles in place, for the interpreter that runs it.
"""

import os
import re
import runpy
import shutil
import sys
from contextlib import chdir
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parent
acceleration = SimpleNamespace(**runpy.run_path(str(ROOT / "connectionpools_fastapi" / "_acceleration.py")))
CPUS = os.cpu_count() or 1


class CompileHotPath(BuildHookInterface):
    """Compiles where that can be; elsewhere the package runs in Python."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Have an editable install compile into the source tree, and a wheel carry the compiled modules.

        Args:
            version: "editable" or "standard".
            build_data: What hatchling is told of the wheel.
        """
        if acceleration.asks_for_python() or not acceleration.PAYS:
            return
        folder: Path = acceleration.build_folder()
        if version == "editable" and folder.is_dir():
            return
        try:
            built = compile_all()
        except Exception as error:  # noqa: BLE001 - whatever fails here, the package runs without
            self.app.display_warning(
                f"connectionpools_fastapi runs in Python, since its hot path could not be compiled: {error}. "
                "That takes a C compiler, and CPython 3.11"
            )
        else:
            if version == "editable":
                put_in_place(built, folder)
                return
            inside = Path(acceleration.NAME, "_compiled", folder.name)
            build_data["force_include"] |= {
                str(found): str(inside / found.relative_to(built)) for found in built.rglob("*") if found.is_file()
            }
            build_data["pure_python"], build_data["infer_tag"] = False, True


def compile_all() -> Path:
    """Compile what has changed since the last time, and return the folder of all extension modules."""
    if sys.implementation.name != "cpython" or not acceleration.PAYS:
        msg = "this interpreter is another one"
        raise RuntimeError(msg)
    import Cython  # noqa: PLC0415 - where these are missing, the package runs in Python
    from Cython.Build import cythonize  # noqa: PLC0415
    from setuptools import Distribution, Extension  # noqa: PLC0415

    # Of each version and settings a folder of its own: neither Cython nor setuptools compares them.
    settings = repr((Cython.__version__, acceleration.DIRECTIVES, acceleration.FLAGS)).encode()
    work = ROOT / "build" / f"{acceleration.INTERPRETER}-{blake2b(settings, digest_size=4).hexdigest()}"
    modules = stage(work)
    options = {
        "extra_compile_args": acceleration.FLAGS if os.name == "posix" else [],
        "extra_link_args": ["-Wl,--strip-all"] if sys.platform == "linux" else [],
    }

    def build(extensions: list[Any], into: str) -> None:
        command: Any = Distribution({"ext_modules": extensions}).get_command_obj("build_ext")
        command.build_lib, command.build_temp, command.parallel = into, "objects", CPUS
        command.ensure_finalized()
        command.run()

    with chdir(work):  # the names of files in tracebacks are relative
        # A machine without a compiler is to know at once.
        Path("probe.c").write_text(
            "#include <Python.h>\nPyObject *PyInit_probe(void) { return 0; }\n", encoding="utf-8"
        )
        build([Extension("probe", ["probe.c"], **options)], "probe")
        extensions = cythonize(
            [Extension(".".join(module.with_suffix("").parts), [str(module)], **options) for module in modules],
            nthreads=CPUS if sys.platform == "linux" else 0,
            compiler_directives=acceleration.DIRECTIVES,
        )
        build(extensions, "lib")
    built = work / "lib" / acceleration.NAME
    names = {module.relative_to(acceleration.NAME).with_suffix("") for module in modules}
    for found in built.rglob("*.*"):
        if found.relative_to(built).with_name(found.name.partition(".")[0]) not in names:
            found.unlink()  # of a module that is compiled no more
    return built


def stage(work: Path) -> list[Path]:
    """Lay sources out as Cython is to see them, and return the modules; a file that stays the same is not touched."""
    texts = {}
    for source in acceleration.sources():
        text = source.read_text(encoding="utf-8")
        for written, base in acceleration.BASES if source.suffix == ".py" else ():
            text = re.sub(written, base, text, flags=re.MULTILINE)
        texts[source.relative_to(ROOT)] = text
    modules = [name for name in texts if name.suffix != ".pxd"]
    for name in list(texts):
        texts[name.with_name("__init__.py")] = ""
    for stale in [found for found in work.rglob("*.p*") if found.relative_to(work) not in texts]:
        if stale.suffix in {".py", ".pxd", ".pyx"}:
            stale.unlink()
    for name, text in texts.items():
        staged = work / name
        staged.parent.mkdir(parents=True, exist_ok=True)
        if not staged.exists() or staged.read_text(encoding="utf-8") != text:
            staged.write_text(text, encoding="utf-8")
    return modules


def put_in_place(built: Path, folder: Path) -> None:
    """Have the source tree's package run these modules: all at once, and no older ones of this interpreter."""
    whole = folder.with_name(f".{os.getpid()}")
    shutil.copytree(built, whole)
    for old in folder.parent.glob(f"{acceleration.INTERPRETER}-*"):
        shutil.rmtree(old)
    whole.rename(folder)


if __name__ == "__main__":
    put_in_place(compile_all(), acceleration.build_folder())
