"""What the managers tell of a session's state, for the guard of `connectionpools_fastapi.testing`."""

from collections.abc import Mapping


def undone(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Name what a reset has changed.

    Args:
        before: What the session had before, and with which values.
        after: What it has now.
    """
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
