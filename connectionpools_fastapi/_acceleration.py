"""Whether the hot path runs compiled: decided once, before any other module of the package is imported.

A build leaves the compiled modules in a folder that is named after the interpreter and the sources that they are for.
Where that folder is missing, Python runs: also after an edit, since the edited sources name another folder.
"""

import linecache
import os
import sys
from functools import partial
from hashlib import blake2b
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

NAME = "connectionpools_fastapi"
PACKAGE = Path(__file__).parent
COMPILED = PACKAGE / "_compiled"
# Which interpreter an extension module is for, as its file's name has it: "cpython-311-x86_64-linux-gnu".
INTERPRETER = EXTENSION_SUFFIXES[0].split(".")[1]
# Later interpreters run coroutines of their own without a call in C, so compiling gains less: on 3.13 nothing for a
# lease alone, and a fifth in a crowd. The tests have not run there compiled.
PAYS = sys.version_info < (3, 12)

# How sources are compiled. These settings stand here since this file names a build too: others need a new build.
# A class that is generic in Python has a base that is one in C.
BASES = (
    (r"^(class \w+)\(Generic\[T\]\):", r"\1(Subscriptable):"),
    (r"^(class \w+)\((\w+)\[T\]\):", r"\1(\2):"),
)
DIRECTIVES = {
    "always_allow_keywords": True,
    "annotation_typing": False,  # the .pxd says what has a type in C
    "binding": True,
    "embedsignature": False,
    "language_level": 3,
    "nonecheck": True,  # an attribute of None raises, as in Python
}
FLAGS = ["-O2", "-g0"]
if sys.platform == "linux":
    FLAGS.append("-fno-plt")  # a request misses the cache for instructions less often, for 0.7 % of its time


def asks_for_python() -> bool:
    """Whether the environment says that nothing is to be compiled, nor run compiled."""
    return os.environ.get("CONNECTIONPOOLS_PURE", "0") not in {"", "0"}


def sources() -> list[Path]:
    """Return what is compiled: each module that has a .pxd beside it, and what is written in Cython only."""
    declared = [
        found for folder in (".", "_*") for kind in ("pxd", "pyx") for found in PACKAGE.glob(f"{folder}/*.{kind}")
    ]
    modules = [found.with_suffix(".py") for found in declared if not found.with_suffix(".pyx").exists()]
    return sorted([*declared, *modules])


def build_folder() -> Path:
    """Return where the compiled modules of these sources are, or would be."""
    seen = blake2b(digest_size=8)
    for source in [Path(__file__), *sources()]:
        text = source.read_bytes()
        seen.update(b"%s %d " % (source.relative_to(PACKAGE).as_posix().encode(), len(text)))
        seen.update(text)
    return COMPILED / f"{INTERPRETER}-{seen.hexdigest()}"


def _chosen() -> Path | None:
    """Return the folder of the compiled modules that are to run."""
    try:
        if asks_for_python() or not PAYS or not COMPILED.is_dir():
            return None
        folder = build_folder()
    except OSError:  # without its sources, as in an archive, the package runs in Python
        return None
    return folder if folder.is_dir() else None


def compiled_path(package: str) -> list[str]:
    """Return what comes first in the `__path__` of a package, so that a compiled module is found before its source.

    Args:
        package: Its name.
    """
    return [] if CHOSEN is None else [str(CHOSEN.joinpath(*package.split(".")[1:]))]


def _show_sources() -> None:
    """Have tracebacks find the lines of compiled modules, whose code tells a relative file name."""
    for source in sources():
        linecache.cache[f"{NAME}/{source.relative_to(PACKAGE).as_posix()}"] = (partial(source.read_text, "utf-8"),)


def is_own(filename: str) -> bool:
    """Whether code is the package's own, by the name of its file."""
    return filename.startswith(OWN)


CHOSEN = _chosen()
OWN = (f"{PACKAGE}{os.sep}", f"{NAME}/")
accelerated: bool = CHOSEN is not None
"""Whether the hot path runs compiled. If not, the same sources run in Python: see docs/guide/compiled.md."""

if accelerated:
    _show_sources()
