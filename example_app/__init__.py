"""A link shortener: a small real service on connectionpools_fastapi. Start it with `python -m example_app`."""

from .app import create_app
from .settings import Settings

__all__ = ["Settings", "create_app"]
