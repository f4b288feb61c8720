"""An import costs little: it loads only what each application with FastAPI needs."""

import subprocess
import sys

import pytest

IMPORT = """
import sys
import fastapi

before = set(sys.modules)
import connectionpools_fastapi
from connectionpools_fastapi import *

print(*(set(sys.modules) - before))
"""


@pytest.fixture(scope="module")
def brought_along() -> set[str]:
    """The modules that come with the package where FastAPI is there already."""
    said = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)  # noqa: S603 - ours
    return set(said.stdout.split())


def test_package_imports_no_library_beside_fastapi(brought_along: set[str]) -> None:
    found = {name.partition(".")[0] for name in brought_along}
    of_cython = {name for name in found if name == "cython_runtime" or name.startswith("_cython_")}
    assert found - sys.stdlib_module_names - of_cython == {"connectionpools_fastapi"}


@pytest.mark.parametrize("module", ["http.server", "socketserver", "urllib.request", "wsgiref.simple_server"])
def test_the_package_imports_no_server_and_no_client(brought_along: set[str], module: str) -> None:
    assert module not in brought_along


@pytest.mark.parametrize(
    "part", ["_monitoring.families", "_runtime.on_trio", "adapters", "otel", "settings", "testing"]
)
def test_what_not_everybody_needs_is_not_imported(brought_along: set[str], part: str) -> None:
    assert f"connectionpools_fastapi.{part}" not in brought_along
