"""How Sphinx builds the pages of this folder: `python -m docs`."""

import inspect
import re
from importlib.metadata import version as installed_version
from typing import Any

from connectionpools_fastapi import ConnectionPool

project = "connectionpools_fastapi"
version = release = installed_version("connectionpools-fastapi")
copyright = "MIT licence"  # noqa: A001 - the name that Sphinx asks for

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpicky = False  # types of other packages have no pages here; links that a page writes are checked in any case

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["misc.highlighting_failure"]

# Docstrings are Markdown: what stands in single backticks is code, and a fence is a block.
default_role = "code"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_typehints_format = "short"
autoclass_content = "both"  # what a class is, and what its `__init__` takes
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "connectionpools_fastapi"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False


def from_markdown(_app: Any, _what: str, _name: str, _of: object, _options: Any, lines: list[str]) -> None:
    """Turn the fences of a docstring into literal blocks."""
    written: list[str] = []
    inside = ""
    for line in lines:
        fence = re.match(r"( *)```(\w*)$", line)
        if fence and not inside:
            inside = fence[2] or "text"
            written += [f"{fence[1]}.. code-block:: {inside}", ""]
        elif fence:
            inside = ""
            written.append("")
        else:
            written.append(f"   {line}" if inside else line)
    lines[:] = written


def with_defaults(_app: Any, _page: str, source: list[str]) -> None:
    """Show the one signature that has all defaults, and not the overloads for type checkers."""
    parameters = [
        each.replace(annotation=inspect.Parameter.empty)
        for each in inspect.signature(ConnectionPool).parameters.values()
        if each.name != "clock"
    ]
    signature = str(inspect.Signature(parameters)).removesuffix(")") + ", clock=time.monotonic)"
    source[0] = source[0].replace("autoclass:: ConnectionPool\n", f"autoclass:: ConnectionPool{signature}\n")


def setup(app: Any) -> None:
    """Ask Sphinx for each page, and each docstring before its sections are read."""
    app.connect("source-read", with_defaults)
    app.connect("autodoc-process-docstring", from_markdown, priority=100)
