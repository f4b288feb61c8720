"""Builds the pages into `docs/_build`, and fails on whatever is not right, dead links included: `python -m docs`."""

import re
import sys
from pathlib import Path

from sphinx.cmd.build import build_main

HERE = Path(__file__).parent
BUILT = HERE / "_build"
STRICT = ["--fail-on-warning", "--keep-going", "--fresh-env", "--quiet"]
# What a browser would fetch from another host.
FETCHED = re.compile(r"<(?:script|img|link)\b[^>]*(?:src|href)=\"(https?:[^\"]+)\"")


def fetched_from_elsewhere() -> list[str]:
    """Return what the pages would have a browser fetch from other hosts, each with its page."""
    return [
        f"{page.relative_to(BUILT)} fetches {address}"
        for page in sorted(BUILT.rglob("*.html"))
        for address in FETCHED.findall(page.read_text(encoding="utf-8"))
    ]


if __name__ == "__main__":
    failed = build_main([*STRICT, "-b", "html", str(HERE), str(BUILT), *sys.argv[1:]])
    sys.exit("\n".join(fetched_from_elsewhere()) or failed)
